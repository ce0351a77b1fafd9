package notify_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/server/internal/fleet"
	"bmsota/server/internal/notify"
	"bmsota/server/internal/store"
)

var boss = fleet.Identity{Name: "boss", Role: fleet.RoleAdmin}

func newFleet(t *testing.T, rows fleet.Store) *fleet.Fleet {
	t.Helper()
	blobs, err := store.OpenFolder(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = blobs.Close() })
	f, err := fleet.New(fleet.Config{Store: rows, Blobs: blobs, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func add(t *testing.T, f *fleet.Fleet, address string) fleet.Webhook {
	t.Helper()
	h, err := f.AddWebhook(t.Context(), boss, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func happen(t *testing.T, f *fleet.Fleet, h fleet.Webhook, n int) {
	t.Helper()
	for range n {
		if err := f.TestWebhook(t.Context(), boss, h.ID); err != nil {
			t.Fatal(err)
		}
	}
}

// got is one request as a receiver saw it.
type got struct {
	at              time.Time
	host, id, stamp string
	signature, body string
}

// receiver is the network and whoever is behind it. answer says what comes of a request, the first being 0.
type receiver struct {
	mu     sync.Mutex
	list   []got
	answer func(n int, r *http.Request) (status int, err error)
}

func (x *receiver) RoundTrip(r *http.Request) (*http.Response, error) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	x.mu.Lock()
	n := len(x.list)
	x.list = append(x.list, got{time.Now(), r.URL.Host, r.Header.Get("webhook-id"), r.Header.Get("webhook-timestamp"), r.Header.Get("webhook-signature"), string(b)})
	x.mu.Unlock()
	status, err := x.answer(n, r)
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: http.NoBody, Request: r}, nil
}

func (x *receiver) heard() []got {
	x.mu.Lock()
	defer x.mu.Unlock()
	return append([]got{}, x.list...)
}

func run(t *testing.T, f *fleet.Fleet, transport http.RoundTripper) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	n := notify.New(notify.Config{Queue: f, Log: slog.New(slog.DiscardHandler), Version: "1.2.3", Transport: transport, AllowLoopback: true})
	go func() { done <- n.Run(ctx) }()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// verify is what a receiver does by the specification of Standard Webhooks.
func verify(secret string, g got, now time.Time) error {
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	if err != nil || len(key) != 32 {
		return fmt.Errorf("secret of %d bytes (%w)", len(key), err)
	}
	stamp, err := strconv.ParseInt(g.stamp, 10, 64)
	if err != nil || now.Sub(time.Unix(stamp, 0)).Abs() > 5*time.Minute {
		return fmt.Errorf("timestamp %q at %v", g.stamp, now)
	}
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s.%d.%s", g.id, stamp, g.body)
	version, signature, _ := strings.Cut(g.signature, ",")
	if raw, err := base64.StdEncoding.DecodeString(signature); err != nil || version != "v1" || !hmac.Equal(raw, mac.Sum(nil)) {
		return errors.New("the signature is not of this id, time and body")
	}
	return nil
}

func TestNoticesAreSignedAndTriedInOrderUntilTheyAreTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, store.NewMemory())
		h := add(t, f, "https://x.example/hook")
		x := &receiver{answer: func(n int, _ *http.Request) (int, error) {
			switch n {
			case 0:
				return 500, nil
			case 1:
				return 302, nil
			case 2:
				return 0, errors.New("connection refused")
			}
			return 204, nil
		}}
		happen(t, f, h, 3) // before anything is sent: who asks for a test wants it now, whatever failed a moment ago
		stop := run(t, f, x)
		defer stop()
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		list := x.heard()
		if len(list) != 6 {
			t.Fatalf("%d requests, want 4 for the first notice and one for each other", len(list))
		}
		ids := make(map[string]bool)
		for i, g := range list {
			if err := verify(string(h.Secret), g, g.at); err != nil {
				t.Errorf("request %d: %v", i, err)
			}
			if seq := max(1, i-2); !strings.Contains(g.body, fmt.Sprintf(`"sequence":%d,`, seq)) || !strings.HasPrefix(g.body, `{"type":"test","timestamp":"`) {
				t.Errorf("request %d has number %d to tell: %s", i, seq, g.body)
			}
			ids[g.id] = true
			// What a listener on the way could change or send again later is covered.
			for name, bad := range map[string]got{"another time": {id: g.id, body: g.body, signature: g.signature, stamp: strconv.FormatInt(g.at.Unix()+1, 10)},
				"another id": {id: g.id + "x", body: g.body, signature: g.signature, stamp: g.stamp}, "another body": {id: g.id, body: g.body + " ", signature: g.signature, stamp: g.stamp}} {
				if verify(string(h.Secret), bad, g.at) == nil {
					t.Errorf("request %d is as good with %s", i, name)
				}
			}
		}
		if len(ids) != 3 || list[0].id != list[3].id {
			t.Errorf("%d ids for 3 notices, the first %s and %s", len(ids), list[0].id, list[3].id)
		}
		for i, least := range []time.Duration{4 * time.Second, 8 * time.Second, 16 * time.Second} {
			if wait := list[i+1].at.Sub(list[i].at); wait < least || wait > least*3/2+time.Millisecond {
				t.Errorf("try %d came after %v, want %v to %v", i+2, wait, least, least*3/2)
			}
		}
		hooks, err := f.Webhooks(t.Context(), boss)
		if err != nil || hooks[0].Waiting != 0 || hooks[0].Failures != 0 || hooks[0].SucceededAt.IsZero() || !strings.Contains(hooks[0].Failure, "connection refused") {
			t.Errorf("%+v (%v)", hooks, err)
		}
	})
}

