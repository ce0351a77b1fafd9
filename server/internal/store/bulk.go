package store

import (
	"context"
	"database/sql"
	"fmt"
	"strings"

	"bmsota/server/internal/fleet"
)

// Many rows go into SQLite in statements of many rows, in as few sizes as there are here, so that each is prepared once: 100 rows
// are three statements of 32 and four of one. A list of ids is asked for idsAtOnce at a time. PostgreSQL takes them all at
// once (postgres_bulk.go).
const (
	rowsAtOnce = 32
	idsAtOnce  = 64
)

// bulkPuts are the queries that put many rows.
var bulkPuts = [...]query{qPutDevice, qPutAttempt, qPutMember, qAppendAudit}

// bulk are the statements for many rows, by the query for one.
type bulk map[query]*sql.Stmt

// bulkText is the text of what asks for, or puts, many rows: that of the query for one, which names its row by $1 or its
// values by one list.
func bulkText(q query) string {
	text := queries[q]
	before, rest, put := strings.Cut(text, "VALUES (")
	if !put {
		return strings.Replace(text, "= $1", "IN ("+holders(1, idsAtOnce)+")", 1)
	}
	one, after, _ := strings.Cut(rest, ")")
	width := strings.Count(one, "$")
	rows := make([]string, rowsAtOnce)
	for i := range rows {
		rows[i] = "(" + holders(1+i*width, width) + ")"
	}
	return before + "VALUES " + strings.Join(rows, ", ") + after
}

// holders are n placeholders from the given number on.
func holders(from, n int) string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprint("$", from+i)
	}
	return strings.Join(list, ", ")
}

// unnumbered is a query for SQLite, with ? for its placeholders where they stand in their order. To SQLite $1 is a name, and its
// driver asks for the name of each, for which SQLite walks through all of them: of 800 that costs more than the rows.
func unnumbered(numbered string) string {
	var b strings.Builder
	text := numbered
	for n := 1; ; n++ {
		before, after, found := strings.Cut(text, fmt.Sprint("$", n))
		if strings.Contains(before, "$") {
			return numbered // one is used twice, or before its turn
		}
		b.WriteString(before)
		if text = after; !found {
			return b.String()
		}
		b.WriteByte('?')
	}
}

var bulkTexts = func() map[query]string {
	texts := make(map[query]string)
	for _, q := range append(bulkPuts[:], qDevice, qAttempt, qOpenAttemptsOf) {
		texts[q] = bulkText(q)
	}
	return texts
}()

func prepareBulk(ctx context.Context, db *sql.DB) (bulk, error) {
	stmts := make(bulk, len(bulkTexts))
	for q, text := range bulkTexts {
		var err error
		if stmts[q], err = db.PrepareContext(ctx, unnumbered(text)); err != nil {
			return nil, fmt.Errorf("prepare query %d for many rows: %w", q, fault(err))
		}
	}
	return stmts, nil
}

// putAll puts the rows of list.
func putAll[T any](t *sqlTx, q query, list []T, argsOf func(T) ([]any, error)) error {
	if t.prepared == nil {
		return putAtOnce(t, q, list, argsOf, unnested)
	}
	var args []any
	for len(list) > 0 {
		n := 1
		if len(list) >= rowsAtOnce {
			n = rowsAtOnce
		}
		args = args[:0]
		for _, v := range list[:n] {
			row, err := argsOf(v)
			if err != nil {
				return err
			}
			args = append(args, row...)
		}
		if err := t.putRows(q, n, args); err != nil {
			return err
		}
		list = list[n:]
	}
	return nil
}

func (t *sqlTx) putRows(q query, n int, args []any) (err error) {
	if n == 1 {
		return t.put(q, args...)
	}
	_, err = t.changed(func() (sql.Result, error) {
		return t.tx.StmtContext(t.ctx, t.many[q]).ExecContext(t.ctx, args...)
	})
	return err
}

// manyIn reads the rows of all ids. What is asked for beyond them is the last of them again.
func manyIn[T any](t *sqlTx, scan func(scanner) (T, error), q query, ids []string) ([]T, error) {
	if t.prepared == nil {
		return anyOf(t, scan, q, ids)
	}
	var all []T
	args := make([]any, idsAtOnce)
	for len(ids) > 0 {
		n := min(len(ids), idsAtOnce)
		for i := range args {
			args[i] = ids[min(i, n-1)]
		}
		var list []T
		var err error
		if n == 1 {
			list, err = many(t, scan, q, ids[0])
		} else {
			var rows *sql.Rows
			if rows, err = t.tx.StmtContext(t.ctx, t.many[q]).QueryContext(t.ctx, args...); err != nil {
				return nil, t.fault(err)
			}
			list, err = collect(t, rows, scan)
		}
		if err != nil {
			return nil, err
		}
		all, ids = append(all, list...), ids[n:]
	}
	return all, nil
}

