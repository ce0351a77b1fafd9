package protocol_test

import (
	"errors"
	"os"
	"reflect"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"bmsota/protocol"
)

func document(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// rows returns the cells of the table whose header begins with head.
func rows(t *testing.T, text, head string) [][]string {
	t.Helper()
	_, table, ok := strings.Cut(text, head)
	if !ok {
		t.Fatalf("docs/protocol.md has no table %q", head)
	}
	var out [][]string
	for i, line := range strings.Split(table, "\n") {
		if i < 2 {
			continue // the rest of the header and the rule below it
		}
		if !strings.HasPrefix(line, "|") {
			break
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for j := range cells {
			cells[j] = strings.TrimSpace(cells[j])
		}
		out = append(out, cells)
	}
	return out
}

func unquote(cell string) string { return strings.TrimSpace(strings.Trim(cell, "`")) }

func quoted(cell string) []string {
	var words []string
	for _, m := range regexp.MustCompile("`([^`]*)`").FindAllStringSubmatch(cell, -1) {
		words = append(words, m[1])
	}
	return words
}

func TestExamplesOfTheDocumentAreRead(t *testing.T) {
	blocks := regexp.MustCompile("(?ms)^```(?:json|text) (\\w+)\n(.*?)^```").FindAllStringSubmatch(document(t), -1)
	count := make(map[string]int)
	for _, m := range blocks {
		kind, body := m[1], []byte(strings.TrimSpace(m[2]))
		count[kind]++
		var err error
		switch kind {
		case "command":
			var c protocol.Command
			if c, err = protocol.ParseCommand(body); err == nil {
				err = roundTripCommand(c)
			}
		case "status":
			var s protocol.Status
			if s, err = protocol.ParseStatus(body); err == nil {
				err = roundTripStatus(s)
			}
		case "version":
			_, err = protocol.ParseVersionFile(body)
		case "ota_config":
			_, err = protocol.ParseOTAConfig(body)
		case "mqtt_config":
			_, err = protocol.ParseMQTTConfig(body)
		default:
			t.Errorf("example of unknown kind %q", kind)
		}
		if err != nil {
			t.Errorf("%s example does not hold: %v\n%s", kind, err, body)
		}
	}
	want := map[string]int{"command": 6, "status": 2, "version": 2, "ota_config": 2, "mqtt_config": 3}
	if !reflect.DeepEqual(count, want) {
		t.Errorf("examples found: %v, want %v", count, want)
	}
}

func roundTripCommand(c protocol.Command) error {
	b, err := c.Append(nil)
	if err != nil {
		return err
	}
	if back, err := protocol.ParseCommand(b); err != nil || !reflect.DeepEqual(back, c) {
		return errors.Join(errors.New("does not read back"), err)
	}
	return nil
}

func roundTripStatus(s protocol.Status) error {
	b, err := s.Append(nil)
	if err != nil {
		return err
	}
	if back, err := protocol.ParseStatus(b); err != nil || !reflect.DeepEqual(back, s) {
		return errors.Join(errors.New("does not read back"), err)
	}
	return nil
}

func TestBadCommandsOfTheDocumentGetItsReason(t *testing.T) {
	table := rows(t, document(t), "| payload | reason |")
	if len(table) != 12 {
		t.Fatalf("%d rows", len(table))
	}
	for _, row := range table {
		payload, want := unquote(row[0]), protocol.Reason(unquote(row[1]))
		_, err := protocol.ParseCommand([]byte(payload))
		var r *protocol.Refusal
		if !errors.As(err, &r) || r.Reason != want {
			t.Errorf("%q: got %v, want %s", payload, err, want)
		}
	}
}

func TestPhaseTableOfTheDocumentIsTheTable(t *testing.T) {
	var seen []protocol.Phase
	for _, row := range rows(t, document(t), "| phase | number |") {
		phase := protocol.Phase(unquote(row[0]))
		seen = append(seen, phase)
		code, ok := phase.Code()
		if !ok || strconv.Itoa(int(code)) != row[1] {
			t.Errorf("%s: number %v, the document says %s", phase, code, row[1])
		}
		var next []string
		for _, p := range phase.Next() {
			next = append(next, string(p))
		}
		if got := quoted(row[2]); !slices.Equal(got, next) {
			t.Errorf("%s: followed by %v, the document says %v", phase, next, got)
		}
	}
	if !slices.Equal(seen, protocol.Phases()) {
		t.Errorf("document lists %v, the table %v", seen, protocol.Phases())
	}
}

func TestReasonsOfTheDocumentAreTheClosedSet(t *testing.T) {
	listed := make(map[string]bool)
	for _, row := range rows(t, document(t), "| with | reasons |") {
		for _, word := range quoted(row[1]) {
			listed[word] = true
		}
	}
	var got, want []string
	for word := range listed {
		got = append(got, word)
	}
	for _, r := range protocol.Reasons() {
		want = append(want, string(r))
		if r.Text() == "" || r.Known() != r {
			t.Errorf("%s has no text", r)
		}
	}
	sort.Strings(got)
	sort.Strings(want)
	if !slices.Equal(got, want) {
		t.Errorf("document: %v\nset:      %v", got, want)
	}
	if protocol.Reason("made_up").Known() != protocol.ReasonOther {
		t.Error("an unknown reason is not other")
	}
}

func TestVersionOrderOfTheDocument(t *testing.T) {
	table := rows(t, document(t), "| available | running | newer |")
	if len(table) != 15 {
		t.Fatalf("%d rows", len(table))
	}
	for _, row := range table {
		available, running, want := unquote(row[0]), unquote(row[1]), row[2] == "yes"
		if got := protocol.Newer(available, running); got != want {
			t.Errorf("Newer(%q, %q) = %v", available, running, got)
		}
	}
}

func TestGatesOfTheDocumentAreThoseOfTheType(t *testing.T) {
	said := make(map[string]protocol.Reason)
	for _, row := range rows(t, document(t), "| `gate` | holds back while | reason |") {
		if words := quoted(row[0]); len(words) > 0 {
			said[words[0]] = protocol.Reason(unquote(row[2]))
		}
	}
	battery := protocol.Battery{SOCPct: 50, PackCurrentA: -9, Charging: true, TempMinC: new(-5.0), TempMaxC: new(60.0)}
	typ := reflect.TypeFor[protocol.Gate]()
	for i := range typ.NumField() {
		name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
		value := map[string]string{"min_soc_pct": "60", "not_while_charging": "true", "max_current_a": "8", "min_temp_c": "0", "max_temp_c": "45", "window": `"02:00-03:00"`}[name]
		c, err := protocol.ParseOTAConfig([]byte(`{"server_url":"https://h/x","gate":{"` + name + `":` + value + `}}`))
		if err != nil {
			t.Fatal(err)
		}
		if got := c.Gate.Blocked(&battery, time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)); got != said[name] || got == "" {
			t.Errorf("%s holds back with %q, the document says %q", name, got, said[name])
		}
		if got := c.Gate.Blocked(nil, time.Date(2026, 1, 2, 2, 0, 0, 0, time.UTC)); name != "window" && got != protocol.ReasonNoReading {
			t.Errorf("%s with no reading: %q", name, got)
		}
		delete(said, name)
	}
	if len(said) > 0 {
		t.Errorf("the document has conditions that do not exist: %v", said)
	}
}

func TestStatusFieldsOfTheDocumentAreThoseOfTheType(t *testing.T) {
	documented := make(map[string]bool)
	for _, row := range rows(t, document(t), "| field | meaning |") {
		for _, word := range quoted(row[0]) {
			documented[word] = true
		}
	}
	typ := reflect.TypeFor[protocol.Status]()
	for i := range typ.NumField() {
		name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
		if !documented[name] {
			t.Errorf("status field %q is not documented", name)
		}
		delete(documented, name)
	}
	if len(documented) > 0 {
		t.Errorf("documented fields that do not exist: %v", documented)
	}
}
