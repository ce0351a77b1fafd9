package web

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"

	"bmsota/api"
	"bmsota/server/internal/fleet"
)

// attemptsShown is how many attempts a device's page lists.
const attemptsShown = 20

// call is one API call of an operator. What it returns is the answer: a value for 200 (nil for 204), or an error.
type call func(w http.ResponseWriter, r *http.Request, by fleet.Identity) (any, error)

func (h *handler) routeAPI() {
	routes := map[string]map[string]call{
		"/blobs/{sha256}":             {http.MethodPut: h.putBlob},
		"/releases":                   {http.MethodGet: h.listReleases, http.MethodPost: h.publish},
		"/releases/{sha256}":          {http.MethodGet: h.showRelease},
		"/releases/{sha256}/withdraw": {http.MethodPost: h.withdraw},
		"/channels":                   {http.MethodGet: h.listChannels, http.MethodPut: h.setChannel},
		"/devices":                    {http.MethodGet: h.listDevices, http.MethodPost: h.enroll},
		"/devices/{id}":               {http.MethodGet: h.showDevice},
		"/devices/{id}/revoke":        {http.MethodPost: h.revoke},
		"/server":                     {http.MethodGet: h.serverInfo},
	}
	maps.Copy(routes, h.accountRoutes())
	maps.Copy(routes, h.rolloutRoutes())
	maps.Copy(routes, h.keyRoutes())
	for pattern, calls := range routes {
		allowed := strings.Join(slices.Sorted(maps.Keys(calls)), ", ")
		h.mux.HandleFunc(api.Prefix+pattern, func(w http.ResponseWriter, r *http.Request) {
			fn, ok := calls[r.Method]
			if !ok {
				w.Header().Set("Allow", allowed)
				h.fail(w, r, errMethod)
				return
			}
			h.serveCall(w, r, fn)
		})
	}
}

