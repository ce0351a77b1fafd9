package metrics

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

func scrape(t *testing.T, m *Metrics, s Sources) string {
	t.Helper()
	if s.Census == nil {
		s.Census = func(context.Context) (*fleet.Census, error) { return &fleet.Census{}, nil }
	}
	s.Log = slog.New(slog.DiscardHandler)
	w := httptest.NewRecorder()
	m.Handler(s).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func whole() Sources {
	return Sources{
		Census: func(context.Context) (*fleet.Census, error) {
			return &fleet.Census{Devices: 7, Stuck: 2, OpenTotal: 3, Versions: []fleet.VersionCount{{Project: "bms", Chip: "esp32", Version: "1.0.0", Released: true, Count: 5}}}, nil
		},
		Rollouts: func(context.Context) ([]fleet.RolloutView, error) {
			view := func(s fleet.RolloutState, f fleet.Figures) fleet.RolloutView {
				return fleet.RolloutView{Rollout: fleet.Rollout{State: s}, Figures: f}
			}
			waves := view(fleet.RolloutRunning, fleet.Figures{Pending: 3, Silent: 1, Dark: 2})
			waves.Wave = 1
			for _, f := range []fleet.Figures{{Succeeded: 1}, {Silent: 1, Pending: 1}, {Pending: 2}} {
				waves.Waves = append(waves.Waves, fleet.WaveView{Figures: f})
			}
			return []fleet.RolloutView{waves, view(fleet.RolloutRunning, fleet.Figures{Pending: 4}),
				view(fleet.RolloutHalted, fleet.Figures{Pending: 100}), view("odd", fleet.Figures{Pending: 100})}, nil
		},
		Outbox:      func(context.Context) (fleet.Outbox, error) { return fleet.Outbox{Waiting: 12, Failing: 1}, nil },
		Broker:      func() Broker { return Broker{Sessions: 4, Refused: 9} },
		Certificate: func() time.Time { return time.Now().Add(240*time.Hour + time.Minute) },
		StorageFree: func() int64 { return 1 << 30 },
		Ready:       func(context.Context) error { return nil },
		Version:     "1.2.3",
	}
}

func has(t *testing.T, text string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if !strings.Contains(text, "\n"+line) {
			t.Errorf("no %q in\n%s", line, regexp.MustCompile(`(?m)^(#|go_|process_).*\n`).ReplaceAllString(text, ""))
		}
	}
}

