package hosttest_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
)

// field is a key of a JSON document with values that are right for it, as JSON.
type field struct {
	key   string
	value []string
}

// document is one kind of JSON document: the fields it needs, and those that it may have.
type document struct {
	needed, other []field
}

func textsOf(values ...string) []string {
	for i, v := range values {
		values[i] = `"` + v + `"`
	}
	return values
}

var (
	digests = textsOf(strings.Repeat("0a", 32), strings.Repeat("f", 64), strings.Repeat("F", 64), strings.Repeat("0", 63))
	flags   = []string{"true", "false", "null"}
	counts  = []string{"0", "1", "60000", "-1", "-0", "10000", "10001", "86400", "86401", "3600000", "3600001", "9223372036854775807", "9223372036854775808", "4294967295", "4294967296"}
	semvers = textsOf("1.0.0", "v2.0.0-rc.1", "1.2", "", "01.0.0", strings.Repeat("1", 64), strings.Repeat("1", 65))
	ids     = textsOf("bms-a1b2c3", "", "A:b_c-d.e", "-a", "a/b", strings.Repeat("x", 64), strings.Repeat("x", 65), `ä`, `a b`)

	commandDocument = document{
		needed: []field{{"action", textsOf("check", "update", "rollback", "status", "update", "check", "Update", "reboot", "")}},
		other: []field{
			{"force", flags}, {"id", ids}, {"version", semvers},
			{"expires_at", textsOf("2026-12-01T00:00:00Z", "2024-02-29T23:59:59.5+05:30", "2023-02-29T00:00:00Z", "0001-01-01T00:00:00Z",
				"1969-12-31T23:59:59.999999999Z", "2026-12-01T00:00:00+24:00", "2026-12-01T0:00:00Z", "2026-12-01T00:00:00,5Z",
				"2026-12-01t00:00:00z", "9999-12-31T23:59:59-23:59", "2000-02-29T00:00:00-00:00", "1900-02-29T00:00:00Z", "tomorrow", "",
				"2026-12-01T00:00:00.12345678901234567890Z", "2026-12-01T00:00:60Z", "2026-13-01T00:00:00Z", "2026-12-01T00:00:00")},
		},
	}
	versionDocument = document{
		needed: []field{{"version", semvers}},
		other: []field{
			{"build_date", textsOf("2024-01-15T10:30:00Z", "", "whenever")}, {"description", textsOf("Bug fixes", `a\nb\tc`, `\u0041\u00e4\ud83d\ude00`, `\ud800`)},
			{"min_version", semvers}, {"force_update", flags}, {"project", textsOf("esp32-bms-monitor", strings.Repeat("p", 32), strings.Repeat("p", 33))},
			{"chip", textsOf("esp32", "esp32s3", strings.Repeat("c", 33))}, {"size", counts}, {"sha256", digests},
			{"url", textsOf("a.bin", "https://h/x", "a b", `a\tb`, strings.Repeat("u", 400), strings.Repeat("u", 401))},
			{"secure_version", counts}, {"manifest", textsOf("a.b.c", "")},
			{"cosignatures", textsOf("", "a.b", strings.Repeat("c", 260), strings.Repeat("c", 261))},
			{"offer", textsOf("", "a.b.c", strings.Repeat("o", 1536), strings.Repeat("o", 1537))},
		},
	}
	otaDocument = document{
		needed: []field{{"server_url", textsOf("https://h/x", "https://ota.example.net:8443/firmware/app.bin", "https://[fd00::1]:8443/", "https://h?x=y",
			"http://h/x", "https://h", "https://u@h/x", "https://h/x#y", "https://h/%4", "https://h/%4f", "https:///x", "ftp://h", "https://h:0/",
			"https://h:65536/", "https://h:/", "https://h_-.:1", "https://[::1", "https://[1:2:3:4:5:6:7:8]", "https://[1:2:3:4:5:6:7::]", "https://[1:2:3:4:5:6:7::8]", "https://[::1:2:3:4:5:6:7:8]",
			"https://[::ffff:1.2.3.4]/", "https://[::]/", "https://[1::2::3]/", "https://[12345::]/", "HTTPS://h/", `https://h/\u00e4`, "https://h:80a/", "https://[::1]x/",
			"https://"+strings.Repeat("h", 253), "https://"+strings.Repeat("h", 254), "")}},
		other: []field{
			{"cert_pem", textsOf("", `-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n`)}, {"skip_cert_verification", flags},
			{"timeout_ms", counts}, {"current_version", semvers}, {"auto_rollback_enabled", flags}, {"device_id", ids},
			{"trusted_key_pem", textsOf("", `-----BEGIN PUBLIC KEY-----\n`)}, {"server_key_pem", textsOf("", `-----BEGIN PUBLIC KEY-----\n`)}, {"topic_prefix", textsOf("bms/ota", "a", "/a", "a/", "a//b", "a/+", "$a", `a\tb`, strings.Repeat("t", 128), strings.Repeat("t", 129))},
			{"own_topic_only", flags}, {"trusted_threshold", []string{"0", "1", "2", "4", "5", "-1", `"2"`, "1.5", "null"}},
			{"mirror_url", textsOf("", "http://h/x", "https://h/x", "ftp://h/x", "http://h/%4", "http://u@h/x", "h", "http://h/"+strings.Repeat("x", 391), "http://h/"+strings.Repeat("x", 392))},
			{"health", []string{`{}`, `{"deadline_s":300,"bms_frames":3,"min_heap":16384}`, `{"deadline_s":86400}`, `{"deadline_s":86401}`, `{"bms_frames":10001}`,
				`{"min_heap":-1}`, `{"bms_frames":3,"bms_frames":3}`, `{"x":{"a":1,"a":1}}`, `null`, `[]`, `{"deadline_s":1e3}`, `{"min_heap":null}`}},
			{"gate", []string{`{}`, `{"min_soc_pct":30}`, `{"min_soc_pct":100.0000001}`, `{"min_soc_pct":1e2}`, `{"min_soc_pct":-0}`, `{"min_soc_pct":-0.1}`, `{"min_soc_pct":1e400}`,
				`{"min_soc_pct":1e-400}`, `{"min_soc_pct":33.333333333333336}`, `{"min_soc_pct":0.1000000000000000055511151231257827}`, `{"min_soc_pct":4.9e-324}`,
				`{"window":"22:00-06:00"}`, `{"window":"9:30-10:00"}`, `{"window":"24:00-01:00"}`, `{"window":"02:00-02:00"}`, `{"window":"02:60-03:00"}`, `{"window":"02:00 03:00"}`,
				`{"window":"1:1-2:2"}`, `{"window":"23:59-00:00"}`, `{"not_while_charging":true,"min_soc_pct":"5"}`, `{"not_while_charging":true}`,
				`{"max_current_a":20,"min_temp_c":0,"max_temp_c":45}`, `{"max_current_a":10000}`, `{"max_current_a":10000.001}`, `{"max_current_a":-1}`, `{"min_temp_c":-100}`, `{"min_temp_c":-100.5}`,
				`{"max_temp_c":200}`, `{"max_temp_c":200.5}`, `{"min_temp_c":10,"max_temp_c":10}`, `{"min_temp_c":10,"max_temp_c":9.99}`, `{"min_temp_c":-0}`, `{"min_temp_c":null,"max_temp_c":-5.5}`,
				`{"max_temp_c":1e400}`, `{"max_temp_c":"45"}`}},
		},
	}
	mqttDocument = document{
		needed: []field{{"broker_host", textsOf("h", "192.168.1.10", "a.example.net", "::1", "", "mqtt://h", "a b", "u@h", `h\u00e4`, strings.Repeat("h", 253), strings.Repeat("h", 254))}},
		other: []field{
			{"broker_port", []string{"0", "1883", "8883", "65535", "65536", "-1", "1883.0", `"1883"`, "null"}}, {"username", textsOf("device", "", strings.Repeat("u", 128), strings.Repeat("u", 129))},
			{"password", textsOf("secret", `\"quoted\"\\`, strings.Repeat("p", 256), strings.Repeat("p", 257))}, {"qos", []string{"0", "1", "2", "3", "-1", "null", "1e0"}},
			{"tls", flags}, {"ca_pem", textsOf("", `-----BEGIN CERTIFICATE-----\n`)},
			{"client_cert_pem", textsOf(`-----BEGIN CERTIFICATE-----\n`, "")}, {"client_key_pem", textsOf(`-----BEGIN PRIVATE KEY-----\n`, "")},
		},
	}
	payloadDocument = document{
		needed: []field{
			{"format", []string{"1", "1", "1", "1", "1", "1", "1", "2", "0", "null"}}, {"version", textsOf("1.0.0", "1.0.0", "2.0.0-rc.1", "1.0.0", strings.Repeat("1", 64), "")},
			{"size", []string{"1", "65536", "65536", "1", "65535", "65537", "0", "-1", "16777217"}},
			{"sha256", textsOf(strings.Repeat("0a", 32), strings.Repeat("0a", 32), strings.Repeat("0a", 32), strings.Repeat("0A", 32))},
			{"blocks", textsOf(strings.Repeat("A", 43), strings.Repeat("A", 43), strings.Repeat("A", 43), strings.Repeat("_-9w", 10)+"AAA", strings.Repeat("A", 42)+"B", strings.Repeat("A", 44),
				strings.Repeat("A", 86), strings.Repeat("A", 42)+`\n`, "")},
		},
		other: []field{
			{"project", textsOf("ota-demo", strings.Repeat("p", 32), strings.Repeat("p", 33))}, {"chip", textsOf("esp32", strings.Repeat("c", 33))}, {"min_version", semvers},
			{"secure_version", counts}, {"build_date", textsOf("2026-01-01T00:00:00Z", strings.Repeat("d", 65))}, {"force_update", flags},
			{"sequence", sequences},
		},
	}
	offerDocument = document{
		needed: []field{
			{"type", textsOf("offer", "offer", "offer", "offer", "offer", "offer", "offer", "manifest", "")}, {"device", ids},
			{"nonce", textsOf(strings.Repeat("n", 22), "abcdefghijklm-_9", strings.Repeat("A", 64), strings.Repeat("n", 22), strings.Repeat("0", 15), strings.Repeat("A", 65), "abcdefghijklm.+9", "abcdefghijklmn=9")},
			{"sha256", textsOf(strings.Repeat("0a", 32), strings.Repeat("0a", 32), strings.Repeat("0a", 32), strings.Repeat("0A", 32))},
			{"version", textsOf("1.0.0", "1.0.0", "2.0.0-rc.1", "1.0.0", strings.Repeat("1", 64), strings.Repeat("1", 65), "")},
			{"path", textsOf("/firmware/version", "/firmware/p/c/version.json", "/firmware/version", "/", "/"+strings.Repeat("p", 511), "/firmware/version", "/"+strings.Repeat("p", 512), "", "firmware")},
			{"valid_s", []string{"600", "600", "600", "1", "86400", "86401", "0", "-1", `"600"`}},
		},
		other: []field{{"sequence", sequences}, {"format", []string{"1"}}},
	}
	// sequences are those of manifests: milliseconds, and what an int64 holds.
	sequences = []string{"0", "1", "1795000000000", "9223372036854775807", "1", "2", "3", "4", "1795000000000", "9223372036854775808", "-1", "null"}
)

