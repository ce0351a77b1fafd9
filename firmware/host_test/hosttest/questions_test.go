package hosttest_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"

	"bmsota/protocol"
	"bmsota/strictjson"
)

type question struct {
	kind string
	args []string
}

// questions are those of the file of vectors: tables of what once mattered or may, and variations of them from a fixed seed.
func questions() []question {
	r := rand.New(rand.NewPCG(1, 2))
	out := versionQuestions(r)
	for _, c := range []struct {
		kind  string
		count int
		write func() string
		fixed []string
	}{
		{"command", 260, func() string { return commandDocument.write(r) }, fixedCommands()},
		{"version_file", 160, func() string { return versionDocument.write(r) }, []string{"", `{"version":"1.0.0"}`, `{"version":"1.0.0","description":"` + strings.Repeat("d", protocol.MaxVersionFile) + `"}`}},
		{"ota_config", 80, func() string { return otaDocument.write(r) }, fixedConfigs()},
		{"ota_config", 40, func() string { return lines(r) }, []string{"=", "url=https://h/x", "url=https://h/x\nurl=https://h/x", "a=b"}},
		{"mqtt_config", 50, func() string { return mqttDocument.write(r) }, []string{"", "{}", `{"broker_host":"h"}`, `{"broker_host":"h","tls":true}`}},
		{"mqtt_config", 50, func() string { return lines(r) }, []string{"broker=mqtt://192.168.1.10:1883\nusername=device\npassword=secret", "broker=mqtts://h", "#=\n"}},
	} {
		for _, text := range c.fixed {
			out = append(out, question{c.kind, []string{text}})
		}
		for i := range c.count {
			text := c.write()
			if i%5 == 4 {
				text = bend(r, text)
			}
			out = append(out, question{c.kind, []string{text}})
		}
	}
	out = append(out, manifestQuestions(r)...)
	out = append(out, offerQuestions(r)...)
	out = append(out, keyQuestions(r)...)
	out = append(out, orderQuestions()...)
	out = append(out, statusQuestions(r)...)
	out = append(out, decisionQuestions(r)...)
	out = append(out, nameQuestions()...)
	out = append(out, cosignQuestions(r)...)
	return append(out, builtinQuestions()...)
}

var versionTexts = []string{"", "v", "1.0.0", "v1.0.0", "vv1.0.0", "V1.0.0", "1.0", "1", "1.0.0.0", "01.0.0", "1.00.0", "0.0.0", "1.10.0", "1.9.0", "1.2.3-", "1.2.3+", "1.2.3-+", "1.2.3-rc.1", "1.2.3-rc.10", "1.2.3-rc.2",
	"1.2.3-rc", "1.2.3-rc.1.1", "1.2.3-1", "1.2.3-01", "1.2.3-0", "1.2.3--1", "1.2.3-0a", "1.2.3-A", "1.2.3-a", "1.2.3-a..b", "1.2.3-.a", "1.2.3-a.", "1.2.3-a_b", "1.2.3-é", "1.2.3+b1", "1.2.3+b1.01", "1.2.3+b1+b2", "1.2.3+b_1", "1.2.3-rc.1+b",
	"1.2.3+b-rc", "1.2-rc.3", "1.2.3 ", " 1.2.3", "1.2.3\n", "18446744073709551615.0.0", "18446744073709551616.0.0", "1.0.18446744073709551615", "1.2.3-18446744073709551615", "1.2.3-18446744073709551616", "1.2.3-18446744073709551617",
	"1.2.3-99999999999999999999", "1.2.3-1a", "99999999999999999999.0.0", "-1.0.0", "+1.0.0", "1.-1.0", "3f2a91c-dirty", "v1.2.3-4-gabc123-dirty", "esp-idf: v4.4.6", "esp-idf:", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta",
	"1.0.0-beta.2", "1.0.0-beta.11", "1.0.0-rc.1", strings.Repeat("1", 62) + ".1.1", "1.1.1-" + strings.Repeat("a", 58), "1.1.1-" + strings.Repeat("a", 59), "v1.1.1-" + strings.Repeat("a", 57), "v1.1.1-" + strings.Repeat("a", 58)}

