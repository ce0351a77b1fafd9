package device

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/esp/appimage"
	"bmsota/esp/otadata"
	"bmsota/esp/secureboot"
	"bmsota/protocol"
)

// TestSignedImagesAreKnownByTheDigestOfTheirFile: the signature sector belongs to it, and that of a file that was in the
// slot before does not.
func TestSignedImagesAreKnownByTheDigestOfTheirFile(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signed := func(version string, size int64) []byte {
		b, err := secureboot.Sign(image(t, version, func(o *appimage.BuildOptions) { o.Size = size }), key, nil)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, size := range []int64{64 << 10, 64<<10 - 4096, 60<<10 + 16} {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, layout(signed("1.0.0", size), ""), &server{files: map[string][]byte{}})
			b.on()
			b.settle(5 * time.Second)
			b.wantRunning(b.layout.Image)
			for i, next := range [][]byte{
				signed("1.1.0", size), signed("1.2.0", size), image(t, "1.3.0", func(o *appimage.BuildOptions) { o.Size = size }),
				image(t, "1.4.0", func(o *appimage.BuildOptions) { o.Size = size - 16 }), signed("1.5.0", size-8192), signed("1.6.0", 1536<<10-4096),
			} {
				b.offer(next, update)
				b.wantRunning(next)
				b.hub.order(update)
				b.settle(time.Minute)
				if last := b.hub.last(); last.Reason != protocol.ReasonUpToDate {
					t.Errorf("step %d: its own image is answered %s:%s", i, last.Phase, last.Reason)
				}
			}
			b.off()
		})
	}
}

// TestStatusesStayWithinTheirLimit whatever the texts are that come from image, configuration and server.
func TestStatusesStayWithinTheirLimit(t *testing.T) {
	nasty := strings.Repeat("\x01<&", 10) + "\u2028"
	synctest.Test(t, func(t *testing.T) {
		said := 0
		l := layout(image(t, strings.Repeat("\x7f", 31), func(o *appimage.BuildOptions) { o.Project = strings.Repeat("\xff", 31) }), "")
		quoted := fmt.Sprintf("%q", strings.Repeat("v", 64))
		l.OTAConfig = fmt.Appendf(nil, otaConfig, `,"current_version":`+quoted+`,"device_id":"`+strings.Repeat("d", 64)+`"`)
		b := newBench(t, l, &server{files: map[string][]byte{}}, func(c *Config) {
			c.OnStatus = func(s protocol.Status) {
				said++
				if p, err := s.Append(nil); err != nil {
					t.Error(err)
				} else if back, err := protocol.ParseStatus(p); err != nil || back.Phase != s.Phase {
					t.Errorf("%v: %s", err, p)
				}
			}
		})
		b.on()
		b.settle(5 * time.Second)
		for _, body := range []string{
			fmt.Sprintf(`{"version":%q,"chip":"esp32"}`, strings.Repeat("9", 65)),
			`{"version":"` + strings.Repeat("\\u0001", 60) + `","chip":"` + strings.Repeat("\\u0002", 30) + `","project":"` + strings.Repeat("\\u0003", 30) + `"}`,
			`{"version":"2.0.0","chip":"` + strings.Repeat("\\u0002", 30) + `"}`,
			`{"version":"2.0.0","chip":"esp32","url":"http://` + strings.Repeat("\\u0001", 300) + `"}`,
			`{"version":"2.0.0","` + nasty + `":1,"` + nasty + `":2}`,
			strings.Repeat("[", 20000), strings.Repeat("x", 1<<20), "", "null", "\xef\xbb\xbf{}",
		} {
			b.server.set(func(s *server) { s.version = []byte(body) })
			b.hub.order(`{"action":"update","version":"` + strings.Repeat("v", 64) + `","id":"` + strings.Repeat("i", 64) + `"}`)
			b.settle(3 * time.Minute)
			if last := b.hub.last(); last.Phase != protocol.PhaseRefused {
				t.Errorf("%.40q ends as %s:%s", body, last.Phase, last.Reason)
			}
		}
		b.off()
		if said < 20 {
			t.Errorf("%d statuses", said)
		}
	})
}

// drip is a body of 1.3 KiB a second, just above what is left as too slow.
type drip struct {
	r *http.Request
	b *bytes.Reader
}

