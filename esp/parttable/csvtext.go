package parttable

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// errorString is a refusal without its line; parseLines adds that.
type errorString string

func (e errorString) Error() string { return string(e) }

// maxNumber bounds the numbers of a CSV text. Anything above it is far beyond what a table can hold, and sums of a few such
// numbers stay within 64 bits.
const maxNumber = 1 << 60

// decodeText gives the text as UTF-8, by its byte order mark if it has one.
func decodeText(b []byte) (string, error) {
	var s string
	switch {
	case bytes.HasPrefix(b, []byte{0xEF, 0xBB, 0xBF}):
		s = string(b[3:])
	// Before UTF-16, whose mark is the first half of this one.
	case bytes.HasPrefix(b, []byte{0xFF, 0xFE, 0, 0}):
		return decodeUTF32(b[4:], binary.LittleEndian)
	case bytes.HasPrefix(b, []byte{0, 0, 0xFE, 0xFF}):
		return decodeUTF32(b[4:], binary.BigEndian)
	case bytes.HasPrefix(b, []byte{0xFF, 0xFE}):
		return decodeUTF16(b[2:], binary.LittleEndian)
	case bytes.HasPrefix(b, []byte{0xFE, 0xFF}):
		return decodeUTF16(b[2:], binary.BigEndian)
	default:
		s = string(b)
	}
	if !utf8.ValidString(s) {
		return "", notText("UTF-8")
	}
	return s, nil
}

func notText(encoding string) error {
	return &CSVError{Message: "the text is not " + encoding}
}

func decodeUTF16(b []byte, order binary.ByteOrder) (string, error) {
	if len(b)%2 != 0 {
		return "", notText("UTF-16")
	}
	var s strings.Builder
	for i := 0; i < len(b); i += 2 {
		r := rune(order.Uint16(b[i:]))
		if utf16.IsSurrogate(r) {
			i += 2
			if i >= len(b) {
				return "", notText("UTF-16")
			}
			// The escape for a broken pair cannot come out of a whole one, which lies above 0xFFFF.
			if r = utf16.DecodeRune(r, rune(order.Uint16(b[i:]))); r == unicode.ReplacementChar {
				return "", notText("UTF-16")
			}
		}
		s.WriteRune(r)
	}
	return s.String(), nil
}

func decodeUTF32(b []byte, order binary.ByteOrder) (string, error) {
	if len(b)%4 != 0 {
		return "", notText("UTF-32")
	}
	var s strings.Builder
	for ; len(b) > 0; b = b[4:] {
		u := order.Uint32(b)
		if u > unicode.MaxRune || !utf8.ValidRune(rune(u)) {
			return "", notText("UTF-32")
		}
		s.WriteRune(rune(u))
	}
	return s.String(), nil
}

// isSpace is Python's idea of blank, which str.strip and int go by: Unicode's and the four ASCII separators.
func isSpace(r rune) bool { return unicode.IsSpace(r) || 0x1C <= r && r <= 0x1F }

// splitLines splits where Python's str.splitlines does; line numbers in messages depend on it.
func splitLines(s string) []string {
	var lines []string
	start := 0
	for i, r := range s {
		if i < start {
			continue // the LF of a CRLF that ended the line before
		}
		end := i + utf8.RuneLen(r)
		switch r {
		case '\r':
			if strings.HasPrefix(s[end:], "\n") {
				end++
			}
		case '\n', '\v', '\f', 0x1C, 0x1D, 0x1E, 0x85, 0x2028, 0x2029:
		default:
			continue
		}
		lines = append(lines, s[start:i])
		start = end
	}
	if start < len(s) {
		lines = append(lines, s[start:])
	}
	return lines
}

