package manifest_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"strings"
	"testing"

	"bmsota/esp/appimage"
	"bmsota/manifest"

	"github.com/go-jose/go-jose/v4"
)

// vector is a fixed image with a fixed digest: testdata/app.bin is Espressif's own elf2image output.
func vector(t testing.TB) ([]byte, manifest.Manifest) {
	t.Helper()
	b, err := os.ReadFile("testdata/app-esp32-1.1.0.bin")
	if err != nil {
		t.Fatal(err)
	}
	img, err := appimage.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	m, err := manifest.New(b, img, "")
	if err != nil {
		t.Fatal(err)
	}
	return b, m
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := manifest.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestManifestDescribesTheImage(t *testing.T) {
	b, m := vector(t)
	sum := sha256.Sum256(b)
	if m.Project != "ota-demo" || m.Chip != "esp32" || m.Version != "1.1.0" || m.Size != int64(len(b)) || m.SHA256 != hex.EncodeToString(sum[:]) {
		t.Fatalf("got %+v", m)
	}
	for i := 0; i*manifest.BlockSize < len(b); i++ {
		want := sha256.Sum256(b[i*manifest.BlockSize : min(len(b), (i+1)*manifest.BlockSize)])
		if got, ok := m.Block(i); !ok || got != want {
			t.Errorf("block %d: got %x %v, want %x", i, got, ok, want)
		}
	}
	for _, beyond := range []int{-1, 2, 1 << 30} {
		if _, ok := m.Block(beyond); ok {
			t.Errorf("block %d exists", beyond)
		}
	}
}

func TestOnlyATrustedKeyVerifies(t *testing.T) {
	_, m := vector(t)
	key, other := newKey(t), newKey(t)
	text, err := manifest.Sign(m, key)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := manifest.Verify(text, &other.PublicKey, &key.PublicKey); err != nil || got != m {
		t.Errorf("second of two trusted keys: %+v, %v", got, err)
	}
	for name, keys := range map[string][]*ecdsa.PublicKey{"no key": nil, "another key": {&other.PublicKey}} {
		if _, err := manifest.Verify(text, keys...); !errors.Is(err, manifest.ErrSignature) {
			t.Errorf("%s: %v, want ErrSignature", name, err)
		}
	}
}

// Every other way to write something that looks signed must fail, whoever made it.
func TestForgeriesAreRefused(t *testing.T) {
	_, m := vector(t)
	key := newKey(t)
	text, err := manifest.Sign(m, key)
	if err != nil {
		t.Fatal(err)
	}
	part := strings.Split(text, ".")
	header := func(h string) string { return base64.RawURLEncoding.EncodeToString([]byte(h)) }
	m.Version = "9.9.9"
	payload, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	swapped := base64.RawURLEncoding.EncodeToString(payload)
	public, err := manifest.EncodePublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	mac, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: public}, nil)
	if err != nil {
		t.Fatal(err)
	}
	hs, err := mac.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	confused, err := hs.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	sig, err := base64.RawURLEncoding.DecodeString(part[2])
	if err != nil {
		t.Fatal(err)
	}
	flipped := append([]byte(nil), sig...)
	flipped[40] ^= 1
	for name, forged := range map[string]string{
		"empty":                      "",
		"payload of another":         part[0] + "." + swapped + "." + part[2],
		"algorithm none":             header(`{"alg":"none"}`) + "." + swapped + ".",
		"algorithm confusion":        confused,
		"no signature":               part[0] + "." + part[1] + ".",
		"signature bit flipped":      part[0] + "." + part[1] + "." + base64.RawURLEncoding.EncodeToString(flipped),
		"signature cut":              part[0] + "." + part[1] + "." + base64.RawURLEncoding.EncodeToString(sig[:63]),
		"signature longer":           part[0] + "." + part[1] + "." + base64.RawURLEncoding.EncodeToString(append(sig, 0)),
		"zero signature":             part[0] + "." + part[1] + "." + base64.RawURLEncoding.EncodeToString(make([]byte, 64)),
		"critical header":            header(`{"alg":"ES256","crit":["x"],"x":1}`) + "." + part[1] + "." + part[2],
		"key in the header":          header(`{"alg":"ES256","jwk":{}}`) + "." + swapped + "." + part[2],
		"two texts":                  text + "." + text,
		"line break in the base64":   part[0] + "." + part[1][:8] + "\n" + part[1][8:] + "." + part[2],
		"bits behind the last byte":  part[0] + "." + part[1] + "." + part[2][:85] + otherLastDigit(part[2][85]),
		"padding":                    part[0] + "." + part[1] + "." + part[2] + "==",
		"JSON form":                  `{"payload":"` + part[1] + `","protected":"` + part[0] + `","signature":"` + part[2] + `"}`,
		"larger than any":            text + strings.Repeat("A", manifest.MaxJWS),
		"header changed, not signed": header(`{"alg":"ES256","kid":"1"}`) + "." + part[1] + "." + part[2],
	} {
		if got, err := manifest.Verify(forged, &key.PublicKey); err == nil {
			t.Errorf("%s: accepted as %+v", name, got)
		}
	}
}

// otherLastDigit is a base64url digit that decodes to the same two bits as c, behind 64 bytes.
func otherLastDigit(c byte) string {
	const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return string(digits[strings.IndexByte(digits, c)|1])
}

