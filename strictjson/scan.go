package strictjson

// scan walks once over the text of one JSON value (RFC 8259), which is valid UTF-8. Its methods say false at what is no
// JSON, and at what nests too deep.
type scan struct {
	text string
	at   int
	deep bool // the value nests more than MaxDepth; what is behind that was not looked at
}

// peek is the next byte; 0, which begins nothing, at the end.
func (s *scan) peek() byte {
	if s.at < len(s.text) {
		return s.text[s.at]
	}
	return 0
}

// skip goes past c.
func (s *scan) skip(c byte) bool {
	if s.peek() != c {
		return false
	}
	s.at++
	return true
}

// space goes past what may stand between the parts of JSON.
func (s *scan) space() {
	for s.at < len(s.text) {
		switch s.text[s.at] {
		case ' ', '\t', '\r', '\n':
			s.at++
		default:
			return
		}
	}
}

// value goes past one value. within is how many objects and arrays it stands in.
func (s *scan) value(within int) bool {
	switch c := s.peek(); {
	case c == '"':
		return s.quoted()
	case c == '{' || c == '[':
		if within == MaxDepth {
			s.deep = true
			return false
		}
		s.at++
		return s.list(c == '{', within+1)
	case c == 't':
		return s.word("true")
	case c == 'f':
		return s.word("false")
	case c == 'n':
		return s.word("null")
	}
	return s.number()
}

// list goes past the rest of an object or an array.
func (s *scan) list(object bool, within int) bool {
	end := byte(']')
	if object {
		end = '}'
	}
	if s.space(); s.skip(end) {
		return true
	}
	for {
		if object {
			if _, ok := s.key(); !ok {
				return false
			}
		}
		if !s.value(within) {
			return false
		}
		if s.space(); s.skip(end) {
			return true
		}
		if !s.skip(',') {
			return false
		}
		s.space()
	}
}

// key goes past a key and its colon, to where the value begins, and gives the key with its quotes.
func (s *scan) key() (quoted string, ok bool) {
	from := s.at
	if !s.quoted() {
		return "", false
	}
	quoted = s.text[from:s.at]
	if s.space(); !s.skip(':') {
		return "", false
	}
	s.space()
	return quoted, true
}

func (s *scan) word(word string) bool {
	if len(s.text)-s.at < len(word) || s.text[s.at:s.at+len(word)] != word {
		return false
	}
	s.at += len(word)
	return true
}

func (s *scan) quoted() bool {
	if !s.skip('"') {
		return false
	}
	for s.at < len(s.text) {
		c := s.text[s.at]
		s.at++
		switch {
		case c == '"':
			return true
		case c < ' ':
			return false
		case c == '\\' && !s.escaped():
			return false
		}
	}
	return false
}

// escaped goes past what stands behind a backslash.
func (s *scan) escaped() bool {
	c := s.peek()
	s.at++
	switch c {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return true
	case 'u':
		for range 4 {
			switch c := s.peek(); {
			case c >= '0' && c <= '9', c >= 'a' && c <= 'f', c >= 'A' && c <= 'F':
				s.at++
			default:
				return false
			}
		}
		return true
	}
	return false
}

func (s *scan) number() bool {
	s.skip('-')
	if !s.skip('0') && !s.digits() {
		return false
	}
	if s.skip('.') && !s.digits() {
		return false
	}
	if s.skip('e') || s.skip('E') {
		if !s.skip('+') {
			s.skip('-')
		}
		return s.digits()
	}
	return true
}

// digits goes past one digit at least.
func (s *scan) digits() bool {
	from := s.at
	for c := s.peek(); c >= '0' && c <= '9'; c = s.peek() {
		s.at++
	}
	return s.at > from
}

// object splits the text into the fields of o. An error is about one of them; false says that the text is not one object and
// nothing else, or nests too deep.
func (s *scan) object(o *Object) (ok bool, err error) {
	if s.space(); !s.skip('{') {
		return false, nil
	}
	s.space()
	for more := !s.skip('}'); more; {
		quoted, ok := s.key()
		if !ok {
			return false, nil
		}
		from := s.at
		if !s.value(0) {
			return false, nil
		}
		key, err := unquote(quoted)
		if err != nil {
			return false, nil
		}
		if err := o.add(key, s.text[from:s.at]); err != nil {
			return false, err
		}
		if s.space(); s.skip('}') {
			break
		}
		if !s.skip(',') {
			return false, nil
		}
		s.space()
	}
	s.space()
	return s.at == len(s.text), nil
}
