package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"bmsota/manifest"
	"bmsota/protocol"
)

// offer is what the server has for this board, as far as the board believes it.
type offer struct {
	protocol.Release
	url      *url.URL
	force    bool               // start on a check, too
	manifest *manifest.Manifest // nil: no promise about blocks
	stale    error              // why nothing shows that this is the server's answer of now; nil: something does, or nothing has to
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

// question is one question for a version file, and what makes its answer one to no other.
type question struct {
	at    string    // the address asked
	path  string    // of it
	nonce string    // that an answer must repeat; empty where nobody has to prove anything
	asked time.Time // by the board's own count, which no network can turn
}

// ask is the question for the file name in the folder of the image, with who asks. A folder of files ignores that; a
// server that has nothing for this device must not be asked again as if it were nobody's question.
func (a *agent) ask(image, name string) question {
	u := folder(image)
	u.Path += name
	v := url.Values{"device": {a.self.id}, "chip": {a.env.Ops.Chip.String()}}
	q := question{asked: time.Now()}
	if len(a.cfg.server) > 0 {
		q.nonce = a.nonces.next()
		v.Set("nonce", q.nonce)
	}
	u.RawQuery = v.Encode()
	q.at, q.path = u.String(), u.EscapedPath()
	return q
}

// askMirror is the question for the mirror's version file; false where there is no mirror, and on a board that holds no
// key, to which a mirror could say anything. It is told who asks only where it may be passing the question on to the
// server, whose answer a board with the server's key can tell.
func (a *agent) askMirror() (question, bool) {
	switch {
	case a.cfg.ota.MirrorURL == "" || len(a.cfg.trust.Keys) == 0:
		return question{}, false
	case len(a.cfg.server) > 0:
		return a.ask(a.cfg.ota.MirrorURL, "version.json"), true
	}
	u := folder(a.cfg.ota.MirrorURL)
	u.Path += "version.json"
	return question{at: u.String()}, true
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
	q, ok := a.askMirror()
	if !ok {
		return offer{}, false
	}
	f, fl := a.versionFile(ctx, q.at)
	if fl != nil {
		return offer{}, false
	}
	o, fl := a.believe(f, q.at, a.cfg.ota.MirrorURL)
	if fl != nil {
		return offer{}, false
	}
	// What only lies there can be as old as whoever keeps it likes. It may bring a newer release, whose signature is as good as
	// ever, and is called what it is; see judge.
	o.stale = a.stale(f.Offer, o, q)
	return o, true
}

// lookAtServer gets the fleet server's answer for this very device, else the file of a static one.
func (a *agent) lookAtServer(ctx context.Context) (offer, *fault) {
	q := a.ask(a.cfg.ota.ServerURL, "version")
	f, fl := a.versionFile(ctx, q.at)
	if fl != nil && fl.phase == protocol.PhaseRefused {
		q = a.ask(a.cfg.ota.ServerURL, "version.json")
		first := fl
		if f, fl = a.versionFile(ctx, q.at); fl != nil && fl.reason == protocol.ReasonNotPublished {
			fl = first
		}
	}
	if fl != nil {
		return offer{}, fl
	}
	o, fl := a.believe(f, q.at, a.cfg.ota.ServerURL)
	if fl != nil {
		return offer{}, fl
	}
	if err := a.stale(f.Offer, o, q); err != nil {
		return offer{}, &fault{phase: protocol.PhaseRefused, reason: protocol.ReasonStaleOffer, err: err}
	}
	return o, nil
}

// stale says why text is not the server's answer to q that offers o; nil where it is, and where the board holds no key of
// the server. Age is counted from the question on by the board itself: a clock that is wrong changes nothing.
func (a *agent) stale(text string, o offer, q question) error {
	if len(a.cfg.server) == 0 || a.without(MutantAnyAge) {
		return nil
	}
	if text == "" {
		return errors.New("the answer holds no offer")
	}
	said, err := manifest.VerifyOffer(text, a.cfg.server...)
	sequence := int64(0)
	if o.manifest != nil {
		sequence = o.manifest.Sequence
	}
	switch {
	case err != nil:
		return err
	case said.Device != a.self.id:
		return errors.New("the offer is to another device")
	case said.Path != q.path && !a.without(MutantAnyPath):
		return errors.New("the offer is of another place on the server")
	case said.Nonce != q.nonce && !a.without(MutantAnyNonce):
		return errors.New("the offer answers another question")
	case said.SHA256 != o.SHA256 || said.Version != o.Version || said.Sequence != sequence:
		return errors.New("the offer is of another release")
	case time.Since(q.asked) > time.Duration(said.ValidS)*time.Second:
		return errors.New("the offer came too late")
	}
	return nil
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
//
// What nothing shows to be of now is taken only where it is newer than what runs, whatever the order says: it cannot take
// the board back, and that there is nothing newer is not believed of it.
func (a *agent) judge(o offer, w *wish) *protocol.Refusal {
	cmd := w.cmd
	if cmd.Version != "" && !protocol.SameVersion(cmd.Version, o.Version) && !protocol.OnTheWay(cmd.Version, o.Version, a.self.version) {
		if protocol.SameVersion(cmd.Version, a.self.version) {
			return &protocol.Refusal{Reason: protocol.ReasonUpToDate, Detail: cmd.Version}
		}
		return &protocol.Refusal{Reason: protocol.ReasonVersionMissing, Detail: fmt.Sprintf("%s is asked for, the server has %s", cmd.Version, o.Version)}
	}
	r, force := o.Release, cmd.Force && o.stale == nil
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
	if refusal != nil && o.stale != nil {
		// "Up to date" would be the word of whoever keeps something newer back.
		return &protocol.Refusal{Reason: protocol.ReasonStaleOffer, Detail: fmt.Sprintf("%s from the mirror: %v; %s", o.Version, o.stale, refusal.Reason.Text())}
	}
	if refusal == nil && w.retained && o.SHA256 != "" && o.SHA256 == a.self.held {
		return &protocol.Refusal{Reason: protocol.ReasonQuarantined,
			Detail: o.Version + " by command; an order given while the device listens brings it back"}
	}
	return refusal
}
