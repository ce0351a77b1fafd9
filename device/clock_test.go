package device

import (
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// wrongClocks are clocks of a board whose true time is that of the bubble, from the year 2000 on.
var wrongClocks = map[string]func() time.Time{
	"at 1970":        func() time.Time { return time.Unix(0, 0).Add(time.Since(bubbleStart)) },
	"20 years ahead": func() time.Time { return time.Now().AddDate(20, 0, 0) },
	"forth and back": func() time.Time { return time.Now().AddDate(20*(int(time.Since(bubbleStart)/time.Second)%2), 0, 0) },
	"back to 1970 and forth": func() time.Time {
		return map[bool]time.Time{true: time.Unix(1000, 0), false: time.Now()}[int(time.Since(bubbleStart)/time.Second)%3 == 0]
	},
}

// TestAWrongClockNeitherLocksOutNorLetsStaleThrough: a board whose clock is wrong, or jumps within the update, installs what its
// project signed, still refuses what is older, and carries out no order that has run out by the time that is true.
func TestAWrongClockNeitherLocksOutNorLetsStaleThrough(t *testing.T) {
	key := newKey(t)
	next, old := image(t, "1.1.0"), image(t, "0.9.0")
	stale := fmt.Sprintf(`{"action":"update","expires_at":%q}`, bubbleStart.Add(-time.Hour).Format(time.RFC3339))
	for name, clock := range wrongClocks {
		for _, c := range []struct {
			what, order string
			offered     []byte
			want        string
		}{
			{"a new release", update, next, "runs"},
			{"an old release", update, old, "refused:downgrade"},
			{"a new release by an order that has run out", stale, next, "idle:expired_command"},
		} {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, layout(image(t, "1.0.0"), trusting(t, key)), serve(t, release(t, c.offered, key), c.offered), func(cfg *Config) { cfg.clock = clock })
				b.on()
				b.settle(5 * time.Second)
				b.hub.order(c.order)
				b.settle(20 * time.Minute)
				b.off()
				last := b.hub.last()
				got := fmt.Sprintf("%s:%s", last.Phase, last.Reason)
				if last.ImageSHA256 == sha(next) {
					got = "runs"
				}
				if got != c.want {
					t.Errorf("clock %s, %s: %s, want %s: %s", name, c.what, got, c.want, b.hub.phases())
				}
			})
		}
	}
}

// TestCertificatesOutOfTheirTimeStrandNobodyWithAKey: to a board that thinks it is 1970 no certificate is valid yet, and after
// twenty years none is any more. One that holds a key goes on by the mirror.
func TestCertificatesOutOfTheirTimeStrandNobodyWithAKey(t *testing.T) {
	key := newKey(t)
	next := image(t, "1.1.0")
	f := newFactory(t, bubbleStart)
	for _, dates := range []change{f.dates(25*year, 30*year), f.dates(-21*year, -20*year)} {
		for _, mirror := range []bool{true, false} {
			synctest.Test(t, func(t *testing.T) {
				s := serve(t, release(t, next, key), next)
				s.static = s.version
				cert := f.leaf(f.root, dates)
				offer, stop := front(s, chainCase{chain: []link{cert}}.config())
				plain := newPipeListener()
				web := webServer(s)
				go web.Serve(plain)
				nw := &network{listeners: map[string]func(net.Conn){"fw.localhost:443": offer, "mirror.example:80": plain.offer}}
				l := layout(image(t, "1.0.0"), "")
				settings := fmt.Sprintf(`{"server_url":"https://fw.localhost/firmware/firmware.bin","cert_pem":%q%s`, chainCase{}.trusted(f), trusting(t, key))
				if mirror {
					settings += `,"mirror_url":"http://mirror.example/firmware.bin"`
				}
				l.OTAConfig = []byte(settings + "}")
				b := newBench(t, l, s, func(cfg *Config) { cfg.Transport, cfg.Dial = nil, nw.dial })
				updated(b, 10*time.Minute)
				stop()
				web.Close()
				synctest.Wait()
				if got := b.hub.last().ImageSHA256 == sha(next); got != mirror {
					t.Errorf("mirror %v: installed %v: %s", mirror, got, b.hub.phases())
				}
			})
		}
	}
}