func TestWhatHappenedIsCounted(t *testing.T) {
	m := New()
	now := time.Now()
	m.Ended(fleet.Attempt{Action: protocol.ActionUpdate, State: fleet.AttemptSucceeded, Version: "1.1.0", CreatedAt: now.Add(-45 * time.Second), EndedAt: now})
	m.Ended(fleet.Attempt{Action: protocol.ActionUpdate, State: fleet.AttemptRolledBack, Reason: protocol.ReasonCrash})
	m.Ended(fleet.Attempt{Action: protocol.ActionUpdate, State: fleet.AttemptFailed, Reason: protocol.ReasonSilent, Version: "1.1.0"})
	m.Ended(fleet.Attempt{Action: protocol.ActionRollback, State: fleet.AttemptSucceeded})
	rolled := protocol.Status{Phase: protocol.PhaseRolledBack, Reason: protocol.ReasonCrash}
	m.Folded(rolled, protocol.PhaseTrial, fleet.Effects{Device: true})
	m.Folded(rolled, protocol.PhaseRolledBack, fleet.Effects{Device: true}) // said again, it is one rollback
	m.Folded(rolled, protocol.PhaseTrial, fleet.Effects{Dropped: "late"})
	m.Folded(protocol.Status{Phase: protocol.PhaseDownloading, MinFreeHeap: 30 << 10, LargestFreeBlock: 14 << 10}, protocol.PhaseChecking, fleet.Effects{Device: true})
	m.Folded(protocol.Status{Phase: protocol.PhaseIdle, MinFreeHeap: 200 << 10, LargestFreeBlock: 100 << 10}, protocol.PhaseConfirmed, fleet.Effects{Device: true})
	m.Request(Request{Route: "/firmware/image", Method: "GET", Status: 200, Bytes: 1 << 20, Took: 4 * time.Second, Image: true})
	m.Request(Request{Route: "/firmware/image", Method: "GET", Status: 206, Bytes: 1 << 10, Took: time.Second, Image: true, Cut: true})
	m.Request(Request{Route: "/firmware/image", Method: "GET", Status: 404, Image: true})
	m.Request(Request{Route: "/events", Method: "GET", Status: 200, Took: time.Hour})
	m.Request(Request{Route: "/login", Method: "BREW", Status: 401})
	has(t, scrape(t, m, whole()),
		`bmsota_updates_total{result="succeeded"} 1`, `bmsota_updates_total{result="rolled_back"} 1`, `bmsota_updates_total{result="failed"} 1`, `bmsota_updates_total{result="expired"} 0`,
		`bmsota_attempts_total{action="update",reason="none",result="succeeded",version="1.1.0"} 1`,
		`bmsota_attempts_total{action="update",reason="crash",result="rolled_back",version="offered"} 1`,
		`bmsota_attempts_total{action="update",reason="silent",result="failed",version="1.1.0"} 1`,
		`bmsota_attempts_total{action="rollback",reason="none",result="succeeded",version="offered"} 1`,
		`bmsota_rollbacks_total{reason="crash"} 1`, `bmsota_rollbacks_total{reason="watchdog"} 0`,
		`bmsota_update_duration_seconds_bucket{le="30"} 0`, `bmsota_update_duration_seconds_bucket{le="60"} 1`,
		`bmsota_update_min_free_heap_bytes_count 1`, `bmsota_update_min_free_heap_bytes_bucket{le="32768"} 1`, `bmsota_update_largest_free_block_bytes_bucket{le="16384"} 1`,
		`bmsota_statuses_total{result="taken"} 4`, `bmsota_statuses_total{result="late"} 1`,
		`bmsota_downloads_total{result="complete"} 1`, `bmsota_downloads_total{result="cut"} 1`, `bmsota_download_bytes_total 1.0496e+06`,
		`bmsota_download_speed_bytes_per_second_count 1`, `bmsota_download_speed_bytes_per_second_bucket{le="262144"} 1`,
		`bmsota_http_requests_total{code="401",method="other",route="/login"} 1`, `bmsota_http_requests_total{code="404",method="GET",route="/firmware/image"} 1`,
		`bmsota_http_request_duration_seconds_count{route="/firmware/image"} 3`,
		`bmsota_devices{state="all"} 7`, `bmsota_devices{state="stuck"} 2`, `bmsota_attempts_open 3`,
		`bmsota_devices_running{chip="esp32",project="bms",released="true",version="1.0.0"} 5`, `bmsota_devices_running{chip="other",project="other",released="other",version="other"} 0`,
		`bmsota_rollouts{state="running"} 2`, `bmsota_rollouts{state="halted"} 1`, `bmsota_rollouts{state="paused"} 0`, `bmsota_rollout_members{state="pending"} 7`,
		`bmsota_rollout_members{state="silent"} 1`, `bmsota_rollout_members{state="dark"} 2`, `bmsota_rollout_members{state="succeeded"} 0`,
		`bmsota_rollouts_stalled 1`, `bmsota_rollout_wave_members{state="succeeded",wave="past"} 1`, `bmsota_rollout_wave_members{state="silent",wave="present"} 1`,
		`bmsota_rollout_wave_members{state="pending",wave="to_come"} 2`, `bmsota_rollout_wave_members{state="open",wave="to_come"} 0`,
		`bmsota_webhook_events_waiting 12`, `bmsota_webhooks_failing 1`, `bmsota_mqtt_sessions 4`, `bmsota_mqtt_logins_refused_total 9`, `bmsota_certificate_days_left 10.0`, `bmsota_storage_free_bytes 1.073741824e+09`,
		`bmsota_ready 1`, `bmsota_build_info{version="1.2.3"} 1`, `bmsota_census_failed 0`, `process_cpu_seconds_total `, `go_goroutines `)
}

func TestAnEventStreamIsNoSlowAnswer(t *testing.T) {
	m := New()
	m.Request(Request{Route: "/events", Method: "GET", Status: 200, Took: time.Hour})
	if text := scrape(t, m, whole()); strings.Contains(text, `duration_seconds_count{route="/events"}`) {
		t.Error("an hour's stream stands among the latencies")
	}
}

