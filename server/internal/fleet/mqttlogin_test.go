package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"
)

// loginWalk is a fleet that remembers logins and one that has nothing to remember, over the same rows. It gives tokens of its own
// choice, so that one that was taken back can come again.
type loginWalk struct {
	*fleet.Fleet
	t       *testing.T
	r       *rand.Rand
	store   *crossing
	devices []string
	secrets []string
}

func newLoginWalk(t *testing.T, r *rand.Rand) *loginWalk {
	s := &crossing{Store: store.NewMemory()}
	w := &loginWalk{t: t, r: r, store: s, Fleet: newFleet(t, fleet.Config{Store: s}), devices: []string{"d1", "d2", "boss"}, secrets: []string{"one", "two", "three"}}
	err := fleet.ChangeRows(t.Context(), w.Fleet, func(tx fleet.Tx) error {
		return tx.PutOperator(fleet.Operator{Name: "boss", Role: fleet.RoleOperator, TokenSHA256: fleet.TokenDigest("one"), CreatedAt: time.Unix(1, 0)})
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// put changes one device: in its login, or in what every presence and status changes.
func (w *loginWalk) put(tx fleet.Tx, r *rand.Rand) error {
	d, err := tx.Device(pick(r, w.devices...))
	if errors.Is(err, fleet.ErrNotFound) {
		d, err = fleet.Device{ID: pick(r, w.devices...), FirstSeen: time.Unix(1, 0)}, nil
	}
	if err != nil {
		return err
	}
	switch r.IntN(6) {
	case 0:
		d.Revoked = !d.Revoked
	case 1:
		d.TokenSHA256 = fleet.TokenDigest(pick(r, w.secrets...))
	case 2:
		d.TokenSHA256, d.CertificateSHA256 = "", "c"
	default:
		d.Online, d.LastSeen = !d.Online, time.Unix(int64(r.IntN(99)), 0)
	}
	if r.IntN(2) == 0 {
		return tx.PutDevices([]fleet.Device{d})
	}
	return tx.PutDevice(d)
}

func (w *loginWalk) change() {
	refused := w.r.IntN(12) == 0 // a transaction that changes its mind
	seed, n := w.r.Uint64(), 1+w.r.IntN(3)
	err := fleet.ChangeRows(w.t.Context(), w.Fleet, func(tx fleet.Tx) error {
		r := rand.New(rand.NewPCG(seed, 0)) // both runs do the same
		for range n {
			if err := w.put(tx, r); err != nil {
				return err
			}
		}
		if refused {
			return fleet.ErrInvalid
		}
		return nil
	})
	if (err != nil) != refused {
		w.t.Error(err)
	}
}

// wrong compares who gets in with what the rows say, for every name and token.
func (w *loginWalk) wrong() (what string) {
	w.store.inside = true // an answer that was read before a change is none that can be compared
	defer func() { w.store.inside = false }()
	fresh := newFleet(w.t, fleet.Config{Store: w.store.Store})
	for _, name := range w.devices {
		for _, secret := range w.secrets {
			want, wantErr := fresh.Authenticate(w.t.Context(), name, secret)
			for range 2 { // the second is remembered
				if got, err := w.Authenticate(w.t.Context(), name, secret); got != want || fmt.Sprint(err) != fmt.Sprint(wantErr) {
					return fmt.Sprintf("%s with %s: got %+v (%v), want %+v (%v)", name, secret, got, err, want, wantErr)
				}
			}
		}
	}
	return ""
}

// Who gets in is who may by the rows, from the moment a change of them is acknowledged: however logins and changes cross, and
// whatever a transaction that was undone had put.
func TestWhoLogsInFromMemoryMayByTheRows(t *testing.T) {
	neverWrong(t, func(r *rand.Rand, unstruck bool) string {
		w := newLoginWalk(t, r)
		if unstruck {
			fleet.UnstruckLogins(w.Fleet)
		}
		try := func() { _, _ = w.Authenticate(t.Context(), pick(r, w.devices...), pick(r, w.secrets...)) }
		return w.store.play(r, 40, try, w.change, w.wrong)
	})
}

// readingStore counts Views.
type readingStore struct {
	fleet.Store
	views atomic.Int64
}

func (s *readingStore) View(ctx context.Context, fn func(fleet.Tx) error) error {
	s.views.Add(1)
	return s.Store.View(ctx, fn)
}

// TestARevokedTokenIsNotRemembered is what a strike is for, by the verbs: enrolled again, revoked, and with a certificate in place
// of the token. Coming, leaving and speaking strike nothing.
func TestARevokedTokenIsNotRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &readingStore{Store: store.NewMemory()}
		f := newFleet(t, fleet.Config{Store: s})
		defer start(t, f, newOutbox())()
		synctest.Wait()
		ctx := t.Context()
		enroll := func() string {
			t.Helper()
			token, err := f.Enroll(ctx, anna, "d1")
			if err != nil {
				t.Fatal(err)
			}
			return token
		}
		// in logs in, and says whether the store was asked.
		in := func(token string, want bool) (looked bool) {
			t.Helper()
			before := s.views.Load()
			id, err := f.Authenticate(ctx, "d1", token)
			if want && (err != nil || id != fleet.Identity{Name: "d1", Role: fleet.RoleDevice}) || !want && !errors.Is(err, fleet.ErrDenied) {
				t.Errorf("%+v, %v, want in: %v", id, err, want)
			}
			return s.views.Load() > before
		}
		old := enroll()
		if !in(old, true) || in(old, true) {
			t.Error("the first login is looked up, and the second is not")
		}
		for range 3 {
			if err := errors.Join(f.Connected(ctx, "d1"), f.Disconnected(ctx, "d1")); err != nil {
				t.Fatal(err)
			}
			hear(t, f, "d1", status("b", 1, protocol.PhaseIdle))
			time.Sleep(time.Second)
			synctest.Wait()
			if in(old, true) {
				t.Error("a login is looked up because the device has come, left and spoken")
			}
		}
		for range 2 {
			if !in("other", false) || in(old, true) {
				t.Error("another token is looked up each time, and the right one is still remembered")
			}
		}
		token := enroll()
		in(old, false)
		in(token, true)
		if err := f.Revoke(ctx, anna, "d1"); err != nil {
			t.Fatal(err)
		}
		in(token, false)
		in(enroll(), true)
		if n, _ := fleet.RememberedLogins(f); n != 1 {
			t.Errorf("%d are remembered, want 1", n)
		}
	})
}

