package web

import (
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"bmsota/api"
	"bmsota/protocol"
	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"
)

// never is when a token of these tests ends.
var never time.Time

// filled is a path of the API with something plausible in the place of each name.
func filled(path string) string {
	return strings.NewReplacer("{sha256}", strings.Repeat("a", 64), "{id}", "bms-01", "{name}", "root").Replace(path)
}

// Whatever is wrong with a request to whatever operation: the answer is a problem document with the status that the API
// document names, and nothing has changed.
func TestBadRequestsToEveryOperationAreProblemsAndChangeNothing(t *testing.T) {
	rows := store.NewMemory()
	srv, _, f := fleetOn(t, rows, 3)
	tokens := map[fleet.Role]string{fleet.RoleAdmin: adminToken(t, f)}
	admin := fleet.Identity{Name: "root", Role: fleet.RoleAdmin}
	for _, role := range []fleet.Role{fleet.RoleViewer, fleet.RoleOperator} {
		token, err := f.NewToken(t.Context(), admin, "a-"+string(role), role, never)
		if err != nil {
			t.Fatal(err)
		}
		tokens[role] = token
	}
	before := fingerprintOf(t, rows)
	var tried int
	for _, rt := range routesOf(srv) {
		for _, bad := range badRequests(rt, tokens) {
			tried++
			req, err := http.NewRequestWithContext(t.Context(), bad.method, srv.URL+api.Prefix+filled(rt.path)+bad.query, strings.NewReader(bad.body))
			if err != nil {
				t.Fatal(err)
			}
			for name, value := range map[string]string{"Authorization": bad.auth, "Content-Type": bad.kind} {
				if value != "" {
					req.Header.Set(name, value)
				}
			}
			resp, err := srv.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			name := bad.name + ": " + bad.method + " " + rt.path
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			checkProblem(t, name, resp, b, statusOf(bad.code), bad.code)
			if bad.method == rt.method && !slices.Contains(rt.codes(), bad.code) {
				t.Errorf("%s: the document does not name %s", name, bad.code)
			}
			if after := fingerprintOf(t, rows); after != before {
				t.Fatalf("%s changed something:\n%s\n%s", name, before, after)
			}
		}
	}
	if tried < 300 {
		t.Errorf("only %d bad requests were tried", tried)
	}
}

type badRequest struct {
	name, method, query, body, kind, auth string
	code                                  api.Code
}

// badRequests are those that a route refuses whatever there is.
func badRequests(rt route, tokens map[fleet.Role]string) []badRequest {
	good := badRequest{method: rt.method, auth: "Bearer " + tokens[fleet.RoleAdmin]}
	if rt.do.in != nil {
		good.body, good.kind = "{}", jsonType
	}
	var list []badRequest
	add := func(name string, code api.Code, change func(*badRequest)) {
		bad := good
		bad.name, bad.code = name, code
		change(&bad)
		list = append(list, bad)
	}
	for _, method := range []string{"PATCH", "TRACE", "OPTIONS"} {
		add("wrong method", api.CodeMethod, func(b *badRequest) { b.method = method })
	}
	if rt.right != "" {
		for name, auth := range map[string]string{"no token": "", "unknown token": "Bearer x", "no scheme": tokens[fleet.RoleAdmin], "basic": "Basic cm9vdDpyb290"} {
			add(name, api.CodeUnauthorized, func(b *badRequest) { b.auth = auth })
		}
	}
	for _, role := range []fleet.Role{fleet.RoleViewer, fleet.RoleOperator} {
		if rt.right != "" && !(fleet.Identity{Name: "x", Role: role}).Has(rt.right) {
			add("token of a "+string(role), api.CodeDenied, func(b *badRequest) { b.auth = "Bearer " + tokens[role] })
		}
	}
	for name, query := range map[string]string{"unknown parameter": "?limt=5", "parameter without a name": "?=5", "broken escape": "?limit=%zz", "semicolon": "?limit=1;after=2"} {
		add(name, api.CodeInvalid, func(b *badRequest) { b.query = query })
	}
	for _, p := range rt.query {
		add("parameter twice", api.CodeInvalid, func(b *badRequest) { b.query = "?" + p.name + "=1&" + p.name + "=1" })
		if p.kind.Kind() == reflect.Int {
			for _, value := range []string{"x", "-7", "1.5", "99999999999999999999", "1e3", "%20"} {
				add(p.name+"="+value, api.CodeInvalid, func(b *badRequest) { b.query = "?" + p.name + "=" + value })
			}
		} else {
			add("long "+p.name, api.CodeInvalid, func(b *badRequest) { b.query = "?" + p.name + "=" + strings.Repeat("x", 300) })
		}
	}
	switch {
	case rt.do.raw:
	case rt.do.in == nil:
		add("a body", api.CodeInvalid, func(b *badRequest) { b.body, b.kind = "{}", jsonType })
	default:
		for name, kind := range map[string]string{"no type": "", "form": "application/x-www-form-urlencoded", "text": "text/plain", "latin": "application/json; charset=latin1", "broken type": "application/json;;=", "two types": "application/json, text/plain"} {
			add(name, api.CodeMediaType, func(b *badRequest) { b.kind = kind })
		}
		for name, body := range map[string]string{"nothing": "", "no JSON": "hello", "half": `{"a`, "list": "[]", "text": `"x"`, "number": "1", "null": "null", "null bytes": "\x00\x00", "data behind": "{} {}",
			"unknown key": `{"no such key":1}`, "not UTF-8": "{\"\xff\":1}", "deep": strings.Repeat(`{"policy":`, 12_000)} {
			add(name, api.CodeInvalid, func(b *badRequest) { b.body = body })
		}
		add("too large", api.CodeTooLarge, func(b *badRequest) { b.body = `{"x":"` + strings.Repeat("x", maxJSON) + `"}` })
	}
	return list
}

