//go:build unix

package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// cmdSecret remembers what must not be seen: secret NAME VALUE. Only its name is told when it is.
func cmdSecret(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg, "secret")
	if len(args) != 2 || len(args[1]) < 8 {
		ts.Fatalf("usage: secret NAME VALUE, of 8 characters at least")
	}
	s := of(ts)
	if s.secrets == nil {
		s.secrets = make(map[string]string)
	}
	s.secrets[args[0]] = args[1]
}

// spelled are the ways in which a secret can be written down by accident.
func spelled(secret string) [][]byte {
	b := []byte(secret)
	ways := []string{secret, url.QueryEscape(secret), url.PathEscape(secret), hex.EncodeToString(b), strings.ToUpper(hex.EncodeToString(b))}
	for shift := range 3 { // within a longer text, as user:password is sent
		text := base64.StdEncoding.EncodeToString(append(make([]byte, shift), b...))
		text = text[(shift*8+5)/6 : len(text)-4] // the digits that hold the secret's bits alone
		ways = append(ways, text, strings.NewReplacer("+", "-", "/", "_").Replace(text))
	}
	var out [][]byte
	for _, w := range ways {
		out = append(out, []byte(w))
	}
	return out
}

// cmdSilent holds files, and all below folders, against every secret: silent [-but NAME] FILE…; "! silent" wants one to be there.
func cmdSilent(ts *testscript.TestScript, neg bool, args []string) {
	but := ""
	if len(args) > 1 && args[0] == "-but" {
		but, args = args[1], args[2:]
	}
	if len(args) == 0 || len(of(ts).secrets) == 0 {
		ts.Fatalf("usage: silent [-but NAME] FILE…, after secret")
	}
	found := ""
	for _, name := range args {
		ts.Check(filepath.WalkDir(ts.MkAbs(name), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for what, secret := range of(ts).secrets {
				for _, way := range spelled(secret) {
					if what != but && bytes.Contains(b, way) {
						found = what + " is in " + path
					}
				}
			}
			return nil
		}))
	}
	if (found != "") != neg {
		ts.Fatalf("%s", map[bool]string{true: "no secret is there", false: found}[neg])
	}
}
