package fleet_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

// yard is a shop with boards that do what their fate says, in virtual time, through Fold and the outbox.
type yard struct {
	*shop
	t      *testing.T
	out    *outbox
	stop   func()
	good   fleet.Release
	fates  map[string]fleet.Fate
	boots  map[string]int
	seqs   map[string]uint64
	did    map[string]string // the last command a board has taken up
	starts map[string]int
}

func newYard(t *testing.T, boards int, fate func(i int) fleet.Fate) *yard {
	return newYardFor(t, fleet.Config{}, boards, fate)
}

func newYardFor(t *testing.T, cfg fleet.Config, boards int, fate func(i int) fleet.Fate) *yard {
	y := &yard{shop: newShop(t, cfg), t: t, out: newOutbox(), fates: map[string]fleet.Fate{}, boots: map[string]int{},
		seqs: map[string]uint64{}, did: map[string]string{}, starts: map[string]int{}}
	y.stop = start(t, y.Fleet, y.out)
	synctest.Wait()
	y.publish(t, build(t, version("1.0.0")))
	y.good = y.publish(t, build(t, version("1.1.0")))
	for i := range boards {
		id := fmt.Sprintf("d%02d", i)
		y.fates[id] = fate(i)
		y.say(id, protocol.PhaseIdle, "")
		y.connect(id)
	}
	return y
}

func (y *yard) connect(id string) {
	if err := y.Connected(y.t.Context(), id); err != nil {
		y.t.Fatal(err)
	}
}

func (y *yard) disconnect(id string) {
	if err := y.Disconnected(y.t.Context(), id); err != nil {
		y.t.Fatal(err)
	}
	time.Sleep(fleet.PresenceWait)
	synctest.Wait()
}

func (y *yard) say(id string, p protocol.Phase, command string, change ...func(*protocol.Status)) {
	y.t.Helper()
	y.seqs[id]++
	hear(y.t, y.Fleet, id, status(fmt.Sprint("b", y.boots[id]), y.seqs[id], p), append([]func(*protocol.Status){func(s *protocol.Status) {
		s.CommandID, s.RollbackProtected, s.SlotSize = command, true, 1536<<10
		s.Battery = &protocol.Battery{SOCPct: 80}
	}}, change...)...)
}

// work has every board take up the command that is retained for it, to the end that is its fate.
func (y *yard) work() {
	for id, fate := range y.fates {
		cmd, ok, _ := y.out.get(id)
		if !ok || cmd.ID == y.did[id] || cmd.Action != protocol.ActionUpdate {
			continue
		}
		y.did[id] = cmd.ID
		y.starts[id]++
		if fate == fleet.FateMute {
			continue
		}
		y.say(id, protocol.PhaseChecking, cmd.ID)
		if fate == fleet.FateRefuse {
			y.say(id, protocol.PhaseRefused, cmd.ID, func(s *protocol.Status) { s.Reason = protocol.ReasonBadSignature })
			continue
		}
		y.say(id, protocol.PhaseDownloading, cmd.ID)
		switch fate {
		case fleet.FateFail:
			y.say(id, protocol.PhaseFailed, cmd.ID, func(s *protocol.Status) { s.Reason = protocol.ReasonStalled })
		case fleet.FateSilent:
			y.disconnect(id)
		case fleet.FateCrash, fleet.FateBrownout:
			y.boots[id], y.seqs[id] = y.boots[id]+1, 0
			y.say(id, protocol.PhaseRolledBack, cmd.ID, func(s *protocol.Status) {
				s.Reason, s.FailedSHA256 = protocol.ReasonCrash, y.good.SHA256
				if fate == fleet.FateBrownout {
					s.Reason = protocol.ReasonBrownout
				}
			})
		case fleet.FateGood, fleet.FateDark:
			y.boots[id], y.seqs[id] = y.boots[id]+1, 0
			y.say(id, protocol.PhaseConfirmed, cmd.ID, y.updated)
			if fate == fleet.FateDark {
				y.disconnect(id)
			}
		}
	}
}

