package server

import (
	"bytes"
	"crypto/rand"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bmsota/manifest"
)

func TestTheOfferKeyIsMadeOnceAndIsTheServersAlone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tls") // not there yet where the certificate is one of yours
	first, err := openOfferKey("", dir, rand.Reader, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	again, err := openOfferKey("", dir, rand.Reader, slog.New(slog.DiscardHandler))
	if err != nil || !again.key.Equal(first.key) {
		t.Errorf("the second start has another key: %v", err)
	}
	info, err := os.Stat(filepath.Join(dir, offerKeyName))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if keys, err := manifest.ParsePublicKeys([]byte(first.public)); err != nil || len(keys) != 1 || !keys[0].Equal(&first.key.PublicKey) {
		t.Errorf("devices are told %v, %v", keys, err)
	}
}

func TestAnOfferKeyThatCannotBeUsedIsRefusedWithASentence(t *testing.T) {
	key, next := newOfferPEM(t), newOfferPEM(t)
	for name, c := range map[string]struct{ text, want string }{
		"nothing":          {"", "no PEM block"},
		"two private keys": {key.private + next.private, "more than one private key"},
		"a public key":     {key.public, "no PEM block"},
		"RSA":              {"-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n", "not a private key"},
		"a spoilt next":    {key.private + "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "trusted key"},
		"more than eight":  {key.private + strings.Repeat(next.public, 8), "more than 8 keys"},
	} {
		path := filepath.Join(t.TempDir(), "k.pem")
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := openOfferKey(path, t.TempDir(), rand.Reader, slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if _, err := openOfferKey(filepath.Join(t.TempDir(), "none.pem"), t.TempDir(), rand.Reader, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a configured file that is not there is made")
	}
}

// Devices are told of the next key before its time.
func TestTheNextOfferKeyIsGivenToDevices(t *testing.T) {
	key, next := newOfferPEM(t), newOfferPEM(t)
	k, err := readOfferKey([]byte(key.private + next.public))
	if err != nil || k.public != key.public+next.public {
		t.Errorf("%+v, %v", k, err)
	}
}

type offerPEM struct{ private, public string }

func newOfferPEM(t *testing.T) offerPEM {
	t.Helper()
	key, err := manifest.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	private, err := manifest.EncodePrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	public, err := manifest.EncodePublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return offerPEM{string(private), string(bytes.TrimSpace(public)) + "\n"}
}
