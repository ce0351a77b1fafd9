package hosttest_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"bmsota/protocol"
)

// One process answers for all of it: it was built with the sanitizers, and whatever it stumbles over ends it and the test.
func TestTheComponentDecidesAsGoDoes(t *testing.T) {
	p := startC(t)
	t.Run("every vector", func(t *testing.T) { eachVector(t, p.with(t)) })
	t.Run("the tables", func(t *testing.T) { tables(t, p.with(t)) })
	t.Run("a status of anything is one that a server reads", func(t *testing.T) { hostileStatuses(t, p.with(t)) })
	t.Run("variations", func(t *testing.T) { variations(t, p.with(t)) })
}

func tables(t *testing.T, p *c) {
	var phases strings.Builder
	for _, from := range protocol.Phases() {
		code, _ := from.Code()
		fmt.Fprintf(&phases, "%s %d %s:", from, code, from.Text())
		for _, to := range protocol.Phases() {
			if protocol.May(from, to, true) {
				fmt.Fprintf(&phases, " %s", to)
			}
		}
		phases.WriteByte('\n')
	}
	if got := p.ask("phases"); got != phases.String() {
		t.Errorf("phases: got\n%swant\n%s", got, phases.String())
	}
	said := make(map[string]string)
	answer := strings.TrimSuffix(p.ask("reasons"), "\n")
	lines := strings.Split(answer, "\n")
	for _, line := range lines[:len(lines)-1] {
		name, text, _ := strings.Cut(line, ": ")
		said[name] = text
	}
	if unknown := lines[len(lines)-1]; unknown != string(protocol.ReasonOther) {
		t.Errorf("a word that nobody knows is %q", unknown)
	}
	all := append(protocol.Reasons(), protocol.ReasonNone)
	for _, r := range all {
		if text, ok := said[string(r)]; !ok || text != r.Text() {
			t.Errorf("reason %q is %q, want %q", r, text, r.Text())
		}
	}
	if len(said) != len(all) {
		t.Errorf("%d reasons, want %d", len(said), len(all))
	}
}

// hostileStatuses fills a status with what no server takes as it is. What comes out has to be read, with its numbers and
// with as much of its texts as there may be.
func hostileStatuses(t *testing.T, p *c) {
	base := []string{"1", "2", "0", "50", "m", "1.0.0", "", "0", "3", "d", "b", "1", "", "c", "s", "4", "chip", "project", "5", "", "", "1", "0", "software", "6", "7", "8", "9", "10", "1", "5", "6", "1", "1", "-7", "8.25"}
	limit := map[int]int{4: 512, 5: 64, 6: 64, 10: 64, 13: 64, 14: 16, 16: 32, 17: 32, 23: 32}
	for at, most := range limit {
		for _, text := range []string{strings.Repeat("x", most+1), strings.Repeat("é", most), strings.Repeat("😀", most), strings.Repeat("\xff", 10), "a\x01\r\x7fb", "\xed\xa0\x80", "é\xc3", "\"\\/<>&\u2028\u2029", strings.Repeat("\xff", most)} {
			a := append([]string(nil), base...)
			a[at] = text
			answer := p.ask("status", a...)
			s, err := protocol.ParseStatus([]byte(answer))
			if err != nil || s.FreeHeap != 3 || s.Battery == nil || s.Battery.PackCurrentA != 6 || *s.Battery.TempMinC != -7 || *s.Battery.TempMaxC != 8.25 {
				t.Errorf("field %d of %q: %v in %s", at, text, err, answer)
				continue
			}
			got := []string{4: s.Message, 5: s.CurrentVersion, 6: s.AvailableVersion, 10: s.BootID, 13: s.CommandID, 14: s.Slot, 16: s.Chip, 17: s.Project, 23: s.ResetReason}[at]
			want := strings.Map(func(c rune) rune {
				if c < ' ' || c == 0x7f || c == utf8.RuneError {
					return '?'
				}
				return c
			}, text)
			if !strings.HasPrefix(want, got) || len(got) < min(most-3, len(want)) {
				t.Errorf("field %d of %q: %q", at, text, got)
			}
		}
	}
	for at, text := range map[int]string{1: "-1", 3: "101", 9: "a/b", 15: "-1", 19: "no digest", 20: strings.Repeat("A", 64), 24: "-1", 25: "-5", 26: "-2", 27: "-9", 30: "NaN", 31: "-1e300", 34: "NaN", 35: "200.1"} {
		a := append([]string(nil), base...)
		a[at] = text
		if answer := p.ask("status", a...); answer == "" {
			t.Errorf("field %d of %s: nothing", at, text)
		} else if _, err := protocol.ParseStatus([]byte(answer)); err != nil {
			t.Errorf("field %d of %s: %v in %s", at, text, err, answer)
		}
	}
	// The longest that a device has to say has room: a message of 199 bytes, every number at its end.
	w, big := func(n int) string { return strings.Repeat("w", n) }, "4294967295"
	longest := []string{"1795000000000000", big, "3", "100", w(199), w(64), w(64), "0", big, w(64), w(32), "18446744073709551615", "needs_intermediate", w(64),
		"ota_15", "16777216", "esp32c61", w(32), big, strings.Repeat("f", 64), strings.Repeat("f", 64), "0", "0", "watchdog", "16777216", "16777216", "2147483647", big, big,
		"1", "99.999", "-9999.999", "0", "1", "-99.999", "-99.999"}
	if _, err := protocol.ParseStatus([]byte(p.ask("status", longest...))); err != nil {
		t.Errorf("the longest status: %v", err)
	}
	full := append([]string(nil), base...)
	for at, most := range limit {
		full[at] = strings.Repeat("<", most)
	}
	if answer := p.ask("status", full...); answer != "" {
		t.Errorf("a status that has no room came out as %d bytes", len(answer))
	}
}

