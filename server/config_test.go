package server

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func load(t *testing.T, text string) (Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c.json")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load(path)
}

func TestConfigFileSaysWhatIsWrong(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"typo", `{"data_dri":"x"}`, `unknown key "data_dri": did you mean "data_dir"?`},
		{"typo in a section", `{"mqtt":{"tls_lisen":":1"}}`, `unknown key "mqtt.tls_lisen": did you mean "mqtt.tls_listen"?`},
		{"same name in two sections", `{"https":{"lissten":":1"}}`, `did you mean "https.listen"?`},
		{"key in the wrong section", `{"cert_file":"x"}`, `unknown key "cert_file": did you mean "tls.cert_file"?`},
		{"other case", `{"DATA_DIR":"x"}`, `unknown key "DATA_DIR": did you mean "data_dir"?`},
		{"nothing near", `{"frobnicate":1}`, `unknown key "frobnicate"`},
		{"deep", `{"tls":{"acme":{"host":["a.example"]}}}`, `unknown key "tls.acme.host": did you mean "tls.acme.hosts"?`},
		{"twice", `{"host":"a","host":"b"}`, `key "host" stands twice`},
		{"wrong type", `{"https":{"cache_bytes":"64M"}}`, `"https.cache_bytes" must be a whole number, not a string`},
		{"wrong type of a flag", `{"fleet":{"require_signed":"yes"}}`, `"fleet.require_signed" must be true or false, not a string`},
		{"wrong type of a section", `{"https":":8443"}`, `"https" must be an object in braces`},
		{"wrong type of a list", `{"tls":{"names":"a"}}`, `"tls.names" must be a list in brackets, not a string`},
		{"bare duration", `{"fleet":{"silence":30}}`, `"fleet.silence": 30 is not a time in quotes`},
		{"odd duration", `{"fleet":{"expiry":"7 days"}}`, `"fleet.expiry": "7 days" is not a time like 30m, 12h or 7d`},
		{"negative duration", `{"fleet":{"expiry":"-5m"}}`, `is not a time like`},
		{"list", `[]`, `the configuration must be an object in braces`},
		{"empty", ``, `unexpected end of JSON input`},
		{"cut off", `{"host":"a"`, `unexpected end of JSON input`},
		{"not JSON", "{\n\"host\":\n}", `line 3: not JSON`},
		{"data behind", `{} {}`, `line 1: not JSON: invalid character '{' after top-level value`},
		{"listen without port", `{"https":{"listen":"localhost"}}`, `https.listen: "localhost" is not host:port`},
		{"port too large", `{"https":{"listen":":70000"}}`, `https.listen: port "70000"`},
		{"listen on nonsense", `{"mqtt":{"tls_listen":"a b:1"}}`, `mqtt.tls_listen: host "a b"`},
		{"nothing serves", `{"https":{"listen":"off"}}`, `nothing would serve firmware`},
		{"no broker", `{"mqtt":{"listen":"off","tls_listen":"off"}}`, `no device could be reached`},
		{"plain MQTT for all", `{"mqtt":{"listen":":1883"}}`, `plain MQTT on ":1883" would show tokens`},
		{"plain MQTT on an address", `{"mqtt":{"listen":"192.168.1.2:1883"}}`, `would show tokens`},
		{"prefix with a wildcard", `{"mqtt":{"prefix":"bms/#"}}`, `mqtt.prefix: `},
		{"key without certificate", `{"tls":{"key_file":"k"}}`, `go together`},
		{"certificate and ACME", `{"tls":{"cert_file":"c","key_file":"k","acme":{"hosts":["a.example"]}}}`, `exclude each other`},
		{"CA without certificate", `{"tls":{"ca_file":"c"}}`, `tls.ca_file is for a certificate of your own`},
		{"ACME without hosts", `{"tls":{"acme":{"email":"a@b.example"}}}`, `tls.acme.hosts is empty`},
		{"ACME for an address", `{"tls":{"acme":{"hosts":["10.0.0.1"]}}}`, `not a public host name`},
		{"ACME for localhost", `{"tls":{"acme":{"hosts":["localhost"]}}}`, `not a public host name`},
		{"ACME over plain HTTP", `{"tls":{"acme":{"hosts":["a.example"],"directory_url":"http://x/"}}}`, `not an https address`},
		{"name with a port", `{"tls":{"names":["a:1"]}}`, `tls.names: "a:1"`},
		{"host with a port", `{"host":"a:1"}`, `host: "a:1"`},
		{"public address with a path", `{"public_url":"https://a.example/x"}`, `public_url: `},
		{"external broker of another kind", `{"mqtt":{"external":{"url":"https://a.example"}}}`, `mqtt.external.url: `},
		{"login in the address", `{"mqtt":{"external":{"url":"mqtt://u:p@a.example"}}}`, `the login goes into username and password`},
		{"login in an address that cannot be read", `{"mqtt":{"external":{"url":"mqtt://u:p@a.example:port"}}}`, `mqtt.external.url: `},
		{"login in a public address", `{"public_url":"https://u:p@a.example"}`, `public_url: `},
		{"public address with a fragment", `{"public_url":"https://a.example#x"}`, `public_url: `},
		{"public address with an empty query", `{"public_url":"https://a.example?"}`, `public_url: `},
		{"external broker with a fragment", `{"mqtt":{"external":{"url":"mqtt://a.example#x"}}}`, `mqtt.external.url: `},
		{"external login without address", `{"mqtt":{"external":{"username":"u"}}}`, `mqtt.external.url is empty`},
		{"seed statuses from elsewhere", `{"fleet":{"accept_seed_status":true},"mqtt":{"external":{"url":"mqtt://a.example"}}}`, `needs the embedded broker`},
		{"connections without number", `{"https":{"max_connections":-1}}`, `https.max_connections of -1 is not within`},
		{"bucket without a name", `{"firmware":{"bucket":{"endpoint":"https://s3.example"}}}`, `firmware.bucket.bucket is empty`},
		{"bucket with capitals", `{"firmware":{"bucket":{"bucket":"Firmware","endpoint":"https://s3.example"}}}`, `firmware.bucket.bucket: "Firmware" is no name`},
		{"bucket nowhere", `{"firmware":{"bucket":{"bucket":"firmware"}}}`, `firmware.bucket.endpoint: it is not`},
		{"endpoint with the bucket", `{"firmware":{"bucket":{"bucket":"firmware","endpoint":"https://s3.example/firmware"}}}`, `firmware.bucket.endpoint: it is not`},
		{"endpoint with a login", `{"firmware":{"bucket":{"bucket":"firmware","endpoint":"https://u:p@s3.example"}}}`, `firmware.bucket.endpoint: it is not`},
		{"prefix without end", `{"firmware":{"bucket":{"bucket":"firmware","endpoint":"https://s3.example","prefix":"a"}}}`, `firmware.bucket.prefix: "a" is not`},
		{"key without secret", `{"firmware":{"bucket":{"bucket":"firmware","endpoint":"https://s3.example","access_key":"a"}}}`, `access_key and firmware.bucket.secret_key_file go together`},
		{"download by pigeon", `{"firmware":{"bucket":{"bucket":"firmware","endpoint":"https://s3.example","download":"redirect"}}}`, `firmware.bucket.download: "redirect" is neither`},
		{"signed over plain HTTP", `{"firmware":{"bucket":{"bucket":"firmware","endpoint":"http://s3.example","download":"presigned"}}}`, `devices take images over https only`},
		{"signed for a moment", `{"firmware":{"bucket":{"bucket":"firmware","endpoint":"https://s3.example","presign_ttl":"5m"}}}`, `firmware.bucket.presign_ttl: 5m0s is not within`},
		{"signed for ever", `{"firmware":{"bucket":{"bucket":"firmware","endpoint":"https://s3.example","presign_ttl":"8d"}}}`, `is not within 2h to 7d`},
		{"public over plain HTTP", `{"firmware":{"bucket":{"bucket":"firmware","endpoint":"https://s3.example","public_url":"http://cdn.example"}}}`, `firmware.bucket.public_url: it is not https`},
		{"public and signed", `{"firmware":{"bucket":{"bucket":"firmware","endpoint":"https://s3.example","download":"presigned","public_url":"https://cdn.example"}}}`, `exclude each other`},
		{"public address too long", `{"firmware":{"bucket":{"bucket":"firmware","endpoint":"https://s3.example","public_url":"https://cdn.example/` + strings.Repeat("x", 320) + `"}}}`, `longer than the 400 bytes`},
		{"negative bucket cache", `{"firmware":{"bucket":{"bucket":"firmware","endpoint":"https://s3.example","cache_bytes":-1}}}`, `firmware.bucket.cache_bytes is negative`},
		{"profiles for all", `{"debug":{"listen":":6060"}}`, `debug.listen: ":6060" would show the memory of the server to the network`},
		{"profiles on an address", `{"debug":{"listen":"192.0.2.1:6060"}}`, `use a loopback address`},
		{"log in another format", `{"log":{"format":"xml"}}`, `log.format: "xml" is neither text nor json`},
		{"log of another level", `{"log":{"level":"trace"}}`, `log.level: "trace" is none of`},
		{"negative cache", `{"https":{"cache_bytes":-1}}`, `https.cache_bytes is negative`},
	} {
		_, err := load(t, c.text)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v\nwant %s", c.name, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "u:p@") {
			t.Errorf("%s: the error shows a password: %v", c.name, err)
		}
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none.json")); err == nil {
		t.Error("a file that is not there was read")
	}
	if _, err := load(t, strings.Repeat(" ", maxConfigFile+1)); err == nil {
		t.Error("a file without bound was read")
	}
}

