package device

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/device/internal/agent"
	"bmsota/esp/appimage"
	"bmsota/esp/parttable"
	"bmsota/manifest"
	"bmsota/protocol"
)

// stand is a board that runs 1.0.0 and trusts key, and a server that offers next.
func stand(t *testing.T, next []byte, extra string, f protocol.VersionFile, change ...func(*Config)) *bench {
	b := newBench(t, layout(image(t, "1.0.0"), extra), serve(t, f, next), change...)
	b.on()
	b.settle(5 * time.Second)
	return b
}

func TestReleasesAreRefusedForTheRightReason(t *testing.T) {
	key, stranger := newKey(t), newKey(t)
	with := func(c func(*appimage.BuildOptions)) func(*testing.T) []byte {
		return func(t *testing.T) []byte { return image(t, "1.1.0", c) }
	}
	plainly := with(func(*appimage.BuildOptions) {})
	cases := []struct {
		name   string
		next   func(*testing.T) []byte
		change func(*manifest.Manifest)
		file   func(*protocol.VersionFile)
		order  string
		want   string // phase:reason; "" is an update that goes through
	}{
		{name: "newer", next: plainly},
		{name: "older", next: func(t *testing.T) []byte { return image(t, "0.9.0") }, want: "refused:downgrade"},
		{name: "older by force", next: func(t *testing.T) []byte { return image(t, "0.9.0") }, order: `{"action":"update","force":true}`},
		{name: "string that only differs", next: func(t *testing.T) []byte { return image(t, "nightly") }, want: "refused:downgrade"},
		{name: "same version, other bytes", next: func(t *testing.T) []byte {
			return image(t, "1.0.0", func(o *appimage.BuildOptions) { o.Size = 32 << 10 })
		}, want: "refused:same_version"},
		{name: "what runs", next: func(t *testing.T) []byte { return image(t, "1.0.0") }, want: "idle:up_to_date"},
		{name: "what runs by force", next: func(t *testing.T) []byte { return image(t, "1.0.0") }, order: `{"action":"update","force":true}`, want: "idle:up_to_date"},
		{name: "chip", next: with(func(o *appimage.BuildOptions) { o.Chip = appimage.ESP32C3 }), want: "refused:wrong_chip"},
		{name: "chip by force", next: with(func(o *appimage.BuildOptions) { o.Chip = appimage.ESP32C3 }), order: `{"action":"update","force":true}`, want: "refused:wrong_chip"},
		{name: "project", next: with(func(o *appimage.BuildOptions) { o.Project = "heater" }), want: "refused:wrong_project"},
		{name: "size", next: with(func(o *appimage.BuildOptions) { o.Size = 0x180000 + 16 }), want: "refused:too_big"},
		{name: "exactly full slot", next: with(func(o *appimage.BuildOptions) { o.Size = 0x180000 })},
		{name: "intermediate", next: plainly, change: func(m *manifest.Manifest) { m.MinVersion = "1.0.5" }, want: "refused:needs_intermediate"},
		{name: "unsigned by force", next: plainly, file: func(f *protocol.VersionFile) { f.Manifest = "" }, order: `{"action":"update","force":true}`, want: "refused:unsigned"},
		{name: "lies beside the manifest", next: func(t *testing.T) []byte { return image(t, "0.9.0") }, file: func(f *protocol.VersionFile) { f.Version, f.MinVersion, f.ForceUpdate = "9.9.9", "", true }, want: "refused:downgrade"},
		{name: "no version file", next: plainly, file: func(f *protocol.VersionFile) { *f = protocol.VersionFile{} }, want: "refused:bad_version_file"},
		{name: "version asked for", next: plainly, order: `{"action":"update","version":"v1.1.0"}`},
		{name: "another version asked for", next: plainly, order: `{"action":"update","version":"1.0.5"}`, want: "refused:version_mismatch"},
		{name: "the running version asked for", next: plainly, order: `{"action":"update","version":"1.0.0"}`, want: "idle:up_to_date"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				next := c.next(t)
				var changes []func(*manifest.Manifest)
				if c.change != nil {
					changes = append(changes, c.change)
				}
				f := release(t, next, key, changes...)
				if c.file != nil {
					c.file(&f)
				}
				b := stand(t, next, trusting(t, key), f)
				order := c.order
				if order == "" {
					order = `{"action":"update"}`
				}
				before := b.flash().Ops()
				b.hub.order(order)
				b.settle(2 * time.Minute)
				b.off()
				if c.want == "" {
					b.wantRunning(next)
					return
				}
				last := b.hub.last()
				if got := fmt.Sprintf("%s:%s", last.Phase, last.Reason); got != c.want {
					t.Errorf("ends as %s, want %s: %s", got, c.want, b.hub.phases())
				}
				if n := b.flash().Ops() - before; n != 0 {
					t.Errorf("a refused release cost %d flash operations", n)
				}
			})
		})
	}
	t.Run("signed by a stranger, by force", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			next := image(t, "1.1.0")
			b := stand(t, next, trusting(t, key), release(t, next, stranger))
			b.hub.order(`{"action":"update","force":true}`)
			b.settle(time.Minute)
			b.wantPhases("idle checking refused:bad_signature")
			b.off()
		})
	})
	t.Run("captive portal", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			next := image(t, "1.1.0")
			b := stand(t, next, trusting(t, key), release(t, next, key))
			good := b.server.version
			page := []byte("<html><body>Please log in</body></html>")
			b.server.set(func(s *server) { s.version, s.static = page, page })
			b.hub.order(`{"action":"update"}`)
			b.settle(time.Minute)
			b.wantPhases("idle checking refused:bad_version_file")
			b.server.set(func(s *server) { s.version = good })
			b.hub.order(`{"action":"update"}`)
			b.settle(time.Minute)
			b.wantRunning(next)
			b.off()
		})
	})
}

