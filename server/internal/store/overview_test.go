package store_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

func TestStoresKeepWhoMaySignIn(t *testing.T) {
	for _, impl := range stores {
		t.Run(impl.name, func(t *testing.T) {
			s := impl.open(t)
			anna := fleet.Account{Name: "anna", Role: fleet.RoleAdmin, Password: "hash", CreatedAt: at(1), CreatedBy: "operator", PasswordAt: at(2)}
			bob := fleet.Account{Name: "bob", Role: fleet.RoleViewer}
			ci := fleet.Operator{Name: "ci", TokenSHA256: "t1", Role: fleet.RoleOperator, CreatedAt: at(3), ExpiresAt: at(900)}
			one := fleet.Session{SHA256: "s1", Account: "anna", CreatedAt: at(4), SeenAt: at(5), ExpiresAt: at(50)}
			two := fleet.Session{SHA256: "s2", Account: "anna", ExpiresAt: at(60)}
			three := fleet.Session{SHA256: "s3", Account: "bob", ExpiresAt: at(70)}
			update(t, s, func(tx fleet.Tx) error {
				return all(tx.PutAccount(bob), tx.PutAccount(anna), tx.PutOperator(ci), tx.PutOperator(fleet.Operator{Name: "a", TokenSHA256: "t2"}),
					tx.PutSession(one), tx.PutSession(two), tx.PutSession(three))
			})
			view(t, s, func(tx fleet.Tx) error {
				same(t, anna)(tx.Account("anna"))
				same(t, []fleet.Account{anna, bob})(tx.Accounts())
				same(t, ci)(tx.Operator("ci"))
				same(t, ci)(tx.OperatorByToken("t1"))
				same(t, one)(tx.Session("s1"))
				operators, err := tx.Operators()
				if got := names(operators, func(o fleet.Operator) string { return o.Name }); got != "a ci" {
					t.Errorf("tokens %q", got)
				}
				_, e1 := tx.Account("nobody")
				_, e2 := tx.Session("none")
				if !errors.Is(e1, fleet.ErrNotFound) || !errors.Is(e2, fleet.ErrNotFound) {
					t.Errorf("%v, %v, want ErrNotFound", e1, e2)
				}
				for _, change := range []func() error{
					func() error { return tx.PutAccount(bob) }, func() error { return tx.DeleteAccount("bob") }, func() error { return tx.DeleteOperator("ci") },
					func() error { return tx.PutSession(one) }, func() error { return tx.DeleteSession("s1") },
					func() error { return tx.DeleteSessionsOf("anna") }, func() error { return tx.DeleteSessionsUntil(at(99)) },
				} {
					if change() == nil {
						t.Error("a view changes who may sign in")
					}
				}
				return err
			})
			// What is given up leaves everything as it was.
			err := s.Update(t.Context(), func(tx fleet.Tx) error {
				return all(tx.DeleteAccount("anna"), tx.DeleteOperator("ci"), tx.DeleteSessionsOf("anna"), tx.DeleteSessionsUntil(at(1000)), errGiveUp)
			})
			if !errors.Is(err, errGiveUp) {
				t.Error(err)
			}
			view(t, s, func(tx fleet.Tx) error {
				same(t, anna)(tx.Account("anna"))
				same(t, ci)(tx.Operator("ci"))
				same(t, two)(tx.Session("s2"))
				same(t, three)(tx.Session("s3"))
				return nil
			})
			update(t, s, func(tx fleet.Tx) error {
				return all(tx.DeleteAccount("bob"), tx.DeleteAccount("nobody"), tx.DeleteOperator("a"), tx.DeleteSession("none"), tx.DeleteSessionsUntil(at(50)))
			})
			view(t, s, func(tx fleet.Tx) error {
				same(t, []fleet.Account{anna})(tx.Accounts())
				_, e1 := tx.Session("s1")
				_, e2 := tx.Session("s2")
				if !errors.Is(e1, fleet.ErrNotFound) || e2 != nil {
					t.Errorf("sessions that have ended stay, or others go: %v, %v", e1, e2)
				}
				return nil
			})
			update(t, s, func(tx fleet.Tx) error { return tx.DeleteSessionsOf("anna") })
			view(t, s, func(tx fleet.Tx) error {
				_, e1 := tx.Session("s2")
				_, e2 := tx.Session("s3")
				if !errors.Is(e1, fleet.ErrNotFound) || e2 != nil {
					t.Errorf("sessions of anna stay, or bob's go: %v, %v", e1, e2)
				}
				return nil
			})
		})
	}
}

