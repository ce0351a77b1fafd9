package fleet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"bmsota/esp/appimage"
	"bmsota/manifest"
	"bmsota/protocol"
)

// image is a firmware file that has passed verification.
type image struct {
	bytes []byte
	*appimage.Image
}

// checkRequest holds the texts of a request to their ranges.
func checkRequest(req PublishRequest) error {
	switch {
	case !isDigest(req.SHA256):
		return fmt.Errorf("%w: the digest is not 64 lower-case hex digits", ErrInvalid)
	case len(req.Manifest) > manifest.MaxJWS:
		return fmt.Errorf("%w: a manifest of %d bytes", ErrInvalid, len(req.Manifest))
	case len(req.Cosignatures) > manifest.MaxCosigned || req.Manifest == "" && req.Cosignatures != "":
		return fmt.Errorf("%w: cosignatures of %d bytes", ErrInvalid, len(req.Cosignatures))
	case len(req.Version) > 64 || len(req.MinVersion) > 64 || len(req.Description) > 2048:
		return fmt.Errorf("%w: a text is too long", ErrInvalid)
	}
	for _, text := range []string{req.Version, req.MinVersion, req.Description} {
		if !printable(text) {
			return fmt.Errorf("%w: a text holds a control character or is not UTF-8", ErrInvalid)
		}
	}
	return checkChannel(req.Channel)
}

// checkChannel holds the name of a channel to what can stand in a URL path and a topic.
func checkChannel(name string) error {
	if err := protocol.CheckDeviceID(name); err != nil || len(name) > 32 {
		return fmt.Errorf("%w: channel name %.64q: at most 32 letters, digits and . _ : -", ErrInvalid, name)
	}
	return nil
}

// printable says whether version.json can carry the text: devices refuse control characters.
func printable(s string) bool {
	return strings.ToValidUTF8(s, "\x00") == s && !strings.ContainsFunc(s, func(c rune) bool {
		return c < ' ' && c != '\n' && c != '\t' || c == 0x7f
	})
}

func isDigest(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == sha256.Size && strings.ToLower(s) == s
}

// readImage reads an uploaded file and verifies it as ESP-IDF would before it boots it.
func (f *Fleet) readImage(ctx context.Context, digest string) (image, error) {
	blob, err := f.cfg.Blobs.Reread(ctx, digest)
	if errors.Is(err, ErrNotFound) {
		return image{}, fmt.Errorf("image %.12s…: %w: upload it first", digest, ErrNotFound)
	}
	if err != nil {
		return image{}, err
	}
	defer blob.Close()
	if blob.Size() > MaxUpload {
		return image{}, fmt.Errorf("%w: the file has %d bytes, the limit is %d", ErrRefused, blob.Size(), MaxUpload)
	}
	b := make([]byte, blob.Size())
	if _, err := io.ReadFull(blob, b); err != nil {
		return image{}, fmt.Errorf("read image: %w: %w", ErrStorage, err)
	}
	if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != digest {
		return image{}, fmt.Errorf("%w: the stored file no longer has its digest: upload it again", ErrStorage)
	}
	parsed, err := appimage.Parse(b)
	if err != nil {
		return image{}, fmt.Errorf("%w: not an image that a device would boot: %w", ErrRefused, err)
	}
	if end := appimage.FileLength(bytes.NewReader(b), int64(len(b)), parsed); end != int64(len(b)) {
		return image{}, fmt.Errorf("%w: the image ends at byte %d and the file at %d: what follows is no signature", ErrRefused, end, len(b))
	}
	return image{b, parsed}, nil
}

