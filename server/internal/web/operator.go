package web

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"bmsota/api"
	"bmsota/audit"
	"bmsota/server/internal/fleet"
)

// attemptsShown is how many attempts a device's page lists.
const attemptsShown = 20

// call is one API call of an operator. What it returns is the answer: a value for 200 (nil for 204), or an error.
type call func(w http.ResponseWriter, r *http.Request, by fleet.Identity) (any, error)

// digestCodes are how an operation on one release fails.
var digestCodes = []api.Code{api.CodeInvalid, api.CodeNotFound}

func (h *handler) fleetRoutes() []route {
	view, operate := fleet.RightView, fleet.RightOperate
	return []route{
		{http.MethodPut, "/blobs/{sha256}", "upload", "Upload a firmware file under its digest", operate, nil, nil,
			[]api.Code{api.CodeInvalid, api.CodeLengthRequired, api.CodeTooLarge}, operation{call: h.putBlob, raw: true}},
		{http.MethodGet, "/releases", "listReleases", "List releases, newest first, without manifests", view, paged, []api.Release{}, nil, reads(h.listReleases)},
		{http.MethodPost, "/releases", "publish", "Make uploaded bytes a release and point a channel at it; the same again is no error",
			operate, nil, api.PublishResponse{}, []api.Code{api.CodeNotFound, api.CodeConflict, api.CodeRefused, api.CodeDamaged}, takes(h.publish)},
		{http.MethodGet, "/releases/{sha256}", "getRelease", "Show one release", view, nil, api.Release{}, digestCodes, reads(h.showRelease)},
		{http.MethodPost, "/releases/{sha256}/withdraw", "withdrawRelease", "Take a release out of every offer; twice is no error",
			operate, nil, nil, digestCodes, reads(h.withdraw)},
		{http.MethodGet, "/channels", "listChannels", "List channels by project, chip and name", view, paged, []api.Channel{}, nil, reads(h.listChannels)},
		{http.MethodPut, "/channels", "setChannel", "Point a channel at a published version", operate, nil, api.Channel{},
			[]api.Code{api.CodeNotFound, api.CodeConflict, api.CodeRefused}, takes(h.setChannel)},
		{http.MethodGet, "/devices", "listDevices", "List devices by id", view, paged, []api.Device{}, nil, reads(h.listDevices)},
		{http.MethodPost, "/devices", "enrollDevice", "Give a device a new token, or a certificate for the key that signed certificate_request, in place of what it had: of repeated requests the last answer counts",
			operate, nil, api.EnrollResponse{}, []api.Code{api.CodeConflict, api.CodeRefused}, takes(h.enroll)},
		{http.MethodGet, "/devices/{id}", "getDevice", "Show one device with its latest attempts", view, nil, api.DeviceDetail{},
			[]api.Code{api.CodeNotFound}, reads(h.showDevice)},
		{http.MethodGet, "/devices/{id}/attempts", "listAttempts", "List attempts of a device, newest first", view, paged, []api.Attempt{},
			[]api.Code{api.CodeNotFound}, reads(h.listAttempts)},
		{http.MethodPost, "/devices/{id}/revoke", "revokeDevice", "Take a device's login away and end its session; twice is no error",
			operate, nil, nil, []api.Code{api.CodeNotFound}, reads(h.revoke)},
		{http.MethodPost, "/devices/{id}/clear", "clearDevice", "Take away what a device is suspected of, so that rollouts count it again; twice is no error",
			operate, nil, api.Device{}, []api.Code{api.CodeNotFound}, reads(h.clearDevice)},
		{http.MethodGet, "/server", "getServer", "What the server says of itself", view, nil, api.ServerInfo{}, nil, reads(h.serverInfo)},
	}
}

