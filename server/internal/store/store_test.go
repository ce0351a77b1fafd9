package store_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"
)

// stores are the implementations that the suite holds to the contract. open gives an empty one.
var stores = []struct {
	name string
	open func(t *testing.T) fleet.Store
}{
	{"memory", func(*testing.T) fleet.Store { return store.NewMemory() }},
	{"sqlite", func(t *testing.T) fleet.Store { return openDB(t, filepath.Join(t.TempDir(), "bmsota.db")) }},
}

func openBench(b *testing.B) *store.DB { return openDB(b, filepath.Join(b.TempDir(), "bmsota.db")) }

func openDB(t testing.TB, path string) *store.DB {
	t.Helper()
	db, err := store.OpenSQLite(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

var errGiveUp = errors.New("give up")

// at is a time as rows keep it.
func at(ms int64) time.Time { return time.UnixMilli(1_750_000_000_000 + ms).UTC() }

func release(n int) fleet.Release {
	return fleet.Release{
		SHA256: fmt.Sprintf("%064x", n), Project: "bms", Chip: "esp32c3", Version: fmt.Sprintf("1.0.%d", n), MinVersion: "1.0.0",
		Description: "what is new:\n\"ß\"", ForceUpdate: true, Size: 1 << 20, SecureVersion: math.MaxUint32, BuildDate: at(1),
		Manifest: "a.b.c", PublishedAt: at(int64(n)), PublishedBy: "anna",
	}
}

func device(id string) fleet.Device {
	return fleet.Device{
		ID: id, TokenSHA256: "ab", CertificateSHA256: "cd", CertificateEnds: at(4), EnrolledAt: at(1), Channel: "beta", Online: true, FirstSeen: at(2), LastSeen: at(3),
		PhaseSince: at(4), Version: "1.0.0", SHA256: strings.Repeat("cd", 32), PreviousVersion: "0.9.0", Boot: "b2",
		Seq: math.MaxUint64, OldBoots: []string{"b0\n", "b1"}, Labels: fleet.Labels{"site": "north", "bank": "1"},
		Doubts: fleet.Doubts{Seqs: map[string]uint64{"b1": math.MaxUint64}, List: []fleet.Suspicion{
			{Kind: fleet.SuspectBoots, Since: at(1), Last: at(2), Times: 3, Evidence: "boot b1\n", Mark: "b2/7"}}},
		Status: protocol.Status{
			Phase: protocol.PhaseDownloading, Status: protocol.CodeDownloading, Message: "42 %", Seq: math.MaxUint64, BootID: "b2",
			CurrentVersion: "1.0.0", RollbackProtected: true, Battery: &protocol.Battery{SOCPct: 81.5, Charging: true, TempMinC: new(-3.5)},
		},
	}
}

func attempt(id, device string, created int64, state fleet.AttemptState) fleet.Attempt {
	return fleet.Attempt{
		ID: id, CommandID: "c-" + id, DeviceID: device, RolloutID: "r", Action: protocol.ActionUpdate, Force: true, Version: "1.0.1",
		SHA256: "aa", CreatedAt: at(created), CreatedBy: "anna", ExpiresAt: at(1000), State: state,
		Phase: protocol.PhaseChecking, Reason: protocol.ReasonBusy, Message: "m", UpdatedAt: at(6), EndedAt: at(7),
	}
}

func update(t *testing.T, s fleet.Store, fn func(tx fleet.Tx) error) {
	t.Helper()
	if err := s.Update(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

func view(t *testing.T, s fleet.Store, fn func(tx fleet.Tx) error) {
	t.Helper()
	if err := s.View(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

func all(steps ...error) error { return errors.Join(steps...) }

func TestStoresKeepTheContract(t *testing.T) {
	for _, impl := range stores {
		t.Run(impl.name, func(t *testing.T) {
			for _, c := range contract {
				t.Run(c.name, func(t *testing.T) { c.test(t, impl.open(t)) })
			}
		})
	}
}

var contract = []struct {
	name string
	test func(t *testing.T, s fleet.Store)
}{
	{"rows come back as they were put", rowsComeBack},
	{"a second put replaces the whole row", putReplaces},
	{"what is not there is ErrNotFound", notThere},
	{"many rows at once are what one by one would be", manyAreMany},
	{"listings have their order", listingsAreOrdered},
	{"a failed update leaves nothing", failedUpdateLeavesNothing},
	{"a panic in an update leaves nothing", panicLeavesNothing},
	{"a swallowed conflict still voids the update", swallowedConflictVoids},
	{"rules of the tables are ErrConflict", rulesAreConflicts},
	{"an update reads its own writes", readsOwnWrites},
	{"a view changes nothing", viewChangesNothing},
	{"a view is one consistent state", viewIsConsistent},
	{"updates are serialised", updatesAreSerialised},
	{"a caller's copy is not the row", copiesAreCopies},
	{"an ended context ends the update", endedContext},
	{"rollouts come back as they were put", rolloutsComeBack},
	{"a rollout is written over only by who has seen it", rolloutsAreSwapped},
	{"members are found by rank and state", membersAreFound},
	{"candidates are those that may be started", candidatesAreFound},
	{"members that are away are found", membersThatAreAwayAreFound},
	{"members of doubted devices are found", membersOfDoubtedDevicesAreFound},
	{"counts follow the members", countsFollowTheMembers},
	{"a failed update leaves nothing of a rollout", failedRolloutLeavesNothing},
	{"the audit log takes only what follows", auditFollows},
	{"rows of the audit log are found", auditIsFound},
	{"attempts of a device have pages", attemptsHavePages},
	{"attempts that are old and not needed are forgotten", attemptsAreForgotten},
	{"the audit log is pruned as far as it says", auditIsPruned},
	{"webhooks and what waits for them come back and go", webhooksComeAndGo},
	{"orders come back with the point they have reached, and go", ordersComeAndGo},
}

func rowsComeBack(t *testing.T, s fleet.Store) {
	d, bare := device("d1"), fleet.Device{ID: "bare"}
	r, a, k := release(1), attempt("a1", "d1", 5, fleet.AttemptOpen), fleet.ProjectKey{Project: "bms", Kind: fleet.KeyRelease, Sequence: 4294967295, FromVersion: "1.0.0", Threshold: 2, Retired: true, Key: "pem", AddedAt: at(1), AddedBy: "anna"}
	c := fleet.Channel{Project: "bms", Chip: "esp32c3", Name: "stable", SHA256: r.SHA256, SetAt: at(8), SetBy: "anna"}
	o := fleet.Operator{Name: "anna", TokenSHA256: "ff", CreatedAt: at(9), Revoked: true}
	withdrawn := fleet.Release{SHA256: "x", Withdrawn: true}
	update(t, s, func(tx fleet.Tx) error {
		return all(tx.PutDevice(d), tx.PutDevice(bare), tx.PutRelease(r), tx.PutRelease(withdrawn), tx.PutAttempt(a), tx.PutChannel(c), tx.PutKey(k), tx.PutOperator(o))
	})
	view(t, s, func(tx fleet.Tx) error {
		same(t, d)(tx.Device("d1"))
		same(t, bare)(tx.Device("bare"))
		same(t, r)(tx.Release(r.SHA256))
		same(t, withdrawn)(tx.Release("x"))
		same(t, r)(tx.ReleaseByVersion("bms", "esp32c3", "1.0.1"))
		same(t, a)(tx.Attempt("a1"))
		same(t, c)(tx.Channel("bms", "esp32c3", "stable"))
		same(t, []fleet.ProjectKey{k})(tx.Keys("bms"))
		same(t, o)(tx.Operator("anna"))
		same(t, o)(tx.OperatorByToken("ff"))
		return nil
	})
	// Finer and local times come back as rows keep them.
	fine := time.Date(2026, 3, 4, 5, 6, 7, 8_999_999, time.FixedZone("", 3600))
	update(t, s, func(tx fleet.Tx) error { return tx.PutDevice(fleet.Device{ID: "bare", LastSeen: fine}) })
	view(t, s, func(tx fleet.Tx) error {
		same(t, fleet.Device{ID: "bare", LastSeen: fine.UTC().Truncate(time.Millisecond)})(tx.Device("bare"))
		return nil
	})
}

// same compares what a Tx returned.
func same[V any](t *testing.T, want V) func(V, error) {
	t.Helper()
	return func(got V, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("want %+v, got error %v", want, err)
		} else if !reflect.DeepEqual(got, want) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	}
}

func putReplaces(t *testing.T, s fleet.Store) {
	a := attempt("a1", "d1", 5, fleet.AttemptOpen)
	update(t, s, func(tx fleet.Tx) error {
		return all(tx.PutDevice(device("d1")), tx.PutRelease(release(1)), tx.PutAttempt(a))
	})
	ended := fleet.Attempt{ID: "a1", DeviceID: "d1", State: fleet.AttemptFailed}
	bare := fleet.Device{ID: "d1"}
	r := fleet.Release{SHA256: release(1).SHA256, Withdrawn: true}
	update(t, s, func(tx fleet.Tx) error { return all(tx.PutDevice(bare), tx.PutRelease(r), tx.PutAttempt(ended)) })
	view(t, s, func(tx fleet.Tx) error {
		same(t, bare)(tx.Device("d1"))
		same(t, r)(tx.Release(r.SHA256))
		same(t, ended)(tx.Attempt("a1"))
		same(t, []fleet.Attempt(nil))(tx.OpenAttempts())
		same(t, []fleet.Attempt(nil))(tx.OpenAttemptsOf("d1"))
		return nil
	})
	update(t, s, func(tx fleet.Tx) error { return tx.PutAttempt(a) })
	view(t, s, func(tx fleet.Tx) error {
		same(t, []fleet.Attempt{a})(tx.OpenAttemptsOf("d1"))
		return nil
	})
}

func notThere(t *testing.T, s fleet.Store) {
	for _, in := range []func(context.Context, func(fleet.Tx) error) error{s.View, s.Update} {
		err := in(t.Context(), func(tx fleet.Tx) error {
			_, e1 := tx.Release("x")
			_, e2 := tx.ReleaseByVersion("", "", "x")
			_, e3 := tx.Channel("", "", "x")
			_, e4 := tx.Device("x")
			_, e5 := tx.Attempt("x")
			_, e6 := tx.Operator("x")
			_, e7 := tx.OperatorByToken("x")
			for i, err := range []error{e1, e2, e3, e4, e5, e6, e7} {
				if !errors.Is(err, fleet.ErrNotFound) {
					t.Errorf("get %d: %v, want ErrNotFound", i+1, err)
				}
			}
			releases, e1 := tx.Releases()
			channels, e2 := tx.Channels()
			devices, e3 := tx.Devices()
			attempts, e4 := tx.AttemptsOf("x", 5)
			keys, e5 := tx.Keys("x")
			if n := len(releases) + len(channels) + len(devices) + len(attempts) + len(keys); n != 0 {
				t.Errorf("%d rows in an empty store", n)
			}
			return all(e1, e2, e3, e4, e5)
		})
		if err != nil {
			t.Error(err)
		}
	}
}

func listingsAreOrdered(t *testing.T, s fleet.Store) {
	update(t, s, func(tx fleet.Tx) error {
		var errs []error
		for _, id := range []string{"d2", "d10", "d1"} {
			errs = append(errs, tx.PutDevice(device(id)))
		}
		for _, n := range []int{2, 3, 1} {
			errs = append(errs, tx.PutRelease(release(n)))
		}
		tied := release(4)
		tied.PublishedAt = at(2)
		errs = append(errs, tx.PutRelease(tied))
		for _, c := range []fleet.Channel{{Project: "b", Name: "x"}, {Project: "a", Chip: "c", Name: "y"}, {Project: "a", Chip: "c", Name: "x"}, {Project: "a", Chip: "b", Name: "z"}} {
			c.SHA256 = tied.SHA256
			errs = append(errs, tx.PutChannel(c))
		}
		for _, a := range []fleet.Attempt{
			attempt("a3", "d1", 3, fleet.AttemptOpen), attempt("a1", "d1", 1, fleet.AttemptFailed), attempt("a2b", "d1", 2, fleet.AttemptOpen),
			attempt("a2a", "d1", 2, fleet.AttemptOpen), attempt("a0", "d2", 0, fleet.AttemptOpen),
		} {
			errs = append(errs, tx.PutAttempt(a))
		}
		for i, pem := range []string{"k3", "k1", "k2"} {
			errs = append(errs, tx.PutKey(fleet.ProjectKey{Project: "p", Key: pem, AddedAt: at(int64(i / 2))}))
		}
		return all(errs...)
	})
	view(t, s, func(tx fleet.Tx) error {
		devices, e1 := tx.Devices()
		releases, e2 := tx.Releases()
		channels, e3 := tx.Channels()
		of, e4 := tx.AttemptsOf("d1", 3)
		open, e5 := tx.OpenAttempts()
		openOf, e6 := tx.OpenAttemptsOf("d1")
		keys, e7 := tx.Keys("p")
		for _, c := range []struct{ got, want string }{
			{names(devices, func(d fleet.Device) string { return d.ID }), "d1 d10 d2"},
			{names(releases, func(r fleet.Release) string { return r.Version }), "1.0.3 1.0.2 1.0.4 1.0.1"},
			{names(channels, func(c fleet.Channel) string { return c.Project + c.Chip + c.Name }), "abz acx acy bx"},
			{names(of, func(a fleet.Attempt) string { return a.ID }), "a3 a2b a2a"},
			{names(open, func(a fleet.Attempt) string { return a.ID }), "a0 a2a a2b a3"},
			{names(openOf, func(a fleet.Attempt) string { return a.ID }), "a2a a2b a3"},
			{names(keys, func(k fleet.ProjectKey) string { return k.Key }), "k1 k3 k2"},
		} {
			if c.got != c.want {
				t.Errorf("got %q, want %q", c.got, c.want)
			}
		}
		return all(e1, e2, e3, e4, e5, e6, e7)
	})
}

func names[V any](list []V, name func(V) string) string {
	words := make([]string, len(list))
	for i, v := range list {
		words[i] = name(v)
	}
	return strings.Join(words, " ")
}

// seed puts one row in every table; changed changes them all and adds one to each.
func seed(tx fleet.Tx) error {
	return all(tx.PutDevice(device("d1")), tx.PutRelease(release(1)), tx.PutAttempt(attempt("a1", "d1", 1, fleet.AttemptOpen)),
		tx.PutChannel(fleet.Channel{Name: "stable", SHA256: release(1).SHA256}), tx.PutKey(fleet.ProjectKey{Project: "bms", Key: "k1"}),
		tx.PutOperator(fleet.Operator{Name: "anna", TokenSHA256: "t1"}))
}

func changed(tx fleet.Tx) error {
	return all(tx.PutDevice(fleet.Device{ID: "d1"}), tx.PutDevice(device("d2")), tx.PutRelease(fleet.Release{SHA256: release(1).SHA256}), tx.PutRelease(release(2)),
		tx.PutAttempt(fleet.Attempt{ID: "a1", DeviceID: "d1", State: fleet.AttemptFailed}), tx.PutAttempt(attempt("a2", "d1", 2, fleet.AttemptOpen)),
		tx.PutChannel(fleet.Channel{Name: "stable", SHA256: release(2).SHA256}), tx.PutChannel(fleet.Channel{Name: "beta", SHA256: release(2).SHA256}),
		tx.PutKey(fleet.ProjectKey{Project: "bms", Key: "k1", AddedBy: "eve"}), tx.PutKey(fleet.ProjectKey{Project: "bms", Key: "k2"}),
		tx.PutOperator(fleet.Operator{Name: "anna", TokenSHA256: "t2"}), tx.PutOperator(fleet.Operator{Name: "eve", TokenSHA256: "t3"}))
}

// dump is everything a store says.
func dump(t *testing.T, s fleet.Store) string {
	t.Helper()
	var b strings.Builder
	view(t, s, func(tx fleet.Tx) error {
		devices, e1 := tx.Devices()
		for _, d := range devices {
			d.Status.Battery = nil // a pointer, and compared elsewhere
			fmt.Fprintf(&b, "%+v\n", d)
			of, err := tx.AttemptsOf(d.ID, 100)
			fmt.Fprintf(&b, "%+v %v\n", of, err)
		}
		releases, e2 := tx.Releases()
		channels, e3 := tx.Channels()
		open, e4 := tx.OpenAttempts()
		keys, e5 := tx.Keys("bms")
		anna, _ := tx.Operator("anna")
		eve, _ := tx.Operator("eve")
		fmt.Fprintf(&b, "%+v\n%+v\n%+v\n%+v\n%+v %+v\n", releases, channels, open, keys, anna, eve)
		return all(e1, e2, e3, e4, e5)
	})
	return b.String()
}

func failedUpdateLeavesNothing(t *testing.T, s fleet.Store) {
	update(t, s, seed)
	before := dump(t, s)
	err := s.Update(t.Context(), func(tx fleet.Tx) error { return errors.Join(changed(tx), errGiveUp) })
	if !errors.Is(err, errGiveUp) || errors.Is(err, fleet.ErrConflict) {
		t.Errorf("Update returned %v, want the error of its function alone", err)
	}
	if after := dump(t, s); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	update(t, s, changed)
	if after := dump(t, s); after == before {
		t.Error("the same change, not given up, changed nothing: the comparison is blind")
	}
}

func panicLeavesNothing(t *testing.T, s fleet.Store) {
	update(t, s, seed)
	before := dump(t, s)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
		}()
		_ = s.Update(t.Context(), func(tx fleet.Tx) error {
			if err := changed(tx); err != nil {
				t.Error(err)
			}
			panic("in the middle")
		})
	}()
	if after := dump(t, s); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	update(t, s, changed) // the store still works
}

func swallowedConflictVoids(t *testing.T, s fleet.Store) {
	update(t, s, seed)
	before := dump(t, s)
	err := s.Update(t.Context(), func(tx fleet.Tx) error {
		_ = tx.PutAttempt(attempt("a9", "nobody", 1, fleet.AttemptOpen))
		_ = tx.PutDevice(device("d9"))
		return nil
	})
	if !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("Update returned %v, want ErrConflict", err)
	}
	if after := dump(t, s); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

func rulesAreConflicts(t *testing.T, s fleet.Store) {
	update(t, s, seed)
	double := release(2)
	double.Version = release(1).Version
	for name, put := range map[string]func(tx fleet.Tx) error{
		"channel without release":      func(tx fleet.Tx) error { return tx.PutChannel(fleet.Channel{Name: "x", SHA256: "nothing"}) },
		"attempt without device":       func(tx fleet.Tx) error { return tx.PutAttempt(attempt("a9", "nobody", 1, fleet.AttemptOpen)) },
		"two releases of one version":  func(tx fleet.Tx) error { return tx.PutRelease(double) },
		"two operators with one token": func(tx fleet.Tx) error { return tx.PutOperator(fleet.Operator{Name: "eve", TokenSHA256: "t1"}) },
	} {
		if err := s.Update(t.Context(), put); !errors.Is(err, fleet.ErrConflict) || errors.Is(err, fleet.ErrStorage) {
			t.Errorf("%s: %v, want ErrConflict", name, err)
		}
	}
}

func readsOwnWrites(t *testing.T, s fleet.Store) {
	update(t, s, func(tx fleet.Tx) error {
		if err := seed(tx); err != nil {
			return err
		}
		same(t, device("d1"))(tx.Device("d1"))
		same(t, []fleet.Attempt{attempt("a1", "d1", 1, fleet.AttemptOpen)})(tx.OpenAttemptsOf("d1"))
		return nil
	})
}

func viewChangesNothing(t *testing.T, s fleet.Store) {
	update(t, s, seed)
	before := dump(t, s)
	view(t, s, func(tx fleet.Tx) error {
		for i, err := range []error{
			tx.PutDevice(device("d9")), tx.PutRelease(release(9)), tx.PutAttempt(attempt("a9", "d1", 1, fleet.AttemptOpen)),
			tx.PutChannel(fleet.Channel{Name: "x", SHA256: release(1).SHA256}), tx.PutKey(fleet.ProjectKey{}), tx.PutOperator(fleet.Operator{}),
		} {
			if err == nil {
				t.Errorf("put %d in a view is no error", i)
			}
		}
		return nil
	})
	if after := dump(t, s); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	if err := s.View(t.Context(), func(fleet.Tx) error { return errGiveUp }); !errors.Is(err, errGiveUp) {
		t.Errorf("View returned %v, want the error of its function", err)
	}
}

// viewIsConsistent moves a number between two rows; no view may see their sum change.
func viewIsConsistent(t *testing.T, s fleet.Store) {
	put := func(tx fleet.Tx, a, b uint64) error {
		return all(tx.PutDevice(fleet.Device{ID: "a", Seq: a}), tx.PutDevice(fleet.Device{ID: "b", Seq: b}))
	}
	update(t, s, func(tx fleet.Tx) error { return put(tx, 100, 0) })
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range uint64(100) {
			if err := s.Update(t.Context(), func(tx fleet.Tx) error { return put(tx, 99-i, i+1) }); err != nil {
				t.Error(err)
			}
		}
	})
	for range 3 {
		wg.Go(func() {
			for range 100 {
				err := s.View(t.Context(), func(tx fleet.Tx) error {
					a, e1 := tx.Device("a")
					b, e2 := tx.Device("b")
					if a.Seq+b.Seq != 100 {
						t.Errorf("a view saw %d and %d", a.Seq, b.Seq)
					}
					return all(e1, e2)
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// updatesAreSerialised counts in read-modify-write; a lost update shows.
func updatesAreSerialised(t *testing.T, s fleet.Store) {
	update(t, s, func(tx fleet.Tx) error { return tx.PutDevice(fleet.Device{ID: "n"}) })
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				err := s.Update(t.Context(), func(tx fleet.Tx) error {
					d, err := tx.Device("n")
					if err != nil {
						return err
					}
					d.Seq++
					return tx.PutDevice(d)
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	view(t, s, func(tx fleet.Tx) error {
		same(t, fleet.Device{ID: "n", Seq: 160})(tx.Device("n"))
		return nil
	})
}

func copiesAreCopies(t *testing.T, s fleet.Store) {
	d := device("d1")
	update(t, s, func(tx fleet.Tx) error { return tx.PutDevice(d) })
	d.OldBoots[0], d.Status.Battery.SOCPct, *d.Status.Battery.TempMinC = "changed", 1, 2
	d.Doubts.Seqs["b1"], d.Doubts.List[0].Times = 1, 1
	view(t, s, func(tx fleet.Tx) error {
		got, err := tx.Device("d1")
		same(t, device("d1"))(got, err)
		got.OldBoots[0], got.Status.Battery.SOCPct, *got.Status.Battery.TempMinC = "changed", 1, 2
		got.Doubts.Seqs["b1"], got.Doubts.List[0].Times = 1, 1
		list, err := tx.Devices()
		list[0].OldBoots[0] = "changed"
		same(t, device("d1"))(tx.Device("d1"))
		return err
	})
}

func endedContext(t *testing.T, s fleet.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Update(ctx, seed); !errors.Is(err, context.Canceled) {
		t.Errorf("Update: %v, want context.Canceled", err)
	}
	if err := s.View(ctx, func(fleet.Tx) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("View: %v, want context.Canceled", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	err := s.Update(ctx, func(tx fleet.Tx) error {
		defer cancel()
		return seed(tx)
	})
	view(t, s, func(tx fleet.Tx) error {
		devices, e := tx.Devices()
		if (err == nil) != (len(devices) == 1) {
			t.Errorf("Update returned %v and %d devices are there", err, len(devices))
		}
		return e
	})
}
