package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
)

// decodeConfig reads JSON into c: one object, no key twice, no key that Config does not have, keys exactly as written
// (encoding/json alone would take "DATA_DIR" for "data_dir", and the last of two that are equal).
func decodeConfig(b []byte, c *Config) error {
	var whole json.RawMessage
	if err := json.Unmarshal(b, &whole); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			line := bytes.Count(b[:min(int64(len(b)), syntax.Offset)], []byte("\n")) + 1
			return fmt.Errorf("line %d: not JSON: %w", line, err)
		}
		return fmt.Errorf("not JSON: %w", err)
	}
	if err := checkKeys(json.NewDecoder(bytes.NewReader(b)), reflect.TypeFor[Config](), ""); err != nil {
		return err
	}
	return json.Unmarshal(b, c)
}

// checkKeys walks one value; t is the struct it goes into, or anything else for a value without keys of ours.
func checkKeys(dec *json.Decoder, t reflect.Type, path string) error {
	if t.Kind() != reflect.Struct {
		return checkValue(dec, t, path)
	}
	tok, err := dec.Token()
	if err != nil {
		return err
	}
	if tok == nil {
		return nil // null: the defaults
	}
	if tok != json.Delim('{') {
		return fmt.Errorf("%s must be an object in braces", quoteKey(path))
	}
	seen := make(map[string]bool)
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return err
		}
		key := tok.(string) // the decoder allows nothing else in this place
		full := joinKey(path, key)
		if seen[key] {
			return fmt.Errorf("key %q stands twice", full)
		}
		seen[key] = true
		field, ok := fieldOf(t, key)
		if !ok {
			return fmt.Errorf("unknown key %q%s", full, suggest(path, key))
		}
		if err := checkKeys(dec, field.Type, full); err != nil {
			return err
		}
	}
	_, err = dec.Token()
	return err
}

// checkValue decodes a value on its own, so that what is wrong with it is said with its key.
func checkValue(dec *json.Decoder, t reflect.Type, path string) error {
	var raw json.RawMessage
	if err := dec.Decode(&raw); err != nil {
		return err
	}
	err := json.Unmarshal(raw, reflect.New(t).Interface())
	var kind *json.UnmarshalTypeError
	if errors.As(err, &kind) {
		return fmt.Errorf("%q must be %s, not a %s", path, kindName(kind.Type), kind.Value)
	}
	if err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	return nil
}

func fieldOf(t reflect.Type, key string) (reflect.StructField, bool) {
	for i := range t.NumField() {
		if t.Field(i).Tag.Get("json") == key && key != "-" {
			return t.Field(i), true
		}
	}
	return reflect.StructField{}, false
}

func joinKey(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func quoteKey(path string) string {
	if path == "" {
		return "the configuration"
	}
	return fmt.Sprintf("%q", path)
}

// allKeys lists every key of the configuration with its path.
func allKeys(t reflect.Type, path string) []string {
	var keys []string
	for i := range t.NumField() {
		name := t.Field(i).Tag.Get("json")
		if name == "-" {
			continue
		}
		key := joinKey(path, name)
		keys = append(keys, key)
		if t.Field(i).Type.Kind() == reflect.Struct {
			keys = append(keys, allKeys(t.Field(i).Type, key)...)
		}
	}
	return keys
}

// suggest names the key that was probably meant: the nearest name, one of the same section first.
func suggest(path, key string) string {
	best, bestCost := "", 1<<30
	for _, known := range allKeys(reflect.TypeFor[Config](), "") {
		section, name := "", known
		if i := strings.LastIndexByte(known, '.'); i >= 0 {
			section, name = known[:i], known[i+1:]
		}
		cost := 2 * distance(strings.ToLower(key), name)
		if cost > 2*max(2, len(name)/3) {
			continue
		}
		if section != path {
			cost += 3
		}
		if cost < bestCost {
			best, bestCost = known, cost
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(": did you mean %q?", best)
}

// distance is how many letters must be changed, added or taken away to make b of a (Levenshtein). Names longer than
// any key of ours are far from all of them.
func distance(a, b string) int {
	if len(a) > 64 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		corner := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := corner
			if a[i] != b[j] {
				change++
			}
			corner = row[j+1]
			row[j+1] = min(change, row[j]+1, corner+1)
		}
	}
	return row[len(b)]
}

func kindName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "a text in quotes"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice:
		return "a list in brackets"
	case reflect.Int64:
		return "a whole number"
	}
	panic("server: the configuration has a kind of value without a name: " + t.Kind().String())
}
