package web

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"net/http"

	"bmsota/api"
	"bmsota/server/internal/fleet"
)

// KeyKeeper is what web needs of a *fleet.Fleet to show and pin the keys of projects.
type KeyKeeper interface {
	Keys(ctx context.Context) ([]fleet.ProjectKey, error)
	PinImageKey(ctx context.Context, by fleet.Identity, project, digest string, retire bool) error
}

func (h *handler) keyRoutes() map[string]map[string]call {
	return map[string]map[string]call{
		"/keys": {http.MethodGet: h.listKeys, http.MethodPost: administer(h.pinKey)},
	}
}

func (h *handler) listKeys(_ http.ResponseWriter, r *http.Request, _ fleet.Identity) (any, error) {
	keys, err := h.cfg.Fleet.Keys(r.Context())
	out := make([]api.Key, 0, len(keys))
	for _, k := range keys {
		row := api.Key{Project: k.Project, Kind: string(k.Kind), Digest: k.Key, Sequence: k.Sequence, FromVersion: k.FromVersion,
			Threshold: k.Threshold, AddedAt: k.AddedAt.UTC(), AddedBy: k.AddedBy}
		if block, _ := pem.Decode([]byte(k.Key)); k.Kind == fleet.KeyRelease && block != nil {
			sum := sha256.Sum256(block.Bytes)
			row.Digest, row.PublicKey = hex.EncodeToString(sum[:]), k.Key
		}
		out = append(out, row)
	}
	return out, err
}

func (h *handler) pinKey(w http.ResponseWriter, r *http.Request, by fleet.Identity) (any, error) {
	var in api.PinRequest
	if err := decode(w, r, &in); err != nil {
		return nil, err
	}
	return nil, h.cfg.Fleet.PinImageKey(r.Context(), by, in.Project, in.Digest, in.Retire)
}
