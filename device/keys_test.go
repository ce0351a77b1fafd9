package device

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/device/internal/agent"
	"bmsota/device/internal/norflash"
	"bmsota/esp/appimage"
	"bmsota/esp/parttable"
	"bmsota/manifest"
	"bmsota/protocol"
)

// carrying is an image with a set of trusted keys in it; with room for one only where the sequence is 0.
func carrying(t testing.TB, v string, sequence uint32, keys ...*ecdsa.PrivateKey) []byte {
	t.Helper()
	return carryingIn(t, 64<<10, v, sequence, keys...)
}

func carryingIn(t testing.TB, size int64, v string, sequence uint32, keys ...*ecdsa.PrivateKey) []byte {
	t.Helper()
	b := image(t, v, func(o *appimage.BuildOptions) { o.Size, o.Extra = size, manifest.AppendRoom(nil) })
	if sequence == 0 {
		return b
	}
	set := manifest.Trust{Sequence: sequence}
	for _, key := range keys {
		set.Keys = append(set.Keys, &key.PublicKey)
	}
	b, err := manifest.WithBuiltin(b, set)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// trustingAll is a piece of settings with several keys, of which some have to sign.
func trustingAll(t testing.TB, threshold int, keys ...*ecdsa.PrivateKey) string {
	t.Helper()
	var text string
	for _, key := range keys {
		pem, err := manifest.EncodePublicKey(&key.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		text += string(pem)
	}
	return fmt.Sprintf(`,"trusted_key_pem":%q,"trusted_threshold":%d`, text, threshold)
}

// ends runs one update on a board that runs image and tells how it ends.
func ends(t *testing.T, running []byte, settings string, next []byte, f protocol.VersionFile, mutant agent.Mutant) (result string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, layout(running, settings), serve(t, f, next), func(c *Config) { c.mutant = mutant })
		updated(b, 5*time.Minute)
		last := b.hub.last()
		result = fmt.Sprintf("%s:%s", last.Phase, last.Reason)
		if last.ImageSHA256 == sha(next) {
			result = "runs"
		}
	})
	return result
}

