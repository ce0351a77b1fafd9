package lint

import (
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
)

// deployConfig is the file with the deployment settings of a project (docs/configuration.md).
const deployConfig = "ota_deploy_config.json"

// ordered gives the files by path.
func (p *project) ordered() []*file {
	list := make([]*file, 0, len(p.files))
	for _, name := range slices.Sorted(maps.Keys(p.files)) {
		list = append(list, p.files[name])
	}
	return list
}

// keyLine gives the line of a key in a JSON or key=value file.
func (f *file) keyLine(key string) int {
	return f.line(func(l string) bool {
		l = strings.TrimSpace(l)
		return strings.Contains(l, `"`+key+`"`) || strings.HasPrefix(l, key+"=") || strings.HasPrefix(l, key+" =")
	})
}

// isJSON says whether a device's file has the newer of its two forms.
func (f *file) isJSON() bool { return strings.HasPrefix(strings.TrimSpace(f.text), "{") }

// entry is a line of such a file in the form that it has. value is as JSON has it.
func (f *file) entry(key, value string) string {
	if f.isJSON() {
		return fmt.Sprintf("%q: %s,", key, value)
	}
	return key + "=" + strings.Trim(value, `"`)
}

// checkDeviceFiles looks at the two files that go into a board's storage partition, where the project keeps them.
func (p *project) checkDeviceFiles() {
	var authority, any bool // whether an ota_config.txt has one; whether there is one
	for _, f := range p.ordered() {
		switch path.Base(f.path) {
		case "ota_config.txt":
			any = true
			authority = p.checkOTAConfig(f) || authority
		case "mqtt_config.txt":
			p.checkMQTTConfig(f)
		}
	}
	p.checkBundle(any, authority)
}

// values reads a device's file into texts by key, in either of its forms. Rules that look for one key want no more.
func (p *project) values(f *file) map[string]string {
	v := make(map[string]string)
	if !f.isJSON() {
		for l := range strings.Lines(f.text) {
			if key, value, ok := strings.Cut(l, "="); ok && !strings.HasPrefix(strings.TrimSpace(l), "#") {
				v[strings.TrimSpace(key)] = strings.TrimSpace(value)
			}
		}
		return v
	}
	var fields map[string]any
	if err := json.Unmarshal([]byte(f.text), &fields); err != nil {
		p.notRead(f.path, "it is no JSON object: "+clip(err.Error()))
		return v
	}
	for key, value := range fields {
		switch value := value.(type) {
		case string:
			v[key] = value
		case bool:
			v[key] = strconv.FormatBool(value)
		}
	}
	return v
}

// checkOTAConfig says whether the file names an authority, or needs none because it checks nothing.
func (p *project) checkOTAConfig(f *file) (authority bool) {
	v := p.values(f)
	if len(v) == 0 {
		return true // there is nothing to judge
	}
	if on := v["skip_cert_verification"]; on == "true" || on == "1" {
		p.addAt(Danger, "no-verification", f, f.keyLine("skip_cert_verification"), f.entry("skip_cert_verification", "false"),
			"The board believes every server: whoever answers installs what they like. (In the first firmware it gave that, or no update at all: ESP_ERR_INVALID_ARG.) Put the server's CA into cert_pem.")
		authority = true
	}
	url := v["server_url"] + v["url"]
	if strings.HasPrefix(strings.ToLower(url), "http:") {
		key := "server_url"
		if v[key] == "" {
			key = "url"
		}
		p.addAt(Danger, "plain-http", f, f.keyLine(key), f.entry(key, `"https`+clip(url[len("http"):])+`"`),
			"The image comes over plain HTTP: whoever is on the wire installs what they like.")
	}
	if v["trusted_key_pem"] == "" {
		p.add(Finding{"no-trusted-key", Warning, f.path, f.keyLine("trusted_key_pem"), "no trusted_key_pem", f.entry("trusted_key_pem", `"(what 'bmsota keys new' wrote to release.pub.pem)"`),
			"Without a release key the board installs whatever its server, its broker or a stolen certificate offers; certificates also end, and strand the boards that trust nothing else."})
	}
	return authority || v["cert_pem"] != ""
}

func (p *project) checkMQTTConfig(f *file) {
	v := p.values(f)
	broker := strings.ToLower(v["broker"])
	tls := v["tls"] == "true" || v["tls"] == "1" || strings.HasPrefix(broker, "mqtts:") || strings.HasPrefix(broker, "ssl:")
	if v["password"] != "" && !tls {
		p.add(Finding{"broker-plain", Warning, f.path, f.keyLine("password"), "a password, and no TLS", f.entry("tls", "true") + " and " + f.entry("broker_port", "8883"),
			"The password crosses the network in the clear with every connect; who has it commands updates in the board's name."})
	}
}

const bundle = "CONFIG_MBEDTLS_CERTIFICATE_BUNDLE"

// checkBundle looks for the two ways to verify a server with esp_https_ota: an authority of its own, or the bundle.
func (p *project) checkBundle(anyConfig, authority bool) {
	if anyConfig && authority || !anyConfig && p.mentions("cert_pem", "cacert_pem", "cert_buf") {
		return
	}
	if s := p.setting(bundle); s.value == "n" {
		p.addAt(Danger, "bundle-off", s.file, s.line, bundle+"=y", "There is no cert_pem either: nothing tells the board which server is the right one, so it takes none, or any.")
		return
	}
	if anyConfig && p.mentions("esp_https_ota", "esp_http_client_init") && !p.mentions("crt_bundle_attach", "use_global_ca_store") {
		at := p.firstConfig()
		p.addAt(Danger, "no-authority", at, at.keyLine("cert_pem"), at.entry("cert_pem", `"(the server's CA: bmsota-data/tls/ca.pem)"`),
			"cert_pem is empty and no source attaches the certificate bundle (crt_bundle_attach): ESP-IDF refuses every download with ESP_ERR_INVALID_ARG, or verifies nothing where plain HTTP is allowed.")
	}
}

func (p *project) firstConfig() *file {
	for _, f := range p.ordered() {
		if path.Base(f.path) == "ota_config.txt" {
			return f
		}
	}
	return nil
}

// mentions says whether a source has one of the words.
func (p *project) mentions(words ...string) bool {
	return slices.ContainsFunc(p.sources, func(f *file) bool {
		return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(f.text, w) })
	})
}

// checkDeployment looks at the settings that releases are published with.
func (p *project) checkDeployment() {
	for _, f := range p.ordered() {
		if path.Base(f.path) != deployConfig {
			continue
		}
		change := fmt.Sprintf("%s (in .gitignore)", deployConfig)
		const why = "It holds the operator's token and the broker's password: who can read the repository can update every board."
		switch {
		case p.tracked(f.path):
			p.add(Finding{"secrets-in-git", Danger, f.path, 0, "git has it", change + "; git rm --cached " + f.path + "; then change token and passwords, the history keeps them", why})
		case !p.ignored(f.path):
			p.add(Finding{"secrets-in-git", Danger, f.path, 0, "no .gitignore names it", change, why})
		}
		var c struct {
			Signing struct {
				KeyFile string `json:"key_file"`
			} `json:"signing"`
		}
		if err := json.Unmarshal([]byte(f.text), &c); err != nil {
			p.notRead(f.path, "it is no JSON object: "+clip(err.Error()))
		} else if c.Signing.KeyFile == "" {
			p.add(Finding{"no-signing-key", Warning, f.path, f.keyLine("signing"), "no signing.key_file", `"signing": {"key_file": "release.pem"}`,
				"Releases are published unsigned; boards that hold a release key refuse them, the others take them from anybody."})
		}
	}
}
