//go:build unix

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/rogpeppe/go-internal/testscript"
)

// browsing is a story that a person lives through in a browser, by name.
var browsing = map[string]func(b *browser){
	"login":    wrongAndRightLogin,
	"counts":   countsLeadToDevices,
	"list":     filterAndPage,
	"update":   updateByButton,
	"keyboard": updateByKeyboard,
	"viewer":   viewerOnlyLooks,
	"access":   adminLetsSomebodyIn,
	"webhooks": adminAddsAWebhook,
	"noscript": withoutJavaScript,
	"rollouts": haltedAndRunningRollouts,
	"audit":    whoDidWhat,
	"servers":  pageFollowsBothServers,
}

// password is that of the accounts in these stories.
const password = "correct horse battery"

// cmdBrowse lives through a story in Chromium, with a profile of its own: browse STORY
// It fails when a page complains in the console, or asks another host for anything.
func cmdBrowse(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg, "browse")
	if len(args) != 1 || browsing[args[0]] == nil {
		ts.Fatalf("usage: browse STORY")
	}
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		ts.Fatalf("chromium is missing: run e2e/deps.sh, or apt-get install chromium")
	}
	profile, err := os.MkdirTemp(ts.Getenv("WORK"), "profile-")
	ts.Check(err)
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(chromium), chromedp.UserDataDir(profile), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.IgnoreCertErrors,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true), chromedp.WindowSize(1280, 900))...)
	defer cancel()
	ctx, cancel = chromedp.NewContext(ctx)
	defer cancel()
	ts.Check(chromedp.Do(ctx)) // the browser lives as long as the context of its first action: one without a time limit
	b := &browser{ts: ts, base: ts.Getenv("URL"), expected: make(map[string]bool)}
	ts.Check(chromedp.Listen(ctx, b.hear))
	_, err = chromedp.Call(ctx, network.Enable, network.EnableParams{})
	ts.Check(err)
	var done context.CancelFunc
	b.ctx, done = context.WithTimeout(ctx, 2*time.Minute)
	defer done()
	browsing[args[0]](b)
	b.judge()
}

// browser is one page of a person, and what it was heard to say.
type browser struct {
	ts   *testscript.TestScript
	ctx  context.Context
	base string
	// expected are parts of complaints that belong to the story, such as the 401 of a wrong password.
	expected map[string]bool

	mu         sync.Mutex
	complaints []string // guarded by mu
	hosts      map[string]bool
}

// hear keeps what the page asks for and complains about.
func (b *browser) hear(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *network.EventRequestWillBeSent:
		if u, err := url.Parse(e.Request.URL); err == nil && u.Scheme != "data" {
			if b.hosts == nil {
				b.hosts = make(map[string]bool)
			}
			b.hosts[u.Scheme+"://"+u.Host] = true
		}
	case *runtime.EventExceptionThrown:
		b.complaints = append(b.complaints, "exception: "+e.ExceptionDetails.Text)
	case *runtime.EventConsoleAPICalled:
		b.complaints = append(b.complaints, fmt.Sprintf("console.%s", e.Type))
	case *log.EventEntryAdded:
		if e.Entry.Level == log.EntryLevelError || e.Entry.Level == log.EntryLevelWarning {
			b.complaints = append(b.complaints, e.Entry.Text+" "+e.Entry.URL)
		}
	}
}

func (b *browser) judge() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.complaints {
		known := false
		for part := range b.expected {
			known = known || strings.Contains(c, part)
		}
		if !known {
			b.ts.Fatalf("the page complains: %s", c)
		}
	}
	if len(b.hosts) != 1 || !b.hosts[b.base] {
		b.ts.Fatalf("the page asked %v, want %s alone", b.hosts, b.base)
	}
}

// do acts; what fails is shown with the page.
func (b *browser) do(what string, steps ...chromedp.Action[chromedp.Void]) {
	if err := chromedp.Do(b.ctx, steps...); err != nil {
		b.fail("%s: %v", what, err)
	}
}

