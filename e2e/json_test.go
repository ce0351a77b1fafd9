//go:build unix

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// cmdJSON holds a value against what it should be: json FILE PATH VALUE, where FILE may be stdout, PATH is like
// .devices[0].phase .[device_id=bms-000001].phase or .[len], and VALUE is the value's text or ~REGEXP.
// "json -set VARIABLE FILE PATH" keeps the value.
func cmdJSON(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 3 && !(len(args) == 4 && args[0] == "-set") {
		ts.Fatalf("usage: json FILE PATH VALUE, or json -set VARIABLE FILE PATH")
	}
	if args[0] == "-set" {
		plain(ts, neg, "json -set")
		v, err := lookUp(ts.ReadFile(args[2]), args[3])
		ts.Check(err)
		ts.Setenv(args[1], text(v))
		return
	}
	document := ts.ReadFile(args[0])
	v, err := lookUp(document, args[1])
	if err != nil {
		ts.Fatalf("%s: %v in\n%s", args[1], err, document)
	}
	same := text(v) == args[2]
	if pattern, ok := strings.CutPrefix(args[2], "~"); ok {
		re, err := regexp.Compile(pattern)
		ts.Check(err)
		same = re.MatchString(text(v))
	}
	if same == neg {
		ts.Fatalf("%s is %s, want (! = %v) %s in\n%s", args[1], text(v), neg, args[2], document)
	}
}

// cmdJSONKeys holds the keys of an object against a list: jsonkeys [-all] FILE PATH KEY…; -all wants no others.
func cmdJSONKeys(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg, "jsonkeys")
	all := len(args) > 0 && args[0] == "-all"
	if all {
		args = args[1:]
	}
	if len(args) < 3 {
		ts.Fatalf("usage: jsonkeys [-all] FILE PATH KEY…")
	}
	v, err := lookUp(ts.ReadFile(args[0]), args[1])
	ts.Check(err)
	object, ok := v.(map[string]any)
	if !ok {
		ts.Fatalf("%s is no object", args[1])
	}
	for _, key := range args[2:] {
		if _, ok := object[key]; !ok {
			ts.Fatalf("no key %q in %s", key, text(v))
		}
	}
	if all && len(object) != len(args)-2 {
		var names []string
		for key := range object {
			names = append(names, key)
		}
		sort.Strings(names)
		ts.Fatalf("keys are %q, want %q", names, args[2:])
	}
}

// cmdJSONLines holds a file against one JSON object a line: jsonlines [-order] FILE KEY… Each line has the keys, first of
// all and in this order with -order. A last line without an end is left out: it is being written.
func cmdJSONLines(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg, "jsonlines")
	order := len(args) > 0 && args[0] == "-order"
	if order {
		args = args[1:]
	}
	if len(args) < 1 {
		ts.Fatalf("usage: jsonlines [-order] FILE KEY…")
	}
	lines := strings.SplitAfter(ts.ReadFile(args[0]), "\n")
	lines = lines[:len(lines)-1]
	if len(lines) == 0 {
		ts.Fatalf("%s has no line", args[0])
	}
	for _, line := range lines {
		keys, err := keysOf(line)
		if err != nil {
			ts.Fatalf("%v: %s", err, line)
		}
		want := args[1:]
		if order {
			keys = keys[:min(len(keys), len(want))]
			if !slices.Equal(keys, want) {
				ts.Fatalf("keys begin with %q, want %q: %s", keys, want, line)
			}
		}
		for _, key := range want {
			if !slices.Contains(keys, key) {
				ts.Fatalf("no key %q: %s", key, line)
			}
		}
	}
}

// keysOf gives the keys of the object that a line is, in their order.
func keysOf(line string) ([]string, error) {
	dec := json.NewDecoder(strings.NewReader(line))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, fmt.Errorf("no object: %w", err)
	}
	var keys []string
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return nil, err
		}
		keys = append(keys, t.(string)) // the decoder lets nothing else be a key
		var v any
		if err := dec.Decode(&v); err != nil {
			return nil, err
		}
	}
	if _, err := dec.Token(); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the object")
	}
	return keys, nil
}