// A device may call its version and its reasons what it likes; a series for each would fill the memory.
func TestLabelsAreFewWhateverDevicesSay(t *testing.T) {
	m := New()
	census := &fleet.Census{}
	for i := range 5000 {
		name := fmt.Sprintf("9.9.%d", i)
		m.Ended(fleet.Attempt{Action: protocol.ActionUpdate, State: fleet.AttemptFailed, Version: name, Reason: protocol.Reason(name)})
		m.Folded(protocol.Status{Phase: protocol.PhaseRolledBack, Reason: protocol.Reason(name)}, "", fleet.Effects{})
		m.Request(Request{Route: "none", Method: name, Status: 200 + i%400})
		census.Versions = append(census.Versions, fleet.VersionCount{Version: name, Count: 1})
	}
	s := whole()
	s.Census = func(context.Context) (*fleet.Census, error) { return census, nil }
	text := scrape(t, m, s)
	if n := strings.Count(text, "\nbmsota_"); n > 300 {
		t.Errorf("%d series", n)
	}
	has(t, text, `bmsota_devices_running{chip="other",project="other",released="other",version="other"} 4980`,
		`bmsota_attempts_total{action="update",reason="other",result="failed",version="other"} 4980`)
}

func TestAScrapeGoesOnWithoutACensus(t *testing.T) {
	s := whole()
	s.Census = func(context.Context) (*fleet.Census, error) { return nil, errors.New("disk") }
	s.Rollouts = func(context.Context) ([]fleet.RolloutView, error) { return nil, errors.New("disk") }
	s.Outbox = func(context.Context) (fleet.Outbox, error) { return fleet.Outbox{}, errors.New("disk") }
	s.Ready = func(context.Context) error { return errors.New("disk") }
	text := scrape(t, New(), s)
	has(t, text, "bmsota_census_failed 1", "bmsota_ready 0")
	if strings.Contains(text, "bmsota_devices{") {
		t.Error("devices are counted that were not asked for")
	}
}

const folder = "../../../docs/monitoring"

var metricName = regexp.MustCompile(`\b(bmsota|process|go)_[a-z_]+\b`)

// Rules, dashboard and manual speak of figures that exist, and the manual of all of them.
func TestMonitoringFilesNameWhatIsExported(t *testing.T) {
	exported := make(map[string]bool)
	for line := range strings.Lines(scrape(t, New(), whole())) {
		if name, ok := strings.CutPrefix(line, "# TYPE "); ok {
			exported[strings.Fields(name)[0]] = true
		}
	}
	// Vectors that nothing has been counted in yet are not in a scrape.
	for _, name := range []string{"bmsota_attempts_total", "bmsota_statuses_total", "bmsota_http_requests_total", "bmsota_http_request_duration_seconds"} {
		exported[name] = true
	}
	base := func(name string) string {
		for _, suffix := range []string{"_bucket", "_count", "_sum"} {
			name = strings.TrimSuffix(name, suffix)
		}
		return name
	}
	manual := make(map[string]bool)
	for _, file := range []string{"alerts.yaml", "alerts_test.yaml", "grafana.json", "../monitoring.md"} {
		b, err := os.ReadFile(filepath.Join(folder, file))
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(file, ".json") && !json.Valid(b) {
			t.Errorf("%s is no JSON", file)
		}
		for _, name := range metricName.FindAllString(string(b), -1) {
			if file == "../monitoring.md" {
				manual[base(name)] = true
			}
			if !exported[base(name)] {
				t.Errorf("%s speaks of %s, which is not exported", file, name)
			}
		}
	}
	for name := range exported {
		if strings.HasPrefix(name, "bmsota_") && !manual[name] {
			t.Errorf("docs/monitoring.md does not name %s", name)
		}
	}
}

func TestAlertRulesAreRightAndDoWhatTheySay(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Fatal("promtool is missing: run e2e/deps.sh, or apt-get install prometheus")
	}
	for _, args := range [][]string{{"check", "rules", "alerts.yaml"}, {"test", "rules", "alerts_test.yaml"}} {
		cmd := exec.Command(promtool, args...)
		cmd.Dir = folder
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	// Every rule is tried out.
	rules, err := os.ReadFile(filepath.Join(folder, "alerts.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	tests, err := os.ReadFile(filepath.Join(folder, "alerts_test.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(string(rules), -1)
	for _, name := range names {
		if !strings.Contains(string(tests), "alertname: "+name[1]+"\n        exp_alerts") {
			t.Errorf("nothing shows that %s ever fires", name[1])
		}
	}
	if len(names) == 0 {
		t.Error("no rules were found")
	}
}