func TestOrdersThatChangeNothingAreAnswered(t *testing.T) {
	cases := []struct{ payload, want string }{
		{`{"action":"update"`, "bad_command"},
		{`{"action":"update","force":"yes"}`, "bad_command"},
		{`{"action":"update","action":"check"}`, "bad_command"},
		{`{"ACTION":"update"}`, "bad_command"},
		{`{"action":"selfdestruct"}`, "unknown_action"},
		{`{"action":"update","x":"` + strings.Repeat("a", 600) + `"}`, "oversize"},
		{`{"action":"update","expires_at":"1999-12-31T00:00:00Z"}`, "expired_command"},
		{`{"action":"rollback"}`, "no_rollback"},
		{`{"action":"rollback","version":"1.0.0"}`, "up_to_date"},
	}
	synctest.Test(t, func(t *testing.T) {
		next := image(t, "1.1.0")
		b := stand(t, next, "", release(t, next, nil))
		for _, c := range cases {
			b.hub.order(c.payload)
			b.settle(2 * time.Second)
			if last := b.hub.last(); last.Phase != protocol.PhaseIdle || string(last.Reason) != c.want {
				t.Errorf("%.60s: answered %s:%s, want idle:%s", c.payload, last.Phase, last.Reason, c.want)
			}
		}
		// A flood of nonsense costs one answer a second.
		n := len(b.hub.all())
		for range 50 {
			for range 20 {
				b.hub.order(`nonsense`)
			}
			b.settle(200 * time.Millisecond)
		}
		if said := len(b.hub.all()) - n; said > 11 {
			t.Errorf("1000 unreadable commands in 10 s were answered %d times", said)
		}
		// And the board still works.
		b.hub.order(`{"action":"status","id":"s1"}`)
		b.settle(time.Second)
		if last := b.hub.last(); last.CommandID != "s1" || last.Reason != "" {
			t.Errorf("status answers %s:%s for %q", last.Phase, last.Reason, last.CommandID)
		}
		b.hub.order(`{"action":"check"}`)
		b.settle(5 * time.Second)
		if last := b.hub.last(); last.Reason != protocol.ReasonUpdateExists || last.AvailableVersion != "1.1.0" || last.Phase != protocol.PhaseIdle {
			t.Errorf("check answers %s:%s %q", last.Phase, last.Reason, last.AvailableVersion)
		}
		b.off()
	})
}