func (b *browser) fail(format string, args ...any) {
	text, _ := chromedp.Run(b.ctx, chromedp.Evaluate[string](`location.href + "\n" + document.body.innerText`))
	if shot, err := chromedp.Run(b.ctx, chromedp.FullScreenshot(100)); err == nil {
		_ = os.WriteFile(filepath.Join(b.ts.Getenv("WORK"), "page.png"), shot, 0o644)
	}
	b.ts.Fatalf("%s\n[page]\n%s", fmt.Sprintf(format, args...), text)
}

func (b *browser) open(path string) { b.do("open "+path, chromedp.Navigate(b.base+path)) }

// click clicks what a selector finds, and waits for the page it leads to.
func (b *browser) click(css string) {
	for end := time.Now().Add(patience); ; time.Sleep(pollEvery) {
		err := b.clickOnce(css)
		if err == nil {
			return
		}
		// A live page may put a new node in the place of the one that was found, or move it away from under the pointer: it was not
		// clicked, and a person would again.
		missed := strings.Contains(err.Error(), "Could not find node") || errors.Is(err, context.DeadlineExceeded) && b.ctx.Err() == nil
		if !missed || time.Now().After(end) {
			b.fail("click %s: %v", css, err)
		}
	}
}

// clickOnce fails when no page comes of it for a quarter of the patience.
func (b *browser) clickOnce(css string) error {
	ctx, cancel := context.WithTimeout(b.ctx, patience/4)
	defer cancel()
	_, err := chromedp.RunResponse(ctx, chromedp.Click(chromedp.CSS(css)))
	return err
}

// eval asks the page; it works where scripts of the page do not run.
func eval[T any](b *browser, js string) T {
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](js))
	if err != nil {
		b.fail("%s: %v", js, err)
	}
	return v
}

// until waits for a condition of the page to hold.
func (b *browser) until(what, js string) {
	for end := time.Now().Add(patience); ; time.Sleep(pollEvery) {
		v, err := chromedp.Run(b.ctx, chromedp.Evaluate[bool]("Boolean("+js+")"))
		if err == nil && v {
			return
		}
		if time.Now().After(end) {
			b.fail("%s: not within %v (%v)", what, patience, err)
		}
	}
}

func (b *browser) wants(what, js string) {
	if !eval[bool](b, "Boolean("+js+")") {
		b.fail("%s does not hold", what)
	}
}

func (b *browser) signIn(name, secret string) {
	b.open("/login")
	b.do("type", chromedp.SetValue(chromedp.CSS("input[name=name]"), name), chromedp.SetValue(chromedp.CSS("input[name=password]"), secret))
	b.click("form.fields button")
}

func wrongAndRightLogin(b *browser) {
	b.expected["status of 401"] = true
	b.open("/devices?state=online")
	b.wants("a login for who is not signed in", `location.pathname === "/login"`)
	b.do("type", chromedp.SendKeys(chromedp.CSS("input[name=name]"), "anna"), chromedp.SendKeys(chromedp.CSS("input[name=password]"), "a wrong password"))
	b.click("form.fields button")
	b.wants("one sentence about the wrong login", `document.querySelector("[role=alert]").innerText === "Name or password is wrong."`)
	b.wants("the name is still there", `document.querySelector("input[name=name]").value === "anna"`)
	b.do("type", chromedp.SendKeys(chromedp.CSS("input[name=password]"), password))
	b.click("form.fields button")
	b.wants("the page that was asked for", `location.pathname + location.search === "/devices?state=online"`)
	b.wants("the cookie is out of reach of scripts", `document.cookie === ""`)
	b.click(".who button")
	b.wants("the login after signing out", `location.pathname === "/login"`)
	b.open("/devices")
	b.wants("no way back without a login", `location.pathname === "/login"`)
	// The token of the first start signs in as well.
	b.signIn("operator", strings.TrimSpace(b.ts.Getenv("OPERATOR")))
	b.wants("home", `document.querySelector("h1").innerText === "What needs you"`)
}

