package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"bmsota/protocol"
)

// Account is a person who signs in with a password.
type Account struct {
	Name       string
	Role       Role
	Password   string // as hashPassword writes it; empty = no password opens the account
	CreatedAt  time.Time
	CreatedBy  string
	PasswordAt time.Time // when Password was set
}

// Session is a signed-in browser. It belongs to the account or token of its name, and ends with it.
type Session struct {
	SHA256    string // hex of the SHA-256 of the cookie
	Account   string
	CreatedAt time.Time
	SeenAt    time.Time // last use, to within seenEvery
	ExpiresAt time.Time
}

// AccountTx is the part of Tx that keeps who may sign in. Deleting what is not there is no error.
type AccountTx interface {
	Account(name string) (Account, error)
	Accounts() ([]Account, error) // by name
	PutAccount(Account) error
	DeleteAccount(name string) error

	Operators() ([]Operator, error) // by name
	DeleteOperator(name string) error

	Session(sha256 string) (Session, error)
	PutSession(Session) error
	DeleteSession(sha256 string) error
	DeleteSessionsOf(account string) error
	DeleteSessionsUntil(expired time.Time) error // those whose ExpiresAt is not after expired
}

// Lengths of a password in bytes. NIST SP 800-63B asks for eight at the least.
const (
	minPassword = 10
	maxPassword = 256
)

func checkPassword(password string) error {
	switch {
	case len(password) < minPassword:
		return fmt.Errorf("%w: a password has at least %d characters", ErrInvalid, minPassword)
	case len(password) > maxPassword:
		return fmt.Errorf("%w: a password has at most %d bytes", ErrInvalid, maxPassword)
	case !printable(password):
		return fmt.Errorf("%w: the password holds a control character or is not UTF-8", ErrInvalid)
	}
	return nil
}

// checkName holds the name of an account or token to the alphabet of device ids: names stand in logs, rows and logins.
func checkName(name string) error {
	if err := protocol.CheckDeviceID(name); err != nil {
		return fmt.Errorf("%w: name %.64q: 1 to %d letters, digits and . _ : -, the first a letter or digit", ErrInvalid, name, protocol.MaxDeviceID)
	}
	return nil
}