func TestRetainedOrdersActOnceAndOnlyWhileTheyMakeSense(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		next := image(t, "1.1.0")
		b := newBench(t, layout(image(t, "1.0.0"), ""), serve(t, release(t, next, nil), next))
		b.hub.retain(`{"action":"update","id":"r1"}`)
		for range 5 {
			b.on()
			b.settle(3 * time.Minute)
			b.off()
		}
		b.wantRunning(next)
		if n := b.server.log(".bin"); n != 1 {
			t.Errorf("the image was fetched %d times", n)
		}
		b.hub.retain(`{"action":"rollback"}`)
		b.on()
		b.settle(time.Minute)
		b.off()
		if last := b.hub.last(); last.Reason != protocol.ReasonStaleCommand {
			t.Errorf("a retained rollback without a version is answered %s:%s", last.Phase, last.Reason)
		}
	})
}

// TestAnswerToWhatIsRetainedIsNotLost: a broker may send what it retained before the board knows that it is subscribed.
func TestAnswerToWhatIsRetainedIsNotLost(t *testing.T) {
	for _, eager := range []bool{false, true} {
		for payload, want := range map[string]protocol.Reason{
			`{"action":"rollback","id":"r1"}`:                                   protocol.ReasonStaleCommand,
			`{"action":"update","id":"r1","expires_at":"1999-01-01T00:00:00Z"}`: protocol.ReasonExpired,
			`{"action":"status","id":"r1"}`:                                     protocol.ReasonNone,
		} {
			synctest.Test(t, func(t *testing.T) {
				img := image(t, "1.0.0")
				b := newBench(t, layout(img, ""), serve(t, release(t, img, nil), img))
				b.hub.eager = eager
				b.hub.retain(payload)
				b.on()
				b.settle(time.Minute)
				if last := b.hub.last(); last.Reason != want || last.CommandID != "r1" {
					t.Errorf("eager %t: %s is answered %s:%s for %q", eager, payload, last.Phase, last.Reason, last.CommandID)
				}
				b.off()
			})
		}
	}
}

// TestNoStatusNamesAnOrderForWhatCameBeforeIt: the session opens again at the very moment that the next order is taken up.
func TestNoStatusNamesAnOrderForWhatCameBeforeIt(t *testing.T) {
	for range 50 {
		synctest.Test(t, func(t *testing.T) {
			next := image(t, "1.1.0")
			b := stand(t, next, "", release(t, next, nil))
			b.hub.eager = true
			b.hub.order(`{"action":"update","id":"before","version":"1.0.0"}`)
			b.settle(time.Minute)
			b.hub.drop()
			b.hub.retain(`{"action":"update","id":"after","version":"1.1.0"}`)
			b.hub.up()
			b.settle(5 * time.Minute)
			b.wantRunning(next)
			for _, s := range b.hub.all() {
				if s.CommandID == "after" {
					if !s.Phase.Updating() {
						t.Errorf("the first status of an order is %s:%s", s.Phase, s.Reason)
					}
					break
				}
			}
			b.off()
		})
	}
}

// TestOrderThatWaitsHasNoPartInTheStoryBeforeIt: an order that meets a board on trial, or one with a rollback to tell, is
// not named in what it says.
func TestOrderThatWaitsHasNoPartInTheStoryBeforeIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad := image(t, "1.1.0", trial(appimage.BehaviourUnhealthy))
		b := stand(t, bad, `,"health":{"deadline_s":60}`, release(t, bad, nil))
		b.hub.order(`{"action":"update","id":"bad"}`)
		b.hub.retain(`{"action":"update","id":"good","version":"1.2.0"}`)
		b.settle(5 * time.Minute)
		rolledBack := false
		for _, s := range b.hub.all() {
			rolledBack = rolledBack || s.Phase == protocol.PhaseRolledBack
			if s.CommandID == "good" && (s.Phase == protocol.PhaseRolledBack || s.Phase == protocol.PhaseTrial) {
				t.Errorf("%s:%s is said in the name of an order that waits", s.Phase, s.Reason)
			}
		}
		if !rolledBack {
			t.Errorf("said %s", b.hub.phases())
		}
		b.off()
	})
}