func versionQuestions(r *rand.Rand) []question {
	var out []question
	for i, v := range versionTexts {
		out = append(out, question{"version", []string{v, "1.2.3"}}, question{"version", []string{"1.2.3", v}}, question{"version", []string{v, versionTexts[(i+1)%len(versionTexts)]}})
	}
	for range 120 {
		out = append(out, question{"version", []string{anyVersion(r), anyVersion(r)}})
	}
	return out
}

// anyVersion is a version, or nearly one.
func anyVersion(r *rand.Rand) string {
	if chance(r, 4) {
		return pick(r, versionTexts)
	}
	n := func() string {
		return pick(r, []string{"0", "1", "2", "9", "10", "00", "18446744073709551615", "18446744073709551616"})
	}
	s := n() + "." + pick(r, []string{"0", "1", "2"}) + "." + n()
	for i, sep := 0, "-"; i < r.IntN(4); i, sep = i+1, "." {
		s += sep + pick(r, []string{"rc", "RC", "a", "b", "0", "1", "2", "10", "01", "-", "0-", "18446744073709551616", "18446744073709551617", "x1", ""})
	}
	if chance(r, 4) {
		s += "+" + pick(r, []string{"b", "01", "b.1", "-", "", "b..c"})
	}
	if chance(r, 8) {
		s = strings.ReplaceAll(bend(r, s), "\x00", "")
	}
	return pick(r, []string{"", "", "", "v"}) + s
}

func fixedCommands() []string {
	fixed := []string{"update", `{"action":"update"`, `{"action":"update"} {}`, `["update"]`, `{"force":true}`, `{"action":7}`, `{"action":"update","action":"rollback"}`, `{"ACTION":"update"}`, "", "null", "{}", "{,}", `{"action":"check"}` + strings.Repeat(" ", 494),
		`{"action":"check"}` + strings.Repeat(" ", 495), `{"action":"check","x":` + strings.Repeat("[", 240) + strings.Repeat("]", 240) + "}"}
	for _, n := range []int{strictjson.MaxKeys - 1, strictjson.MaxKeys} {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `,"%d":0`, i)
		}
		fixed = append(fixed, `{"action":"check"`+b.String()+"}")
	}
	for _, f := range commandDocument.other[3].value {
		fixed = append(fixed, `{"action":"check","expires_at":`+f+`}`)
	}
	for _, v := range hostile {
		fixed = append(fixed, `{"action":"check","id":`+v+`}`, `{"action":"check","x":`+v+`}`)
	}
	return fixed
}

// fixedConfigs are addresses at the edges of what is one, and numbers at the edges of what is read.
func fixedConfigs() []string {
	fixed := []string{"", "{}", " \n", "\x00", `{"server_url":"https://h/x"}` + strings.Repeat(" ", protocol.MaxConfig)}
	for _, f := range otaDocument.needed[0].value {
		fixed = append(fixed, `{"server_url":`+f+`}`)
	}
	for _, v := range hostile {
		for _, key := range []string{"min_soc_pct", "max_current_a", "min_temp_c", "max_temp_c"} {
			fixed = append(fixed, `{"server_url":"https://h/x","gate":{"`+key+`":`+v+`}}`)
		}
	}
	return fixed
}

func orderQuestions() []question {
	var out []question
	at := func(s string) string { return `{"action":"update","expires_at":"` + s + `"}` }
	for _, c := range [][2]string{{"2026-12-01T00:00:00Z", "1796083199999999"}, {"2026-12-01T00:00:00Z", "1796083200000000"}, {"2026-12-01T00:00:00Z", "1796083200000001"}, {"2026-12-01T02:00:00+02:00", "1796083200000001"},
		{"2026-12-01T00:00:00.0000009Z", "1796083200000001"}, {"2026-12-01T00:00:00.000001Z", "1796083200000001"}, {"2026-12-01T00:00:00.00000099999Z", "1796083200000000"}, {"1969-12-31T23:59:59.5Z", "-500000"}, {"1969-12-31T23:59:59.5Z", "-499999"},
		{"1969-12-31T23:59:59.5Z", "-500001"}, {"0001-01-01T00:00:00Z", "1796083200000000"}, {"0000-01-01T00:00:00Z", "0"}, {"9999-12-31T23:59:59Z", "9223372036854775807"}, {"1970-01-01T00:00:00Z", "-9223372036854775808"}, {"tomorrow", "0"}, {"", "0"}} {
		out = append(out, question{"expired", []string{at(c[0]), c[1]}})
	}
	orders := []string{`{"action":"update","id":"1","version":"1.0.0"}`, `{"action":"update","id":"1","version":"2.0.0"}`, `{"action":"update","version":"1.0.0","force":true}`, `{"action":"check"}`, `{"action":"update"}`}
	for _, a := range orders {
		for _, b := range orders {
			out = append(out, question{"same", []string{a, b}})
		}
	}
	return out
}

