package fleet

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"bmsota/audit"
)

// How long a session lives: unused, and at the most.
const (
	SessionIdle = 12 * time.Hour
	SessionLife = 7 * 24 * time.Hour
	// seenEvery is how far SeenAt may lag, so that not every page is a commit.
	seenEvery = 5 * time.Minute
)

// TooSoon is the answer to a login that must wait, whether or not there is such an account.
type TooSoon struct{ Wait time.Duration }

func (t *TooSoon) Error() string {
	return fmt.Sprintf("too many tries: wait %s", t.Wait.Round(time.Second))
}

// Login opens a session for an account by its password, or for a token by the token itself, and returns the secret of
// its cookie; only its SHA-256 is kept. address is where the caller sits. Everything that is not exactly right is
// ErrDenied with the same words after the same work, so that nobody learns which names there are; *TooSoon asks to wait.
func (f *Fleet) Login(ctx context.Context, name, secret, address string) (cookie string, by Identity, err error) {
	if by, err = f.verify(ctx, name, secret, address); err != nil {
		return "", Identity{}, err
	}
	return f.openSession(ctx, by, address, ViaWeb)
}

// LoginVouched opens a session for the account of a name for whom a sign-in provider has vouched; see package sso. There must be
// such an account: the provider says who somebody is, and an administrator what that may do.
func (f *Fleet) LoginVouched(ctx context.Context, name, address string) (cookie string, by Identity, err error) {
	err = f.cfg.Store.View(ctx, func(tx Tx) error {
		a, err := tx.Account(name)
		by = Identity{Name: a.Name, Role: a.Role}
		return err
	})
	if errors.Is(err, ErrNotFound) {
		f.TurnedAway(Knock{What: audit.LoginFailed, Name: name, Via: ViaSSO, Address: address, About: "no such account"})
		return "", Identity{}, fmt.Errorf("%w: there is no account %.64q", ErrDenied, name)
	}
	if err != nil {
		return "", Identity{}, err
	}
	return f.openSession(ctx, by, address, ViaSSO)
}

// MayTry says whether somebody at address may try to sign in by a provider now; *TooSoon asks to wait, as after wrong passwords.
func (f *Fleet) MayTry(address string) error { return f.guard.waitFor(f.cfg.Now(), "a "+address) }

// Refused is TurnedAway for somebody whom a provider did not vouch for. It counts as a failed login of the address.
func (f *Fleet) Refused(k Knock) {
	f.guard.failedAt(k.Address, f.cfg.Now())
	f.TurnedAway(k)
}

func (f *Fleet) openSession(ctx context.Context, by Identity, address, via string) (cookie string, _ Identity, err error) {
	cookie, digest := newToken()
	now := f.cfg.Now()
	s := Session{SHA256: digest, Account: by.Name, CreatedAt: now, SeenAt: now, ExpiresAt: now.Add(SessionLife)}
	err = f.update(ctx, by, func(tx Tx) error {
		if err := tx.DeleteSessionsUntil(now); err != nil {
			return err
		}
		// Asked again: the account may have gone, or got another password, while this one was worked on.
		role, since, err := holder(tx, by.Name, now)
		if err == nil && since.After(s.CreatedAt) || errors.Is(err, ErrNotFound) {
			return errLogin
		}
		if err != nil {
			return err
		}
		by.Role = role
		own := as(tx, by, address)
		if t, ok := own.(*audited); ok {
			t.via = via
		}
		return own.PutSession(s)
	})
	if err != nil {
		return "", Identity{}, err
	}
	return cookie, by, nil
}

var errLogin = fmt.Errorf("%w: name or password is wrong", ErrDenied)

// verify says who name and secret are.
func (f *Fleet) verify(ctx context.Context, name, secret, address string) (Identity, error) {
	if len(name) > 64 || len(secret) > maxPassword || name == "" || secret == "" {
		return Identity{}, errLogin
	}
	if err := f.guard.wait(name, address, f.cfg.Now()); err != nil {
		f.TurnedAway(Knock{What: audit.LoginFailed, Name: name, Via: ViaWeb, Address: address, About: "too many tries"})
		return Identity{}, err
	}
	var account Account
	var token Operator
	err := f.cfg.Store.View(ctx, func(tx Tx) error {
		account, token = Account{}, Operator{}
		var err error
		if account, err = tx.Account(name); err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		if token, err = tx.Operator(name); err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		return nil
	})
	if err != nil {
		return Identity{}, err
	}
	encoded := account.Password
	if encoded == "" {
		encoded = nobody // the same work for a name that is not there
	}
	var right bool
	var again error
	err = f.guard.inTurn(ctx, func() {
		// Many may have come in together, before the first of them had failed.
		if again = f.guard.wait(name, address, f.cfg.Now()); again == nil {
			right = verifyPassword(secret, encoded) && account.Name != ""
		}
	})
	if err = errors.Join(err, again); err != nil {
		return Identity{}, err
	}
	now := f.cfg.Now()
	byToken := token.Name != "" && token.valid(now) && sameDigest(token.TokenSHA256, tokenDigest(secret))
	switch {
	case right:
		f.guard.succeeded(name)
		return Identity{Name: account.Name, Role: account.Role}, nil
	case byToken:
		f.guard.succeeded(name)
		return Identity{Name: token.Name, Role: token.Role}, nil
	}
	f.guard.failed(name, address, now)
	f.TurnedAway(Knock{What: audit.LoginFailed, Name: name, Via: ViaWeb, Address: address})
	return Identity{}, errLogin
}

