package protocol_test

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math"
	"net/url"
	"strings"
	"testing"
	"time"

	"bmsota/manifest"
	"bmsota/protocol"

	"pgregory.net/rapid"
)

func TestStatusBeginsWithTheNineFieldsInOrder(t *testing.T) {
	b, err := protocol.Status{Phase: protocol.PhaseIdle, DeviceID: "bms-1"}.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"timestamp_us":0,"uptime_sec":0,"status":0,"progress_pct":0,"message":"","current_version":"",` +
		`"available_version":"","rollback_pending":false,"free_heap":0,`
	if !strings.HasPrefix(string(b), want) {
		t.Errorf("got %s", b)
	}
}

func TestHostileStatusesAreRefused(t *testing.T) {
	for name, text := range map[string]string{
		"empty":               "",
		"array":               "[]",
		"code 7":              `{"status":7}`,
		"code as text":        `{"status":"2"}`,
		"negative code":       `{"status":-1}`,
		"progress 101":        `{"status":2,"progress_pct":101}`,
		"unknown phase":       `{"status":2,"phase":"flying"}`,
		"negative bytes":      `{"status":2,"bytes_done":-1}`,
		"number overflow":     `{"status":0,"free_heap":1e400}`,
		"digest upper case":   `{"status":0,"image_sha256":"` + strings.Repeat("A", 64) + `"}`,
		"digest short":        `{"status":0,"image_sha256":"00"}`,
		"id with wildcard":    `{"status":0,"device_id":"a+b"}`,
		"key twice":           `{"status":0,"status":1}`,
		"control character":   `{"status":0,"message":"a\u0000b"}`,
		"escape sequence":     `{"status":0,"message":"a\u001b[2Jb"}`,
		"invalid UTF-8":       "{\"status\":0,\"message\":\"\xff\"}",
		"byte order mark":     "\ufeff{\"status\":0}",
		"deep nesting":        `{"status":0,"x":` + strings.Repeat("[", 2000) + strings.Repeat("]", 1999) + `}`,
		"message of 513":      `{"status":0,"message":"` + strings.Repeat("a", 513) + `"}`,
		"larger than any":     `{"status":0,"message":"` + strings.Repeat("a", protocol.MaxStatus) + `"}`,
		"battery not object":  `{"status":0,"battery":7}`,
		"no temperature":      `{"status":0,"battery":{"temp_min_c":-100.1}}`,
		"molten":              `{"status":0,"battery":{"temp_max_c":200.1}}`,
		"hotter than numbers": `{"status":0,"battery":{"temp_max_c":1e400}}`,
		"temperature as text": `{"status":0,"battery":{"temp_max_c":"warm"}}`,
		"battery soc as text": `{"status":0,"battery":{"soc_pct":"full"}}`,
	} {
		if s, err := protocol.ParseStatus([]byte(text)); err == nil {
			t.Errorf("%s: read as %+v", name, s)
		}
	}
}

func TestSeedStatusGetsThePhaseOfItsCode(t *testing.T) {
	for code, want := range []protocol.Phase{"idle", "checking", "downloading", "verifying", "confirmed", "failed", "rolled_back"} {
		b, err := json.Marshal(map[string]int{"status": code})
		if err != nil {
			t.Fatal(err)
		}
		if s, err := protocol.ParseStatus(b); err != nil || s.Phase != want {
			t.Errorf("code %d: %s, %v", code, s.Phase, err)
		}
	}
}

func TestTopicsAreComparedLiterally(t *testing.T) {
	for topic, want := range map[string]struct {
		kind   protocol.Kind
		device string
	}{
		"bms/ota/command":           {protocol.KindCommand, ""},
		"bms/ota/command/bms-1":     {protocol.KindCommand, "bms-1"},
		"bms/ota/status":            {protocol.KindStatus, ""},
		"bms/ota/status/bms-1":      {protocol.KindStatus, "bms-1"},
		"bms/ota/comman":            {},
		"bms/ota/command2":          {},
		"bms/ota/command/":          {},
		"bms/ota/command/+":         {},
		"bms/ota/command/#":         {},
		"bms/ota/command/a/b":       {},
		"bms/ota/":                  {},
		"bms/ota":                   {},
		"":                          {},
		"$SYS/bms/ota/command":      {},
		"BMS/OTA/command":           {},
		"bms/ota/status/bms-1\x00":  {},
		"bms/ota/status/bms\u00e91": {},
	} {
		kind, device := protocol.Topics{}.Parse(topic)
		if kind != want.kind || device != want.device {
			t.Errorf("%q: %v %q", topic, kind, device)
		}
	}
}

func TestDeviceIDs(t *testing.T) {
	if got := protocol.DeviceID([6]byte{0x24, 0x6f, 0x28, 0xA1, 0xB2, 0xC3}); got != "bms-a1b2c3" {
		t.Errorf("got %s", got)
	}
	for _, bad := range []string{"", "-a", ".a", "a/b", "a+b", "a#", "$a", "a b", "a\x00", "bms-é", strings.Repeat("a", 65)} {
		if protocol.CheckDeviceID(bad) == nil {
			t.Errorf("%q is taken as an id", bad)
		}
	}
}

// The strcmp of the first firmware took any other version for an update.
func TestVersionOrderIsAStrictOrder(t *testing.T) {
	version := rapid.Custom(func(t *rapid.T) string {
		return rapid.StringMatching(`(0|[1-9][0-9]?)\.(0|[1-9])\.(0|[1-9])(-(alpha|rc\.[0-9]))?`).Draw(t, "v")
	})
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := version.Draw(t, "a"), version.Draw(t, "b"), version.Draw(t, "c")
		if protocol.Newer(a, a) || protocol.Newer(a, b) && protocol.Newer(b, a) {
			t.Fatalf("%s and %s are both newer", a, b)
		}
		if protocol.Newer(a, b) && protocol.Newer(b, c) && !protocol.Newer(a, c) {
			t.Fatalf("%s > %s > %s does not carry", a, b, c)
		}
		if protocol.Newer(a, b) != protocol.Older(b, a) {
			t.Fatalf("Newer(%s, %s) and Older disagree", a, b)
		}
	})
}

func TestGenericVersionsNameNoRelease(t *testing.T) {
	for v, want := range map[string]bool{"": true, "1": true, "esp-idf: v4.4.6": true, "1.0.0": false, "v1": false, "esp-idf": false} {
		if got := protocol.GenericVersion(v); got != want {
			t.Errorf("GenericVersion(%q) = %v, want %v", v, got, want)
		}
	}
}

func TestVersionFileHasRoomForTheLargestImage(t *testing.T) {
	key, err := manifest.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	blocks := manifest.MaxSize / manifest.BlockSize
	m := manifest.Manifest{Format: 1, Project: strings.Repeat("p", 32), Chip: "esp32s3", Version: strings.Repeat("1", 64), MinVersion: strings.Repeat("1", 64),
		Size: manifest.MaxSize, SHA256: strings.Repeat("ab", 32), Blocks: base64.RawURLEncoding.EncodeToString(make([]byte, blocks*32)), BuildDate: strings.Repeat("d", 64)}
	jws, err := manifest.Sign(m, key)
	if err != nil {
		t.Fatal(err)
	}
	b, err := protocol.VersionFile{Version: m.Version, BuildDate: m.BuildDate, Description: strings.Repeat("d", 2048), MinVersion: m.MinVersion,
		Project: m.Project, Chip: m.Chip, Size: m.Size, SHA256: m.SHA256, URL: m.SHA256 + ".bin", Manifest: jws}.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := protocol.ParseVersionFile(b); err != nil {
		t.Error(err)
	}
}

func TestAStepOnTheWayLiesStrictlyBetween(t *testing.T) {
	for _, c := range []struct {
		wanted, offered, running string
		want                     bool
	}{
		{"3.0.0", "2.0.0", "1.0.0", true},
		{"3.0.0", "3.0.0", "1.0.0", false},
		{"3.0.0", "1.0.0", "1.0.0", false},
		{"3.0.0", "4.0.0", "1.0.0", false},
		{"1.0.0", "2.0.0", "3.0.0", false},
		{"3.0.0", "2.0.0", "unknown", true},
		{"nightly", "2.0.0", "1.0.0", false},
	} {
		if got := protocol.OnTheWay(c.wanted, c.offered, c.running); got != c.want {
			t.Errorf("OnTheWay(%q, %q, %q) = %v", c.wanted, c.offered, c.running, got)
		}
	}
}

func TestRefusalsComeInTheDocumentedOrder(t *testing.T) {
	device := protocol.Device{Chip: "esp32", Project: "bms", Version: "1.5.0", ImageSHA256: "aa", SlotSize: 1000, SecureVersion: 2,
		Quarantined: func(sum string) bool { return sum == "bad" }}
	good := protocol.Release{Chip: "esp32", Project: "bms", Version: "1.6.0", SHA256: "bb", Size: 1000, SecureVersion: 2}
	with := func(change func(*protocol.Release)) protocol.Release {
		r := good
		change(&r)
		return r
	}
	for _, c := range []struct {
		name    string
		release protocol.Release
		force   bool
		want    protocol.Reason
	}{
		{"good", good, false, ""},
		{"already running", with(func(r *protocol.Release) { r.SHA256, r.Chip = "aa", "esp32c3" }), true, protocol.ReasonUpToDate},
		{"chip", with(func(r *protocol.Release) { r.Chip, r.Project = "esp32c3", "x" }), true, protocol.ReasonWrongChip},
		{"project", with(func(r *protocol.Release) { r.Project, r.Size = "x", 2000 }), true, protocol.ReasonWrongProject},
		{"size", with(func(r *protocol.Release) { r.Size, r.SecureVersion = 1001, 0 }), true, protocol.ReasonTooBig},
		{"floor", with(func(r *protocol.Release) { r.SecureVersion, r.SHA256 = 1, "bad" }), true, protocol.ReasonSecurityFloor},
		{"quarantine", with(func(r *protocol.Release) { r.SHA256, r.MinVersion = "bad", "9.0.0" }), true, protocol.ReasonQuarantined},
		{"intermediate", with(func(r *protocol.Release) { r.MinVersion, r.Version = "1.5.1", "1.0.0" }), true, protocol.ReasonNeedsIntermediate},
		{"intermediate met", with(func(r *protocol.Release) { r.MinVersion = "1.5.0" }), false, ""},
		{"downgrade", with(func(r *protocol.Release) { r.Version = "1.4.9" }), false, protocol.ReasonDowngrade},
		{"downgrade forced", with(func(r *protocol.Release) { r.Version = "1.4.9" }), true, ""},
		{"same version, other bytes", with(func(r *protocol.Release) { r.Version = "1.5.0" }), false, protocol.ReasonSameVersion},
		{"same version, forced", with(func(r *protocol.Release) { r.Version = "1.5.0" }), true, ""},
		{"same version, digest unknown", protocol.Release{Version: "1.5.0", SecureVersion: 2}, false, protocol.ReasonUpToDate},
		{"original tool's version.json", protocol.Release{Version: "1.6.0", SecureVersion: 2}, false, ""},
	} {
		got := protocol.Refuse(device, c.release, c.force)
		if got == nil && c.want != "" || got != nil && got.Reason != c.want {
			t.Errorf("%s: got %v, want %q", c.name, got, c.want)
		}
	}
}

// A device's status is folded once, however often it comes: that takes readings that compare by what they say.
func TestReadingsAreTheSameWhenTheySayTheSame(t *testing.T) {
	read := func(text string) protocol.Battery {
		s, err := protocol.ParseStatus([]byte(`{"status":0,"battery":` + text + `}`))
		if err != nil {
			t.Fatal(err)
		}
		return *s.Battery
	}
	texts := []string{`{}`, `{"soc_pct":1}`, `{"pack_current_a":1}`, `{"charging":true}`, `{"temp_min_c":0}`, `{"temp_max_c":0}`, `{"temp_min_c":1}`, `{"temp_max_c":1}`}
	for i, a := range texts {
		for j, b := range texts {
			if got := read(a).Equal(read(b)); got != (i == j) {
				t.Errorf("%s and %s: %v", a, b, got)
			}
		}
		if clone := read(a).Clone(); !clone.Equal(read(a)) {
			t.Errorf("the copy of %s is %+v", a, clone)
		}
	}
}

func TestGates(t *testing.T) {
	at := func(h, m int) time.Time { return time.Date(2026, 1, 2, h, m, 0, 0, time.UTC) }
	soc := func(v float64) *protocol.Battery { return &protocol.Battery{SOCPct: v} }
	cells := func(low, high float64) *protocol.Battery { return &protocol.Battery{TempMinC: &low, TempMaxC: &high} }
	for _, c := range []struct {
		name    string
		gate    protocol.Gate
		battery *protocol.Battery
		now     time.Time
		want    protocol.Reason
	}{
		{"open", protocol.Gate{}, nil, at(12, 0), ""},
		{"no reading", protocol.Gate{MinSOCPct: 20}, nil, at(12, 0), protocol.ReasonNoReading},
		{"low", protocol.Gate{MinSOCPct: 20}, soc(19.9), at(12, 0), protocol.ReasonLowSOC},
		{"exactly enough", protocol.Gate{MinSOCPct: 20}, soc(20), at(12, 0), ""},
		{"not a number", protocol.Gate{MinSOCPct: 20}, soc(math.NaN()), at(12, 0), protocol.ReasonLowSOC},
		{"charging", protocol.Gate{NotWhileCharging: true}, &protocol.Battery{Charging: true}, at(12, 0), protocol.ReasonCharging},
		{"current in", protocol.Gate{MaxCurrentA: 5}, &protocol.Battery{PackCurrentA: 5.1}, at(12, 0), protocol.ReasonHighCurrent},
		{"current out", protocol.Gate{MaxCurrentA: 5}, &protocol.Battery{PackCurrentA: -5.1}, at(12, 0), protocol.ReasonHighCurrent},
		{"current no number", protocol.Gate{MaxCurrentA: 5}, &protocol.Battery{PackCurrentA: math.NaN()}, at(12, 0), protocol.ReasonHighCurrent},
		{"current as much as may be", protocol.Gate{MaxCurrentA: 5}, &protocol.Battery{PackCurrentA: -5}, at(12, 0), ""},
		{"current not read", protocol.Gate{MaxCurrentA: 5}, nil, at(12, 0), protocol.ReasonNoReading},
		{"frost", protocol.Gate{MinTempC: new(0.0)}, cells(-0.1, 20), at(12, 0), protocol.ReasonTooCold},
		{"no frost", protocol.Gate{MinTempC: new(0.0)}, cells(0, 80), at(12, 0), ""},
		{"hot", protocol.Gate{MinTempC: new(0.0), MaxTempC: new(45.0)}, cells(20, 45.1), at(12, 0), protocol.ReasonTooHot},
		{"warm", protocol.Gate{MinTempC: new(0.0), MaxTempC: new(45.0)}, cells(0, 45), at(12, 0), ""},
		{"cold is said before hot", protocol.Gate{MinTempC: new(0.0), MaxTempC: new(45.0)}, cells(-1, 46), at(12, 0), protocol.ReasonTooCold},
		{"temperature not read", protocol.Gate{MaxTempC: new(45.0)}, nil, at(12, 0), protocol.ReasonNoReading},
		{"temperature not measured", protocol.Gate{MaxTempC: new(45.0)}, soc(80), at(12, 0), protocol.ReasonNoReading},
		{"temperature not measured, nor asked for", protocol.Gate{MinSOCPct: 20}, soc(80), at(12, 0), ""},
		{"temperature no number", protocol.Gate{MinTempC: new(0.0)}, cells(math.NaN(), 20), at(12, 0), protocol.ReasonNoReading},
		{"sensor not there", protocol.Gate{MaxTempC: new(45.0)}, cells(-273, -273), at(12, 0), protocol.ReasonNoReading},
		{"window", protocol.Gate{Window: "02:00-04:30"}, nil, at(4, 30), protocol.ReasonOutsideWindow},
		{"in window", protocol.Gate{Window: "02:00-04:30"}, nil, at(4, 29), ""},
		{"over midnight, late", protocol.Gate{Window: "22:00-06:00"}, nil, at(23, 0), ""},
		{"over midnight, early", protocol.Gate{Window: "22:00-06:00"}, nil, at(5, 59), ""},
		{"over midnight, noon", protocol.Gate{Window: "22:00-06:00"}, nil, at(12, 0), protocol.ReasonOutsideWindow},
		{"unreadable window stays shut", protocol.Gate{Window: "night"}, nil, at(12, 0), protocol.ReasonOutsideWindow},
	} {
		if got := c.gate.Blocked(c.battery, c.now); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestConfigsOutOfRangeAreRefused(t *testing.T) {
	for name, text := range map[string]string{
		"empty":                    "",
		"not JSON":                 "{",
		"no url":                   `{}`,
		"url without host":         `{"server_url":"https:///x"}`,
		"other scheme":             `{"server_url":"ftp://h/x"}`,
		"plain http, not asked":    `{"server_url":"http://h/x"}`,
		"timeout below zero":       `{"server_url":"https://h/x","timeout_ms":-1}`,
		"timeout as text":          `{"server_url":"https://h/x","timeout_ms":"60000"}`,
		"health out of range":      `{"server_url":"https://h/x","health":{"deadline_s":-5}}`,
		"health not an object":     `{"server_url":"https://h/x","health":5}`,
		"window never opens":       `{"server_url":"https://h/x","gate":{"window":"02:00-02:00"}}`,
		"soc above 100":            `{"server_url":"https://h/x","gate":{"min_soc_pct":101}}`,
		"current below zero":       `{"server_url":"https://h/x","gate":{"max_current_a":-1}}`,
		"current beyond any":       `{"server_url":"https://h/x","gate":{"max_current_a":10001}}`,
		"below absolute zero":      `{"server_url":"https://h/x","gate":{"min_temp_c":-300}}`,
		"hotter than any cell":     `{"server_url":"https://h/x","gate":{"max_temp_c":1e3}}`,
		"temperature as text":      `{"server_url":"https://h/x","gate":{"max_temp_c":"45"}}`,
		"no temperature between":   `{"server_url":"https://h/x","gate":{"min_temp_c":20,"max_temp_c":19.9}}`,
		"prefix with a wildcard":   `{"server_url":"https://h/x","topic_prefix":"a/#"}`,
		"device id with a slash":   `{"server_url":"https://h/x","device_id":"a/b"}`,
		"larger than any":          `{"server_url":"https://h/x","cert_pem":"` + strings.Repeat("a", protocol.MaxConfig) + `"}`,
		"url with a user name":     `{"server_url":"https://u:p@h/x"}`,
		"url with a fragment":      `{"server_url":"https://h/x#y"}`,
		"url with a space":         `{"server_url":"https://h/a b"}`,
		"url not ASCII":            `{"server_url":"https://h/ä"}`,
		"url with half an escape":  `{"server_url":"https://h/%4"}`,
		"url in capitals":          `{"server_url":"HTTPS://h/x"}`,
		"url with an empty port":   `{"server_url":"https://h:/x"}`,
		"url with a port too big":  `{"server_url":"https://h:65536/x"}`,
		"url with a bad bracket":   `{"server_url":"https://[h]/x"}`,
		"url with an IPv6 zone":    `{"server_url":"https://[fe80::1%25eth0]/x"}`,
		"older form, a key twice":  "url=https://h/x\nserver_url=https://h/y",
		"older form, not UTF-8":    "url=https://h/x\nversion=\xff",
		"older form, broken line":  "url=https://h/x\nnonsense",
		"older form, number wrong": "url=https://h/x\ntimeout_ms=soon",
	} {
		if c, err := protocol.ParseOTAConfig([]byte(text)); err == nil {
			t.Errorf("%s: read as %+v", name, c)
		}
	}
	for name, text := range map[string]string{
		"no host":          `{}`,
		"scheme in host":   `{"broker_host":"mqtt://h"}`,
		"port too large":   `{"broker_host":"h","broker_port":65536}`,
		"qos 3":            `{"broker_host":"h","qos":3}`,
		"older, no broker": "username=a",
		"older, bad url":   "broker=:::",
		"older, bad port":  "broker=mqtt://h:99999",
		"older, port 0":    "broker=mqtt://h:0",
		"older, scheme":    "broker=ws://h",
		"older, user name": "broker=mqtt://u:p@h",
		"older, path":      "broker=mqtt://h/x",
		"older, two hosts": "broker=mqtt://h\nbroker_host=g",
		"older, TLS twice": "broker=mqtts://h\ntls=false",
	} {
		if c, err := protocol.ParseMQTTConfig([]byte(text)); err == nil {
			t.Errorf("%s: read as %+v", name, c)
		}
	}
	if c, err := protocol.ParseMQTTConfig([]byte(`{"broker_host":"h","tls":true}`)); err != nil || c.BrokerPort != 8883 {
		t.Errorf("default port with TLS: %+v, %v", c, err)
	}
}

func TestAddressesThatDevicesTakeAreAddressesForNetURL(t *testing.T) {
	for _, text := range []string{"https://h", "https://h?x", "https://a-b_c.d:8443/x/%2f?y=%20", "http://1.2.3.4/", "https://[fd00::1]:443/x",
		"https://h/{}|^`\"<>\\"} {
		quoted, err := json.Marshal(text)
		if err != nil {
			t.Fatal(err)
		}
		c, err := protocol.ParseOTAConfig([]byte(`{"skip_cert_verification":true,"server_url":` + string(quoted) + `}`))
		u, err2 := url.Parse(c.ServerURL)
		if err != nil || err2 != nil || u.Hostname() == "" {
			t.Errorf("%s: %v, %v", text, err, err2)
		}
	}
	for text, want := range map[string]protocol.MQTTConfig{
		"broker=mqtt://h":              {BrokerHost: "h", BrokerPort: 1883, QoS: 1},
		"broker=mqtts://h/":            {BrokerHost: "h", BrokerPort: 8883, QoS: 1, TLS: true},
		"broker=tcp://h:1\ntls=true":   {BrokerHost: "h", BrokerPort: 1, QoS: 1, TLS: true},
		"broker=ssl://[::1]:2\nqos=+0": {BrokerHost: "::1", BrokerPort: 2, TLS: true},
	} {
		if got, err := protocol.ParseMQTTConfig([]byte(text)); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

func TestExpiryIsAnRFC3339Time(t *testing.T) {
	for text, ok := range map[string]bool{
		"2026-12-01T00:00:00Z": true, "2026-12-01T00:00:00.123456789012Z": true, "2024-02-29T23:59:59-23:59": true,
		"2026-12-01T0:00:00Z": false, "2026-12-01T00:00:00,5Z": false, "2026-12-01T00:00:00+24:00": false,
		"2026-12-01T00:00:00+01:60": false, "2026-12-01t00:00:00Z": false, "2026-12-01T00:00:00z": false,
		"2025-02-29T00:00:00Z": false, "2026-12-01T24:00:00Z": false, "2026-12-01T00:00:60Z": false, "2026-12-01 00:00:00Z": false,
		"2026-12-01T00:00:00": false, "2026-12-01T00:00:00.Z": false,
	} {
		if _, err := protocol.ParseCommand([]byte(`{"action":"update","expires_at":"` + text + `"}`)); (err == nil) != ok {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestOneOrderComeTwiceIsTheSame(t *testing.T) {
	update := protocol.Command{Action: protocol.ActionUpdate, ID: "1", Version: "1.0.0"}
	for name, c := range map[string]struct {
		other protocol.Command
		same  bool
	}{
		"itself":              {update, true},
		"the id":              {protocol.Command{Action: protocol.ActionUpdate, ID: "1", Version: "2.0.0"}, true},
		"the wish":            {protocol.Command{Action: protocol.ActionUpdate, ID: "2", Version: "1.0.0"}, true},
		"another version":     {protocol.Command{Action: protocol.ActionUpdate, ID: "2", Version: "2.0.0"}, false},
		"with force":          {protocol.Command{Action: protocol.ActionUpdate, Version: "1.0.0", Force: true}, false},
		"another action":      {protocol.Command{Action: protocol.ActionCheck, ID: "1", Version: "1.0.0"}, false},
		"another, without id": {protocol.Command{Action: protocol.ActionUpdate}, false},
	} {
		if update.Same(c.other) != c.same {
			t.Errorf("%s: %v", name, !c.same)
		}
	}
	if !protocol.SameVersion("v1.0.0", "1.0.0") || protocol.SameVersion("1.0.0", "1.0.0+1") {
		t.Error("versions are compared by more or less than a leading v")
	}
}

func TestCommandLargerThanTheBufferIsRefusedBothWays(t *testing.T) {
	var r *protocol.Refusal
	big := `{"action":"update","x":"` + strings.Repeat("a", protocol.MaxCommand) + `"}`
	if _, err := protocol.ParseCommand([]byte(big)); !errors.As(err, &r) || r.Reason != protocol.ReasonOversize {
		t.Errorf("got %v", err)
	}
	if _, err := (protocol.Command{Action: "update", ID: strings.Repeat("a", 600)}).Append(nil); err == nil {
		t.Error("an oversize command was written")
	}
}

func TestOnlyABootMayLeaveADeadEnd(t *testing.T) {
	for _, from := range protocol.Phases() {
		for _, to := range []protocol.Phase{protocol.PhaseIdle, protocol.PhaseTrial, protocol.PhaseRolledBack} {
			if !protocol.May(from, to, false) {
				t.Errorf("a device that was %s may not start as %s", from, to)
			}
		}
		if from != protocol.PhaseConfirmed && protocol.May(from, protocol.PhaseConfirmed, false) {
			t.Errorf("a boot begins as confirmed after %s", from)
		}
	}
}

func FuzzParseCommand(f *testing.F) {
	f.Add([]byte(`{"action":"update","force":true,"id":"a","version":"1.0.0","expires_at":"2026-01-01T00:00:00Z"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := protocol.ParseCommand(b)
		if err != nil {
			var r *protocol.Refusal
			if !errors.As(err, &r) {
				t.Fatalf("no reason: %v", err)
			}
			return
		}
		out, err := c.Append(nil)
		if err != nil {
			return // the canonical form may be longer than what came in
		}
		back, err := protocol.ParseCommand(out)
		again, err2 := back.Append(nil)
		if err != nil || err2 != nil || !bytes.Equal(out, again) {
			t.Fatalf("%s became %s (%v, %v)", out, again, err, err2)
		}
	})
}

func FuzzParseStatus(f *testing.F) {
	f.Add([]byte(`{"timestamp_us":1,"uptime_sec":2,"status":2,"progress_pct":45,"message":"m","current_version":"1.0.0","free_heap":3,"battery":{"soc_pct":5}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := protocol.ParseStatus(b)
		if err != nil {
			return
		}
		if _, err := s.Append(nil); err == nil {
			return
		} else if len(b) < 512 {
			t.Fatalf("a small status cannot be written again: %v", err)
		}
	})
}

func FuzzParseVersionFile(f *testing.F) {
	f.Add([]byte(`{"version":"1.1.0","min_version":"1.0.0","force_update":false,"size":5}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := protocol.ParseVersionFile(b)
		if err != nil {
			return
		}
		out, err := v.Append(nil)
		if err != nil {
			return // indentation may take it over the limit
		}
		if back, err := protocol.ParseVersionFile(out); err != nil || back != v {
			t.Fatalf("%+v became %+v (%v)", v, back, err)
		}
	})
}

func FuzzParseConfigs(f *testing.F) {
	f.Add([]byte(`{"server_url":"https://h/x","health":{"deadline_s":5}}`))
	f.Add([]byte("broker=mqtt://h:1\nurl=https://h/x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := protocol.ParseOTAConfig(b); err == nil {
			if err := c.Check(); err != nil {
				t.Fatal(err)
			}
		}
		if c, err := protocol.ParseMQTTConfig(b); err == nil {
			if err := c.Check(); err != nil {
				t.Fatal(err)
			}
		}
	})
}
