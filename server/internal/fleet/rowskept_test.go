package fleet_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"
)

// wrongKept compares what is kept of the devices with their rows.
func (w *askingWalk) wrongKept() (kept int, what string) {
	for _, id := range w.ids {
		d, open, ok := fleet.Kept(w.Fleet, id)
		if !ok {
			continue
		}
		kept++
		err := w.store.Store.View(w.t.Context(), func(tx fleet.Tx) error {
			row, err := tx.Device(id)
			if err != nil {
				return err
			}
			rows, err := tx.OpenAttemptsOf(id)
			if !reflect.DeepEqual(d, row) || len(open)+len(rows) > 0 && !reflect.DeepEqual(open, rows) {
				what = fmt.Sprintf("%s: kept are %+v, %+v, the rows are %+v, %+v", id, d, open, row, rows)
			}
			return err
		})
		if err != nil {
			w.t.Error(err)
		}
	}
	return kept, what
}

// report folds statuses in n steps while others change the rows whenever they can: before the committer's transaction and
// between two tries of it, and when it is committed and the committer does not know yet. It returns how often rows were kept, and what
// was wrong with them first.
func (w *askingWalk) report(n int) (kept int, what string) {
	others := func() {
		switch w.r.IntN(6) {
		case 0, 1:
			w.change()
		case 2: // the broker's word, which goes the way of statuses and by itself
			if err := pick(w.r, w.Connected, w.Disconnected)(w.t.Context(), w.id()); err != nil && !errors.Is(err, fleet.ErrDenied) {
				w.t.Error(err)
			}
		}
	}
	w.store.uncommitted, w.store.committed = others, others
	inDoubt := errors.New("the answer was lost")
	for step := range n {
		others()
		s := status(pick(w.r, "b1", "b2", "b3"), uint64(step+1), pick(w.r, protocol.PhaseIdle, protocol.PhaseDownloading, protocol.PhaseConfirmed, protocol.PhaseOffline))
		s.CommandID = pick(w.r, "", "d1 0", "d1 1", "d2 0")
		if w.r.IntN(6) == 0 {
			w.store.answer = inDoubt
		}
		err := fleet.FoldNow(w.t.Context(), w.Fleet, w.id(), s)
		w.store.answer = nil
		if err != nil && !errors.Is(err, fleet.ErrDenied) && !errors.Is(err, inDoubt) {
			w.t.Fatal(err)
		}
		n, what := w.wrongKept()
		if kept += n; what != "" {
			return kept, what
		}
	}
	return kept, ""
}

// What the committer takes for the rows of a device is what they are: whatever others put before, between and after its
// transactions, and whatever became of these.
func TestWhatIsKeptOfADeviceIsItsRows(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	for n := range uint64(60) {
		w := newAskingWalk(t, rand.New(rand.NewPCG(seed, n)))
		kept, what := w.report(60)
		if what != "" {
			t.Fatalf("seed %d, walk %d: %s", seed, n, what)
		}
		if kept == 0 {
			t.Fatalf("seed %d, walk %d: nothing is kept", seed, n)
		}
	}
	for n := range uint64(60) {
		w := newAskingWalk(t, rand.New(rand.NewPCG(seed, n)))
		fleet.KeepWhateverChanges(w.Fleet)
		if _, what := w.report(60); what != "" {
			return
		}
	}
	t.Errorf("seed %d: a fleet that strikes nobody out is not found", seed)
}

func TestNoMoreRowsAreKeptThanThereIsRoomFor(t *testing.T) {
	f := newFleet(t, fleet.Config{Store: store.NewMemory()})
	_, limit := fleet.KeptNow(f)
	for i := range limit + 10 {
		if err := fleet.FoldNow(t.Context(), f, fmt.Sprint("d", i), status("b", 1, protocol.PhaseIdle)); err != nil {
			t.Fatal(err)
		}
	}
	if n, _ := fleet.KeptNow(f); n != limit {
		t.Errorf("the rows of %d are kept, the bound is %d", n, limit)
	}
}

// Where others write the rows, too, none are kept.
func TestNoRowsAreKeptThatOthersWrite(t *testing.T) {
	f := newFleet(t, fleet.Config{Store: store.NewMemory(), Share: &fleet.Share{Place: "here"}})
	if err := fleet.FoldNow(t.Context(), f, "d1", status("b", 1, protocol.PhaseIdle)); err != nil {
		t.Fatal(err)
	}
	if n, _ := fleet.KeptNow(f); n != 0 {
		t.Errorf("the rows of %d are kept", n)
	}
}

// Whatever a row has beyond a report is not left out, and a field that is new is not forgotten.
func TestWhatIsMoreThanAReportIsPutWhole(t *testing.T) {
	var was fleet.Device
	was.Status = status("b", 1, protocol.PhaseIdle)
	other := func(v reflect.Value) {
		switch v.Interface().(type) {
		case time.Time:
			v.Set(reflect.ValueOf(time.Unix(1, 0)))
		case fleet.Labels:
			v.Set(reflect.ValueOf(fleet.Labels{"a": "b"}))
		case []string:
			v.Set(reflect.ValueOf([]string{"a"}))
		case fleet.Doubts:
			v.Set(reflect.ValueOf(fleet.Doubts{Seqs: map[string]uint64{"a": 1}}))
		case *protocol.Battery:
			v.Set(reflect.ValueOf(&protocol.Battery{SOCPct: 1}))
		default:
			switch v.Kind() {
			case reflect.Bool:
				v.SetBool(!v.Bool())
			case reflect.String:
				v.SetString(v.String() + "x")
			case reflect.Int, reflect.Int64:
				v.SetInt(v.Int() + 1)
			case reflect.Uint32, reflect.Uint64:
				v.SetUint(v.Uint() + 1)
			default:
				t.Fatalf("no other value of a %s", v.Type())
			}
		}
	}
	row, copies := []string{"Online", "LastSeen", "Seq"}, []string{"Phase", "Project", "Chip", "Reason", "RollbackProtected", "Signed"}
	for i := range reflect.TypeFor[fleet.Device]().NumField() {
		field := reflect.TypeFor[fleet.Device]().Field(i).Name
		if field == "Status" {
			continue
		}
		is := was
		other(reflect.ValueOf(&is).Elem().Field(i))
		if got, want := fleet.Reported(was, is), slices.Contains(row, field); got != want {
			t.Errorf("another %s is a report: %t, want %t", field, got, want)
		}
	}
	for i := range reflect.TypeFor[protocol.Status]().NumField() {
		field := reflect.TypeFor[protocol.Status]().Field(i).Name
		is := was
		other(reflect.ValueOf(&is.Status).Elem().Field(i))
		if got, want := fleet.Reported(was, is), !slices.Contains(copies, field); got != want {
			t.Errorf("another %s in the status is a report: %t, want %t", field, got, want)
		}
	}
}
