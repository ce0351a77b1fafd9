package web

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"

	"bmsota/api"
	"bmsota/audit"
	"bmsota/server/internal/fleet"

	"github.com/danielgtaylor/huma/v2"
)

// The OpenAPI document is made from the table of routes and the Go types that it names. Package huma makes the schemas;
// what the document promises beyond them is said here.

const (
	schemaPrefix = "#/components/schemas/"
	bearer       = "token" // name of the one security scheme
	jsonType     = "application/json"
)

// everyCode is what any operation may answer with.
var everyCode = []api.Code{api.CodeInvalid, api.CodeStorage, api.CodeUnavailable, api.CodeInternal}

// meanings say, for people, what a code means.
var meanings = map[api.Code]string{
	api.CodeInvalid:        "the request makes no sense; detail says what of it",
	api.CodeUnauthorized:   "no token, or one that is not known",
	api.CodeDenied:         "the role of the token has no right to this",
	api.CodeNotFound:       "there is no such thing",
	api.CodeConflict:       "it exists with other content, or is in a state that does not allow this",
	api.CodeRefused:        "verification or policy says no",
	api.CodeLengthRequired: "an upload must say its length",
	api.CodeMediaType:      "the body does not say that it is JSON",
	api.CodeTooLarge:       "the body is above the limit",
	api.CodeStorage:        "storage failed; nothing was changed",
	api.CodeStorageFull:    "no space left; nothing was changed",
	api.CodeDamaged:        "the stored firmware no longer has its digest: upload it again",
	api.CodeTooManyTries:   "wait as long as Retry-After says",
	api.CodeUnavailable:    "shutting down, or too slow to answer",
	api.CodeInternal:       "a fault of the server; its log says more",
}