func TestThresholdOfTheSettingsCountsDifferentKeys(t *testing.T) {
	one, two, three, stranger := newKey(t), newKey(t), newKey(t), newKey(t)
	running, next := image(t, "1.0.0"), image(t, "1.1.0")
	signed := func(first *ecdsa.PrivateKey, beside ...*ecdsa.PrivateKey) protocol.VersionFile {
		f := release(t, next, first)
		for _, key := range beside {
			var err error
			if f.Cosignatures, err = manifest.Cosign(f.Manifest, f.Cosignatures, key); err != nil {
				t.Fatal(err)
			}
		}
		return f
	}
	two3 := trustingAll(t, 2, one, two, three)
	for _, c := range []struct {
		name, settings string
		file           protocol.VersionFile
		want           string
	}{
		{"any of several", trustingAll(t, 0, one, two), signed(two), "runs"},
		{"none of several", trustingAll(t, 0, one, two), signed(three), "refused:bad_signature"},
		{"a new key beside the old", trustingAll(t, 0, two), signed(one, two), "runs"},
		{"two of three", two3, signed(one, three), "runs"},
		{"two of three behind a stranger", two3, signed(stranger, two, three), "runs"},
		{"one of three", two3, signed(one), "refused:bad_signature"},
		{"the same twice", two3, signed(one, one), "refused:bad_signature"},
		{"one and a stranger", two3, signed(one, stranger), "refused:bad_signature"},
		{"nothing", two3, release(t, next, nil), "refused:unsigned"},
		{"more than there are", trustingAll(t, 3, one, two), signed(one, two), "idle:bad_config"},
		{"a threshold and no key", `,"trusted_threshold":1`, signed(one), "idle:bad_config"},
	} {
		if got := ends(t, running, c.settings, next, c.file, agent.MutantNone); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestTheKeysOfTheRunningImageCountAndNoOthers(t *testing.T) {
	old, now := newKey(t), newKey(t)
	settings := trusting(t, old)
	bent := carrying(t, "1.0.0", 1, now)
	for _, c := range []struct {
		name          string
		running, next []byte
		key           *ecdsa.PrivateKey
		settings      string
		mutant        agent.Mutant
		want          string
	}{
		{"the old key brings the new one", carrying(t, "1.0.0", 0), carrying(t, "1.1.0", 1, now), old, settings, agent.MutantNone, "runs"},
		{"the new key cannot bring itself", carrying(t, "1.0.0", 0), carrying(t, "1.1.0", 1, now), now, settings, agent.MutantNone, "refused:bad_signature"},
		{"the new key afterwards", bent, carrying(t, "1.1.0", 1, now), now, settings, agent.MutantNone, "runs"},
		{"the old key afterwards", bent, carrying(t, "1.1.0", 1, now), old, settings, agent.MutantNone, "refused:bad_signature"},
		{"the old key brings itself back", bent, carrying(t, "1.1.0", 2, old), old, settings, agent.MutantNone, "refused:bad_signature"},
		{"a board without a key in its settings", bent, carrying(t, "1.1.0", 1, now), old, "", agent.MutantNone, "refused:bad_signature"},
		{"an image that forgets the keys", bent, carrying(t, "1.1.0", 0), now, settings, agent.MutantNone, "failed:security_floor"},
		{"an image that forgets the keys, unnoticed", bent, carrying(t, "1.1.0", 0), now, settings, agent.MutantOlderKeys, "runs"},
		{"an older set", carrying(t, "1.0.0", 2, now), carrying(t, "1.1.0", 1, old), now, settings, agent.MutantNone, "failed:security_floor"},
		{"unsigned", bent, carrying(t, "1.1.0", 1, now), nil, settings, agent.MutantNone, "refused:unsigned"},
	} {
		if got := ends(t, c.running, c.settings, c.next, release(t, c.next, c.key), c.mutant); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// The keys change with the boot record, so there is no moment at which a board has none, or those of another image.
func TestPowerCutSweepOfARotation(t *testing.T) {
	old, now := newKey(t), newKey(t)
	running, next := carrying(t, "1.0.0", 0), carrying(t, "1.1.0", 1, now)
	f := release(t, next, old)
	var err error
	if f.Cosignatures, err = manifest.Cosign(f.Manifest, "", now); err != nil {
		t.Fatal(err)
	}
	table := parttable.Default()
	table[5].Size = 64 << 10
	sw := sweepIn(t, table, 0, old, running, next, toNew)
	sw.server, sw.metadataOnly = serve(t, f, next), true
	if f := sw.report(t); f.distinct < 50 {
		t.Errorf("only %d states", f.distinct)
	}
}

// deadAuthority fails every request over TLS as a certificate that is not trusted does, and sends the others on.
type deadAuthority struct{ mirror *server }

func (d deadAuthority) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme == "https" {
		return nil, &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}
	}
	return d.mirror.RoundTrip(r)
}

func TestTheMirrorIsForBoardsWithAKeyAndIsNotToldWhoAsks(t *testing.T) {
	key, stranger := newKey(t), newKey(t)
	next := image(t, "1.1.0")
	const mirror = `,"mirror_url":"http://mirror.example/firmware.bin"`
	static := func(f protocol.VersionFile) *server {
		s := serve(t, f, next)
		s.version, s.static = nil, s.version
		return s
	}
	for _, c := range []struct {
		name, settings string
		file           protocol.VersionFile
		runs, asked    bool
	}{
		{"a key", trusting(t, key) + mirror, release(t, next, key), true, true},
		{"a stranger's release", trusting(t, key) + mirror, release(t, next, stranger), false, true},
		{"an unsigned release", trusting(t, key) + mirror, release(t, next, nil), false, true},
		{"no key", mirror, release(t, next, key), false, false},
		{"no mirror", trusting(t, key), release(t, next, key), false, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := static(c.file)
			b := newBench(t, layout(image(t, "1.0.0"), c.settings), s, func(cfg *Config) { cfg.Transport = deadAuthority{s} })
			updated(b, 5*time.Minute)
			if got := b.hub.last().ImageSHA256 == sha(next); got != c.runs || (len(s.requests) > 0) != c.asked {
				t.Errorf("%s: installed %v, %d requests: %s", c.name, got, len(s.requests), b.hub.phases())
			}
			for _, r := range s.requests {
				if r.URL.RawQuery != "" || r.Header.Get("Authorization") != "" {
					t.Errorf("%s: the mirror was told %s", c.name, r.URL)
				}
			}
		})
	}
}

// portal is a mirror behind deadAuthority that answers in its own way once the image is downloaded.
type portal struct {
	deadAuthority
	then http.RoundTripper
}

func (p portal) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme == "http" && p.mirror.log(".bin") > 0 && strings.HasSuffix(r.URL.Path, ".json") {
		return p.then.RoundTrip(r)
	}
	return p.deadAuthority.RoundTrip(r)
}

