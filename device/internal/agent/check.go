package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"bmsota/manifest"
	"bmsota/protocol"
)

// offer is what the server has for this board, as far as the board believes it.
type offer struct {
	protocol.Release
	url      *url.URL
	force    bool               // start on a check, too
	manifest *manifest.Manifest // nil: no promise about blocks
}

// folder is where an image lies, and version.json beside it.
func folder(image string) *url.URL {
	u, err := url.Parse(image)
	if err != nil {
		panic("agent: a checked address does not parse: " + err.Error())
	}
	u.RawQuery, u.Fragment, u.RawPath = "", "", ""
	u.Path = u.Path[:strings.LastIndexByte(u.Path, '/')+1]
	if u.Path == "" {
		u.Path = "/"
	}
	return u
}

// versionURL is where a version file is asked for: name in the folder of the image, with who asks. A folder of files
// ignores that; a server that has nothing for this device must not be asked again as if it were nobody's question.
func (a *agent) versionURL(name string) string {
	u := folder(a.cfg.ota.ServerURL)
	u.Path += name
	u.RawQuery = url.Values{"device": {a.self.id}, "chip": {a.env.Ops.Chip.String()}}.Encode()
	return u.String()
}

// mirror is where the version file of the mirror lies; empty where there is none, and on a board that holds no key, to
// which a mirror could say anything. It is not told who asks.
func (a *agent) mirror() string {
	if a.cfg.ota.MirrorURL == "" || len(a.cfg.trust.Keys) == 0 {
		return ""
	}
	u := folder(a.cfg.ota.MirrorURL)
	u.Path += "version.json"
	return u.String()
}

// look asks the server what it offers, and the mirror where nobody answers who proves to be the server: an authority that
// expires must not strand a board, and what a mirror offers is signed or refused.
func (a *agent) look(ctx context.Context) (offer, *fault) {
	o, fl := a.lookAtServer(ctx)
	if fl == nil || fl.reason != protocol.ReasonTLS && fl.reason != protocol.ReasonUnreachable {
		return o, fl
	}
	if second, ok := a.lookAtMirror(ctx); ok {
		return second, nil
	}
	return offer{}, fl // the server's own trouble is what somebody has to mend
}

// lookAtMirror gets what the mirror offers; false where there is no mirror, or where what it has is not signed.
func (a *agent) lookAtMirror(ctx context.Context) (offer, bool) {
	at := a.mirror()
	if at == "" {
		return offer{}, false
	}
	f, fl := a.versionFile(ctx, at)
	if fl != nil {
		return offer{}, false
	}
	o, fl := a.believe(f, at, a.cfg.ota.MirrorURL)
	return o, fl == nil
}

// lookAtServer gets the fleet server's answer for this very device, else the file of a static one.
func (a *agent) lookAtServer(ctx context.Context) (offer, *fault) {
	at := a.versionURL("version")
	f, fl := a.versionFile(ctx, at)
	if fl != nil && fl.phase == protocol.PhaseRefused {
		at = a.versionURL("version.json")
		first := fl
		if f, fl = a.versionFile(ctx, at); fl != nil && fl.reason == protocol.ReasonNotPublished {
			fl = first
		}
	}
	if fl != nil {
		return offer{}, fl
	}
	return a.believe(f, at, a.cfg.ota.ServerURL)
}

// versionFile gets one version.json. What is missing or no version file comes back as a refusal, so that the other
// place is tried.
func (a *agent) versionFile(ctx context.Context, at string) (protocol.VersionFile, *fault) {
	var none protocol.VersionFile
	resp, fl := a.web.get(ctx, http.MethodGet, at, nil)
	if fl != nil {
		return none, fl
	}
	defer resp.stop()
	switch {
	case resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusGone:
		return none, &fault{phase: protocol.PhaseRefused, reason: protocol.ReasonNotPublished, err: fmt.Errorf("no version file at %s", at)}
	case resp.StatusCode != http.StatusOK:
		return none, statusFault(resp.Response)
	}
	limit := protocol.MaxVersionFile
	if a.without(MutantAnyBytes) {
		limit = 1 << 20
	}
	body, err := readCapped(resp.body, limit)
	if errors.Is(err, errTooLong) {
		return none, refused(protocol.ReasonBadVersionFile, err)
	}
	if err != nil {
		return none, transient(resp.ctx, "read version file", err)
	}
	f, err := protocol.ParseVersionFile(body)
	if err != nil {
		return none, refused(protocol.ReasonBadVersionFile, err)
	}
	return f, nil
}

func refused(reason protocol.Reason, err error) *fault {
	if r, ok := errors.AsType[*protocol.Refusal](err); ok {
		reason = r.Reason
	}
	return &fault{phase: protocol.PhaseRefused, reason: reason, err: err}
}