// nobody is a hash of the usual cost that belongs to no password anybody can give.
const nobody = "$argon2id$v=19$m=19456,t=2,p=1$bm8gYWNjb3VudCBoZXJl$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

// holder is the present role of the account or token of a name, and since when its secret is the present one;
// ErrNotFound when there is none that may sign in.
func holder(tx Tx, name string, now time.Time) (Role, time.Time, error) {
	a, err := tx.Account(name)
	if err == nil {
		return a.Role, a.PasswordAt, nil
	}
	if !errors.Is(err, ErrNotFound) {
		return "", time.Time{}, err
	}
	o, err := tx.Operator(name)
	if err == nil && !o.valid(now) {
		err = ErrNotFound
	}
	return o.Role, o.CreatedAt, err
}

// BySession says whose session a cookie is; ErrDenied when it is nobody's or has ended. use says that a person did
// something, which keeps the session from ending unused.
func (f *Fleet) BySession(ctx context.Context, cookie string, use bool) (Identity, error) {
	denied := fmt.Errorf("%w: no session", ErrDenied)
	if cookie == "" || len(cookie) > 64 {
		return Identity{}, denied
	}
	now := f.cfg.Now()
	digest := tokenDigest(cookie)
	var id Identity
	var s Session
	err := f.cfg.Store.View(ctx, func(tx Tx) error {
		id = Identity{}
		var err error
		if s, err = tx.Session(digest); err != nil {
			return err
		}
		if !now.Before(s.ExpiresAt) || now.Sub(s.SeenAt) > SessionIdle {
			return ErrNotFound
		}
		role, _, err := holder(tx, s.Account, now)
		id = Identity{Name: s.Account, Role: role}
		return err
	})
	if errors.Is(err, ErrNotFound) {
		return Identity{}, denied
	}
	if err != nil {
		return Identity{}, err
	}
	if use && now.Sub(s.SeenAt) >= seenEvery {
		err = f.update(ctx, id, func(tx Tx) error {
			s, err := tx.Session(digest)
			if errors.Is(err, ErrNotFound) {
				return denied // it ended in between, and must not come back
			}
			if err != nil {
				return err
			}
			s.SeenAt = now
			return tx.PutSession(s)
		})
	}
	return id, err
}

// Logout ends a session. One that is not there has ended already.
func (f *Fleet) Logout(ctx context.Context, cookie string) error {
	digest, there := tokenDigest(cookie), false
	err := f.update(ctx, theServer, func(tx Tx) (err error) {
		if _, there, err = before(tx.Session(digest)); err != nil {
			return err
		}
		return tx.DeleteSession(digest)
	})
	if err == nil && there { // else anybody could end everybody's pages
		f.watchers.end()
	}
	return err
}

// What failed logins cost. A name's wait stays short, because anyone can make it long for its owner; an address's does
// not, but begins later, because many people may sit behind one.
const (
	freeTries        = 5
	freeTriesAddress = 20
	maxWaitName      = time.Minute
	maxWaitAddress   = 15 * time.Minute
	forgetTries      = time.Hour
	maxTries         = 10_000 // names and addresses remembered
)

// guard slows guessing down. It is safe for concurrent use.
type guard struct {
	turn  chan struct{} // capacity hashesAtOnce
	queue chan struct{} // capacity hashWaiting

	mu    sync.Mutex
	tries map[string]tries // guarded by mu; by "n " and a name, "a " and an address
}

type tries struct {
	count int
	last  time.Time
	until time.Time // no try before this
}

func newGuard() *guard {
	return &guard{turn: make(chan struct{}, hashesAtOnce), queue: make(chan struct{}, hashWaiting), tries: make(map[string]tries)}
}

// wait says how long name and address have to wait; nil for not at all.
func (g *guard) wait(name, address string, now time.Time) error {
	return g.waitFor(now, "n "+name, "a "+address)
}

func (g *guard) waitFor(now time.Time, keys ...string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	var longest time.Duration
	for _, key := range keys {
		longest = max(longest, g.tries[key].until.Sub(now))
	}
	if longest > 0 {
		return &TooSoon{Wait: longest}
	}
	return nil
}

func (g *guard) succeeded(name string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.tries, "n "+name)
}

func (g *guard) failed(name, address string, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.note("n "+name, now, freeTries, maxWaitName)
	g.note("a "+address, now, freeTriesAddress, maxWaitAddress)
}

func (g *guard) failedAt(address string, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.note("a "+address, now, freeTriesAddress, maxWaitAddress)
}

// note counts a failure. From the free ones on the wait doubles from a second up to longest.
func (g *guard) note(key string, now time.Time, free int, longest time.Duration) {
	t, known := g.tries[key]
	if !known && len(g.tries) >= maxTries {
		g.prune(now)
	}
	if now.Sub(t.last) > forgetTries {
		t = tries{}
	}
	t.count++
	t.last = now
	if over := t.count - free; over >= 0 {
		t.until = now.Add(min(time.Second<<min(over, 20), longest))
	}
	g.tries[key] = t
}

// prune makes room: what is forgotten anyway goes, and where that is not enough, what has no wait running.
func (g *guard) prune(now time.Time) {
	for _, gone := range []func(tries) bool{
		func(t tries) bool { return now.Sub(t.last) > forgetTries },
		func(t tries) bool { return !t.until.After(now) },
		func(tries) bool { return true },
	} {
		for key, t := range g.tries {
			if gone(t) {
				delete(g.tries, key)
			}
		}
		if len(g.tries) < maxTries/2 {
			return
		}
	}
}
