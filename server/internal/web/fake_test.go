package web

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

const operatorToken = "operator-token"

var published = time.Date(2026, 1, 2, 3, 4, 5, 0, time.FixedZone("", 3600))

// fakeFleet keeps the contract of the methods web calls, in memory. fail, when set, is what every method answers.
type fakeFleet struct {
	AccountKeeper // not faked, as the next: they are tested with a real fleet
	WebhookKeeper
	KeyKeeper
	Dashboard
	RolloutFleet
	Auditor
	mu     sync.Mutex
	blobs  map[string][]byte
	opened int
	closed int
	// cancelled counts images whose request was no longer alive when they were closed.
	cancelled int
	releases  []fleet.Release // newest first
	channels  []fleet.Channel
	devices   []fleet.Device
	attempts  []fleet.Attempt
	queries   []fleet.Query
	fail      error
}

func newFake() *fakeFleet { return &fakeFleet{blobs: make(map[string][]byte)} }

func digestHex(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// add publishes image as version of project and points stable at it.
func (f *fakeFleet) add(project, version string, image []byte) string {
	digest := digestHex(image)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.blobs[digest] = image
	rel := fleet.Release{
		SHA256: digest, Project: project, Chip: "esp32", Version: version, Size: int64(len(image)), Manifest: "a.b.c",
		BuildDate: published, PublishedAt: published, PublishedBy: "operator",
	}
	f.releases = append([]fleet.Release{rel}, f.releases...)
	f.point(project, "stable", digest)
	return digest
}

func (f *fakeFleet) point(project, channel, digest string) {
	for i, c := range f.channels {
		if c.Project == project && c.Name == channel {
			f.channels[i].SHA256 = digest
			return
		}
	}
	f.channels = append(f.channels, fleet.Channel{Project: project, Chip: "esp32", Name: channel, SHA256: digest, SetAt: published, SetBy: "operator"})
}

func (f *fakeFleet) Upload(_ context.Context, _ fleet.Identity, digest string, size int64, r io.Reader) error {
	if f.fail != nil {
		return f.fail
	}
	b, err := io.ReadAll(io.LimitReader(r, size))
	if err != nil {
		return err
	}
	if int64(len(b)) != size || digestHex(b) != digest {
		return fmt.Errorf("%w: other bytes than promised", fleet.ErrInvalid)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.blobs[digest] = b
	return nil
}

func (f *fakeFleet) Publish(_ context.Context, by fleet.Identity, req fleet.PublishRequest) (fleet.Release, []string, error) {
	if f.fail != nil {
		return fleet.Release{}, nil, f.fail
	}
	f.mu.Lock()
	image, ok := f.blobs[req.SHA256]
	f.mu.Unlock()
	if !ok {
		return fleet.Release{}, nil, fmt.Errorf("%w: no such upload", fleet.ErrNotFound)
	}
	f.add("bms", req.Version, image)
	return f.releases[0], []string{"only a test"}, nil
}

func (f *fakeFleet) Clear(context.Context, fleet.Identity, string) (fleet.Device, error) {
	return fleet.Device{}, f.fail
}

func (f *fakeFleet) ContestOf(string) *fleet.Contest { return nil }

func (f *fakeFleet) Withdraw(_ context.Context, _ fleet.Identity, digest string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.releases {
		if f.releases[i].SHA256 == digest {
			f.releases[i].Withdrawn = true
			return nil
		}
	}
	return fleet.ErrNotFound
}

func (f *fakeFleet) SetChannel(_ context.Context, by fleet.Identity, project, chip, channel, version string) (fleet.Channel, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, rel := range f.releases {
		if rel.Project == project && rel.Version == version {
			f.point(project, channel, rel.SHA256)
			return fleet.Channel{Project: project, Chip: chip, Name: channel, SHA256: rel.SHA256, SetAt: published, SetBy: by.Name}, nil
		}
	}
	return fleet.Channel{}, fmt.Errorf("version %s of %s: %w", version, project, fleet.ErrNotFound)
}

func (f *fakeFleet) Releases(context.Context) ([]fleet.Release, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.releases), f.fail
}

func (f *fakeFleet) Release(_ context.Context, digest string) (fleet.Release, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, rel := range f.releases {
		if rel.SHA256 == digest {
			return rel, nil
		}
	}
	return fleet.Release{}, fmt.Errorf("release %s: %w", digest, fleet.ErrNotFound)
}

func (f *fakeFleet) Channels(context.Context) ([]fleet.Channel, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.channels), f.fail
}

func (f *fakeFleet) Offer(_ context.Context, q fleet.Query) (fleet.Offer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.queries = append(f.queries[:min(len(f.queries), 100)], q)
	if f.fail != nil {
		return fleet.Offer{}, f.fail
	}
	channel := q.Channel
	if channel == "" {
		channel = fleet.DefaultChannel
	}
	for _, c := range f.channels {
		if c.Name != channel || q.Project != "" && c.Project != q.Project {
			continue
		}
		for _, rel := range f.releases {
			if rel.SHA256 == c.SHA256 && !rel.Withdrawn {
				return fleet.Offer{Release: rel, File: protocol.VersionFile{
					Version: rel.Version, BuildDate: rel.BuildDate.Format(time.RFC3339), Project: rel.Project, Chip: rel.Chip,
					Size: rel.Size, SHA256: rel.SHA256, URL: rel.SHA256 + ".bin", Manifest: rel.Manifest,
				}}, nil
			}
		}
	}
	return fleet.Offer{}, fmt.Errorf("no release is offered: %w", fleet.ErrNotFound)
}

