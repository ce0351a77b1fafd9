package fleet

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"bmsota/protocol"
)

var liarSeed = flag.Uint64("liar-seed", 0, "replay this one fleet with liars")

const liarFleets = 1500

// liarScene is a fleet of honest devices that all fare alike with the release, one in ten a liar that tells of whatever
// fate, the contrary for the most part. Each liar has a twin that uses its id.
func liarScene(seed uint64, bad bool) (*scene, map[string]bool) {
	s := newScene(seed)
	random := rand.New(rand.NewPCG(seed, 0x11a5))
	s.w.events = s.w.events[:0]
	liars := make(map[string]bool)
	fates := []Fate{FateCrash, FateSilent, FateBrownout, FateFail, FateRefuse, FateGood, FateDark}
	for i := range s.w.devices {
		d := &s.w.devices[i]
		d.Online, d.LastSeen, d.fate = true, epoch, FateGood
		if bad {
			d.fate = FateCrash
		}
		if i > 0 && random.IntN(10) == 0 {
			liars[d.ID] = true
			d.fate = fates[random.IntN(len(fates))]
			if bad {
				d.fate = FateGood
			}
		}
	}
	// What the policy says of gates and windows is not the matter here.
	s.policy.Gate, s.policy.Window = Gate{}, ""
	s.w.rollout.Policy.Gate, s.w.rollout.Policy.Window = s.policy.Gate, s.policy.Window
	s.w.looked = nil
	s.w.hears = func(d *actor, said protocol.Status) {
		s.gossip(d, liars)
		d.Device, _ = Examine(d.Device, said, s.w.now)
	}
	return s, liars
}

// gossip has the twin of a liar speak. It does so before the liar and after it, as two boards with one login take turns.
func (s *scene) gossip(d *actor, liars map[string]bool) {
	if !liars[d.ID] {
		return
	}
	s.told++
	twin := d.Status
	twin.BootID, twin.Seq, twin.Phase, twin.CommandID, twin.RollbackPending = "twin", s.told, protocol.PhaseIdle, "", false
	d.Device, _ = Examine(d.Device, twin, s.w.now)
	d.Device, _, _ = Apply(d.Device, nil, twin, s.w.now)
}

// liarsMutants switch off what keeps liars out.
var liarsMutants = map[string]func(*Input){
	"that who is suspect is set aside": func(in *Input) {
		in.Doubted = nil
		for i := range in.Open {
			d := *in.Open[i].Device
			d.Doubts = Doubts{}
			in.Open[i].Device = &d
		}
	},
	"that who ends while suspect is set aside": func(in *Input) {
		for i := range in.Open {
			d := *in.Open[i].Device
			d.Doubts = Doubts{}
			in.Open[i].Device = &d
		}
	},
	"that another takes the place": func(in *Input) {
		in.Rollout.Members = in.Rollout.limit()
	},
}

// playLiars plays one fleet to its end and says what is wrong with it.
func playLiars(t *testing.T, seed uint64, bad bool, alter func(*Input)) string {
	s, liars := liarScene(seed, bad)
	w := s.w
	w.plan = func(in Input, now time.Time) Output {
		for n, m := range w.members {
			d := &w.devices[n]
			if w.attempts[n].ID != "" {
				s.gossip(d, liars)
			}
			if m.State != MemberOpen && m.State != MemberSkipped && d.Suspect() != (m.State == MemberSuspect) {
				in.Doubted = append(in.Doubted, Candidate{Member: m, Device: &d.Device})
			}
		}
		members := in.Rollout.Members
		if alter != nil {
			alter(&in)
		}
		out := Plan(in, now)
		out.Rollout.Members = members
		return out
	}
	if err := w.run(t.Context(), epoch.Add(s.policy.Lasts)); err != nil {
		return err.Error()
	}
	r := &w.rollout
	suspects := 0
	for n, m := range w.members {
		d := &w.devices[n]
		switch honest := !liars[d.ID]; {
		case honest && (d.Suspect() || m.State == MemberSuspect):
			return fmt.Sprintf("honest %s is suspected: %+v", d.ID, d.Doubts)
		case honest && !bad && d.SHA256 != w.release.SHA256:
			return fmt.Sprintf("honest %s does not have the release: %s, the rollout is %s, %+v", d.ID, m.State, r.State, r.Halt)
		case !honest && m.Attempts > 0 && m.State != MemberSuspect && r.State == RolloutDone:
			return fmt.Sprintf("liar %s counts as %s", d.ID, m.State)
		}
		if m.State == MemberSuspect {
			suspects++
		}
	}
	switch {
	case suspects != w.figures.Suspect || r.LeftOut != suspects:
		return fmt.Sprintf("%d are set aside, the figures say %d, the rollout has left out %d", suspects, w.figures.Suspect, r.LeftOut)
	case !bad && r.State != RolloutDone:
		return fmt.Sprintf("a good release ended %s: %+v", r.State, r.Halt)
	case bad && r.State != RolloutHalted:
		return fmt.Sprintf("a bad release ended %s: %+v", r.State, w.figures)
	case bad && w.figures.Succeeded > 0:
		return fmt.Sprintf("%d liars speak for a bad release", w.figures.Succeeded)
	case !bad && w.figures.Failures() > 0:
		return fmt.Sprintf("%d liars speak against a good release", w.figures.Failures())
	}
	// Of honest devices a wave touches as many as it may, whoever lies.
	touched := 0
	for n, m := range w.members {
		if m.Attempts > 0 && !liars[w.devices[n].ID] {
			touched++
		}
	}
	if limit := s.wavesLimit(r.Wave); touched > limit {
		return fmt.Sprintf("%d honest devices touched in wave %d, which may touch %d", touched, r.Wave+1, limit)
	}
	return ""
}

// TestLiarsNeitherHaltNorAdvanceARollout: with one liar in ten a good release reaches every honest device, and a bad one is
// halted within its wave.
func TestLiarsNeitherHaltNorAdvanceARollout(t *testing.T) {
	seed := rand.Uint64() >> 8
	n := uint64(liarFleets)
	if *liarSeed != 0 {
		seed, n = *liarSeed, 1
	}
	t.Logf("fleets from seed %d: replay one with -liar-seed=N", seed)
	for i := range n {
		for _, bad := range []bool{false, true} {
			if wrong := playLiars(t, seed+i, bad, nil); wrong != "" {
				t.Fatalf("-liar-seed=%d, bad %t: %s", seed+i, bad, wrong)
			}
		}
	}
}

// TestTheLiarsAreNoticedWhereNothingKeepsThemOut: a check that cannot fail proves nothing.
func TestTheLiarsAreNoticedWhereNothingKeepsThemOut(t *testing.T) {
	for name, alter := range liarsMutants {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(500) {
				for _, bad := range []bool{false, true} {
					if wrong := playLiars(t, seed+1, bad, alter); wrong != "" {
						t.Logf("noticed after %d fleets: %s", seed+1, wrong)
						return
					}
				}
			}
			t.Errorf("500 fleets without it, and nothing was noticed")
		})
	}
}