// believe turns the version file into an offer. A board that holds a key takes every fact of the decision from the
// manifest that a trusted key signed; what stands beside it may be anybody's. Only where the bytes are fetched is the
// file's word, because bytes prove themselves. The file was read at at, and image is where the bytes are when it does not say.
func (a *agent) believe(f protocol.VersionFile, at, image string) (offer, *fault) {
	o := offer{force: f.ForceUpdate, Release: protocol.Release{
		Chip: f.Chip, Project: f.Project, Version: f.Version, SHA256: f.SHA256, Size: f.Size,
		SecureVersion: f.SecureVersion, MinVersion: f.MinVersion}}
	if len(a.cfg.trust.Keys) > 0 && !a.without(MutantAnySigner) {
		if f.Manifest == "" {
			return offer{}, &fault{phase: protocol.PhaseRefused, reason: protocol.ReasonUnsigned, err: errors.New("version.json holds no manifest")}
		}
		m, err := a.cfg.trust.Verify(f.Manifest, f.Cosignatures)
		if err != nil {
			return offer{}, &fault{phase: protocol.PhaseRefused, reason: protocol.ReasonBadSignature, err: err}
		}
		o.manifest = &m
		if !a.without(MutantBesideManifest) {
			o.force = m.ForceUpdate
			o.Release = protocol.Release{Chip: m.Chip, Project: m.Project, Version: m.Version, SHA256: m.SHA256, Size: m.Size,
				SecureVersion: m.SecureVersion, MinVersion: m.MinVersion}
		}
	} else if m, err := manifest.Unverified(f.Manifest); f.Manifest != "" && err == nil && m.SHA256 == f.SHA256 && m.Size == f.Size {
		o.manifest = &m // for its block digests only: they must add up to the digest in any case
	}
	if a.without(MutantAnyBytes) {
		o.manifest, o.SHA256, o.Size = nil, "", 0
	}
	base, err := url.Parse(at)
	if err == nil {
		base, err = a.imageURL(base, f.URL, image)
	}
	if err != nil {
		return offer{}, &fault{phase: protocol.PhaseRefused, reason: protocol.ReasonBadVersionFile, err: err}
	}
	o.url = base
	return o, nil
}

// imageURL is where the bytes are: the file's url, relative to the file itself, else the configured one. A file that came
// over plain HTTP may name plain HTTP: it would not be here if the configuration did not allow that.
func (a *agent) imageURL(at *url.URL, ref, image string) (*url.URL, error) {
	if ref == "" {
		return url.Parse(image)
	}
	u, err := at.Parse(ref)
	if err != nil {
		return nil, errors.New("url is not readable")
	}
	switch {
	case u.Host == "" || u.User != nil:
		return nil, fmt.Errorf("url %q names no server", ref)
	case u.Scheme == "https", u.Scheme == "http" && (a.cfg.ota.SkipCertVerification || at.Scheme == "http"):
		return u, nil
	}
	return nil, fmt.Errorf("url %q is not https", ref)
}

// judge decides whether this board takes the offer.
func (a *agent) judge(o offer, w *wish) *protocol.Refusal {
	cmd := w.cmd
	if cmd.Version != "" && !protocol.SameVersion(cmd.Version, o.Version) && !protocol.OnTheWay(cmd.Version, o.Version, a.self.version) {
		if protocol.SameVersion(cmd.Version, a.self.version) {
			return &protocol.Refusal{Reason: protocol.ReasonUpToDate, Detail: cmd.Version}
		}
		return &protocol.Refusal{Reason: protocol.ReasonVersionMissing, Detail: fmt.Sprintf("%s is asked for, the server has %s", cmd.Version, o.Version)}
	}
	r, force := o.Release, cmd.Force
	if a.without(MutantAnyVersion) {
		r.MinVersion, force = "", true
	}
	if a.without(MutantAnyProduct) {
		r.Chip, r.Project = "", ""
	}
	refusal := protocol.Refuse(protocol.Device{
		Chip: a.env.Ops.Chip.String(), Project: a.self.project, Version: a.self.version, ImageSHA256: a.self.digest,
		SlotSize: int64(a.self.target.Size), SecureVersion: a.self.floor,
		Quarantined: func(sum string) bool { return slices.Contains(a.self.buried, sum) },
	}, r, force)
	if refusal == nil && w.retained && o.SHA256 != "" && o.SHA256 == a.self.held {
		return &protocol.Refusal{Reason: protocol.ReasonQuarantined,
			Detail: o.Version + " by command; an order given while the device listens brings it back"}
	}
	return refusal
}
