package broker

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"bmsota/server/internal/fleet"
)

// What is refused at this door, and which operator comes in, is told to whoever keeps the audit log; devices that come and
// go are not.
func TestWhoIsTurnedAwayIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var told []string
		r := start(t, newFleet("d1", "d2"), func(c *Config) {
			c.TurnedAway = func(k fleet.Knock) {
				mu.Lock()
				defer mu.Unlock()
				told = append(told, fmt.Sprintf("%s %s %s %q", k.What, k.Name, k.Via, k.About))
				if k.Address == "" {
					t.Errorf("%v comes from nowhere", k)
				}
			}
		})
		r.connect(login{name: "d1", secret: "no", id: "x"})
		r.operator()
		c := r.device("d1")
		c.send(publish("bms/ota/status", "{}", 0, false, 0)) // repeated by boards that are set to
		c.sync()
		if codes := c.subscribed(7, 0, "bms/ota/command/d2"); codes[0] < 0x80 {
			t.Errorf("subscribed: %#x", codes)
		}
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		want := []string{`login.failed d1 mqtt ""`, `login.ok olga mqtt ""`, `access.denied d1 mqtt "topic bms/ota/command/d2"`}
		if !slices.Equal(slices.Compact(told), want) {
			t.Errorf("told  %q\nwant %q", told, want)
		}
	})
}