// answer writes v as JSON; nil is 204.
func (h *handler) answer(w http.ResponseWriter, r *http.Request, v any) {
	w.Header().Set("Cache-Control", "no-store")
	if v == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	b, err := json.Marshal(v)
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
		err = h.lacks(r, fleet.ViaAPI, by, right)
	}
	if errors.Is(err, errToken) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="bmsota"`)
	}
	if err != nil {
		h.fail(w, r, err)
	}
	return by, err == nil
}

// lacks refuses whoever has not the right.
func (h *handler) lacks(r *http.Request, via string, by fleet.Identity, right fleet.Right) error {
	h.turnedAway(r, audit.AccessDenied, via, by.Name, string(right))
	return fmt.Errorf("%w: the role %q of %q has no right to %s", fleet.ErrDenied, by.Role, by.Name, right)
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
		h.turnedAway(r, audit.LoginFailed, fleet.ViaAPI, "", "")
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
	if !bytes.HasPrefix(bytes.TrimLeft(b, " \t\r\n"), []byte("{")) { // null would be taken for an empty one
		return fmt.Errorf("%w: body: it is no JSON object", fleet.ErrInvalid)
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
	if err := h.cfg.Fleet.Upload(r.Context(), by, digest, r.ContentLength, body); err != nil {
		// The rest is read all the same: a connection that is closed while its client still sends is reset, and the client
		// would learn of that instead of the reason.
		_, _ = io.Copy(io.Discard, body)
		return nil, err
	}
	return nil, nil
}

func (h *handler) publish(_ http.ResponseWriter, r *http.Request, by fleet.Identity, in api.PublishRequest) (any, error) {
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

func (h *handler) listReleases(w http.ResponseWriter, r *http.Request, _ fleet.Identity) (any, error) {
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
	if releases, err = cut(w, r, releases, func(rel fleet.Release) string { return rel.SHA256 }); err != nil {
		return nil, err
	}
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

func (h *handler) listChannels(w http.ResponseWriter, r *http.Request, _ fleet.Identity) (any, error) {
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
	channels, err = cut(w, r, channels, func(c fleet.Channel) string { return strings.Join([]string{c.Project, c.Chip, c.Name}, "/") })
	if err != nil {
		return nil, err
	}
	out := make([]api.Channel, 0, len(channels))
	for _, c := range channels {
		out = append(out, channelOf(c, versions[c.SHA256]))
	}
	return out, nil
}

func (h *handler) setChannel(_ http.ResponseWriter, r *http.Request, by fleet.Identity, in api.SetChannelRequest) (any, error) {
	c, err := h.cfg.Fleet.SetChannel(r.Context(), by, in.Project, in.Chip, in.Channel, in.Version)
	if err != nil {
		return nil, err
	}
	return channelOf(c, in.Version), nil
}

func (h *handler) listDevices(w http.ResponseWriter, r *http.Request, _ fleet.Identity) (any, error) {
	after, limit, err := pageOf(r)
	if err != nil {
		return nil, err
	}
	devices, err := h.cfg.Fleet.DevicesAfter(r.Context(), after, limit)
	if err != nil {
		return nil, err
	}
	return shown(w, devices, limit, func(v fleet.Device) string { return v.ID }, deviceOf), nil
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
	if c := h.cfg.Fleet.ContestOf(d.ID); c != nil {
		out.Contest = &api.Contest{At: c.At.UTC(), Addresses: c.Addresses, Times: c.Times}
	}
	return out, nil
}

func (h *handler) listAttempts(w http.ResponseWriter, r *http.Request, _ fleet.Identity) (any, error) {
	after, limit, err := pageOf(r)
	if err != nil {
		return nil, err
	}
	attempts, err := h.cfg.Fleet.AttemptsAfter(r.Context(), r.PathValue("id"), after, limit)
	if err != nil {
		return nil, err
	}
	return shown(w, attempts, limit, func(v fleet.Attempt) string { return v.ID }, attemptOf), nil
}

func (h *handler) enroll(_ http.ResponseWriter, r *http.Request, by fleet.Identity, in api.EnrollRequest) (any, error) {
	if in.CertificateRequest != "" {
		cert, err := h.cfg.Fleet.EnrollCertificate(r.Context(), by, in.DeviceID, in.CertificateRequest)
		if err != nil {
			return nil, err
		}
		return api.EnrollResponse{DeviceID: in.DeviceID, Certificate: cert.PEM, CertificateSHA256: cert.SHA256, CertificateEnds: cert.Ends.UTC()}, nil
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

func (h *handler) clearDevice(_ http.ResponseWriter, r *http.Request, by fleet.Identity) (any, error) {
	d, err := h.cfg.Fleet.Clear(r.Context(), by, r.PathValue("id"))
	return deviceOf(d), err
}

func (h *handler) serverInfo(_ http.ResponseWriter, r *http.Request, _ fleet.Identity) (any, error) {
	if h.cfg.Info == nil {
		return api.ServerInfo{Version: h.cfg.Version, StorageFreeBytes: -1, Addresses: []string{}, Ready: true}, nil
	}
	return h.cfg.Info(r.Context())
}
