package web

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"time"

	"bmsota/api"
	"bmsota/audit"
	"bmsota/server/internal/fleet"
)

// Auditor is what web needs of a *fleet.Fleet to show the audit log, and to add to it who was turned away here.
type Auditor interface {
	Audit(ctx context.Context, by fleet.Identity, q fleet.AuditQuery) ([]audit.Entry, error)
	TurnedAway(k fleet.Knock)
}

const (
	auditPage   = 100  // rows of an answer that asks for no number
	auditLimit  = 1000 // at most
	exportChunk = 1000 // rows that are read at once for an export
)

func (h *handler) auditRoutes() []route {
	return []route{
		{http.MethodGet, "/audit", "listAudit", "Read rows of the audit log, oldest first", fleet.RightAudit, auditParams, api.AuditPage{}, nil, reads(h.listAudit)},
		{http.MethodGet, "/audit/export", "exportAudit", "Read the whole audit log, one row a line; an answer that is broken off is not whole", fleet.RightAudit, nil,
			"", nil, streams(api.AuditType, h.exportAudit)},
	}
}

// auditParams are what an address may say about rows.
var auditParams = []param{
	{"after", "only rows with a number above this", reflect.TypeFor[int]()},
	{"before", "only rows with a number below this", reflect.TypeFor[int]()},
	{"who", "only what this account, token or device did", reflect.TypeFor[string]()},
	{"what", "only this action, or with a dot at its end this group of actions", reflect.TypeFor[string]()},
	{"device", "only what was done to or by this device", reflect.TypeFor[string]()},
	{"rollout", "only what is part of this rollout", reflect.TypeFor[string]()},
	{"since", "not before this time", reflect.TypeFor[string]()},
	{"until", "before this time", reflect.TypeFor[string]()},
	{"order", "oldest (the default) or newest first", reflect.TypeFor[string]()},
	{"limit", fmt.Sprintf("how many at most, 1 to %d (default %d)", auditLimit, auditPage), reflect.TypeFor[int]()},
}

// auditQuery reads which rows an address asks for.
func auditQuery(values url.Values) (q fleet.AuditQuery, err error) {
	for name, v := range values {
		known := slices.ContainsFunc(auditParams, func(p param) bool { return p.name == name })
		if !known || len(v) != 1 || len(v[0]) > 128 {
			return q, fmt.Errorf("%w: rows cannot be chosen by %.32q, or not by that", fleet.ErrInvalid, name)
		}
	}
	q = fleet.AuditQuery{Who: values.Get("who"), What: audit.Action(values.Get("what")), Device: values.Get("device"), Rollout: values.Get("rollout"), Limit: auditPage}
	for name, to := range map[string]*int64{"after": &q.After, "before": &q.Before} {
		if text := values.Get(name); text != "" {
			if *to, err = strconv.ParseInt(text, 10, 64); err != nil || *to < 0 {
				return q, fmt.Errorf("%w: %s=%.32q is no number of a row", fleet.ErrInvalid, name, text)
			}
		}
	}
	for name, to := range map[string]*time.Time{"since": &q.Since, "until": &q.Until} {
		if text := values.Get(name); text != "" {
			if *to, err = readTime(text); err != nil {
				return q, fmt.Errorf("%w: %s=%.40q is no time such as 2026-03-01 or 2026-03-01T08:00:00Z", fleet.ErrInvalid, name, text)
			}
		}
	}
	if text := values.Get("limit"); text != "" {
		if q.Limit, err = strconv.Atoi(text); err != nil || q.Limit < 1 || q.Limit > auditLimit {
			return q, fmt.Errorf("%w: limit=%.32q is not within 1 to %d", fleet.ErrInvalid, text, auditLimit)
		}
	}
	switch values.Get("order") {
	case "", "oldest":
	case "newest":
		q.NewestFirst = true
	default:
		return q, fmt.Errorf("%w: an order is oldest or newest", fleet.ErrInvalid)
	}
	return q, nil
}

// readTime reads a day, a minute as forms of browsers send it, or a whole time; without a zone it is UTC.
func readTime(text string) (at time.Time, err error) {
	for _, form := range []string{time.RFC3339Nano, "2006-01-02T15:04", "2006-01-02"} {
		if at, err = time.Parse(form, text); err == nil {
			return at.UTC(), nil
		}
	}
	return at, err
}

func (h *handler) listAudit(_ http.ResponseWriter, r *http.Request, by fleet.Identity) (any, error) {
	q, err := auditQuery(r.URL.Query())
	if err != nil {
		return nil, err
	}
	rows, err := h.cfg.Fleet.Audit(r.Context(), by, q)
	if err != nil {
		return nil, err
	}
	out := api.AuditPage{Entries: append([]audit.Entry{}, rows...)}
	if n := len(rows); n == q.Limit {
		out.Next = rows[n-1].Seq
	}
	return out, nil
}

// exportAudit answers with the whole log, one row a line. An answer that cannot be finished is broken off, so that
// nobody takes it for the whole.
func (h *handler) exportAudit(w http.ResponseWriter, r *http.Request, by fleet.Identity) error {
	out := paced(w)
	for q := (fleet.AuditQuery{Limit: exportChunk}); ; {
		rows, err := h.cfg.Fleet.Audit(r.Context(), by, q)
		if err != nil && q.After == 0 {
			return err
		}
		if err != nil {
			h.cfg.Log.Error("export of the audit log", "err", err)
			panic(http.ErrAbortHandler)
		}
		if q.After == 0 {
			w.Header().Set("Content-Type", api.AuditType)
			w.Header().Set("Content-Disposition", `attachment; filename="bmsota-audit.jsonl"`)
			w.Header().Set("Cache-Control", "no-store")
		}
		var lines []byte
		for _, e := range rows {
			lines = append(append(lines, e.Line()...), '\n')
		}
		if _, err := out.Write(lines); err != nil || len(rows) < exportChunk {
			return nil // whoever has gone has gone
		}
		q.After = rows[len(rows)-1].Seq
	}
}

// turnedAway notes a refusal at this door.
func (h *handler) turnedAway(r *http.Request, what audit.Action, via, name, about string) {
	h.cfg.Fleet.TurnedAway(fleet.Knock{What: what, Name: name, Via: via, Address: addressOf(r), About: about})
}
