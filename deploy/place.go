package deploy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"bmsota/api"
	"bmsota/manifest"
	"bmsota/protocol"
)

// Faults of a deployment that an exit code depends on.
var (
	// ErrNotNewer says that the server offers this version or a newer one.
	ErrNotNewer = errors.New("version refused")
	// ErrOffer says that what the server offers cannot be read.
	ErrOffer = errors.New("version.json of the server is broken")
)

// Offer is the release that a server offers now. The zero value is none.
type Offer struct {
	Version, SHA256 string // SHA256 of the image file
	Project, Chip   string // empty where version.json does not say
	Manifest        string // compact JWS, empty when unsigned
	Cosignatures    string // by further keys
}

// Place is where releases go: a server of ours, or a folder that another one shows. Not safe for concurrent use.
type Place interface {
	// Offered says what devices of a project and chip are offered now, of any where they are empty. The error wraps
	// ErrOffer where that is unreadable.
	Offered(ctx context.Context, project, chip string) (Offer, error)
	// Holds says whether nothing of p, which Offered has named, has to be copied again.
	Holds(ctx context.Context, p *Prepared) (bool, error)
	// Put copies p and points the offer at it. When ctx ends before it points, nothing has changed.
	Put(ctx context.Context, p *Prepared, progress func(done, total int64)) (warnings []string, err error)
	// Close lets go of the connection.
	Close() error
	// String names it for people.
	String() string
}

// Deliver puts p at a place, unless it is there already; uploaded says which. A version that is not newer than the one
// offered is refused (ErrNotNewer), unless force.
func Deliver(ctx context.Context, at Place, p *Prepared, force bool, progress func(done, total int64)) (uploaded bool, warnings []string, err error) {
	o, err := at.Offered(ctx, p.Manifest.Project, p.Manifest.Chip)
	if err != nil && !(force && errors.Is(err, ErrOffer)) {
		return false, nil, err
	}
	if o.Project != "" && o.Project != p.Manifest.Project {
		warnings = append(warnings, fmt.Sprintf("%s offers project %q until now, this image is of %q: devices of the other refuse it", at, o.Project, p.Manifest.Project))
	}
	if o.Chip != "" && o.Chip != p.Manifest.Chip {
		warnings = append(warnings, fmt.Sprintf("%s offers an image for %s until now, this one is for %s: devices of the other refuse it", at, o.Chip, p.Manifest.Chip))
	}
	if p.is(o) {
		whole, err := at.Holds(ctx, p)
		if err != nil || whole {
			return false, warnings, err
		}
	} else if err := p.mayReplace(o); err != nil && !force {
		return false, warnings, err
	}
	more, err := at.Put(ctx, p, progress)
	return err == nil, append(warnings, more...), err
}

// is says whether o is this release: the same image under the same version, and signed by the keys there are. What else
// was said when it was published (the version a device must run at least, or a signature where there is no key now) is
// not to be lost by publishing the same again.
func (p *Prepared) is(o Offer) bool {
	if o.Version != p.Manifest.Version || o.SHA256 != p.Manifest.SHA256 {
		return false
	}
	if len(p.release.Keys) == 0 {
		return true
	}
	_, signed, err := manifest.SignedBy(o.Manifest, o.Cosignatures, p.publicKeys()...)
	return err == nil && len(signed) == len(p.release.Keys)
}

// mayReplace says whether p may take the place of o without being forced: it is newer, or the same image.
func (p *Prepared) mayReplace(o Offer) error {
	m := p.Manifest
	switch {
	case o.Version == "" || protocol.Newer(m.Version, o.Version):
		return nil
	case strings.TrimPrefix(o.Version, "v") != strings.TrimPrefix(m.Version, "v"):
		return fmt.Errorf("%w: %s is not newer than %s, which the server offers", ErrNotNewer, m.Version, o.Version)
	case o.SHA256 != m.SHA256:
		return fmt.Errorf("%w: the server offers %s already, with other bytes", ErrNotNewer, o.Version)
	}
	return nil // the same image, signed by another key or by none
}

// static is a folder that a web server shows.
type static struct {
	shelf  shelf
	layout layout
	name   string
	close  func() error
}

// OpenFolder is the place of kind dir.
func OpenFolder(dir string) Place {
	return &static{folder{}, folderLayout(dir), "folder " + dir, func() error { return nil }}
}

func (s *static) Offered(context.Context, string, string) (Offer, error) {
	return offered(s.shelf, s.layout)
}

func (s *static) Holds(_ context.Context, p *Prepared) (bool, error) {
	return holds(s.shelf, s.layout, p.Manifest.SHA256), nil
}

func (s *static) Put(ctx context.Context, p *Prepared, progress func(done, total int64)) ([]string, error) {
	_, err := place(ctx, s.shelf, s.layout, p, progress)
	return nil, err
}

func (s *static) Close() error   { return s.close() }
func (s *static) String() string { return s.name }

// channel is the one a deployment points at its release: a server's default.
const channel = "stable"

// ours is a server of ours.
type ours struct {
	client *api.Client
	name   string
}

// OpenServer is the place of kind bmsota; name is how people call it.
func OpenServer(client *api.Client, name string) Place { return &ours{client, name} }

func (s *ours) Offered(ctx context.Context, project, chip string) (Offer, error) {
	channels, err := s.client.Channels(ctx)
	if err != nil {
		return Offer{}, err
	}
	for _, c := range channels {
		if c.Channel != channel || c.SHA256 == "" || project != "" && c.Project != project || chip != "" && c.Chip != chip {
			continue
		}
		r, err := s.client.Release(ctx, c.SHA256)
		if err != nil {
			return Offer{}, err
		}
		if r.Withdrawn {
			return Offer{}, nil
		}
		return Offer{Version: r.Version, SHA256: r.SHA256, Project: r.Project, Chip: r.Chip, Manifest: r.Manifest, Cosignatures: r.Cosignatures}, nil
	}
	return Offer{}, nil
}

// Holds is always true of what a channel points at: the server verified the bytes and keeps them.
func (s *ours) Holds(context.Context, *Prepared) (bool, error) { return true, nil }

func (s *ours) Put(ctx context.Context, p *Prepared, progress func(done, total int64)) ([]string, error) {
	// The server refuses this as well, but only when all has been uploaded.
	releases, err := s.client.Releases(ctx)
	if err != nil {
		return nil, err
	}
	m := p.Manifest
	for _, r := range releases {
		if r.Project == m.Project && r.Chip == m.Chip && r.Version == m.Version && r.SHA256 != m.SHA256 {
			return nil, fmt.Errorf("%w: %s has %s with other bytes, and a published version never changes", ErrNotNewer, s, m.Version)
		}
	}
	out, err := Publish(ctx, s.client, p, channel, progress)
	return out.Warnings, err
}

func (s *ours) Close() error   { return nil }
func (s *ours) String() string { return s.name }

// Digest is the SHA-256 of an image file as manifests and servers name it: lower-case hex.
func Digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