// describe makes the release that the bytes and the manifest say, and the keys that vouch for it, in PEM.
func (f *Fleet) describe(req PublishRequest, img image) (Release, []string, error) {
	if req.Manifest == "" {
		m, err := f.unsigned(req, img)
		if err != nil {
			return Release{}, nil, err
		}
		r, err := release(req, m, img)
		return r, nil, err
	}
	keys, err := manifest.ParsePublicKeys([]byte(req.PublicKeyPEM))
	if err != nil {
		return Release{}, nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	m, signed, err := manifest.SignedBy(req.Manifest, req.Cosignatures, keys...)
	if err != nil {
		return Release{}, nil, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	signatures := 1
	if req.Cosignatures != "" {
		signatures += 1 + strings.Count(req.Cosignatures, ".")
	}
	// A signature that nobody answers for would go out to every device and help none.
	switch {
	case len(keys) != signatures:
		return Release{}, nil, fmt.Errorf("%w: %d public keys came with %d signatures", ErrInvalid, len(keys), signatures)
	case len(signed) != signatures:
		return Release{}, nil, fmt.Errorf("%w: of %d signatures %d are by a key of their own", ErrRefused, signatures, len(signed))
	}
	if err := matches(m, req, img); err != nil {
		return Release{}, nil, err
	}
	texts, err := encodeKeys(signed)
	if err != nil {
		return Release{}, nil, err
	}
	r, err := release(req, m, img)
	return r, texts, err
}

// unsigned is the manifest that nobody signed, for the fields of a release without one.
func (f *Fleet) unsigned(req PublishRequest, img image) (manifest.Manifest, error) {
	if !f.cfg.AllowUnsigned {
		return manifest.Manifest{}, fmt.Errorf("%w: the release is not signed: sign it, or let the server allow unsigned releases", ErrRefused)
	}
	if req.Version == "" && !describes(img.Desc) {
		return manifest.Manifest{}, fmt.Errorf("%w: the image does not say its version: give it", ErrInvalid)
	}
	m, err := manifest.New(img.bytes, img.Image, req.Version)
	if err != nil {
		return manifest.Manifest{}, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	m.MinVersion, m.ForceUpdate = req.MinVersion, req.ForceUpdate
	return m, nil
}

// describes says whether a description names a version of this firmware. Arduino builds carry that of ESP-IDF.
func describes(d *appimage.Desc) bool {
	return d != nil && strings.TrimSpace(d.Version) != "" && !strings.HasPrefix(d.Version, "esp-idf")
}

// matches holds a verified manifest to the bytes, field by field, and the request to the manifest.
func matches(m manifest.Manifest, req PublishRequest, img image) error {
	want, err := manifest.New(img.bytes, img.Image, m.Version)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	if img.Desc == nil {
		want.Project = m.Project // the image says nothing that could contradict
	}
	for _, field := range []struct {
		name      string
		got, want any
	}{
		{"format", m.Format, want.Format}, {"sha256", m.SHA256, want.SHA256}, {"size", m.Size, want.Size},
		{"chip", m.Chip, want.Chip}, {"project", m.Project, want.Project}, {"secure_version", m.SecureVersion, want.SecureVersion},
	} {
		if field.got != field.want {
			return fmt.Errorf("%w: the manifest's %s is %v, the image's is %v", ErrRefused, field.name, field.got, field.want)
		}
	}
	if m.Blocks != want.Blocks {
		return fmt.Errorf("%w: the block digests of the manifest are not those of the image", ErrRefused)
	}
	// What the bytes cannot say is the signer's alone.
	want.MinVersion, want.BuildDate, want.ForceUpdate, want.Sequence = m.MinVersion, m.BuildDate, m.ForceUpdate, m.Sequence
	if m != want {
		return fmt.Errorf("%w: the manifest is not the one that these bytes give", ErrRefused)
	}
	switch {
	case req.Version != "" && req.Version != m.Version:
		return fmt.Errorf("%w: the request says version %s, the manifest %s", ErrRefused, req.Version, m.Version)
	case req.MinVersion != "" && req.MinVersion != m.MinVersion:
		return fmt.Errorf("%w: the request says min_version %s, the manifest %q", ErrRefused, req.MinVersion, m.MinVersion)
	case req.ForceUpdate && !m.ForceUpdate:
		return fmt.Errorf("%w: the request says force_update, the manifest does not", ErrRefused)
	}
	return nil
}

// release puts the row together.
func release(req PublishRequest, m manifest.Manifest, img image) (Release, error) {
	r := Release{
		SHA256: m.SHA256, Project: m.Project, Chip: m.Chip, Version: m.Version, MinVersion: m.MinVersion,
		Description: req.Description, ForceUpdate: m.ForceUpdate, Size: m.Size, SecureVersion: m.SecureVersion,
		Manifest: req.Manifest, Cosignatures: req.Cosignatures, BuildDate: req.BuildDate.UTC(),
	}
	if !printable(r.Project) || !printable(r.Version) || !printable(r.MinVersion) {
		return r, fmt.Errorf("%w: project or version hold characters that no device reads", ErrRefused)
	}
	if m.BuildDate != "" {
		t, err := time.Parse(time.RFC3339, m.BuildDate)
		if err != nil {
			return r, fmt.Errorf("%w: the manifest's build_date is no RFC 3339 time", ErrRefused)
		}
		r.BuildDate = t.UTC()
	} else if r.BuildDate.IsZero() && img.Desc != nil {
		if t, err := time.Parse("Jan _2 2006 15:04:05", img.Desc.Date+" "+img.Desc.Time); err == nil {
			r.BuildDate = t
		}
	}
	if _, err := versionFile(r).Append(nil); err != nil {
		return r, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return r, nil
}

// describedCommit is what `git describe` makes of a commit after a tag. It reads as a SemVer pre-release and so sorts
// before the tag it comes after.
var describedCommit = regexp.MustCompile(`(-[0-9]+-g[0-9a-f]{4,}|-dirty)$`)

// judge holds the versions to their rules, and says what the operator should know.
func judge(req PublishRequest, r Release, img image) (warnings []string, err error) {
	_, proper := protocol.ParseVersion(r.Version)
	if proper && describedCommit.MatchString(r.Version) {
		proper = false
	}
	switch {
	case !proper && !req.AllowAnyVersion:
		return nil, fmt.Errorf("%w: version %q is no proper release version (SemVer 2.0.0, like 1.4.0): devices could not tell what is newer", ErrRefused, r.Version)
	case !proper:
		warnings = append(warnings, fmt.Sprintf("version %q is no proper SemVer: devices do not take it for newer without force", r.Version))
	}
	if r.MinVersion != "" {
		if _, ok := protocol.ParseVersion(r.MinVersion); !ok {
			return nil, fmt.Errorf("%w: min_version %q is no SemVer and would hold nobody back", ErrRefused, r.MinVersion)
		}
		if protocol.Older(r.Version, r.MinVersion) {
			return nil, fmt.Errorf("%w: min_version %s is above the version %s: no device could take it", ErrRefused, r.MinVersion, r.Version)
		}
	}
	if img.Desc == nil {
		warnings = append(warnings, "the image has no description: devices cannot say what they run except by its digest")
	} else if img.Desc.Version != r.Version {
		warnings = append(warnings, fmt.Sprintf("the image calls itself version %q and is published as %q: devices report the former", img.Desc.Version, r.Version))
	}
	if !img.HashAppended {
		warnings = append(warnings, "the image carries no SHA-256 of its own: the bootloader checks it by one byte only")
	}
	return warnings, nil
}
