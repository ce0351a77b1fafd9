package protocol

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// object reads the top level of one JSON object: keys exactly as written, each at most once, nothing after it.
// Nested values stay raw. The caller has capped len(b).
func object(b []byte) (map[string]json.RawMessage, error) {
	if !utf8.Valid(b) {
		return nil, errors.New("not valid UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	first, err := dec.Token()
	if err != nil {
		return nil, fmt.Errorf("not JSON: %w", err)
	}
	if first != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	fields := make(map[string]json.RawMessage)
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return nil, fmt.Errorf("not JSON: %w", err)
		}
		key := tok.(string) // the decoder allows nothing else in this place
		if _, twice := fields[key]; twice {
			return nil, fmt.Errorf("key %q stands twice", key)
		}
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return nil, fmt.Errorf("not JSON: %w", err)
		}
		fields[key] = raw
	}
	if _, err := dec.Token(); err != nil {
		return nil, fmt.Errorf("not JSON: %w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("data after the JSON object")
	}
	return fields, nil
}

// reader takes typed fields out of an object and keeps the first error, so that a caller reads a list of fields and
// asks once.
type reader struct {
	fields map[string]json.RawMessage
	err    error
}

// take decodes field key into v when it is present and not null.
func (r *reader) take(key string, v any) {
	raw, ok := r.fields[key]
	if !ok || r.err != nil || string(raw) == "null" {
		return
	}
	if err := json.Unmarshal(raw, v); err != nil {
		r.err = fmt.Errorf("field %q has the wrong type or range", key)
	}
}

// text takes a string of at most limit bytes that holds no control characters but newline and tab.
func (r *reader) text(key string, limit int, v *string) {
	var s string
	r.take(key, &s)
	if r.err != nil {
		return
	}
	if len(s) > limit {
		r.err = fmt.Errorf("field %q is longer than %d bytes", key, limit)
		return
	}
	for _, c := range s {
		if c < ' ' && c != '\n' && c != '\t' || c == 0x7f {
			r.err = fmt.Errorf("field %q holds a control character", key)
			return
		}
	}
	if s != "" {
		*v = s
	}
}

// sub opens a nested object; nil when it is absent.
func (r *reader) sub(key string) *reader {
	raw, ok := r.fields[key]
	if !ok || r.err != nil || string(raw) == "null" {
		return nil
	}
	fields, err := object(raw)
	if err != nil {
		r.err = fmt.Errorf("field %q: %w", key, err)
		return nil
	}
	return &reader{fields: fields}
}
