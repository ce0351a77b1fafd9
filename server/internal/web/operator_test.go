package web

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"bmsota/api"
	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

func clientOf(t testing.TB, srv *httptest.Server, token string) *api.Client {
	t.Helper()
	c, err := api.NewClient(api.Options{BaseURL: srv.URL, Token: token, HTTPClient: srv.Client()})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestOperatorPublishesAndListsThroughTheClient(t *testing.T) {
	f := newFake()
	srv := start(t, f)
	c := clientOf(t, srv, operatorToken)
	ctx := t.Context()

	image := testImage(1, 300_000)
	digest := digestHex(image)
	var steps []int64
	if err := c.Upload(ctx, digest, int64(len(image)), bytes.NewReader(image), func(done, total int64) {
		if total != int64(len(image)) {
			t.Errorf("total of %d", total)
		}
		steps = append(steps, done)
	}); err != nil {
		t.Fatal(err)
	}
	if len(steps) < 2 || !slices.IsSorted(steps) || steps[len(steps)-1] != int64(len(image)) {
		t.Errorf("progress was %v", steps)
	}

	out, err := c.Publish(ctx, api.PublishRequest{SHA256: digest, Version: "1.0.0", Channel: "stable"})
	if err != nil || out.Release.SHA256 != digest || !slices.Equal(out.Warnings, []string{"only a test"}) || !slices.Equal(out.Release.Channels, []string{"stable"}) {
		t.Fatalf("publish: %+v, %v", out, err)
	}
	releases, err := c.Releases(ctx)
	if err != nil || len(releases) != 1 || releases[0].Manifest != "" || !releases[0].Signed || !releases[0].PublishedAt.Equal(published) {
		t.Errorf("releases: %+v, %v", releases, err)
	}
	if rel, err := c.Release(ctx, digest); err != nil || rel.Manifest != "a.b.c" {
		t.Errorf("release: %+v, %v", rel, err)
	}
	channel, err := c.SetChannel(ctx, api.SetChannelRequest{Project: "bms", Chip: "esp32", Channel: "beta", Version: "1.0.0"})
	if err != nil || channel.SHA256 != digest || channel.SetBy != "operator" {
		t.Errorf("set channel: %+v, %v", channel, err)
	}
	channels, err := c.Channels(ctx)
	if err != nil || len(channels) != 2 || channels[1].Channel != "beta" || channels[1].Version != "1.0.0" {
		t.Errorf("channels: %+v, %v", channels, err)
	}
	if err := c.Withdraw(ctx, digest); err != nil || !f.releases[0].Withdrawn {
		t.Errorf("withdraw: %v", err)
	}

	enrolled, err := c.Enroll(ctx, "bms-1")
	if err != nil || enrolled != (api.EnrollResponse{DeviceID: "bms-1", Token: "token-of-bms-1"}) {
		t.Errorf("enroll: %+v, %v", enrolled, err)
	}
	f.attempts = []fleet.Attempt{{ID: "c1/bms-1", CommandID: "c1", DeviceID: "bms-1", Action: protocol.ActionUpdate, State: fleet.AttemptFailed, Reason: protocol.ReasonStalled}}
	device, err := c.Device(ctx, "bms-1")
	if err != nil || !device.Enrolled || len(device.Attempts) != 1 || device.Attempts[0].State != "failed" || device.Attempts[0].Reason != protocol.ReasonStalled {
		t.Errorf("device: %+v, %v", device, err)
	}
	if err := c.Revoke(ctx, "bms-1"); err != nil || !f.devices[0].Revoked {
		t.Errorf("revoke: %v", err)
	}
	if info, err := c.Server(ctx); err != nil || info.Version != "1.2.3" {
		t.Errorf("server: %+v, %v", info, err)
	}
	if err := c.Ready(ctx); err != nil {
		t.Errorf("ready: %v", err)
	}
}

// Scripts read the device listing by these keys, so they are there even when there is nothing to say.
func TestDeviceRowsAlwaysHaveTheFixedKeys(t *testing.T) {
	f := newFake()
	f.devices = []fleet.Device{
		{ID: "never-seen"},
		{ID: "bms-1", Online: true, LastSeen: published, Channel: "beta", Status: protocol.Status{
			CurrentVersion: "1.0.0", AvailableVersion: "1.1.0", Phase: protocol.PhaseWaiting, Status: protocol.CodeChecking, ProgressPct: 7, Reason: protocol.ReasonCharging}},
	}
	srv := start(t, f)
	_, b := ask(t, "GET", srv.URL+"/api/v1/devices", "Authorization: Bearer "+operatorToken)
	var rows []map[string]any
	if err := json.Unmarshal(b, &rows); err != nil || len(rows) != 2 {
		t.Fatalf("%s: %v", b, err)
	}
	want := []map[string]any{
		{"device_id": "never-seen", "current_version": "", "available_version": "", "phase": "", "status": 0.0, "progress_pct": 0.0, "reason": "", "online": false, "last_seen": nil},
		{"device_id": "bms-1", "current_version": "1.0.0", "available_version": "1.1.0", "phase": "waiting", "status": 1.0, "progress_pct": 7.0, "reason": "charging", "online": true, "last_seen": "2026-01-02T02:04:05Z"},
	}
	for i, row := range want {
		for key, value := range row {
			if got, ok := rows[i][key]; !ok || got != value {
				t.Errorf("row %d: %s is %v, want %v", i, key, got, value)
			}
		}
	}
	if rows[0]["channel"] != "stable" || rows[1]["channel"] != "beta" {
		t.Errorf("channels are %v and %v", rows[0]["channel"], rows[1]["channel"])
	}
}

func TestEmptyListingsAreLists(t *testing.T) {
	srv := start(t, newFake())
	for _, path := range []string{"/releases", "/channels", "/devices"} {
		if _, b := ask(t, "GET", srv.URL+"/api/v1"+path, "Authorization: Bearer "+operatorToken); string(b) != "[]\n" {
			t.Errorf("%s: %s", path, b)
		}
	}
}

func TestAPINeedsAnOperatorsToken(t *testing.T) {
	f := newFake()
	srv := start(t, f)
	for _, c := range []struct {
		auth   string
		status int
		code   api.Code
	}{
		{"", 401, api.CodeUnauthorized}, {"Bearer wrong", 401, api.CodeUnauthorized}, {"Bearer ", 401, api.CodeUnauthorized},
		{"Bearer", 401, api.CodeUnauthorized}, {"Basic b3BlcmF0b3I6b3BlcmF0b3ItdG9rZW4=", 401, api.CodeUnauthorized},
		{operatorToken, 401, api.CodeUnauthorized}, {"Bearer " + strings.Repeat("x", 513), 401, api.CodeUnauthorized},
		{"Bearer device-token", 403, api.CodeDenied}, {"bearer " + operatorToken, 200, ""},
	} {
		for _, path := range []string{"/releases", "/devices", "/channels", "/server"} {
			resp, b := ask(t, "GET", srv.URL+"/api/v1"+path, "Authorization: "+c.auth)
			checkProblem(t, c.auth+" "+path, resp, b, c.status, c.code)
			if (resp.StatusCode == 401) != (resp.Header.Get("WWW-Authenticate") != "") {
				t.Errorf("%q: WWW-Authenticate %q with %d", c.auth, resp.Header.Get("WWW-Authenticate"), resp.StatusCode)
			}
		}
	}
	body := `{"device_id":"bms-1"}`
	resp, err := http.Post(srv.URL+"/api/v1/devices", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 401 || len(f.devices) != 0 {
		t.Errorf("enrolment without a token: %d, %v", resp.StatusCode, f.devices)
	}
}

func checkProblem(t *testing.T, name string, resp *http.Response, b []byte, status int, code api.Code) {
	t.Helper()
	if resp.StatusCode != status {
		t.Errorf("%s: %d, want %d: %s", name, resp.StatusCode, status, b)
		return
	}
	if code == "" {
		return
	}
	var p api.Problem
	if err := json.Unmarshal(b, &p); err != nil || resp.Header.Get("Content-Type") != api.ProblemType || p.Code != code || p.Status != status || p.Title == "" || p.Type != "about:blank" {
		t.Errorf("%s: %s (%v), want code %s", name, b, err, code)
	}
}

func TestEachFleetErrorHasItsStatusAndCode(t *testing.T) {
	f := newFake()
	srv := start(t, f)
	for _, c := range []struct {
		err    error
		status int
		code   api.Code
		detail bool // whether the text goes out
	}{
		{fleet.ErrNotFound, 404, api.CodeNotFound, true},
		{fleet.ErrConflict, 409, api.CodeConflict, true},
		{fleet.ErrRefused, 422, api.CodeRefused, true},
		{fleet.ErrInvalid, 400, api.CodeInvalid, true},
		{fleet.ErrDenied, 403, api.CodeDenied, true},
		{fleet.ErrStorage, 503, api.CodeStorage, true},
		{fleet.ErrDamaged, 502, api.CodeDamaged, true},
		{fmt.Errorf("%w: %w", fleet.ErrStorage, syscall.ENOSPC), 507, api.CodeStorageFull, true},
		{context.DeadlineExceeded, 503, api.CodeUnavailable, true},
		{errors.New("anything else"), 500, api.CodeInternal, false},
	} {
		f.fail = fmt.Errorf("what happened: %w", c.err)
		resp, b := ask(t, "GET", srv.URL+"/api/v1/releases", "Authorization: Bearer "+operatorToken)
		checkProblem(t, c.err.Error(), resp, b, c.status, c.code)
		if strings.Contains(string(b), "what happened") != c.detail {
			t.Errorf("%v: %s", c.err, b)
		}
		// The same error reaches a caller of the client typed.
		var e *api.Error
		if _, err := clientOf(t, srv, operatorToken).Releases(t.Context()); !errors.As(err, &e) || e.Status != c.status || e.Code != c.code {
			t.Errorf("%v: the client says %v", c.err, err)
		}
	}
}

func TestBodiesAreReadStrictly(t *testing.T) {
	f := newFake()
	srv := start(t, f)
	for _, c := range []struct {
		name, method, path, body string
		status                   int
		code                     api.Code
	}{
		{"unknown key", "POST", "/devices", `{"device_id":"bms-1","admin":true}`, 400, api.CodeInvalid},
		{"wrong type", "POST", "/devices", `{"device_id":5}`, 400, api.CodeInvalid},
		{"data behind", "POST", "/devices", `{"device_id":"bms-1"}{}`, 400, api.CodeInvalid},
		{"garbage behind", "POST", "/devices", `{"device_id":"bms-1"} x`, 400, api.CodeInvalid},
		{"empty", "POST", "/devices", ``, 400, api.CodeInvalid},
		{"list", "POST", "/devices", `[]`, 400, api.CodeInvalid},
		{"cut off", "POST", "/devices", `{"device_id":"bm`, 400, api.CodeInvalid},
		{"bad id", "POST", "/devices", `{"device_id":"a/b"}`, 400, api.CodeInvalid},
		{"too large", "POST", "/releases", `{"description":"` + strings.Repeat("x", maxJSON) + `"}`, 413, api.CodeTooLarge},
		{"no digest", "POST", "/releases", `{"version":"1.0.0"}`, 400, api.CodeInvalid},
		{"no upload", "POST", "/releases", `{"sha256":"` + strings.Repeat("0", 64) + `"}`, 404, api.CodeNotFound},
		{"channel of an unknown version", "PUT", "/channels", `{"project":"bms","chip":"esp32","channel":"beta","version":"9.9.9"}`, 404, api.CodeNotFound},
		{"digest in capitals", "GET", "/releases/" + strings.Repeat("A", 64), ``, 400, api.CodeInvalid},
		{"unknown device", "GET", "/devices/nobody", ``, 404, api.CodeNotFound},
		{"revoke an unknown device", "POST", "/devices/nobody/revoke", ``, 404, api.CodeNotFound},
		{"withdraw an unknown release", "POST", "/releases/" + strings.Repeat("0", 64) + "/withdraw", ``, 404, api.CodeNotFound},
	} {
		req, err := http.NewRequest(c.method, srv.URL+"/api/v1"+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+operatorToken)
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		checkProblem(t, c.name, resp, b, c.status, c.code)
	}
	if len(f.devices) != 0 || len(f.releases) != 0 {
		t.Errorf("a refused request changed something: %v %v", f.devices, f.releases)
	}
}

func TestUploadsAreBoundedAndChecked(t *testing.T) {
	f := newFake()
	srv := start(t, f)
	image := testImage(1, 1000)
	digest := digestHex(image)
	for _, c := range []struct {
		name, digest string
		body         io.Reader
		length       int64
		status       int
		code         api.Code
	}{
		{"no length", digest, bytes.NewReader(image), -1, 411, api.CodeLengthRequired},
		{"nothing", digest, http.NoBody, 0, 400, api.CodeInvalid},
		{"too much", digest, io.LimitReader(endless{}, api.MaxUpload+1), api.MaxUpload + 1, 413, api.CodeTooLarge},
		{"other bytes", strings.Repeat("0", 64), bytes.NewReader(image), 1000, 400, api.CodeInvalid},
		{"no digest", "firmware.bin", bytes.NewReader(image), 1000, 400, api.CodeInvalid},
		{"good", digest, bytes.NewReader(image), 1000, 204, ""},
	} {
		req, err := http.NewRequest("PUT", srv.URL+"/api/v1/blobs/"+c.digest, c.body)
		if err != nil {
			t.Fatal(err)
		}
		req.ContentLength = c.length
		req.Header.Set("Authorization", "Bearer "+operatorToken)
		req.Header.Set("Expect", "100-continue")
		resp, err := (&http.Transport{ExpectContinueTimeout: 5 * time.Second}).RoundTrip(req)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		checkProblem(t, c.name, resp, b, c.status, c.code)
	}
	if len(f.blobs) != 1 {
		t.Errorf("%d blobs are stored, want the good one", len(f.blobs))
	}
}

type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

// The largest image is accepted whole.
func TestLargestUploadIsAccepted(t *testing.T) {
	f := newFake()
	srv := start(t, f)
	image := testImage(1, api.MaxUpload)
	if err := clientOf(t, srv, operatorToken).Upload(t.Context(), digestHex(image), api.MaxUpload, bytes.NewReader(image), nil); err != nil {
		t.Fatal(err)
	}
	if err := clientOf(t, srv, operatorToken).Upload(t.Context(), digestHex(image), api.MaxUpload+1, bytes.NewReader(image), nil); err == nil {
		t.Error("the client sent more than the limit")
	}
}

func TestHealthIsAliveAndReadyIsAbleToWork(t *testing.T) {
	var down error
	srv := start(t, newFake(), func(c *Config) { c.Ready = func(context.Context) error { return down } })
	if resp, b := ask(t, "GET", srv.URL+"/readyz"); resp.StatusCode != 200 || string(b) != "ready\n" {
		t.Errorf("readyz: %d %q", resp.StatusCode, b)
	}
	down = errors.New("store cannot be written: disk full")
	if resp, b := ask(t, "GET", srv.URL+"/readyz"); resp.StatusCode != 503 || string(b) != "store cannot be written: disk full\n" {
		t.Errorf("readyz: %d %q", resp.StatusCode, b)
	}
	var e *api.Error
	if err := clientOf(t, srv, "").Ready(t.Context()); !errors.As(err, &e) || e.Code != api.CodeUnavailable || e.Detail != "store cannot be written: disk full" {
		t.Errorf("client says %v", err)
	}
	if resp, b := ask(t, "GET", srv.URL+"/healthz"); resp.StatusCode != 200 || string(b) != "ok\n" {
		t.Errorf("healthz: %d %q", resp.StatusCode, b)
	}
	resp, b := ask(t, "GET", srv.URL+"/")
	if s := string(b); resp.StatusCode != 200 || !strings.Contains(s, "bmsota 1.2.3") || !strings.Contains(s, `href="/firmware/"`) || strings.Contains(s, "<script") {
		t.Errorf("landing: %d %s", resp.StatusCode, b)
	}
}
