package web

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"net/http"

	"bmsota/api"
	"bmsota/server/internal/fleet"
)

// KeyKeeper is what web needs of a *fleet.Fleet to show and pin the keys of projects.
type KeyKeeper interface {
	Keys(ctx context.Context) ([]fleet.ProjectKey, error)
	PinImageKey(ctx context.Context, by fleet.Identity, project, digest string, retire bool) error
}

func (h *handler) keyRoutes() []route {
	return []route{
		{http.MethodGet, "/keys", "listKeys", "List release keys and pinned keys of images, oldest first", fleet.RightView, paged, []api.Key{}, nil, reads(h.listKeys)},
		{http.MethodPost, "/keys", "pinKey", "Pin or retire the digest of a key that a project's images are signed with; twice is no error", fleet.RightAdminister,
			nil, nil, []api.Code{api.CodeNotFound}, takes(h.pinKey)},
	}
}

func (h *handler) listKeys(w http.ResponseWriter, r *http.Request, _ fleet.Identity) (any, error) {
	keys, err := h.cfg.Fleet.Keys(r.Context())
	if err == nil {
		keys, err = cut(w, r, keys, func(k fleet.ProjectKey) string {
			return fmt.Sprintf("%s/%s/%d/%.12s", k.Project, k.Kind, k.Sequence, keyDigest(k))
		})
	}
	out := make([]api.Key, 0, len(keys))
	for _, k := range keys {
		row := api.Key{Project: k.Project, Kind: string(k.Kind), Digest: keyDigest(k), Sequence: k.Sequence, FromVersion: k.FromVersion,
			Threshold: k.Threshold, AddedAt: k.AddedAt.UTC(), AddedBy: k.AddedBy}
		if k.Kind == fleet.KeyRelease {
			row.PublicKey = k.Key
		}
		out = append(out, row)
	}
	return out, err
}

// keyDigest is what a key is called by: the SHA-256 of its SubjectPublicKeyInfo, or what eFuse holds of an image key.
func keyDigest(k fleet.ProjectKey) string {
	block, _ := pem.Decode([]byte(k.Key))
	if k.Kind != fleet.KeyRelease || block == nil {
		return k.Key
	}
	sum := sha256.Sum256(block.Bytes)
	return hex.EncodeToString(sum[:])
}

func (h *handler) pinKey(_ http.ResponseWriter, r *http.Request, by fleet.Identity, in api.PinRequest) (any, error) {
	return nil, h.cfg.Fleet.PinImageKey(r.Context(), by, in.Project, in.Digest, in.Retire)
}