func countsLeadToDevices(b *browser) {
	b.signIn("anna", password)
	type count struct {
		Link  string `json:"link"`
		Count int    `json:"count"`
		Name  string `json:"name"`
	}
	counts := eval[[]count](b, `[...document.querySelectorAll(".needs a")].map((a) => ({link: a.getAttribute("href"), count: +a.querySelector("strong").innerText, name: a.querySelector(".name").innerText}))`)
	some := 0
	for i, c := range counts {
		b.open("/")
		b.click(".needs li:nth-child(" + strconv.Itoa(i+1) + ") a")
		b.wants(c.Name+" leads to "+c.Link, `location.pathname + location.search === "`+c.Link+`"`)
		if n := eval[int](b, `document.querySelectorAll("#devices tbody tr").length`); n != c.Count {
			b.fail("%s: %d devices, home says %d", c.Name, n, c.Count)
		}
		some += c.Count
	}
	if len(counts) != 6 || some == 0 {
		b.fail("%d counts with %d devices", len(counts), some)
	}
	b.open("/devices?state=unprotected")
	b.wants("the device that holds no key", `document.querySelector("#devices").innerText.includes("bms-000002")`)
	b.open("/")
	b.wants("a bar for each version, in words too", `[...document.querySelectorAll(".bars .label strong")].map((e) => e.innerText).includes("1.0.0")`)
	b.wants("nothing moves sideways", `document.documentElement.scrollWidth <= innerWidth`)
	b.fitsOnAPhone("/", "/devices", "/devices/bms-000001", "/releases", "/account")
}

// fitsOnAPhone opens pages on a small screen, which it leaves behind.
func (b *browser) fitsOnAPhone(paths ...string) {
	_, err := chromedp.Call(b.ctx, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: 390, Height: 800, DeviceScaleFactor: 1, Mobile: true})
	b.ts.Check(err)
	for _, path := range paths {
		b.open(path)
		b.wants(path+" fits on a phone", `document.documentElement.scrollWidth <= innerWidth`)
	}
}

func filterAndPage(b *browser) {
	b.signIn("anna", password)
	b.open("/devices")
	b.wants("a page of 50 of 63", `document.querySelectorAll("#devices tbody tr").length === 50 && document.querySelector(".sum strong").innerText === "63"`)
	first := eval[string](b, `document.querySelector("#devices tbody a").innerText`)
	b.click("a[rel=next]")
	b.wants("the rest", `document.querySelectorAll("#devices tbody tr").length === 13 && !document.querySelector("a[rel=next]")`)
	b.click("a[rel=prev]")
	b.wants("the first page again", `document.querySelector("#devices tbody a").innerText === "`+first+`"`)
	b.do("type a part of an id", chromedp.SetValue(chromedp.CSS("input[name=q]"), "IDLE-1"))
	b.click(".filter button")
	b.wants("ten devices", `document.querySelectorAll("#devices tbody tr").length === 10 && document.querySelector("input[name=q]").value === "IDLE-1"`)
	b.click(".filter a.button")
	b.wants("all again", `document.querySelector(".sum strong").innerText === "63"`)
	b.do("choose", chromedp.SetValue(chromedp.CSS("select[name=state]"), "online"), chromedp.SetValue(chromedp.CSS("input[name=version]"), "1.0.0"))
	b.click(".filter button")
	b.wants("the boards that are on", `document.querySelectorAll("#devices tbody tr").length === 2`)
}

// live marks the page, so that a reload would be noticed.
func (b *browser) live() {
	b.until("the page is live", `document.getElementById("live").innerText === "live"`)
	eval[bool](b, `window.sameOne = true`)
}

