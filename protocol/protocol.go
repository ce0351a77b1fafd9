// Package protocol is what a device and a server say to each other: topics, commands, statuses, phases and their
// legal order, version.json, the two configuration files on a device's storage partition, and the closed set of
// reasons. Both halves of bmsota import it and share nothing else but the manifest and Espressif's formats.
//
// It holds decisions that both halves must make alike (which version is newer, may this device take this release, may
// it start now) as pure functions, so that a dry run on the server and a refusal on the device cannot disagree.
//
// It does no I/O and keeps no state. Everything it parses may come from an attacker: sizes are capped before
// anything is decoded, keys are matched exactly (encoding/json alone would match "ACTION" too), a key that stands twice
// is refused, and unknown keys are ignored so that newer peers can say more.
//
// The text of the protocol is docs/protocol.md; its examples are read by this package's tests.
package protocol

import (
	"fmt"
	"strings"
)

// Version is the number a device sends in its statuses as `protocol`. A peer ignores what it does not know, so the
// number only grows when an old peer would do something wrong.
const Version = 1

// DefaultPrefix is the topic prefix of the original tool.
const DefaultPrefix = "bms/ota"

// MaxDeviceID is the longest device id, in bytes.
const MaxDeviceID = 64

// Topics builds and reads the four topics below one prefix. The zero value uses DefaultPrefix.
type Topics struct{ Prefix string }

func (t Topics) prefix() string {
	if t.Prefix == "" {
		return DefaultPrefix
	}
	return t.Prefix
}

// CommandAll is the shared command topic: server or operator to every device.
func (t Topics) CommandAll() string { return t.prefix() + "/command" }

// Command is the command topic of one device.
func (t Topics) Command(device string) string { return t.prefix() + "/command/" + device }

// StatusAll is the status topic of firmware that does not name itself.
func (t Topics) StatusAll() string { return t.prefix() + "/status" }

// Status is the status topic of one device.
func (t Topics) Status(device string) string { return t.prefix() + "/status/" + device }

// StatusFilter is the subscription that receives every status, StatusAll included: in MQTT a trailing # matches the
// parent level too (MQTT 3.1.1 §4.7.1.2).
func (t Topics) StatusFilter() string { return t.prefix() + "/status/#" }

// CommandFilter is the subscription that receives every command.
func (t Topics) CommandFilter() string { return t.prefix() + "/command/#" }

// Kind says which of the four topics a topic is.
type Kind int

// The kinds of topic. KindOther is every topic that is not ours.
const (
	KindOther Kind = iota
	KindCommand
	KindStatus
)

// Parse splits a topic literally, segment by segment; it never matches wildcards. device is empty for the shared
// topics. A topic whose device segment is no valid device id is KindOther.
func (t Topics) Parse(topic string) (kind Kind, device string) {
	rest, ok := strings.CutPrefix(topic, t.prefix()+"/")
	if !ok {
		return KindOther, ""
	}
	word, id, named := strings.Cut(rest, "/")
	switch word {
	case "command":
		kind = KindCommand
	case "status":
		kind = KindStatus
	default:
		return KindOther, ""
	}
	if !named {
		return kind, ""
	}
	if CheckDeviceID(id) != nil {
		return KindOther, ""
	}
	return kind, id
}

// CheckPrefix refuses a topic prefix that could escape or collide: empty levels, wildcards, $-topics, more than 128
// bytes, anything but printable ASCII.
func CheckPrefix(p string) error {
	if p == "" || len(p) > 128 {
		return fmt.Errorf("topic prefix must be 1 to 128 bytes, this one is %d", len(p))
	}
	for level := range strings.SplitSeq(p, "/") {
		if level == "" {
			return fmt.Errorf("topic prefix %q has an empty level", p)
		}
	}
	for _, c := range []byte(p) {
		if c <= ' ' || c > '~' || c == '+' || c == '#' || c == '$' {
			return fmt.Errorf("topic prefix %q has a character that is not allowed (no wildcards, no $, printable ASCII only)", p)
		}
	}
	return nil
}

// CheckDeviceID says whether id can name a device: 1 to 64 of A-Z a-z 0-9 . _ : - and not starting with a sign. So an
// id is one literal topic segment, a file name and a URL query value as it stands.
func CheckDeviceID(id string) error {
	if id == "" || len(id) > MaxDeviceID {
		return fmt.Errorf("device id must be 1 to %d characters, this one has %d", MaxDeviceID, len(id))
	}
	for i, c := range []byte(id) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && (i == 0 || !strings.ContainsRune("._:-", rune(c))) {
			return fmt.Errorf("device id %q may hold letters, digits and . _ : - only, and starts with a letter or digit", id)
		}
	}
	return nil
}

// DeviceID is the id a device has when its configuration gives none: "bms-" and the last three bytes of its MAC in
// lower-case hex.
func DeviceID(mac [6]byte) string { return fmt.Sprintf("bms-%02x%02x%02x", mac[3], mac[4], mac[5]) }
