package fleet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"bmsota/manifest"
	"bmsota/protocol"
)

// MaxUpload is the largest firmware file in bytes: the largest image and the padding and sector of its signature.
const MaxUpload = manifest.MaxSize + 64<<10

// PublishRequest describes an uploaded image that shall become a release. Where there is a manifest, Version,
// MinVersion, ForceUpdate and BuildDate are the manifest's, and a request that says otherwise is refused.
type PublishRequest struct {
	SHA256          string // of the image file, which Upload has brought
	Manifest        string // compact JWS; empty only where unsigned releases are allowed
	Cosignatures    string // by further keys, as version.json has them
	PublicKeyPEM    string // the keys that signed, one block each
	Version         string // overrides the image's own
	MinVersion      string
	Description     string // for people; at most 2048 bytes
	ForceUpdate     bool
	BuildDate       time.Time
	Channel         string // to be pointed at the release; empty means DefaultChannel
	AllowAnyVersion bool   // take a version that is no proper SemVer
}

// Upload stores a firmware file of size bytes under its digest. The bytes are durable when it returns nil and are
// offered to nobody until Publish. The same bytes again are no error.
func (f *Fleet) Upload(ctx context.Context, by Identity, sha256 string, size int64, r io.Reader) error {
	if err := f.operator(by); err != nil {
		return err
	}
	if !isDigest(sha256) {
		return fmt.Errorf("%w: the digest is not 64 lower-case hex digits", ErrInvalid)
	}
	if size <= 0 || size > MaxUpload {
		return fmt.Errorf("%w: %d bytes are not within 1 to %d", ErrInvalid, size, MaxUpload)
	}
	return f.cfg.Blobs.Put(ctx, sha256, size, r)
}