// lookUp finds the value at a path.
func lookUp(document, path string) (any, error) {
	dec := json.NewDecoder(strings.NewReader(document))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, fmt.Errorf("not JSON: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the JSON value")
	}
	for _, step := range regexp.MustCompile(`\[[^]]*\]|[^.\[]+`).FindAllString(path, -1) {
		var err error
		if v, err = take(v, step); err != nil {
			return nil, err
		}
	}
	return v, nil
}

func take(v any, step string) (any, error) {
	inner, isIndex := strings.CutPrefix(step, "[")
	if !isIndex {
		object, ok := v.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("%s of what is no object", step)
		}
		child, ok := object[step]
		if !ok {
			return nil, fmt.Errorf("no key %s", step)
		}
		return child, nil
	}
	inner = strings.TrimSuffix(inner, "]")
	list, ok := v.([]any)
	if !ok {
		return nil, fmt.Errorf("%s of what is no list", step)
	}
	if inner == "len" {
		return json.Number(strconv.Itoa(len(list))), nil
	}
	if key, want, ok := strings.Cut(inner, "="); ok {
		for _, element := range list {
			if object, ok := element.(map[string]any); ok && text(object[key]) == want {
				return element, nil
			}
		}
		return nil, fmt.Errorf("no element with %s", inner)
	}
	i, err := strconv.Atoi(inner)
	if err != nil || i < 0 || i >= len(list) {
		return nil, fmt.Errorf("no element %s among %d", inner, len(list))
	}
	return list[i], nil
}

// text is a value as a script writes it: a string without quotes, everything else as JSON.
func text(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err.Error()
	}
	return strings.TrimSpace(b.String())
}

// cmdLineCount counts the lines of a file that match: linecount FILE REGEXP N, where N may be "N+" for at least.
func cmdLineCount(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg, "linecount")
	if len(args) != 3 {
		ts.Fatalf("usage: linecount FILE REGEXP N")
	}
	re, err := regexp.Compile(args[1])
	ts.Check(err)
	n := 0
	content := ts.ReadFile(args[0])
	for line := range strings.Lines(content) {
		if re.MatchString(line) {
			n++
		}
	}
	number, atLeast := strings.CutSuffix(args[2], "+")
	want, err := strconv.Atoi(number)
	ts.Check(err)
	if n != want && !(atLeast && n > want) {
		ts.Fatalf("%d lines of %s match %q, want %s:\n%s", n, args[0], args[1], args[2], content)
	}
}

// cmdExpandFile replaces $NAME and ${NAME} in files by the script's variables: expandfile FILE…
// Names that are not set stay, because configuration files have dollars of their own.
func cmdExpandFile(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg, "expandfile")
	for _, name := range args {
		expanded := regexp.MustCompile(`\$\{?[A-Z][A-Z0-9_]*\}?`).ReplaceAllStringFunc(ts.ReadFile(name), func(s string) string {
			if v := ts.Getenv(strings.Trim(s, "${}")); v != "" {
				return v
			}
			return s
		})
		ts.Check(os.WriteFile(ts.MkAbs(name), []byte(expanded), 0o644))
	}
}

// cmdFlip inverts one bit: flip FILE OFFSET
func cmdFlip(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg, "flip")
	if len(args) != 2 {
		ts.Fatalf("usage: flip FILE OFFSET")
	}
	offset, err := strconv.ParseInt(args[1], 0, 64)
	ts.Check(err)
	b := []byte(ts.ReadFile(args[0]))
	if offset >= int64(len(b)) {
		ts.Fatalf("%s has %d bytes", args[0], len(b))
	}
	b[offset] ^= 0x10
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o644))
}
