package fleet

import (
	"context"
	"errors"
	"io"
	"time"

	"bmsota/protocol"
)

// PublishRequest describes an uploaded image that shall become a release.
type PublishRequest struct {
	SHA256          string // of the image file, which Upload has brought
	Manifest        string // compact JWS; empty only where unsigned releases are allowed
	PublicKeyPEM    string // key that signed Manifest
	Version         string // only for an unsigned release: overrides the image's own
	MinVersion      string // only for an unsigned release
	Description     string
	ForceUpdate     bool // only for an unsigned release
	BuildDate       time.Time
	Channel         string // to point at the release; empty means DefaultChannel
	AllowAnyVersion bool   // take a version that is no SemVer
}

// Query is what a device or a person says about itself when it asks for a release.
type Query struct{ Device, Project, Chip, Channel string }

// Offer is a release and the version.json that announces it.
type Offer struct {
	Release Release
	File    protocol.VersionFile
}

const foldQueue = 1024

type fold struct{}
type catalogCache struct{}

func (f *Fleet) Run(ctx context.Context, out Commander) error { return errors.ErrUnsupported }
func (f *Fleet) Upload(ctx context.Context, by Identity, sha256 string, size int64, r io.Reader) error {
	return errors.ErrUnsupported
}
func (f *Fleet) Publish(ctx context.Context, by Identity, req PublishRequest) (Release, []string, error) {
	return Release{}, nil, errors.ErrUnsupported
}
func (f *Fleet) Withdraw(ctx context.Context, by Identity, sha256 string) error {
	return errors.ErrUnsupported
}
func (f *Fleet) SetChannel(ctx context.Context, by Identity, project, chip, channel, version string) (Channel, error) {
	return Channel{}, errors.ErrUnsupported
}
func (f *Fleet) Releases(ctx context.Context) ([]Release, error) { return nil, errors.ErrUnsupported }
func (f *Fleet) Channels(ctx context.Context) ([]Channel, error) { return nil, errors.ErrUnsupported }
func (f *Fleet) Release(ctx context.Context, sha256 string) (Release, error) {
	return Release{}, errors.ErrUnsupported
}
func (f *Fleet) Offer(ctx context.Context, q Query) (Offer, error) {
	return Offer{}, errors.ErrUnsupported
}
func (f *Fleet) Firmware(ctx context.Context, sha256 string) (Blob, error) {
	return nil, errors.ErrUnsupported
}
func (f *Fleet) Enroll(ctx context.Context, by Identity, id string) (token string, err error) {
	return "", errors.ErrUnsupported
}
func (f *Fleet) Revoke(ctx context.Context, by Identity, id string) error {
	return errors.ErrUnsupported
}
func (f *Fleet) Devices(ctx context.Context) ([]Device, error) { return nil, errors.ErrUnsupported }
func (f *Fleet) Device(ctx context.Context, id string) (Device, error) {
	return Device{}, errors.ErrUnsupported
}
func (f *Fleet) Attempts(ctx context.Context, device string, limit int) ([]Attempt, error) {
	return nil, errors.ErrUnsupported
}
func (f *Fleet) NewOperator(ctx context.Context, name string) (token string, err error) {
	return "", errors.ErrUnsupported
}
func (f *Fleet) OperatorByToken(ctx context.Context, token string) (Identity, error) {
	return Identity{}, errors.ErrUnsupported
}
func (f *Fleet) Authenticate(ctx context.Context, name, secret string) (Identity, error) {
	return Identity{}, errors.ErrUnsupported
}
func (f *Fleet) Fold(ctx context.Context, device string, shared bool, payload []byte) error {
	return errors.ErrUnsupported
}
func (f *Fleet) Order(ctx context.Context, by Identity, device string, retained bool, payload []byte) ([]byte, error) {
	return nil, errors.ErrUnsupported
}
func (f *Fleet) Connected(ctx context.Context, device string) error    { return errors.ErrUnsupported }
func (f *Fleet) Disconnected(ctx context.Context, device string) error { return errors.ErrUnsupported }
