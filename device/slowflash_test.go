package device

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/device/internal/norflash"
	"bmsota/protocol"
)

// worn is a chip in the middle of its life, one at the end of what its data sheet allows, and beyond it some that take ten times
// as long, or longer than a server may be silent. Each erase of a sector makes its next ones longer, and some are stuck.
var worn = map[string]Pace{
	"used":        {Erase: span(45*time.Millisecond, 400*time.Millisecond), Program: span(175*time.Microsecond, 1250*time.Microsecond), Wear: 0.05, Stuck: 20, Worst: 4 * time.Second},
	"worn":        {Erase: span(200*time.Millisecond, 400*time.Millisecond), Program: span(500*time.Microsecond, 1250*time.Microsecond), Wear: 0.5, Stuck: 10, Worst: 10 * time.Second},
	"beyond worn": {Erase: span(2*time.Second, 4*time.Second), Program: span(5*time.Millisecond, 12500*time.Microsecond), Wear: 0.5, Stuck: 10, Worst: 15 * time.Second},
	"one sector takes longer than a server may be silent": {Erase: span(10*time.Second, 20*time.Second), Wear: 1, Stuck: 10, Worst: 50 * time.Second},
}

func span(least, most time.Duration) Span { return Span{Least: least, Most: most} }

// seeds are some that are the same each time, and one that never was.
func seeds(n int) []uint64 {
	all := []uint64{uint64(time.Now().UnixNano())}
	for i := range n {
		all = append(all, uint64(i+1))
	}
	return all
}

// A board whose flash is slow is as good as another: the time that erasing takes is not the server's silence, and it goes on
// saying how far it is.
func TestSlowFlashIsNotASlowServer(t *testing.T) {
	next := image(t, "1.1.0")
	f := release(t, next, nil)
	for name, pace := range worn {
		for _, seed := range seeds(15) {
			synctest.Test(t, func(t *testing.T) {
				l := layout(image(t, "1.0.0"), `,"timeout_ms":10000`)
				s := serve(t, f, next)
				s.respond = func(r *http.Request, body []byte) *http.Response {
					return reply(r, 200, nil, line{r, bytes.NewReader(body)}, int64(len(body)))
				}
				b := newBench(t, l, s, func(c *Config) { c.Timing.Flash, c.Seed = pace, seed })
				b.hub.retain(update) // an erase may be stuck before there is a session
				b.on()
				b.settle(40 * time.Minute)
				b.off()
				last := b.hub.last()
				if last.ImageSHA256 != sha(next) || last.RollbackPending || last.Retries != 0 || len(b.boots) != 2 {
					t.Errorf("%s, seed %d: runs %s, %d retries, boots %v: %s", name, seed, last.CurrentVersion, last.Retries, b.boots, b.hub.phases())
				}
				saysHowFar(t, fmt.Sprintf("%s, seed %d", name, seed), b.hub.all(), max(pace.Worst, pace.Erase.Most)+64*pace.Program.Most)
			})
		}
	}
}

// line is a body as a network has it: in small pieces, and none once the board has given the request up.
type line struct {
	r    *http.Request
	body io.Reader
}

func (l line) Read(p []byte) (int, error) {
	if err := l.r.Context().Err(); err != nil {
		return 0, err
	}
	return l.body.Read(p[:min(len(p), 1460)])
}

// saysHowFar holds the statuses of a download to docs/protocol.md §3: at least one every 5 % or 2 s, but for what one operation of
// the flash takes, and at most two a second.
func saysHowFar(t *testing.T, name string, all []protocol.Status, operation time.Duration) {
	t.Helper()
	var at []time.Duration
	for _, s := range all {
		if s.Phase == protocol.PhaseDownloading {
			at = append(at, time.Duration(s.TimestampUS)*time.Microsecond)
		}
	}
	if len(at) < 4 {
		t.Errorf("%s: %d statuses of the download", name, len(at))
	}
	for i := 1; i < len(at); i++ {
		if gap := at[i] - at[i-1]; gap > 2*time.Second+2*operation || i > 1 && gap < 450*time.Millisecond && i < len(at)-1 {
			t.Errorf("%s: %v between two statuses", name, gap)
		}
	}
}

// A server that trickles is left all the same, with slow flash and without.
func TestASlowServerIsLeftHoweverSlowTheFlashIs(t *testing.T) {
	next := image(t, "1.1.0")
	f := release(t, next, nil)
	for _, pace := range []Pace{{}, worn["worn"], worn["beyond worn"]} {
		seed := uint64(time.Now().UnixNano())
		synctest.Test(t, func(t *testing.T) {
			s := serve(t, f, next)
			var began, left time.Time
			s.respond = func(r *http.Request, body []byte) *http.Response {
				if began.IsZero() {
					began = time.Now()
					return reply(r, 200, nil, io.MultiReader(bytes.NewReader(body[:8192]), trickle{r}), int64(len(body)))
				}
				if left.IsZero() {
					left = time.Now()
				}
				return plain(r, 200, body)
			}
			b := newBench(t, layout(image(t, "1.0.0"), ""), s, func(c *Config) { c.Timing.Flash, c.Seed = pace, seed })
			b.hub.retain(update)
			b.on()
			b.settle(20 * time.Minute)
			b.off()
			if took := left.Sub(began); left.IsZero() || took > 2*time.Minute || b.hub.last().ImageSHA256 != sha(next) {
				t.Errorf("flash %v, seed %d: left after %v: %s", pace, seed, took, b.hub.phases())
			}
		})
	}
}

// The power fails while a slow erase or write is under way, again and again.
func TestPowerCutsWithSlowFlash(t *testing.T) {
	next := image(t, "1.1.0")
	f := release(t, next, nil)
	for cut := 1; cut <= 60; cut += 3 {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, layout(image(t, "1.0.0"), ""), serve(t, f, next), func(c *Config) { c.Timing.Flash, c.Seed = worn["worn"], uint64(cut) })
			b.hub.retain(update)
			for i := range 3 {
				b.flash().CutAt(cut+i, norflash.Torn(uint64(cut+i)))
				b.on()
				b.settle(5 * time.Minute)
				b.off()
				b.flash().PowerOn()
			}
			b.on()
			b.settle(20 * time.Minute)
			b.off()
			if last := b.hub.last(); last.ImageSHA256 != sha(next) || last.RollbackPending {
				t.Errorf("cut %d: %s", cut, fmt.Sprint(last.CurrentVersion, " ", b.hub.phases()))
			}
		})
	}
}
