package store

import (
	"time"

	"bmsota/server/internal/fleet"
)

const (
	accountColumns = `name, role, password, created_at, created_by, password_at`
	sessionColumns = `sha256, account, created_at, seen_at, expires_at`
)

func scanAccount(s scanner) (a fleet.Account, err error) {
	err = s.Scan(&a.Name, &a.Role, &a.Password, instant{&a.CreatedAt}, &a.CreatedBy, instant{&a.PasswordAt})
	return a, err
}

func scanSession(s scanner) (v fleet.Session, err error) {
	err = s.Scan(&v.SHA256, &v.Account, instant{&v.CreatedAt}, instant{&v.SeenAt}, instant{&v.ExpiresAt})
	return v, err
}

func (t *sqlTx) Account(name string) (fleet.Account, error) {
	return oneOf(t, scanAccount, `SELECT `+accountColumns+` FROM accounts WHERE name = $1`, name)
}

func (t *sqlTx) Accounts() ([]fleet.Account, error) {
	return manyOf(t, scanAccount, `SELECT `+accountColumns+` FROM accounts ORDER BY name`)
}

func (t *sqlTx) PutAccount(a fleet.Account) error {
	return t.exec(`INSERT INTO accounts (`+accountColumns+`) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (name) DO UPDATE SET role = excluded.role, password = excluded.password, created_at = excluded.created_at,
 created_by = excluded.created_by, password_at = excluded.password_at`,
		a.Name, string(a.Role), a.Password, millis(a.CreatedAt), a.CreatedBy, millis(a.PasswordAt))
}

func (t *sqlTx) DeleteAccount(name string) error {
	return t.exec(`DELETE FROM accounts WHERE name = $1`, name)
}

func (t *sqlTx) Operators() ([]fleet.Operator, error) {
	return manyOf(t, scanOperator, `SELECT `+operatorColumns+` FROM operators ORDER BY name`)
}

func (t *sqlTx) DeleteOperator(name string) error {
	return t.exec(`DELETE FROM operators WHERE name = $1`, name)
}

func (t *sqlTx) Session(sha256 string) (fleet.Session, error) {
	return oneOf(t, scanSession, `SELECT `+sessionColumns+` FROM sessions WHERE sha256 = $1`, sha256)
}

func (t *sqlTx) PutSession(s fleet.Session) error {
	return t.exec(`INSERT INTO sessions (`+sessionColumns+`) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (sha256) DO UPDATE SET account = excluded.account, created_at = excluded.created_at, seen_at = excluded.seen_at,
 expires_at = excluded.expires_at`, s.SHA256, s.Account, millis(s.CreatedAt), millis(s.SeenAt), millis(s.ExpiresAt))
}

func (t *sqlTx) DeleteSession(sha256 string) error {
	return t.exec(`DELETE FROM sessions WHERE sha256 = $1`, sha256)
}

func (t *sqlTx) DeleteSessionsOf(account string) error {
	return t.exec(`DELETE FROM sessions WHERE account = $1`, account)
}

func (t *sqlTx) DeleteSessionsUntil(expired time.Time) error {
	return t.exec(`DELETE FROM sessions WHERE expires_at <= $1`, millis(expired))
}