func (d drip) Read(p []byte) (int, error) {
	select {
	case <-time.After(time.Second):
	case <-d.r.Context().Done():
		return 0, d.r.Context().Err()
	}
	return d.b.Read(p[:min(len(p), 1500)])
}

// TestProgressIsSaidEveryTwoSecondsOfASlowDownload, also where a sector takes longer than that, and while the server is away.
func TestProgressIsSaidEveryTwoSecondsOfASlowDownload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := newKey(t)
		next := image(t, "1.1.0")
		b := stand(t, next, trusting(t, key), release(t, next, key))
		first := true
		b.server.set(func(s *server) {
			s.respond = func(r *http.Request, body []byte) *http.Response {
				if first {
					first = false
					return reply(r, 200, nil, io.MultiReader(drip{r, bytes.NewReader(body[:20<<10])}, errReader{}), int64(len(body)))
				}
				return reply(r, 200, nil, drip{r, bytes.NewReader(body)}, int64(len(body)))
			}
		})
		b.hub.order(update)
		b.settle(5 * time.Minute)
		b.off()
		b.wantRunning(next)
		var last protocol.Status
		n := 0
		for _, s := range b.hub.all() {
			if last.Phase == protocol.PhaseDownloading {
				if gap := time.Duration(s.TimestampUS-last.TimestampUS) * time.Microsecond; gap > 2500*time.Millisecond || gap < 500*time.Millisecond && s.Phase == last.Phase {
					t.Errorf("%s %d %% is followed by %s %v later", last.Phase, last.ProgressPct, s.Phase, gap)
				}
				n++
			}
			last = s
		}
		if n < 25 {
			t.Errorf("%d statuses", n)
		}
	})
}

// TestBrokerThatComesAndGoesFailsNoUpdate: in the download, all through it, and in the trial.
func TestBrokerThatComesAndGoesFailsNoUpdate(t *testing.T) {
	for _, c := range []struct {
		name       string
		gone, back time.Duration // after the order
	}{
		{"in the download", 3 * time.Second, 20 * time.Second},
		{"through the download and the restart", 3 * time.Second, 2 * time.Minute},
		{"through the trial but its end", 10 * time.Second, 4 * time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				next := image(t, "1.1.0", quarterMiB)
				b := newBench(t, layout(image(t, "1.0.0"), ""), serve(t, release(t, next, nil), next))
				b.server.set(func(s *server) {
					s.respond = func(r *http.Request, body []byte) *http.Response {
						return reply(r, 200, nil, slow{r, bytes.NewReader(body)}, int64(len(body)))
					}
				})
				b.hub.retain(update)
				b.on()
				b.settle(c.gone)
				b.hub.drop()
				b.settle(c.back - c.gone)
				b.hub.up()
				b.settle(5 * time.Minute)
				b.off()
				b.wantRunning(next)
				if len(b.boots) != 2 || b.server.log(".bin") != 1 {
					t.Errorf("boots %v, %d downloads: %s", b.boots, b.server.log(".bin"), b.hub.phases())
				}
				for i, s := range b.hub.all() {
					if i > 0 && s.BootID == b.hub.all()[i-1].BootID && s.Seq <= b.hub.all()[i-1].Seq {
						t.Errorf("seq %d after %d", s.Seq, b.hub.all()[i-1].Seq)
					}
				}
			})
		})
	}
}

// TestSessionThatIsLostAndBackIsBack also for a board that hears of both together, because its machine had no time for it.
func TestSessionThatIsLostAndBackIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		busy := false
		b := stand(t, image(t, "1.1.0"), "", protocol.VersionFile{Version: "1.1.0"}, func(c *Config) {
			c.OnStatus = func(protocol.Status) {
				if busy {
					time.Sleep(5 * time.Second)
				}
			}
		})
		for i := range 20 {
			busy = true
			b.hub.order(`{"action":"status"}`)
			b.settle(time.Second)
			busy = false
			b.hub.drop()
			b.hub.up()
			b.settle(10 * time.Second)
			id := fmt.Sprintf("s%d", i)
			b.hub.order(`{"action":"status","id":"` + id + `"}`)
			b.settle(time.Second)
			if last := b.hub.last(); last.CommandID != id {
				t.Fatalf("session %d: the board is silent", i)
			}
		}
		b.off()
	})
}

