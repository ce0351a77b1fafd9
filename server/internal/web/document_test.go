package web

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"bmsota/api"
	"bmsota/esp/appimage"
	"bmsota/protocol"
	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"

	"github.com/pb33f/libopenapi/datamodel"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

func routesOf(srv *httptest.Server) []route {
	h := srv.Config.Handler
	if l, ok := h.(linked); ok {
		h = l.Handler
	}
	return h.(*handler).routes()
}

// served is the document that a server hands out.
func served(t testing.TB, srv *httptest.Server) map[string]any {
	t.Helper()
	resp, b := ask(t, "GET", srv.URL+api.Prefix+"/openapi.json") // without a token
	var doc map[string]any
	if err := json.Unmarshal(b, &doc); err != nil || resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/json" {
		t.Fatalf("%d %s: %.200s (%v)", resp.StatusCode, resp.Header.Get("Content-Type"), b, err)
	}
	return doc
}

// closed is the document with every object held to the keys that it names, so that an answer with a key that the
// document lacks does not pass.
func closed(v any) any {
	switch v := v.(type) {
	case map[string]any:
		_, object := v["properties"].(map[string]any)
		for key, inner := range v {
			v[key] = closed(inner)
		}
		if object && v["type"] == "object" {
			v["additionalProperties"] = false
		}
	case []any:
		for i := range v {
			v[i] = closed(v[i])
		}
	}
	return v
}

// schemas compiles parts of a document.
type schemas struct {
	t        *testing.T
	compiler *jsonschema.Compiler
}

func schemasOf(t *testing.T, doc map[string]any) schemas {
	t.Helper()
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	c.AssertFormat()
	if err := c.AddResource("https://bmsota.test/document", doc); err != nil {
		t.Fatal(err)
	}
	return schemas{t, c}
}

// check holds JSON to the schema at a place of the document.
func (s schemas) check(b []byte, place ...string) error {
	s.t.Helper()
	for i, part := range place {
		place[i] = strings.NewReplacer("~", "~0", "/", "~1", "{", "%7B", "}", "%7D").Replace(part)
	}
	schema, err := s.compiler.Compile("https://bmsota.test/document#/" + strings.Join(place, "/"))
	if err != nil {
		return err
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		return err
	}
	return schema.Validate(v)
}

// official holds a document to the schema of OpenAPI 3.1 that its makers publish.
func official(t *testing.T, doc map[string]any) error {
	t.Helper()
	parsed, err := jsonschema.UnmarshalJSON(strings.NewReader(datamodel.OpenAPI31SchemaData))
	if err != nil {
		t.Fatal(err)
	}
	const name = "https://bmsota.test/openapi31"
	c := jsonschema.NewCompiler()
	if err := c.AddResource(name, parsed); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile(name)
	if err != nil {
		t.Fatal(err)
	}
	return schema.Validate(doc)
}

func TestDocumentIsOpenAPI31AndHasEveryRouteAndNoOther(t *testing.T) {
	srv, _, _ := realFleet(t, 0)
	doc := served(t, srv)
	if doc["openapi"] != "3.1.0" {
		t.Errorf("it says that it is %v", doc["openapi"])
	}
	if err := official(t, doc); err != nil {
		t.Errorf("it is no OpenAPI document: %v", err)
	}
	want, got := make(map[string]bool), make(map[string]bool)
	for _, rt := range routesOf(srv) {
		want[rt.method+" "+rt.path] = true
	}
	ids := make(map[string]bool)
	for path, item := range doc["paths"].(map[string]any) {
		for method, op := range item.(map[string]any) {
			name := strings.ToUpper(method) + " " + path
			got[name] = true
			op := op.(map[string]any)
			id, _ := op["operationId"].(string)
			if id == "" || ids[id] || op["summary"] == "" || op["summary"] == nil {
				t.Errorf("%s has the operationId %q, seen before or empty, or no summary", name, id)
			}
			ids[id] = true
			responses := op["responses"].(map[string]any)
			if responses["200"] == nil && responses["204"] == nil || responses["400"] == nil || responses["500"] == nil {
				t.Errorf("%s answers %v", name, slices.Sorted(maps.Keys(responses)))
			}
			if public := path == "/openapi.json"; (responses["401"] == nil) != public || (len(op["security"].([]any)) == 0) != public {
				t.Errorf("%s: security %v, 401 %v", name, op["security"], responses["401"])
			}
		}
	}
	if !maps.Equal(want, got) {
		t.Errorf("served are %v\nin the document are %v", slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(got)))
	}
}