func TestConfigFileOverDefaults(t *testing.T) {
	c, err := load(t, `{}`)
	if err != nil || !reflect.DeepEqual(c, Default()) {
		t.Errorf("empty object: %+v, %v", c, err)
	}
	if c.HTTPS.Listen != ":8443" || c.MQTT.TLSListen != ":8883" || c.MQTT.Listen != "127.0.0.1:1883" || c.DataDir != "./bmsota-data" || c.MQTT.Prefix != "bms/ota" {
		t.Errorf("defaults are %+v", c)
	}
	c, err = load(t, `{"data_dir":"d","https":{"listen":"off","plain_listen":"127.0.0.1:8080"},"mqtt":{"listen":"off","prefix":"a/b"},
		"tls":null,"fleet":{"silence":"45m","expiry":"14d"},"public_url":"https://ota.example.org/"}`)
	if err != nil {
		t.Fatal(err)
	}
	if time.Duration(c.Fleet.Silence) != 45*time.Minute || time.Duration(c.Fleet.Expiry) != 14*24*time.Hour || c.MQTT.TLSListen != ":8883" || c.PublicURL != "https://ota.example.org" {
		t.Errorf("%+v", c)
	}
}

// What the program writes as JSON it also reads, and every field has its key.
func TestConfigReadsBackAndEveryFieldHasAKey(t *testing.T) {
	c := Default()
	c.Fleet.Silence = Duration(90 * time.Minute)
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	back, err := load(t, string(b))
	if err != nil || !reflect.DeepEqual(back, c) {
		t.Errorf("%+v\nwant %+v\n%v", back, c, err)
	}
	for _, key := range allKeys(reflect.TypeFor[Config](), "") {
		if strings.HasSuffix(key, ".") || key == "" || key != strings.ToLower(key) {
			t.Errorf("key %q", key)
		}
	}
}

func FuzzConfigNeverPanics(f *testing.F) {
	f.Add([]byte(`{"https":{"listen":":1"},"tls":{"acme":{"hosts":[]}}}`))
	f.Add([]byte(`{"fleet":{"silence":"1h"},"mqtt":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var c Config
		if decodeConfig(b, &c) == nil {
			_ = c.Check()
		}
	})
}