// Publish makes an uploaded image a release and points a channel at it, in one transaction. It trusts nothing of the
// request that the bytes can say: the image must verify as ESP-IDF verifies it, nothing but a signature sector may
// follow it, and the manifest must be the one that these bytes give, signed by the project's keys. The first signed
// release of a project registers its keys; an image that carries a later set of them registers that, which takes an
// administrator.
//
// The same bytes as the same version again are no error and set the channel; other bytes under a published version
// are ErrConflict, as are published bytes under another version. Nothing is changed when an error is returned. The
// warnings are sentences for the operator; the release is published all the same.
// Errors: ErrDenied, ErrInvalid, ErrNotFound (no such upload), ErrRefused, ErrConflict, ErrStorage.
func (f *Fleet) Publish(ctx context.Context, by Identity, req PublishRequest) (Release, []string, error) {
	if err := f.operator(by); err != nil {
		return Release{}, nil, err
	}
	if req.Channel == "" {
		req.Channel = DefaultChannel
	}
	if err := checkRequest(req); err != nil {
		return Release{}, nil, err
	}
	f.publishing.Lock() // an image is held in memory whole: one at a time
	defer f.publishing.Unlock()

	img, err := f.readImage(ctx, req.SHA256)
	if err != nil {
		return Release{}, nil, err
	}
	r, signers, err := f.describe(req, img)
	if err != nil {
		return Release{}, nil, err
	}
	carried, err := manifest.Builtin(bytes.NewReader(img.bytes), img.Image)
	if err != nil {
		return Release{}, nil, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	warnings, err := judge(req, r, img)
	if err != nil {
		return Release{}, nil, err
	}
	r.PublishedAt, r.PublishedBy = f.cfg.Now(), by.Name

	// The bytes have been durable since Upload. Only now may a row, and with it every device, speak of them.
	var kept Release
	err = f.update(ctx, by, func(tx Tx) error {
		keys, err := tx.Keys(r.Project)
		if err != nil {
			return err
		}
		if err := checkImageKey(keys, img); err != nil {
			return err
		}
		if err := f.settleKeys(tx, by, keys, r, signers, carried); err != nil {
			return err
		}
		if kept, err = putRelease(tx, r); err != nil {
			return err
		}
		return putChannel(tx, Channel{Project: r.Project, Chip: r.Chip, Name: req.Channel, SHA256: r.SHA256,
			SetAt: f.cfg.Now(), SetBy: by.Name})
	})
	if err != nil {
		return Release{}, nil, err
	}
	r = kept
	f.catalog.forget()
	return r, warnings, nil
}

// putRelease adds r, or returns what is there when it is the same.
func putRelease(tx Tx, r Release) (Release, error) {
	old, err := tx.Release(r.SHA256)
	switch {
	case errors.Is(err, ErrNotFound):
	case err != nil:
		return r, err
	case old.Withdrawn:
		return r, fmt.Errorf("%w: these bytes were published as %s and withdrawn: build a new version", ErrConflict, old.Version)
	case old.Project != r.Project || old.Chip != r.Chip || old.Version != r.Version:
		return r, fmt.Errorf("%w: these bytes are published as version %s of project %q for %s", ErrConflict, old.Version, old.Project, old.Chip)
	case old.MinVersion != r.MinVersion || old.ForceUpdate != r.ForceUpdate || (old.Manifest == "") != (r.Manifest == ""):
		return r, fmt.Errorf("%w: version %s is published with another min_version, force_update or signature, and a release never changes: publish a new version", ErrConflict, old.Version)
	default:
		return old, nil
	}
	for _, spelling := range spellings(r.Version) {
		old, err := tx.ReleaseByVersion(r.Project, r.Chip, spelling)
		if err == nil {
			return r, fmt.Errorf("%w: version %s of project %q for %s is published with other bytes (%.12s…), and a release never changes: raise the version", ErrConflict, old.Version, r.Project, r.Chip, old.SHA256)
		}
		if !errors.Is(err, ErrNotFound) {
			return r, err
		}
	}
	if err := checkSequence(tx, r); err != nil {
		return r, err
	}
	return r, tx.PutRelease(r)
}

// checkSequence refuses a manifest that was signed before one that is here already: whoever kept an old one back, and may
// publish, must not bring it in as if it were new.
func checkSequence(tx Tx, r Release) error {
	all, err := tx.Releases()
	if err != nil {
		return err
	}
	own := sequenceOf(r)
	for _, old := range all {
		if old.Project == r.Project && old.Chip == r.Chip && old.Manifest != "" && sequenceOf(old) >= max(own, 1) {
			return fmt.Errorf("%w: the manifest of %s was signed before that of %s: sign it anew, on a machine whose clock is right", ErrRefused, r.Version, old.Version)
		}
	}
	return nil
}

// spellings of one version: with and without the leading v that is tolerated.
func spellings(version string) []string {
	if _, ok := protocol.ParseVersion(version); !ok {
		return []string{version}
	}
	if version[0] == 'v' {
		return []string{version, version[1:]}
	}
	return []string{version, "v" + version}
}

// putChannel points a channel at a release. Who set it and when stays when nothing changes.
func putChannel(tx Tx, c Channel) error {
	old, err := tx.Channel(c.Project, c.Chip, c.Name)
	if err == nil && old.SHA256 == c.SHA256 {
		return nil
	}
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	return tx.PutChannel(c)
}

// Withdraw makes a release one that is offered to nobody. Its bytes and its version stay taken. Channels that point at
// it offer nothing until they are set again. Withdrawing twice is no error.
func (f *Fleet) Withdraw(ctx context.Context, by Identity, sha256 string) error {
	if err := f.operator(by); err != nil {
		return err
	}
	err := f.update(ctx, by, func(tx Tx) error {
		r, err := tx.Release(sha256)
		if err != nil {
			return fmt.Errorf("release %.64q: %w", sha256, err)
		}
		r.Withdrawn = true
		return tx.PutRelease(r)
	})
	if err == nil {
		f.catalog.forget()
	}
	return err
}

// SetChannel points a channel at a published version. Project and chip may be empty where only one release has the
// version. Errors: ErrDenied, ErrInvalid (ambiguous, or no channel name), ErrNotFound, ErrConflict (withdrawn).
func (f *Fleet) SetChannel(ctx context.Context, by Identity, project, chip, channel, version string) (Channel, error) {
	if err := f.operator(by); err != nil {
		return Channel{}, err
	}
	if channel == "" {
		channel = DefaultChannel
	}
	if err := checkChannel(channel); err != nil {
		return Channel{}, err
	}
	var c Channel
	err := f.update(ctx, by, func(tx Tx) error {
		all, err := tx.Releases()
		if err != nil {
			return err
		}
		r, err := theRelease(all, project, chip, version)
		if err != nil {
			return err
		}
		if r.Withdrawn {
			return fmt.Errorf("%w: version %s is withdrawn", ErrConflict, r.Version)
		}
		c = Channel{Project: r.Project, Chip: r.Chip, Name: channel, SHA256: r.SHA256, SetAt: f.cfg.Now(), SetBy: by.Name}
		if err := putChannel(tx, c); err != nil {
			return err
		}
		c, err = tx.Channel(r.Project, r.Chip, channel)
		return err
	})
	if err != nil {
		return Channel{}, err
	}
	f.catalog.forget()
	return c, nil
}

// theRelease is the one release of a version.
func theRelease(all []Release, project, chip, version string) (Release, error) {
	var found []Release
	for _, r := range all {
		if canonical(r.Version) == canonical(version) && (project == "" || r.Project == project) && (chip == "" || r.Chip == chip) {
			found = append(found, r)
		}
	}
	switch len(found) {
	case 0:
		return Release{}, fmt.Errorf("version %.64q: %w", version, ErrNotFound)
	case 1:
		return found[0], nil
	}
	return Release{}, fmt.Errorf("%w: version %s is published %d times (%q for %s, %q for %s): name project and chip",
		ErrInvalid, version, len(found), found[0].Project, found[0].Chip, found[1].Project, found[1].Chip)
}