func (t *sqlTx) DevicesIn(ids []string) ([]fleet.Device, error) {
	return manyIn(t, scanDevice, qDevice, ids)
}

func (t *sqlTx) AttemptsIn(ids []string) ([]fleet.Attempt, error) {
	return manyIn(t, scanAttempt, qAttempt, ids)
}

func (t *sqlTx) OpenAttemptsIn(devices []string) ([]fleet.Attempt, error) {
	return manyIn(t, scanAttempt, qOpenAttemptsOf, devices)
}

func (t *sqlTx) PutDevices(list []fleet.Device) error {
	return putAll(t, qPutDevice, list, deviceArgs)
}

// PutReports writes row by row in SQLite. A statement of many rows keeps of each page how it was, in a file where they are more than a
// few, because it may fail in their middle; and whatever an update names is written into the indexes anew.
func (t *sqlTx) PutReports(list []fleet.Device) error {
	if t.prepared == nil {
		return t.PutDevices(list)
	}
	if len(list) == 0 {
		return nil
	}
	stmt := t.tx.StmtContext(t.ctx, t.prepared[qPutReport])
	for i := range list {
		d := &list[i]
		status, err := statusOf(d)
		if err != nil {
			return err
		}
		rows, err := t.changed(func() (sql.Result, error) {
			return stmt.ExecContext(t.ctx, d.Online, millis(d.LastSeen), int64(d.Seq), string(status), d.ID)
		})
		if err == nil && rows != 1 {
			t.failed = fmt.Errorf("%w: device %q has reported and is not there", fleet.ErrConflict, d.ID)
			err = t.failed
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (t *sqlTx) PutAttempts(list []fleet.Attempt) error {
	fresh, err := t.newAttempts(list)
	if err != nil {
		return err
	}
	return putFresh(t, fresh, qPutAttempt, list, func(a fleet.Attempt) ([]any, error) { return attemptArgs(a), nil })
}

func (t *sqlTx) PutMembers(list []fleet.Member) error {
	t.members = t.members || len(list) > 0
	fresh, err := t.firstMembers(list)
	if err != nil {
		return err
	}
	return putFresh(t, fresh, qPutMember, list, func(m fleet.Member) ([]any, error) { return memberArgs(m), nil })
}

// The memory has nothing to gain from many at once.

func (t *memoryTx) DevicesIn(ids []string) ([]fleet.Device, error) {
	var list []fleet.Device
	for _, id := range ids {
		if _, there := t.m.devices[id]; there {
			d, err := t.Device(id)
			if err != nil {
				return nil, err
			}
			list = append(list, d)
		}
	}
	return list, nil
}

func (t *memoryTx) AttemptsIn(ids []string) ([]fleet.Attempt, error) {
	var list []fleet.Attempt
	for _, id := range ids {
		if a, there := t.m.attempts[id]; there {
			list = append(list, a)
		}
	}
	return list, nil
}

func (t *memoryTx) OpenAttemptsIn(devices []string) ([]fleet.Attempt, error) {
	var list []fleet.Attempt
	for _, id := range devices {
		open, err := t.OpenAttemptsOf(id)
		if err != nil {
			return nil, err
		}
		list = append(list, open...)
	}
	return list, nil
}

func (t *memoryTx) PutDevices(list []fleet.Device) error   { return each(list, t.PutDevice) }
func (t *memoryTx) PutAttempts(list []fleet.Attempt) error { return each(list, t.PutAttempt) }
func (t *memoryTx) PutMembers(list []fleet.Member) error   { return each(list, t.PutMember) }

// PutReports puts no more than a report changes, as the databases do.
func (t *memoryTx) PutReports(list []fleet.Device) error {
	return each(list, func(d fleet.Device) error {
		row, there := t.m.devices[d.ID]
		if !there {
			return t.conflict("device %q has reported and is not there", d.ID)
		}
		row.Online, row.LastSeen, row.Seq, row.Status = d.Online, d.LastSeen, d.Seq, d.Status
		return t.PutDevice(row)
	})
}

func each[T any](list []T, put func(T) error) error {
	for _, v := range list {
		if err := put(v); err != nil {
			return err
		}
	}
	return nil
}