// TestWhoAsksIsSaidWhereverIsAsked: a server that has nothing for this board must not be taken for a folder that has a
// release for everybody.
func TestWhoAsksIsSaidWhereverIsAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		img := image(t, "1.0.0")
		b := stand(t, img, "", release(t, img, nil))
		b.server.set(func(s *server) { s.version = nil })
		b.hub.order(update)
		b.settle(time.Minute)
		if last := b.hub.last(); last.Phase != protocol.PhaseRefused || last.Reason != protocol.ReasonNotPublished {
			t.Errorf("nothing there is %s:%s", last.Phase, last.Reason)
		}
		if b.server.log("version.json") == 0 {
			t.Error("a folder of files would not have been found")
		}
		for _, r := range b.server.requests {
			if q := r.URL.Query(); q.Get("device") != "bms-abcdef" || q.Get("chip") != "esp32" {
				t.Errorf("%s names nobody", r.URL)
			}
		}
		b.off()
	})
}

func TestSecondOrderWhileOneRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := newKey(t)
		next := image(t, "1.1.0", quarterMiB)
		b := stand(t, next, trusting(t, key), release(t, next, key))
		b.server.set(func(s *server) { s.cut, s.cuts = 64<<10, 3 })
		b.hub.order(`{"action":"update","id":"a"}`)
		b.settle(100 * time.Millisecond)
		b.hub.order(`{"action":"update","id":"a"}`) // delivered twice
		b.hub.order(`{"action":"update","id":"b","version":"2.0.0"}`)
		b.settle(10 * time.Millisecond)
		if last := b.hub.last(); last.Reason != protocol.ReasonBusy || last.CommandID != "b" || last.Phase != protocol.PhaseDownloading {
			t.Errorf("a second order is answered %s:%s for %q", last.Phase, last.Reason, last.CommandID)
		}
		b.settle(3 * time.Minute)
		b.wantRunning(next)
		b.off()
	})
}

func TestForceUpdateStartsOnACheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := newKey(t)
		next := image(t, "1.1.0")
		b := stand(t, next, trusting(t, key), release(t, next, key, func(m *manifest.Manifest) { m.ForceUpdate = true }))
		b.hub.order(`{"action":"check"}`)
		b.settle(time.Minute)
		b.wantRunning(next)
		b.off()
	})
}

func TestGatesHoldTheUpdateBackAndSayWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := newKey(t)
		next, later := image(t, "1.1.0"), image(t, "1.2.0")
		b := stand(t, next, trusting(t, key)+`,"gate":{"min_soc_pct":50,"not_while_charging":true,"max_current_a":10,"min_temp_c":0,"max_temp_c":45}`, release(t, next, key))
		cells := func(low, high float64) protocol.Battery {
			return protocol.Battery{SOCPct: 90, PackCurrentA: -10, TempMinC: &low, TempMaxC: &high}
		}
		b.board.Sensors().Set(protocol.Battery{SOCPct: 30, Charging: true, TempMinC: new(-5.0), TempMaxC: new(50.0)})
		b.hub.order(`{"action":"update"}`)
		b.settle(time.Minute)
		b.board.Sensors().Set(protocol.Battery{SOCPct: 30, TempMinC: new(-5.0), TempMaxC: new(50.0)})
		b.settle(time.Minute)
		b.board.Sensors().SetSilent(true)
		b.settle(time.Minute)
		b.board.Sensors().SetSilent(false)
		b.board.Sensors().Set(protocol.Battery{SOCPct: 90, PackCurrentA: -10.5, TempMinC: new(-5.0), TempMaxC: new(50.0)})
		b.settle(time.Minute)
		b.board.Sensors().Set(cells(-0.5, 50))
		b.settle(time.Minute)
		b.board.Sensors().Set(cells(10, 50))
		b.settle(time.Minute)
		b.board.Sensors().Set(protocol.Battery{SOCPct: 90})
		b.settle(time.Minute)
		if n := b.server.log(".bin"); n != 0 {
			t.Errorf("%d downloads behind closed gates", n)
		}
		// Another release while it waits: what is installed is what is offered when the gate opens.
		body, err := release(t, later, key).Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		b.server.set(func(s *server) { s.version, s.files[sha(later)+".bin"] = body, later })
		b.board.Sensors().Set(cells(10, 40))
		b.settle(time.Minute)
		b.wantPhases("idle checking waiting:charging waiting:low_soc waiting:no_reading waiting:high_current waiting:too_cold waiting:too_hot waiting:no_reading " + goodUpdate[len("idle "):])
		b.wantRunning(later)
		b.off()
	})
}

func TestWaitingEndsWithTheOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		next := image(t, "1.1.0")
		b := stand(t, next, `,"gate":{"min_soc_pct":50}`, release(t, next, nil))
		b.board.Sensors().Set(protocol.Battery{SOCPct: 30})
		b.hub.order(`{"action":"update","expires_at":"` + time.Now().Add(time.Hour).UTC().Format(time.RFC3339) + `"}`)
		b.settle(2 * time.Hour)
		b.wantPhases("idle checking waiting:low_soc idle:expired_command")
		// A newer order takes the place of one that waits.
		b.hub.order(`{"action":"update"}`)
		b.settle(time.Minute)
		b.hub.order(`{"action":"update","version":"1.0.5"}`)
		b.settle(time.Minute)
		if last := b.hub.last(); last.Reason != protocol.ReasonVersionMissing {
			t.Errorf("the newer order ends as %s:%s", last.Phase, last.Reason)
		}
		b.off()
	})
}

func TestALimitOfTimeWaitsForTheClock(t *testing.T) {
	const within, over = `{"action":"check","id":"within","expires_at":"2001-01-01T00:00:00Z"}`, `{"action":"update","id":"over","expires_at":"1999-01-01T00:00:00Z"}`
	next := image(t, "1.1.0")
	for _, c := range []struct {
		name, order string
		told        time.Duration // when the board is told the time, after power on
		want        string        // how it ends
	}{
		{"in time", within, 3 * time.Minute, "idle:update_available:within"},
		{"too late", over, 3 * time.Minute, "idle:expired_command:over"},
		{"never told", within, time.Hour, "idle:expired_command:within"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				on := time.Now()
				b := stand(t, next, "", release(t, next, nil), func(cfg *Config) {
					cfg.clock = func() time.Time {
						if since := time.Since(on); since < c.told {
							return time.Unix(0, 0).Add(since) // what a chip counts from
						}
						return time.Now()
					}
				})
				b.hub.order(c.order)
				b.settle(2 * time.Minute)
				if last := b.hub.last(); last.Phase != protocol.PhaseIdle || last.Reason != protocol.ReasonNone || last.CommandID != "" {
					t.Errorf("without the time it says %s:%s %q", last.Phase, last.Reason, last.CommandID)
				}
				said := len(b.hub.all())
				b.settle(45 * time.Second)
				if n := len(b.hub.all()); n != said {
					t.Errorf("%d statuses more while it waits", n-said)
				}
				b.settle(10 * time.Minute)
				last := b.hub.last()
				if got := fmt.Sprintf("%s:%s:%s", last.Phase, last.Reason, last.CommandID); got != c.want {
					t.Errorf("it ends as %s, want %s", got, c.want)
				}
				b.off()
			})
		})
	}
}

func TestAWindowIsClosedWithoutTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		on, next := time.Now(), image(t, "1.1.0")
		b := stand(t, next, `,"gate":{"window":"00:00-23:59"}`, release(t, next, nil), func(cfg *Config) {
			cfg.clock = func() time.Time {
				if since := time.Since(on); since < time.Hour {
					return time.Unix(0, 0).Add(since)
				}
				return time.Now()
			}
		})
		b.hub.order(update)
		b.settle(50 * time.Minute)
		b.wantPhases("idle checking waiting:outside_window")
		b.settle(20 * time.Minute)
		b.wantRunning(next)
		b.off()
	})
}

