package device

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/device/internal/agent"
	"bmsota/manifest"
)

// wiretap is what somebody on the path sees of the connections that are dialled through it.
type wiretap struct {
	mu   sync.Mutex
	seen bytes.Buffer
}

type tapped struct {
	net.Conn
	w *wiretap
}

func (c tapped) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.w.note(p[:n])
	return n, err
}

func (c tapped) Write(p []byte) (int, error) {
	c.w.note(p)
	return c.Conn.Write(p)
}

func (w *wiretap) note(p []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen.Write(p)
}

// The attacker reads every byte between a board, its server and its broker. He sees neither the image nor the board's token nor
// its orders. The defence switched off is TLS in the settings.
func TestThreatUptaneEavesdrop(t *testing.T) {
	for _, plain := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			key := newKey(t)
			next := image(t, "1.1.0")
			s := serve(t, release(t, next, key), next)
			st := newSite(t, s)
			ota, mq := st.configs("bms-abcdef", trusting(t, key))
			if plain {
				ln := newPipeListener()
				st.wg.Go(func() { st.http.Serve(ln) })
				st.net.listeners["fw.example:80"] = ln.offer
				st.net.listeners["broker.example:8883"] = func(c net.Conn) { st.broker.EstablishConnection("memory", c) }
				ota = bytes.Replace(ota, []byte(`{"server_url":"https:`), []byte(`{"skip_cert_verification":true,"server_url":"http:`), 1)
				mq = bytes.Replace(mq, []byte(`"tls":true,`), nil, 1)
			}
			if err := st.broker.Publish("bms/ota/command", []byte(update), true, 1); err != nil {
				t.Fatal(err)
			}
			w := new(wiretap)
			b := newBench(t, Layout{Image: image(t, "1.0.0"), OTAConfig: ota, MQTTConfig: mq, MAC: [6]byte{2, 0, 0, 0xab, 0xcd, 0xef}}, s, func(c *Config) {
				c.Transport, c.newLink = nil, nil
				c.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
					conn, err := st.net.dial(ctx, network, addr)
					return tapped{conn, w}, err
				}
			})
			b.on()
			b.settle(5 * time.Minute)
			b.off()
			synctest.Wait()
			st.close()
			all := st.tap.statuses["bms/ota/status/bms-abcdef"]
			if len(all) == 0 || all[len(all)-1].ImageSHA256 != sha(next) {
				t.Fatalf("plain %v: the board was not updated, so there was nothing to see", plain)
			}
			for what, secret := range map[string][]byte{"image": next[20<<10:][:64], "token": []byte("secret-bms-abcdef"), "order": []byte(update)} {
				if got := bytes.Contains(w.seen.Bytes(), secret); got != plain {
					t.Errorf("plain %v: the %s is seen: %v", plain, what, got)
				}
			}
		})
	}
}

// The attacker lets nothing through for ten minutes after the order. When he stops, nobody has to order again.
func TestThreatUptaneDropRequest(t *testing.T) {
	threat{mutant: agent.MutantAskOnce, want: "runs the release", bites: "failed:server_unreachable",
		attack: func(t *testing.T) attack {
			key, next := newKey(t), image(t, "1.1.0")
			return attack{key: key, server: serve(t, release(t, next, key), next), images: map[string][]byte{"the release": next},
				during: func(b *bench) {
					b.server.set(func(s *server) { s.down = true })
					b.hub.order(update)
					b.settle(10 * time.Minute)
					b.server.set(func(s *server) { s.down = false })
					b.settle(5 * time.Minute)
				}}
		}}.test(t)
}

// isVersion says whether the version file is asked for, in either place.
func isVersion(r *http.Request) bool { return !strings.HasSuffix(r.URL.Path, ".bin") }

