package keyfile_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"bmsota/keyfile"
)

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func openssl(t testing.TB, args ...string) []byte {
	t.Helper()
	out, err := exec.Command("openssl", args...).Output()
	if err != nil {
		t.Fatalf("openssl %v: %v (e2e/deps.sh installs it)", args, err)
	}
	return out
}

func blockOf(t testing.TB, text []byte) []byte {
	t.Helper()
	block, rest := pem.Decode(text)
	if block == nil || block.Type != keyfile.Encrypted || len(rest) > 0 {
		t.Fatalf("no encrypted key: %q", text)
	}
	return block.Bytes
}

// OpenSSL is the oracle: it opens what we write, and we what it writes.
func TestKeysUnderAPassphraseAreThoseOfOpenSSL(t *testing.T) {
	dir := t.TempDir()
	key := newKey(t)
	text, err := keyfile.Encrypt(key, []byte("pass phrase"), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	want, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	ours := filepath.Join(dir, "ours.pem")
	if err := os.WriteFile(ours, text, 0o600); err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(openssl(t, "pkcs8", "-in", ours, "-passin", "pass:pass phrase"))
	if block == nil || !bytes.Equal(block.Bytes, want) {
		t.Error("openssl reads another key than the one that was encrypted")
	}
	plain := filepath.Join(dir, "plain.pem")
	if err := os.WriteFile(plain, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: want}), 0o600); err != nil {
		t.Fatal(err)
	}
	theirs := blockOf(t, openssl(t, "pkcs8", "-topk8", "-in", plain, "-passout", "pass:x"))
	if got, err := keyfile.Decrypt(theirs, []byte("x")); err != nil || !bytes.Equal(got, want) {
		t.Errorf("a key that openssl encrypted: %v", err)
	}
	for _, args := range [][]string{{"-v2", "aes-128-cbc"}, {"-v2", "aes-256-cbc", "-v2prf", "hmacWithSHA1"}, {"-scrypt"}} {
		other := blockOf(t, openssl(t, append([]string{"pkcs8", "-topk8", "-in", plain, "-passout", "pass:x"}, args...)...))
		if _, err := keyfile.Decrypt(other, []byte("x")); err == nil || errors.Is(err, keyfile.ErrPassphrase) || !strings.Contains(err.Error(), "openssl pkcs8") {
			t.Errorf("%v: %v, want one that says how to convert it", args, err)
		}
	}
}

func TestAWrongPassphraseAndAnyChangedByteOpenNothing(t *testing.T) {
	key := newKey(t)
	text, err := keyfile.Encrypt(key, []byte("right"), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der := blockOf(t, text)
	for _, phrase := range []string{"", "wrong", "right ", "Right"} {
		if _, err := keyfile.Decrypt(der, []byte(phrase)); !errors.Is(err, keyfile.ErrPassphrase) {
			t.Errorf("%q: %v", phrase, err)
		}
	}
	if _, err := keyfile.Encrypt(key, nil, rand.Reader); err == nil {
		t.Error("encrypted under nothing")
	}
	// Structure only: each derivation takes a tenth of a second.
	for n := range min(len(der), 40) {
		if _, err := keyfile.Decrypt(der[:n], []byte("right")); err == nil {
			t.Errorf("%d bytes open", n)
		}
	}
	if _, err := keyfile.Decrypt(append(bytes.Clone(der), 0), []byte("right")); err == nil {
		t.Error("a byte more opens")
	}
}

// A file can ask for a derivation that takes for ever, or for none.
func TestACountOfIterationsIsBounded(t *testing.T) {
	text, err := keyfile.Encrypt(newKey(t), []byte("x"), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der := blockOf(t, text)
	at := bytes.Index(der, []byte{0x02, 0x03, 0x09, 0x27, 0xC0}) // INTEGER 600000
	if at < 0 {
		t.Fatal("the count is not where it was")
	}
	for _, count := range [][]byte{{0x7F, 0xFF, 0xFF}, {0xFF, 0xFF, 0xFF}, {0x00, 0x00, 0x00}} { // 8 million, -1, none
		copy(der[at+2:], count)
		if _, err := keyfile.Decrypt(der, []byte("x")); err == nil || errors.Is(err, keyfile.ErrPassphrase) {
			t.Errorf("count %x: %v", count, err)
		}
	}
}

func TestACommandSignsInThePlaceOfAKey(t *testing.T) {
	dir := t.TempDir()
	key := newKey(t)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 3072)
	if err != nil {
		t.Fatal(err)
	}
	for name, k := range map[string]any{"ec.pem": key, "rsa.pem": rsaKey} {
		der, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	sum := sha256.Sum256([]byte("something to sign"))
	sign := func(line string, public crypto.PublicKey, opts crypto.SignerOpts) ([]byte, error) {
		c := &keyfile.Command{Context: t.Context(), Line: line, Key: public, Fingerprint: "f00d", Stderr: os.Stderr}
		return c.Sign(nil, sum[:], opts)
	}
	ec := "openssl pkeyutl -sign -inkey ec.pem"
	for _, line := range []string{ec, ec + " | base64", `test "$BMSOTA_SIGN_FINGERPRINT/$BMSOTA_SIGN_SCHEME" = f00d/ecdsa-sha256 && ` + ec} {
		sig, err := sign(line, &key.PublicKey, crypto.SHA256)
		if err != nil || !ecdsa.VerifyASN1(&key.PublicKey, sum[:], sig) {
			t.Errorf("%s: %v", line, err)
		}
	}
	pss := &rsa.PSSOptions{SaltLength: 32, Hash: crypto.SHA256}
	sig, err := sign(`test $BMSOTA_SIGN_SCHEME = rsa-pss-sha256 && openssl pkeyutl -sign -inkey rsa.pem -pkeyopt digest:sha256 -pkeyopt rsa_padding_mode:pss -pkeyopt rsa_pss_saltlen:32`, &rsaKey.PublicKey, pss)
	if err != nil || rsa.VerifyPSS(&rsaKey.PublicKey, crypto.SHA256, sum[:], sig, pss) != nil {
		t.Errorf("rsa: %v", err)
	}
	for line, want := range map[string]string{
		"echo the token is locked >&2; exit 3": "exit status 3", "true": "no signature", "echo hello": "no signature",
		"head -c 100000 /dev/zero": "more than", "/nowhere/signer": "exit status 127",
	} {
		if _, err := sign(line, &key.PublicKey, crypto.SHA256); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want one that says %q", line, err, want)
		}
	}
	if _, err := sign(ec, &rsaKey.PublicKey, crypto.SHA256); err == nil {
		t.Error("RSA without PSS is asked for")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (&keyfile.Command{Context: ctx, Line: ec, Key: &key.PublicKey, Stderr: os.Stderr}).Sign(nil, sum[:], crypto.SHA256); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
