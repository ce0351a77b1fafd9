package web

import (
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"

	"bmsota/api"
	"bmsota/server/internal/fleet"
)

// route is one operation of the API. The table of routes is the one source of what is served and of what the OpenAPI
// document says, so neither can have an operation that the other lacks.
type route struct {
	method, path string // below api.Prefix
	id           string // operationId; the name that generated clients call it by
	summary      string
	right        fleet.Right // empty = anybody, without a token
	query        []param     // what may stand behind the question mark, each once
	out          any         // a value of the answer's type; nil = 204 without a body
	fails        []api.Code  // beside those that every operation may answer with
	do           operation
}

// operation is what a route does: the call, and the type of the body that it takes (nil = none).
type operation struct {
	call call
	in   reflect.Type
	raw  bool   // the body is bytes, which the call reads itself
	keys bool   // heeds api.IdempotencyKey
	kind string // media type of the answer, which the call writes itself; empty = JSON
}

// param is a parameter of a query.
type param struct {
	name, what string
	kind       reflect.Type
}

// reads is an operation without a body.
func reads(fn call) operation { return operation{call: fn} }

// takes is an operation on a JSON body, which is read strictly before the call.
func takes[In any](fn func(w http.ResponseWriter, r *http.Request, by fleet.Identity, in In) (any, error)) operation {
	return operation{in: reflect.TypeFor[In](), call: func(w http.ResponseWriter, r *http.Request, by fleet.Identity) (any, error) {
		var in In
		if err := decode(w, r, &in); err != nil {
			return nil, err
		}
		return fn(w, r, by, in)
	}}
}

// written is the answer of a call that has written it.
type written struct{}

// streams is an operation that writes an answer of another media type itself. An error is one before its first byte.
func streams(kind string, fn func(w http.ResponseWriter, r *http.Request, by fleet.Identity) error) operation {
	return operation{kind: kind, call: func(w http.ResponseWriter, r *http.Request, by fleet.Identity) (any, error) {
		return written{}, fn(w, r, by)
	}}
}

// once is op with a key by which a repeated request is the same request.
func once(op operation) operation {
	op.keys = true
	return op
}

func (h *handler) routes() []route {
	return slices.Concat(h.fleetRoutes(), h.rolloutRoutes(), h.accountRoutes(), h.webhookRoutes(), h.auditRoutes(), h.keyRoutes(), []route{
		{http.MethodGet, "/openapi.json", "getDocument", "This document", "", nil, map[string]any{}, nil, reads(h.document)},
	})
}

func (h *handler) routeAPI() {
	paths := make(map[string]map[string]route)
	for _, rt := range h.routes() {
		if paths[rt.path] == nil {
			paths[rt.path] = make(map[string]route)
		}
		paths[rt.path][rt.method] = rt
	}
	for pattern, methods := range paths {
		allowed := strings.Join(slices.Sorted(maps.Keys(methods)), ", ")
		h.mux.HandleFunc(api.Prefix+pattern, func(w http.ResponseWriter, r *http.Request) {
			rt, ok := methods[r.Method]
			if !ok {
				w.Header().Set("Allow", allowed)
				h.fail(w, r, errMethod)
				return
			}
			h.serveCall(w, r, rt)
		})
	}
}

// serveCall asks who it is and whether he may before it looks at anything that he has sent.
func (h *handler) serveCall(w http.ResponseWriter, r *http.Request, rt route) {
	var by fleet.Identity
	if rt.right != "" {
		var ok bool
		if by, ok = h.admit(w, r, rt.right); !ok { // package fleet asks again; this one is for the call that forgets to ask
			return
		}
	}
	answer, err := any(nil), rt.check(w, r)
	if err == nil {
		answer, err = rt.do.call(w, r, by)
	}
	if err != nil {
		h.fail(w, r, err)
		return
	}
	if answer != (written{}) {
		h.answer(w, r, answer)
	}
}

// check refuses a query or a body that the route does not take. A parameter that is misspelt must not be taken for one
// that was left out: "?limt=5" would answer with something else than was asked.
func (rt route) check(w http.ResponseWriter, r *http.Request) error {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return fmt.Errorf("%w: the query cannot be read: %.100s", fleet.ErrInvalid, err)
	}
	for name, values := range query {
		switch {
		case !slices.ContainsFunc(rt.query, func(p param) bool { return p.name == name }):
			return fmt.Errorf("%w: there is no query parameter %.64q here", fleet.ErrInvalid, name)
		case len(values) > 1:
			return fmt.Errorf("%w: query parameter %s is given %d times", fleet.ErrInvalid, name, len(values))
		}
	}
	switch {
	case rt.do.raw:
		return nil
	case rt.do.in != nil:
		return isJSON(r.Header.Get("Content-Type"))
	}
	if r.ContentLength == 0 {
		return nil
	}
	if n, err := io.ReadFull(http.MaxBytesReader(w, r.Body, maxJSON), make([]byte, 1)); n > 0 || err != io.EOF {
		return fmt.Errorf("%w: this call takes no body", fleet.ErrInvalid)
	}
	return nil
}

func isJSON(header string) error {
	kind, params, err := mime.ParseMediaType(header)
	charset := params["charset"]
	if err != nil || kind != "application/json" || charset != "" && !strings.EqualFold(charset, "utf-8") {
		return fmt.Errorf("%w: the body is %.64q", errMedia, header)
	}
	return nil
}
