package deploy_test

import (
	"crypto"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"bmsota/deploy"
	"bmsota/esp/appimage"
	"bmsota/manifest"
	"bmsota/protocol"
)

func image(t *testing.T, version string) []byte { return imageOf(t, version, 8192) }

func imageOf(t *testing.T, version string, size int64) []byte {
	t.Helper()
	b, err := appimage.Build(appimage.BuildOptions{Chip: appimage.ESP32, Project: "bms", Version: version, Size: size})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestPrepareSignsWhatTheImageSays(t *testing.T) {
	key, err := manifest.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p, err := deploy.Prepare(deploy.Release{Image: image(t, "1.2.0"), MinVersion: "1.1.0", ForceUpdate: true, Keys: []crypto.Signer{key}})
	if err != nil {
		t.Fatal(err)
	}
	m, err := manifest.Verify(p.JWS, &key.PublicKey)
	if err != nil || m != p.Manifest {
		t.Fatalf("signed %+v, %v", m, err)
	}
	if m.Version != "1.2.0" || m.Chip != "esp32" || m.MinVersion != "1.1.0" || !m.ForceUpdate || len(p.Warnings) != 0 {
		t.Errorf("got %+v, warnings %v", m, p.Warnings)
	}
}

func TestPrepareRefusals(t *testing.T) {
	good := image(t, "1.2.0")
	broken := append([]byte(nil), good...)
	broken[5000] ^= 1
	for name, r := range map[string]deploy.Release{
		"nothing":            {},
		"no image":           {Image: []byte("hello")},
		"truncated":          {Image: good[:4000]},
		"a bit flipped":      {Image: broken},
		"no SemVer":          {Image: good, Version: "3f2a91c-dirty"},
		"min version broken": {Image: good, MinVersion: "one"},
	} {
		if _, err := deploy.Prepare(r); !errors.Is(err, deploy.ErrImage) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := deploy.Prepare(deploy.Release{Image: good, Version: "nightly", AllowAnyVersion: true}); err != nil {
		t.Errorf("any version allowed: %v", err)
	}
}

func TestPrepareWarnsWhereNamesDiffer(t *testing.T) {
	p, err := deploy.Prepare(deploy.Release{Image: image(t, "1.2.0"), Version: "1.3.0"})
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Join(p.Warnings, "\n")
	for _, word := range []string{"1.2.0", "1.3.0", "not signed"} {
		if !strings.Contains(all, word) {
			t.Errorf("warnings do not name %q: %s", word, all)
		}
	}
}

func TestFolderHoldsWhatVersionJSONNames(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "firmware")
	first, err := deploy.Prepare(deploy.Release{Image: image(t, "1.2.0")})
	if err != nil {
		t.Fatal(err)
	}
	second, err := deploy.Prepare(deploy.Release{Image: image(t, "1.3.0")})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []*deploy.Prepared{first, second} {
		if _, err := deploy.WriteFolder(dir, p); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(filepath.Join(dir, "version.json"))
		if err != nil {
			t.Fatal(err)
		}
		v, err := protocol.ParseVersionFile(text)
		if err != nil || v.SHA256 != p.Manifest.SHA256 {
			t.Fatalf("version.json: %+v, %v", v, err)
		}
		for _, name := range []string{v.URL, "firmware.bin"} {
			if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || int64(len(b)) != v.Size {
				t.Errorf("%s: %d bytes, %v", name, len(b), err)
			}
		}
	}
	// A device that read the first version.json still gets the first image.
	if _, err := os.Stat(filepath.Join(dir, first.Manifest.SHA256+".bin")); err != nil {
		t.Error(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 4 {
		t.Errorf("%d files left (%v), want two images, firmware.bin and version.json", len(entries), err)
	}
}

func TestConfigOfTheOriginalToolIsRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), deploy.ConfigName)
	text := `{"server":{"base_url":"https://ota.example.com","firmware_path":"/firmware/firmware.bin","version_path":"/firmware/version.json",
		"username":"u","password":"p","verify_ssl":true},
		"mqtt":{"broker":"mqtt.example.com","port":1883,"username":"m","password":"q","command_topic":"home/ota/command","status_topic":"home/ota/status","timeout":30},
		"build":{"firmware_path":"build/app.bin"},"something_else":1}`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := deploy.LoadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	if c.Prefix() != "home/ota" || c.MQTT.Broker != "mqtt.example.com" || c.Build.FirmwarePath != filepath.Join(filepath.Dir(path), "build/app.bin") {
		t.Errorf("got %+v", c)
	}
	for name, bad := range map[string]string{
		"not JSON":          `{`,
		"address":           `{"server":{"base_url":"ota.example.com"}}`,
		"kind":              `{"server":{"kind":"ftp"}}`,
		"port":              `{"mqtt":{"port":70000}}`,
		"timeout":           `{"mqtt":{"timeout":-1}}`,
		"topic":             `{"mqtt":{"command_topic":"a/#/command"}}`,
		"port of the wrong": `{"mqtt":{"port":"1883"}}`,
		"port of SSH":       `{"server":{"sftp":{"port":-1}}}`,
		"dir without one":   `{"server":{"kind":"dir"}}`,
		"timeout of a week": `{"mqtt":{"timeout":604800}}`,
		"two objects":       `{} {}`,
	} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := deploy.LoadConfig(path)
		if err == nil {
			t.Errorf("%s: accepted", name)
		} else if strings.Contains(err.Error(), "Go struct") {
			t.Errorf("%s: %v is not for people", name, err)
		}
	}
}

