package fleet_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/esp/appimage"
	"bmsota/manifest"
	"bmsota/protocol"
	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"
)

// hear folds a status of 1.0.0 into the fleet.
func hear(t testing.TB, f *fleet.Fleet, device string, s protocol.Status, change ...func(*protocol.Status)) {
	t.Helper()
	for _, c := range change {
		c(&s)
	}
	if err := f.Fold(t.Context(), device, false, payload(t, s)); err != nil {
		t.Fatal(err)
	}
}

func newest(t testing.TB, f *fleet.Fleet, device string) fleet.Attempt {
	t.Helper()
	list, err := f.Attempts(t.Context(), device, 1)
	if err != nil || len(list) != 1 {
		t.Fatalf("%d attempts of %s (%v)", len(list), device, err)
	}
	return list[0]
}

func order(t testing.TB, f *fleet.Fleet, device, text string) protocol.Command {
	t.Helper()
	b, err := f.Order(t.Context(), anna, device, false, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	c, err := protocol.ParseCommand(b)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestOfferGoesThroughIntermediateVersions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t, fleet.Config{})
		stop := start(t, s.Fleet, newOutbox())
		defer stop()
		synctest.Wait()
		needs := func(v string) func(*manifest.Manifest) { return func(m *manifest.Manifest) { m.MinVersion = v } }
		s.publish(t, build(t, version("1.0.0")))
		s.publish(t, build(t, version("1.5.0")), needs("1.0.0"))
		s.publish(t, build(t, version("1.6.0")), needs("1.0.0"))
		gone := s.publish(t, build(t, version("1.7.0")), needs("1.0.0"))
		s.publish(t, build(t, version("2.0.0")), needs("1.5.0"))
		s.publish(t, build(t, version("3.0.0")), needs("2.0.0"))
		s.publish(t, build(t, version("4.0.0"), func(o *appimage.BuildOptions) { o.Size = 64 << 10 }))
		if err := s.Withdraw(t.Context(), anna, gone.SHA256); err != nil {
			t.Fatal(err)
		}
		if _, err := s.SetChannel(t.Context(), anna, "", "", "", "3.0.0"); err != nil {
			t.Fatal(err)
		}
		for i, c := range []struct{ runs, want string }{
			{"0.9.0", "1.0.0"},
			{"1.0.0", "1.6.0"}, // not 1.7.0, which is withdrawn
			{"1.5.0", "2.0.0"},
			{"1.6.0", "2.0.0"},
			{"2.0.0", "3.0.0"},
			{"3.0.0", "3.0.0"}, // the device sees that it is up to date
			{"5.0.0", "3.0.0"}, // the device refuses the downgrade
			{"nightly", "1.0.0"},
			{"", "3.0.0"},
		} {
			id := fmt.Sprintf("d%d", i)
			hear(t, s.Fleet, id, status("b", 1, protocol.PhaseIdle), func(s *protocol.Status) { s.CurrentVersion = c.runs })
			o, err := s.Offer(t.Context(), fleet.Query{Device: id})
			if err != nil || o.File.Version != c.want {
				t.Errorf("%q is offered %q (%v), want %q", c.runs, o.File.Version, err, c.want)
			}
		}
	})
}

func TestOfferToAnOrderedVersion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t, fleet.Config{})
		stop := start(t, s.Fleet, newOutbox())
		defer stop()
		synctest.Wait()
		wanted := s.publish(t, build(t, version("1.1.0")))
		s.publish(t, build(t, version("1.2.0")))
		hear(t, s.Fleet, "d1", status("b", 1, protocol.PhaseIdle))
		order(t, s.Fleet, "d1", `{"action":"update","version":"1.1.0"}`)
		if a := newest(t, s.Fleet, "d1"); a.SHA256 != wanted.SHA256 {
			t.Errorf("attempt wants %q, want %q", a.SHA256, wanted.SHA256)
		}
		if o, err := s.Offer(t.Context(), fleet.Query{Device: "d1"}); err != nil || o.Release.Version != "1.1.0" {
			t.Errorf("offered %q (%v), want the version ordered", o.Release.Version, err)
		}
		if o, err := s.Offer(t.Context(), fleet.Query{Device: "d2"}); err != nil || o.Release.Version != "1.2.0" {
			t.Errorf("another device is offered %q (%v), want the channel's", o.Release.Version, err)
		}
		time.Sleep(time.Second)
		order(t, s.Fleet, "d1", `{"action":"update","version":"v1.1.0"}`) // as git tags are spelled, which a device takes for the same
		if a := newest(t, s.Fleet, "d1"); a.SHA256 != wanted.SHA256 {
			t.Errorf("attempt of v1.1.0 wants %q, want %q", a.SHA256, wanted.SHA256)
		}
		if o, err := s.Offer(t.Context(), fleet.Query{Device: "d1"}); err != nil || o.Release.Version != "1.1.0" {
			t.Errorf("offered %q (%v), want the version ordered", o.Release.Version, err)
		}
	})
}