// nameIsFree refuses a name that stands for somebody else already: rows say who did what by name alone.
func nameIsFree(tx Tx, name string, kinds ...string) error {
	for _, kind := range kinds {
		var err error
		switch kind {
		case "operator":
			_, err = tx.Operator(name)
			kind = "a token"
		case "account":
			_, err = tx.Account(name)
			kind = "an account"
		case "device":
			_, err = tx.Device(name)
			kind = "a device"
		}
		if err == nil {
			return fmt.Errorf("%w: %q is taken, it is the name of %s", ErrConflict, name, kind)
		}
		if !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	return nil
}

// AddAccount makes an account. A name that is taken, by an account, a token or a device, is ErrConflict.
func (f *Fleet) AddAccount(ctx context.Context, by Identity, name string, role Role, password string) error {
	if err := f.may(by, RightAdminister); err != nil {
		return err
	}
	for _, err := range []error{checkName(name), checkRole(role), checkPassword(password)} {
		if err != nil {
			return err
		}
	}
	hash, err := f.guard.hash(ctx, password)
	if err != nil {
		return err
	}
	return f.addAccount(ctx, by, name, role, hash)
}

// AddAccountWithoutPassword makes an account that no password opens: for somebody who is vouched for (LoginVouched), or until
// SetPassword gives it one.
func (f *Fleet) AddAccountWithoutPassword(ctx context.Context, by Identity, name string, role Role) error {
	if err := f.may(by, RightAdminister); err != nil {
		return err
	}
	if err := errors.Join(checkName(name), checkRole(role)); err != nil {
		return err
	}
	return f.addAccount(ctx, by, name, role, "")
}

func (f *Fleet) addAccount(ctx context.Context, by Identity, name string, role Role, hash string) error {
	now := f.cfg.Now()
	return f.update(ctx, by, func(tx Tx) error {
		if err := nameIsFree(tx, name, "account", "operator", "device"); err != nil {
			return err
		}
		return tx.PutAccount(Account{Name: name, Role: role, Password: hash, CreatedAt: now, CreatedBy: by.Name, PasswordAt: now})
	})
}

// RemoveAccount deletes an account and ends its sessions.
func (f *Fleet) RemoveAccount(ctx context.Context, by Identity, name string) error {
	if err := f.may(by, RightAdminister); err != nil {
		return err
	}
	return f.cutOff(name, f.update(ctx, by, func(tx Tx) error {
		if _, err := tx.Account(name); err != nil {
			return fmt.Errorf("account %.64q: %w", name, err)
		}
		if err := tx.DeleteAccount(name); err != nil {
			return err
		}
		return tx.DeleteSessionsOf(name)
	}))
}

// cutOff ends what is open under a name whose secret has just stopped working: its MQTT sessions, through the loop, and
// the streams of everyone who watches. Those come back and are asked again who they are; it is rare, and asking one
// stream whose it is would be a second answer to a question that BySession answers.
func (f *Fleet) cutOff(name string, err error) error {
	if err == nil {
		f.drop(name)
		f.watchers.end()
	}
	return err
}

// SetPassword gives an account a new password and ends its sessions.
func (f *Fleet) SetPassword(ctx context.Context, by Identity, name, password string) error {
	if err := f.may(by, RightAdminister); err != nil {
		return err
	}
	return f.setPassword(ctx, by, name, password)
}

// ChangePassword is SetPassword for one's own account, which needs the old password. Tries with a wrong one count as
// failed logins.
func (f *Fleet) ChangePassword(ctx context.Context, by Identity, address, old, password string) error {
	if err := f.may(by, RightPassword); err != nil {
		return err
	}
	if _, err := f.verify(ctx, by.Name, old, address); errors.Is(err, ErrDenied) {
		return fmt.Errorf("%w: the present password is wrong", ErrDenied)
	} else if err != nil {
		return err
	}
	return f.setPassword(ctx, by, by.Name, password)
}

func (f *Fleet) setPassword(ctx context.Context, by Identity, name, password string) error {
	if err := checkPassword(password); err != nil {
		return err
	}
	hash, err := f.guard.hash(ctx, password)
	if err != nil {
		return err
	}
	now := f.cfg.Now()
	return f.cutOff(name, f.update(ctx, by, func(tx Tx) error {
		a, err := tx.Account(name)
		if err != nil {
			return fmt.Errorf("account %.64q: %w", name, err)
		}
		a.Password, a.PasswordAt = hash, now
		if err := tx.PutAccount(a); err != nil {
			return err
		}
		return tx.DeleteSessionsOf(name)
	}))
}

// Accounts are all accounts, by name.
func (f *Fleet) Accounts(ctx context.Context, by Identity) ([]Account, error) {
	if err := f.may(by, RightAdminister); err != nil {
		return nil, err
	}
	var list []Account
	err := f.cfg.Store.View(ctx, func(tx Tx) (err error) {
		list, err = tx.Accounts()
		return err
	})
	return list, err
}

// valid says whether the token may still be used.
func (o Operator) valid(now time.Time) bool {
	return !o.Revoked && (o.ExpiresAt.IsZero() || now.Before(o.ExpiresAt))
}

// NewOperator makes a token with every right, for the server's own machine, and returns it; only its SHA-256 is kept. A
// name that exists gets a new token, the old one stops working and its sessions end.
func (f *Fleet) NewOperator(ctx context.Context, name string) (token string, err error) {
	return f.newOperator(ctx, theServer, Operator{Name: name, Role: RoleAdmin}, true)
}

// NewToken makes a token that ends at expires (zero: never) and returns it; only its SHA-256 is kept. A name that is
// taken is ErrConflict: a token that programs use must not be replaced by mistake.
func (f *Fleet) NewToken(ctx context.Context, by Identity, name string, role Role, expires time.Time) (token string, err error) {
	if err := f.may(by, RightAdminister); err != nil {
		return "", err
	}
	if err := checkRole(role); err != nil {
		return "", err
	}
	if !expires.IsZero() && !expires.After(f.cfg.Now()) {
		return "", fmt.Errorf("%w: the token would have ended at %s", ErrInvalid, expires.UTC().Format(time.RFC3339))
	}
	return f.newOperator(ctx, by, Operator{Name: name, Role: role, ExpiresAt: expires}, false)
}

func (f *Fleet) newOperator(ctx context.Context, by Identity, o Operator, replace bool) (token string, err error) {
	if err := checkName(o.Name); err != nil {
		return "", err
	}
	token, o.TokenSHA256 = newToken()
	o.CreatedAt = f.cfg.Now()
	err = f.update(ctx, by, func(tx Tx) error {
		_, err := tx.Operator(o.Name)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		if !replace || err != nil {
			if err := nameIsFree(tx, o.Name, "operator", "account", "device"); err != nil {
				return err
			}
		}
		if err := tx.PutOperator(o); err != nil {
			return err
		}
		return tx.DeleteSessionsOf(o.Name)
	})
	if err = f.cutOff(o.Name, err); err != nil {
		return "", err
	}
	return token, nil
}

// RemoveToken makes a token stop working and ends the sessions that began with it, of MQTT too.
func (f *Fleet) RemoveToken(ctx context.Context, by Identity, name string) error {
	if err := f.may(by, RightAdminister); err != nil {
		return err
	}
	return f.cutOff(name, f.update(ctx, by, func(tx Tx) error {
		if _, err := tx.Operator(name); err != nil {
			return fmt.Errorf("token %.64q: %w", name, err)
		}
		if err := tx.DeleteOperator(name); err != nil {
			return err
		}
		return tx.DeleteSessionsOf(name)
	}))
}

// Tokens are all tokens, by name.
func (f *Fleet) Tokens(ctx context.Context, by Identity) ([]Operator, error) {
	if err := f.may(by, RightAdminister); err != nil {
		return nil, err
	}
	var list []Operator
	err := f.cfg.Store.View(ctx, func(tx Tx) (err error) {
		list, err = tx.Operators()
		return err
	})
	return list, err
}

// OperatorByToken says whose token it is; ErrDenied when it is nobody's, or no longer anybody's.
func (f *Fleet) OperatorByToken(ctx context.Context, token string) (Identity, error) {
	var o Operator
	err := f.cfg.Store.View(ctx, func(tx Tx) error {
		var err error
		o, err = tx.OperatorByToken(tokenDigest(token))
		return err
	})
	switch {
	case errors.Is(err, ErrNotFound):
		return Identity{}, fmt.Errorf("%w: unknown token", ErrDenied)
	case err != nil:
		return Identity{}, err
	case !o.valid(f.cfg.Now()):
		return Identity{}, fmt.Errorf("%w: the token %q has ended", ErrDenied, o.Name)
	}
	return Identity{Name: o.Name, Role: o.Role}, nil
}
