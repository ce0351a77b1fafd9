package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"bmsota/audit"
	"bmsota/server/internal/fleet"
)

const auditColumns = `seq, at, who, role, what, about, device, rollout, details, prev, hash`

func scanAudit(s scanner) (e audit.Entry, err error) {
	var details string
	if err := s.Scan(&e.Seq, instant{&e.At}, &e.Who, &e.Role, &e.What, &e.About, &e.Device, &e.Rollout, &details, &e.Prev, &e.Hash); err != nil {
		return e, err
	}
	if details != "" {
		if err := json.Unmarshal([]byte(details), &e.Details); err != nil {
			// The row was altered. It comes out as it stands, for whoever verifies it to name it.
			e.Details = audit.Details{{Key: "unreadable", Value: details}}
		}
	}
	return e, nil
}

func auditArgs(e audit.Entry) ([]any, error) {
	details := ""
	if len(e.Details) > 0 {
		b, err := json.Marshal(e.Details)
		if err != nil {
			return nil, fmt.Errorf("audit log, row %d: %w", e.Seq, err)
		}
		details = string(b)
	}
	return []any{e.Seq, millis(e.At), e.Who, e.Role, string(e.What), e.About, e.Device, e.Rollout, details, e.Prev, e.Hash}, nil
}

func scanHead(s scanner) (h audit.Head, err error) {
	err = s.Scan(&h.Seq, &h.Hash)
	return h, err
}

func (t *sqlTx) AuditHead() (audit.Head, error) {
	head, err := one(t, scanHead, qAuditHead)
	if errors.Is(err, fleet.ErrNotFound) {
		return audit.Genesis, nil
	}
	return head, err
}

// AppendAudit leaves it to the triggers of the table to refuse what does not follow.
func (t *sqlTx) AppendAudit(list []audit.Entry) error {
	if t.prepared == nil {
		return putAtOnce(t, qAppendAudit, list, auditArgs, copied)
	}
	return putAll(t, qAppendAudit, list, auditArgs)
}

func (t *sqlTx) AuditPage(q fleet.AuditQuery) ([]audit.Entry, error) {
	w := &where{}
	for _, c := range []struct{ column, want string }{{"who", q.Who}, {"device", q.Device}, {"rollout", q.Rollout}} {
		if c.want != "" {
			w.and(c.column+" = ?", c.want)
		}
	}
	if group, ok := strings.CutSuffix(string(q.What), "."); ok {
		w.and("what >= ? AND what < ?", group+".", group+"/") // "/" follows "."
	} else if q.What != "" {
		w.and("what = ?", string(q.What))
	}
	if q.What != "" && !strings.HasPrefix(string(q.What), "attempt.") {
		w.and("what NOT IN ('attempt.begin', 'attempt.end')") // the words of the index
	}
	if q.After != 0 {
		w.and("seq > ?", q.After)
	}
	if q.Before != 0 {
		w.and("seq < ?", q.Before)
	}
	if !q.Since.IsZero() {
		w.and("at >= ?", millis(q.Since))
	}
	if !q.Until.IsZero() {
		w.and("at < ?", millis(q.Until))
	}
	direction := ""
	if q.NewestFirst {
		direction = " DESC"
	}
	return manyOf(t, scanAudit, `SELECT `+auditColumns+` FROM audit`+w.String()+` ORDER BY seq`+direction+` LIMIT `+w.arg(int64(q.Limit)), w.args...)
}

func (t *memoryTx) AuditHead() (audit.Head, error) {
	if n := len(t.m.audit); n > 0 {
		return t.m.audit[n-1].Head(), nil
	}
	return audit.Genesis, nil
}

func (t *memoryTx) AppendAudit(list []audit.Entry) error {
	if err := t.may(); err != nil {
		return err
	}
	before := t.m.audit
	t.undo = append(t.undo, func() { t.m.audit = before })
	for _, e := range list {
		head, err := t.AuditHead()
		if err != nil {
			return err
		}
		if e.Seq != head.Seq+1 || e.Prev != head.Hash {
			return t.conflict("a row of the audit log that does not follow")
		}
		t.m.audit = append(t.m.audit, e)
	}
	return nil
}

func (t *memoryTx) AuditPage(q fleet.AuditQuery) ([]audit.Entry, error) {
	var page []audit.Entry
	n := len(t.m.audit)
	for i := range n {
		e := t.m.audit[i]
		if q.NewestFirst {
			e = t.m.audit[n-1-i]
		}
		if len(page) == q.Limit {
			break
		}
		if q.Matches(e) {
			page = append(page, e)
		}
	}
	return page, nil
}