func (h *handler) serveCall(w http.ResponseWriter, r *http.Request, fn call) {
	by, ok := h.admit(w, r, rightFor(r.Method)) // package fleet asks again; this one is for the call that forgets to ask
	if !ok {
		return
	}
	answer, err := fn(w, r, by)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	if answer == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	b, err := json.Marshal(answer)
	if err != nil {
		h.fail(w, r, fmt.Errorf("encode answer: %w", err))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = paced(w).Write(append(b, '\n'))
}

// admit finds who calls and answers whoever lacks the right.
func (h *handler) admit(w http.ResponseWriter, r *http.Request, right fleet.Right) (by fleet.Identity, ok bool) {
	by, err := h.operator(r)
	if err == nil && !by.Has(right) {
		err = lacks(by, right)
	}
	if errors.Is(err, errToken) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="bmsota"`)
	}
	if err != nil {
		h.fail(w, r, err)
	}
	return by, err == nil
}

func lacks(by fleet.Identity, right fleet.Right) error {
	return fmt.Errorf("%w: %s has the role %q, which has no right to %s", fleet.ErrDenied, by.Name, by.Role, right)
}

// rightFor is the least that a call needs: reading is for everybody who has an account.
func rightFor(method string) fleet.Right {
	if method == http.MethodGet {
		return fleet.RightView
	}
	return fleet.RightOperate
}

// operator finds who calls. The token is looked up by its SHA-256, never compared itself, so the time it takes says
// nothing about how much of it was right.
func (h *handler) operator(r *http.Request) (fleet.Identity, error) {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") || token == "" || len(token) > 512 {
		return fleet.Identity{}, errToken
	}
	by, err := h.cfg.Fleet.OperatorByToken(r.Context(), token)
	switch {
	case errors.Is(err, fleet.ErrDenied), errors.Is(err, fleet.ErrNotFound):
		return fleet.Identity{}, errToken
	case err != nil:
		return fleet.Identity{}, err
	}
	return by, nil
}

// decode reads a JSON body strictly: one object, no keys that are not known, nothing after it.
func decode(w http.ResponseWriter, r *http.Request, v any) error {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxJSON))
	if err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			return err
		}
		return fmt.Errorf("%w: body cannot be read", fleet.ErrInvalid)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return fmt.Errorf("%w: body: %s", fleet.ErrInvalid, strings.TrimPrefix(err.Error(), "json: "))
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: body: data after the JSON object", fleet.ErrInvalid)
	}
	return nil
}

// digestOf reads the digest of a path. What is no digest is not there.
func digestOf(r *http.Request) (string, error) {
	digest := r.PathValue("sha256")
	if !isDigest(digest) {
		return "", fmt.Errorf("%w: %q is not a digest (64 lower-case hex digits)", fleet.ErrInvalid, digest)
	}
	return digest, nil
}

func (h *handler) putBlob(w http.ResponseWriter, r *http.Request, by fleet.Identity) (any, error) {
	digest, err := digestOf(r)
	switch {
	case err != nil:
		return nil, err
	case r.ContentLength < 0:
		return nil, errLength
	case r.ContentLength == 0:
		return nil, fmt.Errorf("%w: the upload is empty", fleet.ErrInvalid)
	case r.ContentLength > api.MaxUpload:
		return nil, &http.MaxBytesError{Limit: api.MaxUpload}
	}
	body := &pacedBody{http.MaxBytesReader(w, r.Body, api.MaxUpload), http.NewResponseController(w)}
	return nil, h.cfg.Fleet.Upload(r.Context(), by, digest, r.ContentLength, body)
}

func (h *handler) publish(w http.ResponseWriter, r *http.Request, by fleet.Identity) (any, error) {
	var in api.PublishRequest
	if err := decode(w, r, &in); err != nil {
		return nil, err
	}
	if !isDigest(in.SHA256) {
		return nil, fmt.Errorf("%w: sha256 is not 64 lower-case hex digits", fleet.ErrInvalid)
	}
	rel, warnings, err := h.cfg.Fleet.Publish(r.Context(), by, fleet.PublishRequest(in))
	if err != nil {
		return nil, err
	}
	channels, err := h.cfg.Fleet.Channels(r.Context())
	if err != nil {
		return nil, err
	}
	return api.PublishResponse{Release: releaseOf(rel, channelNames(channels)), Warnings: append([]string{}, warnings...)}, nil
}

func (h *handler) listReleases(_ http.ResponseWriter, r *http.Request, _ fleet.Identity) (any, error) {
	releases, err := h.cfg.Fleet.Releases(r.Context())
	if err != nil {
		return nil, err
	}
	channels, err := h.cfg.Fleet.Channels(r.Context())
	if err != nil {
		return nil, err
	}
	held, err := h.quarantined(r)
	if err != nil {
		return nil, err
	}
	names := channelNames(channels)
	out := make([]api.Release, 0, len(releases))
	for _, rel := range releases {
		row := releaseOf(rel, names)
		row.Quarantined = held[rel.SHA256]
		row.Manifest, row.Cosignatures = "", "" // 10 KB each
		out = append(out, row)
	}
	return out, nil
}

func (h *handler) showRelease(_ http.ResponseWriter, r *http.Request, _ fleet.Identity) (any, error) {
	digest, err := digestOf(r)
	if err != nil {
		return nil, err
	}
	rel, err := h.cfg.Fleet.Release(r.Context(), digest)
	if err != nil {
		return nil, err
	}
	channels, err := h.cfg.Fleet.Channels(r.Context())
	if err != nil {
		return nil, err
	}
	held, err := h.quarantined(r)
	if err != nil {
		return nil, err
	}
	out := releaseOf(rel, channelNames(channels))
	out.Quarantined = held[digest]
	return out, nil
}

// quarantined says why releases are offered to nobody, by digest.
func (h *handler) quarantined(r *http.Request) (map[string]string, error) {
	held, err := h.quarantines(r.Context())
	if err != nil {
		return nil, err
	}
	why := make(map[string]string, len(held))
	for digest, q := range held {
		why[digest] = fmt.Sprintf("%s (rollout %s)", q.Why, q.RolloutID)
	}
	return why, nil
}

// quarantines are those that stand, by digest.
func (h *handler) quarantines(ctx context.Context) (map[string]fleet.Quarantine, error) {
	list, err := h.cfg.Fleet.Quarantines(ctx)
	if err != nil {
		return nil, err
	}
	held := make(map[string]fleet.Quarantine)
	for _, q := range list {
		if q.Stands() {
			held[q.SHA256] = q
		}
	}
	return held, nil
}

func (h *handler) withdraw(_ http.ResponseWriter, r *http.Request, by fleet.Identity) (any, error) {
	digest, err := digestOf(r)
	if err != nil {
		return nil, err
	}
	return nil, h.cfg.Fleet.Withdraw(r.Context(), by, digest)
}

func (h *handler) listChannels(_ http.ResponseWriter, r *http.Request, _ fleet.Identity) (any, error) {
	channels, err := h.cfg.Fleet.Channels(r.Context())
	if err != nil {
		return nil, err
	}
	releases, err := h.cfg.Fleet.Releases(r.Context())
	if err != nil {
		return nil, err
	}
	versions := make(map[string]string, len(releases))
	for _, rel := range releases {
		versions[rel.SHA256] = rel.Version
	}
	out := make([]api.Channel, 0, len(channels))
	for _, c := range channels {
		out = append(out, channelOf(c, versions[c.SHA256]))
	}
	return out, nil
}

func (h *handler) setChannel(w http.ResponseWriter, r *http.Request, by fleet.Identity) (any, error) {
	var in api.SetChannelRequest
	if err := decode(w, r, &in); err != nil {
		return nil, err
	}
	c, err := h.cfg.Fleet.SetChannel(r.Context(), by, in.Project, in.Chip, in.Channel, in.Version)
	if err != nil {
		return nil, err
	}
	return channelOf(c, in.Version), nil
}

func (h *handler) listDevices(_ http.ResponseWriter, r *http.Request, _ fleet.Identity) (any, error) {
	devices, err := h.cfg.Fleet.Devices(r.Context())
	if err != nil {
		return nil, err
	}
	out := make([]api.Device, 0, len(devices))
	for _, d := range devices {
		out = append(out, deviceOf(d))
	}
	return out, nil
}

func (h *handler) showDevice(_ http.ResponseWriter, r *http.Request, _ fleet.Identity) (any, error) {
	d, err := h.cfg.Fleet.Device(r.Context(), r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	attempts, err := h.cfg.Fleet.Attempts(r.Context(), d.ID, attemptsShown)
	if err != nil {
		return nil, err
	}
	out := api.DeviceDetail{Device: deviceOf(d), Attempts: make([]api.Attempt, 0, len(attempts))}
	for _, a := range attempts {
		out.Attempts = append(out.Attempts, attemptOf(a))
	}
	return out, nil
}

func (h *handler) enroll(w http.ResponseWriter, r *http.Request, by fleet.Identity) (any, error) {
	var in api.EnrollRequest
	if err := decode(w, r, &in); err != nil {
		return nil, err
	}
	token, err := h.cfg.Fleet.Enroll(r.Context(), by, in.DeviceID)
	if err != nil {
		return nil, err
	}
	return api.EnrollResponse{DeviceID: in.DeviceID, Token: token}, nil
}

func (h *handler) revoke(_ http.ResponseWriter, r *http.Request, by fleet.Identity) (any, error) {
	return nil, h.cfg.Fleet.Revoke(r.Context(), by, r.PathValue("id"))
}

func (h *handler) serverInfo(_ http.ResponseWriter, r *http.Request, _ fleet.Identity) (any, error) {
	if h.cfg.Info == nil {
		return api.ServerInfo{Version: h.cfg.Version, StorageFreeBytes: -1, Addresses: []string{}, Ready: true}, nil
	}
	return h.cfg.Info(r.Context())
}
