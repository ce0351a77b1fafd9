package device

import (
	"crypto/ecdsa"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/manifest"
	"bmsota/protocol"
)

// knowing is what a board's settings say of the server's key, behind others.
func knowing(t testing.TB, online *ecdsa.PrivateKey) string {
	t.Helper()
	pem, err := manifest.EncodePublicKey(&online.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf(`,"server_key_pem":%q`, pem)
}

// said is the server's answer to a question, made with its key: f for who asks, with the nonce it asks with.
func said(t testing.TB, f protocol.VersionFile, online *ecdsa.PrivateKey, asked url.Values, change ...func(*manifest.Offer)) []byte {
	t.Helper()
	if asked.Get("nonce") != "" {
		o := manifest.NewOffer(asked.Get("device"), asked.Get("nonce"), asked.Get("path"), f.SHA256, f.Version, 0, 600)
		if m, err := manifest.Unverified(f.Manifest); err == nil {
			o.Sequence = m.Sequence
		}
		for _, c := range change {
			c(&o)
		}
		var err error
		if f.Offer, err = manifest.SignOffer(o, online); err != nil {
			t.Fatal(err)
		}
	}
	b, err := f.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// answers has a server answer every question for a version file with f, as ours does.
func answers(t testing.TB, f protocol.VersionFile, online *ecdsa.PrivateKey, change ...func(*manifest.Offer)) func(*http.Request) *http.Response {
	return func(r *http.Request) *http.Response {
		if !strings.Contains(r.URL.Path, "version") {
			return nil
		}
		asked := r.URL.Query()
		asked.Set("path", r.URL.EscapedPath())
		return plain(r, http.StatusOK, said(t, f, online, asked, change...))
	}
}

// recorded answers every question as the first one was answered.
func recorded(answer func(*http.Request) *http.Response, first *http.Request) func(*http.Request) *http.Response {
	return func(r *http.Request) *http.Response {
		if !strings.Contains(r.URL.Path, "version") {
			return nil
		}
		return answer(first)
	}
}

// asked is a question that was asked before.
func asked(device string) *http.Request {
	at := url.URL{Scheme: "https", Host: "fw.example", Path: "/firmware/version",
		RawQuery: url.Values{"device": {device}, "chip": {"esp32"}, "nonce": {"AAECAwQFBgcICQoLDA0ODw"}}.Encode()}
	return &http.Request{Method: http.MethodGet, URL: &at, Header: http.Header{}}
}

// Every answer that is not the server's to this question is stale, and the board says so; the server's own is taken.
func TestAnAnswerIsTheServersToThisQuestionOrStale(t *testing.T) {
	key, online := newKey(t), newKey(t)
	next, other := image(t, "1.1.0"), image(t, "1.2.0")
	f := release(t, next, key, func(m *manifest.Manifest) { m.Sequence = 7 })
	older := release(t, next, key, func(m *manifest.Manifest) { m.Sequence, m.ForceUpdate = 6, true })
	with := func(change func(*manifest.Offer)) func(*http.Request) *http.Response {
		return answers(t, f, online, change)
	}
	for _, c := range []struct {
		name   string
		answer func(*http.Request) *http.Response
		want   string
	}{
		{"the server's", answers(t, f, online), "runs"},
		{"without an offer", func(r *http.Request) *http.Response {
			return map[bool]*http.Response{true: plain(r, 200, said(t, f, online, nil))}[strings.Contains(r.URL.Path, "version")]
		}, "refused:stale_offer"},
		{"a stranger's", answers(t, f, newKey(t)), "refused:stale_offer"},
		{"by the release key", answers(t, f, key), "refused:stale_offer"},
		{"with the manifest in the offer's place", func(r *http.Request) *http.Response {
			f := f
			f.Offer = f.Manifest
			b, err := f.Append(nil)
			if err != nil {
				t.Fatal(err)
			}
			return map[bool]*http.Response{true: plain(r, 200, b)}[strings.Contains(r.URL.Path, "version")]
		}, "refused:stale_offer"},
		{"to another question", recorded(answers(t, f, online), asked("bms-abcdef")), "refused:stale_offer"},
		{"to another device", with(func(o *manifest.Offer) { o.Device = "bms-another" }), "refused:stale_offer"},
		{"of another channel", with(func(o *manifest.Offer) { o.Path = "/firmware/monitor/old/version" }), "refused:stale_offer"},
		{"of another image", with(func(o *manifest.Offer) { o.SHA256 = sha(other) }), "refused:stale_offer"},
		{"of another version", with(func(o *manifest.Offer) { o.Version = "1.2.0" }), "refused:stale_offer"},
		{"of another manifest over the same image", func(r *http.Request) *http.Response {
			return answers(t, older, online, func(o *manifest.Offer) { o.Sequence = 7 })(r)
		}, "refused:stale_offer"},
	} {
		for _, order := range []string{update, `{"action":"update","force":true,"version":"1.1.0"}`} {
			synctest.Test(t, func(t *testing.T) {
				s := serve(t, f, next)
				s.answer = c.answer
				b := newBench(t, layout(image(t, "1.0.0"), trusting(t, key)+knowing(t, online)), s)
				b.on()
				b.settle(5 * time.Second)
				b.hub.order(order)
				b.settle(5 * time.Minute)
				b.off()
				if got := ending(b, next); got != c.want {
					t.Errorf("answer %s, order %s: %s, want %s: %s", c.name, order, got, c.want, b.hub.phases())
				}
			})
		}
	}
}

func ending(b *bench, next []byte) string {
	last := b.hub.last()
	if last.ImageSHA256 == sha(next) {
		return "runs"
	}
	return fmt.Sprintf("%s:%s", last.Phase, last.Reason)
}

// An answer that somebody holds back for longer than it counts is no answer any more, by the board's own count: its clock may
// show what it likes.
func TestAnAnswerThatIsHeldBackIsStaleWhateverTheClockShows(t *testing.T) {
	key, online := newKey(t), newKey(t)
	next := image(t, "1.1.0")
	f := release(t, next, key)
	for name, clock := range wrongClocks {
		for held, want := range map[time.Duration]string{20 * time.Second: "refused:stale_offer", 5 * time.Second: "runs"} {
			synctest.Test(t, func(t *testing.T) {
				s := serve(t, f, next)
				s.answer = func(r *http.Request) *http.Response {
					if strings.Contains(r.URL.Path, "version") {
						time.Sleep(held)
					}
					return answers(t, f, online, func(o *manifest.Offer) { o.ValidS = 10 })(r)
				}
				b := newBench(t, layout(image(t, "1.0.0"), trusting(t, key)+knowing(t, online)), s, func(c *Config) { c.clock = clock })
				b.on()
				b.settle(5 * time.Second)
				b.hub.order(update)
				b.settle(10 * time.Minute)
				b.off()
				if got := ending(b, next); got != want {
					t.Errorf("clock %s, held for %v: %s, want %s: %s", name, held, got, want, b.hub.phases())
				}
			})
		}
	}
}

// A mirror proves nothing about the time. A board takes from it what is newer than what it runs and says where it comes from; it
// never believes it that there is nothing newer, and goes back for it on nobody's order. A mirror that passes the question on
// is as good as the server.
func TestAMirrorMayBringNewsAndProvesNothing(t *testing.T) {
	key, online := newKey(t), newKey(t)
	same, older, next := image(t, "1.0.0"), image(t, "0.9.0"), image(t, "1.1.0")
	const forced = `{"action":"update","force":true}`
	for _, c := range []struct {
		name    string
		offered []byte
		passes  bool
		order   string
		want    string
	}{
		{"a newer release", next, false, update, "runs"},
		{"what runs", same, false, update, "refused:stale_offer"},
		{"what runs, asked about", same, false, `{"action":"check"}`, "idle:stale_offer"},
		{"an older release", older, false, update, "refused:stale_offer"},
		{"an older release, by force", older, false, forced, "refused:stale_offer"},
		{"what runs, as the server says now", same, true, update, "idle:up_to_date"},
		{"an older release by force, as the server says now", older, true, forced, "runs"},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := release(t, c.offered, key)
			s := serve(t, f, c.offered)
			s.version, s.static = nil, s.version
			if c.passes {
				s.answer = answers(t, f, online)
			}
			settings := trusting(t, key) + knowing(t, online) + `,"mirror_url":"http://mirror.example/firmware.bin"`
			b := newBench(t, layout(same, settings), s, func(cfg *Config) { cfg.Transport = deadAuthority{s} })
			b.on()
			b.settle(5 * time.Second)
			b.hub.order(c.order)
			b.settle(10 * time.Minute)
			b.off()
			got := ending(b, c.offered)
			if strings.HasPrefix(c.name, "what runs") {
				last := b.hub.last()
				got = fmt.Sprintf("%s:%s", last.Phase, last.Reason)
			}
			if got != c.want {
				t.Errorf("%s: %s, want %s: %s", c.name, got, c.want, b.hub.phases())
			}
			told := slices.ContainsFunc(b.hub.all(), func(s protocol.Status) bool { return strings.Contains(s.Message, "there may be something newer") })
			if told != (c.want == "runs" && !c.passes) {
				t.Errorf("%s: says that there may be something newer: %v", c.name, told)
			}
		})
	}
}

// Two boards, and one board after a restart, never ask alike, though they are seeded alike.
func TestNoTwoQuestionsAreAlike(t *testing.T) {
	key, online := newKey(t), newKey(t)
	f := release(t, image(t, "1.0.0"), key)
	seen := make(map[string]int)
	for range 2 {
		synctest.Test(t, func(t *testing.T) {
			s := serve(t, f)
			s.answer = answers(t, f, online)
			b := newBench(t, layout(image(t, "1.0.0"), trusting(t, key)+knowing(t, online)), s)
			for range 3 {
				time.Sleep(time.Duration(len(seen)+1) * time.Millisecond)
				b.on()
				b.settle(5 * time.Second)
				b.hub.order(`{"action":"check"}`)
				b.settle(time.Minute)
				b.off()
			}
			for _, r := range s.requests {
				seen[r.URL.Query().Get("nonce")]++
			}
		})
	}
	if len(seen) < 6 || seen[""] > 0 {
		t.Errorf("questions: %v", seen)
	}
	for nonce, n := range seen {
		if n > 1 {
			t.Errorf("%s was asked with %d times", nonce, n)
		}
	}
}