// Only devices that have logged in are remembered, and no more than there is room for; where other servers change rows nobody is.
func TestLoginsTakeABoundedRoom(t *testing.T) {
	f := newFleet(t, fleet.Config{})
	_, limit := fleet.RememberedLogins(f)
	err := fleet.ChangeRows(t.Context(), f, func(tx fleet.Tx) error {
		for i := range limit + 10 {
			if err := tx.PutDevice(fleet.Device{ID: fmt.Sprint("d", i), TokenSHA256: fleet.TokenDigest("secret")}); err != nil {
				return err
			}
		}
		return tx.PutOperator(fleet.Operator{Name: "boss", Role: fleet.RoleOperator, TokenSHA256: fleet.TokenDigest("secret"), CreatedAt: time.Unix(1, 0)})
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range limit + 10 {
		if _, err := f.Authenticate(t.Context(), fmt.Sprint("stranger", i), "secret"); !errors.Is(err, fleet.ErrDenied) {
			t.Fatal(err)
		}
	}
	if _, err := f.Authenticate(t.Context(), "boss", "secret"); err != nil {
		t.Error(err)
	}
	if n, _ := fleet.RememberedLogins(f); n != 0 {
		t.Errorf("%d are remembered, and none was a device's", n)
	}
	for i := range limit + 10 {
		if _, err := f.Authenticate(t.Context(), fmt.Sprint("d", i), "secret"); err != nil {
			t.Fatal(err)
		}
	}
	if n, _ := fleet.RememberedLogins(f); n != limit {
		t.Errorf("%d are remembered, the bound is %d", n, limit)
	}
}

func TestWithSeveralServersNoLoginIsRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := store.NewMemory()
		a, b := member(t, memory, "a"), member(t, memory, "b")
		defer start(t, a, newOutbox())()
		defer start(t, b, newOutbox())()
		synctest.Wait()
		token, err := a.Enroll(t.Context(), anna, "d1")
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if _, err := b.Authenticate(t.Context(), "d1", token); err != nil {
				t.Error(err)
			}
		}
		if err := a.Revoke(t.Context(), anna, "d1"); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Authenticate(t.Context(), "d1", token); !errors.Is(err, fleet.ErrDenied) {
			t.Errorf("b lets in whom a has revoked: %v", err)
		}
	})
}
