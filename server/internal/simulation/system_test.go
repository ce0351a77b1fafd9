package simulation

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/device"
	"bmsota/esp/appimage"
	"bmsota/server/internal/fleet"
)

var (
	systemSeed   = flag.Uint64("system-seed", 0, "replay this one run of the system simulation, and print its trace")
	systemWorlds = flag.Uint64("system-worlds", 2, "play so many")
)

// Figures of one run.
const (
	systemBoards   = 6
	systemReleases = 3
	faultsLast     = 3 * time.Hour  // of each release
	healBy         = 6 * time.Hour  // after the faults everything has come to rest
	quiet          = 15 * time.Hour // and then nothing happens
)

// system is a world with an operator and faults, all from one seed.
type system struct {
	*world
	seed    uint64
	random  *rand.Rand
	current string   // what every healthy board should run
	sound   []string // versions that are no worse than what came before them

	frozen map[string]int // by rollout: attempts when it was first seen halted or paused
	seen   map[string]string
	errs   []string
}

func (s *system) fail(format string, args ...any) {
	if len(s.errs) < 8 {
		s.errs = append(s.errs, fmt.Sprintf("%v: ", time.Since(s.began))+fmt.Sprintf(format, args...))
	}
}

func (s *system) within(d time.Duration) time.Duration {
	return time.Duration(s.random.Int64N(int64(d)))
}

// play is a run. It returns the digest of its trace, how long its boards have lived in all, and what was wrong.
func play(t *testing.T, seed uint64) (digest string, lived time.Duration, trace []entry, errs []string) {
	synctest.Test(t, func(t *testing.T) {
		s := &system{seed: seed, random: rand.New(rand.NewPCG(seed, 0x5e5)), current: "1.0.0", sound: []string{"1.0.0"}, frozen: map[string]int{}, seen: map[string]string{}}
		s.world = newWorld(t, systemBoards, func(_ int, c *device.Config) {
			if s.random.IntN(2) == 0 { // an update of 32 KiB has some 600 operations
				c.PowerCut = device.PowerCut{At: 1 + s.random.IntN(600), How: []device.CutMoment{device.CutBefore, device.CutTorn, device.CutAfter}[s.random.IntN(3)], Seed: s.random.Uint64()}
			}
		})
		for i, b := range s.boards {
			time.Sleep(time.Duration(i+1)*3_700*time.Millisecond + s.within(time.Second))
			b.on()
		}
		settle(time.Minute)
		for n := range systemReleases {
			s.release(n)
		}
		lived = time.Since(s.began) * systemBoards
		s.world.close()
		for _, b := range s.boards {
			if b.died != nil {
				s.fail("%s: %v", b.id, b.died)
			}
		}
		trace, errs = s.sorted(), s.errs
	})
	h := sha256.New()
	for _, e := range trace {
		fmt.Fprintf(h, "%d %s\n", e.at, e.text)
	}
	return hex.EncodeToString(h.Sum(nil)[:8]), lived, trace, errs
}

// release publishes, rolls out, disturbs, lets heal and judges.
func (s *system) release(n int) {
	version := fmt.Sprintf("1.%d.0", n+1)
	kind := []appimage.Behaviour{appimage.BehaviourOK, appimage.BehaviourOK, appimage.BehaviourCrash, appimage.BehaviourUnhealthy}[s.random.IntN(4)]
	s.publish(version, kind, []int64{16 << 10, 32 << 10, 64 << 10}[s.random.IntN(3)])
	none := 0
	r, err := s.fleet().CreateRollout(context.Background(), admin, fleet.RolloutRequest{Version: version, Policy: fleet.Policy{
		Selector: fleet.Selector{All: true}, Seed: version, Stop: fleet.Stop{Failed: &none}, Concurrency: 1 + s.random.IntN(4), Retries: 1,
		RetryAfter: 3 * time.Minute, Silence: 25 * time.Minute, Deadline: 3 * time.Hour, NeedPct: 50,
		Waves: []fleet.Wave{{Count: 1, Soak: 5 * time.Minute}, {Count: 3, Soak: 5 * time.Minute}, {Percent: 100}}}})
	if err != nil {
		s.fail("rollout of %s: %v", version, err)
		return
	}
	s.note("operator rolls out %s", version)
	end := time.Now().Add(faultsLast)
	for time.Now().Before(end) {
		s.pass(r.ID, time.Minute+s.within(20*time.Minute))
		s.disturb(r.ID)
	}
	s.note("faults stop")
	for i, b := range s.boards {
		s.net.lose(i, false, false)
		b.on()
	}
	s.restarts.Wait()
	for began := time.Now(); time.Since(began) < healBy; {
		s.pass(r.ID, 10*time.Minute)
		s.lead(r.ID, kind)
	}
	s.judge(r.ID, version, kind)
	if kind == appimage.BehaviourOK {
		s.current = version
	} else if _, err := s.fleet().SetChannel(context.Background(), admin, project, "esp32", "", s.current); err != nil && s.current != "1.0.0" {
		s.fail("channel back to %s: %v", s.current, err)
	}
	s.pass(r.ID, quiet)
}

