package bench

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
)

// storeGoal is how much of what the bare driver writes in a second is to come through the store.
const storeGoal = 0.9

// Rows is work on one database. Close ends its connections.
type Rows struct {
	List  []RowWork
	Close func() error
}

// RowWork is rows that are written through the store (Ours) and through the bare driver (Theirs); both say rows a second.
type RowWork struct {
	Name, Peer, Note string
	Ours, Theirs     Turn
}

// rows measures the store beside the driver below it: the same rows in the same transactions, each synchronised to the disk. It is
// work of this process and not of Binary's.
func rows(ctx context.Context, b *Bench) error {
	dir := filepath.Join(b.Dir, "sqlite")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	work, err := b.SQLiteRows(ctx, dir)
	if err != nil {
		return err
	}
	if err := b.besideDriver(ctx, work); err != nil {
		return err
	}
	p, err := b.startPostgres()
	if err != nil || p == nil {
		return err
	}
	work, err = b.postgresWork(ctx, p)
	if err == nil {
		err = b.besideDriver(ctx, work)
	}
	return errors.Join(err, p.stop())
}

func (b *Bench) postgresWork(ctx context.Context, p *postgres) (Rows, error) {
	ours, err := p.database()
	if err != nil {
		return Rows{}, err
	}
	bare, err := p.database()
	if err != nil {
		return Rows{}, err
	}
	return b.PostgresRows(ctx, ours, bare)
}

func (b *Bench) besideDriver(ctx context.Context, work Rows) error {
	var errs []error
	for _, w := range work.List {
		f := Figure{Name: w.Name, Unit: "rows a second", Peer: w.Peer, Note: w.Note, Goal: storeGoal, AtLeast: true}
		if err := b.Beside(ctx, f, w.Ours, w.Theirs); err != nil {
			errs = append(errs, err)
			break
		}
	}
	return errors.Join(slices.Concat(errs, []error{work.Close()})...)
}

// postgres is a PostgreSQL that was started for the run.
type postgres struct {
	database func() (url string, err error) // makes an empty one
	stop     func() error
}

// database is the URL of the database that was asked for, and what ends it where it was started for it.
func (b *Bench) database() (url string, stop func() error, err error) {
	if b.Database != StartDatabase {
		return b.Database, func() error { return nil }, nil
	}
	p, err := b.startPostgres()
	if err != nil {
		return "", nil, err
	}
	if p == nil {
		return "", nil, errors.New("there is no PostgreSQL on this machine to start: bash e2e/deps.sh, or give the URL of a database with --database")
	}
	if url, err = p.database(); err != nil {
		return "", nil, errors.Join(err, p.stop())
	}
	return url, p.stop, nil
}

// noPostgres says that there is none.
func (b *Bench) noPostgres() (*postgres, error) {
	b.named(Peer{Name: "postgresql", Missing: true})
	b.Say("%s: PostgreSQL is not on this machine: figures over it are left out", b.suite)
	return nil, nil
}