// hostile are values that no field wants, or that few do.
var hostile = []string{"null", "true", "0", "-0", "-1", "1.0", "1.5", "1e0", "1E+2", "1e400", "-1e400", "01", "1.", ".5", "+1", "-", "1e", "0x1", "NaN", "nul", "tru", `""`, `"a`, `"\u0000"`, `"\u007f"`,
	`"\ud83d\ude00"`, `"\ud800"`, `"\ude00\ud83d"`, `"\ud800\ud83d\ude00"`, `"\ud83d\u0041"`, `"\u00zz"`, `"\x"`, `"\/\b"`, "\"\x01\"", "\"\t\"", "\"\xff\"", "\"\xed\xa0\x80\"", "\"\xc0\x80\"",
	"\"\xf4\x90\x80\x80\"", "\"é☃😀\"", "\"\u2028\"", "{}", "[]", "[1,]", `{"a":1,}`, `{"a":1,"a":2}`, `[{"a":[null,true,{"b":"c"}]}]`, "{", "]", "", " ", strings.Repeat("[", 32) + strings.Repeat("]", 32),
	strings.Repeat("[", 33) + strings.Repeat("]", 33), strings.Repeat("9", 32), strings.Repeat("9", 33), "0." + strings.Repeat("3", 30), "0." + strings.Repeat("3", 31), `{"a":{"b":[[],{}]}}`}

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