// Every code that a route may fail with has a meaning, and a status in the table of problems.
func TestEveryCodeOfTheDocumentHasAMeaningAndAStatus(t *testing.T) {
	srv, _, _ := realFleet(t, 0)
	for _, rt := range routesOf(srv) {
		for _, code := range rt.codes() {
			if meanings[code] == "" || statusOf(code) == http.StatusInternalServerError && code != api.CodeInternal {
				t.Errorf("%s %s: code %q is status %d, %q", rt.method, rt.path, code, statusOf(code), meanings[code])
			}
		}
	}
}

// apiStep is one good request.
type apiStep struct {
	method, path, body string
	keep               string // key of the answer to be put for $ in later paths
}

// everyOperation uses each operation of a fleet of realFleet(t, 3) at least once, with success.
func everyOperation(t testing.TB, f *fleet.Fleet) []apiStep {
	t.Helper()
	image, err := appimage.Build(appimage.BuildOptions{Chip: appimage.ESP32, Project: "bms", Version: "1.2.0"})
	if err != nil {
		t.Fatal(err)
	}
	old, err := f.Releases(t.Context())
	if err != nil || len(old) != 1 {
		t.Fatalf("%v (%v)", old, err)
	}
	digest := digestHex(image)
	rollout := `{"version":"1.1.0","policy":{"selector":{"all":true},"stop":{"failed":0},"waves":[{"count":1,"soak_s":60},{"percent":100}]}}`
	return []apiStep{
		{"GET", "/openapi.json", "", ""},
		{"GET", "/server", "", ""},
		{"POST", "/releases/" + old[0].SHA256 + "/lift", "", ""},
		{"PUT", "/blobs/" + digest, string(image), ""},
		{"POST", "/releases", `{"sha256":"` + digest + `","channel":"next"}`, ""},
		{"GET", "/releases?limit=1", "", ""},
		{"GET", "/releases/" + digest, "", ""},
		{"PUT", "/channels", `{"project":"bms","chip":"esp32","channel":"beta","version":"1.2.0"}`, ""},
		{"GET", "/channels", "", ""},
		{"POST", "/devices", `{"device_id":"new-1"}`, ""},
		{"GET", "/devices?limit=2", "", ""},
		{"GET", "/devices/bms-01", "", ""},
		{"GET", "/devices/bms-01/attempts", "", ""},
		{"POST", "/devices/bms-01/labels", `{"set":{"site":"north"}}`, ""},
		{"POST", "/devices/bms-01/channel", `{"channel":"stable"}`, ""},
		{"POST", "/devices/bms-01/clear", "", ""},
		{"POST", "/devices/new-1/revoke", "", ""},
		{"POST", "/rollouts/dry-run", rollout, ""},
		{"POST", "/rollouts/rehearse", rollout[:len(rollout)-1] + `,"mix":{"crash":1},"update_s":60}`, ""},
		{"POST", "/rollouts", rollout, "id"},
		{"GET", "/rollouts", "", ""},
		{"GET", "/rollouts/$", "", ""},
		{"GET", "/rollouts/$/members?state=pending&limit=1", "", ""},
		{"POST", "/rollouts/$/members/bms-02/skip", "", ""},
		{"POST", "/rollouts/$/pause", "", ""},
		{"POST", "/rollouts/$/resume", "", ""},
		{"POST", "/rollouts/$/abort", "", ""},
		{"POST", "/releases/" + digest + "/withdraw", "", ""},
		{"POST", "/accounts", `{"name":"berta","role":"viewer","password":"correct horse"}`, ""},
		{"GET", "/accounts", "", ""},
		{"PUT", "/accounts/berta/password", `{"password":"battery staple"}`, ""},
		{"DELETE", "/accounts/berta", "", ""},
		{"POST", "/tokens", `{"name":"ci","role":"operator","expires_at":"` + time.Now().Add(time.Hour).UTC().Format(time.RFC3339) + `"}`, ""},
		{"GET", "/tokens", "", ""},
		{"DELETE", "/tokens/ci", "", ""},
		{"POST", "/webhooks", `{"url":"http://receiver.lan/x","events":["rollout.halted"]}`, "id"},
		{"POST", "/webhooks/$/test", "", ""},
		{"GET", "/webhooks", "", ""},
		{"DELETE", "/webhooks/$", "", ""},
		{"POST", "/keys", `{"project":"bms","digest":"` + strings.Repeat("ab", 32) + `"}`, ""},
		{"GET", "/keys", "", ""},
		{"GET", "/audit?what=rollout.&limit=2", "", ""},
		{"GET", "/audit/export", "", ""},
	}
}

