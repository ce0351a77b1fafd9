// Package deploy takes an image from a firmware project to the devices: it checks and signs it, puts it on a server
// (ours, or a folder that any web server serves), sends the command and watches the devices to the end.
//
// It is the operator's side of the conversation and runs on the operator's machine: the signing key is used here and
// never leaves. It promises that nothing is uploaded that does not verify, that the bytes are there before anything
// points at them, and that a watch ends with a verdict for every device it was asked about, silence included.
package deploy

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"time"

	"bmsota/api"
	"bmsota/esp/appimage"
	"bmsota/manifest"
	"bmsota/protocol"
)

// ErrImage says that an image is not fit to be published; the sentence says why.
var ErrImage = errors.New("image refused")

// ErrVersion is the ErrImage of an image whose version devices cannot compare.
var ErrVersion = fmt.Errorf("%w: version", ErrImage)

// Release is what an operator asks to publish.
type Release struct {
	Image       []byte          // the whole file
	Version     string          // overrides the image's own description when not empty
	MinVersion  string          // what a device must run at least
	Description string          // for people
	ForceUpdate bool            // a check installs it
	BuildDate   time.Time       // zero = not said
	SignedAt    time.Time       // for the manifest's sequence; zero = it has none
	Keys        []crypto.Signer // sign the manifest, ECDSA P-256, at most four; none = unsigned
	// AllowAnyVersion takes a version that is no SemVer. Devices treat it as newer than nothing.
	AllowAnyVersion bool
}

// Prepared is a release that has been verified and signed, ready to be put anywhere.
type Prepared struct {
	Manifest     manifest.Manifest
	JWS          string // empty when unsigned
	Cosignatures string // by the keys after the first
	Public       string // PEM of the keys that signed, empty when unsigned
	Warnings     []string
	release      Release
}

// Prepare verifies the image as a device will, builds its manifest and signs it.
func Prepare(r Release) (*Prepared, error) {
	img, err := appimage.Parse(r.Image)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrImage, err)
	}
	p := &Prepared{release: r}
	version := r.Version
	if img.Desc != nil && version != "" && version != img.Desc.Version {
		p.Warnings = append(p.Warnings, fmt.Sprintf("the image describes itself as %q and is published as %q: devices report %q", img.Desc.Version, version, img.Desc.Version))
	}
	p.Manifest, err = manifest.New(r.Image, img, version)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrImage, err)
	}
	if _, ok := protocol.ParseVersion(p.Manifest.Version); !ok && !r.AllowAnyVersion {
		return nil, fmt.Errorf("%w %q is no SemVer 2.0.0 version, so devices could not tell newer from older", ErrVersion, p.Manifest.Version)
	}
	if r.MinVersion != "" {
		if _, ok := protocol.ParseVersion(r.MinVersion); !ok {
			return nil, fmt.Errorf("%w: min version %q is no SemVer 2.0.0 version", ErrImage, r.MinVersion)
		}
	}
	p.Manifest.MinVersion = r.MinVersion
	p.Manifest.ForceUpdate = r.ForceUpdate
	if !r.BuildDate.IsZero() {
		p.Manifest.BuildDate = r.BuildDate.UTC().Format(time.RFC3339)
	}
	if !r.SignedAt.IsZero() {
		p.Manifest.Sequence = r.SignedAt.UnixMilli()
	}
	if len(r.Keys) == 0 {
		p.Warnings = append(p.Warnings, "the release is not signed: devices that hold a key refuse it, devices that hold none trust whoever is on the wire")
		return p, nil
	}
	if p.JWS, p.Cosignatures, err = manifest.SignAll(p.Manifest, r.Keys...); err != nil {
		return nil, err
	}
	for _, key := range p.publicKeys() {
		public, err := manifest.EncodePublicKey(key)
		if err != nil {
			return nil, err
		}
		p.Public += string(public)
	}
	return p, nil
}

// publicKeys are those of the keys that sign; Prepare has seen to their kind.
func (p *Prepared) publicKeys() []*ecdsa.PublicKey {
	var keys []*ecdsa.PublicKey
	for _, key := range p.release.Keys {
		if public, ok := key.Public().(*ecdsa.PublicKey); ok {
			keys = append(keys, public)
		}
	}
	return keys
}

// VersionFile is version.json of the release, with url as where the image lies beside it.
func (p *Prepared) VersionFile(url string) protocol.VersionFile {
	m := p.Manifest
	return protocol.VersionFile{Version: m.Version, BuildDate: m.BuildDate, Description: p.release.Description, MinVersion: m.MinVersion,
		ForceUpdate: m.ForceUpdate, Project: m.Project, Chip: m.Chip, Size: m.Size, SHA256: m.SHA256, URL: url,
		SecureVersion: m.SecureVersion, Manifest: p.JWS, Cosignatures: p.Cosignatures}
}

// Publish uploads the bytes, then makes them a release and points channel (empty = the server's default) at it.
// progress may be nil.
func Publish(ctx context.Context, client *api.Client, p *Prepared, channel string, progress func(done, total int64)) (api.PublishResponse, error) {
	r := p.release
	if err := client.Upload(ctx, p.Manifest.SHA256, int64(len(r.Image)), bytes.NewReader(r.Image), progress); err != nil {
		return api.PublishResponse{}, err
	}
	req := api.PublishRequest{SHA256: p.Manifest.SHA256, Manifest: p.JWS, Cosignatures: p.Cosignatures, PublicKeyPEM: p.Public, MinVersion: r.MinVersion,
		ForceUpdate: r.ForceUpdate, Description: r.Description, BuildDate: r.BuildDate, Channel: channel, AllowAnyVersion: r.AllowAnyVersion}
	if p.JWS == "" {
		req.Version = p.Manifest.Version
	}
	return client.Publish(ctx, req)
}
