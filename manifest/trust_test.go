package manifest_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"

	"bmsota/esp/appimage"
	"bmsota/manifest"
)

func newKeys(t testing.TB, n int) (private []*ecdsa.PrivateKey, public []*ecdsa.PublicKey) {
	t.Helper()
	for range n {
		key, err := manifest.NewKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		private, public = append(private, key), append(public, &key.PublicKey)
	}
	return private, public
}

func imageOf(t testing.TB, version string, extra []byte) ([]byte, *appimage.Image) {
	t.Helper()
	b, err := appimage.Build(appimage.BuildOptions{Project: "bms", Version: version, Size: 64 << 10, Extra: extra})
	if err != nil {
		t.Fatal(err)
	}
	img, err := appimage.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return b, img
}

func describe(t testing.TB, version string) manifest.Manifest {
	t.Helper()
	b, img := imageOf(t, version, nil)
	m, err := manifest.New(b, img, "")
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// malleated is another signature by the same key over the same bytes, r and n-s, which anybody can make.
func malleated(t testing.TB, signature string) string {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(signature)
	if err != nil {
		t.Fatal(err)
	}
	s := new(big.Int).Sub(elliptic.P256().Params().N, new(big.Int).SetBytes(b[32:]))
	return base64.RawURLEncoding.EncodeToString(append(b[:32:32], s.FillBytes(make([]byte, 32))...))
}

// Everything that is not a signature by enough different trusted keys over this very manifest.
func TestATrustSetTakesNothingButEnoughOfItsOwnSignatures(t *testing.T) {
	private, public := newKeys(t, 4)
	one, two, three, stranger := private[0], private[1], private[2], private[3]
	m := describe(t, "1.0.0")
	by := func(m manifest.Manifest, key *ecdsa.PrivateKey) string {
		text, err := manifest.Sign(m, key)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	tail := func(text string) string { return text[strings.LastIndexByte(text, '.')+1:] }
	text := by(m, one)
	body := strings.TrimSuffix(text, tail(text))
	cosign := func(keys ...*ecdsa.PrivateKey) (all string) {
		for _, key := range keys {
			var err error
			if all, err = manifest.Cosign(text, all, key); err != nil {
				t.Fatal(err)
			}
		}
		return all
	}
	header := func(h string) string {
		return base64.RawURLEncoding.EncodeToString([]byte(h)) + text[strings.IndexByte(text, '.'):]
	}
	set := manifest.Trust{Threshold: 2, Keys: public[:3]}
	taken := map[string][2]string{
		"two of three":                       {text, cosign(two)},
		"another two":                        {text, cosign(three)},
		"all three":                          {text, cosign(two, three)},
		"the manifest's own by a stranger":   {by(m, stranger), tail(text) + "." + cosign(two)},
		"a stranger beside":                  {text, cosign(stranger, two)},
		"malleated, and by another key":      {body + malleated(t, tail(text)), cosign(two)},
		"the second one twice, which counts": {text, cosign(two) + "." + cosign(two)},
	}
	// Cosignatures are over header and payload, so they hold beside whoever's signature the manifest itself carries.
	for name, c := range taken {
		if got, err := set.Verify(c[0], c[1]); err != nil || got != m {
			t.Errorf("%s: %v", name, err)
		}
	}
	refused := map[string][2]string{
		"unsigned":                          {"", ""},
		"one of two":                        {text, ""},
		"one, and a stranger":               {text, cosign(stranger)},
		"a stranger":                        {by(m, stranger), ""},
		"the same key twice":                {text, tail(text)},
		"the same key thrice, other nonces": {text, cosign(one, one, one)},
		"the same key, malleated":           {text, malleated(t, tail(text))},
		"one over another manifest":         {text, tail(by(describe(t, "1.0.1"), two))},
		"an empty signature":                {text, "."},
		"an empty second signature":         {text, cosign(two) + "."},
		"four beside":                       {text, cosign(two, three, stranger) + "." + cosign(two)},
		"half a signature":                  {text, cosign(two)[:43]},
		"zeros":                             {text, base64.RawURLEncoding.EncodeToString(make([]byte, 64))},
		"alg none":                          {header(`{"alg":"none"}`), cosign(two)},
		"alg none without signature":        {strings.TrimSuffix(header(`{"alg":"none"}`), tail(text)), cosign(two, three)},
		"alg HS256":                         {header(`{"alg":"HS256"}`), cosign(two)},
		"alg ES384":                         {header(`{"alg":"ES384"}`), cosign(two)},
		"a key id":                          {header(`{"alg":"ES256","kid":"1"}`), cosign(two)},
		"no signature of its own":           {body, cosign(two, three)},
	}
	for name, c := range refused {
		if _, err := set.Verify(c[0], c[1]); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	for name, keys := range map[string][]*ecdsa.PublicKey{"an empty set": nil, "a set of strangers": public[3:], "a key that was rotated out": public[1:3]} {
		if _, err := (manifest.Trust{Keys: keys}).Verify(text, ""); !errors.Is(err, manifest.ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := (manifest.Trust{Threshold: 2, Keys: []*ecdsa.PublicKey{public[0], public[0]}}).Verify(text, tail(text)); err == nil {
		t.Error("a key that stands twice in the set counts twice")
	}
}

func TestATrustSetThatNobodyCanMeetIsRefused(t *testing.T) {
	_, public := newKeys(t, 3)
	for _, c := range []struct {
		set manifest.Trust
		ok  bool
	}{
		{manifest.Trust{}, true}, {manifest.Trust{Keys: public}, true}, {manifest.Trust{Threshold: 3, Keys: public}, true},
		{manifest.Trust{Threshold: 4, Keys: public}, false}, {manifest.Trust{Threshold: 1}, false}, {manifest.Trust{Threshold: -1, Keys: public}, false},
		{manifest.Trust{Threshold: 2, Keys: []*ecdsa.PublicKey{public[0], public[0]}}, false},
	} {
		if err := c.set.Check(); (err == nil) != c.ok {
			t.Errorf("%d of %d keys: %v", c.set.Threshold, len(c.set.Keys), err)
		}
	}
}

func TestNobodySignsTwice(t *testing.T) {
	private, _ := newKeys(t, 2)
	m := describe(t, "1.0.0")
	if _, _, err := manifest.SignAll(m, private[0], private[1], private[0]); err == nil {
		t.Error("the same key signed twice")
	}
	if text, beside, err := manifest.SignAll(m, private[0], private[1]); err != nil || beside == "" || text == "" {
		t.Error(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := manifest.SignAll(m, p384); err == nil {
		t.Error("P-384 signed a manifest")
	}
}

func TestAnImageCarriesTheKeysThatWerePutIntoIt(t *testing.T) {
	_, public := newKeys(t, 4)
	room, img := imageOf(t, "1.0.0", manifest.AppendRoom(nil))
	if set, err := manifest.Builtin(bytes.NewReader(room), img); err != nil || !set.Equal(manifest.Trust{}) {
		t.Fatalf("room: %+v, %v", set, err)
	}
	before := bytes.Clone(room)
	for n := 1; n <= manifest.MaxBuiltin; n++ {
		want := manifest.Trust{Sequence: uint32(n), Threshold: n, Keys: public[:n]}
		b, err := manifest.WithBuiltin(room, want)
		if err != nil {
			t.Fatal(err)
		}
		img, err := appimage.Verify(bytes.NewReader(b), appimage.Target{PartitionSize: int64(len(b))})
		if err != nil {
			t.Fatalf("no bootloader would start it: %v", err)
		}
		if got, err := manifest.Builtin(bytes.NewReader(b), img); err != nil || !got.Equal(want) {
			t.Errorf("%d keys: %+v, %v", n, got, err)
		}
		// The next set replaces it, an older one and the same one do not.
		if _, err := manifest.WithBuiltin(b, want); err == nil {
			t.Error("a set was replaced by one with its own number")
		}
		want.Sequence++
		if _, err := manifest.WithBuiltin(b, want); err != nil {
			t.Error(err)
		}
	}
	if !bytes.Equal(room, before) {
		t.Error("the image that was given is changed")
	}
	plain, _ := imageOf(t, "1.0.0", nil)
	for name, c := range map[string]struct {
		image []byte
		set   manifest.Trust
	}{
		"no room":        {plain, manifest.Trust{Sequence: 1, Keys: public[:1]}},
		"an empty set":   {room, manifest.Trust{Sequence: 1}},
		"no sequence":    {room, manifest.Trust{Keys: public[:1]}},
		"too many":       {room, manifest.Trust{Sequence: 1, Keys: append(slices.Clone(public), public...)}},
		"a key twice":    {room, manifest.Trust{Sequence: 1, Keys: []*ecdsa.PublicKey{public[0], public[0]}}},
		"too high a bar": {room, manifest.Trust{Sequence: 1, Threshold: 3, Keys: public[:2]}},
		"padded":         {append(bytes.Clone(room), 0xFF), manifest.Trust{Sequence: 1, Keys: public[:1]}},
		"no image":       {room[:100], manifest.Trust{Sequence: 1, Keys: public[:1]}},
	} {
		if _, err := manifest.WithBuiltin(c.image, c.set); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// A block that somebody bent must be an error, never fewer keys or none.
func TestABentBlockIsNeverHalfASet(t *testing.T) {
	_, public := newKeys(t, 2)
	room, _ := imageOf(t, "1.0.0", manifest.AppendRoom(nil))
	b, err := manifest.WithBuiltin(room, manifest.Trust{Sequence: 3, Threshold: 2, Keys: public})
	if err != nil {
		t.Fatal(err)
	}
	img, err := appimage.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	for at := 8; at < manifest.BuiltinSize; at++ {
		bent := bytes.Clone(b)
		bent[manifest.BuiltinOffset+at] ^= 1
		set, err := manifest.Builtin(bytes.NewReader(bent), img)
		if sequence := at >= 12 && at < 16; sequence && (err != nil || set.Sequence == 3) || !sequence && at != 10 && err == nil {
			t.Errorf("byte %d: %+v, %v", at, set, err)
		}
	}
	binary.LittleEndian.PutUint32(b[manifest.BuiltinOffset+12:], 0)
	if set, err := manifest.Builtin(bytes.NewReader(b), img); err == nil {
		t.Errorf("keys without a sequence: %+v", set)
	}
	short := *img
	short.Segments = []appimage.Segment{{Offset: appimage.DescOffset, Length: manifest.BuiltinOffset + manifest.BuiltinSize - appimage.DescOffset - 1}}
	if set, err := manifest.Builtin(bytes.NewReader(b), &short); err != nil || set.Sequence != 0 {
		t.Errorf("a block that reaches into the next segment: %+v, %v", set, err)
	}
}