// The answers of a real fleet are what the document says, key by key, for every operation there is; and so are the
// requests.
func TestEveryAnswerIsAsTheDocumentSays(t *testing.T) {
	rows := store.NewMemory()
	srv, _, f := fleetOn(t, rows, 3)
	token := adminToken(t, f)
	schemas := schemasOf(t, closed(served(t, srv)).(map[string]any))
	routes := routesOf(srv)
	left := make(map[string]bool)
	for _, rt := range routes {
		left[rt.id] = true
	}
	if err := rows.Update(t.Context(), func(tx fleet.Tx) error {
		old, err := tx.Releases()
		if err != nil {
			return err
		}
		return tx.PutQuarantine(fleet.Quarantine{SHA256: old[0].SHA256, Why: "devices rolled back", Since: time.Now()})
	}); err != nil {
		t.Fatal(err)
	}
	kept := ""
	for _, s := range everyOperation(t, f) {
		s.path = strings.Replace(s.path, "$", kept, 1)
		req := request(t, srv, token, s)
		resp, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode/100 != 2 {
			t.Errorf("%s %s: %d %s (%v)", s.method, s.path, resp.StatusCode, b, err)
			continue
		}
		rt := operationOf(routes, s)
		delete(left, rt.id)
		method := strings.ToLower(s.method)
		if rt.do.in != nil {
			if err := schemas.check([]byte(s.body), "paths", rt.path, method, "requestBody", "content", jsonType, "schema"); err != nil {
				t.Errorf("%s %s: request: %v", s.method, s.path, err)
			}
		}
		if rt.out == nil {
			if resp.StatusCode != 204 || len(b) > 0 {
				t.Errorf("%s %s: %d %s, want 204", s.method, s.path, resp.StatusCode, b)
			}
		} else if rt.do.kind != "" {
			if got := resp.Header.Get("Content-Type"); got != rt.do.kind || len(b) == 0 {
				t.Errorf("%s %s: %q of %d bytes, want %q", s.method, s.path, got, len(b), rt.do.kind)
			}
		} else if err := schemas.check(b, "paths", rt.path, method, "responses", "200", "content", jsonType, "schema"); err != nil {
			t.Errorf("%s %s: %v\n%s", s.method, s.path, err, b)
		}
		if s.keep != "" {
			var answer map[string]any
			if err := json.Unmarshal(b, &answer); err != nil {
				t.Fatal(err)
			}
			kept = answer[s.keep].(string)
		}
	}
	if len(left) > 0 {
		t.Errorf("never used: %v", slices.Sorted(maps.Keys(left)))
	}
}

