package store_test

import (
	"context"
	"errors"
	"reflect"
	"testing"
	"time"

	"bmsota/server/internal/fleet"
)

// TestWhatServersAgreeBy holds every store to fleet.ShareTx.
func TestWhatServersAgreeBy(t *testing.T) {
	for _, kind := range stores {
		t.Run(kind.name, func(t *testing.T) {
			s := kind.open(t)
			update := func(fn func(tx fleet.Tx) error) error { return s.Update(t.Context(), fn) }
			must := func(fn func(tx fleet.Tx) error) {
				t.Helper()
				if err := update(fn); err != nil {
					t.Fatal(err)
				}
			}
			must(func(tx fleet.Tx) error {
				if l, err := tx.Lease(); err != nil || l != (fleet.Lease{}) {
					t.Errorf("lease of an empty store: %+v, %v", l, err)
				}
				last, err := tx.LastChange()
				if err != nil || last != 0 {
					t.Errorf("last change of an empty store: %d, %v", last, err)
				}
				now, err := tx.Clock()
				if err != nil || time.Since(now).Abs() > time.Minute {
					t.Errorf("clock: %v, %v", now, err)
				}
				return errors.Join(tx.PutLease(fleet.Lease{Holder: "a", Token: 7, Until: at(1)}), tx.PutPeer(fleet.Peer{Place: "p2", Name: "b", Seen: at(2)}),
					tx.PutPeer(fleet.Peer{Place: "p1", Seen: at(3)}), tx.PutHome("d2", "p1"), tx.PutHome("d1", "p1"), tx.PutHome("d1", "p2"), tx.PutHome("d3", "p1"))
			})
			// What is undone leaves no change behind, and the numbers go on.
			gone := errors.New("gone")
			if err := update(func(tx fleet.Tx) error {
				return errors.Join(tx.PutChange(fleet.Change{Place: "p1", At: at(1), All: true}), tx.PutHome("d9", "p1"), tx.DeletePeer("p1"), gone)
			}); !errors.Is(err, gone) {
				t.Fatal(err)
			}
			whole := fleet.Change{Place: "p1", At: at(5), Catalog: true, Notices: true, Devices: []string{"d1"}, Attempts: []string{"d2"}, Rollouts: []string{"r"},
				Lifted: []string{"ff"}, Logins: []string{"anna"}, Out: true, Again: []string{"d3"}, Say: []fleet.Saying{{Device: "d1", Payload: []byte("{}")}}}
			for _, c := range []fleet.Change{whole, {Place: "p2", At: at(6), All: true}, {Place: "p2", At: at(7), Catalog: true}} {
				must(func(tx fleet.Tx) error { return tx.PutChange(c) })
			}
			if err := update(func(tx fleet.Tx) error { return tx.PutLease(fleet.Lease{Holder: "b", Token: 6, Until: at(9)}) }); !errors.Is(err, fleet.ErrConflict) {
				t.Errorf("a lease of a smaller number: %v", err)
			}
			must(func(tx fleet.Tx) error {
				return errors.Join(tx.DeletePeer("nobody"), tx.PutHome("nobody", ""), tx.PutHome("d3", ""))
			})
			view := func(fn func(tx fleet.Tx) error) {
				t.Helper()
				if err := s.View(context.Background(), fn); err != nil {
					t.Error(err)
				}
			}
			var first []fleet.Change
			view(func(tx fleet.Tx) error {
				l, err := tx.Lease()
				if err != nil || l != (fleet.Lease{Holder: "a", Token: 7, Until: at(1)}) {
					t.Errorf("lease %+v, %v", l, err)
				}
				peers, err := tx.Peers()
				if err != nil || len(peers) != 2 || peers[0].Place != "p1" || !peers[0].Seen.Equal(at(3)) || peers[1].Name != "b" {
					t.Errorf("servers %+v, %v", peers, err)
				}
				homes, err := tx.HomesOf("p1", 10)
				if err != nil || !reflect.DeepEqual(homes, []string{"d2"}) {
					t.Errorf("at p1: %v, %v", homes, err)
				}
				if place, err := tx.Home("d3"); place != "" || err != nil {
					t.Errorf("home of d3: %q, %v", place, err)
				}
				all, err := tx.Changes(0, 10)
				if err != nil || len(all) != 3 || all[0].Number >= all[1].Number || all[1].Number >= all[2].Number {
					t.Fatalf("changes %+v, %v", all, err)
				}
				got := all[0]
				got.Number = 0
				if !reflect.DeepEqual(got, whole) {
					t.Errorf("change %+v, want %+v", got, whole)
				}
				if last, err := tx.LastChange(); err != nil || last != all[2].Number {
					t.Errorf("last change %d, %v", last, err)
				}
				if some, err := tx.Changes(all[0].Number, 1); err != nil || len(some) != 1 || some[0].Number != all[1].Number {
					t.Errorf("the one after the first: %+v, %v", some, err)
				}
				first = all
				return nil
			})
			must(func(tx fleet.Tx) error { return tx.DeleteChanges(at(7)) })
			view(func(tx fleet.Tx) error {
				left, err := tx.Changes(0, 10)
				if err != nil || len(left) != 1 || left[0].Number != first[2].Number {
					t.Errorf("after the old ones went: %+v, %v", left, err)
				}
				return nil
			})
		})
	}
}
