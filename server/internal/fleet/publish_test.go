package fleet_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"

	"bmsota/esp/appimage"
	"bmsota/manifest"
	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"
)

// shop is a fleet with a store that can be asked what is in it, and a signer.
type shop struct {
	*fleet.Fleet
	store *countingStore
	key   *ecdsa.PrivateKey
}

func newShop(t testing.TB, cfg fleet.Config) *shop {
	t.Helper()
	s := &countingStore{Store: store.NewMemory()}
	cfg.Store = s
	key, err := manifest.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &shop{newFleet(t, cfg), s, key}
}

func build(t testing.TB, change ...func(*appimage.BuildOptions)) []byte {
	t.Helper()
	opt := appimage.BuildOptions{Chip: appimage.ESP32C3, Project: "bms", Version: "1.0.0"}
	for _, c := range change {
		c(&opt)
	}
	b, err := appimage.Build(opt)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func version(v string) func(*appimage.BuildOptions) {
	return func(o *appimage.BuildOptions) { o.Version = v }
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func publicPEM(t testing.TB, key *ecdsa.PrivateKey) string {
	t.Helper()
	text, err := manifest.EncodePublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// manifestOf is what a manifest says of b.
func manifestOf(t testing.TB, b []byte) manifest.Manifest {
	t.Helper()
	img, err := appimage.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	m, err := manifest.New(b, img, "")
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// signed is a request to publish b as its manifest, changed by change, says.
func (s *shop) signed(t testing.TB, b []byte, change ...func(*manifest.Manifest)) fleet.PublishRequest {
	t.Helper()
	m := manifestOf(t, b)
	for _, c := range change {
		c(&m)
	}
	text, err := manifest.Sign(m, s.key)
	if err != nil {
		t.Fatal(err)
	}
	return fleet.PublishRequest{SHA256: digest(b), Manifest: text, PublicKeyPEM: publicPEM(t, s.key)}
}

func (s *shop) upload(t testing.TB, b []byte) {
	t.Helper()
	if err := s.Upload(t.Context(), anna, digest(b), int64(len(b)), bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
}

// publish brings an image all the way.
func (s *shop) publish(t testing.TB, b []byte, change ...func(*manifest.Manifest)) fleet.Release {
	t.Helper()
	s.upload(t, b)
	r, _, err := s.Publish(t.Context(), anna, s.signed(t, b, change...))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// rows is everything publishing could have changed.
func (s *shop) rows(t testing.TB) string {
	t.Helper()
	var text string
	err := s.store.View(t.Context(), func(tx fleet.Tx) error {
		releases, e1 := tx.Releases()
		channels, e2 := tx.Channels()
		keys, e3 := tx.Keys("bms")
		other, e4 := tx.Keys("other")
		text = fmt.Sprintf("%+v\n%+v\n%+v\n%+v", releases, channels, keys, other)
		return errors.Join(e1, e2, e3, e4)
	})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestPublishMakesAReleaseAndPointsTheChannelAtIt(t *testing.T) {
	s := newShop(t, fleet.Config{})
	b := build(t)
	req := s.signed(t, b, func(m *manifest.Manifest) { m.MinVersion, m.BuildDate = "0.9.0", "2026-02-03T04:05:06Z" })
	req.Description, req.Channel = "what is new", "beta"
	s.upload(t, b)
	r, warnings, err := s.Publish(t.Context(), anna, req)
	if err != nil || len(warnings) != 0 {
		t.Fatal(err, warnings)
	}
	if r.Project != "bms" || r.Chip != "esp32c3" || r.Version != "1.0.0" || r.MinVersion != "0.9.0" || r.Size != int64(len(b)) ||
		r.SHA256 != digest(b) || r.Manifest != req.Manifest || r.PublishedBy != "anna" || r.BuildDate.Year() != 2026 {
		t.Errorf("release %+v", r)
	}
	o, err := s.Offer(t.Context(), fleet.Query{Channel: "beta"})
	if err != nil {
		t.Fatal(err)
	}
	if o.File.URL != digest(b)+".bin" || o.File.Manifest != req.Manifest || o.File.BuildDate != "2026-02-03T04:05:06Z" || o.File.Description != "what is new" {
		t.Errorf("version.json %+v", o.File)
	}
	blob, err := s.Firmware(t.Context(), digest(b))
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	if got, err := io.ReadAll(blob); err != nil || !bytes.Equal(got, b) {
		t.Errorf("firmware of %d bytes (%v), want %d", len(got), err, len(b))
	}

	// Once more is no error, keeps the release, and sets the channel asked for.
	req.Channel = ""
	again, _, err := s.Publish(t.Context(), anna, req)
	if err != nil || !reflect.DeepEqual(again, trimmed(r)) {
		t.Errorf("published again: %+v (%v), want %+v", again, err, r)
	}
	if o, err := s.Offer(t.Context(), fleet.Query{}); err != nil || o.Release.SHA256 != r.SHA256 {
		t.Errorf("stable offers %+v (%v)", o, err)
	}
}

// trimmed is r as rows keep it.
func trimmed(r fleet.Release) fleet.Release {
	r.PublishedAt = r.PublishedAt.UTC().Truncate(1e6)
	return r
}

func TestPublishRefusesAndChangesNothing(t *testing.T) {
	s := newShop(t, fleet.Config{})
	first := build(t)
	s.publish(t, first)
	s.publish(t, build(t, version("0.1.0")))
	if err := s.Withdraw(t.Context(), anna, digest(build(t, version("0.1.0")))); err != nil {
		t.Fatal(err)
	}
	stranger, err := manifest.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	next := build(t, version("1.1.0"))
	other := build(t, version("1.0.0"), func(o *appimage.BuildOptions) { o.Trial = appimage.BehaviourCrash })
	flipped := bytes.Clone(next)
	flipped[len(flipped)/2] ^= 1
	trailing := append(bytes.Clone(next), 0)
	padded := append(bytes.Clone(next), bytes.Repeat([]byte{0xff}, 4096)...)

	for _, c := range []struct {
		name  string
		bytes []byte
		req   func() fleet.PublishRequest
		by    fleet.Identity
		want  error
		says  string
	}{
		{name: "not an operator", req: func() fleet.PublishRequest { return s.signed(t, next) }, by: fleet.Identity{Name: "d1", Role: fleet.RoleDevice}, want: fleet.ErrDenied},
		{name: "not uploaded", req: func() fleet.PublishRequest { return s.signed(t, build(t, version("9.9.9"))) }, want: fleet.ErrNotFound, says: "upload"},
		{name: "no digest", req: func() fleet.PublishRequest { return fleet.PublishRequest{SHA256: "../../etc/passwd"} }, want: fleet.ErrInvalid},
		{name: "digest in capitals", req: func() fleet.PublishRequest {
			r := s.signed(t, next)
			r.SHA256 = strings.ToUpper(r.SHA256)
			return r
		}, want: fleet.ErrInvalid},
		{name: "a flipped bit", bytes: flipped, req: func() fleet.PublishRequest {
			r := s.signed(t, next)
			r.SHA256 = digest(flipped)
			return r
		}, want: fleet.ErrRefused, says: "boot"},
		{name: "no image at all", bytes: []byte("hello"), req: func() fleet.PublishRequest {
			r := s.signed(t, next)
			r.SHA256 = digest([]byte("hello"))
			return r
		}, want: fleet.ErrRefused},
		{name: "cut short", bytes: next[:len(next)-1], req: func() fleet.PublishRequest {
			r := s.signed(t, next)
			r.SHA256 = digest(next[:len(next)-1])
			return r
		}, want: fleet.ErrRefused},
		{name: "one byte too many", bytes: trailing, req: func() fleet.PublishRequest { return s.signed(t, trailing) }, want: fleet.ErrRefused, says: "no signature"},
		{name: "a sector of padding", bytes: padded, req: func() fleet.PublishRequest { return s.signed(t, padded) }, want: fleet.ErrRefused, says: "no signature"},
		{name: "unsigned", bytes: next, req: func() fleet.PublishRequest { return fleet.PublishRequest{SHA256: digest(next)} }, want: fleet.ErrRefused, says: "not signed"},
		{name: "no key", bytes: next, req: func() fleet.PublishRequest {
			r := s.signed(t, next)
			r.PublicKeyPEM = ""
			return r
		}, want: fleet.ErrInvalid},
		{name: "two keys", bytes: next, req: func() fleet.PublishRequest {
			r := s.signed(t, next)
			r.PublicKeyPEM += publicPEM(t, stranger)
			return r
		}, want: fleet.ErrInvalid},
		{name: "signed by a key other than the one named", bytes: next, req: func() fleet.PublishRequest {
			r := s.signed(t, next)
			r.PublicKeyPEM = publicPEM(t, stranger)
			return r
		}, want: fleet.ErrRefused},
		{name: "signed by a stranger", bytes: next, req: func() fleet.PublishRequest { return (&shop{key: stranger}).signed(t, next) }, want: fleet.ErrRefused, says: "another key"},
		{name: "manifest is no JWS", bytes: next, req: func() fleet.PublishRequest {
			r := s.signed(t, next)
			r.Manifest = "a.b.c"
			return r
		}, want: fleet.ErrRefused},
		{name: "manifest of other bytes", bytes: next, req: func() fleet.PublishRequest {
			r := s.signed(t, first)
			r.SHA256 = digest(next)
			return r
		}, want: fleet.ErrRefused, says: "sha256"},
		{name: "manifest says another chip", bytes: next, req: func() fleet.PublishRequest {
			return s.signed(t, next, func(m *manifest.Manifest) { m.Chip = "esp32" })
		}, want: fleet.ErrRefused, says: "chip"},
		{name: "manifest says another project", bytes: next, req: func() fleet.PublishRequest {
			return s.signed(t, next, func(m *manifest.Manifest) { m.Project = "other" })
		}, want: fleet.ErrRefused, says: "project"},
		{name: "manifest says another security version", bytes: next, req: func() fleet.PublishRequest {
			return s.signed(t, next, func(m *manifest.Manifest) { m.SecureVersion = 7 })
		}, want: fleet.ErrRefused, says: "secure_version"},
		{name: "manifest says another size", bytes: next, req: func() fleet.PublishRequest {
			return s.signed(t, next, func(m *manifest.Manifest) { m.Size-- })
		}, want: fleet.ErrRefused, says: "size"},
		{name: "manifest with other block digests", bytes: next, req: func() fleet.PublishRequest {
			return s.signed(t, next, func(m *manifest.Manifest) { m.Blocks = strings.Repeat("A", len(m.Blocks)) })
		}, want: fleet.ErrRefused, says: "block"},
		{name: "manifest with a bad date", bytes: next, req: func() fleet.PublishRequest {
			return s.signed(t, next, func(m *manifest.Manifest) { m.BuildDate = "yesterday" })
		}, want: fleet.ErrRefused, says: "build_date"},
		{name: "request says another version", bytes: next, req: func() fleet.PublishRequest {
			r := s.signed(t, next)
			r.Version = "1.2.0"
			return r
		}, want: fleet.ErrRefused, says: "1.2.0"},
		{name: "request says another min_version", bytes: next, req: func() fleet.PublishRequest {
			r := s.signed(t, next)
			r.MinVersion = "1.0.0"
			return r
		}, want: fleet.ErrRefused, says: "min_version"},
		{name: "request says force_update", bytes: next, req: func() fleet.PublishRequest {
			r := s.signed(t, next)
			r.ForceUpdate = true
			return r
		}, want: fleet.ErrRefused, says: "force_update"},
		{name: "no SemVer", bytes: next, req: func() fleet.PublishRequest {
			return s.signed(t, next, func(m *manifest.Manifest) { m.Version = "1.2" })
		}, want: fleet.ErrRefused, says: "SemVer"},
		{name: "a commit after a tag", bytes: next, req: func() fleet.PublishRequest {
			return s.signed(t, next, func(m *manifest.Manifest) { m.Version = "v1.2.3-4-gabc1234" })
		}, want: fleet.ErrRefused, says: "SemVer"},
		{name: "min_version no SemVer", bytes: next, req: func() fleet.PublishRequest {
			return s.signed(t, next, func(m *manifest.Manifest) { m.MinVersion = "old" })
		}, want: fleet.ErrRefused, says: "min_version"},
		{name: "min_version above the version", bytes: next, req: func() fleet.PublishRequest {
			return s.signed(t, next, func(m *manifest.Manifest) { m.MinVersion = "2.0.0" })
		}, want: fleet.ErrRefused, says: "no device"},
		{name: "same version, other bytes", bytes: other, req: func() fleet.PublishRequest { return s.signed(t, other) }, want: fleet.ErrConflict, says: "other bytes"},
		{name: "same version spelled with v", bytes: other, req: func() fleet.PublishRequest {
			return s.signed(t, other, func(m *manifest.Manifest) { m.Version = "v1.0.0" })
		}, want: fleet.ErrConflict, says: "other bytes"},
		{name: "same bytes, other version", bytes: first, req: func() fleet.PublishRequest {
			return s.signed(t, first, func(m *manifest.Manifest) { m.Version = "1.0.1" })
		}, want: fleet.ErrConflict, says: "1.0.0"},
		{name: "same bytes, other min_version", bytes: first, req: func() fleet.PublishRequest {
			return s.signed(t, first, func(m *manifest.Manifest) { m.MinVersion = "0.5.0" })
		}, want: fleet.ErrConflict, says: "min_version"},
		{name: "withdrawn", bytes: build(t, version("0.1.0")), req: func() fleet.PublishRequest { return s.signed(t, build(t, version("0.1.0"))) }, want: fleet.ErrConflict, says: "withdrawn"},
		{name: "channel with a slash", bytes: next, req: func() fleet.PublishRequest {
			r := s.signed(t, next)
			r.Channel = "a/b"
			return r
		}, want: fleet.ErrInvalid},
		{name: "description with a control character", bytes: next, req: func() fleet.PublishRequest {
			r := s.signed(t, next)
			r.Description = "\x1b[2J"
			return r
		}, want: fleet.ErrInvalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.bytes != nil {
				s.upload(t, c.bytes)
			}
			if c.by.Role == "" {
				c.by = anna
			}
			before := s.rows(t)
			_, _, err := s.Publish(t.Context(), c.by, c.req())
			if !errors.Is(err, c.want) || !strings.Contains(fmt.Sprint(err), c.says) {
				t.Errorf("%v, want %v that says %q", err, c.want, c.says)
			}
			if after := s.rows(t); after != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
		})
	}
	s.publish(t, next) // what was refused for its papers is fine with the right ones
}

func TestPublishWarnsWhereImageAndReleaseDisagree(t *testing.T) {
	s := newShop(t, fleet.Config{})
	b := build(t, version("v1.0.0-3-gabc1234"), func(o *appimage.BuildOptions) { o.NoHash = true })
	s.upload(t, b)
	_, warnings, err := s.Publish(t.Context(), anna, s.signed(t, b, func(m *manifest.Manifest) { m.Version = "1.1.0" }))
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Join(warnings, "\n")
	if !strings.Contains(all, "v1.0.0-3-gabc1234") || !strings.Contains(all, "1.1.0") || len(warnings) != 2 {
		t.Errorf("warnings: %q", warnings)
	}
	b = build(t, version("nightly"))
	s.upload(t, b)
	req := s.signed(t, b)
	req.AllowAnyVersion = true
	if _, warnings, err := s.Publish(t.Context(), anna, req); err != nil || len(warnings) != 1 {
		t.Errorf("%v, warnings %q", err, warnings)
	}
}

func TestUnsignedReleases(t *testing.T) {
	s := newShop(t, fleet.Config{AllowUnsigned: true})
	b := build(t, func(o *appimage.BuildOptions) { o.Project = "free" })
	s.upload(t, b)
	r, _, err := s.Publish(t.Context(), anna, fleet.PublishRequest{SHA256: digest(b), MinVersion: "0.9.0", ForceUpdate: true})
	if err != nil || r.Version != "1.0.0" || r.Manifest != "" || r.MinVersion != "0.9.0" || !r.ForceUpdate {
		t.Errorf("%+v, %v", r, err)
	}
	for _, useless := range []string{"", "esp-idf: v4.4.6"} {
		b := build(t, version(useless), func(o *appimage.BuildOptions) { o.Project = "free" })
		s.upload(t, b)
		if _, _, err := s.Publish(t.Context(), anna, fleet.PublishRequest{SHA256: digest(b)}); !errors.Is(err, fleet.ErrInvalid) {
			t.Errorf("description %q: %v, want ErrInvalid", useless, err)
		}
	}
	s.publish(t, build(t))
	b = build(t, version("1.1.0"))
	s.upload(t, b)
	if _, _, err := s.Publish(t.Context(), anna, fleet.PublishRequest{SHA256: digest(b)}); !errors.Is(err, fleet.ErrRefused) {
		t.Errorf("unsigned in a signed project: %v, want ErrRefused", err)
	}
}

// TestPublishAfterACutBetweenBytesAndRow: the bytes are there and the row is not, as after a crash or a full disk.
func TestPublishAfterACutBetweenBytesAndRow(t *testing.T) {
	s := newShop(t, fleet.Config{})
	b := build(t)
	s.upload(t, b)
	fault := fmt.Errorf("disk full: %w", fleet.ErrStorage)
	s.store.fail.Store(&fault)
	if _, _, err := s.Publish(t.Context(), anna, s.signed(t, b)); !errors.Is(err, fleet.ErrStorage) {
		t.Errorf("%v, want ErrStorage", err)
	}
	s.store.fail.Store(nil)
	if _, err := s.Firmware(t.Context(), digest(b)); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("bytes without a row can be read: %v", err)
	}
	if _, err := s.Offer(t.Context(), fleet.Query{}); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("bytes without a row are offered: %v", err)
	}
	s.publish(t, b)
	if _, err := s.Offer(t.Context(), fleet.Query{}); err != nil {
		t.Error(err)
	}
}

func TestUploadIsHeldToItsPromise(t *testing.T) {
	s := newShop(t, fleet.Config{})
	for name, c := range map[string]struct {
		by     fleet.Identity
		digest string
		size   int64
		want   error
	}{
		"device":     {fleet.Identity{Name: "d", Role: fleet.RoleDevice}, digest([]byte("x")), 1, fleet.ErrDenied},
		"no digest":  {anna, "x", 1, fleet.ErrInvalid},
		"empty":      {anna, digest(nil), 0, fleet.ErrInvalid},
		"too large":  {anna, digest([]byte("x")), 17 << 20, fleet.ErrInvalid},
		"wrong size": {anna, digest([]byte("x")), 2, fleet.ErrInvalid},
		"wrong sum":  {anna, digest([]byte("y")), 1, fleet.ErrInvalid},
	} {
		if err := s.Upload(t.Context(), c.by, c.digest, c.size, strings.NewReader("x")); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}