func updateByButton(b *browser) {
	b.signIn("anna", password)
	b.open("/devices?q=bms-000001")
	b.click("#devices tbody a")
	b.wants("the device", `document.querySelector("h1").innerText.trim() === "bms-000001"`)
	b.wants("the command line for it", `document.body.innerText.includes("bmsota update --device bms-000001")`)
	b.do("choose the version", chromedp.SetValue(chromedp.CSS("select#version"), "1.1.0"))
	b.click("#update")
	b.wants("what was done", `document.querySelector("[role=status]").innerText.startsWith("The update is ordered.")`)
	b.live()
	b.until("the update is confirmed on the open page", `document.querySelector("#attempts .timeline > li.ok .head").innerText.includes("succeeded")`)
	b.until("the slot that runs", `document.querySelector(".slots .running").innerText.includes("1.1.0")`)
	b.wants("the page was never loaded again", `window.sameOne === true`)
	b.wants("the way back is known", `document.querySelector(".slots").innerText.includes("1.0.0")`)
	// What is hard to take back is asked about.
	b.click("#rollback")
	b.wants("a question", `document.querySelector("h1").innerText === "Roll bms-000001 back?" && document.body.innerText.includes("bmsota rollback --device bms-000001")`)
	b.click("#confirm")
	b.live()
	b.until("the rollback", `document.querySelector("#attempts .timeline > li .head").innerText.match(/rollback.*succeeded/s)`)
	b.until("the old version runs", `document.querySelector(".slots .running").innerText.includes("1.0.0")`)
}

// updateByKeyboard does without a mouse: Tab to what is wanted, Enter.
func updateByKeyboard(b *browser) {
	b.open("/login")
	tabs := func(to string) {
		for range 80 {
			if eval[bool](b, `document.activeElement.matches(`+strconv.Quote(to)+`)`) {
				return
			}
			b.do("tab", chromedp.KeyEvent("\t"))
		}
		b.fail("Tab does not reach %s", to)
	}
	enter := func(what string) {
		if _, err := chromedp.RunResponse(b.ctx, chromedp.KeyEvent("\r")); err != nil {
			b.fail("%s: %v", what, err)
		}
	}
	tabs("input[name=name]")
	b.do("type", chromedp.KeyEvent("anna"))
	tabs("input[name=password]")
	b.do("type", chromedp.KeyEvent(password))
	enter("sign in")
	b.do("tab", chromedp.KeyEvent("\t"))
	b.wants("the first stop leads over the navigation", `document.activeElement.matches(".skip") && document.activeElement.getBoundingClientRect().width > 50`)
	tabs("nav a[href='/devices']")
	b.wants("the focus can be seen", `getComputedStyle(document.activeElement).outlineStyle === "solid"`)
	enter("devices")
	tabs("#devices a[href='/devices/bms-000003']")
	enter("the device")
	tabs("#check")
	enter("check")
	b.wants("what was done", `document.querySelector("[role=status]").innerText === "The device was asked what it is offered."`)
}

func viewerOnlyLooks(b *browser) {
	b.expected["status of 403"] = true
	b.signIn("vera", password)
	b.open("/devices/bms-000001")
	b.wants("no button", `!document.querySelector("main form") && document.body.innerText.includes("Your role (viewer) may look, not command.")`)
	status := eval[int](b, `(() => { const r = new XMLHttpRequest(); r.open("POST", "/devices/bms-000001/command", false);
		r.setRequestHeader("Content-Type", "application/x-www-form-urlencoded"); r.send("action=update&version=1.1.0"); return r.status; })()`)
	if status != 403 {
		b.fail("a viewer's order is answered with %d", status)
	}
	b.open("/releases")
	b.click("#releases tbody a")
	b.wants("no button on a release", `!document.querySelector("main form")`)
	// Another who watches, and whose password is changed meanwhile, is shown the door.
	b.open("/devices")
	b.live()
	out, err := b.bmsota(password+" two\n", "accounts", "password", "vera", "--password-file", "-")
	if err != nil {
		b.fail("new password: %v\n%s", err, out)
	}
	b.open("/releases")
	b.wants("the session has ended with the password", `location.pathname === "/login"`)
}

