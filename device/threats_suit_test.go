package device

import (
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"bmsota/device/internal/agent"
	"bmsota/device/internal/otaops"
	"bmsota/esp/appimage"
	"bmsota/esp/parttable"
	"bmsota/manifest"
	"bmsota/protocol"
)

const forced = `{"action":"update","force":true}`

// secure is a build option: the security version.
func secure(v uint32) func(*appimage.BuildOptions) {
	return func(o *appimage.BuildOptions) { o.SecureVersion = v }
}

// Whoever has the broker as well can order the old release by force. It stops at the security floor of what runs.
func TestThreatSUITImgExpired(t *testing.T) {
	threat{mutant: agent.MutantNoFloor, want: "refused:security_floor", bites: "runs the old release",
		attack: func(t *testing.T) attack {
			key, old := newKey(t), image(t, "0.9.0", secure(1))
			return attack{key: key, running: image(t, "1.0.0", secure(2)), server: serve(t, release(t, old, key), old), order: forced,
				next: image(t, "7.0.0", secure(2)), images: map[string][]byte{"the old release": old}}
		}}.test(t)
}

// A release for another chip, by force. What would still stop it is the check of the whole image, after the slot is overwritten.
func TestThreatSUITImgIncompatible(t *testing.T) {
	threat{mutant: agent.MutantAnyProduct, want: "refused:wrong_chip, flash as it was", bites: "failed:image_invalid, flash written",
		attack: func(t *testing.T) attack {
			key, other := newKey(t), image(t, "1.1.0", func(o *appimage.BuildOptions) { o.Chip = appimage.ESP32C3 })
			return attack{key: key, server: serve(t, release(t, other, key), other), order: forced, tell: written}
		}}.test(t)
}

// written tells whether an attack that failed was noticed before flash was touched.
func written(_ *bench, ops int) string {
	if ops > 0 {
		return "flash written"
	}
	return "flash as it was"
}

// otherSlotHolds says whether the second slot has anything but erased flash in a range.
func otherSlotHolds(t *testing.T, b *bench, from, length int64) bool {
	t.Helper()
	p := make([]byte, length)
	if _, err := b.flash().ReadAt(p, int64(parttable.Default().Slots()[1].Offset)+from); err != nil {
		t.Fatal(err)
	}
	return len(bytes.Trim(p, "\xff")) > 0
}

// What was signed is the image in a form that this board does not unpack. It is known by its first bytes.
func TestThreatSUITImgFormat(t *testing.T) {
	threat{mutant: agent.MutantAnyProduct, want: "failed:image_invalid, flash as it was", bites: "failed:image_invalid, flash written",
		attack: func(t *testing.T) attack {
			key, next := newKey(t), image(t, "1.1.0")
			var packed bytes.Buffer
			z := gzip.NewWriter(&packed)
			z.Write(next)
			z.Close()
			img, err := appimage.Parse(next)
			if err != nil {
				t.Fatal(err)
			}
			m, err := manifest.New(packed.Bytes(), img, "")
			if err != nil {
				t.Fatal(err)
			}
			s := serve(t, release(t, next, key, func(to *manifest.Manifest) { *to = m }), packed.Bytes())
			return attack{key: key, server: s, tell: written}
		}}.test(t)
}

// Where an image goes is the board's own decision, no field says it. One that is larger than the slot would go on in the partition
// behind it.
func TestThreatSUITImgLocation(t *testing.T) {
	threat{mutant: agent.MutantAnyBytes, want: "refused:too_big, flash as it was", bites: "failed:image_invalid, flash written",
		attack: func(t *testing.T) attack {
			key := newKey(t)
			large := image(t, "1.1.0", func(o *appimage.BuildOptions) { o.Size = 0x180000 + 4096 })
			s := serve(t, release(t, large, key), large)
			s.respond = func(r *http.Request, body []byte) *http.Response {
				return reply(r, 200, nil, bytes.NewReader(body), -1)
			}
			return attack{key: key, server: s, order: forced, tell: written}
		}}.test(t)
}