type answer func(r *http.Request) (*http.Response, error)

func (a answer) RoundTrip(r *http.Request) (*http.Response, error) { return a(r) }

// In a trial the mirror stands for the server only with what a trusted key signed: an image that cannot reach its server
// must not be kept because a hotel's network answers everything.
func TestATrialIsNotEndedByWhoeverAnswersForTheMirror(t *testing.T) {
	key, stranger := newKey(t), newKey(t)
	next := image(t, "1.1.0")
	of := func(key *ecdsa.PrivateKey) http.RoundTripper {
		s := serve(t, release(t, next, key), next)
		s.version, s.static = nil, s.version
		return s
	}
	says := func(code int, body string) http.RoundTripper {
		return answer(func(r *http.Request) (*http.Response, error) { return plain(r, code, []byte(body)), nil })
	}
	for _, c := range []struct {
		name string
		then http.RoundTripper
		kept bool
	}{
		{"the mirror", of(key), true},
		{"a stranger's release", of(stranger), false},
		{"an unsigned release", of(nil), false},
		{"a page of a hotel", says(http.StatusOK, "<html>Welcome!</html>"), false},
		{"nothing", says(http.StatusNotFound, ""), false},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := of(key).(*server)
			settings := trusting(t, key) + `,"mirror_url":"http://mirror.example/firmware.bin"`
			b := newBench(t, layout(image(t, "1.0.0"), settings), s, func(cfg *Config) { cfg.Transport = portal{deadAuthority{s}, c.then} })
			updated(b, 20*time.Minute)
			if got := b.hub.last().ImageSHA256 == sha(next); got != c.kept || s.log(".bin") == 0 {
				t.Errorf("%s: kept %v: %s", c.name, got, b.hub.phases())
			}
		})
	}
}

// An update that brings keys comes through the mirror: cut in all its operations on metadata, and in a sample of the others.
func TestPowerCutSweepThroughTheMirror(t *testing.T) {
	old, now := newKey(t), newKey(t)
	running, next := carryingIn(t, 16<<10, "1.0.0", 0), carryingIn(t, 16<<10, "1.1.0", 1, now)
	f := release(t, next, old)
	var err error
	if f.Cosignatures, err = manifest.Cosign(f.Manifest, "", now); err != nil {
		t.Fatal(err)
	}
	l := layout(running, trusting(t, old)+`,"mirror_url":"http://mirror.example/firmware.bin"`)
	l.Table, l.Size = componentTable(), 1<<20
	start, err := l.build()
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, f, next)
	s.version, s.static = nil, s.version
	sw := &sweep{layout: l, old: running, next: next, story: &story{start: start, table: l.Table, order: update, server: deadAuthority{s},
		images: [][]byte{running, next}, final: next}}
	x := sw.explorer(t, 1)
	x.passes = []func(int, norflash.Op) bool{func(i int, op norflash.Op) bool { return long(t) || i%8 == 0 || sw.metadata(op) }}
	if f := reportOf(t, x); f.distinct < 300 {
		t.Errorf("only %d states", f.distinct)
	}
}