// expand puts values in the place of $NAME and ${NAME}, once, as Python's os.path.expandvars does. An unknown variable stays,
// except at the start of the line, where the generator refuses it.
func expand(line string, lookup func(string) (string, bool)) (string, error) {
	var out strings.Builder
	for rest := line; ; {
		before, after, found := strings.Cut(rest, "$")
		out.WriteString(before)
		if !found {
			break
		}
		name, tail, ok := variable(after)
		var value string
		if ok && lookup != nil {
			value, ok = lookup(name)
		} else {
			ok = false
		}
		if ok {
			if out.Len()+len(value) > MaxCSVSize {
				return "", &CSVError{Message: fmt.Sprintf("a line grows past %d bytes when $%s is put in", MaxCSVSize, name)}
			}
			out.WriteString(value)
			rest = tail
			continue
		}
		out.WriteByte('$')
		rest = after
	}
	s := out.String()
	if name := strings.TrimPrefix(s, "$"); name != s && name != "" && isNameByte(name[0]) && (name[0] < '0' || name[0] > '9') {
		return "", &CSVError{Message: fmt.Sprintf("unknown variable '%s'", name[:nameLen(name)])}
	}
	return s, nil
}

// variable splits what follows a dollar sign into the variable's name and the rest.
func variable(s string) (name, rest string, ok bool) {
	if strings.HasPrefix(s, "{") {
		name, rest, ok = strings.Cut(s[1:], "}")
		return name, rest, ok
	}
	n := nameLen(s)
	return s[:n], s[n:], n > 0
}

func nameLen(s string) int {
	n := 0
	for n < len(s) && isNameByte(s[n]) {
		n++
	}
	return n
}

func isNameByte(c byte) bool {
	return c == '_' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// parseInt reads a number as the generator does: Python's int(s, 0), after any run of k and m suffixes, or a keyword.
// The keyword is looked up without the suffixes too, so nothing may end in k or m.
func parseInt(s string, words []word) (int64, error) {
	factor := int64(1)
	tooBig := false
	for {
		last, size := utf8.DecodeLastRuneInString(s)
		step := int64(1)
		switch unicode.ToLower(last) {
		case 'k':
			step = 1 << 10
		case 'm':
			step = 1 << 20
		}
		if step == 1 {
			break
		}
		if factor > maxNumber/step {
			tooBig = true
		} else {
			factor *= step
		}
		s = s[:len(s)-size]
	}
	value, ok, err := pythonInt(s)
	if err != nil {
		return 0, err
	}
	if !ok {
		if len(words) == 0 {
			return 0, errorString("Invalid field value " + s)
		}
		if value, ok = lookupValue(words, strings.ToLower(s)); !ok {
			names := make([]string, len(words))
			for i, w := range words {
				names[i] = w.name
			}
			return 0, errorString(fmt.Sprintf("Value '%s' is not valid. Known keywords: %s", s, strings.Join(names, ", ")))
		}
	}
	if value != 0 && (tooBig || value > maxNumber/factor || value < -maxNumber/factor) {
		return 0, errorString("Field value " + s + " is too large")
	}
	return value * factor, nil
}

// pythonInt is Python's int(s, 0): ok is false where that raises ValueError. An error means a number that is right but
// beyond anything a table can use.
func pythonInt(s string) (value int64, ok bool, err error) {
	s = strings.TrimFunc(s, isSpace)
	digits := strings.TrimLeft(s, "+-")
	if len(s)-len(digits) > 1 {
		return 0, false, nil
	}
	// Go reads 010 as octal where Python wants 0o10; only zeros may follow a leading zero.
	if len(digits) > 1 && digits[0] == '0' && isDigitOrBar(digits[1]) && strings.Trim(digits, "0_") != "" {
		return 0, false, nil
	}
	value, parseErr := strconv.ParseInt(s, 0, 64)
	if parseErr == nil {
		return value, true, nil
	}
	if ne, isNum := parseErr.(*strconv.NumError); isNum && ne.Err == strconv.ErrRange {
		return 0, false, errorString("Field value " + s + " is too large")
	}
	return 0, false, nil
}

func isDigitOrBar(c byte) bool { return c == '_' || '0' <= c && c <= '9' }

// pyHex writes a number as Python's 0x%x does, sign behind the prefix.
func pyHex(n int64) string { return fmt.Sprintf("0x%x", n) }
