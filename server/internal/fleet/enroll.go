package fleet

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"bmsota/protocol"
)

// newToken is 256 random bits as 43 characters of the URL alphabet, and the digest that is kept of them. Guessing
// such a token is out of reach, so one round of SHA-256 is enough and a storm of reconnects stays cheap.
func newToken() (token, digest string) {
	var secret [32]byte
	rand.Read(secret[:]) // never fails (crypto/rand)
	token = base64.RawURLEncoding.EncodeToString(secret[:])
	return token, tokenDigest(token)
}

func tokenDigest(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

func sameDigest(a, b string) bool {
	return a != "" && subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1
}

// Enroll gives a device a new token and returns it; only its SHA-256 is kept. Enrolling again replaces the token or
// certificate, lifts a revocation, ends the sessions of the old one and clears what the device is suspected of.
func (f *Fleet) Enroll(ctx context.Context, by Identity, id string) (token string, err error) {
	if err := f.mayEnroll(by, id); err != nil {
		return "", err
	}
	token, digest := newToken()
	err = f.enroll(ctx, by, id, func(d *Device) {
		d.TokenSHA256, d.CertificateSHA256, d.CertificateEnds = digest, "", time.Time{}
	})
	if err != nil {
		return "", err
	}
	return token, nil
}

func (f *Fleet) mayEnroll(by Identity, id string) error {
	if err := f.operator(by); err != nil {
		return err
	}
	if err := protocol.CheckDeviceID(id); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return nil
}

// enroll gives a device the login that set writes into its row.
func (f *Fleet) enroll(ctx context.Context, by Identity, id string, set func(*Device)) error {
	now := f.cfg.Now()
	had := false // a login, under which sessions may be open
	err := f.update(ctx, by, func(tx Tx) error {
		if err := nameIsFree(tx, id, "operator", "account"); err != nil {
			return err
		}
		d, err := tx.Device(id)
		if errors.Is(err, ErrNotFound) {
			d, err = Device{ID: id}, nil
		}
		if err != nil {
			return err
		}
		had = d.TokenSHA256 != "" || d.CertificateSHA256 != ""
		set(&d)
		d.EnrolledAt, d.Revoked = now, false
		d.Doubts = Doubts{} // whoever else had the old login is cut off
		return tx.PutDevice(d)
	})
	if err != nil {
		return err
	}
	f.forgetContest(id)
	if had { // else the first session to be met would be one of the new login
		f.drop(id)
	}
	return nil
}

// Revoke takes a device's right to log in, ends its open attempts and drops its live session. The row and its history
// stay. Revoking twice is no error.
func (f *Fleet) Revoke(ctx context.Context, by Identity, id string) error {
	if err := f.operator(by); err != nil {
		return err
	}
	now := f.cfg.Now()
	err := f.update(ctx, by, func(tx Tx) error {
		d, err := tx.Device(id)
		if err != nil {
			return fmt.Errorf("device %q: %w", id, err)
		}
		d.Revoked, d.Online = true, false
		if err := tx.PutDevice(d); err != nil {
			return err
		}
		return endOpen(tx, id, now, "the device was revoked")
	})
	if err != nil {
		return err
	}
	f.later(id)
	f.drop(id)
	return nil
}

// drop asks the loop to end the sessions of a device or an operator, once the rows say why.
func (f *Fleet) drop(id string) {
	f.mu.Lock()
	f.drops[id] = struct{}{}
	f.mu.Unlock()
	f.wakeLoop()
}

// endExpired cuts off the operators who have logged in with a token that has run out since.
func (f *Fleet) endExpired() {
	now := f.cfg.Now()
	f.mu.Lock()
	var over []string
	for name, at := range f.ending {
		if !now.Before(at) {
			over = append(over, name)
			delete(f.ending, name)
		}
	}
	f.mu.Unlock()
	for _, name := range over {
		_ = f.cutOff(name, nil)
	}
}

// Devices are all devices, by id.
func (f *Fleet) Devices(ctx context.Context) ([]Device, error) {
	var list []Device
	err := f.cfg.Store.View(ctx, func(tx Tx) (err error) {
		list, err = tx.Devices()
		return err
	})
	return list, err
}

// DevicesAfter are at most limit devices, by id, those behind the one named, which need not be there; no more than these
// are read.
func (f *Fleet) DevicesAfter(ctx context.Context, id string, limit int) (page []Device, err error) {
	q := DeviceQuery{Sort: SortID, After: &DeviceMark{ID: id}, Limit: min(max(limit, 1), MaxPage)}
	err = f.cfg.Store.View(ctx, func(tx Tx) (err error) {
		page, err = tx.DevicePage(q)
		return err
	})
	return page, err
}

// Device is one device.
func (f *Fleet) Device(ctx context.Context, id string) (Device, error) {
	var d Device
	err := f.cfg.Store.View(ctx, func(tx Tx) (err error) {
		if d, err = tx.Device(id); err != nil {
			return fmt.Errorf("device %q: %w", id, err)
		}
		return nil
	})
	return d, err
}
