// Package beside is for `bmsota bench store`: rows as a fleet writes them, put through the store and, the same rows once more,
// through the bare driver of the database. It promises that both sides end with the same rows in tables that the same
// migrations made, each in a database of its own, with the same transactions, synchronised to the disk at every commit.
//
// The bare side is given every row as its columns are: what the store has written is read back from its tables. So the store
// pays for making columns of what fleet knows, and the bare side does not. What is fleet's own work is outside of what is timed: reading
// the rows that it decides by, sealing the rows of the log.
package beside

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"bmsota/audit"
	"bmsota/server/internal/fleet"
)

// Pair is one piece of work, done through the store and through the driver. Both say rows a second; Raw writes what the call of
// Ours before it has written, and must follow each.
type Pair struct {
	Name, Peer, Note string
	Ours, Raw        func(ctx context.Context) (float64, error)
}

// Pairs are the pieces of work of one kind of database. Close ends their connections; its files are its caller's.
type Pairs struct {
	List   []Pair
	closes []func() error
}

// Close ends all connections.
func (p *Pairs) Close() error {
	var errs []error
	for i := len(p.closes) - 1; i >= 0; i-- {
		errs = append(errs, p.closes[i]())
	}
	return errors.Join(errs...)
}

// batch is what one transaction writes.
type batch struct {
	rollout  *fleet.Rollout
	members  []fleet.Member
	devices  []fleet.Device
	attempts []fleet.Attempt
	log      []audit.Entry
}

func (b batch) rows() int { return len(b.members) + len(b.devices) + len(b.attempts) + len(b.log) }

// put writes a batch as fleet does.
func (b batch) put(tx fleet.Tx) error {
	if b.rollout != nil {
		if err := tx.PutRollout(*b.rollout); err != nil {
			return err
		}
		if err := tx.PutMembers(b.members); err != nil {
			return err
		}
	}
	if err := tx.PutDevices(b.devices); err != nil {
		return err
	}
	if err := tx.PutAttempts(b.attempts); err != nil {
		return err
	}
	return tx.AppendAudit(b.log)
}

// table is a part of a batch as rows of columns.
type table struct {
	name    string
	columns []string
	rows    [][]any
}

// raw is the bare side: it writes the tables of one batch in one transaction.
type raw func(ctx context.Context, tables []table) error

// pair is what a Pair does. turn makes the batches of a turn; written are the questions that find what they have written, in the
// order of the batches, by the table.
type pair struct {
	store   fleet.Store
	read    *sql.DB // the database of store
	raw     raw
	turn    func(n int) []batch
	written []question

	turns   int
	pending []batch    // of the last turn of ours
	head    audit.Head // of the log before it
}

// question finds the rows of a turn in one table: those of a batch follow each other.
type question struct {
	table, where string
	arg          func(p *pair) any
	count        func(b batch) int
}

func (p *pair) ours(ctx context.Context) (float64, error) {
	err := p.store.View(ctx, func(tx fleet.Tx) (err error) {
		p.head, err = tx.AuditHead()
		return err
	})
	if err != nil {
		return 0, err
	}
	p.pending = p.turn(p.turns)
	p.turns++
	seal(p.pending, p.head)
	return timed(p.pending, func(_ int, b batch) error { return p.store.Update(ctx, b.put) })
}

func (p *pair) bare(ctx context.Context) (float64, error) {
	batches := make([][]table, len(p.pending))
	for _, q := range p.written {
		all, err := p.ask(ctx, q)
		if err != nil {
			return 0, err
		}
		for i, b := range p.pending {
			n := q.count(b)
			if n > len(all.rows) {
				return 0, fmt.Errorf("table %s has too few of the rows that the store was given", q.table)
			}
			batches[i] = append(batches[i], table{all.name, all.columns, all.rows[:n]})
			all.rows = all.rows[n:]
		}
		if len(all.rows) > 0 {
			return 0, fmt.Errorf("table %s has %d rows more than the store was given", q.table, len(all.rows))
		}
	}
	return timed(p.pending, func(i int, _ batch) error { return p.raw(ctx, batches[i]) })
}

func (p *pair) ask(ctx context.Context, q question) (t table, err error) {
	rows, err := p.read.QueryContext(ctx, "SELECT * FROM "+q.table+" WHERE "+q.where, q.arg(p))
	if err != nil {
		return t, err
	}
	defer rows.Close()
	t.name = q.table
	if t.columns, err = rows.Columns(); err != nil {
		return t, err
	}
	for rows.Next() {
		row, to := make([]any, len(t.columns)), make([]any, len(t.columns))
		for i := range row {
			to[i] = &row[i]
		}
		if err := rows.Scan(to...); err != nil {
			return t, err
		}
		t.rows = append(t.rows, row)
	}
	return t, rows.Err()
}

// timed writes the batches one after the other and says how many rows that were a second.
func timed(batches []batch, write func(i int, b batch) error) (float64, error) {
	rows := 0
	began := time.Now()
	for i, b := range batches {
		if err := write(i, b); err != nil {
			return 0, err
		}
		rows += b.rows()
	}
	return float64(rows) / time.Since(began).Seconds(), nil
}