func TestOfferSaysWhatToName(t *testing.T) {
	s := newShop(t, fleet.Config{})
	ask := func(q fleet.Query, version string, want error, says ...string) {
		t.Helper()
		o, err := s.Offer(t.Context(), q)
		if !errors.Is(err, want) || err == nil && o.Release.Version != version {
			t.Errorf("%+v: %q (%v), want %q (%v)", q, o.Release.Version, err, version, want)
		}
		for _, w := range says {
			if !strings.Contains(fmt.Sprint(err), w) {
				t.Errorf("%+v: %v does not say %q", q, err, w)
			}
		}
	}
	ask(fleet.Query{}, "", fleet.ErrNotFound)
	s.publish(t, build(t, version("1.0.0")))
	ask(fleet.Query{}, "1.0.0", nil)
	ask(fleet.Query{Channel: "beta"}, "", fleet.ErrNotFound)
	ask(fleet.Query{Project: "nothing"}, "", fleet.ErrNotFound)
	ask(fleet.Query{Device: "a/b"}, "", fleet.ErrInvalid)
	s.publish(t, build(t, version("1.0.1"), func(o *appimage.BuildOptions) { o.Chip = appimage.ESP32 }))
	ask(fleet.Query{}, "", fleet.ErrInvalid, "chip", "esp32, esp32c3")
	ask(fleet.Query{Chip: "esp32"}, "1.0.1", nil)
	s.publish(t, build(t, version("1.0.2"), func(o *appimage.BuildOptions) { o.Project = "other" }))
	ask(fleet.Query{}, "", fleet.ErrInvalid, "project", "bms, other")
	ask(fleet.Query{Project: "other"}, "1.0.2", nil)

	withdrawn := s.publish(t, build(t, version("1.0.3"), func(o *appimage.BuildOptions) { o.Project = "other" }))
	if err := s.Withdraw(t.Context(), anna, withdrawn.SHA256); err != nil {
		t.Fatal(err)
	}
	ask(fleet.Query{Project: "other"}, "", fleet.ErrNotFound)
	if _, err := s.SetChannel(t.Context(), anna, "other", "", "stable", "1.0.3"); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("channel set to a withdrawn release: %v", err)
	}
	if _, err := s.SetChannel(t.Context(), anna, "other", "", "stable", "1.0.2"); err != nil {
		t.Error(err)
	}
	ask(fleet.Query{Project: "other"}, "1.0.2", nil)
	if _, err := s.SetChannel(t.Context(), anna, "", "", "stable", "7.0.0"); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("channel set to no release: %v", err)
	}

	d := newShop(t, fleet.Config{DefaultProject: "bms"})
	d.publish(t, build(t))
	d.publish(t, build(t, func(o *appimage.BuildOptions) { o.Project = "other" }))
	if o, err := d.Offer(t.Context(), fleet.Query{}); err != nil || o.Release.Project != "bms" {
		t.Errorf("offered %q (%v), want the default project", o.Release.Project, err)
	}
}

func TestOrderMakesRowsBeforeItReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t, fleet.Config{Expiry: time.Hour})
		stop := start(t, s.Fleet, newOutbox())
		defer stop()
		synctest.Wait()
		for _, id := range []string{"d1", "d2", "gone"} {
			hear(t, s.Fleet, id, status("b", 1, protocol.PhaseIdle))
		}
		if err := s.Revoke(t.Context(), anna, "gone"); err != nil {
			t.Fatal(err)
		}
		first := order(t, s.Fleet, "", `{"action":"update","force":true}`)
		if len(first.ID) != 16 || !first.ExpiresAt.Equal(time.Now().Add(time.Hour).Truncate(time.Second)) || !first.Force {
			t.Errorf("command went on as %+v", first)
		}
		for _, id := range []string{"d1", "d2"} {
			if a := newest(t, s.Fleet, id); a.State != fleet.AttemptOpen || a.CommandID != first.ID || a.CreatedBy != "anna" {
				t.Errorf("%s: %+v", id, a)
			}
		}
		if list, err := s.Attempts(t.Context(), "gone", 0); err != nil || len(list) != 0 {
			t.Errorf("a revoked device has %d attempts (%v)", len(list), err)
		}

		time.Sleep(time.Second)
		second := order(t, s.Fleet, "d1", `{"action":"update","id":"two","expires_at":"2039-01-01T00:00:00Z"}`)
		if second.ID != "two" || second.ExpiresAt.Year() != 2039 {
			t.Errorf("command went on as %+v", second)
		}
		list, err := s.Attempts(t.Context(), "d1", 0)
		if err != nil || len(list) != 2 || list[0].State != fleet.AttemptOpen || list[1].State != fleet.AttemptSuperseded || list[1].EndedAt.IsZero() {
			t.Errorf("attempts %+v (%v)", list, err)
		}
		if a := newest(t, s.Fleet, "d2"); a.State != fleet.AttemptOpen {
			t.Errorf("a command to one device changed another's attempt: %+v", a)
		}

		// The same command once more is the same command.
		order(t, s.Fleet, "d1", `{"action":"update","id":"two","expires_at":"2039-01-01T00:00:00Z"}`)
		if again, err := s.Attempts(t.Context(), "d1", 0); err != nil || len(again) != 2 || again[0] != list[0] {
			t.Errorf("delivered twice: %+v (%v)", again, err)
		}
		for _, text := range []string{`{"action":"check"}`, `{"action":"status"}`} {
			if c := order(t, s.Fleet, "", text); c.ID == "" || !c.ExpiresAt.IsZero() {
				t.Errorf("%s went on as %+v", text, c)
			}
		}
		if again, err := s.Attempts(t.Context(), "d1", 0); err != nil || len(again) != 2 {
			t.Errorf("check and status left %d attempts (%v), want 2", len(again), err)
		}
	})
}

// TestCommandThatIsTakenBackStaysAway: removing the retained message is how MQTT takes a command back, and the server
// must not bring it again. What a device has begun goes on and is recorded.
func TestCommandThatIsTakenBackStaysAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, out := newShop(t, fleet.Config{}), newOutbox()
		stop := start(t, s.Fleet, out)
		defer stop()
		synctest.Wait()
		for _, id := range []string{"waits", "works", "other"} {
			hear(t, s.Fleet, id, status("b", 1, protocol.PhaseIdle))
		}
		c := order(t, s.Fleet, "", `{"action":"update"}`)
		hear(t, s.Fleet, "works", status("b", 2, protocol.PhaseDownloading), func(s *protocol.Status) { s.CommandID = c.ID })
		for _, id := range []string{"waits", "works", "unknown"} {
			if b, err := s.Order(t.Context(), anna, id, true, nil); err != nil || len(b) != 0 {
				t.Errorf("%s: %q, %v", id, b, err)
			}
		}
		if a := newest(t, s.Fleet, "waits"); a.State != fleet.AttemptSuperseded || a.Message != "taken back by anna" {
			t.Errorf("taken back: %s, %q", a.State, a.Message)
		}
		for _, id := range []string{"works", "other"} {
			if a := newest(t, s.Fleet, id); a.State != fleet.AttemptOpen {
				t.Errorf("%s: %s", id, a.State)
			}
		}
		time.Sleep(10 * time.Minute)
		if _, _, sends := out.get("waits"); sends != 0 {
			t.Errorf("sent %d times after it was taken back", sends)
		}
		if _, err := s.Order(t.Context(), fleet.Identity{Name: "waits", Role: fleet.RoleDevice}, "other", true, nil); !errors.Is(err, fleet.ErrDenied) {
			t.Errorf("a device takes back another's command: %v", err)
		}
	})
}

