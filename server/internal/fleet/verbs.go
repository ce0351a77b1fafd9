package fleet

import (
	"fmt"
	"time"

	"bmsota/protocol"
)

// Verb is what an operator or a rule does to a rollout.
type Verb string

// The verbs.
const (
	VerbPause  Verb = "pause"
	VerbHalt   Verb = "halt"
	VerbAbort  Verb = "abort"
	VerbResume Verb = "resume"
)

// Meaning is what a verb does to a device, by where the device is.
type Meaning string

// The meanings.
const (
	MeansNotStarted Meaning = "is not started"
	MeansStarted    Meaning = "is started in its turn"
	MeansTakenBack  Meaning = "is taken back and waits"
	MeansRunsOn     Meaning = "runs on to its end, which counts"
	MeansNothing    Meaning = "keeps its result"
)

// Stages are where a device can be in a rollout: not started, sent (its command has not been taken up), the phases of
// the protocol while its attempt runs, and ended.
func Stages() []string {
	stages := []string{"not started", "sent"}
	for _, p := range protocol.Phases() {
		if p.Updating() {
			stages = append(stages, string(p))
		}
	}
	return append(stages, "ended")
}

// Means is the one table of what a verb does at a stage: Plan stops by it, docs/rollouts.md prints it. What has begun to
// write flash is never broken off: no command of the protocol could, and a device that is left alone ends on an image
// that works. A device that is only looking has begun too, for what it was offered it may take the next moment.
func Means(v Verb, stage string) Meaning {
	switch stage {
	case "not started":
		if v == VerbResume {
			return MeansStarted
		}
		return MeansNotStarted
	case "sent", string(protocol.PhaseWaiting):
		if v == VerbResume {
			return MeansRunsOn
		}
		return MeansTakenBack
	case "ended":
		return MeansNothing
	}
	return MeansRunsOn
}

// takenBack says whether pause, halt and abort take the attempt back: nothing of it has begun on the device.
func takenBack(g Progress) bool {
	stage := string(g.Attempt.Phase)
	switch {
	case stage == "":
		stage = "sent"
	case g.Device.Status.Phase == protocol.PhaseWaiting && rank(g.Attempt.Phase) <= rank(protocol.PhaseWaiting):
		stage = string(protocol.PhaseWaiting)
	case g.Attempt.Phase == protocol.PhaseWaiting:
		stage = string(protocol.PhaseChecking) // it has left its gate
	}
	return Means(VerbHalt, stage) == MeansTakenBack
}

// Can says whether v can be done to a rollout in this state. Halting is for rules alone.
func (s RolloutState) Can(v Verb) bool {
	switch v {
	case VerbPause:
		return s == RolloutRunning
	case VerbResume:
		return s == RolloutPaused || s == RolloutHalted
	case VerbAbort:
		return !s.Ended()
	}
	return false
}

// verb applies v to a rollout, whose figures are f. It refuses what makes no sense in the state that the rollout is in.
func (r *Rollout) verb(v Verb, f Figures, by string, now time.Time) error {
	if !r.State.Can(v) {
		return fmt.Errorf("%w: the rollout is %s, it cannot be %s", ErrConflict, r.State, done[v])
	}
	switch v {
	case VerbPause:
		r.State = RolloutPaused
		r.say(now, by, "paused in %s", r.waveText())
	case VerbAbort:
		r.State, r.EndedAt = RolloutAborted, now
		r.say(now, by, "aborted in %s", r.waveText())
	case VerbResume:
		if r.State == RolloutHalted {
			// Whoever resumes has seen the figures: from here on only what comes on top of them counts.
			r.Forgiven = f
			r.say(now, by, "resumed after a halt: %s of before are not counted", plural(f.Failures(), "failure"))
		} else {
			r.say(now, by, "resumed in %s", r.waveText())
		}
		r.State, r.WaveSince = RolloutRunning, now
	}
	r.SoakSince = time.Time{}
	return nil
}

// done is a verb as what was done.
var done = map[Verb]string{VerbPause: "paused", VerbResume: "resumed", VerbAbort: "aborted"}
