package lint

import "strings"

// kind of a word of C.
type kind byte

const (
	name   kind = 'n' // identifiers, keywords and numbers
	text   kind = 't' // a string, without its quotes
	symbol kind = 's' // one character
)

// word is one word of a C or C++ source.
type word struct {
	kind kind
	text string
	line int
}

func (w word) is(s string) bool { return w.kind != text && w.text == s }

// define is a macro that stands for a string.
type define struct {
	value string
	file  *file
	line  int
}

// words splits a source into words, without comments and without preprocessor lines; macros that stand for a string go to
// define. It does not compile: both sides of an #if are there, and a raw string of C++ comes out in pieces.
func (f *file) words(define func(macro, value string, line int)) []word {
	var list []word
	s, line := f.text, 1
	fresh := true // nothing but blanks on this line so far
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '\n':
			line, fresh = line+1, true
			i++
		case c == ' ' || c == '\t' || c == '\r' || c == '\\':
			i++
		case strings.HasPrefix(s[i:], "//"):
			i += untilLineEnd(s[i:])
		case strings.HasPrefix(s[i:], "/*"):
			end := strings.Index(s[i+2:], "*/")
			if end < 0 {
				return list
			}
			line += strings.Count(s[i:i+2+end], "\n")
			i += end + 4
		case c == '#' && fresh:
			n := untilLineEnd(s[i:])
			for i+n < len(s) && strings.HasSuffix(strings.TrimRight(s[i:i+n], "\r"), "\\") {
				n += 1 + untilLineEnd(s[i+n+1:])
			}
			defineOf(s[i:i+n], line, define)
			line += strings.Count(s[i:i+n], "\n")
			i += n
		case c == '"':
			n := quoted(s[i:])
			list = append(list, word{text, strings.TrimSuffix(s[i+1:i+n], `"`), line})
			line += strings.Count(s[i:i+n], "\n") // a backslash ends the line, not the string
			i, fresh = i+n, false
		case c == '\'':
			i, fresh = i+quoted(s[i:]), false
		case isNameByte(c):
			n := 1
			for i+n < len(s) && (isNameByte(s[i+n]) || s[i+n] == '\'' && c >= '0' && c <= '9') { // 1'000 is a number
				n++
			}
			list = append(list, word{name, s[i : i+n], line})
			i, fresh = i+n, false
		default:
			list = append(list, word{symbol, s[i : i+1], line})
			i, fresh = i+1, false
		}
	}
	return list
}

func isNameByte(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}

func untilLineEnd(s string) int {
	if n := strings.IndexByte(s, '\n'); n >= 0 {
		return n
	}
	return len(s)
}

// quoted gives the length of the string or character at the start of s, with its quotes. It ends with its line at the latest.
func quoted(s string) int {
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case s[0]:
			return i + 1
		case '\n':
			return i
		case '\\':
			i++
		}
	}
	return len(s)
}

// defineOf reads "#define MACRO "value"".
func defineOf(directive string, line int, define func(macro, value string, line int)) {
	directive = strings.NewReplacer("\\\r\n", " ", "\\\n", " ").Replace(directive)
	rest, ok := strings.CutPrefix(strings.TrimSpace(strings.TrimPrefix(directive, "#")), "define")
	if !ok {
		return
	}
	rest = strings.TrimSpace(rest)
	n := 0
	for n < len(rest) && isNameByte(rest[n]) {
		n++
	}
	value := strings.TrimSpace(rest[n:])
	if n > 0 && len(value) > 1 && value[0] == '"' {
		define(rest[:n], strings.TrimSuffix(value[1:quoted(value)], `"`), line)
	}
}
