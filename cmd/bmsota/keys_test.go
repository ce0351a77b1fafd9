package main

import (
	"encoding/hex"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"bmsota/manifest"
)

func TestKeysNewMakesAPairThatSigns(t *testing.T) {
	for kind, wantType := range map[string]string{"manifest": "ecdsa-p256", "ecdsa-p256": "ecdsa-p256", "rsa3072": "rsa3072"} {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			private, public := filepath.Join(dir, "k.pem"), filepath.Join(dir, "k.pub.pem")
			pair := decodeJSON[keyPair](t, mustRun(t, "keys", "new", "--json", "--type", kind, "-o", private))
			if pair.Type != wantType || !pair.Private || pair.PrivateFile != private || pair.PublicFile != public {
				t.Errorf("reported %+v", pair)
			}
			for path, mode := range map[string]fs.FileMode{private: 0o600, public: 0o644} {
				if info, err := os.Stat(path); err != nil || info.Mode().Perm()&^mode != 0 {
					t.Errorf("%s: %v, %v; want %v", path, info.Mode(), err, mode)
				}
			}
			for path, isPrivate := range map[string]bool{private: true, public: false} {
				keys := decodeJSON[[]keyReport](t, mustRun(t, "keys", "show", "--json", path))
				want := pair.keyReport
				want.Private = isPrivate
				if len(keys) != 1 || keys[0] != want {
					t.Errorf("%s: %+v, want %+v", path, keys, want)
				}
			}
			image, signed := filepath.Join(dir, "i.bin"), filepath.Join(dir, "s.bin")
			mustRun(t, "image", "new", "--chip", "esp32s3", "--project", "p", "--version", "1.0.0", "-o", image)
			mustRun(t, "image", "sign", "--key", private, "-o", signed, image)
			mustRun(t, "image", "verify", "--key", public, signed)
			mustFail(t, exitRefused, "not a private key", "image", "sign", "--key", public, "-o", signed, image)
			if kind != "manifest" {
				return
			}
			if _, err := manifest.ParsePrivateKey(readFile(t, private)); err != nil {
				t.Error(err)
			}
			if keys, err := manifest.ParsePublicKeys(readFile(t, public)); err != nil || len(keys) != 1 {
				t.Errorf("%d keys, %v", len(keys), err)
			}
		})
	}
}

func TestKeysNewNeverOverwrites(t *testing.T) {
	for _, there := range []string{"k.pem", "k.pub.pem"} {
		dir := t.TempDir()
		path := writeFile(t, filepath.Join(dir, there), []byte("precious"))
		mustFail(t, exitRefused, there+" is there already", "keys", "new", "-o", filepath.Join(dir, "k.pem"))
		if got := readFile(t, path); string(got) != "precious" {
			t.Errorf("%s is now %q", there, got)
		}
		if left := listing(t, dir); !slices.Equal(left, []string{there}) {
			t.Errorf("left behind %q", left)
		}
	}
	// Also a link that leads nowhere, and a file that appears between the question and the answer.
	dir := t.TempDir()
	if err := os.Symlink("nowhere", filepath.Join(dir, "k.pem")); err != nil {
		t.Fatal(err)
	}
	mustFail(t, exitRefused, "is there already", "keys", "new", "-o", filepath.Join(dir, "k.pem"))
	if err := createFile(writeFile(t, filepath.Join(dir, "late"), []byte("precious")), []byte("new"), 0o600); err == nil {
		t.Error("createFile overwrote a file")
	}
	pair := keyPair{PrivateFile: filepath.Join(dir, "new.pem"), PublicFile: filepath.Join(dir, "late")}
	key, err := newECDSA()
	if err != nil {
		t.Fatal(err)
	}
	private, err := privatePEM(key, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := pair.write(private, key.Public()); err == nil {
		t.Error("write overwrote a file")
	}
	if left := listing(t, dir); !slices.Equal(left, []string{"k.pem", "late"}) {
		t.Errorf("half a pair is left: %q", left)
	}
}

func TestKeysShowNeverPrintsThePrivateHalfAndKnowsTheDigest(t *testing.T) {
	for _, kind := range []string{"p256", "rsa3072"} {
		want := hex.EncodeToString(readFile(t, "testdata/keys/"+kind+"-test.digest.bin"))
		private := string(readFile(t, "testdata/keys/"+kind+"-test.pem"))
		for _, file := range []string{"-test.pem", "-test.pub.pem"} {
			path := "testdata/keys/" + kind + file
			text := mustRun(t, "keys", "show", path)
			if !strings.Contains(text, want) {
				t.Errorf("%s: digest %s is not in %q", path, want, text)
			}
			if keys := decodeJSON[[]keyReport](t, mustRun(t, "keys", "show", "--json", path)); keys[0].KeyDigest != want {
				t.Errorf("%s: %+v", path, keys)
			}
			for line := range strings.Lines(private) {
				if line = strings.TrimSpace(line); len(line) > 20 && !strings.HasPrefix(line, "-----") && strings.Contains(text, line) {
					t.Errorf("%s: the private half is printed", path)
				}
			}
		}
	}
	both := append(readFile(t, "testdata/keys/p256-test.pub.pem"), readFile(t, "testdata/keys/rsa3072-test.pub.pem")...)
	o := command(t, both, "keys", "show", "--json", "-")
	if keys := decodeJSON[[]keyReport](t, o.out); len(keys) != 2 || keys[0].Type != "ecdsa-p256" || keys[1].Type != "rsa3072" {
		t.Errorf("a file with two keys: %+v, %s", keys, o.errout)
	}
}

func TestKeysRefusals(t *testing.T) {
	dir := t.TempDir()
	certificate := []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
	ed25519 := []byte("-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n")
	torn := readFile(t, "testdata/keys/p256-test.pem")[:150]
	mustFail(t, exitUsage, `--type "dsa" is unknown`, "keys", "new", "--type", "dsa", "-o", filepath.Join(dir, "k"))
	mustFail(t, exitUsage, "-o must name a file", "keys", "new", "-o", "-")
	mustFail(t, exitUsage, "-o must name a file", "keys", "new", "-o", "")
	mustFail(t, exitFailed, "there is no folder", "keys", "new", "-o", filepath.Join(dir, "none", "k.pem"))
	for name, text := range map[string][]byte{"certificate": certificate, "ed25519": ed25519, "torn": torn, "garbage": []byte("key\x1b[2J")} {
		path := writeFile(t, filepath.Join(dir, name), text)
		mustFail(t, exitRefused, name, "keys", "show", path)
		mustFail(t, exitRefused, name, "image", "verify", "--key", path, "testdata/otadata/erased.bin")
		mustFail(t, exitRefused, name, "image", "sign", "--key", path, "-o", filepath.Join(dir, "out"), "testdata/otadata/erased.bin")
	}
	if _, err := os.Stat(filepath.Join(dir, "out")); err == nil {
		t.Error("an output was written")
	}
}
