package fleet

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"time"

	"bmsota/protocol"
)

// tokenSum is what is remembered of the token by which a device has logged in.
type tokenSum [sha256.Size]byte

// maxLogins is how many devices' tokens are remembered: more than a broker has sessions, some 3 MB.
const maxLogins = 20_000

// Authenticate checks an MQTT login: name is a device id or the name of an operator's token, secret the token. A viewer's
// token is not for MQTT. Everything that is not exactly right is ErrDenied, without saying what was wrong; a fault of the
// store is another error.
//
// A device's token that was right is remembered until its row says otherwise, where no other server changes rows (as at asker).
// Whatever is not what is remembered is looked up, so nothing is refused from memory.
func (f *Fleet) Authenticate(ctx context.Context, name, secret string) (Identity, error) {
	if name == "" || secret == "" || len(name) > protocol.MaxDeviceID || len(secret) > 256 {
		return Identity{}, fmt.Errorf("%w: login refused", ErrDenied)
	}
	if f.shared() || !f.plans() {
		return f.lookUp(ctx, name, secret)
	}
	sum := tokenSum(sha256.Sum256([]byte(secret)))
	if known, ok := f.logins.get(name); ok && subtle.ConstantTimeCompare(known[:], sum[:]) == 1 {
		return Identity{Name: name, Role: RoleDevice}, nil
	}
	look := f.logins.look(name)
	id, err := f.lookUp(ctx, name, secret)
	f.logins.looked(look, sum, err == nil && id.Role == RoleDevice, f.cfg.Now())
	return id, err
}

// lookUp says by the rows who logs in.
func (f *Fleet) lookUp(ctx context.Context, name, secret string) (Identity, error) {
	digest := tokenDigest(secret)
	id, ends := Identity{}, time.Time{}
	err := f.cfg.Store.View(ctx, func(tx Tx) error {
		id, ends = Identity{}, time.Time{}
		d, err := tx.Device(name)
		if err == nil && !d.Revoked && sameDigest(d.TokenSHA256, digest) {
			id = Identity{Name: name, Role: RoleDevice}
			return nil
		}
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		o, err := tx.Operator(name)
		if err == nil && o.valid(f.cfg.Now()) && sameDigest(o.TokenSHA256, digest) && (Identity{o.Name, o.Role}).Has(RightOperate) {
			id = Identity{Name: name, Role: RoleOperator} // there is nothing more to do over MQTT
			ends = o.ExpiresAt
		}
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		return err
	})
	if err != nil {
		return Identity{}, err
	}
	if id.Name == "" {
		return Identity{}, fmt.Errorf("%w: login refused", ErrDenied)
	}
	if !ends.IsZero() {
		f.mu.Lock()
		f.ending[name] = ends
		f.mu.Unlock()
	}
	return id, nil
}
