package fleet_test

import (
	"crypto/rand"
	"errors"
	"testing"

	"bmsota/esp/appimage"
	"bmsota/manifest"
	"bmsota/server/internal/fleet"
)

func sequence(n int64) func(*manifest.Manifest) {
	return func(m *manifest.Manifest) { m.Sequence = n }
}

// Whoever kept back a manifest that the project signed before its newest release cannot bring it in as if it were new.
func TestAManifestSignedBeforeTheNewestIsNotPublished(t *testing.T) {
	s := newShop(t, fleet.Config{})
	s.publish(t, build(t, version("1.0.0")))
	newest := build(t, version("1.2.0"))
	s.publish(t, newest, sequence(100))
	kept := build(t, version("1.1.0"))
	s.upload(t, kept)
	for name, n := range map[string]int64{"older": 99, "of the same moment": 100, "without a sequence": 0} {
		if _, _, err := s.Publish(t.Context(), anna, s.signed(t, kept, sequence(n))); !errors.Is(err, fleet.ErrRefused) {
			t.Errorf("%s: %v, want ErrRefused", name, err)
		}
		if releases, err := s.Releases(t.Context()); err != nil || len(releases) != 2 {
			t.Errorf("%s: %d releases, %v", name, len(releases), err)
		}
	}
	if _, _, err := s.Publish(t.Context(), anna, s.signed(t, newest, sequence(50))); err != nil {
		t.Errorf("what is published already, again: %v", err)
	}
	s.publish(t, kept, sequence(101))
	other := build(t, version("1.0.0"), func(o *appimage.BuildOptions) { o.Project = "charger" })
	s.publish(t, other, sequence(1))
}

// The offer is signed to whoever asks with a nonce, whether there is something newer or not.
func TestAnswersAreSignedToTheNonceOfTheQuestion(t *testing.T) {
	key, err := manifest.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s := newShop(t, fleet.Config{OfferKey: key})
	r := s.publish(t, build(t), sequence(7))
	const nonce = "AAECAwQFBgcICQoLDA0ODw"
	o, err := s.Offer(t.Context(), fleet.Query{Device: "bms-1", Nonce: nonce, Path: "/firmware/version"})
	if err != nil {
		t.Fatal(err)
	}
	got, err := manifest.VerifyOffer(o.Signed, &key.PublicKey)
	want := manifest.NewOffer("bms-1", nonce, "/firmware/version", r.SHA256, r.Version, 7, got.ValidS)
	if err != nil || got != want || got.ValidS < 60 {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	for _, q := range []fleet.Query{{Device: "bms-1"}, {Nonce: nonce}, {}} {
		if o, err := s.Offer(t.Context(), q); err != nil || o.Signed != "" {
			t.Errorf("%+v: %q, %v", q, o.Signed, err)
		}
	}
	for _, bad := range []string{"short", nonce + "\"", string(make([]byte, 65))} {
		if _, err := s.Offer(t.Context(), fleet.Query{Device: "bms-1", Nonce: bad}); !errors.Is(err, fleet.ErrInvalid) {
			t.Errorf("nonce %q: %v, want ErrInvalid", bad, err)
		}
	}
	if _, err := s.Enroll(t.Context(), anna, "bms-2"); err != nil {
		t.Fatal(err)
	}
	if err := s.Revoke(t.Context(), anna, "bms-2"); err != nil {
		t.Fatal(err)
	}
	if o, err := s.Offer(t.Context(), fleet.Query{Device: "bms-2", Nonce: nonce}); !errors.Is(err, fleet.ErrDenied) || o.Signed != "" {
		t.Errorf("a revoked device: %q, %v", o.Signed, err)
	}
}
