package web

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"bmsota/api"
	"bmsota/esp/appimage"
	"bmsota/protocol"
	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"
)

// realFleet is a fleet with rows and one release, 1.1.0, and boards that have said that they run 1.0.0.
func realFleet(t testing.TB, boards int) (*httptest.Server, *api.Client, *fleet.Fleet) {
	t.Helper()
	return fleetOn(t, store.NewMemory(), boards)
}

// fleetOn is realFleet with its rows in rows.
func fleetOn(t testing.TB, rows fleet.Store, boards int) (*httptest.Server, *api.Client, *fleet.Fleet) {
	t.Helper()
	blobs, err := store.OpenFolder(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	f, err := fleet.New(fleet.Config{Store: rows, Blobs: blobs, Log: quiet(), AllowUnsigned: true})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx, nowhere{}) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, blobs.Close()); err != nil {
			t.Error(err)
		}
	})
	token, err := f.NewOperator(ctx, "anna")
	if err != nil {
		t.Fatal(err)
	}
	anna := fleet.Identity{Name: "anna", Role: fleet.RoleOperator}
	image, err := appimage.Build(appimage.BuildOptions{Chip: appimage.ESP32, Project: "bms", Version: "1.1.0"})
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(image)
	digest := hex.EncodeToString(sum[:])
	if err := f.Upload(ctx, anna, digest, int64(len(image)), bytes.NewReader(image)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := f.Publish(ctx, anna, fleet.PublishRequest{SHA256: digest}); err != nil {
		t.Fatal(err)
	}
	for i := range boards {
		s := protocol.Status{Phase: protocol.PhaseIdle, CurrentVersion: "1.0.0", Chip: "esp32", Project: "bms", SlotSize: 1 << 20,
			RollbackProtected: i > 0, BootID: "b", Seq: 1}
		b, err := s.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		for err = fleet.ErrStopped; errors.Is(err, fleet.ErrStopped); { // until Run takes folds
			err = f.Fold(ctx, fmt.Sprintf("bms-%02d", i), false, b)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Disconnected(ctx, fmt.Sprintf("bms-%02d", i)); err != nil { // nothing shall start
			t.Fatal(err)
		}
		for gone := false; !gone; { // until it is noted
			d, err := f.Device(ctx, fmt.Sprintf("bms-%02d", i))
			if err != nil {
				t.Fatal(err)
			}
			gone = !d.Online
		}
	}
	srv := httptest.NewServer(New(Config{Fleet: f, Log: quiet()}))
	t.Cleanup(srv.Close)
	return srv, clientOf(t, srv, token), f
}

// nowhere is a broker that takes everything.
type nowhere struct{}

func (nowhere) Send(context.Context, string, protocol.Command) error { return nil }
func (nowhere) Clear(context.Context, string) error                  { return nil }
func (nowhere) Drop(context.Context, string) error                   { return nil }

func TestRolloutsThroughTheClient(t *testing.T) {
	_, c, _ := realFleet(t, 5)
	ctx := t.Context()
	n, pct := 2, 7.5
	req := api.RolloutRequest{Version: "1.1.0", Policy: api.Policy{
		Description: "d", Selector: api.Selector{Versions: "<1.1.0", Labels: map[string]string{"site": "north"}}, Seed: "s",
		Waves: []api.Wave{{Count: 1, SoakS: 60}, {Percent: 100}}, Stop: api.Stop{FailedPct: &pct, Failed: &n, RolledBack: &n, Brownouts: &n},
		NeedPct: 80, Gate: api.RolloutGate{MinSOCPct: 30, NotWhileCharging: true, MaxCurrentA: 10, MinTempC: new(0.0), MaxTempC: new(45.5)}, OverrideGates: true, Window: "02:00-04:00",
		Concurrency: 7, PerMinute: 8, JitterS: 9, Priority: 10, Retries: 3, RetryAfterS: 11, SilenceS: 12, DeadlineS: 13, LastsS: 14,
		Spread: "bank", Force: true, AllowUnprotected: true}}
	for i := range 4 {
		labels, err := c.SetLabels(ctx, fmt.Sprintf("bms-%02d", i), api.SetLabelsRequest{Set: map[string]string{"site": "north", "x": "y"}})
		if err != nil || labels["site"] != "north" {
			t.Fatalf("labels %v (%v)", labels, err)
		}
	}
	labels, err := c.SetLabels(ctx, "bms-03", api.SetLabelsRequest{Remove: []string{"site"}})
	if err != nil || !reflect.DeepEqual(labels, map[string]string{"x": "y"}) {
		t.Errorf("labels %v (%v)", labels, err)
	}
	draft, err := c.DryRunRollout(ctx, req)
	if err != nil || len(draft.Members) != 3 || draft.Rollout.ID != "" || len(draft.Cannot) != 0 {
		t.Fatalf("dry run %+v (%v)", draft, err)
	}
	if !reflect.DeepEqual(draft.Rollout.Policy, req.Policy) {
		t.Errorf("the policy came back as\n%+v, sent\n%+v", draft.Rollout.Policy, req.Policy)
	}
	made, err := c.CreateRollout(ctx, req, "key")
	if err != nil {
		t.Fatal(err)
	}
	if again, err := c.CreateRollout(ctx, req, "key"); err != nil || again.ID != made.ID {
		t.Errorf("again %s (%v), want %s", again.ID, err, made.ID)
	}
	if made.State != "running" || made.Members != 3 || made.Wave != 1 || len(made.Waves) != 2 || made.Waves[0].Limit != 1 || made.Waves[0].SoakS != 60 || made.Waves[1].Limit != 3 ||
		made.Halt != nil || made.CreatedBy != "anna" || len(made.Events) != 2 {
		t.Errorf("made %+v", made)
	}
	page, err := c.RolloutMembers(ctx, made.ID, "", -1, 2)
	if err != nil || len(page.Members) != 2 || page.Next != 1 || page.Members[0].Wave != 1 || page.Members[1].Wave != 2 ||
		page.Members[0].Hold != "offline" || page.Members[0].HoldText != "blocked: not connected" || page.Members[1].Hold != "wave" ||
		page.Members[0].DeviceID != draft.Members[0].DeviceID {
		t.Errorf("members %+v (%v)", page, err)
	}
	if *made.Waves[0].Figures != (api.Figures{Pending: 1}) || *made.Waves[1].Figures != (api.Figures{Pending: 2}) ||
		!maps.Equal(made.Waves[0].Held, map[string]int{"offline": 1}) || !maps.Equal(made.Waves[1].Held, map[string]int{"wave": 2}) {
		t.Errorf("waves %+v", made.Waves)
	}
	if len(made.Waits) != 1 || made.Waits[0].DeviceID != page.Members[0].DeviceID || made.Waits[0].HoldText != "blocked: not connected" || made.Waits[0].Since.IsZero() || made.WaitsMore != 0 {
		t.Errorf("it waits for %+v and %d more", made.Waits, made.WaitsMore)
	}
	if page, err = c.RolloutMembers(ctx, made.ID, "pending", 1, 2); err != nil || len(page.Members) != 1 || page.Next != -1 {
		t.Errorf("the rest %+v (%v)", page, err)
	}
	if r, err := c.SkipMember(ctx, made.ID, page.Members[0].DeviceID); err != nil || r.Figures != (api.Figures{Pending: 2, Skipped: 1}) {
		t.Errorf("after one was left out: %+v (%v)", r, err)
	}
	for _, step := range []struct{ verb, state string }{{"pause", "paused"}, {"resume", "running"}, {"abort", "aborted"}} {
		if r, err := c.TurnRollout(ctx, made.ID, step.verb); err != nil || r.State != step.state || r.Figures.Pending != 2 {
			t.Errorf("%s: %+v (%v)", step.verb, r, err)
		}
	}
	for _, verb := range []string{"pause", "resume", "abort"} {
		_, err := c.TurnRollout(ctx, made.ID, verb)
		if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.CodeConflict {
			t.Errorf("%s of an aborted rollout: %v", verb, err)
		}
	}
	list, err := c.Rollouts(ctx)
	if err != nil || len(list) != 1 || list[0].State != "aborted" || list[0].Waves[0].Figures != nil {
		t.Errorf("list %+v (%v)", list, err)
	}
	req.Policy = api.Policy{Selector: api.Selector{All: true}, Gate: api.RolloutGate{}}
	out, err := c.Rehearse(ctx, api.RehearsalRequest{RolloutRequest: req, Mix: map[string]float64{"crash": 1}, UpdateS: 60})
	if err != nil || out.Members != 4 || out.Bad.State != "halted" || out.Bad.Halt == nil || out.Good.State != "done" || out.Good.TookS < 60 {
		t.Errorf("rehearsal %+v (%v)", out, err)
	}
}

func TestBadRolloutRequestsAreProblems(t *testing.T) {
	srv, c, f := realFleet(t, 2)
	made, err := c.CreateRollout(t.Context(), api.RolloutRequest{Version: "1.1.0", Policy: api.Policy{Selector: api.Selector{All: true}}}, "")
	if err != nil {
		t.Fatal(err)
	}
	token, err := f.NewOperator(t.Context(), "eve")
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"POST", "/rollouts", `{`, 400, "body"},
		{"POST", "/rollouts", `{"version":"1.1.0","policy":{"selector":{"all":true},"colour":1}}`, 400, "colour"},
		{"POST", "/rollouts", `{"version":"1.1.0","policy":{}}`, 400, "selector names no device"},
		{"POST", "/rollouts", `{"version":"1.1.0","policy":{"selector":{"all":true},"waves":[{"percent":100,"soak_s":9223372036854775807}]}}`, 400, "soak"},
		{"POST", "/rollouts", `{"version":"1.1.0","policy":{"selector":{"all":true},"waves":[{"percent":100,"soak_s":-9223372036854775808}]}}`, 400, "soak"},
		{"POST", "/rollouts", `{"version":"1.1.0","policy":{"selector":{"all":true},"waves":[{"count":-3}]}}`, 400, "count"},
		{"POST", "/rollouts", `{"version":"1.1.0","policy":{"selector":{"all":true},"retries":1e9}}`, 400, "retries"},
		{"POST", "/rollouts", `{"version":"1.1.0","policy":{"selector":{"labels":{"A":"b"}}}}`, 400, "label"},
		{"POST", "/rollouts", `{"version":"1.1.0","policy":{"selector":{"all":true},"window":"2-4"}}`, 400, "window"},
		{"POST", "/rollouts", `{"version":"2.0.0","policy":{"selector":{"all":true}}}`, 404, "2.0.0"},
		{"POST", "/rollouts", `{"version":"1.1.0","policy":{"selector":{"all":true}},"expect":7}`, 422, "7 are expected"},
		{"POST", "/rollouts", `{"version":"1.1.0","policy":{"selector":{"ids":["nobody"]}}}`, 422, "dry run says why"},
		{"POST", "/rollouts/dry-run", `{"version":"1.1.0","policy":{"selector":{"versions":"~~"}}}`, 400, "range"},
		{"POST", "/rollouts/rehearse", `{"version":"1.1.0","policy":{"selector":{"all":true}},"mix":{"good":-1}}`, 400, "share"},
		{"POST", "/rollouts/rehearse", `{"version":"1.1.0","policy":{"selector":{"all":true}},"mix":{}}`, 400, "nothing"},
		{"GET", "/rollouts/r-none", ``, 404, "r-none"},
		{"GET", "/rollouts/" + made.ID + "/members?limit=0", ``, 400, "limit"},
		{"GET", "/rollouts/" + made.ID + "/members?after=x", ``, 400, "after"},
		{"GET", "/rollouts/" + made.ID + "/members?state=odd", ``, 400, "state"},
		{"POST", "/rollouts/" + made.ID + "/resume", ``, 409, "running"},
		{"POST", "/rollouts/" + made.ID + "/explode", ``, 404, ""},
		{"DELETE", "/rollouts/" + made.ID, ``, 405, ""},
		{"POST", "/devices/nobody/labels", `{"set":{"a":"b"}}`, 404, "nobody"},
		{"POST", "/devices/nobody/channel", `{"channel":"stable"}`, 404, "nobody"},
		{"POST", "/devices/bms-00/channel", `{"channel":"a/b"}`, 400, "channel"},
		{"POST", "/devices/bms-00/channel", `{"channel":"nowhere"}`, 422, "publish one"},
		{"POST", "/devices/bms-00/labels", `{"set":{"a":"b c"}}`, 400, "space"},
		{"POST", "/devices/bms-00/labels", `{"set":{"timezone":"../etc/passwd"}}`, 400, "timezone"},
		{"POST", "/devices/bms-00/labels", `{"set":{"a":"b"},"remove":["a"]}`, 400, "both"},
		{"POST", "/releases/" + strings.Repeat("0", 64) + "/lift", ``, 404, "quarantine"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), row.method, srv.URL+api.Prefix+row.path, strings.NewReader(row.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		if row.body != "" {
			req.Header.Set("Content-Type", "application/json")
		}
		resp, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != row.status || resp.Header.Get("Content-Type") != api.ProblemType || !strings.Contains(string(b), row.says) {
			t.Errorf("%s %s %s: %d %s (%v), want %d and %q", row.method, row.path, row.body, resp.StatusCode, b, err, row.status, row.says)
		}
	}
	list, err := f.Rollouts(t.Context())
	if err != nil || len(list) != 1 || list[0].State != fleet.RolloutRunning || time.Since(list[0].CreatedAt) > time.Hour {
		t.Errorf("bad requests left %+v (%v)", list, err)
	}
	if d, err := f.Device(t.Context(), "bms-00"); err != nil || len(d.Labels) > 0 {
		t.Errorf("labels %v are left (%v)", d.Labels, err)
	}
}
