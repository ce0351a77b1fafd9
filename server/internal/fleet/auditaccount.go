package fleet

import (
	"errors"
	"time"

	"bmsota/audit"
)

func (t *audited) PutOperator(o Operator) error {
	old, there, err := before(t.Operator(o.Name))
	if err != nil {
		return err
	}
	details := audit.Of("role", string(o.Role), "was", was(string(old.Role), string(o.Role)), "new_secret", yes(there && old.TokenSHA256 != o.TokenSHA256), "revoked", yes(o.Revoked))
	if !o.ExpiresAt.IsZero() {
		details = append(details, audit.Of("expires", o.ExpiresAt.UTC().Format(time.RFC3339))...)
	}
	same := there && old.Role == o.Role && old.TokenSHA256 == o.TokenSHA256 && old.Revoked == o.Revoked &&
		old.ExpiresAt.UTC().Truncate(time.Millisecond).Equal(o.ExpiresAt.UTC().Truncate(time.Millisecond))
	switch {
	case !there:
		t.add(audit.Entry{What: audit.TokenAdd, About: o.Name, Details: details})
	case !same:
		t.add(audit.Entry{What: audit.TokenChange, About: o.Name, Details: details})
	}
	t.loseLogin(there && !same, o.Name)
	return t.Tx.PutOperator(o)
}

func (t *audited) DeleteOperator(name string) error {
	_, there, err := before(t.Operator(name))
	if err != nil {
		return err
	}
	if there {
		t.add(audit.Entry{What: audit.TokenRemove, About: name})
	}
	t.loseLogin(there, name)
	return t.Tx.DeleteOperator(name)
}

func (t *audited) PutAccount(a Account) error {
	old, there, err := before(t.Account(a.Name))
	if err != nil {
		return err
	}
	if !there {
		t.add(audit.Entry{What: audit.AccountAdd, About: a.Name, Details: audit.Of("role", string(a.Role))})
	} else {
		if old.Role != a.Role {
			t.add(audit.Entry{What: audit.AccountRole, About: a.Name, Details: audit.Of("role", string(a.Role), "was", string(old.Role))})
		}
		if old.Password != a.Password {
			t.add(audit.Entry{What: audit.AccountPassword, About: a.Name})
		}
	}
	t.loseLogin(there && (old.Role != a.Role || old.Password != a.Password), a.Name)
	return t.Tx.PutAccount(a)
}

func (t *audited) DeleteAccount(name string) error {
	_, there, err := before(t.Account(name))
	if err != nil {
		return err
	}
	if there {
		t.add(audit.Entry{What: audit.AccountRemove, About: name})
	}
	t.loseLogin(there, name)
	return t.Tx.DeleteAccount(name)
}

// PutSession tells of the login; what follows is its use.
func (t *audited) PutSession(s Session) error {
	_, there, err := before(t.Session(s.SHA256))
	if err != nil {
		return err
	}
	if !there {
		t.add(audit.Entry{What: audit.LoginOK, Details: audit.Of("via", first(t.via, ViaWeb), "address", t.from)})
	}
	return t.Tx.PutSession(s)
}

// DeleteSession tells of whoever signs out. Sessions that end with their account, or unused, are not told of.
func (t *audited) DeleteSession(sha256 string) error {
	s, there, err := before(t.Session(sha256))
	if err != nil {
		return err
	}
	if there {
		role, _, err := holder(t, s.Account, t.book.now)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		t.add(audit.Entry{Who: s.Account, Role: string(role), What: audit.LoginOut})
		inform(t, func(c *changed) { c.Out = true })
	}
	return t.Tx.DeleteSession(sha256)
}

// loseLogin has the other servers end what is open under a name whose secret, or right, is no longer what it was.
func (t *audited) loseLogin(lost bool, name string) {
	if lost {
		inform(t, func(c *changed) { c.Logins = append(c.Logins, name) })
	}
}
