package server

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// journal notes in which order things happened.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) note(s string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, s)
}

func (j *journal) stage(name string, takes time.Duration, err error) stage {
	return stage{name, func(ctx context.Context) error {
		<-ctx.Done()
		time.Sleep(takes)
		j.note(name)
		return err
	}}
}

func TestStagesEndInReverseOrderEachAfterTheOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		j := &journal{}
		time.AfterFunc(time.Minute, cancel)
		start := time.Now()
		err := runStages(ctx, 15*time.Second, []stage{j.stage("fleet", 0, nil), j.stage("broker", 2*time.Second, context.Canceled), j.stage("web", 5*time.Second, nil)})
		if err != nil || !slices.Equal(j.lines, []string{"web", "broker", "fleet"}) || time.Since(start) != 67*time.Second {
			t.Errorf("%v after %v: %v", j.lines, time.Since(start), err)
		}
	})
}

func TestStageThatFailsEndsTheOthersAndIsTheError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := &journal{}
		broken := errors.New("port is gone")
		err := runStages(t.Context(), 15*time.Second, []stage{j.stage("fleet", 0, nil),
			{"broker", func(context.Context) error { time.Sleep(time.Hour); j.note("broker"); return broken }}, j.stage("web", 0, nil)})
		if !errors.Is(err, broken) || err.Error() != "broker: port is gone" || !slices.Equal(j.lines, []string{"broker", "web", "fleet"}) {
			t.Errorf("%v: %v", j.lines, err)
		}
	})
}

func TestStageThatHangsIsLeftBehindAndNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		j := &journal{}
		start := time.Now()
		err := runStages(ctx, 15*time.Second, []stage{j.stage("fleet", 0, nil), j.stage("web", time.Hour, nil)})
		if err == nil || !strings.Contains(err.Error(), "web did not end within 15s") || time.Since(start) > 16*time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		time.Sleep(2 * time.Hour)
	})
}
