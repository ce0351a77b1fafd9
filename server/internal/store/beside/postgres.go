package beside

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"bmsota/server/internal/store"

	"github.com/jackc/pgx/v5"
)

// Postgres are the pieces of work in two empty databases of one server, by their URLs.
func Postgres(ctx context.Context, ours, bare string) (_ *Pairs, err error) {
	p := &Pairs{}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	s, err := store.OpenPostgres(ctx, store.PostgresConfig{URL: ours})
	if err != nil {
		return nil, err
	}
	p.closes = append(p.closes, s.Close)
	made, err := store.OpenPostgres(ctx, store.PostgresConfig{URL: bare})
	if err != nil {
		return nil, err
	}
	if err := errors.Join(seed(ctx, s), seed(ctx, made), made.Close()); err != nil {
		return nil, err
	}
	read, err := sql.Open("pgx", ours)
	if err != nil {
		return nil, err
	}
	p.closes = append(p.closes, read.Close)
	conn, err := pgx.Connect(ctx, bare)
	if err != nil {
		return nil, err
	}
	p.closes = append(p.closes, func() error { return conn.Close(context.WithoutCancel(ctx)) })
	b := &barePostgres{conn: conn, staged: make(map[string]bool)}
	for _, w := range []struct {
		name, peer, note string
		pair
	}{
		{"members of a rollout that is created in PostgreSQL", "COPY", "", pair{raw: b.copy, turn: created, written: []question{ofRollout, ofMembers}}},
		{"attempts that begin in PostgreSQL, with their log rows: 500 of both a commit", "COPY", "", pair{raw: b.copy, turn: begun, written: []question{ofBegun, ofLog}}},
		{"statuses in PostgreSQL: rows of devices, attempts and log, 500 statuses a commit", "COPY and merge",
			"COPY alone replaces nothing: the peer copies into a table that is nobody else's, and puts all of it into the one that is meant with one INSERT … ON CONFLICT",
			pair{raw: b.merge, turn: statuses, written: []question{ofDevices, ofAttempts, ofLog}}},
	} {
		w.store, w.read = s, read
		p.List = append(p.List, Pair{Name: w.name, Peer: w.peer, Note: w.note, Ours: w.ours, Raw: w.bare})
	}
	return p, nil
}

// barePostgres writes with COPY, as binary as the driver has it, on one connection.
type barePostgres struct {
	conn   *pgx.Conn
	staged map[string]bool // tables that have one of their own to copy into
}

// copy copies rows that are all new.
func (b *barePostgres) copy(ctx context.Context, tables []table) error {
	return pgx.BeginFunc(ctx, b.conn, func(tx pgx.Tx) error {
		for _, t := range tables {
			if err := copyInto(ctx, tx, t.name, t); err != nil {
				return err
			}
		}
		return nil
	})
}

// merge copies rows of which there may be some. Those of the log are new.
func (b *barePostgres) merge(ctx context.Context, tables []table) error {
	for _, t := range tables {
		if t.name == "audit" || b.staged[t.name] {
			continue
		}
		if _, err := b.conn.Exec(ctx, "CREATE TEMPORARY TABLE new_"+t.name+" (LIKE "+t.name+") ON COMMIT DELETE ROWS"); err != nil {
			return err
		}
		b.staged[t.name] = true
	}
	return pgx.BeginFunc(ctx, b.conn, func(tx pgx.Tx) error {
		for _, t := range tables {
			if t.name == "audit" {
				if err := copyInto(ctx, tx, t.name, t); err != nil {
					return err
				}
				continue
			}
			if err := copyInto(ctx, tx, "new_"+t.name, t); err != nil {
				return err
			}
			columns := strings.Join(t.columns, ", ")
			if _, err := tx.Exec(ctx, "INSERT INTO "+t.name+" ("+columns+") SELECT "+columns+" FROM new_"+t.name+" ON CONFLICT (id) DO UPDATE SET "+excluded(t.columns)); err != nil {
				return err
			}
		}
		return nil
	})
}

func copyInto(ctx context.Context, tx pgx.Tx, name string, t table) error {
	n, err := tx.CopyFrom(ctx, pgx.Identifier{name}, t.columns, pgx.CopyFromRows(t.rows))
	if err == nil && n != int64(len(t.rows)) {
		err = fmt.Errorf("COPY has written %d of %d rows of %s", n, len(t.rows), name)
	}
	return err
}