// adminLetsSomebodyIn makes an account and a token with the token of the server's own machine ($OPERATOR), signs in with the
// account, and takes both away again.
func adminLetsSomebodyIn(b *browser) {
	b.signIn("operator", b.ts.Getenv("OPERATOR"))
	b.click(".who a[href='/access']")
	form := "form[action='/access/accounts'] "
	b.do("type", chromedp.SetValue(chromedp.CSS(form+"input[name=name]"), "otto"), chromedp.SetValue(chromedp.CSS(form+"input[name=new]"), password),
		chromedp.SetValue(chromedp.CSS(form+"input[name=again]"), password))
	b.click("#account")
	b.wants("the account is there", `document.querySelector("[role=status]").innerText === "The account is made." && document.body.innerText.includes("otto")`)
	b.do("type", chromedp.SetValue(chromedp.CSS("form[action='/access/tokens'] input[name=name]"), "wall"))
	b.click("#newtoken")
	b.wants("the token, this once", `document.querySelector("#token").innerText.length > 40`)
	b.click(".who button")
	b.signIn("otto", password)
	b.wants("a viewer finds no way to decide who may", `location.pathname === "/" && !document.querySelector("a[href='/access']")`)
	b.click(".who button")
	b.signIn("operator", b.ts.Getenv("OPERATOR"))
	b.open("/access")
	b.wants("the token no more", `!document.querySelector("#token") && document.body.innerText.includes("wall")`)
	for _, what := range []string{"accounts/otto", "tokens/wall"} {
		b.click("form[action='/access/" + what + "/remove'] button")
		b.wants("a question first", `document.querySelector("h1").innerText.startsWith("Remove the ")`)
		b.click("#confirm")
	}
	b.wants("both are gone", `!document.body.innerText.includes("otto") && !document.body.innerText.includes("wall")`)
}

// adminAddsAWebhook adds one for a program on the server's own machine, which is not allowed here, tests it, reads why it fails,
// and removes it.
func adminAddsAWebhook(b *browser) {
	b.signIn("operator", b.ts.Getenv("OPERATOR"))
	b.click(".who a[href='/webhooks']")
	b.do("type", chromedp.SetValue(chromedp.CSS("input[name=url]"), "http://127.0.0.1:9/hook"), chromedp.Click(chromedp.CSS("input[name='rollout.finished']")))
	b.click("#add")
	b.wants("the secret, this once", `document.querySelector("#secret").innerText.startsWith("whsec_")`)
	b.wants("the events that were ticked", `document.querySelector("#hooks").innerText.includes("rollout.halted") && !document.querySelector("#hooks").innerText.includes("rollout.finished")`)
	b.click("#hooks form[action$='/test'] button")
	b.wants("that it is tested", `document.querySelector("[role=status]").innerText.startsWith("A test is on its way")`)
	for end := time.Now().Add(patience); !eval[bool](b, `document.querySelector("#hooks").innerText.includes("allow it with webhooks.allow_loopback")`); time.Sleep(pollEvery) {
		if time.Now().After(end) {
			b.fail("the page does not say why the webhook fails")
		}
		b.open("/webhooks")
	}
	b.wants("no secret any more", `!document.querySelector("#secret")`)
	b.click("#hooks form[action$='/remove'] button")
	b.click("#confirm")
	b.wants("it is gone", `!document.querySelector("#hooks") && document.body.innerText.includes("The webhook is removed.")`)
}

