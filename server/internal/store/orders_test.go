package store_test

import (
	"errors"
	"fmt"
	"reflect"
	"testing"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

// ordersComeAndGo: with the point that they have reached, and the devices behind it.
func ordersComeAndGo(t *testing.T, s fleet.Store) {
	order := func(id string, created int64) fleet.Order {
		return fleet.Order{Command: protocol.Command{Action: protocol.ActionUpdate, Force: true, ID: id, Version: "1.0.0+\"ß\"", ExpiresAt: at(0)},
			By: fleet.Identity{Name: "anna", Role: fleet.RoleAdmin}, CreatedAt: at(created), Reached: "d1", Moved: at(7)}
	}
	first, second, bare := order("b", 1), order("a", 2), fleet.Order{Command: protocol.Command{Action: protocol.ActionRollback, ID: "c"}}
	orders := func(want ...fleet.Order) {
		t.Helper()
		view(t, s, func(tx fleet.Tx) error {
			list, err := tx.Orders()
			if err != nil || len(list) != len(want) || len(want) > 0 && !reflect.DeepEqual(list, want) {
				t.Errorf("%+v (%v), want %+v", list, err, want)
			}
			return nil
		})
	}
	orders()
	update(t, s, func(tx fleet.Tx) error {
		return all(tx.PutOrder(second), tx.PutOrder(first), tx.PutOrder(bare), tx.DeleteOrder("nobody"))
	})
	orders(bare, first, second)
	first.Reached, first.Moved = "d2", at(9)
	update(t, s, func(tx fleet.Tx) error { return all(tx.PutOrder(first), tx.DeleteOrder("c")) })
	orders(first, second)
	if err := s.Update(t.Context(), func(tx fleet.Tx) error {
		moved := second
		moved.Reached = "d9"
		return all(tx.DeleteOrder("b"), tx.PutOrder(moved), tx.PutOrder(bare), errGiveUp)
	}); !errors.Is(err, errGiveUp) {
		t.Fatal(err)
	}
	orders(first, second)

	var devices []fleet.Device
	for _, id := range []string{"B", "Z-1", "a", "a-", "a0", "b", "b_"} { // as bytes, in every database
		devices = append(devices, device(id))
	}
	update(t, s, func(tx fleet.Tx) error {
		for i := len(devices) - 1; i >= 0; i-- {
			if err := all(tx.PutDevice(devices[i]), tx.PutAttempt(attempt("x/"+devices[i].ID, devices[i].ID, 1, fleet.AttemptFailed))); err != nil {
				return err
			}
		}
		return nil
	})
	view(t, s, func(tx fleet.Tx) error {
		for _, c := range []struct {
			after       string
			limit       int
			first, last int
		}{{"", 100, 0, 7}, {"", 3, 0, 3}, {"a", 3, 3, 6}, {"a.", 2, 4, 6}, {"b_", 3, 7, 7}, {"", 0, 0, 0}} {
			list, err := tx.DevicesAfter(c.after, c.limit)
			if want := devices[c.first:c.last]; err != nil || len(list) != len(want) || len(want) > 0 && !reflect.DeepEqual(list, want) {
				t.Errorf("%d devices behind %q: %+v (%v)", c.limit, c.after, list, err)
			}
		}
		for n := range 130 { // among many that there are not
			ids := []string{"x/a"}
			for i := range n {
				ids = append(ids, fmt.Sprint("nobody", i))
			}
			list, err := tx.AttemptsIn(ids)
			if want := attempt("x/a", "a", 1, fleet.AttemptFailed); err != nil || len(list) != 1 || list[0] != want {
				t.Errorf("%d ids: %+v (%v)", len(ids), list, err)
			}
		}
		if list, err := tx.AttemptsIn(nil); err != nil || len(list) != 0 {
			t.Errorf("none: %+v (%v)", list, err)
		}
		return nil
	})
}