// codes are all that a route may fail with, each once.
func (rt route) codes() []api.Code {
	list := slices.Concat(everyCode, rt.fails)
	if rt.right != "" {
		list = append(list, api.CodeUnauthorized, api.CodeDenied)
	}
	if rt.method != http.MethodGet {
		list = append(list, api.CodeStorageFull)
	}
	if rt.do.in != nil {
		list = append(list, api.CodeMediaType, api.CodeTooLarge)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// statusOf is the HTTP status of a code, by the table of problems.
func statusOf(code api.Code) int {
	for _, row := range problems {
		if row.code == code {
			return row.status
		}
	}
	return http.StatusInternalServerError
}

func (h *handler) document(http.ResponseWriter, *http.Request, fleet.Identity) (any, error) {
	return h.described()
}

// describe makes the document, once.
func (h *handler) describe() func() (json.RawMessage, error) {
	return sync.OnceValues(func() (json.RawMessage, error) {
		b, err := json.Marshal(documentOf(h.routes(), h.cfg.Version))
		if err != nil {
			return nil, fmt.Errorf("encode the API document: %w", err)
		}
		return b, nil
	})
}

func documentOf(routes []route, version string) *huma.OpenAPI {
	schemas := huma.NewMapRegistry(schemaPrefix, huma.DefaultSchemaNamer)
	schemas.RegisterTypeAlias(reflect.TypeFor[audit.Details](), reflect.TypeFor[map[string]string]()) // what its MarshalJSON writes
	doc := &huma.OpenAPI{
		OpenAPI: "3.1.0",
		Info: &huma.Info{
			Title: "bmsota", Version: version,
			Description: "Over-the-air updates for ESP32 battery monitors: the operator's API. Times are RFC 3339 in UTC, digests lower-case hex of SHA-256, sizes bytes.",
		},
		Servers: []*huma.Server{{URL: api.Prefix}},
		Paths:   make(map[string]*huma.PathItem),
		Components: &huma.Components{Schemas: schemas, SecuritySchemes: map[string]*huma.SecurityScheme{
			bearer: {Type: "http", Scheme: "bearer", Description: "a token of 'bmsota tokens add'"},
		}},
	}
	// Bodies first, answers last: what stands in an answer, too, may have more keys in a later version.
	bodies, answers := make(map[string]*huma.Schema), make(map[string]*huma.Schema)
	for _, rt := range routes {
		if rt.do.in != nil {
			bodies[rt.id] = schemas.Schema(rt.do.in, true, rt.id+"Request")
		}
	}
	strict := slices.Collect(maps.Keys(schemas.Map()))
	for _, rt := range routes {
		if rt.out != nil {
			answers[rt.id] = schemas.Schema(reflect.TypeOf(rt.out), true, rt.id+"Answer")
			plainLists(answers[rt.id])
		}
	}
	problem := schemas.Schema(reflect.TypeFor[api.Problem](), true, "Problem")
	event := schemas.Schema(reflect.TypeFor[api.WebhookEvent](), true, "WebhookEvent")
	shared := sharedWith(schemas, answers)
	for name, s := range schemas.Map() {
		if !slices.Contains(strict, name) || shared[name] {
			s.AdditionalProperties = nil
		}
		mend(s, schemas.TypeFromRef(schemaPrefix+name))
	}
	doc.Webhooks = make(map[string]*huma.PathItem)
	for _, e := range append(fleet.NoticeTypes(), fleet.NoticeTest) {
		doc.Webhooks[string(e)] = &huma.PathItem{Post: &huma.Operation{
			Summary: "Sent to webhooks, signed as Standard Webhooks says", Security: []map[string][]string{},
			RequestBody: &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{jsonType: {Schema: event}}},
			Responses:   map[string]*huma.Response{"2XX": {Description: "the receiver has it; any other answer, and it is sent again"}},
		}}
	}
	for _, rt := range routes {
		item := doc.Paths[rt.path]
		if item == nil {
			item = &huma.PathItem{}
			doc.Paths[rt.path] = item
		}
		op := rt.operation(bodies[rt.id], answers[rt.id], problem)
		switch rt.method {
		case http.MethodGet:
			item.Get = op
		case http.MethodPut:
			item.Put = op
		case http.MethodPost:
			item.Post = op
		case http.MethodDelete:
			item.Delete = op
		default:
			panic("web: the document knows no method " + rt.method)
		}
	}
	return doc
}

// sharedWith names the schemas that stand in answers.
func sharedWith(schemas huma.Registry, answers map[string]*huma.Schema) map[string]bool {
	in := make(map[string]bool)
	var visit func(s *huma.Schema)
	visit = func(s *huma.Schema) {
		if s == nil {
			return
		}
		if name, ok := strings.CutPrefix(s.Ref, schemaPrefix); ok && !in[name] {
			in[name] = true
			visit(schemas.Map()[name])
		}
		visit(s.Items)
		for _, p := range s.Properties {
			visit(p)
		}
	}
	for _, s := range answers {
		visit(s)
	}
	return in
}

// mend says of the schema of t what the library does not: lists are never null, a pointer to a struct that is always
// there may be, and 32 bits without a sign are more than int32 holds.
func mend(s *huma.Schema, t reflect.Type) {
	for _, p := range s.Properties {
		plainLists(p)
		if p.Format == "int32" && p.Minimum != nil {
			p.Format = "int64"
		}
	}
	for _, f := range reflect.VisibleFields(t) {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if p := s.Properties[name]; p != nil && p.Ref != "" && f.Type.Kind() == reflect.Pointer && options == "" {
			s.Properties[name] = &huma.Schema{AnyOf: []*huma.Schema{{Ref: p.Ref}, {Type: "null"}}, Description: p.Description}
		}
	}
}

func plainLists(s *huma.Schema) {
	if s.Type == huma.TypeArray {
		s.Nullable = false
		plainLists(s.Items)
	}
}

// operation is what the document says of a route.
func (rt route) operation(body, answer, problem *huma.Schema) *huma.Operation {
	op := &huma.Operation{OperationID: rt.id, Summary: rt.summary, Tags: []string{strings.Split(rt.path, "/")[1]}, Responses: make(map[string]*huma.Response)}
	if rt.right != "" {
		op.Security = []map[string][]string{{bearer: {}}}
		var roles []string
		for _, role := range fleet.Roles() {
			if (fleet.Identity{Name: "x", Role: role}).Has(rt.right) {
				roles = append(roles, string(role))
			}
		}
		op.Description = "Roles: " + strings.Join(roles, ", ") + "."
	} else {
		op.Security = []map[string][]string{}
	}
	for _, part := range strings.Split(rt.path, "/") {
		name, ok := strings.CutPrefix(part, "{")
		if !ok {
			continue
		}
		p := &huma.Param{Name: strings.TrimSuffix(name, "}"), In: "path", Required: true, Schema: &huma.Schema{Type: huma.TypeString}}
		if p.Name == "sha256" {
			p.Schema.Pattern = "^[0-9a-f]{64}$"
		}
		op.Parameters = append(op.Parameters, p)
	}
	for _, q := range rt.query {
		kind := huma.TypeString
		if q.kind.Kind() == reflect.Int {
			kind = huma.TypeInteger
		}
		op.Parameters = append(op.Parameters, &huma.Param{Name: q.name, In: "query", Description: q.what, Schema: &huma.Schema{Type: kind}})
	}
	if rt.do.keys {
		op.Parameters = append(op.Parameters, &huma.Param{Name: api.IdempotencyKey, In: "header", Schema: &huma.Schema{Type: huma.TypeString},
			Description: "at most 128 bytes: the same request with the same key again answers with what the first one made, another one is a conflict"})
	}
	switch {
	case rt.do.raw:
		op.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{"application/octet-stream": {Schema: &huma.Schema{}}}}
	case body != nil:
		op.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{jsonType: {Schema: body}}}
	}
	if answer == nil {
		op.Responses["204"] = &huma.Response{Description: "done"}
	} else {
		ok := &huma.Response{Description: "done", Content: map[string]*huma.MediaType{cmp.Or(rt.do.kind, jsonType): {Schema: answer}}}
		if answer.Type == huma.TypeArray {
			ok.Headers = map[string]*huma.Param{"Link": {Schema: &huma.Schema{Type: huma.TypeString},
				Description: `where the listing goes on: <?after=…&limit=…>; rel="next", relative to this address; left out on the last page`}}
		}
		op.Responses["200"] = ok
	}
	for _, code := range rt.codes() {
		status := strconv.Itoa(statusOf(code))
		says := fmt.Sprintf("%s: %s", code, meanings[code])
		if r := op.Responses[status]; r != nil {
			r.Description += "; " + says
			continue
		}
		op.Responses[status] = &huma.Response{Description: says, Content: map[string]*huma.MediaType{api.ProblemType: {Schema: problem}}}
	}
	return op
}