func (y *yard) updated(s *protocol.Status) { s.CurrentVersion, s.ImageSHA256 = "1.1.0", y.good.SHA256 }

// passStep is how often boards look at what is retained for them.
const passStep = 2 * time.Second

// pass lets time go by, with boards at work, until the rollout is in one of the states or limit is over.
func (y *yard) pass(id string, limit time.Duration, until ...fleet.RolloutState) fleet.RolloutView {
	y.t.Helper()
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(passStep) {
		synctest.Wait()
		y.work()
		r, err := y.Rollout(y.t.Context(), id)
		if err != nil {
			y.t.Fatal(err)
		}
		if slices.Contains(until, r.State) {
			return r
		}
	}
	r, err := y.Rollout(y.t.Context(), id)
	if err != nil {
		y.t.Fatal(err)
	}
	if len(until) > 0 {
		y.t.Fatalf("the rollout is %s after %v: %+v %+v", r.State, limit, r.Figures, r.Events)
	}
	return r
}

func (y *yard) create(p fleet.Policy, change ...func(*fleet.RolloutRequest)) fleet.Rollout {
	y.t.Helper()
	if len(p.Selector.IDs) == 0 && p.Selector.Labels == nil {
		p.Selector.All = true
	}
	req := fleet.RolloutRequest{Version: "1.1.0", Policy: p}
	for _, c := range change {
		c(&req)
	}
	r, err := y.CreateRollout(y.t.Context(), anna, req)
	if err != nil {
		y.t.Fatal(err)
	}
	return r
}

func (y *yard) members(id string) map[string]fleet.MemberView {
	y.t.Helper()
	list, err := y.RolloutMembers(y.t.Context(), id, "", -1, 1000)
	if err != nil {
		y.t.Fatal(err)
	}
	byID := make(map[string]fleet.MemberView)
	for _, m := range list {
		byID[m.DeviceID] = m
	}
	return byID
}

func everyone(f fleet.Fate) func(int) fleet.Fate { return func(int) fleet.Fate { return f } }

func limit[N any](n N) *N { return &n }

func TestGoodRolloutReachesEveryone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t, 30, everyone(fleet.FateGood))
		defer y.stop()
		r := y.create(fleet.Policy{Waves: []fleet.Wave{{Count: 3, Soak: time.Minute}, {Percent: 50, Soak: time.Minute}, {Percent: 100}}})
		y.pass(r.ID, 30*time.Second)
		if n := len(y.starts); n != 3 {
			t.Errorf("%d boards were started in a first wave of 3", n)
		}
		end := y.pass(r.ID, 10*time.Minute, fleet.RolloutDone)
		if end.Figures != (fleet.Figures{Succeeded: 30}) || end.EndedAt.IsZero() {
			t.Errorf("figures %+v at the end", end.Figures)
		}
		for id, n := range y.starts {
			if a := newest(t, y.Fleet, id); n != 1 || a.State != fleet.AttemptSucceeded || a.RolloutID != r.ID {
				t.Errorf("%s was started %d times, its attempt is %+v", id, n, a)
			}
		}
	})
}

func TestRolloutHaltsInItsFirstWave(t *testing.T) {
	for _, fate := range []fleet.Fate{fleet.FateCrash, fleet.FateSilent, fleet.FateFail, fleet.FateRefuse, fleet.FateMute, fleet.FateDark} {
		t.Run(string(fate), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				y := newYard(t, 40, everyone(fate))
				defer y.stop()
				r := y.create(fleet.Policy{Waves: []fleet.Wave{{Count: 4, Soak: 30 * time.Minute}, {Percent: 100}},
					Stop: fleet.Stop{Failed: limit(2)}, Silence: 10 * time.Minute})
				end := y.pass(r.ID, 5*time.Hour, fleet.RolloutHalted)
				if end.Halt == nil || end.Halt.Rule != "failed" || end.Halt.Figure < 3 || end.Wave != 0 {
					t.Errorf("halt %+v in wave %d", end.Halt, end.Wave)
				}
				y.pass(r.ID, 40*time.Minute) // nothing more comes of it
				if len(y.starts) > 4 {
					t.Errorf("%d boards were started, the wave is of 4", len(y.starts))
				}
				for id, m := range y.members(r.ID) {
					if m.Rank >= 4 && y.starts[id] > 0 {
						t.Errorf("%s of a later wave was started", id)
					}
				}
				_, err := y.Offer(t.Context(), fleet.Query{Device: "d00"})
				if quarantined := errors.Is(err, fleet.ErrNotFound); quarantined != (fate == fleet.FateCrash) {
					t.Errorf("after %s the release is offered: %v", fate, err)
				}
			})
		})
	}
}

func TestBrownoutsAreCountedApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t, 10, func(i int) fleet.Fate {
			if i < 3 {
				return fleet.FateBrownout
			}
			return fleet.FateGood
		})
		defer y.stop()
		r := y.create(fleet.Policy{Waves: []fleet.Wave{{Percent: 100}}, Stop: fleet.Stop{Failed: limit(0)}})
		if end := y.pass(r.ID, time.Hour, fleet.RolloutDone); end.Figures != (fleet.Figures{Succeeded: 7, Brownouts: 3}) {
			t.Errorf("figures %+v", end.Figures)
		}
		y2 := newYard(t, 10, everyone(fleet.FateBrownout))
		defer y2.stop()
		r = y2.create(fleet.Policy{Waves: []fleet.Wave{{Percent: 100}}, Stop: fleet.Stop{Failed: limit(9), Brownouts: limit(1)}, Concurrency: 1})
		if end := y2.pass(r.ID, time.Hour, fleet.RolloutHalted); end.Halt.Rule != "brownouts" || end.Figures.Brownouts != 2 {
			t.Errorf("halt %+v, figures %+v", end.Halt, end.Figures)
		}
	})
}

// TestQuarantineHoldsEverywhere: the digest is offered to nobody and no command of any kind starts it, until an operator
// lifts it; then a resumed rollout goes on and the failures of before count no more.
func TestQuarantineHoldsEverywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad := 2
		y := newYard(t, 10, func(int) fleet.Fate {
			if bad--; bad >= 0 {
				return fleet.FateCrash
			}
			return fleet.FateGood
		})
		defer y.stop()
		other := y.create(fleet.Policy{Selector: fleet.Selector{IDs: []string{"d09"}}, Window: "00:00-00:01", Priority: -1})
		r := y.create(fleet.Policy{Selector: fleet.Selector{IDs: []string{"d00", "d01", "d02", "d03"}}, Waves: []fleet.Wave{{Percent: 100}}, Stop: fleet.Stop{Failed: limit(1)}})
		y.pass(r.ID, time.Hour, fleet.RolloutHalted)
		if end := y.pass(other.ID, time.Hour, fleet.RolloutHalted); end.Halt.Rule != "quarantined" {
			t.Errorf("the other rollout is halted by %+v", end.Halt)
		}
		if _, err := y.Order(t.Context(), anna, "d05", false, []byte(`{"action":"update","version":"1.1.0"}`)); !errors.Is(err, fleet.ErrRefused) || !strings.Contains(err.Error(), "quarantine") {
			t.Errorf("a command for the quarantined version: %v", err)
		}
		if _, err := y.Order(t.Context(), anna, "", false, []byte(`{"action":"update","version":"1.1.0"}`)); !errors.Is(err, fleet.ErrRefused) {
			t.Errorf("a command to all for the quarantined version: %v", err)
		}
		if _, err := y.CreateRollout(t.Context(), anna, fleet.RolloutRequest{Version: "1.1.0", Policy: fleet.Policy{Selector: fleet.Selector{All: true}}}); !errors.Is(err, fleet.ErrRefused) {
			t.Errorf("a rollout of the quarantined version: %v", err)
		}
		if _, err := y.Resume(t.Context(), anna, r.ID); !errors.Is(err, fleet.ErrRefused) {
			t.Errorf("resumed with the release quarantined: %v", err)
		}
		if err := y.LiftQuarantine(t.Context(), anna, y.good.SHA256); err != nil {
			t.Fatal(err)
		}
		if err := y.LiftQuarantine(t.Context(), anna, y.good.SHA256); !errors.Is(err, fleet.ErrNotFound) {
			t.Errorf("lifted twice: %v", err)
		}
		if o, err := y.Offer(t.Context(), fleet.Query{Device: "d05"}); err != nil || o.Release.Version != "1.1.0" {
			t.Errorf("after the quarantine %q is offered (%v)", o.Release.Version, err)
		}
		if _, err := y.Resume(t.Context(), anna, r.ID); err != nil {
			t.Fatal(err)
		}
		if end := y.pass(r.ID, time.Hour, fleet.RolloutDone); end.Figures.RolledBack != 2 || end.Figures.Succeeded != 2 {
			t.Errorf("figures %+v", end.Figures)
		}
		d, err := y.PlanRollout(t.Context(), anna, fleet.RolloutRequest{Version: "1.1.0", Policy: fleet.Policy{Selector: fleet.Selector{All: true}}})
		if err != nil || len(d.Cannot) != 2 || d.Cannot[0].Reason != "quarantined" {
			t.Errorf("a dry run for who rolled back: %+v %v", d.Cannot, err)
		}
	})
}