// The server sends the board elsewhere, to somebody who learns from it which board asks for what.
func TestThreatSUITNetRedirect(t *testing.T) {
	threat{mutant: agent.MutantFollow, want: "failed:http_status, elsewhere 0 requests", bites: "runs the release, elsewhere 1 requests",
		attack: func(t *testing.T) attack {
			key, next := newKey(t), image(t, "1.1.0")
			s := serve(t, release(t, next, key), next)
			elsewhere := 0
			s.answer = func(r *http.Request) *http.Response {
				switch {
				case r.URL.Host == "evil.example":
					elsewhere++
				case !isVersion(r):
					return reply(r, 302, http.Header{"Location": {"https://evil.example" + r.URL.Path}}, http.NoBody, 0)
				}
				return nil
			}
			return attack{key: key, server: s, images: map[string][]byte{"the release": next},
				tell: func(*bench, int) string { return fmt.Sprintf("elsewhere %d requests", elsewhere) }}
		}}.test(t)
}

// On the path, without the server's key: the attacker answers under its name with a certificate of his own. The board holds no key,
// so TLS is all it has.
func TestThreatSUITNetOnPath(t *testing.T) {
	threat{mutant: agent.MutantAnyCertificate, want: "failed:tls_failed", bites: "runs his",
		attack: func(t *testing.T) attack {
			his := image(t, "1.1.0")
			s := serve(t, release(t, his, nil), his)
			authorityPEM, genuine := authority(t, "fw.example")
			_, forgedCert := authority(t, "fw.example")
			forgery, stopForgery := front(s, &tls.Config{Certificates: []tls.Certificate{forgedCert}})
			server, stopServer := front(s, &tls.Config{Certificates: []tls.Certificate{genuine}})
			nw := &network{listeners: map[string]func(net.Conn){"fw.example:443": forgery}}
			return attack{server: s, settings: fmt.Sprintf(`,"cert_pem":%q`, authorityPEM), images: map[string][]byte{"his": his},
				config: func(c *Config) { c.Transport, c.Dial = nil, nw.dial },
				after: func(*bench) {
					nw.mu.Lock()
					defer nw.mu.Unlock()
					nw.listeners["fw.example:443"] = server
				},
				close: func() { stopForgery(); stopServer() }}
		}}.test(t)
}

// swapping is a flash that stores the bytes of another image in a slot.
type swapping struct {
	otaops.Flash
	from int64
	img  []byte
	on   *bool
}

func (f swapping) Program(off int64, p []byte) error {
	if i := off - f.from; *f.on && i >= 0 && i+int64(len(p)) <= int64(len(f.img)) {
		p = f.img[i:][:len(p)]
	}
	return f.Flash.Program(off, p)
}

// Something on the board replaces the image behind the manifest's check, while it is being written.
func TestThreatSUITImgReplace(t *testing.T) {
	threat{mutant: agent.MutantSkipReadBack, want: "failed:digest_mismatch", bites: "runs his",
		attack: func(t *testing.T) attack {
			key, next, his := newKey(t), image(t, "1.1.0"), image(t, "1.2.0")
			on := true
			return attack{key: key, server: serve(t, release(t, next, key), next), images: map[string][]byte{"his": his},
				config: func(c *Config) {
					c.wrap = func(f otaops.Flash) otaops.Flash {
						return swapping{f, int64(parttable.Default().Slots()[1].Offset), his, &on}
					}
				},
				after: func(*bench) { on = false }}
		}}.test(t)
}

// His facts under the signature of a release.
func TestThreatSUITImgNonAuth(t *testing.T) {
	threat{mutant: agent.MutantAnySigner, want: "refused:bad_signature", bites: "runs his",
		attack: func(t *testing.T) attack {
			key, his := newKey(t), image(t, "1.1.0")
			f, signed := release(t, his, newKey(t)), release(t, image(t, "1.2.0"), key)
			f.Manifest = f.Manifest[:strings.LastIndexByte(f.Manifest, '.')] + signed.Manifest[strings.LastIndexByte(signed.Manifest, '.'):]
			return attack{key: key, server: serve(t, f, his), images: map[string][]byte{"his": his}}
		}}.test(t)
}

// There are no deltas; what a release needs of the one before it is its min_version, which not even an order by force skips.
func TestThreatSUITUpdWrongPrecursor(t *testing.T) {
	threat{mutant: agent.MutantAnyVersion, want: "refused:needs_intermediate", bites: "runs the release",
		attack: func(t *testing.T) attack {
			key, next := newKey(t), image(t, "1.1.0")
			f := release(t, next, key, func(m *manifest.Manifest) { m.MinVersion = "1.0.5" })
			return attack{key: key, server: serve(t, f, next), order: forced, images: map[string][]byte{"the release": next}}
		}}.test(t)
}

