package fleet_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/esp/appimage"
	"bmsota/manifest"
	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

// inChannels is a shop with 1.1.0 in stable and 1.2.0 in beta, which needs 1.1.0; d1 and d2 run 1.0.0.
func inChannels(t *testing.T) *shop {
	t.Helper()
	s := newShop(t, fleet.Config{})
	stop := start(t, s.Fleet, newOutbox())
	t.Cleanup(stop)
	synctest.Wait()
	s.publish(t, build(t, version("1.1.0")))
	b := build(t, version("1.2.0"))
	s.upload(t, b)
	req := s.signed(t, b, func(m *manifest.Manifest) { m.MinVersion = "1.1.0" })
	req.Channel = "beta"
	if _, _, err := s.Publish(t.Context(), anna, req); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"d1", "d2"} {
		hear(t, s.Fleet, id, status("b", 1, protocol.PhaseIdle), func(s *protocol.Status) { s.CurrentVersion = "1.0.0" })
	}
	return s
}

func (s *shop) offered(t *testing.T, q fleet.Query) string {
	t.Helper()
	o, err := s.Offer(t.Context(), q)
	if err != nil {
		t.Errorf("%+v: %v", q, err)
	}
	return o.Release.Version
}

// The plain path, an update that names no version, and the page of the device say one thing; a path that names a channel, and an
// ordered version, go before it; what must be passed through is passed through.
func TestADeviceIsOfferedWhatItsChannelPointsTo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := inChannels(t)
		runs := func(seq uint64, v string) {
			hear(t, s.Fleet, "d1", status("b", seq, protocol.PhaseIdle), func(s *protocol.Status) { s.CurrentVersion = v })
		}
		before := len(auditLog(t, s.store))
		d, err := s.SetDeviceChannel(t.Context(), anna, "d1", fleet.DefaultChannel)
		if rows := auditLog(t, s.store)[before:]; err != nil || len(rows) != 0 {
			t.Errorf("into the channel that it is in: %v, %v", rows, err)
		}
		d, err = s.SetDeviceChannel(t.Context(), anna, "d1", "beta")
		if err != nil || d.Channel != "beta" {
			t.Fatalf("%+v, %v", d, err)
		}
		if got := s.offered(t, fleet.Query{Device: "d1"}); got != "1.1.0" {
			t.Errorf("from 1.0.0 it is offered %s, want the step before 1.2.0", got)
		}
		runs(2, "1.1.0")
		if got := s.offered(t, fleet.Query{Device: "d1"}); got != "1.2.0" {
			t.Errorf("it is offered %s", got)
		}
		if got := s.offered(t, fleet.Query{Device: "d1", Project: "bms", Channel: "stable"}); got != "1.1.0" {
			t.Errorf("by a path that names stable it is offered %s", got)
		}
		if got := s.offered(t, fleet.Query{Device: "d2"}); got != "1.1.0" {
			t.Errorf("a device of no channel is offered %s", got)
		}
		if d, err = s.Device(t.Context(), "d1"); err != nil || d.Channel != "beta" {
			t.Errorf("after a status it is in %q (%v)", d.Channel, err)
		}
		if _, got, err := s.OffersFor(t.Context(), d); err != nil || got != "1.2.0" {
			t.Errorf("its page says %s (%v)", got, err)
		}
		order(t, s.Fleet, "d1", `{"action":"update"}`)
		beta := newest(t, s.Fleet, "d1").SHA256
		if r, err := s.Release(t.Context(), beta); err != nil || r.Version != "1.2.0" {
			t.Errorf("an update that names nothing wants %s (%v)", r.Version, err)
		}
		time.Sleep(time.Second)
		order(t, s.Fleet, "d1", `{"action":"update","version":"1.1.0"}`)
		if got := s.offered(t, fleet.Query{Device: "d1"}); got != "1.1.0" {
			t.Errorf("with 1.1.0 ordered it is offered %s", got)
		}
	})
}

func TestAnUpdateThatWaitsFollowsTheDeviceIntoItsChannel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := inChannels(t)
		hear(t, s.Fleet, "d1", status("b", 2, protocol.PhaseIdle), func(s *protocol.Status) { s.CurrentVersion = "1.1.0" })
		wants := func() string {
			r, err := s.Release(t.Context(), newest(t, s.Fleet, "d1").SHA256)
			if err != nil {
				t.Error(err)
			}
			return r.Version
		}
		put := func(channel string) {
			if _, err := s.SetDeviceChannel(t.Context(), anna, "d1", channel); err != nil {
				t.Error(err)
			}
		}
		order(t, s.Fleet, "d1", `{"action":"update","id":"c1"}`)
		if got := wants(); got != "1.1.0" {
			t.Errorf("wants %s", got)
		}
		put("beta")
		if got := wants(); got != "1.2.0" {
			t.Errorf("in beta it wants %s", got)
		}
		// What the device has taken up is what it is.
		hear(t, s.Fleet, "d1", status("b", 3, protocol.PhaseDownloading), func(s *protocol.Status) { s.CurrentVersion, s.CommandID = "1.1.0", "c1" })
		put("stable")
		if got := wants(); got != "1.2.0" {
			t.Errorf("under way it wants %s", got)
		}
		time.Sleep(time.Second)
		order(t, s.Fleet, "d1", `{"action":"update","version":"1.1.0"}`)
		put("beta")
		if got := wants(); got != "1.1.0" {
			t.Errorf("with a version ordered it wants %s", got)
		}
	})
}

func TestDevicesAreChosenByChannel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := inChannels(t)
		if _, err := s.SetDeviceChannel(t.Context(), anna, "d1", "beta"); err != nil {
			t.Fatal(err)
		}
		for channel, want := range map[string]string{"beta": "d1", "stable": "d2"} {
			d, err := s.PlanRollout(t.Context(), anna, fleet.RolloutRequest{Version: "1.1.0", Policy: fleet.Policy{Selector: fleet.Selector{Channel: channel}, AllowUnprotected: true}})
			if err != nil || len(d.Selection.Members) != 1 || d.Selection.Members[0].DeviceID != want {
				t.Errorf("a rollout to %s is for %+v (%v)", channel, d.Selection.Members, err)
			}
			page, n, err := s.DevicePage(t.Context(), fleet.DeviceQuery{Channel: channel, Limit: 10})
			if err != nil || n != 1 || page[0].ID != want {
				t.Errorf("a listing of %s is %+v (%v)", channel, page, err)
			}
		}
	})
}

// A channel that nothing is in would keep every update away and say nothing.
func TestADeviceIsPutIntoNoChannelThatOffersItNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := inChannels(t)
		b := build(t, version("2.0.0"), func(o *appimage.BuildOptions) { o.Chip = appimage.ESP32 })
		s.upload(t, b)
		req := s.signed(t, b)
		req.Channel = "other-chip"
		if _, _, err := s.Publish(t.Context(), anna, req); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			device, channel string
			want            error
		}{
			{"d1", "beat", fleet.ErrRefused}, {"d1", "other-chip", fleet.ErrRefused}, {"d1", "", fleet.ErrInvalid}, {"d1", "a/b", fleet.ErrInvalid},
			{"nobody", "beta", fleet.ErrNotFound}, {"d1", "stable", nil},
		} {
			if _, err := s.SetDeviceChannel(t.Context(), anna, c.device, c.channel); !errors.Is(err, c.want) {
				t.Errorf("%s into %q: %v, want %v", c.device, c.channel, err, c.want)
			}
		}
	})
}