// randomFleet puts devices, releases and attempts that differ in everything a query asks for.
func randomFleet(r *rand.Rand, n int, now time.Time) func(fleet.Tx) error {
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	ago := func() time.Time {
		return now.Add(-[]time.Duration{0, time.Second, fleet.StuckAfter, fleet.StuckAfter + time.Second, fleet.AwayAfter, fleet.AwayAfter + time.Second,
			fleet.FailedWithin, fleet.FailedWithin + time.Second}[r.IntN(8)])
	}
	phases := protocol.Phases()
	return func(tx fleet.Tx) error {
		var errs []error
		for i := range 3 {
			rel := release(i)
			errs = append(errs, tx.PutRelease(rel))
		}
		for i := range n {
			d := fleet.Device{ID: fmt.Sprintf("%s-%06d", pick("bms", "BMS", "a_b", "a:b"), i), Online: r.IntN(2) == 0, Revoked: r.IntN(6) == 0, LastSeen: ago(), EnrolledAt: ago(),
				Channel: pick("", "", "stable", "beta")}
			if r.IntN(8) == 0 {
				d.LastSeen, d.EnrolledAt = time.Time{}, time.Time{}
			}
			if r.IntN(8) > 0 {
				d.Version = pick("1.0.0", "1.0.1", "1.0.2", "9.9.9", "")
				d.SHA256 = pick("", release(1).SHA256, release(2).SHA256, strings.Repeat("f", 64))
				d.Status = protocol.Status{Phase: phases[r.IntN(len(phases))], Reason: protocol.Reason(pick("", "crash", "charging")), Project: pick("", "bms", "other"),
					Chip: pick("esp32", "esp32c3"), RollbackProtected: r.IntN(2) == 0, Signed: r.IntN(2) == 0}
			}
			if r.IntN(5) == 0 {
				d.Doubts.List = []fleet.Suspicion{{Kind: fleet.SuspectBoots, Since: at(1), Last: at(2), Times: 1 + r.IntN(2)}} // stands from two on
			}
			errs = append(errs, tx.PutDevice(d))
			for k := range r.IntN(3) {
				a := attempt(fmt.Sprintf("%d-%d", i, k), d.ID, int64(r.IntN(3)), fleet.AttemptState(pick("open", "failed", "rolled_back", "succeeded", "expired")))
				a.EndedAt, a.SHA256 = ago(), d.SHA256
				errs = append(errs, tx.PutAttempt(a))
			}
		}
		return all(errs...)
	}
}

