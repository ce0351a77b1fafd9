package api

import (
	"context"
	"net/http"
	"time"
)

// Key is a key that signs for a project, without its private half, which no server has.
type Key struct {
	Project     string    `json:"project"`
	Kind        string    `json:"kind"`                   // "release" signs manifests, "image" signs images for Secure Boot
	Digest      string    `json:"digest"`                 // hex: fingerprint of a release key (SHA-256 of its SubjectPublicKeyInfo), what eFuse holds of an image key
	Sequence    uint32    `json:"sequence"`               // of the set of release keys
	FromVersion string    `json:"from_version,omitempty"` // devices that run it or newer trust the set; empty for set 0
	Threshold   int       `json:"threshold,omitempty"`    // how many of the set have to sign
	PublicKey   string    `json:"public_key_pem,omitempty"`
	AddedAt     time.Time `json:"added_at"`
	AddedBy     string    `json:"added_by"`
}

// PinRequest names the digest of a key that a project's images are signed by.
type PinRequest struct {
	Project string `json:"project"`
	Digest  string `json:"digest"` // 64 lower-case hex digits
	Retire  bool   `json:"retire,omitempty"`
}

// Keys lists the keys of every project that has a release or a pinned key, oldest first.
func (c *Client) Keys(ctx context.Context) ([]Key, error) {
	return all[Key](ctx, c, "/keys")
}

// PinImageKey has the server refuse images that are not signed by one of the pinned keys, or takes one back.
func (c *Client) PinImageKey(ctx context.Context, in PinRequest) error {
	return c.call(ctx, http.MethodPost, "/keys", in, nil)
}