// disturb does one bad thing.
func (s *system) disturb(rollout string) {
	i := s.random.IntN(len(s.boards))
	b := s.boards[i]
	lasts := s.within(25 * time.Minute)
	switch what := s.random.IntN(8); what {
	case 0:
		s.note("server restarts")
		s.restart(lasts / 10)
		s.restarts.Wait()
	case 1, 2, 3:
		s.note("way of %s is lost (%d)", b.id, what)
		s.net.lose(i, what != 2, what != 3)
		s.pass(rollout, lasts)
		s.net.lose(i, false, false)
	case 4:
		s.note("connections of %s are cut", b.id)
		s.net.cut(i)
	case 5:
		s.note("%s has a brownout", b.id)
		b.Reset(device.Brownout)
	case 6:
		s.note("%s is switched off", b.id)
		b.off()
		s.pass(rollout, lasts)
		b.on()
	case 7:
		if _, err := s.fleet().Pause(context.Background(), admin, rollout); err == nil {
			s.note("operator pauses")
			s.pass(rollout, lasts)
			if _, err := s.fleet().Resume(context.Background(), admin, rollout); err != nil {
				s.fail("resume: %v", err)
			}
			delete(s.frozen, rollout)
		}
	}
}

// lead is the operator when the faults are over: a bad release is given up, a good one that was halted goes on.
func (s *system) lead(id string, kind appimage.Behaviour) {
	r, err := s.fleet().Rollout(context.Background(), id)
	if err != nil {
		s.fail("rollout: %v", err)
		return
	}
	switch {
	case r.State.Ended():
		return
	case kind != appimage.BehaviourOK && r.State == fleet.RolloutHalted:
		_, err = s.fleet().Abort(context.Background(), admin, id)
	case r.State == fleet.RolloutHalted || r.State == fleet.RolloutPaused:
		for _, q := range s.quarantined(r.SHA256) {
			err = errors.Join(err, s.fleet().LiftQuarantine(context.Background(), admin, q))
		}
		if err == nil {
			_, err = s.fleet().Resume(context.Background(), admin, id)
		}
		delete(s.frozen, id)
	}
	if err != nil {
		s.fail("operator, with the rollout %s: %v", r.State, err)
	}
}

func (s *system) quarantined(digest string) (list []string) {
	all, err := s.fleet().Quarantines(context.Background())
	if err != nil {
		s.fail("quarantines: %v", err)
	}
	for _, q := range all {
		if q.SHA256 == digest {
			list = append(list, digest)
		}
	}
	return list
}

// pass lets time go by and looks at everything each minute.
func (s *system) pass(rollout string, d time.Duration) {
	for d > 0 {
		step := min(d, time.Minute)
		settle(step)
		d -= step
		s.look(rollout)
	}
}

// look checks what must hold at any time: the truth about versions (I7), and how far a rollout may reach (I8).
func (s *system) look(rollout string) {
	for _, b := range s.boards {
		d := s.device(b)
		if d.Version != "" && !b.proved(d.Version) {
			s.fail("the server believes that %s runs %s, which it never said", b.id, d.Version)
		}
		if !slices.Contains(s.sound, d.Version) && d.Version != "" && s.seen["bad "+d.Version] != "" {
			s.fail("the server believes that %s runs %s, which cannot prove its health", b.id, d.Version)
		}
	}
	r, err := s.fleet().Rollout(context.Background(), rollout)
	if err != nil {
		s.fail("rollout: %v", err)
		return
	}
	begun := r.Members - r.Figures.Pending
	if begun > r.Limits[r.Wave] {
		s.fail("%d members begun in wave %d, which may touch %d", begun, r.Wave+1, r.Limits[r.Wave])
	}
	tried := 0
	for _, b := range s.boards {
		for _, a := range s.attempts(b) {
			if a.RolloutID == rollout {
				tried++
			}
		}
	}
	if r.State == fleet.RolloutRunning {
		delete(s.frozen, rollout)
	} else if before, ok := s.frozen[rollout]; !ok {
		s.frozen[rollout] = tried
	} else if tried != before {
		s.fail("the rollout is %s, and %d more were started", r.State, tried-before)
	}
	if now := fmt.Sprintf("rollout of %s is %s in wave %d: %+v, %d attempts", r.Version, r.State, r.Wave+1, r.Figures, tried); s.seen[rollout] != now {
		s.seen[rollout] = now
		s.note("%s", now)
	}
}

