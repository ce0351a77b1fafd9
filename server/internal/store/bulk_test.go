package store_test

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"
)

// manyAreMany puts lists of the lengths at which statements change, twice, so that the second replaces; and one of them
// that breaks a rule in its middle.
func manyAreMany(t *testing.T, s fleet.Store) {
	next := 0
	update(t, s, func(tx fleet.Tx) error { return tx.PutRollout(fleet.Rollout{ID: "r"}) })
	for _, n := range []int{0, 1, 31, 32, 33, 64, 65, 130} {
		var devices []fleet.Device
		var attempts []fleet.Attempt
		var members []fleet.Member
		var ids []string
		for range n {
			id := fmt.Sprintf("d%04d", next)
			ids, devices = append(ids, id), append(devices, device(id))
			older := attempt("a-"+id, id, int64(next), fleet.AttemptOpen)
			attempts = append(attempts, attempt("b-"+id, id, int64(next+1), fleet.AttemptOpen), older, attempt("c-"+id, id, int64(next), fleet.AttemptFailed))
			members = append(members, fleet.Member{RolloutID: "r", DeviceID: id, Rank: next, State: fleet.MemberPending, UpdatedAt: at(1)})
			next++
		}
		for _, version := range []string{"1.0.0", "2.0.0"} {
			counts := map[fleet.MemberState]int{fleet.MemberOpen: next}
			if version == "1.0.0" {
				counts = map[fleet.MemberState]int{fleet.MemberOpen: next - n, fleet.MemberPending: n}
			}
			maps.DeleteFunc(counts, func(_ fleet.MemberState, members int) bool { return members == 0 })
			for i := range devices {
				devices[i].Version, members[i].Message = version, version
				if version == "2.0.0" {
					members[i].State = fleet.MemberOpen
				}
			}
			for i := range attempts {
				attempts[i].Message = version
			}
			update(t, s, func(tx fleet.Tx) error {
				return all(tx.PutDevices(devices), tx.PutAttempts(attempts), tx.PutMembers(members))
			})
			reverse := slices.Clone(ids)
			slices.Reverse(reverse)
			for _, do := range []func(*testing.T, fleet.Store, func(fleet.Tx) error){view, update} {
				do(t, s, func(tx fleet.Tx) error {
					same(t, counts)(tx.MemberCounts("r"))
					found, err := tx.DevicesIn(append(reverse, "nobody"))
					slices.SortFunc(found, func(a, b fleet.Device) int { return strings.Compare(a.ID, b.ID) })
					if err != nil || len(found) != n || n > 0 && !reflect.DeepEqual(found, devices) {
						t.Errorf("%d of %d devices are found, or are others (%v)", len(found), n, err)
					}
					open, err := tx.OpenAttemptsIn(reverse)
					if err != nil || len(open) != 2*n {
						t.Errorf("%d open attempts of %d devices (%v), want two of each", len(open), n, err)
					}
					of := make(map[string][]fleet.Attempt)
					for _, a := range open {
						of[a.DeviceID] = append(of[a.DeviceID], a)
					}
					for i, id := range ids {
						m, err := tx.Member("r", id)
						if want := []fleet.Attempt{attempts[3*i+1], attempts[3*i]}; err != nil || m != members[i] || !reflect.DeepEqual(of[id], want) {
							t.Errorf("%s: member %+v (%v), attempts %+v, want %+v", id, m, err, of[id], want)
						}
					}
					return nil
				})
			}
		}
	}
	reportsArePut(t, s)
	bad := make([]fleet.Attempt, 400)
	for i := range bad {
		bad[i] = attempt(fmt.Sprint("x", i), "d0000", 9, fleet.AttemptOpen)
	}
	replaces := slices.Clone(bad)
	replaces[0] = attempt("b-d0001", "d0001", 9, fleet.AttemptOpen)
	for _, list := range [][]fleet.Attempt{bad, replaces} {
		for _, at := range []int{20, 390} {
			list = slices.Clone(list)
			list[at].DeviceID = "nobody"
			if err := s.Update(t.Context(), func(tx fleet.Tx) error { return tx.PutAttempts(list) }); !errors.Is(err, fleet.ErrConflict) {
				t.Errorf("an attempt without a device, the %dth of 400 from %s on: %v, want ErrConflict", at, list[0].ID, err)
			}
		}
	}
	view(t, s, func(tx fleet.Tx) error {
		if open, err := tx.OpenAttemptsIn([]string{"d0000"}); err != nil || len(open) != 2 {
			t.Errorf("%d attempts (%v) after lists that were refused, want the two of before", len(open), err)
		}
		return nil
	})
}

// reportsArePut puts reports of some of the devices that are there, and looks at all of them.
func reportsArePut(t *testing.T, s fleet.Store) {
	var want []fleet.Device
	view(t, s, func(tx fleet.Tx) (err error) {
		want, err = tx.Devices()
		return err
	})
	for _, n := range []int{0, 1, 2, 40} {
		reports := make([]fleet.Device, n)
		for i := range reports {
			d := &want[3*i]
			d.Online, d.LastSeen, d.Seq, d.Status.Seq, d.Status.Message = !d.Online, at(int64(n)), d.Seq+1<<63, d.Seq+1<<63, fmt.Sprint("number ", n)
			reports[i] = *d
		}
		update(t, s, func(tx fleet.Tx) error { return tx.PutReports(reports) })
		view(t, s, func(tx fleet.Tx) error {
			got, err := tx.Devices()
			if err != nil || len(got) != len(want) {
				t.Errorf("%d devices (%v), want %d", len(got), err, len(want))
				return err
			}
			for i := range want {
				if !reflect.DeepEqual(got[i], want[i]) {
					t.Errorf("after %d reports a device is %+v, want %+v", n, got[i], want[i])
				}
			}
			return nil
		})
	}
}

func TestAReportOfADeviceThatIsNotThereIsNoRow(t *testing.T) {
	db, err := store.OpenSQLite(t.Context(), filepath.Join(t.TempDir(), "bmsota.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for name, s := range map[string]fleet.Store{"sqlite": db, "memory": store.NewMemory()} {
		err := s.Update(t.Context(), func(tx fleet.Tx) error { return tx.PutReports([]fleet.Device{device("nobody")}) })
		if !errors.Is(err, fleet.ErrConflict) {
			t.Errorf("%s: %v, want ErrConflict", name, err)
		}
	}
}
