package device

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"bmsota/esp/appimage"
	"bmsota/firmware/host_test/hosttest"
)

// slowComponent is a component whose clock goes on by the time that its flash takes: by so much for an erase, in the mean. It
// is slower than in other tests: what the machine makes the server late by must not be what counts.
func slowComponent(t *testing.T, size int64, erase time.Duration, seed uint64) *componentCase {
	t.Helper()
	cc := newComponentCaseOf(t, size, appimage.BehaviourOK, toNew)
	t.Setenv("OTA_HOST_SPEEDUP", "4")
	t.Setenv("OTA_HOST_SLOW_FLASH", fmt.Sprintf("%d,500,%d", erase.Milliseconds(), seed))
	return cc
}

// tries is how often a whole update asked for the image.
func (cc *componentCase) tries(t *testing.T) (n int, problem string) {
	t.Helper()
	cc.bench.server.set(func(s *server) { s.requests = nil })
	began := time.Now()
	_, problem = cc.rest(t.TempDir(), PowerCut{})
	n = cc.bench.server.log(".bin")
	t.Logf("asked %d times for the image, in %v", n, time.Since(began).Round(time.Millisecond))
	return n, problem
}

// A component whose flash takes longer for a sector than a server may be silent or next to silent is through with its first
// try. With the flash's time counted, as it once was, it is not.
func TestComponentSlowFlashIsNotASlowServer(t *testing.T) {
	for _, seed := range seeds(1) {
		cc := slowComponent(t, 16<<10, 40*time.Second, seed)
		if n, problem := cc.tries(t); n != 1 || problem != "" {
			t.Errorf("seed %d: asked %d times for the image: %s", seed, n, problem)
		}
	}
	cc := slowComponent(t, 16<<10, 40*time.Second, 1)
	cc.bench.program = hosttest.BuildMutant(t, "ota_web.c", "    r->last_ms += away;\n    r->window_ms += away;\n", "    (void)away;\n")
	if n, problem := cc.tries(t); n == 1 && problem == "" {
		t.Error("the flash's time was counted, and it made no difference")
	}
}

// piecewise hands a body out in sectors, as the other one lets it.
type piecewise struct {
	body io.Reader
	next func() bool // false: nothing more comes
}

func (p piecewise) Read(b []byte) (int, error) {
	if !p.next() {
		return 0, errLine
	}
	return p.body.Read(b[:min(len(b), flashSector)])
}

// A server that is silent, or sends less than 1 KiB/s, is left although the flash takes its time for each sector that came of
// it. With a window that each of them begins anew it is not.
func TestComponentLeavesASlowServerHoweverSlowTheFlashIs(t *testing.T) {
	const size = 32 << 10
	seed := uint64(time.Now().UnixNano())
	cc := slowComponent(t, size, 3*time.Second, seed)
	t.Setenv("OTA_HOST_SPEEDUP", "12")
	const pause = 9 * time.Second / 12 // of a sector: 455 bytes in a second of the board
	slow := func(next func(r *http.Request, sectors int) bool) (first *time.Duration) {
		first = new(time.Duration)
		began := time.Time{}
		cc.bench.server.set(func(s *server) {
			s.respond = func(r *http.Request, body []byte) *http.Response {
				if !began.IsZero() {
					*first = max(*first, time.Since(began))
					s.respond = nil
					return s.file(r, body)
				}
				began = time.Now()
				sectors := 0
				return reply(r, 200, nil, piecewise{bytes.NewReader(body), func() bool { sectors++; return next(r, sectors) }}, size)
			}
		})
		return first
	}
	trickle := func(r *http.Request, _ int) bool {
		select {
		case <-r.Context().Done():
			return false
		case <-time.After(pause):
			return true
		}
	}
	silence := func(r *http.Request, sectors int) bool {
		if sectors > 3 {
			<-r.Context().Done()
			return false
		}
		return true
	}
	for name, next := range map[string]func(*http.Request, int) bool{"trickle": trickle, "silence": silence} {
		first := slow(next)
		n, problem := cc.tries(t)
		if n < 2 || problem != "" {
			t.Errorf("%s, seed %d: asked %d times for the image: %s", name, seed, n, problem)
		}
		if *first < 25*time.Second/12 || *first > 40*time.Second {
			t.Errorf("%s, seed %d: left after %v", name, seed, *first)
		}
	}
	cc.bench.program = hosttest.BuildMutant(t, "ota_web.c", "    r->window_ms += away;\n", "    r->window_ms = ota_now_ms();\n    r->window_bytes = RATE_BYTES;\n")
	slow(trickle)
	if n, problem := cc.tries(t); n != 1 || problem != "" {
		t.Errorf("the window began anew with every sector, and the server was left: asked %d times: %s", n, problem)
	}
}