// judge looks at what must have come of a release when the faults are long over (I10, I9).
func (s *system) judge(rollout, version string, kind appimage.Behaviour) {
	r, err := s.fleet().Rollout(context.Background(), rollout)
	if err != nil {
		s.fail("rollout: %v", err)
		return
	}
	if !r.State.Ended() {
		s.fail("the rollout of %s is %s at the end: %+v %v", version, r.State, r.Figures, r.Halt)
	}
	for _, b := range s.boards {
		d, last := s.device(b), b.last()
		member := "none"
		if list, err := s.fleet().RolloutMembers(context.Background(), rollout, "", -1, 100); err == nil {
			for _, m := range list {
				if m.DeviceID == b.id {
					member = fmt.Sprintf("%s:%s", m.State, m.Reason)
				}
			}
		}
		told := fmt.Sprintf("%s says %s:%s and %s, the server believes %s, online %v, member %s", b.id, last.Phase, last.Reason, last.CurrentVersion, d.Version, d.Online, member)
		switch {
		case !d.Online || last.Phase.Updating() || last.CurrentVersion != d.Version:
			s.fail("no rest: %s", told)
		case kind != appimage.BehaviourOK && d.Version != s.current && !slices.Contains(s.sound, d.Version):
			s.fail("on a bad release: %s", told)
		case kind == appimage.BehaviourOK && d.Version != version && strings.HasPrefix(member, string(fleet.MemberSucceeded)):
			s.fail("not where it was told to be: %s", told)
		case kind == appimage.BehaviourOK && d.Version != version && strings.HasPrefix(member, string(fleet.MemberPending)):
			s.fail("left behind without a word: %s", told)
		}
		for _, a := range s.attempts(b) {
			if a.State == fleet.AttemptOpen {
				s.fail("an attempt of %s at %s is open", b.id, a.Version)
			}
		}
		s.note("at rest: %s", told)
	}
	if kind == appimage.BehaviourOK {
		s.sound = append(s.sound, version)
	} else {
		s.seen["bad "+version] = "yes"
	}
}

// TestSystem plays worlds from seeds, each twice, and the two must be the same to the last word and nanosecond.
func TestSystem(t *testing.T) {
	first, worlds := uint64(1), *systemWorlds
	if *systemSeed != 0 {
		first, worlds = *systemSeed, 1
	}
	began := time.Now()
	var lived time.Duration
	for seed := first; seed < first+worlds; seed++ {
		digest, d, trace, errs := play(t, seed)
		lived += d
		if *systemSeed != 0 {
			for _, e := range trace {
				fmt.Fprintln(os.Stderr, e.at, e.text)
			}
		}
		if len(errs) > 0 {
			t.Errorf("seed %d, digest %s; again: make system-sim SEED=%d\n%s", seed, digest, seed, strings.Join(errs, "\n"))
		}
		again, d, other, _ := play(t, seed)
		lived += d
		if again != digest {
			t.Errorf("seed %d: digest %s and then %s: %s", seed, digest, again, firstDifference(trace, other))
		}
		t.Logf("seed %d: digest %s, %d entries", seed, digest, len(trace))
	}
	years := lived.Hours() / 24 / 365
	t.Logf("%d worlds, %.2f device-years, %.1f a minute", worlds, years, years/time.Since(began).Minutes())
}

func firstDifference(a, b []entry) string {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			from := max(0, i-4)
			return fmt.Sprintf("entry %d:\n%v\n%v", i, a[from:min(i+4, len(a))], b[from:min(i+4, len(b))])
		}
	}
	return fmt.Sprintf("%d and %d entries", len(a), len(b))
}
