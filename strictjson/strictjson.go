// Package strictjson reads one JSON object whose sender may be an attacker, so strictly that a reader in C without a heap
// comes to the same verdict (firmware/components/ota_manager/ota_json.c): keys exactly as written, each at most once,
// nothing after the object, no number or nesting beyond a fixed size. Unknown keys are skipped, so that a newer peer can
// say more.
//
// encoding/json alone would match "ACTION" with action, take the last of two equal keys, and nest 10,000 deep.
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Limits. What a device or server says stays far below them.
const (
	MaxKeys   = 64 // keys of one object
	MaxDepth  = 32 // objects and arrays within each other, in the value of one key
	MaxNumber = 32 // bytes of a number that is read
)

// Object holds the fields of one object. Its methods keep the first error, so that a caller reads a list of fields and
// asks once, with Err. It is for one goroutine.
type Object struct {
	fields map[string]json.RawMessage
	err    error
}

// Parse reads the top level of one JSON object; nested values stay raw. The caller has capped len(b), and may use b again.
//
// A server reads thousands of statuses a second so: what is no JSON is refused in one pass over the bytes, and what is JSON
// needs no more than a walk from key to key.
func Parse(b []byte) (*Object, error) {
	if !utf8.Valid(b) {
		return nil, errors.New("not valid UTF-8")
	}
	if !json.Valid(b) {
		return nil, fault(b)
	}
	b = bytes.TrimLeft(bytes.Clone(b), space)
	if b[0] != '{' {
		return nil, errors.New("not a JSON object")
	}
	o := &Object{}
	for b = bytes.TrimLeft(b[1:], space); b[0] != '}'; {
		end := valueEnd(b)
		key, err := keyOf(b[:end])
		if err != nil {
			return nil, fmt.Errorf("not JSON: %w", err)
		}
		b = bytes.TrimLeft(b[end:], space)
		b = bytes.TrimLeft(b[1:], space) // the colon
		end = valueEnd(b)
		raw := json.RawMessage(b[:end:end])
		if depth(raw) > MaxDepth {
			return nil, fmt.Errorf("nests more than %d deep", MaxDepth)
		}
		if err := o.add(key, raw); err != nil {
			return nil, err
		}
		if b = bytes.TrimLeft(b[end:], space); b[0] == ',' {
			b = bytes.TrimLeft(b[1:], space)
		}
	}
	return o, nil
}

// space is what may stand between the parts of JSON.
const space = " \t\r\n"

// fault says why b is not one JSON value.
func fault(b []byte) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	var first json.RawMessage
	if err := dec.Decode(&first); err != nil {
		return fmt.Errorf("not JSON: %w", err)
	}
	if first[0] != '{' {
		return errors.New("not a JSON object")
	}
	return errors.New("data after the JSON object")
}

// valueEnd is where the value that b begins with ends. b is a part of valid JSON, and goes on behind the value.
func valueEnd(b []byte) int {
	level, quoted := 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			if quoted = !quoted; !quoted && level == 0 {
				return i + 1
			}
		case quoted:
		case c == '{' || c == '[':
			level++
		case level == 0 && (c == ',' || c == ':' || c == '}' || c == ']' || strings.IndexByte(space, c) >= 0):
			return i
		case c == '}' || c == ']':
			if level--; level == 0 {
				return i + 1
			}
		}
	}
	return len(b)
}

// keyOf is the text of a key that stands in valid JSON.
func keyOf(quoted []byte) (key string, err error) {
	if bytes.IndexByte(quoted, '\\') < 0 {
		return string(quoted[1 : len(quoted)-1]), nil
	}
	err = json.Unmarshal(quoted, &key)
	return key, err
}

// depth counts how far arrays and objects nest in raw, which is valid JSON.
func depth(raw []byte) (deepest int) {
	level, quoted := 0, false
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case !quoted && (c == '{' || c == '['):
			level++
			deepest = max(deepest, level)
		case !quoted && (c == '}' || c == ']'):
			level--
		}
	}
	return deepest
}

func (o *Object) add(key string, raw json.RawMessage) error {
	if o.fields == nil {
		o.fields = make(map[string]json.RawMessage)
	}
	if _, twice := o.fields[key]; twice {
		return fmt.Errorf("key %q stands twice", key)
	}
	if len(o.fields) == MaxKeys {
		return fmt.Errorf("more than %d keys", MaxKeys)
	}
	o.fields[key] = raw
	return nil
}

// Set adds a field that came in another form than JSON; v is a string, a number or a bool. It fails where Parse would:
// a key that stands twice, too many of them. The zero Object can be added to.
func (o *Object) Set(key string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("field %q: %w", key, err)
	}
	return o.add(key, raw)
}

// Err is the first error of Take, Text and Sub.
func (o *Object) Err() error { return o.err }

// raw is the field's JSON; ok is false where it is absent, null, or there was an error before.
func (o *Object) raw(key string) (raw json.RawMessage, ok bool) {
	raw, ok = o.fields[key]
	return raw, ok && o.err == nil && string(raw) != "null"
}

// Take decodes field key into v, a pointer to a bool, string or number, when it is present and not null.
func (o *Object) Take(key string, v any) {
	raw, ok := o.raw(key)
	if !ok {
		return
	}
	number := raw[0] == '-' || raw[0] >= '0' && raw[0] <= '9'
	if err := json.Unmarshal(raw, v); err != nil || number && len(raw) > MaxNumber {
		o.err = fmt.Errorf("field %q has the wrong type or range", key)
	}
}

// Text takes a string of at most limit bytes that holds no control characters but newline and tab.
func (o *Object) Text(key string, limit int, v *string) {
	var s string
	o.Take(key, &s)
	if o.err != nil {
		return
	}
	if len(s) > limit {
		o.err = fmt.Errorf("field %q is longer than %d bytes", key, limit)
		return
	}
	for _, c := range s {
		if c < ' ' && c != '\n' && c != '\t' || c == 0x7f {
			o.err = fmt.Errorf("field %q holds a control character", key)
			return
		}
	}
	if s != "" {
		*v = s
	}
}

// Sub reads a nested object with read, when it is present and not null.
func (o *Object) Sub(key string, read func(*Object)) {
	raw, ok := o.raw(key)
	if !ok {
		return
	}
	sub, err := Parse(raw)
	if err == nil {
		read(sub)
		err = sub.err
	}
	if err != nil {
		o.err = fmt.Errorf("field %q: %w", key, err)
	}
}