func TestOperatorRollbackHoldsAgainstTheRetainedOrderOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, next := image(t, "1.0.0"), image(t, "1.1.0")
		b := newBench(t, layout(old, ""), serve(t, release(t, next, nil), next))
		b.hub.retain(`{"action":"update"}`)
		b.on()
		b.settle(3 * time.Minute)
		b.wantRunning(next)
		before := len(b.hub.all())
		b.hub.order(`{"action":"rollback","id":"rb"}`)
		b.settle(5 * time.Minute)
		b.hub.mu.Lock()
		b.hub.statuses = b.hub.statuses[before:]
		b.hub.mu.Unlock()
		b.wantPhases("rebooting:operator rolled_back:operator idle checking refused:quarantined")
		if last := b.hub.last(); last.ImageSHA256 != sha(old) || last.RollbackPending {
			t.Errorf("runs %s, pending %v", last.CurrentVersion, last.RollbackPending)
		}
		b.off()
		b.on()
		b.settle(time.Minute)
		if last := b.hub.last(); last.ImageSHA256 != sha(old) {
			t.Errorf("after power off and on it runs %s", last.CurrentVersion)
		}
		// An order given while it listens brings the image back, without a byte from the network.
		n := b.server.log(".bin")
		b.hub.order(`{"action":"update"}`)
		b.settle(3 * time.Minute)
		if last := b.hub.last(); last.ImageSHA256 != sha(next) {
			t.Errorf("after a live order it runs %s: %s", last.CurrentVersion, b.hub.phases())
		}
		t.Logf("%d requests for the image", b.server.log(".bin")-n)
		// And back once more, by version, retained: done once, then fulfilled.
		b.hub.retain(`{"action":"rollback","version":"1.0.0"}`)
		for range 3 {
			b.off()
			b.on()
			b.settle(3 * time.Minute)
		}
		if last := b.hub.last(); last.ImageSHA256 != sha(old) || last.Reason != protocol.ReasonUpToDate {
			t.Errorf("after a retained rollback it runs %s, %s:%s", last.CurrentVersion, last.Phase, last.Reason)
		}
		b.off()
	})
}

func TestTrialNeedsEverythingAndSaysWhatIsMissing(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(b *bench)
		want  protocol.Reason
	}{
		"broker": {func(b *bench) { b.hub.refuse = true }, protocol.ReasonNoBroker},
		"puback": {func(b *bench) { b.hub.acks = false }, protocol.ReasonNoBroker},
		"server": {func(b *bench) { b.server.set(func(s *server) { s.down = true }) }, protocol.ReasonNoServer},
		"bms":    {func(b *bench) { b.board.Sensors().SetSilent(true) }, protocol.ReasonBMSSilent},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				next := image(t, "1.1.0")
				b := stand(t, next, "", release(t, next, nil))
				b.board.cfg.OnBoot = func(p string, _ ResetReason) {
					b.boots = append(b.boots, p)
					b.hub.mu.Lock()
					defer b.hub.mu.Unlock()
					if p == "ota_1" {
						b.hub.mu.Unlock()
						c.spoil(b)
						b.hub.mu.Lock()
						return
					}
					b.hub.refuse, b.hub.acks = false, true
				}
				b.hub.order(`{"action":"update"}`)
				b.settle(10 * time.Minute)
				b.server.set(func(s *server) { s.down = false })
				var got protocol.Reason
				for _, s := range b.hub.all() {
					if s.Phase == protocol.PhaseRolledBack {
						got = s.Reason
					}
				}
				if got != c.want || b.hub.last().CurrentVersion != "1.0.0" {
					t.Errorf("rolled back because of %q, want %q: %s %v", got, c.want, b.hub.phases(), b.boots)
				}
				b.off()
			})
		})
	}
}

func TestBrownoutAndPowerLossInATrial(t *testing.T) {
	for _, c := range []struct {
		reset ResetReason
		want  protocol.Reason
		final string
	}{{Brownout, protocol.ReasonBrownout, "1.0.0"}, {PowerOn, protocol.ReasonPowerLoss, "1.1.0"}} {
		synctest.Test(t, func(t *testing.T) {
			next := image(t, "1.1.0")
			var b *bench
			first := true
			b = newBench(t, layout(image(t, "1.0.0"), ""), serve(t, release(t, next, nil), next))
			b.hub.retain(`{"action":"update"}`)
			b.board.cfg.OnBoot = func(p string, _ ResetReason) {
				if p == "ota_1" && first {
					first = false
					b.board.Reset(c.reset)
				}
			}
			b.on()
			b.settle(10 * time.Minute)
			b.off()
			var got protocol.Reason
			for _, s := range b.hub.all() {
				if s.Phase == protocol.PhaseRolledBack {
					got = s.Reason
				}
			}
			// Power that fails is not the image's fault: the retained order tries it again.
			if got != c.want || b.hub.last().CurrentVersion != c.final {
				t.Errorf("%s: rolled back because of %q, runs %s: %s", c.reset, got, b.hub.last().CurrentVersion, b.hub.phases())
			}
		})
	}
}