// The board's owner lets nothing be installed while the battery charges. Whoever has the broker orders it by force.
func TestThreatSUITUpdUnapproved(t *testing.T) {
	threat{mutant: agent.MutantOpenGate, want: "waiting:charging", bites: "runs the release",
		attack: func(t *testing.T) attack {
			key, next := newKey(t), image(t, "1.1.0")
			battery := NewSensors()
			battery.Set(protocol.Battery{SOCPct: 50, PackCurrentA: 9, Charging: true})
			return attack{key: key, server: serve(t, release(t, next, key), next), order: forced, images: map[string][]byte{"the release": next},
				settings: trusting(t, key) + `,"gate":{"not_while_charging":true}`,
				config:   func(c *Config) { c.Sensors = battery },
				after:    func(*bench) { battery.Set(protocol.Battery{SOCPct: 50, PackCurrentA: -1}) }}
		}}.test(t)
}

// The server takes the condition off that the release was signed with.
func TestThreatSUITMfstOverride(t *testing.T) {
	threat{mutant: agent.MutantBesideManifest, want: "refused:needs_intermediate", bites: "runs the release",
		attack: func(t *testing.T) attack {
			key, next := newKey(t), image(t, "1.1.0")
			f := release(t, next, key, func(m *manifest.Manifest) { m.MinVersion = "1.0.5" })
			f.MinVersion = ""
			return attack{key: key, server: serve(t, f, next), images: map[string][]byte{"the release": next}}
		}}.test(t)
}

// Code behind the signed image, for a hole in it to jump to.
func TestThreatSUITImgExtra(t *testing.T) {
	threat{mutant: agent.MutantAnyBytes, want: "runs the release, nothing behind it", bites: "failed:image_invalid, his code behind it",
		attack: func(t *testing.T) attack {
			key, next := newKey(t), image(t, "1.1.0")
			s := serve(t, release(t, next, key), next)
			s.respond = func(r *http.Request, body []byte) *http.Response {
				return reply(r, 200, nil, io.MultiReader(bytes.NewReader(body), bytes.NewReader(make([]byte, 8<<10))), -1)
			}
			return attack{key: key, server: s, images: map[string][]byte{"the release": next},
				tell: func(b *bench, _ int) string {
					if otherSlotHolds(t, b, int64(len(next)), 8<<10) {
						return "his code behind it"
					}
					return "nothing behind it"
				}}
		}}.test(t)
}

// A key that was given up is stolen. It still stands in the settings; the image that runs carries its successor.
func TestThreatSUITKeyExposure(t *testing.T) {
	threat{mutant: agent.MutantSettingsKeys, want: "refused:bad_signature", bites: "runs his",
		attack: func(t *testing.T) attack {
			stolen, now := newKey(t), newKey(t)
			his := carrying(t, "1.1.0", 2, stolen)
			return attack{key: now, running: carrying(t, "1.0.0", 1, now), settings: trusting(t, stolen), server: serve(t, release(t, his, stolen), his),
				next: carrying(t, "7.0.0", 1, now), images: map[string][]byte{"his": his}}
		}}.test(t)
}

// What was checked is what counts: after the first answer the server has another manifest and other bytes under every name.
func TestThreatSUITMfstTOCTOU(t *testing.T) {
	threat{mutant: agent.MutantAnyBytes, want: "failed:digest_mismatch", bites: "runs his",
		attack: func(t *testing.T) attack {
			key, next, his := newKey(t), image(t, "1.1.0"), image(t, "1.2.0")
			s, evil := serve(t, release(t, next, key), next), serve(t, release(t, his, nil), his)
			s.answer = func(r *http.Request) *http.Response {
				if !isVersion(r) {
					s.version = evil.version
					s.files[sha(next)+".bin"] = his
				}
				return nil
			}
			return attack{key: key, server: s, images: map[string][]byte{"his": his}}
		}}.test(t)
}

// A board was away while 1.1.0, which has a fault, was followed by 1.2.0. The attacker recorded the answer of the time between, and
// has the broker order by force.
func TestThreatSUITImgExpiredOffline(t *testing.T) {
	threat{mutant: agent.MutantAnyAge, want: "refused:stale_offer", bites: "runs 1.1.0",
		attack: func(t *testing.T) attack {
			key, online, faulty := newKey(t), newKey(t), image(t, "1.1.0")
			f := release(t, faulty, key)
			s := serve(t, f, faulty)
			s.answer = recorded(answers(t, f, online), asked("bms-abcdef"))
			return attack{key: key, online: online, server: s, order: `{"action":"update","force":true}`, images: map[string][]byte{"1.1.0": faulty}}
		}}.test(t)
}
