package bench

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
)

// TestAFigureIsTheMedianOfRatiosOfTheSameRound: a load that comes and goes hits both sides of a round, so the ratio is taken
// within rounds, and one bad round is no figure. The first turns fill caches and count for nothing.
func TestAFigureIsTheMedianOfRatiosOfTheSameRound(t *testing.T) {
	turns := func(v ...float64) Turn {
		return func(context.Context) (float64, error) {
			next := v[0]
			v = v[1:]
			return next, nil
		}
	}
	b := testBench(3)
	err := b.Beside(t.Context(), Figure{Name: "f", Peer: "peer", Goal: 0.8}, turns(900, 2, 40, 3), turns(1, 4, 50, 10))
	if err != nil {
		t.Fatal(err)
	}
	f := b.report.Figures[0]
	if want := []float64{0.5, 0.8, 0.3}; !slices.Equal(f.Each, want) || f.Ratio != 0.5 || f.Ours != 3 || f.Theirs != 10 || f.Verdict != Met {
		t.Errorf("%+v, want the ratios %v and their median", f, want)
	}
}

func TestVerdicts(t *testing.T) {
	for _, c := range []struct {
		f    Figure
		want Verdict
	}{
		{Figure{Ratio: 0.75, Goal: 0.75}, Met},
		{Figure{Ratio: 0.76, Goal: 0.75}, Missed},
		{Figure{Ours: 1, Goal: 0.75}, Alone},
		{Figure{Ours: 1}, NoGoal},
		{Figure{Ours: 12, Own: true, Goal: 12}, Met},
		{Figure{Ours: 13, Ratio: 0.1, Own: true, Goal: 12}, Missed},
		{Figure{Ours: 20_000, Own: true, AtLeast: true, Goal: 20_000}, Met},
		{Figure{Ours: 21_000, Own: true, AtLeast: true, Goal: 20_000}, Met},
		{Figure{Ours: 19_000, Own: true, AtLeast: true, Goal: 20_000}, Missed},
		{Figure{Own: true, AtLeast: true, Goal: 20_000}, Missed},
	} {
		b := testBench(1)
		b.Add(c.f)
		if got := b.report.Figures[0].Verdict; got != c.want {
			t.Errorf("%+v: %s, want %s", c.f, got, c.want)
		}
	}
}

func TestAFigureWithoutItsPeerSaysSo(t *testing.T) {
	b := testBench(1)
	one := func(context.Context) (float64, error) { return 1, nil }
	if err := b.Beside(t.Context(), Figure{Name: "f", Peer: "nginx", Goal: 0.5}, one, nil); err != nil {
		t.Fatal(err)
	}
	if f := b.report.Figures[0]; f.Verdict != Alone || f.Peer != "" || f.Note == "" {
		t.Errorf("%+v", f)
	}
	zero := func(context.Context) (float64, error) { return 0, nil }
	if err := b.Beside(t.Context(), Figure{Name: "f", Peer: "nginx"}, one, zero); err == nil {
		t.Error("a peer that took no time gives a ratio")
	}
	broken := errors.New("broken")
	if err := b.Beside(t.Context(), Figure{Name: "f"}, func(context.Context) (float64, error) { return 0, broken }, nil); !errors.Is(err, broken) {
		t.Error(err)
	}
}

func TestProcessorTimeIsReadWhateverAProgramIsCalled(t *testing.T) {
	fields, err := statFields([]byte("7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 11 12 13 14 20 0 1 0\n"))
	if err != nil || !slices.Equal(fields[11:15], []string{"11", "12", "13", "14"}) {
		t.Error(fields, err)
	}
	for _, bad := range []string{"", "7 (a", "7 (a) S 1"} {
		if _, err := statFields([]byte(bad)); err == nil {
			t.Errorf("%q has no error", bad)
		}
	}
}

func TestThe99thPercentileLeavesOneOfAHundredOut(t *testing.T) {
	var v []float64
	for i := range 200 {
		v = append(v, float64(200-i))
	}
	if got := high(v); got != 198 {
		t.Errorf("%v, want 198", got)
	}
	if got := high([]float64{7}); got != 7 || high(nil) != 0 {
		t.Errorf("%v of one", got)
	}
}

func testBench(rounds int) *Bench {
	return &Bench{Options: Options{Rounds: rounds, Say: func(string, ...any) {}}, report: &Report{}, suite: "test"}
}

// TestTooFewOpenFilesAreSaidBeforeAnythingStarts, with what to do about it.
func TestTooFewOpenFilesAreSaidBeforeAnythingStarts(t *testing.T) {
	if err := enoughFiles(1); err != nil {
		t.Error(err)
	}
	if err := enoughFiles(int(files())); err == nil || !strings.Contains(err.Error(), "ulimit -n") {
		t.Errorf("as many connections as files: %v", err)
	}
}