// A process that ends while a notice is with its receiver, and before that is written down, sends it again: nothing is
// lost, and what comes twice is told by its id.
func TestRestartLosesNothingAndRepeatsTheID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rows := store.NewMemory()
		f := newFleet(t, rows)
		h := add(t, f, "https://x.example/hook")
		happen(t, f, h, 5)
		first := &receiver{answer: func(n int, r *http.Request) (int, error) {
			if n < 2 {
				return 200, nil
			}
			<-r.Context().Done() // it has the third, and its answer never arrives
			return 0, r.Context().Err()
		}}
		stop := run(t, f, first)
		synctest.Wait()
		stop()
		f = newFleet(t, rows)
		second := &receiver{answer: func(int, *http.Request) (int, error) { return 200, nil }}
		stop = run(t, f, second)
		defer stop()
		synctest.Wait()
		a, b := first.heard(), second.heard()
		if len(a) != 3 || len(b) != 3 || a[2].id != b[0].id || a[2].body != b[0].body {
			t.Fatalf("before %+v\nafter %+v", a, b)
		}
		for i, g := range append(a[:2], b...) {
			if !strings.Contains(g.body, fmt.Sprintf(`"sequence":%d,`, i+1)) {
				t.Errorf("notice %d: %s", i+1, g.body)
			}
		}
		if hooks, err := f.Webhooks(t.Context(), boss); err != nil || hooks[0].FailedAt != (time.Time{}) {
			t.Errorf("the end of the server is taken for a failure of the receiver: %+v (%v)", hooks, err)
		}
	})
}

func TestSlowReceiverDelaysNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, store.NewMemory())
		slow, quick := add(t, f, "https://slow.example/"), add(t, f, "https://quick.example/")
		x := &receiver{answer: func(_ int, r *http.Request) (int, error) {
			if r.URL.Host == "slow.example" {
				<-r.Context().Done()
				return 0, r.Context().Err()
			}
			return 200, nil
		}}
		stop := run(t, f, x)
		defer stop()
		began := time.Now()
		happen(t, f, slow, 2)
		happen(t, f, quick, 50)
		synctest.Wait()
		if n := len(x.heard()); n != 51 || !time.Now().Equal(began) {
			t.Errorf("after %v %d requests were made, want the first of the slow one and 50 of the quick one", time.Since(began), n)
		}
		time.Sleep(notify.Timeout + time.Second)
		synctest.Wait()
		hooks, err := f.Webhooks(t.Context(), boss)
		for _, h := range hooks {
			if h.ID == slow.ID && (h.Failures != 1 || h.Waiting != 2 || !strings.HasPrefix(h.Failure, "slow.example: ")) {
				t.Errorf("after its time was over: %+v (%v)", h, err)
			}
		}
	})
}

// Over a real connection: a redirect is a failure and is not followed, an answer without end is cut, and what the
// server says about a failure holds no path.
func TestAnswersOfAReceiverAreBounded(t *testing.T) {
	asked := make(chan string, 10)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case asked <- r.URL.Path + " " + r.Header.Get("User-Agent") + " " + r.Header.Get("Content-Type"):
		default:
		}
		switch r.URL.Path {
		case "/redirect":
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		case "/endless":
			for r.Context().Err() == nil {
				if _, err := w.Write(bytes.Repeat([]byte("x"), 64<<10)); err != nil {
					return
				}
			}
		}
	}))
	defer srv.Close()
	for path, failed := range map[string]bool{"/redirect": true, "/endless": false, "/secret-path": false} {
		f := newFleet(t, store.NewMemory())
		h := add(t, f, srv.URL+path)
		happen(t, f, h, 1)
		written := &witness{Fleet: f, done: make(chan string, 1)}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			ended <- notify.New(notify.Config{Queue: written, Log: slog.New(slog.DiscardHandler), Version: "1.2.3", AllowLoopback: true}).Run(ctx)
		}()
		why := <-written.done
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if (why != "") != failed || strings.Contains(why, path) {
			t.Errorf("%s: failed with %q", path, why)
		}
		if got := <-asked; got != path+" bmsota/1.2.3 application/json" || len(asked) > 0 {
			t.Errorf("%s: asked for %q and %d more", path, got, len(asked))
		}
	}
	// Unless it is allowed, this machine is no receiver.
	f := newFleet(t, store.NewMemory())
	happen(t, f, add(t, f, srv.URL+"/secret-path"), 1)
	written := &witness{Fleet: f, done: make(chan string, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- notify.New(notify.Config{Queue: written, Log: slog.New(slog.DiscardHandler)}).Run(ctx)
	}()
	why := <-written.done
	cancel()
	if err := <-ended; err != nil || !strings.Contains(why, "webhooks.allow_loopback") || strings.Contains(why, "secret-path") || len(asked) > 0 {
		t.Errorf("to this machine: %q, %d asked (%v)", why, len(asked), err)
	}
}

// witness tells when something was written down: nothing for a success, else why.
type witness struct {
	*fleet.Fleet
	done chan string
}

func (w *witness) Delivered(ctx context.Context, d fleet.Delivery) error {
	err := w.Fleet.Delivered(ctx, d)
	w.done <- ""
	return err
}

func (w *witness) NotDelivered(ctx context.Context, d fleet.Delivery, why string) error {
	err := w.Fleet.NotDelivered(ctx, d, why)
	w.done <- why
	return err
}
