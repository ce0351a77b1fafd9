package server

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"slices"
	"testing"
	"time"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

// BenchmarkDashboardOf100000 asks for pages as a browser does, over TLS, one after another. The first page counts the whole
// fleet, at most every two seconds.
func BenchmarkDashboardOf100000(b *testing.B) {
	s, _ := run(b, testConfig(b))
	fill(b, s, 100_000)
	hc := httpClient(b, s.CAPEM())
	var err error
	if hc.Jar, err = cookiejar.New(nil); err != nil {
		b.Fatal(err)
	}
	resp, err := hc.PostForm(s.URL()+"/login", url.Values{"name": {operatorName}, "password": {s.Access().Token}, "next": {"/account"}})
	if err != nil {
		b.Fatal(err)
	}
	resp.Body.Close()
	for _, c := range []struct{ name, path string }{
		{"home", "/"}, {"all devices", "/devices"}, {"by last seen", "/devices?sort=seen&order=down"}, {"one version", "/devices?version=1.0.2"},
		{"stuck", "/devices?state=stuck"}, {"failed", "/devices?state=failed"}, {"part of an id", "/devices?q=9999"}, {"one device", "/devices/bms-050000"},
	} {
		b.Run(c.name, func(b *testing.B) {
			var took []time.Duration
			for b.Loop() {
				began := time.Now()
				resp, err := hc.Get(s.URL() + c.path)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK || resp.Request.URL.Path == "/login" {
					b.Fatal(resp.StatusCode, resp.Request.URL, err)
				}
				resp.Body.Close()
				took = append(took, time.Since(began))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
		})
	}
}

// fill puts n devices, most of them well.
func fill(b *testing.B, s *Server, n int) {
	b.Helper()
	r := rand.New(rand.NewPCG(7, 7))
	now := time.Now()
	const group = 5_000
	for from := 0; from < n; from += group {
		err := s.store.Update(b.Context(), func(tx fleet.Tx) error {
			var errs []error
			for i := from; i < from+group; i++ {
				d := fleet.Device{ID: fmt.Sprintf("bms-%06d", i), TokenSHA256: "x", EnrolledAt: now, Online: true, FirstSeen: now, LastSeen: now.Add(-time.Duration(r.IntN(600)) * time.Second / 2),
					PhaseSince: now, Version: "1.0.1", Boot: "b", Seq: 1, Status: protocol.Status{Phase: protocol.PhaseIdle, CurrentVersion: "1.0.1", Project: "bms", Chip: "esp32",
						Slot: "ota_0", SlotSize: 1536 << 10, RollbackProtected: true, Signed: true, FreeHeap: 180_000, Battery: &protocol.Battery{SOCPct: 80}}}
				a := fleet.Attempt{ID: fmt.Sprint(i), CommandID: "c", DeviceID: d.ID, Action: protocol.ActionUpdate, Version: "1.0.1", State: fleet.AttemptSucceeded, CreatedAt: now, EndedAt: now}
				switch x := r.IntN(1000); {
				case x < 300:
					d.Version = "1.0.2"
				case x < 310:
					d.Status.Phase, d.LastSeen = protocol.PhaseDownloading, now.Add(-time.Hour)
				case x < 320:
					d.Status.Phase, d.Status.Reason, a.State, a.Reason = protocol.PhaseRolledBack, protocol.ReasonCrash, fleet.AttemptRolledBack, protocol.ReasonCrash
				}
				errs = append(errs, tx.PutDevice(d), tx.PutAttempt(a))
			}
			return errors.Join(errs...)
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}