// What a receiver of webhooks gets is what the document says, too.
func TestEventsOfWebhooksAreAsTheDocumentSays(t *testing.T) {
	srv, c, f := realFleet(t, 3)
	schemas := schemasOf(t, closed(served(t, srv)).(map[string]any))
	admin := fleet.Identity{Name: "root", Role: fleet.RoleAdmin}
	h, err := f.AddWebhook(t.Context(), admin, "http://receiver.lan/", nil)
	if err != nil {
		t.Fatal(err)
	}
	made, err := c.CreateRollout(t.Context(), api.RolloutRequest{Version: "1.1.0", Policy: api.Policy{Selector: api.Selector{All: true}}}, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.TurnRollout(t.Context(), made.ID, "abort"); err != nil {
		t.Fatal(err)
	}
	rolledBack := protocol.Status{Phase: protocol.PhaseRolledBack, CurrentVersion: "1.0.0", Chip: "esp32", Project: "bms", SlotSize: 1 << 20, BootID: "c", Seq: 1,
		Reason: protocol.ReasonCrash, Message: "it crashed", FailedSHA256: strings.Repeat("ab", 32)}
	b, err := rolledBack.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Fold(t.Context(), "bms-01", false, b), f.TestWebhook(t.Context(), admin, h.ID)); err != nil {
		t.Fatal(err)
	}
	var told []string
	for {
		due, err := f.Deliverable(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(due) == 0 {
			break
		}
		d := due[0].Delivery
		told = append(told, string(d.Type))
		if err := schemas.check([]byte(d.Body), "webhooks", string(d.Type), "post", "requestBody", "content", jsonType, "schema"); err != nil {
			t.Errorf("%s: %v\n%s", d.Type, err, d.Body)
		}
		if err := f.Delivered(t.Context(), d); err != nil {
			t.Fatal(err)
		}
	}
	if want := []string{"rollout.finished", "device.rolled_back", "test"}; !slices.Equal(told, want) {
		t.Errorf("told of %v, want %v", told, want)
	}
}

// A request that is sent again, because its answer was lost, makes nothing twice.
func TestRequestsThatAreRepeatedMakeOneThing(t *testing.T) {
	rows := store.NewMemory()
	srv, _, f := fleetOn(t, rows, 3)
	token := adminToken(t, f)
	send := func(key string, s apiStep) (int, string) {
		t.Helper()
		req := request(t, srv, token, s)
		if key != "" {
			req.Header.Set(api.IdempotencyKey, key)
		}
		resp, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	old, err := f.Releases(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	again := make(map[string]bool)
	for _, c := range []struct {
		key    string
		s      apiStep
		first  int
		second int
		other  string // body for the same key
	}{
		{"k", apiStep{"POST", "/rollouts", `{"version":"1.1.0","policy":{"selector":{"all":true}}}`, ""}, 200, 200, `{"version":"1.1.0","policy":{"selector":{"all":true},"retries":1}}`},
		{"", apiStep{"POST", "/releases", `{"sha256":"` + old[0].SHA256 + `"}`, ""}, 200, 200, ""},
		{"", apiStep{"POST", "/devices", `{"device_id":"new-1"}`, ""}, 200, 200, ""},
		{"", apiStep{"POST", "/accounts", `{"name":"berta","role":"viewer","password":"correct horse"}`, ""}, 204, 409, ""},
		{"", apiStep{"POST", "/tokens", `{"name":"ci","role":"viewer"}`, ""}, 200, 409, ""},
		{"", apiStep{"POST", "/webhooks", `{"url":"http://receiver.lan/"}`, ""}, 200, 409, ""},
		{"", apiStep{"POST", "/keys", `{"project":"bms","digest":"` + digestA + `"}`, ""}, 204, 204, ""},
	} {
		again[operationOf(routesOf(srv), c.s).id] = true
		if code, b := send(c.key, c.s); code != c.first {
			t.Errorf("%s: %d %s", c.s.path, code, b)
		}
		before := tally(t, rows)
		if code, b := send(c.key, c.s); code != c.second {
			t.Errorf("%s again: %d %s", c.s.path, code, b)
		}
		if c.other != "" {
			c.s.body = c.other
			if code, b := send(c.key, c.s); code != 409 || !strings.Contains(b, `"code":"conflict"`) {
				t.Errorf("%s with the key of another request: %d %s", c.s.path, code, b)
			}
		}
		if after := tally(t, rows); after != before {
			t.Errorf("%s again made more: %s, before %s", c.s.path, after, before)
		}
	}
	for _, rt := range routesOf(srv) {
		// What is behind an id changes one thing, which is the same the second time.
		if creates := rt.method == "POST" && strings.Count(rt.path, "/") == 1; creates && !again[rt.id] {
			t.Errorf("%s is not tried twice", rt.id)
		}
	}
}

// tally says how many there are of everything that a POST makes.
func tally(t *testing.T, rows fleet.Store) (text string) {
	t.Helper()
	if err := rows.View(t.Context(), func(tx fleet.Tx) error {
		devices, e1 := tx.Devices()
		releases, e2 := tx.Releases()
		rollouts, e3 := tx.Rollouts()
		accounts, e4 := tx.Accounts()
		operators, e5 := tx.Operators()
		hooks, e6 := tx.Webhooks()
		keys, e7 := tx.Keys("")
		text = fmt.Sprint(len(devices), len(releases), len(rollouts), len(accounts), len(operators), len(hooks), len(keys))
		return errors.Join(e1, e2, e3, e4, e5, e6, e7)
	}); err != nil {
		t.Fatal(err)
	}
	return text
}

// operationOf finds the route of a request: the one with the fewest placeholders.
func operationOf(routes []route, s apiStep) (best route) {
	path, _, _ := strings.Cut(s.path, "?")
	placeholder := regexp.MustCompile(`\{[a-z0-9]+\}`)
	for _, rt := range routes {
		pattern := "^" + placeholder.ReplaceAllString(rt.path, "[^/]+") + "$"
		if rt.method == s.method && regexp.MustCompile(pattern).MatchString(path) && (best.id == "" || strings.Count(rt.path, "{") < strings.Count(best.path, "{")) {
			best = rt
		}
	}
	return best
}

func request(t testing.TB, srv *httptest.Server, token string, s apiStep) *http.Request {
	t.Helper()
	var body io.Reader
	if s.body != "" {
		body = strings.NewReader(s.body)
	}
	req, err := http.NewRequestWithContext(t.Context(), s.method, srv.URL+api.Prefix+s.path, body)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if s.body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	return req
}

// adminToken is a token with every right.
func adminToken(t testing.TB, f *fleet.Fleet) string {
	t.Helper()
	token, err := f.NewOperator(t.Context(), "root")
	if err != nil {
		t.Fatal(err)
	}
	return token
}