func TestAFileWithoutKindMeansWhatItsAuthorMeant(t *testing.T) {
	for text, want := range map[string]deploy.Kind{
		// As the original tool made it: it copied with scp, which needs a user name.
		`{"server":{"base_url":"http://nas","firmware_path":"/var/www/firmware/firmware.bin","username":"ota","password":"","verify_ssl":false}}`: deploy.KindSFTP,
		`{"server":{"base_url":"http://nas","username":"ota"}}`:                                                                                   deploy.KindSFTP,
		`{"server":{"sftp":{"host":"nas"}}}`:                                                                                                      deploy.KindSFTP,
		`{"server":{"base_url":"https://ota.example.net:8443","password":"token"}}`:                                                               deploy.KindServer,
		`{"server":{"dir":"/var/www/firmware"}}`:                                                                                                  deploy.KindDir,
		`{"server":{"kind":"bmsota","base_url":"https://nas","username":"left over"}}`:                                                            deploy.KindServer,
		`{"server":{"kind":"sftp","base_url":"https://nas"}}`:                                                                                     deploy.KindSFTP,
		`{}`: deploy.KindServer,
	} {
		path := filepath.Join(t.TempDir(), deploy.ConfigName)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := deploy.LoadConfig(path)
		if err != nil || c.Kind() != want {
			t.Errorf("%s: %q, %v, want %q", text, c.Kind(), err, want)
		}
	}
}

func TestSettingsAreShownWithoutTheirSecrets(t *testing.T) {
	var c deploy.Config
	c.Server.BaseURL, c.Server.Password, c.MQTT.Password = "https://me:geheim1@nas/", "geheim2", "geheim3"
	c.Signing = deploy.SigningConfig{SigningKey: deploy.SigningKey{KeyFile: "/one", Signer: "sign --pin geheim4"},
		Cosigners: []deploy.SigningKey{{KeyFile: "/two", Signer: "sign --pin geheim5"}}}
	text, err := c.Masked().Append(nil)
	if err != nil || strings.Contains(string(text), "geheim") || strings.Count(string(text), "********") != 4 || c.Server.Password != "geheim2" {
		t.Errorf("%s, %v", text, err)
	}
	// What Append writes is what LoadConfig reads.
	path := filepath.Join(t.TempDir(), deploy.ConfigName)
	if text, err = c.Append(nil); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if again, err := deploy.LoadConfig(path); err != nil || !reflect.DeepEqual(again, c) {
		t.Errorf("%+v, %v, want %+v", again, err, c)
	}
}

func TestPathsOfSettingsAreOfTheirFolder(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, deploy.ConfigName)
	text := `{"server":{"dir":"www","ca_file":"ca.pem","sftp":{"key_file":"~/.ssh/ota","known_hosts":"/etc/known"}},"signing":{"key_file":"../release.pem","cosigners":[{"key_file":"two.pem"}]}}`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOME", "/home/me")
	c, err := deploy.LoadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	got := []string{c.Server.Dir, c.Server.CAFile, c.Server.SFTP.KeyFile, c.Server.SFTP.KnownHosts, c.Signing.KeyFile, c.Signing.Cosigners[0].KeyFile}
	want := []string{filepath.Join(dir, "www"), filepath.Join(dir, "ca.pem"), "/home/me/.ssh/ota", "/etc/known", filepath.Join(filepath.Dir(dir), "release.pem"), filepath.Join(dir, "two.pem")}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
