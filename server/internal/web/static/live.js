// Keeps a page up to date: when the server says that something changed, the page is asked for again and those of its
// parts that differ are exchanged. Without this script, or without a connection, the page is what it was when it came.
"use strict";
(() => {
  const main = document.querySelector("[data-live]");
  const sign = document.getElementById("live");
  if (!main || !window.EventSource || !window.DOMParser) return;

  let busy = false, again = false, beats = 0;
  const say = (word, kind) => { if (sign) { sign.textContent = word; sign.className = "live " + kind; } };

  // Focus stays where it was: on the same place among the things that can have it.
  const focusable = (part) => [...part.querySelectorAll("a, button, input, select, summary")];

  const exchange = (fresh) => {
    for (const part of document.querySelectorAll("[data-part]")) {
      const other = fresh.getElementById(part.id);
      if (!other || other.innerHTML === part.innerHTML) continue;
      const at = focusable(part).indexOf(document.activeElement);
      part.innerHTML = other.innerHTML;
      const to = at >= 0 && focusable(part)[at];
      if (to) to.focus({ preventScroll: true });
    }
  };

  const refresh = async () => {
    if (busy) { again = true; return; }
    busy = true;
    try {
      const answer = await fetch(location.href, { headers: { "Bmsota-Live": "1" }, credentials: "same-origin", cache: "no-store", redirect: "error" });
      if (answer.status === 401) { location.reload(); return; }
      if (answer.ok) exchange(new DOMParser().parseFromString(await answer.text(), "text/html"));
    } catch { /* the stream says when the server is back */ }
    busy = false;
    if (again) { again = false; setTimeout(refresh, 1000); }
  };

  const stream = new EventSource(main.dataset.live);
  // Whatever changed between the making of the page and the opening of the stream was told to nobody.
  stream.addEventListener("open", () => { say("live", "on"); refresh(); });
  stream.addEventListener("error", () => { say("not live", "off"); if (stream.readyState === EventSource.CLOSED) refresh(); });
  stream.addEventListener("change", refresh);
  stream.addEventListener("beat", () => { if (++beats % 4 === 0) refresh(); });
  window.addEventListener("pagehide", () => stream.close());
  window.addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
})();