// The table says who may do what; this says it again, so that a slip in the table is seen.
func TestEveryOperationNeedsItsRight(t *testing.T) {
	srv, _, _ := realFleet(t, 0)
	for _, rt := range routesOf(srv) {
		want := fleet.RightOperate
		switch first := strings.Split(rt.path, "/")[1]; {
		case first == "openapi.json":
			want = ""
		case first == "audit":
			want = fleet.RightAudit
		case first == "accounts", first == "tokens", first == "webhooks", first == "keys" && rt.method == http.MethodPost:
			want = fleet.RightAdminister
		case rt.method == http.MethodGet:
			want = fleet.RightView
		}
		if rt.right != want {
			t.Errorf("%s %s needs the right %q, want %q", rt.method, rt.path, rt.right, want)
		}
	}
}

// Below the prefix of the API, too, what is no path is a problem document.
func TestPathsThatAreNoneAreProblems(t *testing.T) {
	srv, _, f := realFleet(t, 0)
	token := adminToken(t, f)
	for _, path := range []string{"", "/", "/nothing", "/devices/", "/devices/a/b/c", "/rollouts/x/explode", "//devices", "/devices/..", "/%2e%2e/x", "/DEVICES", "/openapi.yaml"} {
		req := httptest.NewRequest("GET", srv.URL+api.Prefix+path, nil)
		req.Header.Set("Authorization", "Bearer "+token)
		w := httptest.NewRecorder()
		srv.Config.Handler.ServeHTTP(w, req)
		checkProblem(t, path, w.Result(), w.Body.Bytes(), 404, api.CodeNotFound)
	}
}