// A signature by the right key makes no manifest of a text that two readers could read differently.
func TestSignedTextsOfAnotherFormAreRefused(t *testing.T) {
	_, m := vector(t)
	key := newKey(t)
	good, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	plain := strings.TrimSuffix(string(good), "}")
	for name, c := range map[string]struct {
		payload string
		options *jose.SignerOptions
		ok      bool
	}{
		"as it is":                 {string(good), nil, true},
		"a field that is newer":    {plain + `,"x":[1]}`, nil, true},
		"another header":           {string(good), (&jose.SignerOptions{}).WithType("JWT"), false},
		"its key in the header":    {string(good), &jose.SignerOptions{EmbedJWK: true}, false},
		"a key twice":              {plain + `,"version":"9.9.9"}`, nil, false},
		"a key in capitals":        {strings.Replace(string(good), `"version"`, `"VERSION"`, 1), nil, false},
		"something after it":       {string(good) + "{}", nil, false},
		"control character":        {strings.Replace(string(good), `"ota-demo"`, `"ota\u0007demo"`, 1), nil, false},
		"line break in the blocks": {strings.Replace(string(good), `"blocks":"`, `"blocks":"\n`, 1), nil, false},
	} {
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, c.options)
		if err != nil {
			t.Fatal(err)
		}
		jws, err := signer.Sign([]byte(c.payload))
		if err != nil {
			t.Fatal(err)
		}
		text, err := jws.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := manifest.Verify(text, &key.PublicKey); (err == nil) != c.ok {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestFieldsOutOfRangeAreNeitherSignedNorTrusted(t *testing.T) {
	_, good := vector(t)
	key := newKey(t)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*manifest.Manifest){
		"another format":      func(m *manifest.Manifest) { m.Format = 2 },
		"no version":          func(m *manifest.Manifest) { m.Version = "" },
		"long version":        func(m *manifest.Manifest) { m.Version = strings.Repeat("1", 65) },
		"negative size":       func(m *manifest.Manifest) { m.Size = -1 },
		"size beyond a slot":  func(m *manifest.Manifest) { m.Size = manifest.MaxSize + 1 },
		"digest upper case":   func(m *manifest.Manifest) { m.SHA256 = strings.ToUpper(m.SHA256) },
		"digest short":        func(m *manifest.Manifest) { m.SHA256 = m.SHA256[2:] },
		"a block missing":     func(m *manifest.Manifest) { m.Blocks = m.Blocks[:43] },
		"no blocks":           func(m *manifest.Manifest) { m.Blocks = "" },
		"blocks not base64":   func(m *manifest.Manifest) { m.Blocks = "!" + m.Blocks[1:] },
		"size without blocks": func(m *manifest.Manifest) { m.Size += manifest.BlockSize },
	} {
		m := good
		change(&m)
		if _, err := manifest.Sign(m, key); err == nil {
			t.Errorf("%s: signed", name)
		}
		payload, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		jws, err := signer.Sign(payload)
		if err != nil {
			t.Fatal(err)
		}
		text, err := jws.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := manifest.Verify(text, &key.PublicKey); err == nil {
			t.Errorf("%s: trusted although signed by the right key", name)
		}
	}
}

func TestKeysReadBackAndOtherKindsAreRefused(t *testing.T) {
	key := newKey(t)
	private, err := manifest.EncodePrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	public, err := manifest.EncodePublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if back, err := manifest.ParsePrivateKey(private); err != nil || !back.Equal(key) {
		t.Errorf("private key: %v", err)
	}
	if back, err := manifest.ParsePublicKeys(append(public, public...)); err != nil || len(back) != 2 || !back[1].Equal(&key.PublicKey) {
		t.Errorf("public keys: %v, %v", back, err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	wrongCurve, err := manifest.EncodePublicKey(&p384.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	longer := append([]byte{0x30, 91}, append(der[2:], 5, 0)...) // a field behind those that are known
	if _, err := x509.ParsePKIXPublicKey(longer); err != nil {
		t.Fatalf("the longer form tests nothing: %v", err)
	}
	if back, err := manifest.ParsePublicKeys([]byte("# our release key\r\n  " + strings.ReplaceAll(string(public), "\n", " \r\n\t") + "bye")); err != nil || len(back) != 1 {
		t.Errorf("with words around it: %v", err)
	}
	for name, text := range map[string]string{
		"empty": "", "not PEM": "hello", "another curve": string(wrongCurve), "a private key": string(private),
		"longer than known":         string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: longer})),
		"one broken, one good":      "-----BEGIN PUBLIC KEY-----\nAAAA\n" + string(public),
		"one good, one cut":         string(public) + strings.TrimSuffix(string(public), "-----END PUBLIC KEY-----\n"),
		"one good, one certificate": string(public) + "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
		"one good, one misspelt":    string(public) + "----- BEGIN PUBLIC KEY -----\n",
		"one good, one broken":      string(public) + "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
		"nine keys":                 strings.Repeat(string(public), 9),
	} {
		if _, err := manifest.ParsePublicKeys([]byte(text)); err == nil {
			t.Errorf("%s: taken as trusted keys", name)
		}
	}
	if _, err := manifest.ParsePrivateKey(public); err == nil {
		t.Error("a public key was taken as a private one")
	}
}

func FuzzVerify(f *testing.F) {
	b, m := vector(f)
	_ = b
	key := newKey(f)
	text, err := manifest.Sign(m, key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add("a.b.c")
	f.Fuzz(func(t *testing.T, forged string) {
		got, err := manifest.Verify(forged, &key.PublicKey)
		if err == nil && got != m {
			t.Fatalf("accepted %+v", got)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	_, m := vector(b)
	key := newKey(b)
	text, err := manifest.Sign(m, key)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := manifest.Verify(text, &key.PublicKey); err != nil {
			b.Fatal(err)
		}
	}
}