// haltedAndRunningRollouts finds a halted rollout ($HALTED, of 1.1.0) on the first page and why, and pauses one that runs
// ($RUNNING, of 1.2.0).
func haltedAndRunningRollouts(b *browser) {
	halted, running := "/rollouts/"+b.ts.Getenv("HALTED"), "/rollouts/"+b.ts.Getenv("RUNNING")
	b.signIn("anna", password)
	b.wants("the halted rollout is what needs somebody first", `document.querySelector(".needs li.some a .name").innerText === "rollout halted"`)
	b.wants("the one that runs, with its wave", `document.querySelector("#h-under + .bars").innerText.match(/1\.2\.0.*running.*wave 1 of 2/s)`)
	b.click(".needs li:first-child a")
	b.wants("the halted rollout", `location.pathname === "`+halted+`"`)
	b.wants("why it is halted", `document.querySelector(".note.bad").innerText.match(/Halted .* in wave 1 of 2 by the rule failed: .*rolled back.*more than 0/)`)
	b.wants("the devices that failed, and their reason", `document.querySelectorAll("#left tbody tr").length === 2 && document.querySelector("#left tbody").innerText.includes("new image crashed")`)
	b.wants("no way on before the quarantine is lifted", `document.querySelector(".note.wait").innerText.includes("quarantined") && !document.querySelector("#resume")`)
	b.click("#left tbody a")
	b.wants("the very device", `document.querySelector("#attempts").innerText.includes("rolled back")`)

	b.open("/")
	b.click("nav a[href='/rollouts']")
	b.wants("the halted one first", `[...document.querySelectorAll("#rollouts tbody .badge")].map((e) => e.innerText).filter((t) => t === "halted" || t === "running").join() === "halted,running"`)
	b.click("#rollouts tbody a[href='" + running + "']")
	b.wants("what holds it back", `document.querySelector("#h-held + .bars").innerText.includes("blocked: state of charge too low")`)
	b.click("#pause")
	b.wants("what was done", `document.querySelector("[role=status]").innerText === "The rollout is paused: nothing more is started."`)
	b.wants("it is paused", `document.querySelector("h1 .badge").innerText === "paused"`)
	b.live()
	if out, err := b.bmsota("", "rollout", "resume", b.ts.Getenv("RUNNING")); err != nil {
		b.fail("resume: %v\n%s", err, out)
	}
	b.until("it runs again on the open page, and can be paused", `document.querySelector("h1 .badge").innerText === "running" && document.querySelector("#pause")`)
	b.wants("the page was never loaded again", `window.sameOne === true`)
	b.click("#abort")
	b.wants("a question", `document.querySelector("h1").innerText === "Abort the rollout of bms 1.2.0?"`)
	b.click(".ask a.button")
	b.wants("back without an abort", `location.pathname === "`+running+`" && document.querySelector("h1 .badge").innerText === "running"`)

	// A new one: shown first, then begun. Everybody runs 1.0.0 already, so it is done at once.
	b.open("/rollouts")
	b.click("#new")
	b.wants("the quarantined release cannot be chosen", `[...document.querySelectorAll("select[name=release] option")].map((e) => e.innerText).join() === "bms 1.2.0 for esp32,bms 1.0.0 for esp32"`)
	eval[bool](b, `[...document.querySelectorAll("select[name=release] option")].at(-1).selected = true`)
	b.do("waves", chromedp.SetValue(chromedp.CSS("input[name=waves]"), "100%"))
	b.click("#dryrun")
	b.wants("who would get it", `document.querySelector(".lead").innerText === "bms 1.0.0 would go to 6 devices with esp32." && document.body.innerText.includes("6 of them run it already.")`)
	b.wants("the command line for it", `document.body.innerText.includes("bmsota rollout create 1.0.0 --project bms --chip esp32 --all --waves 100% --max-failed 5% --expect 6")`)
	b.click("#confirm")
	b.wants("what was done", `document.querySelector("[role=status]").innerText === "The rollout has begun."`)
	b.until("it is done on the open page", `document.querySelector("h1 .badge").innerText === "done"`)
	b.fitsOnAPhone("/", "/rollouts", "/rollouts/new", halted, running)
}

