package lint

import (
	"fmt"
	"path"
	"strings"
)

// checkSecrets tells of private keys, passwords and tokens in files that git has: the history keeps them. Files that are
// only there, and not in the index, are where such things belong.
func (p *project) checkSecrets() {
	for _, f := range p.ordered() {
		if path.Base(f.path) == deployConfig {
			continue // checkDeployment wants it ignored, too
		}
		what, line := p.secretOf(f)
		if what == "" || !p.tracked(f.path) {
			continue
		}
		p.add(Finding{"secrets-in-git", Danger, f.path, line, "git has " + what,
			fmt.Sprintf("%s (in .gitignore); git rm --cached %s; then make a new one, the history keeps this", path.Base(f.path), f.path),
			"Who can read the repository can speak as the board, or sign as you."})
	}
}

// privateKey ends the first line of every private key in PEM, whatever its kind. One under a passphrase is no secret by itself.
const privateKey, underPassphrase = "PRIVATE KEY-----", "-----BEGIN ENCRYPTED PRIVATE KEY-----"

// secretOf says what secret a file holds, and on which line; nothing where there is none. What it is is not repeated.
func (p *project) secretOf(f *file) (what string, line int) {
	begins := func(l string) bool {
		return strings.Contains(l, "-----BEGIN ") && strings.Contains(l, privateKey) && !strings.Contains(l, underPassphrase)
	}
	if line := f.line(begins); line > 0 {
		return "a private key", line
	}
	switch path.Base(f.path) {
	case "ota_config.txt", "mqtt_config.txt":
	default:
		return "", 0
	}
	v := p.values(f)
	for _, s := range []struct{ key, what string }{{"password", "the broker's password"}, {"token", "a token"}, {"client_key_pem", "a private key"}} {
		if v[s.key] != "" {
			return s.what, f.keyLine(s.key)
		}
	}
	return "", 0
}
