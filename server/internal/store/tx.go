package store

import (
	"context"
	"database/sql"
	"errors"

	"bmsota/server/internal/fleet"
)

// sqlTx is fleet.Tx over a transaction of either database.
type sqlTx struct {
	ctx      context.Context // of the one Update or View that owns this value
	tx       *sql.Tx
	prepared *[queryCount]*sql.Stmt // nil where the driver keeps them
	many     bulk                   // likewise, of those for many rows
	conn     *sql.Conn              // of tx, in an Update of PostgreSQL: what COPY goes over
	prepares bool                   // conn keeps prepared statements: no pooler deals out transactions
	fault    func(error) error      // names the sentinel of a driver's error
	bind     func([]any) []any      // values as the columns want them; nil for as they are
	advised  bool                   // the database chooses indexes by the words of a query
	readOnly bool
	clock    string // asks the database for its time; "" = it is this process's
	tables   int64  // the version of the tables that this program knows
	wrote    bool
	members  bool  // of rollouts were written
	failed   error // of the first Put that failed: the transaction is void after it
}

var errReadOnly = errors.New("store: a change inside View")

func (t *sqlTx) put(q query, args ...any) error {
	_, err := t.write(q, args...)
	return err
}

// write is put that says how many rows it has written.
func (t *sqlTx) write(q query, args ...any) (rows int64, err error) {
	if t.prepared == nil {
		return t.change(queries[q], args...)
	}
	return t.changed(func() (sql.Result, error) { return t.tx.StmtContext(t.ctx, t.prepared[q]).ExecContext(t.ctx, args...) })
}

// change is write of a query that is not among the prepared ones.
func (t *sqlTx) change(text string, args ...any) (rows int64, err error) {
	return t.changed(func() (sql.Result, error) { return t.tx.ExecContext(t.ctx, text, t.values(args)...) })
}

func (t *sqlTx) changed(do func() (sql.Result, error)) (rows int64, err error) {
	if t.readOnly {
		return 0, errReadOnly
	}
	if t.failed != nil {
		return 0, t.failed
	}
	t.wrote = true
	result, err := do()
	if err == nil {
		rows, err = result.RowsAffected()
	}
	if err != nil {
		t.failed = t.fault(err)
	}
	return rows, t.failed
}

func (t *sqlTx) values(args []any) []any {
	if t.bind == nil {
		return args
	}
	return t.bind(args)
}

// one reads at most one row.
func one[T any](t *sqlTx, scan func(scanner) (T, error), q query, args ...any) (T, error) {
	if t.prepared == nil {
		return oneOf(t, scan, queries[q], args...)
	}
	return first(t, scan, t.tx.StmtContext(t.ctx, t.prepared[q]).QueryRowContext(t.ctx, args...))
}

func first[T any](t *sqlTx, scan func(scanner) (T, error), row *sql.Row) (T, error) {
	v, err := scan(row)
	if errors.Is(err, sql.ErrNoRows) {
		return v, fleet.ErrNotFound
	}
	if err != nil {
		return v, t.fault(err)
	}
	return v, nil
}

// many reads all rows.
func many[T any](t *sqlTx, scan func(scanner) (T, error), q query, args ...any) ([]T, error) {
	if t.prepared == nil {
		return manyOf(t, scan, queries[q], args...)
	}
	rows, err := t.tx.StmtContext(t.ctx, t.prepared[q]).QueryContext(t.ctx, args...)
	if err != nil {
		return nil, t.fault(err)
	}
	return collect(t, rows, scan)
}

func collect[T any](t *sqlTx, rows *sql.Rows, scan func(scanner) (T, error)) ([]T, error) {
	defer rows.Close()
	var list []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, t.fault(err)
		}
		list = append(list, v)
	}
	if err := rows.Err(); err != nil {
		return nil, t.fault(err)
	}
	return list, nil
}

func (t *sqlTx) Release(sha256 string) (fleet.Release, error) {
	return one(t, scanRelease, qRelease, sha256)
}

func (t *sqlTx) ReleaseByVersion(project, chip, version string) (fleet.Release, error) {
	return one(t, scanRelease, qReleaseByVersion, project, chip, version)
}

func (t *sqlTx) Releases() ([]fleet.Release, error) { return many(t, scanRelease, qReleases) }

func (t *sqlTx) PutRelease(r fleet.Release) error { return t.put(qPutRelease, releaseArgs(r)...) }

func (t *sqlTx) Channel(project, chip, name string) (fleet.Channel, error) {
	return one(t, scanChannel, qChannel, project, chip, name)
}

func (t *sqlTx) Channels() ([]fleet.Channel, error) { return many(t, scanChannel, qChannels) }

func (t *sqlTx) PutChannel(c fleet.Channel) error { return t.put(qPutChannel, channelArgs(c)...) }

func (t *sqlTx) Device(id string) (fleet.Device, error) { return one(t, scanDevice, qDevice, id) }

func (t *sqlTx) Devices() ([]fleet.Device, error) { return many(t, scanDevice, qDevices) }

func (t *sqlTx) PutDevice(d fleet.Device) error {
	args, err := deviceArgs(d)
	if err != nil {
		return err
	}
	return t.put(qPutDevice, args...)
}

func (t *sqlTx) Attempt(id string) (fleet.Attempt, error) { return one(t, scanAttempt, qAttempt, id) }

func (t *sqlTx) AttemptsOf(device string, limit int) ([]fleet.Attempt, error) {
	return many(t, scanAttempt, qAttemptsOf, device, int64(limit))
}

func (t *sqlTx) AttemptsBefore(a fleet.Attempt, limit int) ([]fleet.Attempt, error) {
	return manyOf(t, scanAttempt, `SELECT `+attemptColumns+` FROM attempts WHERE device_id = $1 AND (created_at, id) < ($2, $3)
 ORDER BY created_at DESC, id DESC LIMIT $4`, a.DeviceID, millis(a.CreatedAt), a.ID, int64(limit))
}

func (t *sqlTx) OpenAttempts() ([]fleet.Attempt, error) { return many(t, scanAttempt, qOpenAttempts) }

func (t *sqlTx) OpenAttemptsOf(device string) ([]fleet.Attempt, error) {
	return many(t, scanAttempt, qOpenAttemptsOf, device)
}

func (t *sqlTx) PutAttempt(a fleet.Attempt) error { return t.put(qPutAttempt, attemptArgs(a)...) }

func (t *sqlTx) Keys(project string) ([]fleet.ProjectKey, error) {
	return many(t, scanKey, qKeys, project)
}

func (t *sqlTx) PutKey(k fleet.ProjectKey) error {
	return t.put(qPutKey, k.Project, string(k.Kind), int64(k.Sequence), k.Key, k.FromVersion, k.Threshold, k.Retired, millis(k.AddedAt), k.AddedBy)
}

func (t *sqlTx) Operator(name string) (fleet.Operator, error) {
	return one(t, scanOperator, qOperator, name)
}

func (t *sqlTx) OperatorByToken(sha256 string) (fleet.Operator, error) {
	return one(t, scanOperator, qOperatorByToken, sha256)
}

func (t *sqlTx) PutOperator(o fleet.Operator) error {
	return t.put(qPutOperator, o.Name, o.TokenSHA256, millis(o.CreatedAt), o.Revoked, string(o.Role), millis(o.ExpiresAt))
}