// one chance in n.
func chance(r *rand.Rand, n int) bool { return r.IntN(n) == 0 }

// write makes a document with values that are mostly right, and sometimes something in its form that is not.
func (d document) write(r *rand.Rand) string {
	var members []string
	add := func(key, value string) {
		switch {
		case chance(r, 60):
			value = pick(r, hostile)
		case chance(r, 60) && len(key) > 0:
			key = fmt.Sprintf(`\u%04x`, key[0]) + key[1:]
		case chance(r, 120):
			key = strings.ToUpper(key)
		}
		blank := func() string { return pick(r, []string{"", "", "", " ", "\n", "\t\r "}) }
		members = append(members, blank()+`"`+key+`"`+blank()+":"+blank()+value+blank())
	}
	for _, f := range d.needed {
		value := f.value[0]
		if chance(r, 2) {
			value = pick(r, f.value)
		}
		if !chance(r, 40) {
			add(f.key, value)
		}
	}
	for _, f := range d.other {
		if chance(r, 3) {
			value := f.value[0]
			if chance(r, 2) {
				value = pick(r, f.value)
			}
			add(f.key, value)
		}
	}
	if chance(r, 6) {
		add("unknown", pick(r, hostile))
	}
	if chance(r, 60) {
		for i := range 50 + r.IntN(20) {
			add(fmt.Sprint("k", i), "0")
		}
	}
	if chance(r, 25) {
		add(pick(r, slices.Concat(d.needed, d.other)).key, "null")
	}
	r.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
	s := "{" + strings.Join(members, ",") + "}"
	if chance(r, 40) {
		s = pick(r, []string{"", " ", "[", "{}", "\xef\xbb\xbf"}) + s + pick(r, []string{"", "\n", "x", "{}", ",", "\x00"})
	}
	return s
}