// TestMemoryOfAnUpdateDoesNotGrowWithTheImage: beside the flash itself.
func TestMemoryOfAnUpdateDoesNotGrowWithTheImage(t *testing.T) {
	allocated := func(size int64) (bytes uint64) {
		next := image(t, "1.1.0", func(o *appimage.BuildOptions) { o.Size = size })
		key := newKey(t)
		f := release(t, next, key)
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, layout(image(t, "1.0.0"), trusting(t, key)), serve(t, f, next))
			b.on()
			b.settle(5 * time.Second)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			b.hub.order(update)
			b.settle(time.Minute)
			runtime.ReadMemStats(&after)
			b.off()
			b.wantRunning(next)
			bytes = after.TotalAlloc - before.TotalAlloc - uint64(size) // flash pages
		})
		return bytes
	}
	small, large := allocated(64<<10), allocated(1536<<10)
	t.Logf("an update of 64 KiB allocates %d KiB, one of 1.5 MiB %d KiB", small>>10, large>>10)
	if large > small+512<<10 {
		t.Errorf("an image of 1.5 MiB costs %d bytes, one of 64 KiB %d", large, small)
	}
}

// TestAnyRecordsAndSlotsLeadToTheNextRelease: whatever two records, notes and slots hold, as long as one slot boots the
// board comes up, and the order it is given is carried out.
func TestAnyRecordsAndSlotsLeadToTheNextRelease(t *testing.T) {
	runs := uint64(400)
	if long(t) {
		runs = 50_000
	}
	small := func(o *appimage.BuildOptions) { o.Size = 8 << 10 }
	slots := [][]byte{image(t, "1.0.0", small), image(t, "1.1.0", small)}
	next := image(t, "1.2.0", small)
	f := release(t, next, nil)
	states := []otadata.State{otadata.New, otadata.PendingVerify, otadata.Valid, otadata.Invalid, otadata.Aborted, otadata.Undefined, 0x12345678}
	for seed := range runs {
		synctest.Test(t, func(t *testing.T) {
			r := mathrand.New(mathrand.NewPCG(seed, 3))
			table := factoryTable
			if r.IntN(2) == 0 {
				table = threeSlots
			}
			l := layout(image(t, "0.9.0", small), "")
			l.Table = tableOf(t, table)
			b := newBench(t, l, serve(t, f, next))
			for i := range 2 {
				sector := bytes.Repeat([]byte{0xFF}, 4096)
				if r.IntN(8) > 0 {
					seq := uint32(r.IntN(8))
					if r.IntN(10) == 0 {
						seq = r.Uint32() >> r.IntN(32)
					}
					rec := otadata.NewRecord(seq, states[r.IntN(len(states))])
					if r.IntN(8) == 0 {
						rec.CRC ^= 1 << r.IntN(32)
					}
					copy(sector, otadata.AppendRecord(nil, rec))
				}
				if r.IntN(3) == 0 {
					// A note, as package agent writes it.
					note := append([]byte("bmsnote1"), bytes.Repeat([]byte{byte(r.IntN(3))}, 32)...)
					note = append(note, []byte(string(protocol.ReasonOperator)+strings.Repeat("\x00", 12))...)
					note = binary.LittleEndian.AppendUint32(note, crc32.ChecksumIEEE(note))
					copy(sector[64:], note)
				}
				put(t, b.flash(), 0xd000+int64(i)*4096, sector)
				if r.IntN(4) > 0 {
					img := bytes.Clone(slots[i])
					if r.IntN(3) == 0 {
						img[4096] ^= 1
					}
					put(t, b.flash(), 0x110000+int64(i)<<20, img)
				}
			}
			b.hub.retain(update)
			b.on()
			b.settle(20 * time.Minute)
			err := b.off()
			if last := b.hub.last(); err != nil || last.ImageSHA256 != sha(next) || last.RollbackPending {
				t.Errorf("seed %d (%v): %v, runs %s: %s %v", seed, l.Table[2].Name, err, last.CurrentVersion, b.hub.phases(), b.boots[:min(len(b.boots), 8)])
			}
		})
	}
}
