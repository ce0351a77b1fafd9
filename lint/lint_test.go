package lint_test

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"bmsota/esp/appimage"
	"bmsota/lint"

	"github.com/rogpeppe/go-internal/txtar"
)

// tree is a project: files by their path.
type tree map[string]string

func load(t *testing.T, name string) tree {
	t.Helper()
	a, err := txtar.ParseFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	files := make(tree)
	for _, f := range a.Files {
		files[f.Name] = string(f.Data)
	}
	return files
}

// edit gives the tree with some files changed: a text of the form "-old\n+new" replaces a line or words, an empty one removes
// the file, anything else is the file.
func (tr tree) edit(t *testing.T, edits map[string]string) tree {
	t.Helper()
	out := maps.Clone(tr)
	for name, text := range edits {
		switch {
		case text == "":
			delete(out, name)
		case strings.HasPrefix(text, "-"):
			before, after, ok := strings.Cut(text[1:], "\n+")
			if !ok || !strings.Contains(out[name], before) {
				t.Fatalf("%s has no %q to change", name, before)
			}
			out[name] = strings.Replace(out[name], before, after, 1)
		default:
			out[name] = text
		}
	}
	return out
}

func (tr tree) write(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range tr {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// check gives what is found, one line each, and holds every finding to what each has to say.
func (tr tree) check(t *testing.T) []string {
	t.Helper()
	findings, err := lint.Check(tr.write(t))
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, f := range findings {
		if f.Found == "" || f.Why == "" || f.Change == "" && f.Rule != "not-read" || strings.Contains(f.Found+f.Change+f.Why, "\n") {
			t.Errorf("a finding without its words: %+v", f)
		}
		if text, ok := tr[f.File]; ok && f.Line > strings.Count(text, "\n")+1 {
			t.Errorf("%s has no line %d", f.File, f.Line)
		}
		list = append(list, fmt.Sprintf("%s %s %s:%d", f.Severity, f.Rule, f.File, f.Line))
	}
	return list
}

func TestACleanProjectHasNoFindings(t *testing.T) {
	if got := load(t, "clean.txtar").check(t); len(got) != 0 {
		t.Errorf("found %q", got)
	}
}

// S1 rollback off, S5 fixed client ids, S8 no verification, S9 an image that the slots of older boards cannot take, S13 the
// resume of ESP-IDF 5.5.0; and what goes with them.
func TestTheFirstFirmwareAsItWas(t *testing.T) {
	project := load(t, "first.txtar")
	project["build/esp32-bms-monitor.bin"] = image(t, 1600<<10)
	got := project.check(t)
	want := []string{
		"danger fixed-client-id components/ota_manager/ota_mqtt_commands.c:5",
		"danger fixed-client-id components/ota_manager/ota_mqtt_publisher.c:5",
		"danger image-too-large partitions.csv:5",
		"danger no-slots sdkconfig.defaults:0",
		"danger rollback-off sdkconfig.defaults:0",
		"danger no-verification spiffs/ota_config.txt:4",
		"warning no-version CMakeLists.txt:3",
		"warning mqtt-clients components/ota_manager/ota_mqtt_publisher.c:11",
		"warning idf-resume dependencies.lock:5",
		"warning early-valid main/main.cpp:7",
		"warning broker-plain spiffs/mqtt_config.txt:5",
		"warning no-trusted-key spiffs/ota_config.txt:0",
	}
	if !slices.Equal(got, want) {
		t.Errorf("found\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func image(t *testing.T, size int64) string {
	t.Helper()
	b, err := appimage.Build(appimage.BuildOptions{Project: "bms", Version: "1.0.0", Size: size})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Each rule on the form that hurts, and on those that do not: want is empty where it has to be silent.
func TestRules(t *testing.T) {
	clean := load(t, "clean.txtar")
	index, err := os.ReadFile(filepath.Join("testdata", "index-v2"))
	if err != nil {
		t.Fatal(err)
	}
	// A name as long as that of the settings, or shorter by as much as padding hides.
	indexed := func(name string) string {
		return strings.ReplaceAll(string(index), "ota_deploy_config.json", name+strings.Repeat("\x00", len("ota_deploy_config.json")-len(name)))
	}
	fits, tight, large := image(t, 1400<<10), image(t, 1500<<10), image(t, 1537<<10)
	for _, c := range []struct {
		name  string
		edits map[string]string
		want  string // findings, separated by "; "
	}{
		// rollback
		{"rollback not in the defaults", map[string]string{"sdkconfig.defaults": "-CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE=y\n\n+"}, "danger rollback-off sdkconfig.defaults:0"},
		{"rollback off in the defaults", map[string]string{"sdkconfig.defaults": "-CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE=y\n+# CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE is not set"}, "danger rollback-off sdkconfig.defaults:2"},
		{"sdkconfig wins", map[string]string{"sdkconfig": "CONFIG_PARTITION_TABLE_CUSTOM=y\n# CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE is not set\n"}, "danger rollback-off sdkconfig:2"},
		{"missing in sdkconfig", map[string]string{"sdkconfig": "CONFIG_PARTITION_TABLE_CUSTOM=y\n"}, "danger rollback-off sdkconfig:0"},
		{"on in both", map[string]string{"sdkconfig": "CONFIG_PARTITION_TABLE_CUSTOM=y\nCONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE=y\n"}, ""},
		{"on for one developer only", map[string]string{"sdkconfig": "CONFIG_PARTITION_TABLE_CUSTOM=y\nCONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE=y\n",
			"sdkconfig.defaults": "CONFIG_PARTITION_TABLE_CUSTOM=y\n"}, "note rollback-default sdkconfig.defaults:0"},
		{"on in the target's defaults", map[string]string{"sdkconfig.defaults": "-CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE=y\n+", "sdkconfig.defaults.esp32": "CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE=y\n"}, ""},
		{"on in another target's", map[string]string{"sdkconfig.defaults": "-CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE=y\n\n+", "sdkconfig.defaults.esp32s3": "CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE=y\n"}, "danger rollback-off sdkconfig.defaults:0"},
		{"on under its older name", map[string]string{"sdkconfig.defaults": "-CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE\n+CONFIG_APP_ROLLBACK_ENABLE"}, ""},

		// switches
		{"HTTP allowed", map[string]string{"sdkconfig.defaults": "-# CONFIG_ESP_HTTPS_OTA_ALLOW_HTTP is not set\n+CONFIG_ESP_HTTPS_OTA_ALLOW_HTTP=y"}, "danger plain-http sdkconfig.defaults:5"},
		{"HTTP allowed under both names", map[string]string{"sdkconfig.defaults": "-# CONFIG_ESP_HTTPS_OTA_ALLOW_HTTP is not set\n+CONFIG_ESP_HTTPS_OTA_ALLOW_HTTP=y\nCONFIG_OTA_ALLOW_HTTP=y"}, "danger plain-http sdkconfig.defaults:5"},
		{"HTTP allowed under its older name", map[string]string{"sdkconfig.defaults": "-# CONFIG_ESP_HTTPS_OTA_ALLOW_HTTP is not set\n+CONFIG_OTA_ALLOW_HTTP=y"}, "danger plain-http sdkconfig.defaults:5"},
		{"HTTP allowed on a fresh clone", map[string]string{"sdkconfig.defaults": "-# CONFIG_ESP_HTTPS_OTA_ALLOW_HTTP is not set\n+CONFIG_ESP_HTTPS_OTA_ALLOW_HTTP=y",
			"sdkconfig": "CONFIG_PARTITION_TABLE_CUSTOM=y\nCONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE=y\n"}, "warning plain-http sdkconfig.defaults:5"},
		{"plain in our own component", map[string]string{"sdkconfig.defaults": "-# CONFIG_ESP_HTTPS_OTA_ALLOW_HTTP is not set\n+CONFIG_OTA_MANAGER_ALLOW_PLAIN_HTTP=y"}, "danger plain-http sdkconfig.defaults:5"},
		{"not plain in our own component", map[string]string{"sdkconfig.defaults": "-# CONFIG_ESP_HTTPS_OTA_ALLOW_HTTP is not set\n+# CONFIG_OTA_MANAGER_ALLOW_PLAIN_HTTP is not set\nCONFIG_OTA_MANAGER_BLOCK=64"}, ""},
		{"insecure TLS", map[string]string{"sdkconfig.defaults": "-# CONFIG_ESP_HTTPS_OTA_ALLOW_HTTP is not set\n+CONFIG_ESP_TLS_INSECURE=y\nCONFIG_ESP_TLS_SKIP_SERVER_CERT_VERIFY=y"},
			"danger tls-insecure sdkconfig.defaults:5; danger tls-insecure sdkconfig.defaults:6"},
		{"signed images", map[string]string{"sdkconfig.defaults": "-# CONFIG_ESP_HTTPS_OTA_ALLOW_HTTP is not set\n+CONFIG_SECURE_SIGNED_APPS_NO_SECURE_BOOT=y"}, "warning first-key sdkconfig.defaults:5; note signed-apps sdkconfig.defaults:5"},
		{"signed images under Secure Boot", map[string]string{"sdkconfig.defaults": "-# CONFIG_ESP_HTTPS_OTA_ALLOW_HTTP is not set\n+CONFIG_SECURE_SIGNED_APPS_NO_SECURE_BOOT=y\nCONFIG_SECURE_BOOT=y"}, "note signed-apps sdkconfig.defaults:5"},
		{"signed images of the older scheme", map[string]string{"sdkconfig.defaults": "-# CONFIG_ESP_HTTPS_OTA_ALLOW_HTTP is not set\n+CONFIG_SECURE_SIGNED_APPS_NO_SECURE_BOOT=y\nCONFIG_SECURE_SIGNED_APPS_ECDSA_SCHEME=y"}, "note signed-apps sdkconfig.defaults:5"},

		// a device's files
		{"skip verification", map[string]string{"spiffs/ota_config.txt": "-verification\": false\n+verification\": true"}, "danger no-verification spiffs/ota_config.txt:4"},
		{"skip verification, the older form", map[string]string{"spiffs/ota_config.txt": "url=https://nas.local/f.bin\ntrusted_key_pem=x\nskip_cert_verification=1\n"}, "danger no-verification spiffs/ota_config.txt:3"},
		{"plain URL", map[string]string{"spiffs/ota_config.txt": "-https:\n+http:"}, "danger plain-http spiffs/ota_config.txt:2"},
		{"no release key", map[string]string{"spiffs/ota_config.txt": "------BEGIN PUBLIC KEY-----\\n...\n+"}, "warning no-trusted-key spiffs/ota_config.txt:5"},
		{"not JSON", map[string]string{"spiffs/ota_config.txt": "{\"server_url\": "}, "note not-read spiffs/ota_config.txt:0"},
		{"bundle off and no CA", map[string]string{"spiffs/ota_config.txt": "------BEGIN CERTIFICATE-----\\n...\n+", "sdkconfig.defaults": "-# CONFIG_ESP_HTTPS_OTA_ALLOW_HTTP is not set\n+# CONFIG_MBEDTLS_CERTIFICATE_BUNDLE is not set"},
			"danger bundle-off sdkconfig.defaults:5"},
		{"bundle off and a CA", map[string]string{"sdkconfig.defaults": "-# CONFIG_ESP_HTTPS_OTA_ALLOW_HTTP is not set\n+# CONFIG_MBEDTLS_CERTIFICATE_BUNDLE is not set"}, ""},
		{"bundle off and a CA in the source", map[string]string{"spiffs/ota_config.txt": "", "main/ota.c": "c = (esp_http_client_config_t){ .cert_pem = ca };\n",
			"sdkconfig.defaults": "-# CONFIG_ESP_HTTPS_OTA_ALLOW_HTTP is not set\n+# CONFIG_MBEDTLS_CERTIFICATE_BUNDLE is not set"}, ""},
		{"neither CA nor bundle", map[string]string{"spiffs/ota_config.txt": "------BEGIN CERTIFICATE-----\\n...\n+", "main/ota.c": "void f(void) { esp_https_ota(&c); }\n"}, "danger no-authority spiffs/ota_config.txt:3"},
		{"the bundle", map[string]string{"spiffs/ota_config.txt": "------BEGIN CERTIFICATE-----\\n...\n+", "main/ota.c": "void f(void) { c.crt_bundle_attach = esp_crt_bundle_attach; esp_https_ota(&c); }\n"}, ""},
		{"broker in the clear", map[string]string{"spiffs/mqtt_config.txt": "-, \"tls\": true\n+"}, "warning broker-plain spiffs/mqtt_config.txt:1"},
		{"broker in the clear, the older form", map[string]string{"spiffs/mqtt_config.txt": "broker=mqtt://192.168.1.10:1883\nusername=device\npassword=secret\n"}, "warning broker-plain spiffs/mqtt_config.txt:3"},
		{"broker with TLS, the older form", map[string]string{"spiffs/mqtt_config.txt": "broker=mqtts://192.168.1.10\npassword=secret\n"}, ""},
		{"broker without a password", map[string]string{"spiffs/mqtt_config.txt": "broker=mqtt://192.168.1.10\n"}, ""},

		// deployment
		{"settings that git would take", map[string]string{".gitignore": "build/\n"}, "danger secrets-in-git ota_deploy_config.json:0"},
		{"no .gitignore at all", map[string]string{".gitignore": ""}, "danger secrets-in-git ota_deploy_config.json:0"},
		{"let in again", map[string]string{".gitignore": "*.json\n!ota_deploy_config.json\n"}, "danger secrets-in-git ota_deploy_config.json:0"},
		{"ignored by a pattern", map[string]string{".gitignore": "/ota_deploy_*.json\n"}, ""},
		{"in the index", map[string]string{".git/index": string(index)}, "danger secrets-in-git ota_deploy_config.json:0"},
		{"not in the index", map[string]string{".git/index": strings.ReplaceAll(string(index), "ota_deploy_config.json", "ota_deploy_example.jsn")}, ""},
		{"the broker's password in the index", map[string]string{".git/index": indexed("spiffs/mqtt_config.txt")}, "danger secrets-in-git spiffs/mqtt_config.txt:1"},
		{"a device's file without a secret in the index", map[string]string{".git/index": indexed("spiffs/mqtt_config.txt"), "spiffs/mqtt_config.txt": `{"broker_host": "nas", "tls": true}`}, ""},
		{"the key of a certificate in the index", map[string]string{".git/index": indexed("spiffs/mqtt_config.txt"),
			"spiffs/mqtt_config.txt": "{\"tls\": true,\n\"client_key_pem\": \"-----BEGIN PRIVATE KEY-----\\nx\"}"}, "danger secrets-in-git spiffs/mqtt_config.txt:2"},
		{"a token in the older form in the index", map[string]string{".git/index": indexed("spiffs/mqtt_config.txt"), "spiffs/mqtt_config.txt": "tls=1\ntoken=x\n"}, "danger secrets-in-git spiffs/mqtt_config.txt:2"},
		{"a key file in the index", map[string]string{".git/index": indexed("certs/device-0001.key"), "certs/device-0001.key": "# A\n-----BEGIN EC PRIVATE KEY-----\n"}, "danger secrets-in-git certs/device-0001.key:2"},
		{"a key file that git has not", map[string]string{"certs/device-0001.key": "# A\n-----BEGIN EC PRIVATE KEY-----\n"}, ""},
		{"a key under a passphrase in the index", map[string]string{".git/index": indexed("certs/device-0001.pem"), "certs/device-0001.pem": "# A\n-----BEGIN ENCRYPTED PRIVATE KEY-----\n"}, ""},
		{"a key in a source in the index", map[string]string{".git/index": indexed("main/device_identity.c"), "main/device_identity.c": "\nconst char *k = \"-----BEGIN RSA PRIVATE KEY-----\";\n"}, "danger secrets-in-git main/device_identity.c:2"},
		{"no signing key", map[string]string{"ota_deploy_config.json": "{\"signing\": {}}"}, "warning no-signing-key ota_deploy_config.json:1"},
		{"no settings here", map[string]string{"ota_deploy_config.json": "", ".gitignore": ""}, ""},

		// table
		{"slots unequal", map[string]string{"partitions.csv": "-0x1A0000, 1536K\n+0x1A0000, 1472K"}, "danger slots-unequal partitions.csv:6"},
		{"one slot", map[string]string{"partitions.csv": "-ota_1,    app,  ota_1,   0x1A0000, 1536K,\n\n+"}, "danger one-slot partitions.csv:5"},
		{"no slot", map[string]string{"partitions.csv": "nvs, data, nvs, , 0x6000,\nfactory, app, factory, , 1M,\nstorage, data, spiffs, , 768K,\n"}, "danger no-slots partitions.csv:0"},
		{"a gap", map[string]string{"partitions.csv": "-ota_1,    app,  ota_1\n+ota_2,    app,  ota_2"}, "danger slot-gap partitions.csv:6"},
		{"no otadata", map[string]string{"partitions.csv": "-otadata,  data, ota,     0x10000, 0x2000,\n\n+"}, "danger no-otadata partitions.csv:0"},
		{"otadata too small", map[string]string{"partitions.csv": "-0x10000, 0x2000\n+0x10000, 4K"}, "danger otadata-size partitions.csv:4"},
		{"no storage", map[string]string{"partitions.csv": "-storage,  data, spiffs,  0x320000, 768K,\n\n+"}, "warning no-storage partitions.csv:0"},
		{"an overlap", map[string]string{"partitions.csv": "-0x320000\n+0x310000"}, "danger table-refused partitions.csv:7"},
		{"three slots and offsets left out", map[string]string{"partitions.csv": "otadata, data, ota, , 0x2000,\nota_0, app, ota_0, , 1M,\nota_1, app, ota_1, , 1M,\nota_2, app, ota_2, , 1M,\nstorage, data, spiffs, , 512K,\n"}, ""},
		{"a factory application too", map[string]string{"partitions.csv": "otadata, data, ota, , 0x2000,\nfactory, app, factory, , 1M,\nota_0, app, ota_0, , 1M,\nota_1, app, ota_1, , 1M,\nstorage, data, spiffs, , 512K,\n"}, ""},
		{"the table is not used", map[string]string{"sdkconfig.defaults": "CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE=y\n"}, "danger no-slots sdkconfig.defaults:0"},
		{"the single-app table", map[string]string{"sdkconfig": "CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE=y\nCONFIG_PARTITION_TABLE_SINGLE_APP=y\n"}, "danger no-slots sdkconfig:2"},
		{"ESP-IDF's table with two slots", map[string]string{"sdkconfig.defaults": "CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE=y\nCONFIG_PARTITION_TABLE_TWO_OTA=y\n", "partitions.csv": ""}, ""},
		{"a table that is not there", map[string]string{"partitions.csv": ""}, "warning table-missing sdkconfig.defaults:3"},
		{"a table of another name", map[string]string{"sdkconfig.defaults": "-\"partitions.csv\"\n+\"boards/pack.csv\"", "boards/pack.csv": "ota_0, app, ota_0, , 1M,\n", "partitions.csv": ""},
			"danger no-otadata boards/pack.csv:0; danger one-slot boards/pack.csv:1; warning no-storage boards/pack.csv:0"},
		{"PlatformIO names the table itself", map[string]string{"sdkconfig.defaults": "CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE=y\n", "platformio.ini": "[env]\n"}, ""},
		{"an image that fits", map[string]string{"build/bms.bin": fits}, ""},
		{"an image that nearly fills its slot", map[string]string{"build/bms.bin": tight}, "warning image-tight partitions.csv:5"},
		{"an image too large", map[string]string{"build/bms.bin": large}, "danger image-too-large partitions.csv:5"},
		{"what else is in the folder", map[string]string{"build/bms.bin": fits, "build/storage.bin": strings.Repeat("x", 4<<20)}, ""},
		{"the image that the build names", map[string]string{"build/other.bin": large, "build/bms.bin": fits, "build/project_description.json": `{"app_bin": "bms.bin", "git_revision": "v5.4.2"}`}, ""},

		// ESP-IDF
		{"the resume that corrupts", map[string]string{"dependencies.lock": "-5.5.4\n+5.5.0"}, "warning idf-resume dependencies.lock:10"},
		{"the last one that has it, used", map[string]string{"dependencies.lock": "-5.5.4\n+5.5.3", "main/ota.c": "esp_https_ota_config_t c = { .ota_resumption = true };\n"}, "danger idf-resume dependencies.lock:10"},
		{"used, but mended", map[string]string{"main/ota.c": "esp_https_ota_config_t c = { .ota_resumption = true };\n"}, ""},
		{"in a remark", map[string]string{"dependencies.lock": "-5.5.4\n+5.5.1", "main/ota.c": "// .ota_resumption = true\n/* .ota_resumption = true */\n"}, "warning idf-resume dependencies.lock:10"},
		{"before there was a resume", map[string]string{"dependencies.lock": "-5.5.4\n+5.4.3"}, ""},
		{"6.0", map[string]string{"dependencies.lock": "-5.5.4\n+6.0.0"}, ""},
		{"as it was built", map[string]string{"build/project_description.json": `{"git_revision": "v5.5.1-dirty"}`}, "warning idf-resume build/project_description.json:0"},
		{"as sdkconfig says", map[string]string{"sdkconfig": "#\n# Automatically generated file. DO NOT EDIT.\n# Espressif IoT Development Framework (ESP-IDF) 5.5.2 Project Configuration\n#\nCONFIG_PARTITION_TABLE_CUSTOM=y\nCONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE=y\n"}, "warning idf-resume sdkconfig:3"},
		{"one version wanted", map[string]string{"dependencies.lock": "", "main/idf_component.yml": "dependencies:\n  idf:\n    version: \"==5.5.3\"\n"}, "warning idf-resume main/idf_component.yml:3"},
		{"a range is no version", map[string]string{"dependencies.lock": "", "main/idf_component.yml": "dependencies:\n  idf:\n    version: \">=5.5.0\"\n"}, ""},

		// version
		{"no version", map[string]string{"CMakeLists.txt": "-set(PROJECT_VER \"1.4.0\")\n\n+"}, "warning no-version CMakeLists.txt:3"},
		{"a version in a remark", map[string]string{"CMakeLists.txt": "-set(PROJECT_VER\n+# set(PROJECT_VER"}, "warning no-version CMakeLists.txt:4"},
		{"behind project()", map[string]string{"CMakeLists.txt": "project(bms)\nset(PROJECT_VER \"1.4.0\")\n"}, "warning no-version CMakeLists.txt:2"},
		{"not SemVer", map[string]string{"CMakeLists.txt": "-1.4.0\n+1.4"}, "warning version-form CMakeLists.txt:2"},
		{"with a v", map[string]string{"CMakeLists.txt": "-1.4.0\n+v1.4.0"}, ""},
		{"computed", map[string]string{"CMakeLists.txt": "-\"1.4.0\"\n+\"${GIT_TAG}\""}, ""},
		{"read from a file", map[string]string{"CMakeLists.txt": "-set(PROJECT_VER \"1.4.0\")\n+file(STRINGS v PROJECT_VER)"}, ""},
		{"version.txt", map[string]string{"CMakeLists.txt": "-set(PROJECT_VER \"1.4.0\")\n\n+", "version.txt": "1.4.0\n"}, ""},
		{"version.txt of another form", map[string]string{"CMakeLists.txt": "-set(PROJECT_VER \"1.4.0\")\n\n+", "version.txt": "release 7\n"}, "warning version-form version.txt:1"},
		{"in project()", map[string]string{"CMakeLists.txt": "project(bms VERSION 1.4.0)\n"}, ""},
		{"in sdkconfig", map[string]string{"CMakeLists.txt": "project(bms)\n", "sdkconfig.defaults": "-# CONFIG_ESP_HTTPS_OTA_ALLOW_HTTP is not set\n+CONFIG_APP_PROJECT_VER_FROM_CONFIG=y\nCONFIG_APP_PROJECT_VER=\"1.4.0\""}, ""},
		{"not SemVer in sdkconfig", map[string]string{"sdkconfig.defaults": "-# CONFIG_ESP_HTTPS_OTA_ALLOW_HTTP is not set\n+CONFIG_APP_PROJECT_VER_FROM_CONFIG=y\nCONFIG_APP_PROJECT_VER=\"seven\""}, "warning version-form sdkconfig.defaults:6"},

		// sources
		{"a client id for all", map[string]string{"main/mqtt.c": "esp_mqtt_client_config_t c = {\n .credentials.client_id = \"bms_ota_status\",\n};\n"}, "danger fixed-client-id main/mqtt.c:2"},
		{"the older field", map[string]string{"main/mqtt.c": "void f() { cfg.client_id = \"bms\"; }\n"}, "danger fixed-client-id main/mqtt.c:1"},
		{"by a macro", map[string]string{"main/ids.h": "#define BMS_ID \\\n  \"bms\"\n", "main/mqtt.cpp": "void f() {\n cfg.credentials.client_id = BMS_ID;\n}\n"}, "danger fixed-client-id main/mqtt.cpp:2"},
		{"copied", map[string]string{"main/mqtt.c": "void f() { strlcpy(cfg.client_id, \"bms\", sizeof cfg.client_id); }\n"}, "danger fixed-client-id main/mqtt.c:1"},
		{"a macro that is no string", map[string]string{"main/ids.h": "#define BMS_ID make_id()\n", "main/mqtt.c": "void f() { cfg.client_id = BMS_ID; }\n"}, ""},
		{"compared, empty, in a remark, in a string", map[string]string{"main/mqtt.c": "// client_id = \"bms\";\nint f() { log(\"client_id = \\\"bms\\\";\"); c.client_id = \"\"; return c.client_id == \"bms\"; }\n"}, ""},
		{"in a test", map[string]string{"test/main/mqtt.c": "void f() { cfg.client_id = \"bms\"; }\n", "components/a/host_test/t.cpp": "void f() { cfg.client_id = \"bms\"; }\n"}, ""},
		{"somebody else's component", map[string]string{"managed_components/x/mqtt.c": "void f() { cfg.client_id = \"bms\"; }\n", "build/x.c": "void f() { c.client_id = \"x\"; }\n"}, ""},
		{"a build folder of another name", map[string]string{"out/CMakeCache.txt": "x", "out/mqtt.c": "void f() { cfg.client_id = \"bms\"; }\n"}, ""},
		{"a second client", map[string]string{"main/log.c": "void f(void) {\n  c = esp_mqtt_client_init(&cfg);\n}\n"}, "warning mqtt-clients main/main.c:9"},
		{"a declaration", map[string]string{"main/mock.h": "esp_mqtt_client_handle_t esp_mqtt_client_init(const esp_mqtt_client_config_t *c);\n"}, ""},
		{"good after a delay", map[string]string{"main/a.c": "void later(void *p) {\n  vTaskDelay(pdMS_TO_TICKS(5000));\n  if (esp_ota_mark_app_valid_cancel_rollback() == ESP_OK) { say(); }\n}\n"}, "warning early-valid main/a.c:3"},
		{"good after a delay, and a word", map[string]string{"main/a.c": "void later(void *p) {\n  vTaskDelay(500);\n  ESP_LOGI(TAG, \"fine\");\n  esp_ota_mark_app_valid_cancel_rollback();\n}\n"}, "warning early-valid main/a.c:4"},
		{"good at once", map[string]string{"main/a.cpp": "extern \"C\" {\nvoid app_main(void)\n{\n  nvs_flash_init();\n  esp_ota_mark_app_valid_cancel_rollback();\n}\n}\n"}, "warning early-valid main/a.cpp:5"},
		{"good when something answered", map[string]string{"main/a.c": "void later(void *p) {\n  vTaskDelay(500);\n  if (connected) esp_ota_mark_app_valid_cancel_rollback();\n}\n"}, ""},
		{"good when it was waited for", map[string]string{"main/a.c": "void later(void *p) {\n  while (!connected) vTaskDelay(500);\n  esp_ota_mark_app_valid_cancel_rollback();\n}\n"}, ""},
		{"a delay elsewhere", map[string]string{"main/a.c": "void wait(void) { vTaskDelay(500); }\nvoid good(void) { esp_ota_mark_app_valid_cancel_rollback(); }\n"}, ""},
		{"late in app_main", map[string]string{"main/a.c": "void app_main(void) { a(); b(); c(); d(); e(); esp_ota_mark_app_valid_cancel_rollback(); }\n"}, ""},
	} {
		got := strings.Join(clean.edit(t, c.edits).check(t), "; ")
		if got != c.want {
			t.Errorf("%s: found %q, want %q", c.name, got, c.want)
		}
	}
}

// A project may be a folder of a larger repository, whose .gitignore and index count.
func TestTheRepositoryMayStartAboveTheProject(t *testing.T) {
	index, err := os.ReadFile(filepath.Join("testdata", "index-v4"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		above tree
		want  bool
	}{
		{"ignored above", tree{".git/HEAD": "", ".gitignore": "ota_deploy_config.json\n"}, false},
		{"by its whole path", tree{".git/HEAD": "", ".gitignore": "/sub/*.json\n"}, false},
		{"by another path", tree{".git/HEAD": "", ".gitignore": "/ota_deploy_config.json\n"}, true},
		{"ignored above, and in the index", tree{".git/index": string(index), ".gitignore": "ota_deploy_config.json\n"}, true},
		{"another file is in the index", tree{".git/index": strings.ReplaceAll(string(index), "sub/", "sux/"), ".gitignore": "ota_deploy_config.json\n"}, false},
		{"above, but no repository", tree{".gitignore": "ota_deploy_config.json\n"}, true},
	} {
		for name, text := range load(t, "clean.txtar").edit(t, map[string]string{".gitignore": ""}) {
			c.above["sub/"+name] = text
		}
		findings, err := lint.Check(filepath.Join(c.above.write(t), "sub"))
		if err != nil || (len(findings) == 1 && findings[0].Rule == "secrets-in-git") != c.want {
			t.Errorf("%s: found %+v, %v", c.name, findings, err)
		}
	}
}

func TestOtherPlacesAreNotAProject(t *testing.T) {
	if got, err := lint.Check(t.TempDir()); !errors.Is(err, lint.ErrNoProject) || got != nil {
		t.Errorf("an empty folder: %v, %v", got, err)
	}
	if _, err := lint.Check(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
}