// Pages of a listing are whole and follow each other to the end.
func TestListingsArePaged(t *testing.T) {
	srv, c, f := realFleet(t, 7)
	admin := fleet.Identity{Name: "root", Role: fleet.RoleAdmin}
	token := adminToken(t, f)
	for _, name := range []string{"t1", "t2", "t3"} {
		if _, err := f.NewToken(t.Context(), admin, name, fleet.RoleViewer, never); err != nil {
			t.Fatal(err)
		}
		if _, err := c.CreateRollout(t.Context(), api.RolloutRequest{Version: "1.1.0", Policy: api.Policy{Selector: api.Selector{All: true}}}, name); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range everyOperation(t, f)[:5] { // until there is a second release, in a channel of its own
		resp, err := srv.Client().Do(request(t, srv, token, s))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	for _, v := range []string{"1.1.0", "1.1.0", "1.1.0"} {
		cmd, err := protocol.Command{Action: protocol.ActionUpdate, Version: v}.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Order(t.Context(), admin, "bms-01", true, cmd); err != nil {
			t.Fatal(err)
		}
	}
	key := regexp.MustCompile(`"(device_id|name|id)":"([^"]+)"`)
	for path, want := range map[string]int{"/devices": 7, "/tokens": 5, "/rollouts": 3, "/releases": 2, "/channels": 2, "/accounts": 0, "/devices/bms-01/attempts": 3} {
		seen := make(map[string]bool)
		rows, pages := 0, 0
		for query := "?limit=" + map[bool]string{true: "1", false: "2"}[want == 2]; query != ""; pages++ {
			req := request(t, srv, token, apiStep{method: "GET", path: path + query})
			resp, err := srv.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != 200 || pages > 10 {
				t.Fatalf("%s%s: %d %s (%v)", path, query, resp.StatusCode, b, err)
			}
			if path == "/releases" || path == "/channels" || path == "/devices/bms-01/attempts" {
				rows += strings.Count(string(b), `"created_at"`) + strings.Count(string(b), `"set_at"`) + strings.Count(string(b), `"published_at"`)
			} else {
				for _, m := range key.FindAllStringSubmatch(string(b), -1) {
					if m[1] == "id" || path != "/rollouts" {
						rows++
						if seen[m[2]] {
							t.Errorf("%s: %s comes twice", path, m[2])
						}
						seen[m[2]] = true
					}
				}
			}
			link := resp.Header.Get("Link")
			query, _, _ = strings.Cut(strings.TrimPrefix(link, "<"), ">")
		}
		if rows != want {
			t.Errorf("%s: %d rows on %d pages, want %d", path, rows, pages, want)
		}
	}
	// A row that a page ended with may have gone.
	resp, err := srv.Client().Do(request(t, srv, token, apiStep{method: "GET", path: "/tokens?after=t15"}))
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || strings.Count(string(b), `"name"`) != 2 || !strings.Contains(string(b), `"t2"`) {
		t.Errorf("behind t15: %s (%v), want t2 and t3", b, err)
	}
	// The client follows them.
	if list, err := c.Devices(t.Context()); err != nil || len(list) != 7 {
		t.Errorf("the client has %d devices (%v)", len(list), err)
	}
	for _, path := range []string{"/devices?limit=501", "/devices?limit=0", "/rollouts?after=r-none", "/releases?after=x", "/channels?after=x", "/channels?limit=-1", "/devices/bms-01/attempts?after=x"} {
		resp, err := srv.Client().Do(request(t, srv, token, apiStep{method: "GET", path: path}))
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		checkProblem(t, path, resp, b, 400, api.CodeInvalid)
	}
}

// FuzzBodies sends bodies to every operation that takes one: nothing panics, and nothing that is sent is a fault of
// the server.
func FuzzBodies(f *testing.F) {
	srv, _, fl := realFleet(f, 2)
	token := adminToken(f, fl)
	var routes []route
	for _, rt := range routesOf(srv) {
		if rt.do.in != nil {
			routes = append(routes, rt)
		}
	}
	for i, s := range everyOperation(f, fl) {
		f.Add(byte(i), []byte(s.body))
		if at := slices.IndexFunc(routes, func(rt route) bool { return rt.id == operationOf(routesOf(srv), s).id }); at >= 0 {
			f.Add(byte(at), []byte(s.body))
		}
	}
	f.Fuzz(func(t *testing.T, which byte, body []byte) {
		rt := routes[int(which)%len(routes)]
		if strings.Contains(rt.path, "password") || rt.id == "addAccount" {
			body = []byte(strings.ReplaceAll(string(body), "password", "passwort")) // hashing takes its time
		}
		req := httptest.NewRequest(rt.method, api.Prefix+filled(rt.path), strings.NewReader(string(body)))
		req.Header.Set("Authorization", "Bearer "+token)
		req.Header.Set("Content-Type", jsonType)
		w := httptest.NewRecorder()
		srv.Config.Handler.ServeHTTP(w, req)
		if w.Code >= 500 {
			t.Errorf("%s %s %q: %d %s", rt.method, rt.path, body, w.Code, w.Body)
		}
	})
}