// As against TUF's, before the first fact is read.
func TestThreatUptaneSlowRetrieval(t *testing.T) {
	threat{mutant: agent.MutantAnyPace, want: "runs the release", bites: "checking:",
		attack: func(t *testing.T) attack {
			key, next := newKey(t), image(t, "1.1.0")
			s := serve(t, release(t, next, key), next)
			first := true
			s.answer = func(r *http.Request) *http.Response {
				if !first || !isVersion(r) {
					return nil
				}
				first = false
				return reply(r, 200, nil, trickle{r}, 1000)
			}
			return attack{key: key, server: s, images: map[string][]byte{"the release": next}}
		}}.test(t)
}

// An old release as it was signed, called 9.9.9 beside its manifest.
func TestThreatUptaneRollback(t *testing.T) {
	threat{mutant: agent.MutantBesideManifest, want: "refused:downgrade", bites: "runs the old release",
		attack: func(t *testing.T) attack {
			key, old := newKey(t), image(t, "0.9.0")
			f := release(t, old, key)
			f.Version, f.ForceUpdate = "9.9.9", true
			return attack{key: key, server: serve(t, f, old), images: map[string][]byte{"the old release": old}}
		}}.test(t)
}

// The version file has no end; a board reads 24 KiB of it in each of its two places.
func TestThreatUptaneEndlessData(t *testing.T) {
	threat{mutant: agent.MutantAnyBytes, want: "refused:bad_version_file, up to 64 KiB read", bites: "refused:bad_version_file, more than 64 KiB read",
		attack: func(t *testing.T) attack {
			key := newKey(t)
			s := &server{files: map[string][]byte{}}
			var drawn int64
			s.answer = func(r *http.Request) *http.Response { return reply(r, 200, nil, endless{&drawn}, -1) }
			return attack{key: key, server: s, tell: func(*bench, int) string {
				if drawn > 64<<10 {
					return "more than 64 KiB read"
				}
				return "up to 64 KiB read"
			}}
		}}.test(t)
}

// The line breaks in the middle of the signed image, and the rest that is asked for is that of another.
func TestThreatUptaneMixAndMatch(t *testing.T) {
	threat{mutant: agent.MutantAnyBytes, want: "failed:digest_mismatch", bites: "runs the other",
		attack: func(t *testing.T) attack {
			key, next, other := newKey(t), image(t, "1.1.0", quarterMiB), image(t, "1.2.0", quarterMiB)
			s := serve(t, release(t, next, key), next)
			tag := `"` + sha(next) + `"`
			first := true
			s.respond = func(r *http.Request, body []byte) *http.Response {
				if first {
					first = false
					cut := &server{cut: 80 << 10}
					return cut.file(r, body)
				}
				return ranged(r, other, tag)
			}
			return attack{key: key, server: s, images: map[string][]byte{"the other": other}}
		}}.test(t)
}

// The attacker has the server and the broker, and takes the signature off: he orders, by force, what nobody signed.
func TestThreatUptaneArbitrarySoftware(t *testing.T) {
	threat{mutant: agent.MutantAnySigner, want: "refused:unsigned", bites: "runs his",
		attack: func(t *testing.T) attack {
			his := image(t, "1.1.0")
			return attack{key: newKey(t), server: serve(t, release(t, his, nil), his), order: fmt.Sprintf(`{"action":"update","force":true,"version":%q}`, "1.1.0"),
				images: map[string][]byte{"his": his}}
		}}.test(t)
}

// The attacker has the server's answers signed to this board and this question, but asks about a channel that nobody moves.
func TestThreatUptaneFreeze(t *testing.T) {
	threat{mutant: agent.MutantAnyPath, want: "refused:stale_offer", bites: "idle:up_to_date",
		attack: func(t *testing.T) attack {
			key, online, now := newKey(t), newKey(t), image(t, "1.0.0")
			f := release(t, now, key)
			s := serve(t, f, now)
			s.answer = answers(t, f, online, func(o *manifest.Offer) { o.Path = "/firmware/monitor/old/version" })
			return attack{key: key, online: online, server: s}
		}}.test(t)
}