type fakeBlob struct {
	*bytes.Reader
	f   *fakeFleet
	ctx context.Context // of the request
}

func (b fakeBlob) Close() error {
	b.f.mu.Lock()
	defer b.f.mu.Unlock()
	b.f.closed++
	if b.ctx.Err() != nil {
		b.f.cancelled++
	}
	return nil
}

func (f *fakeFleet) Firmware(ctx context.Context, digest string) (fleet.Blob, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, ok := f.blobs[digest]
	if !ok {
		return nil, fmt.Errorf("firmware %s: %w", digest, fleet.ErrNotFound)
	}
	f.opened++
	return fakeBlob{bytes.NewReader(b), f, ctx}, nil
}

func (f *fakeFleet) Enroll(_ context.Context, _ fleet.Identity, id string) (string, error) {
	if err := protocol.CheckDeviceID(id); err != nil {
		return "", fmt.Errorf("%w: %w", fleet.ErrInvalid, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.devices = append(f.devices, fleet.Device{ID: id, TokenSHA256: "x", EnrolledAt: published})
	return "token-of-" + id, nil
}

func (f *fakeFleet) EnrollCertificate(ctx context.Context, by fleet.Identity, id, _ string) (fleet.Certificate, error) {
	_, err := f.Enroll(ctx, by, id)
	return fleet.Certificate{PEM: "certificate-of-" + id, SHA256: digestA, Ends: published}, err
}

// AuthenticateCertificate takes the certificate whose fingerprint is in the device's row.
func (f *fakeFleet) AuthenticateCertificate(_ context.Context, name, sha256 string) (fleet.Identity, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, d := range f.devices {
		if d.ID == name && d.CertificateSHA256 == sha256 && !d.Revoked {
			return fleet.Identity{Name: name, Role: fleet.RoleDevice}, nil
		}
	}
	return fleet.Identity{}, fleet.ErrDenied
}

func (f *fakeFleet) Revoke(_ context.Context, _ fleet.Identity, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.devices {
		if f.devices[i].ID == id {
			f.devices[i].Revoked = true
			return nil
		}
	}
	return fleet.ErrNotFound
}

func (f *fakeFleet) DevicesAfter(_ context.Context, id string, limit int) ([]fleet.Device, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at := 1 + slices.IndexFunc(f.devices, func(d fleet.Device) bool { return d.ID == id })
	return slices.Clone(f.devices[at:min(len(f.devices), at+limit)]), f.fail
}

func (f *fakeFleet) Device(_ context.Context, id string) (fleet.Device, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, d := range f.devices {
		if d.ID == id {
			return d, nil
		}
	}
	return fleet.Device{}, fmt.Errorf("device %s: %w", id, fleet.ErrNotFound)
}

func (f *fakeFleet) Attempts(context.Context, string, int) ([]fleet.Attempt, error) {
	return f.attempts, nil
}

func (f *fakeFleet) AttemptsAfter(context.Context, string, string, int) ([]fleet.Attempt, error) {
	return f.attempts, nil
}

func (f *fakeFleet) Quarantines(context.Context) ([]fleet.Quarantine, error) { return nil, f.fail }

func (f *fakeFleet) OperatorByToken(_ context.Context, token string) (fleet.Identity, error) {
	switch token {
	case operatorToken:
		return fleet.Identity{Name: "operator", Role: fleet.RoleAdmin}, nil
	case "viewer-token":
		return fleet.Identity{Name: "viewer", Role: fleet.RoleViewer}, nil
	case "device-token":
		return fleet.Identity{Name: "bms-1", Role: fleet.RoleDevice}, nil
	}
	return fleet.Identity{}, fleet.ErrDenied
}

// testImage is n bytes that differ from every other seed's.
func testImage(seed byte, n int) []byte {
	b := bytes.Repeat([]byte("firmware "), n/9+1)[:n]
	for i := range b {
		b[i] ^= seed
	}
	return b
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// start serves f on loopback with the limits of Server.
func start(tb testing.TB, f Fleet, change ...func(*Config)) *httptest.Server {
	tb.Helper()
	cfg := Config{Fleet: f, Log: quiet(), Version: "1.2.3"}
	for _, fn := range change {
		fn(&cfg)
	}
	srv := httptest.NewUnstartedServer(nil)
	s := NewServer(New(cfg), quiet())
	lanes, err := s.accept(srv.Listener, nil)
	if err != nil {
		tb.Fatal(err)
	}
	srv.Config, srv.Listener = s.http, lanes
	srv.Start()
	tb.Cleanup(func() {
		_ = s.Close()
		srv.Close()
	})
	return srv
}

// ask makes one request; header lines are "Name: value".
func ask(tb testing.TB, method, url string, lines ...string) (*http.Response, []byte) {
	tb.Helper()
	req, err := http.NewRequest(method, url, nil)
	if err != nil {
		tb.Fatal(err)
	}
	for _, line := range lines {
		name, value, _ := strings.Cut(line, ": ")
		req.Header.Add(name, value)
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		tb.Fatalf("%s %s: %v", method, url, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		tb.Fatalf("%s %s: %v", method, url, err)
	}
	return resp, b
}

func (f *fakeFleet) TurnedAway(fleet.Knock) {}