// lines makes a configuration file in its older form.
func lines(r *rand.Rand) string {
	values := []string{"broker=mqtt://192.168.1.10:1883", "broker=mqtts://h/", "broker=ssl://[::1]:2", "broker=tcp://h:65536", "broker=ws://h", "broker=mqtt://u:p@h", "broker=mqtt://", "broker_host=h",
		"broker_port=1884", "broker_port=+1", "broker_port=00000000000000000000000000000001", "broker_port=0x1", "broker_port=", "qos=0", "qos=3", "qos=-0", "tls=true", "tls=1", "tls=yes", "username=device",
		"username = a=b ", "password=s \u00e4", "password=\x7f", "ca_pem=x", "# comment", "", "nonsense", "=x", "health=5", "gate=", "unknown=1",
		"url=https://h/x", "url=http://h/x", "server_url=https://h:1/y", "version=1.0.0", "current_version=2", "skip_cert_verification=true", "skip_cert_verification=0",
		"auto_rollback_enabled=false", "own_topic_only=1", "own_topic_only=", "timeout_ms=60000", "timeout_ms=9223372036854775808", "timeout_ms=-9223372036854775808", "device_id=bms-1", "device_id=a/b",
		"topic_prefix=a/b", "topic_prefix=#", "cert_pem=\xff", "min_heap=5", "tls\x00=1", "username=a\x00b"}
	out := []string{pick(r, values[:8]), pick(r, []string{"url=https://h/x", "server_url=https://h/y", "qos=1"})}
	for range r.IntN(5) {
		out = append(out, pick(r, values))
	}
	return pick(r, []string{"", "", "\n", "  "}) + strings.Join(out, pick(r, []string{"\n", "\r\n", " \n\t"})) + pick(r, []string{"", "\n", "\r\n\n "})
}

// bend changes a few bytes.
func bend(r *rand.Rand, s string) string {
	b := []byte(s)
	for range 1 + r.IntN(3) {
		if len(b) == 0 {
			return "x"
		}
		at := r.IntN(len(b))
		switch r.IntN(6) {
		case 0:
			b[at] ^= 1 << r.IntN(8)
		case 1:
			b[at] = pick(r, []byte("{}[]\":,\\u0123eE+-. \n\t\x00\x7f\x80\xff=#/@%-_AZ"))
		case 2:
			b = append(b[:at], b[at+1:]...)
		case 3:
			b = append(b[:at], append([]byte{pick(r, []byte("{}[]\":,\\u0e-. \n\x00\xc3=.A"))}, b[at:]...)...)
		case 4:
			b = b[:at]
		case 5:
			from := r.IntN(len(b))
			piece := append([]byte(nil), b[from:min(len(b), from+r.IntN(12))]...)
			b = append(b[:at], append(piece, b[at:]...)...)
		}
	}
	return string(b)
}
