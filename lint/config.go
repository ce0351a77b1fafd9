package lint

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"bmsota/esp/idfproject"
)

// setting is a value of sdkconfig and where it stands.
type setting struct {
	value string
	file  *file
	line  int
}

func (s setting) on() bool { return s.value == "y" }

// config is what a file of the form of sdkconfig says, by full name.
type config map[string]setting

// renamed are settings that ESP-IDF takes under an older name, too (the files sdkconfig.rename of its components).
var renamed = []struct{ old, now string }{
	{"CONFIG_APP_ROLLBACK_ENABLE", rollback},
	{"CONFIG_OTA_ALLOW_HTTP", "CONFIG_ESP_HTTPS_OTA_ALLOW_HTTP"},
}

// parse reads one such file; nil where there is none, or where it is none.
func (p *project) parse(name string) config {
	f := p.files[name]
	if f == nil {
		return nil
	}
	values, err := idfproject.ParseSDKConfig([]byte(f.text))
	if err != nil {
		p.notRead(name, strings.TrimPrefix(err.Error(), "sdkconfig: "))
		return nil
	}
	lines := make(map[string]int)
	n := 0
	for l := range strings.Lines(f.text) {
		n++
		l = strings.TrimSpace(strings.TrimPrefix(l, "\ufeff"))
		key, _, _ := strings.Cut(l, "=")
		if comment, ok := strings.CutSuffix(l, " is not set"); ok && strings.HasPrefix(l, "#") {
			key = strings.TrimSpace(comment[1:])
		}
		lines[key] = n
	}
	c := make(config)
	for key, value := range values {
		c[key] = setting{value, f, lines[key]}
	}
	for _, r := range renamed {
		// A whole sdkconfig has both names; people write the older one into the defaults.
		if s, ok := c[r.old]; ok && c[r.now].file == nil {
			c[r.now] = s
		}
	}
	return c
}

// setting is what the next build takes: sdkconfig where there is one, else sdkconfig.defaults.
func (p *project) setting(name string) setting {
	if p.config != nil {
		return p.config[name]
	}
	return p.defaults[name]
}

// defaultsFile is where a setting belongs that everybody shall build with.
const defaultsFile = "sdkconfig.defaults"

const rollback = "CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE"

// checkRollback wants the one switch that makes a bad release undo itself. ESP-IDF's default is off.
func (p *project) checkRollback() {
	const why = "A release that crashes, or never reaches its broker, stays for good. It cannot be mended over the air: the bootloader has to have it too, so every board in the field needs USB."
	now, default_ := p.setting(rollback), p.defaults[rollback]
	switch {
	case p.config != nil && now.on() && !default_.on():
		p.add(Finding{"rollback-default", Note, defaultsFile, default_.line, "sdkconfig has it, " + defaultsFile + " has not", rollback + "=y",
			"sdkconfig wins as long as it is there; who builds from a fresh clone has none, and builds boards without rollback."})
	case now.on():
	case p.config != nil:
		found := "# " + rollback + " is not set"
		if now.file == nil {
			found = rollback + " is missing"
		}
		change := rollback + "=y"
		if default_.on() {
			found += fmt.Sprintf("; %s:%d says y, but sdkconfig wins", default_.file.path, default_.line)
			change += " (or delete sdkconfig, so that it is made anew from the defaults)"
		}
		p.add(Finding{"rollback-off", Danger, "sdkconfig", now.line, found, change, why})
	default:
		p.add(Finding{"rollback-off", Danger, defaultsFile, now.line, rollback + " is not set, and ESP-IDF's default is off", rollback + "=y", why})
	}
}

// switches are dangerous when on.
var switches = []struct{ name, rule, why string }{
	{"CONFIG_ESP_HTTPS_OTA_ALLOW_HTTP", "plain-http", "The image may come over plain HTTP: whoever is on the wire installs what they like."},
	{"CONFIG_ESP_TLS_INSECURE", "tls-insecure", "It lets TLS connections be made that prove nothing about the server."},
	{"CONFIG_ESP_TLS_SKIP_SERVER_CERT_VERIFY", "tls-insecure", "Every server is believed to be yours: whoever answers installs what they like and reads the broker's password."},
}

// ownPlain says whether a setting is the switch of our own component that lets plain HTTP or MQTT pass.
func ownPlain(name string) bool {
	rest, ours := strings.CutPrefix(name, "CONFIG_OTA_MANAGER_")
	return ours && (strings.Contains(rest, "PLAIN") || strings.Contains(rest, "ALLOW_HTTP") || strings.Contains(rest, "INSECURE"))
}

func (p *project) checkSwitches() {
	list := slices.Clone(switches)
	names := make(map[string]bool)
	for _, c := range []config{p.config, p.defaults} {
		for name := range c {
			names[name] = names[name] || ownPlain(name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if names[name] {
			list = append(list, struct{ name, rule, why string }{name, "plain-http", "The component then talks to servers that prove nothing; without a release key whoever is on the wire installs what they like."})
		}
	}
	for _, s := range list {
		off := "# " + s.name + " is not set"
		now, default_ := p.setting(s.name), p.defaults[s.name]
		if now.on() {
			p.addAt(Danger, s.rule, now.file, now.line, off, s.why)
		} else if default_.on() {
			p.addAt(Warning, s.rule, default_.file, default_.line, off, "sdkconfig has it off and wins here; who builds from a fresh clone has it on. "+s.why)
		}
	}
}

// checkFirstKey tells of signed apps without Secure Boot, whose key cannot be changed by signing with two: ESP-IDF looks at
// the first signature of the new image only, and trusts the first key of the running one only
// (bootloader_support/src/secure_boot_v2/secure_boot_signatures_app.c).
func (p *project) checkFirstKey() {
	s := p.setting("CONFIG_SECURE_SIGNED_APPS_NO_SECURE_BOOT")
	if !s.on() || p.setting("CONFIG_SECURE_BOOT").on() || p.setting("CONFIG_SECURE_SIGNED_APPS_ECDSA_SCHEME").on() {
		return
	}
	p.addAt(Warning, "first-key", s.file, s.line, "CONFIG_SECURE_BOOT=y where the boards allow it; else keep this key for good, and put it first with each 'bmsota image sign --append'",
		"Without Secure Boot a board takes an image whose first signature is by the first key of the image that runs, and looks at no other. Two signatures do not bring a new key in: a board whose key is lost or stolen needs USB.")
}

// checkSignedApps tells of ESP-IDF's own image signing, which updates have to satisfy.
func (p *project) checkSignedApps() {
	for _, name := range []string{"CONFIG_SECURE_SIGNED_APPS_NO_SECURE_BOOT", "CONFIG_SECURE_BOOT", "CONFIG_SECURE_BOOT_V2_ENABLED"} {
		if s := p.setting(name); s.on() {
			p.addAt(Note, "signed-apps", s.file, s.line, "nothing; sign each image before it is published: bmsota image sign --key KEY.pem -o signed.bin app.bin",
				"Boards take only images that carry a signature of this key inside; that is beside the release key, which signs the manifest.")
			return
		}
	}
}