// TestNothingButTestsSetsAMutant reads every Go file that can: agent is internal to device.
func TestNothingButTestsSetsAMutant(t *testing.T) {
	files := 0
	err := fs.WalkDir(os.DirFS("."), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || strings.HasPrefix(path, "internal/agent/") {
			return err
		}
		src, err := os.ReadFile(filepath.FromSlash(path))
		if err != nil {
			return err
		}
		files++
		// The board hands on the field that only a test can have set, and that is all.
		text := strings.Replace(string(src), "Mutant: b.cfg.mutant,", "", 1)
		if path == "board.go" {
			text = strings.Replace(text, "mutant  agent.Mutant\n", "", 1)
		}
		if strings.Contains(strings.ToLower(text), "mutant") {
			t.Errorf("%s knows of mutants", path)
		}
		return nil
	})
	if err != nil || files < 10 {
		t.Errorf("%d files read: %v", files, err)
	}
}

func TestMutantsAreNoticed(t *testing.T) {
	t.Run(string(agent.MutantSwitchFirst), func(t *testing.T) {
		sw := sweepOf(t, image(t, "1.1.0"), toNew, agent.MutantSwitchFirst)
		if newBeforeBytes(sw, sw.record(t)) == "" {
			t.Error("a record before its bytes goes unnoticed")
		}
	})
	t.Run(string(agent.MutantKeepFailedSlot), func(t *testing.T) {
		sw := sweepOf(t, image(t, "1.1.0", trial(appimage.BehaviourCrash)), toOld, agent.MutantKeepFailedSlot)
		if sw.zombies(sw.record(t).last) == "" {
			t.Error("a failed image that stays bootable goes unnoticed")
		}
	})
	t.Run(string(agent.MutantUnsteadyRecords), func(t *testing.T) {
		if lost := withUnsureRecord(t, agent.MutantNone); lost != 0 {
			t.Errorf("%d of 16 boards are not at rest", lost)
		}
		if withUnsureRecord(t, agent.MutantUnsteadyRecords) == 0 {
			t.Error("a record that reads now so and now so goes unnoticed")
		}
	})
	t.Run(string(agent.MutantConfirmFirst), func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			next := image(t, "1.1.0", trial(appimage.BehaviourUnhealthy))
			b := stand(t, next, "", release(t, next, nil), func(c *Config) { c.mutant = agent.MutantConfirmFirst })
			b.hub.order(`{"action":"update"}`)
			b.settle(10 * time.Minute)
			b.off()
			if b.hub.last().CurrentVersion != "1.1.0" {
				t.Error("the mutant does not confirm what it should not; the test of unhealthy images proves nothing")
			}
		})
	})
}

// TestEveryBitOfTheRecordsAfterARollback flips each bit of both records: as the failed slot is unbootable, the board
// comes up every time. With the failed image left in place some flips are for ever.
func TestEveryBitOfTheRecordsAfterARollback(t *testing.T) {
	stuck := func(mutant agent.Mutant) (n int) {
		after := sweepOf(t, image(t, "1.1.0", trial(appimage.BehaviourCrash)), toOld, mutant).record(t).last
		data, _ := parttable.Default().OTAData()
		for bit := range 512 {
			f := after.Clone()
			off := int64(data.Offset) + int64(bit/256)*4096
			sector := make([]byte, 4096)
			f.ReadAt(sector, off)
			sector[bit%256/8] ^= 1 << (bit % 8)
			f.Erase(off, 4096)
			f.Program(off, sector)
			synctest.Test(t, func(t *testing.T) {
				h := newHub()
				up := false
				b, err := Open(Config{Flash: &Flash{base: &lockedFlash{flash: f}}, Transport: &server{files: map[string][]byte{}}, newLink: h.link, mutant: mutant})
				if err != nil {
					t.Fatal(err)
				}
				bn := &bench{t: t, hub: h, board: b}
				bn.on()
				bn.settle(2 * time.Minute)
				bn.off()
				up = h.last().CurrentVersion == "1.0.0"
				if !up {
					n++
				}
			})
		}
		return n
	}
	if n := stuck(agent.MutantNone); n != 0 {
		t.Errorf("%d of 512 flips keep the board from coming up", n)
	}
	if n := stuck(agent.MutantKeepFailedSlot); n == 0 {
		t.Error("the mutant survives every flip: the test proves nothing")
	} else {
		t.Logf("with the failed image left in place, %d of 512 flips are for ever", n)
	}
}