func TestOrderRefusals(t *testing.T) {
	f := newFleet(t, fleet.Config{})
	if _, err := f.Enroll(t.Context(), anna, "d1"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Enroll(t.Context(), anna, "gone"); err != nil {
		t.Fatal(err)
	}
	if err := f.Revoke(t.Context(), anna, "gone"); err != nil {
		t.Fatal(err)
	}
	full := fmt.Sprintf(`{"action":"update","id":%q,"version":%q}`, strings.Repeat("\"", 64), strings.Repeat("<", 64))
	for _, c := range []struct {
		name, device, text string
		by                 fleet.Identity
		retained           bool
		want               error
	}{
		{name: "a device", text: `{"action":"update"}`, by: fleet.Identity{Name: "d1", Role: fleet.RoleDevice}, want: fleet.ErrDenied},
		{name: "no JSON", text: `update`, want: fleet.ErrInvalid},
		{name: "unknown action", text: `{"action":"explode"}`, want: fleet.ErrInvalid},
		{name: "wrong type", text: `{"action":"update","force":"yes"}`, want: fleet.ErrInvalid},
		{name: "oversize", text: `{"action":"update","x":"` + strings.Repeat("x", 512) + `"}`, want: fleet.ErrInvalid},
		{name: "oversize once it is spelled out", device: "d1", text: full, want: fleet.ErrInvalid},
		{name: "expired", text: `{"action":"update","expires_at":"2001-01-01T00:00:00Z"}`, want: fleet.ErrInvalid},
		{name: "empty", text: ``, want: fleet.ErrInvalid},
		{name: "unknown device", device: "d9", text: `{"action":"update"}`, want: fleet.ErrNotFound},
		{name: "revoked device", device: "gone", text: `{"action":"update"}`, want: fleet.ErrRefused},
		{name: "retained rollback to nowhere", text: `{"action":"rollback"}`, retained: true, want: fleet.ErrRefused},
	} {
		if c.by.Name == "" {
			c.by = anna
		}
		if _, err := f.Order(t.Context(), c.by, c.device, c.retained, []byte(c.text)); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if list, err := f.Attempts(t.Context(), "d1", 0); err != nil || len(list) != 0 {
			t.Fatalf("%s: left %d attempts (%v)", c.name, len(list), err)
		}
	}
	if b, err := f.Order(t.Context(), anna, "d1", true, nil); err != nil || len(b) != 0 {
		t.Errorf("taking a retained command back: %q, %v", b, err)
	}
}

func TestOpenAttemptIsSentUntilTheDeviceTakesItUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, out := newShop(t, fleet.Config{}), newOutbox()
		stop := start(t, s.Fleet, out)
		defer stop()
		synctest.Wait()
		for _, id := range []string{"here", "away", "quick"} {
			hear(t, s.Fleet, id, status("b", 1, protocol.PhaseIdle))
		}
		hear(t, s.Fleet, "away", protocol.Status{Phase: protocol.PhaseOffline})
		time.Sleep(time.Hour)
		c := order(t, s.Fleet, "", `{"action":"update"}`)
		hear(t, s.Fleet, "quick", status("b", 2, protocol.PhaseChecking), func(s *protocol.Status) { s.CommandID = c.ID })
		hear(t, s.Fleet, "quick", status("b", 3, protocol.PhaseDownloading), func(s *protocol.Status) { s.CommandID = c.ID })
		synctest.Wait()
		count := func(device string, want int) {
			t.Helper()
			if cmd, _, n := out.get(device); n != want || n > 0 && (cmd.ID != c.ID || cmd.Action != protocol.ActionUpdate || cmd.ExpiresAt.IsZero()) {
				t.Errorf("%s: sent %d times (%+v), want %d", device, n, cmd, want)
			}
		}
		count("away", 1) // waits for it on its topic
		count("here", 0) // is given time to answer
		count("quick", 0)
		time.Sleep(50 * time.Second)
		count("here", 1)
		count("away", 1)
		time.Sleep(10 * time.Minute)
		count("away", 1)
		count("quick", 0)
		if _, _, n := out.get("here"); n < 4 || n > 6 {
			t.Errorf("sent %d times in ten minutes, want it to slow down", n)
		}

		// The end takes the command back.
		hear(t, s.Fleet, "here", status("b", 2, protocol.PhaseRefused), func(s *protocol.Status) { s.CommandID, s.Reason = c.ID, protocol.ReasonTooBig })
		synctest.Wait()
		if _, retained, _ := out.get("here"); retained {
			t.Error("the command of an ended attempt is still retained")
		}

		// A later command replaces what is retained.
		time.Sleep(time.Second)
		two := order(t, s.Fleet, "away", `{"action":"update","force":true}`)
		synctest.Wait()
		if cmd, _, _ := out.get("away"); cmd.ID != two.ID {
			t.Errorf("retained is %+v, want the later command", cmd)
		}
	})
}

func TestPowerCutInADownloadIsOrderedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, out := newShop(t, fleet.Config{}), newOutbox()
		stop := start(t, s.Fleet, out)
		defer stop()
		synctest.Wait()
		hear(t, s.Fleet, "d1", status("b1", 1, protocol.PhaseIdle))
		c := order(t, s.Fleet, "d1", `{"action":"update"}`)
		hear(t, s.Fleet, "d1", status("b1", 2, protocol.PhaseDownloading), func(s *protocol.Status) { s.CommandID = c.ID })
		time.Sleep(time.Minute)
		hear(t, s.Fleet, "d1", status("b2", 1, protocol.PhaseIdle)) // the command was not retained, and is forgotten
		time.Sleep(time.Minute)
		if cmd, _, _ := out.get("d1"); cmd.ID != c.ID {
			t.Errorf("retained is %+v, want the open command", cmd)
		}
	})
}

func TestRestartSendsEverythingOpenAndTakesBackTheRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := store.NewMemory()
		f := newFleet(t, fleet.Config{Store: memory})
		stop := start(t, f, newOutbox())
		synctest.Wait()
		for _, id := range []string{"d1", "d2", "d3"} {
			hear(t, f, id, status("b", 1, protocol.PhaseIdle))
		}
		c := order(t, f, "", `{"action":"update"}`)
		hear(t, f, "d2", status("b", 2, protocol.PhaseDownloading), func(s *protocol.Status) { s.CommandID = c.ID })
		hear(t, f, "d3", status("b", 2, protocol.PhaseFailed), func(s *protocol.Status) { s.CommandID = c.ID })
		stop()

		out := newOutbox()
		out.retained["d3"] = c // the process ended between the row and the word
		f = newFleet(t, fleet.Config{Store: memory})
		stop = start(t, f, out)
		defer stop()
		synctest.Wait()
		for _, id := range []string{"d1", "d2"} {
			if cmd, _, n := out.get(id); n != 1 || cmd.ID != c.ID {
				t.Errorf("%s: sent %d times (%+v)", id, n, cmd)
			}
			if d, err := f.Device(t.Context(), id); err != nil || d.Online {
				t.Errorf("%s is still shown as connected (%v)", id, err)
			}
		}
		if _, retained, _ := out.get("d3"); retained {
			t.Error("the command of an attempt that had ended is still retained")
		}
	})
}

func TestRollbackIsRetainedOnlyWithItsVersion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, out := newShop(t, fleet.Config{}), newOutbox()
		stop := start(t, s.Fleet, out)
		defer stop()
		synctest.Wait()
		hear(t, s.Fleet, "knows", status("b1", 1, protocol.PhaseIdle))
		hear(t, s.Fleet, "knows", status("b2", 1, protocol.PhaseIdle), func(s *protocol.Status) { s.CurrentVersion = "1.1.0" })
		hear(t, s.Fleet, "fresh", status("b1", 1, protocol.PhaseIdle))
		order(t, s.Fleet, "fresh", `{"action":"update"}`)
		for _, id := range []string{"knows", "fresh"} {
			hear(t, s.Fleet, id, protocol.Status{Phase: protocol.PhaseOffline})
		}
		time.Sleep(time.Minute)
		if _, retained, _ := out.get("fresh"); !retained {
			t.Fatal("the update is not retained, so the test cannot see it go")
		}
		order(t, s.Fleet, "", `{"action":"rollback"}`)
		time.Sleep(time.Minute)
		if cmd, _, _ := out.get("knows"); cmd.Action != protocol.ActionRollback || cmd.Version != "1.0.0" {
			t.Errorf("retained is %+v, want a rollback to 1.0.0", cmd)
		}
		if cmd, retained, _ := out.get("fresh"); retained {
			t.Errorf("retained is %+v, want nothing: it would act at every boot, or is superseded", cmd)
		}
		if c := order(t, s.Fleet, "knows", `{"action":"rollback"}`); c.Version != "1.0.0" {
			t.Errorf("the command to one device went on as %+v", c)
		}
	})
}

func TestSilenceAndExpiryEndAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, out := newShop(t, fleet.Config{Silence: 10 * time.Minute, Expiry: time.Hour}), newOutbox()
		stop := start(t, s.Fleet, out)
		defer stop()
		synctest.Wait()
		for _, id := range []string{"silent", "waiting", "away", "alive"} {
			hear(t, s.Fleet, id, status("b", 1, protocol.PhaseIdle))
		}
		c := order(t, s.Fleet, "", `{"action":"update"}`)
		byID := func(s *protocol.Status) { s.CommandID = c.ID }
		hear(t, s.Fleet, "silent", status("b", 2, protocol.PhaseDownloading), byID)
		hear(t, s.Fleet, "waiting", status("b", 2, protocol.PhaseWaiting), byID)
		hear(t, s.Fleet, "alive", status("b", 2, protocol.PhaseDownloading), byID)
		state := func(device string, want fleet.AttemptState, reason protocol.Reason) {
			t.Helper()
			if a := newest(t, s.Fleet, device); a.State != want || a.Reason != reason {
				t.Errorf("%s: %s for %q, want %s for %q", device, a.State, a.Reason, want, reason)
			}
		}
		for i := range 12 {
			time.Sleep(time.Minute)
			hear(t, s.Fleet, "alive", status("b", uint64(3+i), protocol.PhaseDownloading), byID)
		}
		state("silent", fleet.AttemptFailed, protocol.ReasonSilent)
		state("waiting", fleet.AttemptOpen, "")
		state("away", fleet.AttemptOpen, "")
		state("alive", fleet.AttemptOpen, "")
		synctest.Wait()
		if _, retained, _ := out.get("silent"); retained {
			t.Error("the command of a failed attempt is still retained")
		}
		for i := range 50 {
			time.Sleep(time.Minute)
			hear(t, s.Fleet, "alive", status("b", uint64(20+i), protocol.PhaseDownloading), byID)
		}
		state("waiting", fleet.AttemptExpired, protocol.ReasonExpired)
		state("away", fleet.AttemptExpired, protocol.ReasonExpired)
		state("alive", fleet.AttemptOpen, "") // it is at work
	})
}

func TestBrokenBrokerIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, out := newShop(t, fleet.Config{}), newOutbox()
		stop := start(t, s.Fleet, out)
		defer stop()
		synctest.Wait()
		hear(t, s.Fleet, "d1", status("b", 1, protocol.PhaseIdle))
		hear(t, s.Fleet, "d1", protocol.Status{Phase: protocol.PhaseOffline})
		out.setBroken(errors.New("broker is down"))
		c := order(t, s.Fleet, "d1", `{"action":"update"}`)
		time.Sleep(time.Minute)
		out.setBroken(nil)
		time.Sleep(time.Minute)
		if cmd, _, _ := out.get("d1"); cmd.ID != c.ID {
			t.Errorf("retained is %+v, want the open command", cmd)
		}
		out.setBroken(errors.New("broker is down"))
		hear(t, s.Fleet, "d1", status("b", 2, protocol.PhaseFailed), func(s *protocol.Status) { s.CommandID = c.ID })
		time.Sleep(time.Minute)
		out.setBroken(nil)
		time.Sleep(time.Minute)
		if _, retained, _ := out.get("d1"); retained {
			t.Error("the command of an ended attempt is still retained")
		}
	})
}