// variations asks questions that are in no file. BMSOTA_VARIATIONS is how many, for a longer search; the seed is printed.
func variations(t *testing.T, p *c) {
	count, seed := 20000, uint64(20261125)
	if s := os.Getenv("BMSOTA_VARIATIONS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("BMSOTA_VARIATIONS: %v", err)
		}
		count, seed = n, rand.Uint64()
	}
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	one := fixedKey(1)
	keys, good := pemOf(one), sign(one, goodHeader, goodPayload())
	accepted, differ := make(map[string]int), 0
	for i := range count {
		q := vary(r, keys, good)
		want := askGo(t, q.kind, q.args...)
		if got := p.ask(q.kind, q.args...); got != want {
			t.Errorf("seed %d, question %d: %s %q\ngot  %s\nwant %s", seed, i, q.kind, q.args, got, want)
			if differ++; differ == 20 {
				t.Fatal("and so on")
			}
		}
		if !strings.HasPrefix(want, "refused") && !strings.HasPrefix(want, "bad") {
			accepted[q.kind]++
		}
	}
	for _, kind := range []string{"command", "version_file", "ota_config", "mqtt_config", "manifest", "keys"} {
		if accepted[kind] < count/1000 {
			t.Errorf("only %d variations of %s were accepted: they test one side only", accepted[kind], kind)
		}
	}
}

func vary(r *rand.Rand, keys, good string) question {
	maybe := func(s string) string {
		if chance(r, 3) {
			return bend(r, s)
		}
		return s
	}
	switch n := r.IntN(100); {
	case n < 15:
		return question{"version", []string{anyVersion(r), anyVersion(r)}}
	case n < 40:
		return question{"command", []string{maybe(commandDocument.write(r))}}
	case n < 52:
		return question{"version_file", []string{maybe(versionDocument.write(r))}}
	case n < 64:
		return question{"ota_config", []string{maybe(otaDocument.write(r))}}
	case n < 70:
		return question{"mqtt_config", []string{maybe(mqttDocument.write(r))}}
	case n < 76:
		return question{pick(r, []string{"ota_config", "mqtt_config"}), []string{maybe(lines(r))}}
	case n < 80:
		return question{"keys", []string{strings.ReplaceAll(maybe(keys+"# of last year\n"+keys), "\x00", "")}}
	case n < 85:
		return question{"manifest", []string{bend(r, good), keys, pick(r, []string{"verify", "read"})}}
	case n < 97:
		return question{"manifest", []string{good[:len("eyJhbGciOiJFUzI1NiJ9.")] + b64([]byte(maybe(payloadDocument.write(r)))) + good[len(good)-87:], "", "read"}}
	}
	return question{"name", []string{strings.ReplaceAll(bend(r, pick(r, []string{"bms-a1b2c3", "bms/ota", strings.Repeat("0a", 32)})), "\x00", "")}}
}
