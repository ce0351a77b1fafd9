package fleet_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"bmsota/audit"
	"bmsota/server/internal/fleet"
)

func TestWhoWasTurnedAwayIsInTheLog(t *testing.T) {
	c := newClock()
	s := newShop(t, fleet.Config{Now: c.Now})
	ctx := t.Context()
	if err := s.AddAccount(ctx, boss, "carl", fleet.RoleViewer, goodPassword); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		_, _, _ = s.Login(ctx, "carl", "a wrong password", home)
		_, _, _ = s.Login(ctx, "typed my password here", "carl", home)
	}
	carl := fleet.Identity{Name: "carl", Role: fleet.RoleViewer}
	if _, err := s.Audit(ctx, carl, fleet.AuditQuery{}); !errors.Is(err, fleet.ErrDenied) {
		t.Errorf("a viewer reads the log: %v", err)
	}
	rows, err := s.Audit(ctx, anna, fleet.AuditQuery{What: "login."})
	if err != nil || len(rows) != 2 {
		t.Fatalf("%d rows (%v)", len(rows), err)
	}
	for _, e := range rows {
		if e.Who == "carl" == (e.Who == "stranger") || e.Details.Get("times") != "3" || e.Details.Get("address") != home || e.Details.Get("via") != "web" {
			t.Errorf("%s", e.Line())
		}
	}
	rows, err = s.Audit(ctx, anna, fleet.AuditQuery{What: audit.AccessDenied})
	if err != nil || len(rows) != 1 || rows[0].Who != "carl" || rows[0].Role != "viewer" || rows[0].Details.Get("refused") != "audit" {
		t.Errorf("%v (%v)", rows, err)
	}
	for what, ok := range map[audit.Action]bool{"": true, "login.": true, "login.ok": true, "login": false, "lo.": false, "x": false, ".": false} {
		if _, err := s.Audit(ctx, anna, fleet.AuditQuery{What: what}); (err == nil) != ok || err != nil && !errors.Is(err, fleet.ErrInvalid) {
			t.Errorf("%q: %v", what, err)
		}
	}
}

// Whoever tries for a day, from many addresses and with many names, fills neither the disk nor the memory, and is counted
// to the last try.
func TestTriesCannotFillTheLog(t *testing.T) {
	c := newClock()
	s := newShop(t, fleet.Config{Now: c.Now})
	const seconds, each = 24 * 3600, 5
	most := 0
	for i := range seconds {
		for j := range each {
			s.TurnedAway(fleet.Knock{What: audit.LoginFailed, Name: fmt.Sprint("name", i*each+j), Via: fleet.ViaAPI, Address: fmt.Sprint(i % 977)})
		}
		c.add(time.Second)
		if err := fleet.WriteKnocks(t.Context(), s.Fleet); err != nil {
			t.Fatal(err)
		}
		most = max(most, fleet.Knocks(s.Fleet))
	}
	c.add(2 * time.Minute)
	if err := fleet.WriteKnocks(t.Context(), s.Fleet); err != nil {
		t.Fatal(err)
	}
	rows := auditLog(t, s.store.Store)
	total := 0
	for _, e := range rows {
		n := 1
		if times := e.Details.Get("times"); times != "" {
			fmt.Sscan(times, &n)
		}
		total += n
	}
	if total != seconds*each {
		t.Errorf("%d tries are told of, %d were made", total, seconds*each)
	}
	if limit := 100 + 4320 + 24*60 + 10; len(rows) > limit {
		t.Errorf("%d rows in a day, the limit is %d", len(rows), limit)
	}
	if most > 300 {
		t.Errorf("%d kinds of tries were remembered", most)
	}
}

// Tries whose rows could not be written are not forgotten.
func TestTriesWaitForTheStore(t *testing.T) {
	s := newShop(t, fleet.Config{})
	k := fleet.Knock{What: audit.LoginFailed, Via: fleet.ViaMQTT, Address: home}
	s.TurnedAway(k)
	s.store.fail.Store(&errGone)
	if err := fleet.WriteKnocks(t.Context(), s.Fleet); !errors.Is(err, errGone) {
		t.Errorf("%v", err)
	}
	s.TurnedAway(k)
	full := fmt.Errorf("%w: %w", fleet.ErrStorage, errGone)
	s.store.fail.Store(&full)
	if rows, err := s.Audit(t.Context(), anna, fleet.AuditQuery{}); err != nil || len(rows) != 0 {
		t.Errorf("read while the disk is full: %v (%v)", rows, err)
	}
	s.store.fail.Store(nil)
	rows, err := s.Audit(t.Context(), anna, fleet.AuditQuery{})
	if err != nil || len(rows) != 1 || rows[0].Details.Get("times") != "2" || !slices.Contains(audit.Actions(), rows[0].What) {
		t.Errorf("%v (%v)", rows, err)
	}
}
