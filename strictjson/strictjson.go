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
	"math"
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
	fields []field
	next   int // of fields: behind the one that was asked for last, because most are asked for in the order they come in
	err    error
}

// field is a key and the text of its value.
type field struct{ key, raw string }

// fieldsAtFirst is room for what a status or a command says.
const fieldsAtFirst = 24

// Parse reads the top level of one JSON object; nested values stay raw. The caller has capped len(b), and may use b again.
//
// A server reads thousands of statuses a second so: it is one walk over a copy of the bytes, of which the fields are parts.
func Parse(b []byte) (*Object, error) {
	if !utf8.Valid(b) {
		return nil, errors.New("not valid UTF-8")
	}
	return parse(string(b))
}

func parse(text string) (*Object, error) {
	o, s := &Object{fields: make([]field, 0, fieldsAtFirst)}, scan{text: text}
	switch ok, err := s.object(o); {
	case err != nil:
		return nil, err
	case s.deep:
		return nil, fmt.Errorf("nests more than %d deep", MaxDepth)
	case !ok:
		return nil, fault([]byte(text))
	}
	return o, nil
}

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

// plain is the text between the quotes of a JSON string that needs no decoding.
func plain(raw string) (text string, ok bool) {
	if raw[0] != '"' || strings.IndexByte(raw, '\\') >= 0 {
		return "", false
	}
	return raw[1 : len(raw)-1], true
}

func unquote(raw string) (string, error) {
	if text, ok := plain(raw); ok {
		return text, nil
	}
	var text string
	err := json.Unmarshal([]byte(raw), &text)
	return text, err
}

func (o *Object) add(key, raw string) error {
	for i := range o.fields {
		if o.fields[i].key == key {
			return fmt.Errorf("key %q stands twice", key)
		}
	}
	if len(o.fields) == MaxKeys {
		return fmt.Errorf("more than %d keys", MaxKeys)
	}
	o.fields = append(o.fields, field{key, raw})
	return nil
}

// Set adds a field that came in another form than JSON; v is a string, a number or a bool. It fails where Parse would:
// a key that stands twice, too many of them. The zero Object can be added to.
func (o *Object) Set(key string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("field %q: %w", key, err)
	}
	return o.add(key, string(raw))
}

// Err is the first error of Take, Text and Sub.
func (o *Object) Err() error { return o.err }

// raw is the field's JSON; ok is false where it is absent, null, or there was an error before.
func (o *Object) raw(key string) (raw string, ok bool) {
	if o.err != nil {
		return "", false
	}
	for range o.fields {
		if o.next == len(o.fields) {
			o.next = 0
		}
		f := &o.fields[o.next]
		o.next++
		if f.key == key {
			return f.raw, f.raw != "null"
		}
	}
	return "", false
}

// Take decodes field key into v, a pointer to a bool, string or number, when it is present and not null.
func (o *Object) Take(key string, v any) {
	raw, ok := o.raw(key)
	if !ok || takePlain(raw, v) {
		return
	}
	number := raw[0] == '-' || raw[0] >= '0' && raw[0] <= '9'
	if err := json.Unmarshal([]byte(raw), v); err != nil || number && len(raw) > MaxNumber {
		o.err = fmt.Errorf("field %q has the wrong type or range", key)
	}
}

// takePlain decodes what nearly all fields are: a text without escapes, a bool, a number of a few digits. It leaves the rest, and
// what is wrong, to encoding/json.
func takePlain(raw string, v any) bool {
	switch v := v.(type) {
	case *string:
		text, ok := plain(raw)
		if ok {
			*v = text
		}
		return ok
	case *bool:
		if ok := raw == "true" || raw == "false"; !ok {
			return false
		}
		*v = raw == "true"
		return true
	}
	n, ok := digits(raw)
	if !ok {
		return false
	}
	switch v := v.(type) {
	case *int:
		*v, ok = int(n), n <= math.MaxInt
	case *int64:
		*v = n
	case *uint32:
		*v, ok = uint32(n), n <= math.MaxUint32
	case *uint64:
		*v = uint64(n)
	default:
		ok = false
	}
	return ok
}

// digits is a number of nothing but digits, of so few that it fits.
func digits(raw string) (n int64, ok bool) {
	if len(raw) > 18 {
		return 0, false
	}
	for i := range len(raw) {
		if raw[i] < '0' || raw[i] > '9' {
			return 0, false
		}
		n = 10*n + int64(raw[i]-'0')
	}
	return n, true
}

// Text takes a string of at most limit bytes that holds no control characters but newline and tab.
func (o *Object) Text(key string, limit int, v *string) {
	raw, ok := o.raw(key)
	if !ok {
		return
	}
	s, err := unquote(raw)
	if err != nil {
		o.err = fmt.Errorf("field %q has the wrong type or range", key)
		return
	}
	if len(s) > limit {
		o.err = fmt.Errorf("field %q is longer than %d bytes", key, limit)
		return
	}
	for _, c := range []byte(s) {
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
	sub, err := parse(raw)
	if err == nil {
		read(sub)
		err = sub.err
	}
	if err != nil {
		o.err = fmt.Errorf("field %q: %w", key, err)
	}
}
