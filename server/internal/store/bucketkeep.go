package store

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"bmsota/server/internal/fleet"
)

// object is one firmware of the bucket as a listing has it.
type object struct {
	size int64
	at   time.Time // when it was written
}

// List is every firmware below the prefix, by digest. Objects of other names are not the server's and not touched.
func (b *Bucket) List(ctx context.Context) (map[string]object, error) {
	ctx, cancel := context.WithCancel(ctx) // ends the listing's own goroutine
	defer cancel()
	list := make(map[string]object)
	for o := range b.api.Client.ListObjects(ctx, b.cfg.Bucket, minio.ListObjectsOptions{Prefix: b.cfg.Prefix, Recursive: true}) {
		if o.Err != nil {
			return nil, o.Err
		}
		digest, _ := strings.CutSuffix(strings.TrimPrefix(o.Key, b.cfg.Prefix), ".bin")
		if name, err := objectName(digest); err == nil && b.cfg.Prefix+name == o.Key {
			list[digest] = object{o.Size, o.LastModified}
		}
	}
	return list, ctx.Err()
}

// Settled is what Settle has done.
type Settled struct {
	Moved, Collected int
}

// Settle holds the bucket against the releases there are, before anybody uses it. What a folder of an earlier configuration
// has and the bucket has not is brought there. What is missing or too short is noted (Doubts). What was brought before a time
// and has become no release is removed; it is not done beside uploads, because one of them may be about to find it there.
func (b *Bucket) Settle(ctx context.Context, releases []fleet.Release, from *Folder, before time.Time) (done Settled, err error) {
	there, err := b.List(ctx)
	if err != nil {
		return done, b.fault("list", err)
	}
	known := make(map[string]bool)
	for _, r := range releases {
		known[r.SHA256] = true
		o, ok := there[r.SHA256]
		if ok && o.size == r.Size {
			continue
		}
		switch moved, err := b.move(ctx, from, r); {
		case err != nil:
			return done, err
		case moved:
			done.Moved++
		case ok:
			b.accuse(r.SHA256, fmt.Sprintf("has %d bytes in the bucket and should have %d", o.size, r.Size))
		default:
			b.accuse(r.SHA256, "is not in the bucket")
		}
	}
	for digest, o := range there {
		if known[digest] || !o.at.Before(before) {
			continue
		}
		name, err := objectName(digest)
		if err == nil {
			err = b.near.drop(digest)
		}
		if err != nil {
			return done, err
		}
		if err := b.api.Client.RemoveObject(ctx, b.cfg.Bucket, b.cfg.Prefix+name, minio.RemoveObjectOptions{}); err != nil {
			return done, b.fault("remove", err)
		}
		done.Collected++
	}
	return done, nil
}

// move brings a release from the folder into the bucket, where the folder has it whole.
func (b *Bucket) move(ctx context.Context, from *Folder, r fleet.Release) (bool, error) {
	if from == nil {
		return false, nil
	}
	blob, err := from.Open(ctx, r.SHA256)
	if errors.Is(err, fleet.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer blob.Close()
	if err := b.Put(ctx, r.SHA256, r.Size, blob); errors.Is(err, fleet.ErrInvalid) {
		return false, nil // rotted there
	} else if err != nil {
		return false, err
	}
	return true, nil
}

// signed is an address that lets whoever has it read one object for a time.
type signed struct {
	url   string
	until time.Time
}

// checkSigned refuses addresses that devices would: a long prefix makes them, or credentials that are lent for a time.
func (b *Bucket) checkSigned(ctx context.Context) error {
	if b.cfg.SignedFor == 0 {
		return nil
	}
	example, err := b.Signed(ctx, strings.Repeat("0", 64), time.Now())
	if err != nil {
		return b.atStart("sign for", err)
	}
	if len(example) > b.cfg.SignedMax {
		return fmt.Errorf("%w: a signed address has %d bytes here, and devices take %d: shorten firmware.bucket.prefix, use an access_key in place of the machine's role, or set download to proxy or a public_url",
			ErrBucketRefused, len(example), b.cfg.SignedMax)
	}
	return nil
}

// Signed is such an address, good for at least half of SignedFor from now. It is the same one for the other half, so that what
// is said about a release does not change with each question.
func (b *Bucket) Signed(ctx context.Context, digest string, now time.Time) (string, error) {
	ttl := b.cfg.SignedFor
	name, err := objectName(digest)
	if err != nil {
		return "", err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if s, ok := b.signed[digest]; ok && s.until.Sub(now) > ttl/2 && s.until.Sub(now) <= ttl {
		return s.url, nil
	}
	u, err := b.api.Client.PresignedGetObject(ctx, b.cfg.Bucket, b.cfg.Prefix+name, ttl, url.Values{})
	if err != nil {
		return "", fmt.Errorf("sign address: %w: %w", fleet.ErrStorage, err)
	}
	if len(b.signed) >= maxSigned {
		clear(b.signed)
	}
	b.signed[digest] = signed{u.String(), now.Add(ttl)}
	return u.String(), nil
}

// maxSigned bounds what is remembered of addresses; more releases than that are not on offer at once.
const maxSigned = 1024
