package store

import (
	"cmp"
	"database/sql"
	"database/sql/driver"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"bmsota/server/internal/fleet"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/stdlib"
)

// What PostgreSQL takes many rows with, in place of the statements of many rows that SQLite has: COPY where all of them are new, else
// INSERTs that are given each column as an array. Either way the server is at work on one part of the rows while the next is made,
// and the only wait is for the answer to the last. The values are encoded here and not by the driver, which would look up how for each.

// bulkRows is how many rows are put at once: a million in one COPY would meet statement_timeout.
const bulkRows = 10_000

// The parts that are sent to the server while more are made: bytes of COPY, at least, and rows of an INSERT.
const (
	copyPart   = 16 << 10
	unnestPart = 128
)

// way is how n rows go into a table; row says the values of each.
type way func(t *sqlTx, conn *pgx.Conn, q query, n int, row func(i int) ([]any, error)) error

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
		row := func(i int) ([]any, error) { return argsOf(part[i]) }
		if _, err := t.changed(func() (sql.Result, error) {
			var fault error
			// An error that Raw is given may make it wait for the end of the transaction, which is what it is part of.
			err := t.conn.Raw(func(c any) error {
				fault = put(t, c.(*stdlib.Conn).Conn(), q, len(part), row)
				return nil
			})
			if err == nil {
				err = fault
			}
			return driver.RowsAffected(len(part)), err
		}); err != nil {
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
func copied(t *sqlTx, conn *pgx.Conn, q query, n int, row func(i int) ([]any, error)) error {
	head, _, _ := strings.Cut(strings.TrimPrefix(queries[q], "INSERT INTO "), ")")
	rows := &copyRows{n: n, row: row, made: []byte(copyHead)}
	_, err := conn.PgConn().CopyFrom(t.ctx, rows, "COPY "+head+") FROM STDIN BINARY")
	return cmp.Or(rows.stop(), err)
}

// copyHead is how COPY begins (PostgreSQL's documentation of COPY, Binary Format): a signature, no flags, no more of a head.
const copyHead = "PGCOPY\n\xff\r\n\x00" + "\x00\x00\x00\x00" + "\x00\x00\x00\x00"

// copyRows reads as rows in the form of COPY, each made when its turn comes.
type copyRows struct {
	mu      sync.Mutex // a goroutine of the driver reads, and goes on for a while when the connection is lost
	n, next int
	row     func(i int) ([]any, error)
	made    []byte // and not read yet
	ended   bool
	fault   error // of row
}

// stop says what went wrong with a row. No row is asked for afterwards.
func (r *copyRows) stop() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next = r.n
	return r.fault
}

func (r *copyRows) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.next < r.n && len(r.made) < copyPart {
		values, err := r.row(r.next)
		if err != nil {
			r.fault = err
			return 0, err
		}
		r.made = binary.BigEndian.AppendUint16(r.made, uint16(len(values)))
		for _, v := range values {
			r.made = appendValue(r.made, v)
		}
		r.next++
	}
	if r.next == r.n && !r.ended {
		r.made, r.ended = append(r.made, 0xff, 0xff), true
	}
	if len(r.made) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.made)
	r.made = append(r.made[:0], r.made[n:]...)
	return n, nil
}

// unnested inserts rows, or replaces those that are there.
func unnested(t *sqlTx, conn *pgx.Conn, q query, n int, row func(i int) ([]any, error)) error {
	first, err := row(0)
	if err != nil {
		return err
	}
	holders := make([]string, len(first))
	for c, v := range first {
		kind, _ := kindOf(v)
		holders[c] = fmt.Sprintf("$%d::%s[]", c+1, kind)
	}
	before, rest, _ := strings.Cut(queries[q], "VALUES (")
	_, after, _ := strings.Cut(rest, ")")
	text := before + "SELECT * FROM unnest(" + strings.Join(holders, ", ") + ")" + after
	name := ""
	if t.prepares {
		prepared, err := conn.Prepare(t.ctx, text, text) // once for a connection
		if err != nil {
			return err
		}
		name = prepared.Name
	}
	formats := []int16{pgx.BinaryFormatCode} // of all
	p := conn.PgConn().StartPipeline(t.ctx)
	for i := 0; i < n && err == nil; i += unnestPart {
		var arrays [][]byte
		if arrays, err = arraysOf(min(unnestPart, n-i), func(k int) ([]any, error) { return row(i + k) }); err != nil {
			break
		}
		if t.prepares {
			p.SendQueryPrepared(name, arrays, formats, nil)
		} else {
			p.SendQueryParams(text, arrays, nil, formats, nil)
		}
		err = p.Flush()
	}
	return cmp.Or(err, p.Sync(), p.Close())
}

// arraysOf are the columns of n rows, each as an array (array_recv): one dimension, nothing is NULL, of which kind, how many, counted from 1.
func arraysOf(n int, row func(i int) ([]any, error)) (arrays [][]byte, err error) {
	for i := range n {
		values, err := row(i)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			arrays = make([][]byte, len(values))
			for c, v := range values {
				_, oid := kindOf(v)
				arrays[c] = make([]byte, 0, 20+n*(len(appendValue(nil, v))+4))
				for _, word := range []uint32{1, 0, oid, uint32(n), 1} {
					arrays[c] = binary.BigEndian.AppendUint32(arrays[c], word)
				}
			}
		}
		for c, v := range values {
			arrays[c] = appendValue(arrays[c], v)
		}
	}
	return arrays, nil
}

// kindOf is what PostgreSQL calls the kind of column that a value is for, and its number (pg_type.dat).
func kindOf(v any) (name string, oid uint32) {
	switch v.(type) {
	case bool:
		return "smallint", pgtype.Int2OID
	case int64:
		return "bigint", pgtype.Int8OID
	}
	return "text", pgtype.TextOID
}

// appendValue appends a value with its length, as the receiving function of its kind takes it.
func appendValue(b []byte, v any) []byte {
	switch v := v.(type) {
	case bool:
		b = append(b, 0, 0, 0, 2, 0, 0)
		if v {
			b[len(b)-1] = 1
		}
		return b
	case int64:
		return binary.BigEndian.AppendUint64(append(b, 0, 0, 0, 8), uint64(v))
	case string:
		v = textOf(v)
		return append(binary.BigEndian.AppendUint32(b, uint32(len(v))), v...)
	}
	panic(fmt.Sprintf("store: a column of %T", v))
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
