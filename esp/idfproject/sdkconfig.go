package idfproject

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// SDKConfig is the content of a file sdkconfig: values by their full name, such as CONFIG_IDF_TARGET. Texts are without
// their quotes; "# CONFIG_X is not set" is the value n, so that what is off differs from what the file does not know.
type SDKConfig map[string]string

const configPrefix = "CONFIG_"

// ParseSDKConfig reads sdkconfig as Kconfig does: NAME=VALUE lines, of which the last counts, and comments. It is
// stricter in one thing: a line that is neither is refused where Kconfig warns and goes on, because what such a line
// comes from (a merge that was not finished, a file of another kind) makes the rest doubtful.
func ParseSDKConfig(b []byte) (SDKConfig, error) {
	if len(b) > MaxSDKConfig {
		return nil, fmt.Errorf("sdkconfig: %w: %d bytes, at most %d are read", ErrTooLarge, len(b), MaxSDKConfig)
	}
	b = bytes.TrimPrefix(b, []byte("\xef\xbb\xbf"))
	c := make(SDKConfig)
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		line = strings.TrimSpace(line)
		if comment, ok := strings.CutPrefix(line, "#"); ok || line == "" {
			name, off := strings.CutSuffix(comment, " is not set")
			if name = strings.TrimSpace(name); off && isName(name) {
				c[name] = "n"
			}
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok || !isName(name) {
			return nil, fmt.Errorf("sdkconfig: %w: line %d is neither NAME=VALUE nor a comment", ErrSyntax, n)
		}
		if strings.HasPrefix(value, `"`) {
			if value, ok = unquote(value); !ok {
				return nil, fmt.Errorf("sdkconfig: %w: line %d has a text without its end", ErrSyntax, n)
			}
		}
		c[name] = value
	}
	return c, nil
}

// isName says whether s is CONFIG_ and at least one of A-Z a-z 0-9 _.
func isName(s string) bool {
	rest, ok := strings.CutPrefix(s, configPrefix)
	return ok && rest != "" && !strings.ContainsFunc(rest, func(r rune) bool {
		return r != '_' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	})
}

// unquote takes the quotes from a text; a backslash stands before a quote or backslash of the text itself. ok is false
// where the closing quote is missing or something follows it.
func unquote(s string) (text string, ok bool) {
	var t strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			return t.String(), i == len(s)-1
		case '\\':
			if i++; i == len(s) {
				return "", false
			}
		}
		t.WriteByte(s[i])
	}
	return "", false
}

// On says whether a switch is set: y. What is missing is off.
func (c SDKConfig) On(name string) bool { return c[name] == "y" }

// Int is a number, decimal or 0x-hexadecimal; ok is false where it is missing or no number.
func (c SDKConfig) Int(name string) (n int64, ok bool) {
	digits, base := c[name], 10
	if hex, isHex := strings.CutPrefix(strings.ToLower(digits), "0x"); isHex {
		digits, base = hex, 16
	}
	n, err := strconv.ParseInt(digits, base, 64)
	return n, err == nil
}
