package api

import (
	"context"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"bmsota/audit"
)

// AuditType is the media type of an exported audit log: one row a line.
const AuditType = "application/x-ndjson"

// AuditQuery chooses rows of the audit log. What is left zero does not choose.
type AuditQuery struct {
	After, Before int64  // rows with a number above, below
	Who           string // exactly
	What          string // an action, or with a dot at its end a group: "rollout."
	Device        string
	Rollout       string
	Since, Until  time.Time
	NewestFirst   bool
	Limit         int // 0 means 100; at most 1000
}

// AuditPage is some rows of the audit log. Each is the row as it is hashed, so a program may verify it.
type AuditPage struct {
	Entries []audit.Entry `json:"entries"`
	// Next is what to give as after (newest first: as before) for the rows that follow; left out where none does yet.
	Next int64 `json:"next,omitempty"`
}

func (q AuditQuery) values() url.Values {
	v := url.Values{}
	for name, text := range map[string]string{"who": q.Who, "what": q.What, "device": q.Device, "rollout": q.Rollout} {
		if text != "" {
			v.Set(name, text)
		}
	}
	for name, n := range map[string]int64{"after": q.After, "before": q.Before, "limit": int64(q.Limit)} {
		if n != 0 {
			v.Set(name, strconv.FormatInt(n, 10))
		}
	}
	for name, at := range map[string]time.Time{"since": q.Since, "until": q.Until} {
		if !at.IsZero() {
			v.Set(name, at.UTC().Format(time.RFC3339Nano))
		}
	}
	if q.NewestFirst {
		v.Set("order", "newest")
	}
	return v
}

// Audit reads rows of the audit log.
func (c *Client) Audit(ctx context.Context, q AuditQuery) (out AuditPage, err error) {
	return out, c.call(ctx, http.MethodGet, "/audit?"+q.values().Encode(), nil, &out)
}

// ExportAudit reads the whole audit log, one row a line. An error of the reader is one of this client, and means that
// what was read is not whole. The caller closes it.
func (c *Client) ExportAudit(ctx context.Context) (io.ReadCloser, error) {
	req, err := c.request(ctx, http.MethodGet, "/audit/export", nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", AuditType)
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, classify(req, err)
	}
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if resp.StatusCode == http.StatusOK && kind == AuditType {
		return &export{resp.Body, req}, nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, classify(req, err)
	}
	return nil, problem(resp, b)
}

// export names what breaks below it.
type export struct {
	io.ReadCloser
	req *http.Request
}

func (e *export) Read(b []byte) (int, error) {
	n, err := e.ReadCloser.Read(b)
	if err != nil && err != io.EOF {
		err = classify(e.req, err)
	}
	return n, err
}
