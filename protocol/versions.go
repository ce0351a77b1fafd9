package protocol

import (
	"strings"

	"github.com/Masterminds/semver/v3"
)

// ParseVersion reads a SemVer 2.0.0 version; a leading v is tolerated. ok is false for everything else ("1.2",
// "v1.2.3-4-gabc123-dirty" is a legal SemVer with a pre-release and is taken as one).
func ParseVersion(s string) (v *semver.Version, ok bool) {
	if len(s) > 64 {
		return nil, false
	}
	v, err := semver.StrictNewVersion(strings.TrimPrefix(s, "v"))
	return v, err == nil
}

// GenericVersion says whether the version in an image's description is a build system's and not a person's: blank,
// Arduino's "esp-idf: v4.4.6", and the 1 that ESP-IDF fills in when it finds no other. It names no release.
func GenericVersion(v string) bool { return v == "" || v == "1" || strings.HasPrefix(v, "esp-idf: ") }

// Newer says whether available should replace running by version order. A device that runs something that is no
// proper version takes every proper release for newer; a release that is no proper version is newer than nothing.
// Build metadata does not order (SemVer 2.0.0 §10).
func Newer(available, running string) bool {
	a, ok := ParseVersion(available)
	if !ok {
		return false
	}
	r, ok := ParseVersion(running)
	return !ok || a.GreaterThan(r)
}

// Older says whether running is below floor. A running version that is no proper one is below every floor; an empty
// or improper floor holds nobody back.
func Older(running, floor string) bool {
	f, ok := ParseVersion(floor)
	if !ok {
		return false
	}
	r, ok := ParseVersion(running)
	return !ok || r.LessThan(f)
}

// SameVersion compares as people write versions: a leading v does not count.
func SameVersion(a, b string) bool { return strings.TrimPrefix(a, "v") == strings.TrimPrefix(b, "v") }

// OnTheWay says whether offered is a step towards the version a command names: newer than what runs and older than what
// is wanted, as a server offers it where a version must be passed through. The command stays open until wanted runs.
func OnTheWay(wanted, offered, running string) bool {
	return Newer(offered, running) && Newer(wanted, offered)
}
