package store

import (
	"database/sql"
	"database/sql/driver"
	"fmt"
	"slices"
	"strings"

	"bmsota/server/internal/fleet"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

// What PostgreSQL takes many rows with, in place of the statements of many rows that SQLite has: COPY where all of them are new, else
// one INSERT that is given each column as an array. Both are one message, whatever the number of rows.

// bulkRows is how many rows one statement has: a million in one would meet statement_timeout.
const bulkRows = 10_000

// way is how rows go into a table.
type way func(t *sqlTx, q query, rows [][]any) (sql.Result, error)

// putAtOnce puts the rows of list. One alone goes by itself: COPY waits twice for the server.
func putAtOnce[T any](t *sqlTx, q query, list []T, argsOf func(T) ([]any, error), put way) error {
	if len(list) == 1 {
		args, err := argsOf(list[0])
		if err != nil {
			return err
		}
		return t.put(q, args...)
	}
	for part := range slices.Chunk(list, bulkRows) {
		rows := make([][]any, len(part))
		for i, v := range part {
			args, err := argsOf(v)
			if err != nil {
				return err
			}
			rows[i] = t.values(args)
		}
		if _, err := t.changed(func() (sql.Result, error) { return put(t, q, rows) }); err != nil {
			return err
		}
	}
	return nil
}

// putFresh puts the rows of list, all of which are new where fresh says so.
func putFresh[T any](t *sqlTx, fresh bool, q query, list []T, argsOf func(T) ([]any, error)) error {
	if fresh {
		return putAtOnce(t, q, list, argsOf, copied)
	}
	return putAll(t, q, list, argsOf)
}

// copied copies rows, none of which may be there.
func copied(t *sqlTx, q query, rows [][]any) (sql.Result, error) {
	head, _, _ := strings.Cut(strings.TrimPrefix(queries[q], "INSERT INTO "), ")")
	table, columns, _ := strings.Cut(head, " (")
	var n int64
	var fault error
	// An error that Raw is given may make it wait for the end of the transaction, which is what it is part of.
	err := t.conn.Raw(func(c any) error {
		n, fault = c.(*stdlib.Conn).Conn().CopyFrom(t.ctx, pgx.Identifier{table}, strings.Split(columns, ", "), pgx.CopyFromRows(rows))
		return nil
	})
	if err == nil {
		err = fault
	}
	return driver.RowsAffected(n), err
}

// unnested inserts rows, or replaces those that are there.
func unnested(t *sqlTx, q query, rows [][]any) (sql.Result, error) {
	before, rest, _ := strings.Cut(queries[q], "VALUES (")
	_, after, _ := strings.Cut(rest, ")")
	holders, arrays := make([]string, len(rows[0])), make([]any, len(rows[0]))
	for i, v := range rows[0] {
		kind := "bigint"
		if _, text := v.(string); text {
			kind, arrays[i] = "text", column[string](rows, i)
		} else {
			arrays[i] = column[int64](rows, i)
		}
		holders[i] = fmt.Sprintf("$%d::%s[]", i+1, kind)
	}
	return t.tx.ExecContext(t.ctx, before+"SELECT * FROM unnest("+strings.Join(holders, ", ")+")"+after, arrays...)
}

// column is one column of rows.
func column[T any](rows [][]any, i int) []T {
	list := make([]T, len(rows))
	for n, row := range rows {
		list[n] = row[i].(T)
	}
	return list
}

// anyOf reads the rows of all ids.
func anyOf[T any](t *sqlTx, scan func(scanner) (T, error), q query, ids []string) ([]T, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	list := make([]string, len(ids))
	for i, id := range ids {
		list[i] = textOf(id)
	}
	rows, err := t.tx.QueryContext(t.ctx, strings.Replace(queries[q], "= $1", "= ANY($1)", 1), list)
	if err != nil {
		return nil, t.fault(err)
	}
	return collect(t, rows, scan)
}

// none says that a query for what may be in the way of new rows finds nothing: they can be copied. The lock of the writers keeps
// others from adding some. In SQLite it makes no difference.
func (t *sqlTx) none(text string, arg any) (bool, error) {
	if t.conn == nil {
		return false, nil
	}
	rows, err := t.tx.QueryContext(t.ctx, text+" LIMIT 1", arg)
	if err != nil {
		return false, t.fault(err)
	}
	there, err := collect(t, rows, scanCount)
	return err == nil && len(there) == 0, err
}

// firstMembers says that list has the first members of a rollout, which are all new then.
func (t *sqlTx) firstMembers(list []fleet.Member) (bool, error) {
	if len(list) == 0 || slices.ContainsFunc(list, func(m fleet.Member) bool { return m.RolloutID != list[0].RolloutID }) {
		return false, nil
	}
	return t.none("SELECT 1 FROM rollout_members WHERE rollout_id = $1", textOf(list[0].RolloutID))
}

// newAttempts says that none of list is there.
func (t *sqlTx) newAttempts(list []fleet.Attempt) (bool, error) {
	if len(list) == 0 {
		return false, nil
	}
	ids := make([]string, len(list))
	for i, a := range list {
		ids[i] = textOf(a.ID)
	}
	return t.none("SELECT 1 FROM attempts WHERE id = ANY($1)", ids)
}
