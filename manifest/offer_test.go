package manifest_test

import (
	"crypto/ecdsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"

	"bmsota/manifest"

	"github.com/go-jose/go-jose/v4"
)

const nonce = "AAECAwQFBgcICQoLDA0ODw"

func TestAnOfferIsTheServersAndReadsBack(t *testing.T) {
	_, m := vector(t)
	key, other := newKey(t), newKey(t)
	o := manifest.NewOffer("bms-000001", nonce, "/firmware/version", m.SHA256, m.Version, 7, 600)
	text, err := manifest.SignOffer(o, key)
	if err != nil {
		t.Fatal(err)
	}
	if len(text) > manifest.MaxOffer {
		t.Errorf("%d bytes, devices read %d", len(text), manifest.MaxOffer)
	}
	if got, err := manifest.VerifyOffer(text, &other.PublicKey, &key.PublicKey); err != nil || got != o {
		t.Errorf("second of two keys: %+v, %v", got, err)
	}
	for name, keys := range map[string][]*ecdsa.PublicKey{"no key": nil, "another key": {&other.PublicKey}} {
		if _, err := manifest.VerifyOffer(text, keys...); !errors.Is(err, manifest.ErrSignature) {
			t.Errorf("%s: %v, want ErrSignature", name, err)
		}
	}
	longest := manifest.NewOffer(strings.Repeat("d", 64), strings.Repeat("n", 64), "/"+strings.Repeat("p", 511), m.SHA256, strings.Repeat("1", 64), 1<<62, 86400)
	if text, err = manifest.SignOffer(longest, key); err != nil || len(text) > manifest.MaxOffer {
		t.Errorf("the longest offer has %d bytes: %v", len(text), err)
	}
}

// One key may come to sign both, by somebody's mistake: neither text passes for the other.
func TestNeitherAnOfferNorAManifestPassesForTheOther(t *testing.T) {
	_, m := vector(t)
	key := newKey(t)
	offer, err := manifest.SignOffer(manifest.NewOffer("bms-000001", nonce, "/firmware/version", m.SHA256, m.Version, 0, 600), key)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := manifest.Sign(m, key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := manifest.Verify(offer, &key.PublicKey); err == nil {
		t.Error("an offer is a manifest")
	}
	if _, err := manifest.VerifyOffer(signed, &key.PublicKey); err == nil {
		t.Error("a manifest is an offer")
	}
}

func TestOffersOutOfRangeAreNotSignedAndNotRead(t *testing.T) {
	_, m := vector(t)
	key := newKey(t)
	good := manifest.NewOffer("bms-000001", nonce, "/firmware/version", m.SHA256, m.Version, 0, 600)
	for name, change := range map[string]func(*manifest.Offer){
		"another type": func(o *manifest.Offer) { o.Type = "manifest" }, "no device": func(o *manifest.Offer) { o.Device = "" },
		"a long device": func(o *manifest.Offer) { o.Device = strings.Repeat("d", 65) }, "no nonce": func(o *manifest.Offer) { o.Nonce = "" },
		"a short nonce": func(o *manifest.Offer) { o.Nonce = nonce[:15] }, "a long nonce": func(o *manifest.Offer) { o.Nonce = strings.Repeat("n", 65) },
		"a nonce of other digits": func(o *manifest.Offer) { o.Nonce = nonce + "+" }, "no digest": func(o *manifest.Offer) { o.SHA256 = "" },
		"an upper-case digest": func(o *manifest.Offer) { o.SHA256 = strings.ToUpper(o.SHA256) }, "no version": func(o *manifest.Offer) { o.Version = "" },
		"no path": func(o *manifest.Offer) { o.Path = "" }, "a path that is none": func(o *manifest.Offer) { o.Path = "firmware" },
		"a long path":         func(o *manifest.Offer) { o.Path = "/" + strings.Repeat("p", 512) },
		"a negative sequence": func(o *manifest.Offer) { o.Sequence = -1 }, "no time": func(o *manifest.Offer) { o.ValidS = 0 }, "too much time": func(o *manifest.Offer) { o.ValidS = 86401 },
	} {
		o := good
		change(&o)
		if _, err := manifest.SignOffer(o, key); err == nil {
			t.Errorf("%s: signed", name)
		}
		payload, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := manifest.VerifyOffer(jws(t, key, payload), &key.PublicKey); err == nil || errors.Is(err, manifest.ErrSignature) {
			t.Errorf("%s: read with %v", name, err)
		}
	}
}

// The example of docs/protocol.md is one.
func TestTheOfferOfTheDocumentIsRead(t *testing.T) {
	page, err := os.ReadFile("../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("(?s)```json\n(\\{\"type\": \"offer\".*?)```").FindSubmatch(page)
	if m == nil {
		t.Fatal("no example")
	}
	key := newKey(t)
	if o, err := manifest.VerifyOffer(jws(t, key, m[1]), &key.PublicKey); err != nil || o.Nonce != nonce {
		t.Errorf("%+v, %v", o, err)
	}
}

func FuzzVerifyOffer(f *testing.F) {
	key := newKey(f)
	_, m := vector(f)
	good, err := manifest.SignOffer(manifest.NewOffer("bms-000001", nonce, "/firmware/version", m.SHA256, m.Version, 1, 600), key)
	if err != nil {
		f.Fatal(err)
	}
	part := strings.Split(good, ".")
	payload, err := base64.RawURLEncoding.DecodeString(part[1])
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, string(payload))
	f.Fuzz(func(t *testing.T, text, payload string) {
		if o, err := manifest.VerifyOffer(text, &key.PublicKey); err == nil && text != good {
			t.Errorf("accepted another text: %+v", o)
		}
		if o, err := manifest.VerifyOffer(jws(t, key, []byte(payload)), &key.PublicKey); err == nil {
			if err := manifest.CheckNonce(o.Nonce); err != nil || o.ValidS < 1 {
				t.Errorf("accepted %+v", o)
			}
		}
	})
}

// jws signs any payload, without the checks of SignOffer.
func jws(t testing.TB, key *ecdsa.PrivateKey, payload []byte) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}