func TestTokensOpenNothingButTheirOwn(t *testing.T) {
	f := newFleet(t, fleet.Config{})
	first, err := f.Enroll(t.Context(), anna, "d1")
	if err != nil {
		t.Fatal(err)
	}
	second, err := f.Enroll(t.Context(), anna, "d1")
	if err != nil {
		t.Fatal(err)
	}
	other, err := f.Enroll(t.Context(), anna, "d2")
	if err != nil {
		t.Fatal(err)
	}
	boss, err := f.NewOperator(t.Context(), "boss")
	if err != nil {
		t.Fatal(err)
	}
	d, err := f.Device(t.Context(), "d1")
	if err != nil || len(second) != 43 || strings.Contains(fmt.Sprintf("%+v", d), second) {
		t.Errorf("the row of a device holds its token: %+v (%v)", d, err)
	}
	for _, c := range []struct {
		name, secret string
		role         fleet.Role
	}{
		{"d1", second, fleet.RoleDevice}, {"boss", boss, fleet.RoleOperator},
		{"d1", first, ""}, {"d1", other, ""}, {"d1", boss, ""}, {"boss", second, ""}, {"d1", "", ""}, {"", second, ""},
		{"nobody", "", ""}, {"d1", d.TokenSHA256, ""}, {"D1", second, ""},
	} {
		id, err := f.Authenticate(t.Context(), c.name, c.secret)
		if c.role == "" && !errors.Is(err, fleet.ErrDenied) || c.role != "" && (err != nil || id != fleet.Identity{Name: c.name, Role: c.role}) {
			t.Errorf("%q: %+v (%v), want role %q", c.name, id, err, c.role)
		}
	}
	if id, err := f.OperatorByToken(t.Context(), boss); err != nil || id.Name != "boss" {
		t.Errorf("%+v, %v", id, err)
	}
	if _, err := f.OperatorByToken(t.Context(), second); !errors.Is(err, fleet.ErrDenied) {
		t.Errorf("a device's token is an operator's: %v", err)
	}
	if _, err := f.NewOperator(t.Context(), "d1"); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("an operator with a device's name: %v", err)
	}
	if _, err := f.Enroll(t.Context(), anna, "boss"); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("a device with an operator's name: %v", err)
	}
	// Behind a broker of another make anything can speak as a device of that name, and must not keep the operator out.
	if err := f.Connected(t.Context(), "boss"); err != nil {
		t.Fatal(err)
	}
	if again, err := f.NewOperator(t.Context(), "boss"); err != nil || again == boss {
		t.Errorf("a new token for an operator: %v", err)
	}
	if err := f.Revoke(t.Context(), anna, "d1"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Authenticate(t.Context(), "d1", second); !errors.Is(err, fleet.ErrDenied) {
		t.Errorf("a revoked device logs in: %v", err)
	}
	for _, id := range []string{"", "a/b", "a+b", "#", "$SYS", "ü", "a\x00b", strings.Repeat("x", 65)} {
		if _, err := f.Enroll(t.Context(), anna, id); !errors.Is(err, fleet.ErrInvalid) {
			t.Errorf("enrolled %q: %v", id, err)
		}
	}
	if _, err := f.Enroll(t.Context(), fleet.Identity{Name: "d2", Role: fleet.RoleDevice}, "d3"); !errors.Is(err, fleet.ErrDenied) {
		t.Errorf("a device enrolls another: %v", err)
	}
}

func BenchmarkOffer(b *testing.B) {
	db, err := store.OpenSQLite(b.Context(), b.TempDir()+"/db")
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	f := newFleet(b, fleet.Config{Store: db})
	err = db.Update(b.Context(), func(tx fleet.Tx) error {
		for n := range 1000 {
			r := fleet.Release{SHA256: fmt.Sprintf("%064x", n), Project: "bms", Chip: "esp32c3", Version: fmt.Sprintf("1.%d.0", n)}
			if n > 0 {
				r.MinVersion = fmt.Sprintf("1.%d.0", n-1)
			}
			if err := tx.PutRelease(r); err != nil {
				return err
			}
		}
		st := status("b", 1, protocol.PhaseIdle)
		st.CurrentVersion = "1.500.0"
		return errors.Join(
			tx.PutChannel(fleet.Channel{Project: "bms", Chip: "esp32c3", Name: "stable", SHA256: fmt.Sprintf("%064x", 999)}),
			tx.PutDevice(fleet.Device{ID: "far", Status: st}),
			tx.PutDevice(fleet.Device{ID: "near", Status: status("b", 1, protocol.PhaseIdle)}))
	})
	if err != nil {
		b.Fatal(err)
	}
	for name, q := range map[string]fleet.Query{"nobody": {}, "device": {Device: "near"}, "device-on-the-way": {Device: "far"}} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := f.Offer(b.Context(), q); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