// TestVerbsMeanWhatTheTableSays: at every stage a device is taken back or runs on as Means promises.
func TestVerbsMeanWhatTheTableSays(t *testing.T) {
	for _, stage := range fleet.Stages() {
		for _, v := range []fleet.Verb{fleet.VerbPause, fleet.VerbAbort, fleet.VerbHalt} {
			t.Run(stage+"/"+string(v), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					y := newYard(t, 2, everyone(fleet.FateMute))
					defer y.stop()
					p := fleet.Policy{Waves: []fleet.Wave{{Count: 1, Soak: time.Hour}, {Percent: 100}}, Silence: 3 * time.Hour}
					r := y.create(p)
					y.pass(r.ID, 3*time.Second)
					var id, other string
					for name, m := range y.members(r.ID) {
						if m.Rank == 0 {
							id = name
						} else {
							other = name
						}
					}
					cmd := y.did[id]
					switch stage {
					case "not started":
						id = other
					case "sent":
					case "ended":
						y.say(id, protocol.PhaseConfirmed, cmd, y.updated)
					default:
						for _, ph := range protocol.Phases()[1:] {
							if ph == protocol.PhaseWaiting && stage != string(ph) {
								continue
							}
							y.say(id, ph, cmd)
							if string(ph) == stage {
								break
							}
						}
					}
					time.Sleep(2 * time.Second)
					synctest.Wait()
					var err error
					switch v {
					case fleet.VerbPause:
						_, err = y.Pause(t.Context(), anna, r.ID)
					case fleet.VerbAbort:
						_, err = y.Abort(t.Context(), anna, r.ID)
					case fleet.VerbHalt:
						err = y.Withdraw(t.Context(), anna, y.good.SHA256)
					}
					if err != nil {
						t.Fatal(err)
					}
					time.Sleep(2 * time.Second)
					synctest.Wait()
					m := y.members(r.ID)[id]
					_, retained, _ := y.out.get(id)
					want, keeps := fleet.MemberPending, false
					switch fleet.Means(v, stage) {
					case fleet.MeansRunsOn:
						want, keeps = fleet.MemberOpen, true
					case fleet.MeansNothing:
						want = fleet.MemberSucceeded
					}
					if m.State != want || retained != keeps {
						t.Errorf("the member is %s and its command retained: %v; want %s and %v", m.State, retained, want, keeps)
					}
					if want == fleet.MemberOpen {
						y.say(id, protocol.PhaseConfirmed, cmd, y.updated)
						time.Sleep(2 * time.Second)
						synctest.Wait()
						if m := y.members(r.ID)[id]; m.State != fleet.MemberSucceeded {
							t.Errorf("what ran on to its end is %s", m.State)
						}
					}
					if v == fleet.VerbPause && want == fleet.MemberPending {
						y.fates[id] = fleet.FateGood
						y.fates[other] = fleet.FateGood
						if _, err := y.Resume(t.Context(), anna, r.ID); err != nil {
							t.Fatal(err)
						}
						y.pass(r.ID, time.Minute)
						if m := y.members(r.ID)[id]; stage != "not started" && m.State != fleet.MemberSucceeded {
							t.Errorf("after the pause it is %s", m.State)
						}
					}
				})
			})
		}
	}
}

func TestGateHoldsUntilTheReadingIsGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t, 2, everyone(fleet.FateGood))
		defer y.stop()
		charging := func(on bool) func(*protocol.Status) {
			return func(s *protocol.Status) { s.Battery = &protocol.Battery{SOCPct: 80, Charging: on} }
		}
		y.say("d00", protocol.PhaseIdle, "", charging(true))
		r := y.create(fleet.Policy{Waves: []fleet.Wave{{Percent: 100}}, Gate: fleet.Gate{NotWhileCharging: true}})
		y.pass(r.ID, 4*time.Minute)
		if m := y.members(r.ID)["d00"]; m.Hold != "charging" || m.Hold.Text() != "blocked: charging" || y.starts["d00"] != 0 {
			t.Errorf("a charging board is held by %q (%s)", m.Hold, m.Hold.Text())
		}
		// The reading grows old: the board is asked, and what it says decides.
		asked := func() int { _, _, n := y.out.get("d00"); return n }
		before := asked()
		y.pass(r.ID, 3*time.Minute)
		if n := asked() - before; n < 1 || n > 4 {
			t.Errorf("it was asked %d times in three minutes", n)
		}
		if _, retained, _ := y.out.get("d00"); retained {
			t.Error("the question is retained")
		}
		y.say("d00", protocol.PhaseIdle, "", charging(false))
		y.pass(r.ID, time.Hour, fleet.RolloutDone)

		// The override is kept and starts it all the same.
		y.good = y.publish(t, build(t, version("1.2.0")))
		y.say("d01", protocol.PhaseIdle, "", charging(true))
		r = y.create(fleet.Policy{Selector: fleet.Selector{IDs: []string{"d01"}}, Gate: fleet.Gate{NotWhileCharging: true}, OverrideGates: true},
			func(req *fleet.RolloutRequest) { req.Version = "1.2.0" })
		y.pass(r.ID, 5*time.Second)
		if y.starts["d01"] != 2 || !strings.Contains(fmt.Sprint(r.Events), "overridden") {
			t.Errorf("started %d times; events %+v", y.starts["d01"], r.Events)
		}
	})
}

// Whoever is too cold, too hot or too busy is not started, a dry run says so beforehand, and a board that measures no
// temperature counts for none.
func TestGateHoldsByCurrentAndTemperature(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t, 5, everyone(fleet.FateGood))
		defer y.stop()
		say := func(id string, current, low, high float64) {
			y.say(id, protocol.PhaseIdle, "", func(s *protocol.Status) {
				s.Battery = &protocol.Battery{SOCPct: 80, PackCurrentA: current, TempMinC: &low, TempMaxC: &high}
			})
		}
		sayAll := func() {
			say("d00", 1, -0.5, 30)
			say("d01", 1, 20, 45.5)
			say("d02", -10.5, 20, 30)
			y.say("d03", protocol.PhaseIdle, "", func(s *protocol.Status) { s.Battery = &protocol.Battery{SOCPct: 80} })
			say("d04", -10, 0, 45)
		}
		sayAll()
		p := fleet.Policy{Selector: fleet.Selector{All: true}, Waves: []fleet.Wave{{Percent: 100}}, Gate: fleet.Gate{MaxCurrentA: 10, MinTempC: new(0.0), MaxTempC: new(45.0)}}
		want := map[string]fleet.Hold{"d00": "too_cold", "d01": "too_hot", "d02": "high_current", "d03": "no_reading"}
		for _, age := range []time.Duration{0, 10 * time.Minute} { // of the readings
			time.Sleep(age)
			draft, err := y.PlanRollout(t.Context(), anna, fleet.RolloutRequest{Version: "1.1.0", Policy: p})
			if err != nil || !maps.Equal(draft.Holds, want) {
				t.Errorf("after %v a dry run says %v (%v), want %v", age, draft.Holds, err, want)
			}
		}
		sayAll()
		r := y.create(p)
		y.pass(r.ID, 3*time.Minute)
		members := y.members(r.ID)
		for id, hold := range want {
			if m := members[id]; m.Hold != hold || y.starts[id] != 0 {
				t.Errorf("%s is held by %q and was started %d times, want %q", id, m.Hold, y.starts[id], hold)
			}
		}
		if y.starts["d04"] != 1 || want["d00"].Text() != "blocked: too cold" {
			t.Errorf("d04 was started %d times; too cold is %q", y.starts["d04"], want["d00"].Text())
		}
		for i := range 4 {
			say(fmt.Sprintf("d%02d", i), 0, 10, 20)
		}
		y.pass(r.ID, time.Hour, fleet.RolloutDone)
	})
}

func TestWindowIsInTheTimeOfTheDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t, 3, everyone(fleet.FateGood))
		defer y.stop()
		for id, zone := range map[string]string{"d00": "Europe/Berlin", "d01": "Atlantic/Reykjavik", "d02": "+02:30"} {
			if _, err := y.SetLabels(t.Context(), anna, id, fleet.Labels{"timezone": zone}, nil); err != nil {
				t.Fatal(err)
			}
		}
		r := y.create(fleet.Policy{Waves: []fleet.Wave{{Percent: 100}}, Window: "02:00-04:30", NeedPct: 1})
		began := map[string]time.Time{}
		for len(began) < 3 && time.Since(r.CreatedAt) < 5*time.Hour {
			y.pass(r.ID, time.Minute)
			for id := range y.starts {
				if began[id].IsZero() {
					began[id] = time.Now()
				}
			}
		}
		berlin, _ := time.LoadLocation("Europe/Berlin")
		for id, zone := range map[string]*time.Location{"d00": berlin, "d01": time.UTC, "d02": time.FixedZone("", 9000)} {
			at := began[id].In(zone)
			if at.Format("15:04") < "02:00" || at.Format("15:04") > "04:31" || began[id].IsZero() {
				t.Errorf("%s began at %v", id, at)
			}
		}
	})
}

func TestPriorityAndSpreadHoldAcrossRollouts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t, 4, everyone(fleet.FateMute))
		defer y.stop()
		next := y.publish(t, build(t, version("1.2.0")))
		for id, bank := range map[string]string{"d00": "a", "d01": "a", "d02": "b"} {
			if _, err := y.SetLabels(t.Context(), anna, id, fleet.Labels{"bank": bank}, nil); err != nil {
				t.Fatal(err)
			}
		}
		low := y.create(fleet.Policy{Waves: []fleet.Wave{{Percent: 100}}, Spread: "bank", Window: "00:20-01:00"})
		high := y.create(fleet.Policy{Selector: fleet.Selector{IDs: []string{"d03"}}, Priority: 5, Window: "05:00-06:00"}, func(r *fleet.RolloutRequest) { r.Version = "1.2.0" })
		order(t, y.Fleet, "d02", `{"action":"update","version":"1.2.0"}`)
		for time.Now().Minute() < 20 {
			y.pass(low.ID, time.Minute)
		}
		y.pass(low.ID, time.Minute)
		m := y.members(low.ID)
		if a, b := m["d00"].State == fleet.MemberOpen, m["d01"].State == fleet.MemberOpen; a == b {
			t.Errorf("of bank a open are d00: %v, d01: %v", a, b)
		}
		if m["d02"].State != fleet.MemberPending || m["d03"].State != fleet.MemberPending {
			t.Errorf("d02 has another command and d03 another rollout: they are %s and %s", m["d02"].State, m["d03"].State)
		}
		if h := y.members(high.ID)["d03"]; h.State != fleet.MemberPending || next.Version != "1.2.0" {
			t.Errorf("d03 is %s in the rollout of higher priority", h.State)
		}
	})
}
