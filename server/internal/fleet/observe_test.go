package fleet_test

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

// ledger keeps what an observer is told.
type ledger struct {
	mu    sync.Mutex
	folds int
	ended map[string]fleet.Attempt // by attempt; one that is told twice is a fault
	twice []string
}

func (l *ledger) Folded(protocol.Status, protocol.Phase, fleet.Effects) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.folds++
}

func (l *ledger) Ended(a fleet.Attempt) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, told := l.ended[a.ID]; told {
		l.twice = append(l.twice, a.ID)
	}
	l.ended[a.ID] = a
}

// An alert that counts failures must hear of each once, whether the board, its silence or the clock of a rollout ended it.
func TestEveryEndIsToldOnceHoweverItCame(t *testing.T) {
	for _, fate := range []fleet.Fate{fleet.FateGood, fleet.FateCrash, fleet.FateSilent, fleet.FateFail, fleet.FateMute} {
		t.Run(string(fate), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				book := &ledger{ended: make(map[string]fleet.Attempt)}
				y := newYardFor(t, fleet.Config{Observer: book}, 6, func(int) fleet.Fate { return fate })
				defer y.stop()
				if _, err := y.CreateRollout(t.Context(), anna, fleet.RolloutRequest{Version: "1.1.0", Policy: fleet.Policy{Selector: fleet.Selector{All: true},
					Waves: []fleet.Wave{{Percent: 100}}, Silence: 10 * time.Minute}}); err != nil {
					t.Fatal(err)
				}
				for range 300 {
					time.Sleep(time.Minute)
					y.work()
				}
				book.mu.Lock()
				defer book.mu.Unlock()
				ends := 0
				for id := range y.fates {
					attempts, err := y.Attempts(t.Context(), id, 100)
					if err != nil {
						t.Fatal(err)
					}
					for _, a := range attempts {
						if a.State == fleet.AttemptOpen || a.State == fleet.AttemptSuperseded {
							continue
						}
						ends++
						if told, ok := book.ended[a.ID]; !ok || told.State != a.State || told.Reason != a.Reason {
							t.Errorf("%s ended as %s (%s), told %+v", a.ID, a.State, a.Reason, told)
						}
					}
				}
				if ends == 0 || len(book.twice) > 0 || len(book.ended) != ends || book.folds == 0 {
					t.Errorf("%d ends, %d told, twice %v, %d folds", ends, len(book.ended), book.twice, book.folds)
				}
			})
		})
	}
}
