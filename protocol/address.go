package protocol

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// MaxURL is how long an address may be that a device is told, in bytes.
const MaxURL = 400

// The addresses in a device's configuration have one narrow form, so that the reader in C and net/url cannot see
// different servers in one text: scheme in lower case, a host, perhaps a port. Every address of this form is one for
// net/url too.

// checkServerURL refuses what is no http(s) address: printable ASCII, without user name and fragment. plain says that it is
// http.
func checkServerURL(s string) (plain bool, err error) {
	rest, secure := strings.CutPrefix(s, "https://")
	if !secure {
		if rest, plain = strings.CutPrefix(s, "http://"); !plain {
			return false, fmt.Errorf("server_url %q does not begin with https:// or http://", s)
		}
	}
	authority := rest
	if end := strings.IndexAny(rest, "/?"); end >= 0 {
		authority = rest[:end]
	}
	if _, _, err := hostPort(authority); err != nil {
		return false, fmt.Errorf("server_url %q: %w", s, err)
	}
	for i, c := range []byte(rest) {
		switch {
		case c <= ' ' || c > '~' || c == '#':
			return false, fmt.Errorf("server_url %q holds a character that an address cannot have", s)
		case c == '%' && (len(rest) < i+3 || !isHex(rest[i+1]) || !isHex(rest[i+2])):
			return false, fmt.Errorf("server_url %q: a %% is not followed by two hex digits", s)
		}
	}
	return plain, nil
}

// brokerAddress reads the broker of the older mqtt_config.txt; port is 0 where it names none.
func brokerAddress(s string) (host string, port int, tls bool, err error) {
	scheme, rest, ok := strings.Cut(s, "://")
	tls = scheme == "mqtts" || scheme == "ssl"
	if !ok || !tls && scheme != "mqtt" && scheme != "tcp" {
		return "", 0, false, fmt.Errorf("broker %q is not mqtt://host:port or mqtts://host:port", s)
	}
	if host, port, err = hostPort(strings.TrimSuffix(rest, "/")); err != nil {
		return "", 0, false, fmt.Errorf("broker %q: %w", s, err)
	}
	return host, port, tls, nil
}

// hostPort reads host, host:port, [IPv6] and [IPv6]:port. The host comes back without brackets.
func hostPort(s string) (host string, port int, err error) {
	tail := ""
	if rest, bracket := strings.CutPrefix(s, "["); bracket {
		var closed bool
		if host, tail, closed = strings.Cut(rest, "]"); !closed || !isIPv6(host) {
			return "", 0, errors.New("what stands in brackets is no IPv6 address")
		}
	} else {
		if host = s; strings.Contains(s, ":") {
			host, tail = s[:strings.Index(s, ":")], s[strings.Index(s, ":"):]
		}
		if !isHostName(host) {
			return "", 0, errors.New("no host name (letters, digits, . - _ and no user name before it)")
		}
	}
	if tail == "" {
		return host, 0, nil
	}
	digits, ok := strings.CutPrefix(tail, ":")
	if port, err = strconv.Atoi(digits); !ok || err != nil || len(digits) > 5 || digits[0] == '+' || port < 1 || port > 65535 {
		return "", 0, errors.New("the port is not within 1 to 65535")
	}
	return host, port, nil
}

func isHostName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for _, c := range []byte(s) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && c != '.' && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

// isIPv6 takes groups of hex digits only: no zone, no IPv4 tail.
func isIPv6(s string) bool {
	addr, err := netip.ParseAddr(s)
	return err == nil && addr.Is6() && !strings.ContainsAny(s, ".%")
}

func isHex(c byte) bool { return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F' }
