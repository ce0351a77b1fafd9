package device

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"bmsota/device/internal/agent"
	"bmsota/esp/appimage"
	"bmsota/manifest"
)

// The attacker has the server and signs with a key of his own.
func TestThreatTUFArbitrarySoftware(t *testing.T) {
	threat{mutant: agent.MutantAnySigner, want: "refused:bad_signature", bites: "runs his",
		attack: func(t *testing.T) attack {
			his := image(t, "1.1.0")
			return attack{key: newKey(t), server: serve(t, release(t, his, newKey(t)), his), images: map[string][]byte{"his": his}}
		}}.test(t)
}

// The signed image is followed by bytes without an end, which would fill flash or never let go of the board.
func TestThreatTUFEndlessData(t *testing.T) {
	threat{mutant: agent.MutantAnyBytes, want: "runs the release, 0 KiB too many", bites: "failed:image_invalid, 1472 KiB too many",
		attack: func(t *testing.T) attack {
			key, next := newKey(t), image(t, "1.1.0")
			s := serve(t, release(t, next, key), next)
			var drawn int64
			s.respond = func(r *http.Request, body []byte) *http.Response {
				return reply(r, 200, nil, io.MultiReader(bytes.NewReader(body), endless{&drawn}), -1)
			}
			return attack{key: key, server: s, images: map[string][]byte{"the release": next},
				tell: func(*bench, int) string { return fmt.Sprintf("%d KiB too many", drawn>>10) }}
		}}.test(t)
}

// The attacker offers version 6.99.0, so that everything the project releases afterwards is older. A board remembers no version but
// that of the image it runs.
func TestThreatTUFFastForward(t *testing.T) {
	threat{mutant: agent.MutantAnySigner, want: "runs the next release", bites: "refused:downgrade",
		attack: func(t *testing.T) attack {
			key, his, next := newKey(t), image(t, "6.99.0"), image(t, "1.1.0")
			s, honest := serve(t, release(t, his, nil), his), serve(t, release(t, next, key), next)
			return attack{key: key, server: s, images: map[string][]byte{"the next release": next},
				during: func(b *bench) {
					b.hub.order(update)
					b.settle(5 * time.Minute)
					b.server.set(func(s *server) { s.version, s.files = honest.version, honest.files })
					b.hub.order(update)
					b.settle(5 * time.Minute)
				}}
		}}.test(t)
}

// While the server cannot be reached a mirror offers its own image. The board takes nothing from it, says the trouble of
// the server, and is updated once that is back.
func TestThreatTUFMaliciousMirrors(t *testing.T) {
	threat{mutant: agent.MutantAnySigner, want: "failed:tls_failed", bites: "runs his",
		attack: func(t *testing.T) attack {
			key, his := newKey(t), image(t, "1.1.0")
			s := serve(t, release(t, his, newKey(t)), his)
			s.version, s.static = nil, s.version
			return attack{key: key, server: s, images: map[string][]byte{"his": his}, wait: 40 * time.Minute,
				settings: trusting(t, key) + `,"mirror_url":"http://mirror.example/firmware.bin"`,
				config:   func(c *Config) { c.Transport = untilAnswered{s} }}
		}}.test(t)
}

// untilAnswered is a server whose certificate is not trusted as long as the release that it serves is not in its dynamic place.
type untilAnswered struct{ *server }

func (u untilAnswered) RoundTrip(r *http.Request) (*http.Response, error) {
	u.server.mu.Lock()
	away := u.server.version == nil
	u.server.mu.Unlock()
	if away {
		return deadAuthority{u.server}.RoundTrip(r)
	}
	return u.server.RoundTrip(r)
}

// The signed facts of 1.2.0 with the image of 1.1.0, which the project signed as well.
func TestThreatTUFMixAndMatch(t *testing.T) {
	threat{mutant: agent.MutantAnyBytes, want: "failed:digest_mismatch", bites: "runs 1.1.0",
		attack: func(t *testing.T) attack {
			key, signed, other := newKey(t), image(t, "1.2.0"), image(t, "1.1.0")
			s := serve(t, release(t, signed, key), signed)
			s.files[sha(signed)+".bin"] = other
			return attack{key: key, server: s, images: map[string][]byte{"1.1.0": other}}
		}}.test(t)
}

// A release from before, as it was signed then.
func TestThreatTUFRollback(t *testing.T) {
	threat{mutant: agent.MutantAnyVersion, want: "refused:downgrade", bites: "runs the old release",
		attack: func(t *testing.T) attack {
			key, old := newKey(t), image(t, "0.9.0")
			return attack{key: key, server: serve(t, release(t, old, key), old), images: map[string][]byte{"the old release": old}}
		}}.test(t)
}

// The server gives a byte every ten seconds, which keeps a board from ever asking another. It is left within a minute.
func TestThreatTUFSlowRetrieval(t *testing.T) {
	threat{mutant: agent.MutantAnyPace, want: "runs the release", bites: "downloading:",
		attack: func(t *testing.T) attack {
			key, next := newKey(t), image(t, "1.1.0")
			s := serve(t, release(t, next, key), next)
			first := true
			s.respond = func(r *http.Request, body []byte) *http.Response {
				if first {
					first = false
					return reply(r, 200, nil, trickle{r}, int64(len(body)))
				}
				return plain(r, 200, body)
			}
			return attack{key: key, server: s, images: map[string][]byte{"the release": next}}
		}}.test(t)
}

// One of two keys that have to sign is stolen; the thief signs with it twice, and with one of his own.
func TestThreatTUFKeyCompromise(t *testing.T) {
	threat{mutant: agent.MutantOneSigner, want: "refused:bad_signature", bites: "runs his",
		attack: func(t *testing.T) attack {
			stolen, kept, his := newKey(t), newKey(t), image(t, "1.1.0")
			f := release(t, his, stolen)
			var err error
			if f.Cosignatures, err = manifest.Cosign(f.Manifest, "", stolen); err != nil {
				t.Fatal(err)
			}
			if f.Cosignatures, err = manifest.Cosign(f.Manifest, f.Cosignatures, newKey(t)); err != nil {
				t.Fatal(err)
			}
			return attack{key: stolen, second: kept, settings: trustingAll(t, 2, stolen, kept), server: serve(t, f, his), images: map[string][]byte{"his": his}}
		}}.test(t)
}

// A release of another project, signed by the key that both share.
func TestThreatTUFWrongSoftware(t *testing.T) {
	threat{mutant: agent.MutantAnyProduct, want: "refused:wrong_project", bites: "runs the heater's",
		attack: func(t *testing.T) attack {
			key := newKey(t)
			other := image(t, "1.1.0", func(o *appimage.BuildOptions) { o.Project = "heater" })
			return attack{key: key, server: serve(t, release(t, other, key), other), order: strings.Replace(update, "}", `,"force":true}`, 1),
				images: map[string][]byte{"the heater's": other}}
		}}.test(t)
}

// The attacker recorded what the server answered this very board when 1.0.0 was the newest, and answers so for ever. Who knows the
// server's key does not believe him that there is nothing newer.
func TestThreatTUFIndefiniteFreeze(t *testing.T) {
	threat{mutant: agent.MutantAnyNonce, want: "refused:stale_offer", bites: "idle:up_to_date",
		attack: func(t *testing.T) attack {
			key, online, now := newKey(t), newKey(t), image(t, "1.0.0")
			f := release(t, now, key)
			s := serve(t, f, now)
			s.answer = recorded(answers(t, f, online), asked("bms-abcdef"))
			return attack{key: key, online: online, server: s}
		}}.test(t)
}