// bmsota runs the tool beside the browser.
func (b *browser) bmsota(stdin string, args ...string) (string, error) {
	cmd := command(b.ts, b.ctx, append([]string{"bmsota"}, args...))
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func withoutJavaScript(b *browser) {
	_, err := chromedp.Call(b.ctx, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	b.ts.Check(err)
	b.signIn("anna", password)
	b.wants("home", `document.querySelector("h1").innerText === "What needs you"`)
	b.click(".needs li:nth-child(3) a")
	b.wants("the devices behind the count", `document.querySelector("#devices").innerText.includes("bms-000002")`)
	b.open("/devices/bms-000003")
	b.click("#update")
	b.wants("what was done", `document.querySelector("[role=status]").innerText.startsWith("The update is ordered.")`)
	for end := time.Now().Add(patience); ; time.Sleep(pollEvery) {
		b.open("/devices/bms-000003")
		if eval[bool](b, `Boolean(document.querySelector("#attempts .timeline > li.ok"))`) {
			break
		}
		if time.Now().After(end) {
			b.fail("the update is not confirmed")
		}
	}
	b.wants("no sign of a script", `document.getElementById("live").innerText === ""`)
	b.click("#rollback")
	b.click(".ask a.button")
	b.wants("back without a rollback", `location.pathname === "/devices/bms-000003"`)
	b.click(".who button")
	b.wants("signed out", `location.pathname === "/login"`)
}

func whoDidWhat(b *browser) {
	b.expected["status of 401"], b.expected["status of 403"] = true, true
	b.open("/login")
	b.do("a wrong password", chromedp.SetValue(chromedp.CSS("input[name=name]"), "anna"), chromedp.SetValue(chromedp.CSS("input[name=password]"), "not this one"))
	b.click("main form button")
	b.wants("no way in", `document.querySelector("[role=alert]").innerText === "Name or password is wrong."`)
	b.signIn("vera", password)
	b.wants("a viewer is not led to the log", `!document.querySelector("nav a[href='/audit']")`)
	b.open("/audit")
	b.wants("nor let in", `document.body.innerText.includes("no right to audit") && !document.querySelector("#audit")`)
	b.click(".who button")

	b.signIn("anna", password)
	b.click("nav a[href='/audit']")
	b.wants("her own login among the newest, and what went wrong", `["login.ok", "access.denied", "login.failed"].every((what) => [...document.querySelectorAll("#audit tbody .badge")].slice(0, 8).some((e) => e.innerText === what))`)
	b.live()
	if out, err := b.bmsota("", "devices", "label", "bms-000001", "site=north"); err != nil {
		b.fail("label: %v\n%s", err, out)
	}
	b.do("choose", chromedp.SetValue(chromedp.CSS("select[name=what]"), "attempt."))
	b.click(".filter button")
	b.wants("attempts alone", `document.querySelectorAll("#audit tbody tr").length === 4 && [...document.querySelectorAll("#audit .badge")].every((e) => e.innerText.startsWith("attempt."))`)
	b.wants("the command line for it", `document.querySelector(".cli code").innerText === "bmsota audit list --what attempt."`)
	b.click("#audit a[href='/devices/bms-000001']")
	b.wants("the device", `document.querySelector("h1").innerText.trim() === "bms-000001"`)
	b.click("a[href='/audit?device=bms-000001']")
	b.wants("its rows, the label first", `document.querySelector("#audit tbody tr").innerText.match(/device\.label.*operator.*bms-000001.*site north/s) && document.querySelector("input[name=device]").value === "bms-000001"`)
	rollout := b.ts.Getenv("ROLLOUT")
	b.open("/rollouts/" + rollout)
	b.click("a[href='/audit?rollout=" + rollout + "']")
	b.wants("the rollout's rows", `document.querySelector("#audit").innerText.match(/rollout\.halt.*rollout\.create/s)`)
	b.wants("its release", `document.querySelector("#audit a[href^='/releases/']")`)
	b.fitsOnAPhone("/audit", "/audit?what=rollout.&rollout="+rollout)
}