func queries(r *rand.Rand, now time.Time) (list []fleet.DeviceQuery) {
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	for _, state := range append(fleet.States(), fleet.StateAny) {
		for _, sort := range []fleet.Sort{fleet.SortID, fleet.SortSeen, fleet.SortVersion} {
			q := fleet.DeviceQuery{State: state, Sort: sort, Desc: r.IntN(2) == 0, Limit: 1 + r.IntN(7), Now: now}
			list = append(list, q)
			q.Phase, q.Reason = protocol.Phase(pick("", "trial", "idle")), protocol.Reason(pick("", "crash"))
			q.Version, q.SHA256, q.Project, q.Chip = pick("", "1.0.1"), pick("", release(1).SHA256), pick("", "bms"), pick("", "esp32")
			q.Channel = pick("", "", "stable", "beta")
			q.Text = pick("", "bms", "A_B", "00001", "%", "_", `\`, "x'")
			list = append(list, q)
		}
	}
	return list
}

// The stores are held to fleet.DeviceQuery.Matches: every page, forward and back, holds what it selects, in order.
func TestStoresSelectTheDevicesTheQueryMeans(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	now := at(0)
	for _, impl := range stores {
		t.Run(impl.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			s := impl.open(t)
			update(t, s, randomFleet(r, 120, now))
			view(t, s, func(tx fleet.Tx) error {
				devices, err := tx.Devices()
				if err != nil {
					return err
				}
				facts := factsOf(t, tx, devices, now)
				for _, q := range queries(r, now) {
					checkListing(t, tx, q, devices, facts)
				}
				checkTallies(t, tx, devices, facts, now)
				return nil
			})
		})
	}
}

func factsOf(t *testing.T, tx fleet.Tx, devices []fleet.Device, now time.Time) map[string]fleet.Facts {
	t.Helper()
	facts := make(map[string]fleet.Facts)
	releases, err := tx.Releases()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range devices {
		attempts, err := tx.AttemptsOf(d.ID, 100)
		if err != nil {
			t.Fatal(err)
		}
		f := fleet.Facts{Released: slices.ContainsFunc(releases, func(r fleet.Release) bool {
			if d.SHA256 != "" {
				return r.SHA256 == d.SHA256
			}
			return r.Version == d.Version && r.Project == d.Status.Project && r.Chip == d.Status.Chip
		})}
		for _, a := range attempts {
			bad := a.State == fleet.AttemptFailed || a.State == fleet.AttemptRolledBack
			mended := slices.ContainsFunc(attempts, func(b fleet.Attempt) bool {
				return b.State == fleet.AttemptSucceeded && b.CreatedAt.After(a.CreatedAt)
			})
			f.Failed = f.Failed || bad && !mended && !a.EndedAt.Before(now.Add(-fleet.FailedWithin))
		}
		facts[d.ID] = f
	}
	return facts
}

func checkListing(t *testing.T, tx fleet.Tx, q fleet.DeviceQuery, devices []fleet.Device, facts map[string]fleet.Facts) {
	t.Helper()
	var want []fleet.Device
	for _, d := range devices {
		if q.Matches(d, facts[d.ID]) {
			want = append(want, d)
		}
	}
	slices.SortStableFunc(want, func(a, b fleet.Device) int { // they come by id
		switch q.Sort {
		case fleet.SortSeen:
			return a.LastSeen.Compare(b.LastSeen)
		case fleet.SortVersion:
			return strings.Compare(a.Version, b.Version)
		}
		return 0
	})
	if q.Desc {
		slices.Reverse(want)
	}
	ids := func(list []fleet.Device) string { return names(list, func(d fleet.Device) string { return d.ID }) }
	if n, err := tx.DeviceCount(q); err != nil || n != len(want) {
		t.Errorf("%+v: count %d (%v), want %d", q, n, err, len(want))
	}
	var got []fleet.Device
	for page := q; len(got) <= len(devices); {
		list, err := tx.DevicePage(page)
		if err != nil {
			t.Fatalf("%+v: %v", page, err)
		}
		if page.After != nil && len(list) > 0 {
			back := q
			mark := list[0].Mark()
			back.After, back.Back = &mark, true
			before, err := tx.DevicePage(back)
			if wantBefore := want[max(0, len(got)-q.Limit):min(len(got), len(want))]; err != nil || ids(before) != ids(wantBefore) {
				t.Fatalf("%+v: the page before is %s (%v), want %s", q, ids(before), err, ids(wantBefore))
			}
		}
		got = append(got, list...)
		if len(list) < q.Limit {
			break
		}
		mark := list[len(list)-1].Mark()
		page.After = &mark
	}
	if ids(got) != ids(want) {
		t.Errorf("%+v:\ngot  %s\nwant %s", q, ids(got), ids(want))
	}
}

func checkTallies(t *testing.T, tx fleet.Tx, devices []fleet.Device, facts map[string]fleet.Facts, now time.Time) {
	t.Helper()
	tallies, err := tx.DeviceTallies(now)
	if err != nil {
		t.Fatal(err)
	}
	count := func(state fleet.State) (n int) {
		for _, d := range devices {
			if (fleet.DeviceQuery{State: state, Now: now}).Matches(d, facts[d.ID]) && !d.Revoked {
				n++
			}
		}
		return n
	}
	var sum fleet.DeviceTally
	var others int
	for _, x := range tallies {
		sum.Count, sum.Online, sum.Stuck = sum.Count+x.Count, sum.Online+x.Online, sum.Stuck+x.Stuck
		sum.Unprotected, sum.Away = sum.Unprotected+x.Unprotected, sum.Away+x.Away
		if !x.Released && x.Version != "" {
			others += x.Count
		}
	}
	want := fleet.DeviceTally{Count: count(fleet.StateAny), Online: count(fleet.StateOnline), Stuck: count(fleet.StateStuck),
		Unprotected: count(fleet.StateUnprotected), Away: count(fleet.StateAway)}
	if sum != want || others != count(fleet.StateUnreleased) {
		t.Errorf("tallies say %+v and %d unreleased, want %+v and %d", sum, others, want, count(fleet.StateUnreleased))
	}
	open, err := tx.OpenAttempts()
	if err != nil {
		t.Fatal(err)
	}
	openTallies, err := tx.OpenTallies()
	var opens int
	for _, x := range openTallies {
		opens += x.Count
	}
	if err != nil || opens != len(open) {
		t.Errorf("%d open attempts in tallies (%v), want %d", opens, err, len(open))
	}
	slices.Reverse(open)
	newest, err := tx.NewestOpen(5)
	if err != nil || !reflect.DeepEqual(newest, open[:min(5, len(open))]) {
		t.Errorf("newest open attempts: %+v (%v)", newest, err)
	}
	failed, err := tx.NewestFailed(now.Add(-fleet.FailedWithin), 1000)
	if err != nil || !slices.IsSortedFunc(failed, func(a, b fleet.Attempt) int { return b.EndedAt.Compare(a.EndedAt) }) {
		t.Errorf("failures are not the latest first (%v)", err)
	}
	counts := make(map[fleet.FailureTally]int)
	for _, a := range failed {
		counts[fleet.FailureTally{Action: a.Action, Version: a.Version, SHA256: a.SHA256, State: a.State, Reason: a.Reason}]++
	}
	failures, err := tx.FailureTallies(now.Add(-fleet.FailedWithin))
	for _, f := range failures {
		key := f
		key.Count = 0
		if counts[key] != f.Count {
			t.Errorf("%+v, want %d", f, counts[key])
		}
	}
	if err != nil || len(failures) != len(counts) || !slices.IsSortedFunc(failures, func(a, b fleet.FailureTally) int { return b.Count - a.Count }) {
		t.Errorf("%d tallies of failures, want %d, most first (%v)", len(failures), len(counts), err)
	}
	byDevice := make(map[string]bool)
	for _, a := range failed {
		byDevice[a.DeviceID] = true
	}
	for id, f := range facts {
		if f.Failed && !byDevice[id] {
			t.Errorf("the failure of %s is not listed", id)
		}
	}
	tally, err := tx.ReleaseTally(release(1).SHA256)
	for state, n := range tally {
		var want int
		for _, d := range devices {
			of, err := tx.AttemptsOf(d.ID, 100)
			if err != nil {
				t.Fatal(err)
			}
			for _, a := range of {
				if a.SHA256 == release(1).SHA256 && a.State == state {
					want++
				}
			}
		}
		if n != want {
			t.Errorf("%d attempts %s, want %d", n, state, want)
		}
	}
	if err != nil {
		t.Error(err)
	}
}

// The rows of a large fleet are 100 MB: a page is found in an index that holds all it asks for, or among the few devices
// that are in a phase, have failed or are suspect.
func TestListingsAreAnsweredFromIndexes(t *testing.T) {
	db := openDB(t, filepath.Join(t.TempDir(), "bmsota.db"))
	update(t, db, randomFleet(rand.New(rand.NewPCG(1, 1)), 50, at(0)))
	for _, q := range queries(rand.New(rand.NewPCG(2, 2)), at(0)) {
		plan, err := db.Plan(q)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(plan) {
			if !strings.Contains(line, " devices") || strings.Contains(line, "COVERING INDEX") || strings.Contains(line, "devices_by_phase (phase=?") ||
				strings.Contains(line, "sqlite_autoindex_devices_1 (id=?)") || q.State == fleet.StateSuspect && strings.Contains(line, "devices_suspect") {
				continue
			}
			t.Errorf("%+v:\n%s", q, plan)
		}
	}
}

func BenchmarkOverviewOf100000(b *testing.B) {
	db, now := bigFleet(b)
	for _, c := range []struct {
		name string
		q    fleet.DeviceQuery
	}{
		{"all by id", fleet.DeviceQuery{Sort: fleet.SortID}},
		{"all by id, in the middle", fleet.DeviceQuery{Sort: fleet.SortID, After: &fleet.DeviceMark{ID: "bms-050000"}}},
		{"all by last seen", fleet.DeviceQuery{Sort: fleet.SortSeen, Desc: true}},
		{"one version by last seen", fleet.DeviceQuery{Version: "1.0.1", Sort: fleet.SortSeen}},
		{"stuck", fleet.DeviceQuery{State: fleet.StateStuck, Sort: fleet.SortID}},
		{"failed", fleet.DeviceQuery{State: fleet.StateFailed, Sort: fleet.SortID}},
		{"unreleased by version", fleet.DeviceQuery{State: fleet.StateUnreleased, Sort: fleet.SortVersion}},
		{"part of an id", fleet.DeviceQuery{Text: "9999", Sort: fleet.SortID}},
	} {
		b.Run(c.name, func(b *testing.B) {
			c.q.Limit, c.q.Now = 50, now
			measure(b, func(tx fleet.Tx) error {
				_, err := tx.DevicePage(c.q)
				if err == nil {
					_, err = tx.DeviceCount(c.q)
				}
				return err
			}, db)
		})
	}
	b.Run("census", func(b *testing.B) {
		measure(b, func(tx fleet.Tx) error {
			_, err := tx.DeviceTallies(now)
			if err == nil {
				_, err = tx.DeviceCount(fleet.DeviceQuery{State: fleet.StateFailed, Now: now})
			}
			return err
		}, db)
	})
}

// measure reports the 99th percentile beside the mean.
func measure(b *testing.B, fn func(fleet.Tx) error, s fleet.Store) {
	var took []time.Duration
	for b.Loop() {
		began := time.Now()
		if err := s.View(b.Context(), fn); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
}

// bigFleet is a database with 100,000 devices, most of them well.
func bigFleet(b *testing.B) (fleet.Store, time.Time) {
	b.Helper()
	now := at(0)
	db := openBench(b)
	r := rand.New(rand.NewPCG(7, 7))
	const n, group = 100_000, 5_000
	for from := 0; from < n; from += group {
		err := db.Update(b.Context(), func(tx fleet.Tx) error {
			var errs []error
			for i := range 3 {
				errs = append(errs, tx.PutRelease(release(i)))
			}
			for i := from; i < from+group; i++ {
				d := device(fmt.Sprintf("bms-%06d", i))
				d.LastSeen = now.Add(-time.Duration(r.IntN(3600)) * time.Second / 10)
				d.Version, d.SHA256 = "1.0.1", release(1).SHA256
				d.Status.Phase, d.Status.Project, d.Status.Chip, d.Status.Signed = protocol.PhaseIdle, "bms", "esp32c3", true
				switch x := r.IntN(1000); {
				case x < 300:
					d.Version, d.SHA256 = "1.0.2", release(2).SHA256
				case x < 310:
					d.Version, d.SHA256 = "0.9.0", strings.Repeat("f", 64)
				case x < 320:
					d.Status.Phase, d.LastSeen = protocol.PhaseDownloading, now.Add(-time.Hour)
				case x < 330:
					d.Status.Phase, d.Status.Reason = protocol.PhaseRolledBack, protocol.ReasonCrash
				}
				errs = append(errs, tx.PutDevice(d))
				a := attempt(fmt.Sprint(i), d.ID, int64(i), fleet.AttemptSucceeded)
				if r.IntN(100) == 0 {
					a.State, a.EndedAt = fleet.AttemptFailed, now
				}
				errs = append(errs, tx.PutAttempt(a))
			}
			return all(errs...)
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	return db, now
}
