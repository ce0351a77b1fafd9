package fleet_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"bmsota/esp/appimage"
	"bmsota/esp/secureboot"
	"bmsota/manifest"
	"bmsota/server/internal/fleet"
)

func keysOf(t testing.TB, n int) []*ecdsa.PrivateKey {
	t.Helper()
	var keys []*ecdsa.PrivateKey
	for range n {
		key, err := manifest.NewKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key)
	}
	return keys
}

// carrying is an image with a set of keys in it; none with sequence 0.
func carrying(t testing.TB, v string, sequence uint32, threshold int, keys ...*ecdsa.PrivateKey) []byte {
	t.Helper()
	b := build(t, version(v), func(o *appimage.BuildOptions) { o.Extra = manifest.AppendRoom(nil) })
	if sequence == 0 {
		return b
	}
	set := manifest.Trust{Sequence: sequence, Threshold: threshold}
	for _, key := range keys {
		set.Keys = append(set.Keys, &key.PublicKey)
	}
	b, err := manifest.WithBuiltin(b, set)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// signedBy is a request to publish b, signed by keys.
func signedBy(t testing.TB, b []byte, minVersion string, keys ...*ecdsa.PrivateKey) fleet.PublishRequest {
	t.Helper()
	m := manifestOf(t, b)
	m.MinVersion = minVersion
	var signers []crypto.Signer
	var err error
	req := fleet.PublishRequest{SHA256: digest(b)}
	for _, key := range keys {
		signers = append(signers, key)
		req.PublicKeyPEM += publicPEM(t, key)
	}
	if req.Manifest, req.Cosignatures, err = manifest.SignAll(m, signers...); err != nil {
		t.Fatal(err)
	}
	return req
}

// Each step is one release; those that are refused leave everything as it was.
func TestReleasesAreSignedByTheKeysThatTheirDevicesTrust(t *testing.T) {
	s := newShop(t, fleet.Config{})
	k := keysOf(t, 6)
	for i, c := range []struct {
		name  string
		by    fleet.Identity
		image []byte
		min   string
		keys  []*ecdsa.PrivateKey
		want  string // in the error; empty: published
	}{
		{"first", anna, carrying(t, "1.0.0", 0, 0), "", k[:1], ""},
		{"another key", anna, carrying(t, "1.1.0", 0, 0), "", k[1:2], "signed by another key"},
		{"a key that nobody knows beside the right one", anna, carrying(t, "1.1.0", 0, 0), "", k[:2], "does not know"},
		{"new keys signed by themselves", anna, carrying(t, "1.1.0", 1, 1, k[1], k[2]), "", k[1:2], "signed by another key"},
		{"new keys brought by an operator", anna, carrying(t, "1.1.0", 1, 1, k[1], k[2]), "", k[:2], "administer"},
		{"new keys that would reach nobody", boss, carrying(t, "1.1.0", 1, 1, k[1], k[2]), "1.1.0", k[1:2], "signed by another key"},
		{"new keys that nobody shows to hold", boss, carrying(t, "1.1.0", 1, 1, k[1], k[2]), "", k[:1], "signed by its keys too: 1 of them must sign and 0 did"},
		{"new keys, signed by the old one", boss, carrying(t, "1.1.0", 1, 1, k[1], k[2]), "", k[:2], ""},
		{"the same again", anna, carrying(t, "1.1.0", 1, 1, k[1], k[2]), "", k[:2], ""},
		{"other keys under the number", boss, carrying(t, "1.2.0", 1, 1, k[1], k[3]), "", []*ecdsa.PrivateKey{k[0], k[1]}, "other keys as set 1"},
		{"another threshold under the number", boss, carrying(t, "1.2.0", 1, 2, k[1], k[2]), "", []*ecdsa.PrivateKey{k[0], k[1]}, "other keys as set 1"},
		{"the old key alone", anna, carrying(t, "1.2.0", 1, 1, k[1], k[2]), "", k[:1], "from version 1.1.0 on trust key set 1, of which 1 must sign and 0 did"},
		{"the new key alone", anna, carrying(t, "1.2.0", 1, 1, k[1], k[2]), "", k[1:2], "below version 1.1.0 trust key set 0, of which 1 must sign and 0 did: sign with its keys, or give min_version 1.1.0"},
		{"both, but the image forgets the keys", anna, carrying(t, "1.2.0", 0, 0), "", k[:2], "goes back to set 0"},
		{"both", anna, carrying(t, "1.2.0", 1, 1, k[1], k[2]), "", k[:2], ""},
		{"the other new key, for devices that have it", anna, carrying(t, "1.3.0", 1, 1, k[2], k[1]), "1.1.0", k[2:3], ""},
		{"a repair for devices below the new keys", anna, carrying(t, "1.0.1", 0, 0), "", k[:1], ""},
		{"two of three to come, by one", boss, carrying(t, "2.0.0", 2, 2, k[3], k[4], k[5]), "1.1.0", k[1:2], "2 of them must sign and 0 did"},
		{"two of three to come, and two of them", boss, carrying(t, "2.0.0", 2, 2, k[3], k[4], k[5]), "1.1.0", []*ecdsa.PrivateKey{k[1], k[3], k[5]}, ""},
		{"one of them alone", anna, carrying(t, "2.1.0", 2, 2, k[3], k[4], k[5]), "2.0.0", k[3:4], "of which 2 must sign and 1 did"},
		{"two of them", anna, carrying(t, "2.1.0", 2, 2, k[3], k[4], k[5]), "2.0.0", k[4:6], ""},
		{"a set from before", anna, carrying(t, "3.0.0", 1, 1, k[1], k[2]), "2.0.0", k[4:6], "goes back to set 1"},
		{"keys in an older version", boss, carrying(t, "1.9.0", 3, 1, k[0]), "1.1.0", k[1:2], "above \"2.0.0\""},
		{"keys in a version that is none", boss, carrying(t, "nightly", 3, 1, k[0]), "", k[3:5], "SemVer"},
		{"unsigned", anna, carrying(t, "3.0.0", 2, 2, k[3], k[4], k[5]), "", nil, "sign it"},
	} {
		s.upload(t, c.image)
		req := fleet.PublishRequest{SHA256: digest(c.image)}
		if c.keys != nil {
			req = signedBy(t, c.image, c.min, c.keys...)
		}
		req.AllowAnyVersion = true
		before := s.rows(t)
		r, _, err := s.Publish(t.Context(), c.by, req)
		switch {
		case c.want == "" && err != nil:
			t.Fatalf("step %d, %s: %v", i, c.name, err)
		case c.want == "" && c.name != "the same again" && (r.Manifest != req.Manifest || r.Cosignatures != req.Cosignatures):
			t.Errorf("step %d, %s: the signatures were not kept", i, c.name)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("step %d, %s: %v, want one that says %q", i, c.name, err, c.want)
		case c.want != "" && s.rows(t) != before:
			t.Errorf("step %d, %s: refused, and something changed", i, c.name)
		}
	}
	keys, err := s.Keys(t.Context())
	if err != nil || len(keys) != 1+2+3 {
		t.Errorf("%d keys, %v", len(keys), err)
	}
}

func TestEverySignatureHasItsKeyAndEveryKeyItsSignature(t *testing.T) {
	s := newShop(t, fleet.Config{})
	k := keysOf(t, 3)
	b := build(t)
	s.upload(t, b)
	good := signedBy(t, b, "", k[:2]...)
	for name, c := range map[string]struct {
		change func(*fleet.PublishRequest)
		want   error
	}{
		"a key too many":     {func(r *fleet.PublishRequest) { r.PublicKeyPEM += publicPEM(t, k[2]) }, fleet.ErrInvalid},
		"a key missing":      {func(r *fleet.PublishRequest) { r.PublicKeyPEM = publicPEM(t, k[0]) }, fleet.ErrInvalid},
		"another key":        {func(r *fleet.PublishRequest) { r.PublicKeyPEM = publicPEM(t, k[0]) + publicPEM(t, k[2]) }, fleet.ErrRefused},
		"the same key twice": {func(r *fleet.PublishRequest) { r.PublicKeyPEM = publicPEM(t, k[0]) + publicPEM(t, k[0]) }, fleet.ErrRefused},
		"the same signature": {func(r *fleet.PublishRequest) { r.Cosignatures = r.Manifest[strings.LastIndexByte(r.Manifest, '.')+1:] }, fleet.ErrRefused},
		"rubbish beside":     {func(r *fleet.PublishRequest) { r.Cosignatures = "x" }, fleet.ErrRefused},
		"too much beside":    {func(r *fleet.PublishRequest) { r.Cosignatures = strings.Repeat("x", manifest.MaxCosigned+1) }, fleet.ErrInvalid},
		"signatures alone":   {func(r *fleet.PublishRequest) { r.Manifest = "" }, fleet.ErrInvalid},
		"as it should be":    {func(*fleet.PublishRequest) {}, nil},
	} {
		req := good
		c.change(&req)
		if _, _, err := s.Publish(t.Context(), anna, req); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func TestAnImageThatSecureBootWouldNotStartIsRefused(t *testing.T) {
	for _, chip := range []appimage.ChipID{appimage.ESP32, appimage.ESP32C3} {
		s := newShop(t, fleet.Config{})
		k := keysOf(t, 3)
		pin := func(by fleet.Identity, key *ecdsa.PrivateKey, retire bool) error {
			sum, err := secureboot.KeyDigest(&key.PublicKey)
			if err != nil {
				t.Fatal(err)
			}
			return s.PinImageKey(t.Context(), by, "bms", hex.EncodeToString(sum[:]), retire)
		}
		if err := pin(anna, k[0], false); !errors.Is(err, fleet.ErrDenied) {
			t.Errorf("an operator pinned a key: %v", err)
		}
		if err := s.PinImageKey(t.Context(), boss, "bms", "00", false); !errors.Is(err, fleet.ErrInvalid) {
			t.Errorf("half a digest: %v", err)
		}
		if err := pin(boss, k[1], true); !errors.Is(err, fleet.ErrNotFound) {
			t.Errorf("a key that was not pinned: %v", err)
		}
		if err := errors.Join(pin(boss, k[0], false), pin(boss, k[0], false), pin(boss, k[2], false), pin(boss, k[2], true)); err != nil {
			t.Fatal(err)
		}
		try := func(v string, keys ...*ecdsa.PrivateKey) error {
			b := build(t, version(v), func(o *appimage.BuildOptions) { o.Chip = chip })
			for _, key := range keys {
				var err error
				if b, err = secureboot.Sign(b, key, nil, secureboot.Append()); err != nil {
					t.Fatal(err)
				}
			}
			s.upload(t, b)
			_, _, err := s.Publish(t.Context(), anna, signedBy(t, b, "", s.key))
			return err
		}
		second := error(nil)
		if chip == appimage.ESP32 {
			second = fleet.ErrRefused // it looks at the first block only
		}
		for i, c := range []struct {
			name string
			keys []*ecdsa.PrivateKey
			want error
		}{
			{"unsigned", nil, fleet.ErrRefused}, {"another key", k[1:2], fleet.ErrRefused}, {"a key taken back", k[2:3], fleet.ErrRefused},
			{"the key", k[:1], nil}, {"the key behind another", []*ecdsa.PrivateKey{k[1], k[0]}, second},
		} {
			if err := try("1.0."+string(rune('0'+i)), c.keys...); !errors.Is(err, c.want) {
				t.Errorf("%s, %s: %v, want %v", chip, c.name, err, c.want)
			}
		}
		if err := pin(boss, k[0], true); err != nil {
			t.Fatal(err)
		}
		if err := try("1.1.0"); err != nil {
			t.Errorf("%s: with no key pinned any more: %v", chip, err)
		}
	}
}