// statusQuestions ask for texts and numbers that a device and a server take alike.
func statusQuestions(r *rand.Rand) []question {
	texts := []string{"", "a", "downloading firmware update", `<a href="x">&amp;\</a>`, "line\nbreak\ttab", strings.Repeat("m", 300)}
	word := func(longest int) string {
		return pick(r, []string{"", "", "x", "1.0.0", "v2.0.0-rc.1+b7", strings.Repeat("w", longest)})
	}
	digest := func() string { return pick(r, []string{"", strings.Repeat("0a", 32), strings.Repeat("f", 64)}) }
	count := func() string {
		return pick(r, []string{"0", "0", "1", "95632", "1048576", "2147483647"})
	}
	flag := func() string { return strconv.Itoa(r.IntN(2)) }
	measured := func() string {
		return pick(r, []string{"0", "71.5", "-4.2", "100", "0.001", "-0.001", "-12.34", "33.333", "1e3", "99.99", "1000000", "0.01", "0.1", "-0.5"})
	}
	degrees := func() string { return pick(r, []string{"0", "-0.001", "-100", "200", "21.5", "-12.34", "45"}) }
	var reasons []string
	for _, reason := range protocol.Reasons() {
		reasons = append(reasons, string(reason))
	}
	slices.Sort(reasons)
	var out []question
	for i := range 70 {
		out = append(out, question{"status", []string{pick(r, []string{"0", "1795000000000000", "-1", "9223372036854775807"}), count(), strconv.Itoa(i % len(protocol.Phases())), strconv.Itoa(r.IntN(101)), pick(r, texts), word(64), word(64), flag(), count(),
			pick(r, []string{"", "bms-a1b2c3", strings.Repeat("d", 64)}), word(64), pick(r, []string{"0", "1", "18446744073709551615"}), reasons[i%len(reasons)], word(64), pick(r, []string{"", "ota_0", strings.Repeat("s", 16)}), count(), word(32), word(32),
			pick(r, []string{"0", "7", "4294967295"}), digest(), digest(), flag(), flag(), word(32), count(), count(), pick(r, []string{"0", "3"}), count(), count(), flag(), measured(), measured(), flag(), flag(), degrees(), degrees()}})
	}
	return out
}

func decisionQuestions(r *rand.Rand) []question {
	var out []question
	ours, theirs := strings.Repeat("0a", 32), strings.Repeat("0b", 32)
	base := []string{"esp32", "ota-demo", "1.0.0", ours, "1048576", "2", theirs[:63] + "0", "esp32", "ota-demo", "1.1.0", theirs, "1000", "2", "", "0"}
	row := func(changes ...string) { // index, value, index, value, ...
		a := append([]string(nil), base...)
		for i := 0; i < len(changes); i += 2 {
			at, err := strconv.Atoi(changes[i])
			if err != nil {
				panic(err)
			}
			a[at] = changes[i+1]
		}
		out = append(out, question{"refuse", a})
	}
	row()
	row("10", ours)
	row("10", ours, "7", "esp32c3")
	row("7", "esp32c3")
	row("7", "esp32c3", "8", "x")
	row("0", "", "7", "esp32c3")
	row("7", "")
	row("8", "x")
	row("1", "")
	row("8", "")
	row("11", "1048576")
	row("11", "1048577")
	row("11", "1048577", "12", "1")
	row("4", "0", "11", "9223372036854775807")
	row("12", "1")
	row("12", "0", "14", "1")
	row("6", theirs)
	row("6", theirs, "14", "1")
	row("6", theirs, "13", "9.0.0")
	row("6", "")
	row("13", "1.0.0")
	row("13", "1.0.1")
	row("13", "1.0.1", "14", "1")
	row("13", "x")
	row("2", "dirty", "13", "1.0.0")
	row("9", "1.0.0")
	row("9", "1.0.0", "10", "")
	row("9", "0.9.0")
	row("9", "0.9.0", "14", "1")
	row("9", "1.0.0+b2")
	row("9", "v1.0.0")
	row("9", "dirty")
	row("2", "dirty")
	row("2", "dirty", "9", "dirty2")
	row("2", "")
	row("9", "", "10", "")
	row("2", "", "9", "")
	row("12", "4294967295", "5", "4294967295")
	for range 30 {
		row("2", pick(r, versionTexts[:30]), "9", pick(r, versionTexts[:30]), "13", pick(r, versionTexts[:30]), "10", pick(r, []string{"", ours, theirs}), "14", strconv.Itoa(r.IntN(2)))
	}
	windows := []string{"", "02:00-04:30", "22:00-06:00", "9:30-10:00", "night", "00:00-23:59", "23:59-00:00", "24:00-1:00", "2:5-3:0", "02:00-02:00", "2:00-4:30x", "1:00-2:00-3", "12:60-13:0"}
	for _, window := range windows {
		for _, minute := range []string{"0", "120", "270", "359", "1439"} {
			out = append(out, question{"gate", []string{"0", "0", window, "0", "0", "0", minute, "0", "", "", "0", "", ""}})
		}
	}
	for _, a := range [][]string{{"30", "0", "1", "30", "0"}, {"30", "0", "1", "29.999", "0"}, {"30", "0", "1", "NaN", "0"}, {"30", "0", "0", "99", "0"}, {"0", "1", "0", "0", "0"}, {"0", "1", "1", "0", "1"}, {"0", "1", "1", "0", "0"}, {"30", "1", "1", "10", "1"}, {"NaN", "0", "1", "10", "0"}} {
		out = append(out, question{"gate", []string{a[0], a[1], "", a[2], a[3], a[4], "0", "0", "", "", "0", "", ""}}, question{"gate", []string{a[0], a[1], "01:00-02:00", a[2], a[3], a[4], "0", "0", "", "", "0", "", ""}})
	}
	// Limits of current and temperature, and the readings they meet: current, coldest and warmest cell.
	for _, limits := range [][]string{{"0", "", ""}, {"5", "", ""}, {"0", "0", ""}, {"0", "", "45"}, {"5", "0", "45"}, {"0", "-100", "200"}} {
		for _, read := range [][]string{{"5", "0", "45"}, {"-5.001", "20", "20"}, {"5.001", "-1", "50"}, {"NaN", "20", "20"}, {"0", "-0.001", "20"}, {"0", "-5", "50"}, {"0", "20", "45.001"}, {"0", "", ""}, {"0", "NaN", "20"}, {"0", "20", "NaN"}, {"0", "-100.001", "20"}, {"0", "20", "200.001"}} {
			for _, valid := range []string{"1", "0"} {
				out = append(out, question{"gate", []string{"30", "1", "", valid, "30", "0", "0", limits[0], limits[1], limits[2], read[0], read[1], read[2]}},
					question{"gate", []string{"0", "0", "01:00-02:00", valid, "0", "0", "0", limits[0], limits[1], limits[2], read[0], read[1], read[2]}})
			}
		}
	}
	for range 30 {
		out = append(out, question{"on_the_way", []string{pick(r, versionTexts[:30]), pick(r, versionTexts[:30]), pick(r, versionTexts[:30])}})
	}
	return out
}

func nameQuestions() []question {
	var out []question
	for _, name := range []string{"", "a", "bms-a1b2c3", "A.b_c:d-e", "-a", ".a", "_a", ":a", "9", "a b", "a/b", "a+", "a#", "a\x7f", "a\x80", "é", strings.Repeat("a", 64), strings.Repeat("a", 65), "bms/ota", "/bms", "bms/", "a//b", "a/+/b", "$SYS", "a\tb", "~", "!",
		strings.Repeat("a", 128), strings.Repeat("a", 129), strings.Repeat("0a", 32), strings.Repeat("0A", 32), strings.Repeat("g", 64), strings.Repeat("f", 63)} {
		out = append(out, question{"name", []string{name}})
	}
	for _, mac := range []string{"\x24\x6f\x28\x00\x00\x01", "\xff\xff\xff\xff\xff\xff", "\x00\x00\x00\xa1\xb2\xc3"} {
		out = append(out, question{"mac", []string{mac}})
	}
	for _, n := range []int{0, 1, 55, 56, 64, 1000} {
		out = append(out, question{"digest", []string{strings.Repeat(fmt.Sprint(n%10), n)}})
	}
	return out
}
