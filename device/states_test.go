package device

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/device/internal/norflash"
	"bmsota/esp/appimage"
	"bmsota/esp/otadata"
	"bmsota/esp/parttable"
	"bmsota/protocol"
)

// put writes bytes over whatever is there.
func put(t *testing.T, f *norflash.Flash, off int64, b []byte) {
	t.Helper()
	whole := make([]byte, (int64(len(b))+off%4096+4095)&^4095)
	base := off &^ 4095
	if _, err := f.ReadAt(whole, base); err != nil {
		t.Fatal(err)
	}
	copy(whole[off-base:], b)
	if err := errors.Join(f.Erase(base, int64(len(whole))), f.Program(base, whole)); err != nil {
		t.Fatal(err)
	}
}

func records(t *testing.T, f *norflash.Flash) [2]otadata.Record {
	t.Helper()
	b := make([]byte, otadata.PartitionSize)
	f.ReadAt(b, 0x10000)
	recs, err := otadata.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return recs
}

// TestDamagedSlotFallsBackAndTheRecordsAreMended: the selected slot is damaged, the bootloader falls back without a word,
// and the next update must not overwrite the record of the slot that runs.
func TestDamagedSlotFallsBackAndTheRecordsAreMended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, next, third := image(t, "1.0.0"), image(t, "1.1.0"), image(t, "1.2.0")
		b := stand(t, next, "", release(t, next, nil))
		b.hub.order(`{"action":"update"}`)
		b.settle(time.Minute)
		b.off()
		b.wantRunning(next)
		put(t, b.flash(), 0x1A0000+30<<10, []byte{1, 2, 3})
		b.on()
		b.settle(10 * time.Second)
		said := b.hub.all()
		if rb := said[len(said)-2]; rb.Phase != protocol.PhaseRolledBack || rb.Reason != protocol.ReasonCorrupt {
			t.Errorf("says %s:%s", rb.Phase, rb.Reason)
		}
		b.wantRunning(old)
		recs := records(t, b.flash())
		if a := otadata.Select(recs); a < 0 || !recs[a].Names(0, 2) || recs[a].State != otadata.Valid {
			t.Errorf("the running slot has no record of its own: %+v", recs)
		}
		body, _ := release(t, third, nil).Append(nil)
		b.server.set(func(s *server) { s.version, s.files[sha(third)+".bin"] = body, third })
		b.hub.order(`{"action":"update"}`)
		b.settle(time.Minute)
		b.off()
		b.wantRunning(third)
	})
}

func TestNothingBootableIsSaidAndEndsTheRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said []protocol.Status
		b := newBench(t, layout(image(t, "1.0.0"), ""), &server{}, func(c *Config) {
			c.OnStatus = func(s protocol.Status) { said = append(said, s) }
		})
		put(t, b.flash(), 0x20000, make([]byte, 100))
		err := b.board.Run(context.Background())
		if !errors.Is(err, ErrNoBoot) {
			t.Errorf("ends with %v", err)
		}
		if len(said) != 1 || said[0].Reason != protocol.ReasonCorrupt || said[0].Phase != protocol.PhaseFailed {
			t.Errorf("said %+v", said)
		}
	})
}

func TestBrokenConfigurationIsSaidAndTheRestWorks(t *testing.T) {
	for name, spoil := range map[string]func(*Layout){
		"ota_config.txt is missing":   func(l *Layout) { l.OTAConfig = nil },
		"ota_config.txt is no JSON":   func(l *Layout) { l.OTAConfig = []byte("hello") },
		"plain http without a skip":   func(l *Layout) { l.OTAConfig = []byte(`{"server_url":"http://fw.example/x"}`) },
		"trusted key is not readable": func(l *Layout) { l.OTAConfig = fmt.Appendf(nil, otaConfig, `,"trusted_key_pem":"-----BEGIN"`) },
		"certificate is not readable": func(l *Layout) { l.OTAConfig = fmt.Appendf(nil, otaConfig, `,"cert_pem":"-----BEGIN"`) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				next := image(t, "1.1.0")
				l := layout(image(t, "1.0.0"), "")
				spoil(&l)
				b := newBench(t, l, serve(t, release(t, next, nil), next), func(c *Config) {
					if strings.HasPrefix(name, "certificate") {
						c.Transport = nil // the certificate is read only where TLS is ours
					}
				})
				b.on()
				b.settle(5 * time.Second)
				b.wantPhases("idle:bad_config")
				b.hub.order(`{"action":"update"}`)
				b.settle(time.Minute)
				if last := b.hub.last(); last.Reason != protocol.ReasonBadConfig || len(b.boots) != 1 {
					t.Errorf("an update is answered %s:%s, boots %v", last.Phase, last.Reason, b.boots)
				}
				b.off()
			})
		})
	}
	t.Run("no broker", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := layout(image(t, "1.0.0"), "")
			l.MQTTConfig = nil
			var said []protocol.Status
			b := newBench(t, l, &server{}, func(c *Config) { c.OnStatus = func(s protocol.Status) { said = append(said, s) } })
			b.on()
			b.settle(time.Hour)
			b.off()
			if len(said) != 1 || said[0].Reason != protocol.ReasonBadConfig || len(b.boots) != 1 {
				t.Errorf("said %+v, boots %v", said, b.boots)
			}
		})
	})
}

func TestSecurityFloorRisesWithTheConfirmedImageOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		secure := func(n uint32) func(*appimage.BuildOptions) {
			return func(o *appimage.BuildOptions) { o.SecureVersion = n }
		}
		bad := image(t, "1.1.0", secure(3), trial(appimage.BehaviourUnhealthy))
		good, low := image(t, "1.2.0", secure(2)), image(t, "1.3.0", secure(1))
		b := stand(t, bad, "", release(t, bad, nil), func(c *Config) { c.AntiRollback = true })
		offer := func(img []byte) {
			body, _ := release(t, img, nil).Append(nil)
			b.server.set(func(s *server) { s.version, s.files[sha(img)+".bin"] = body, img })
			b.hub.order(`{"action":"update","force":true}`)
			b.settle(10 * time.Minute)
		}
		offer(bad)
		if b.board.fuses.secure != 0 || b.hub.last().CurrentVersion != "1.0.0" {
			t.Errorf("an image that was undone raised the floor to %d", b.board.fuses.secure)
		}
		offer(good)
		if b.board.fuses.secure != 2 || b.hub.last().SecureVersion != 2 {
			t.Errorf("a confirmed image leaves the floor at %d, says %d", b.board.fuses.secure, b.hub.last().SecureVersion)
		}
		offer(low)
		if last := b.hub.last(); last.Reason != protocol.ReasonSecurityFloor || last.CurrentVersion != "1.2.0" {
			t.Errorf("an image below the floor ends as %s:%s", last.Phase, last.Reason)
		}
		b.off()
		if fu, ok, err := readFuses(b.flash()); err != nil || !ok || fu.secure != 2 || fu.mac != b.layout.MAC {
			t.Errorf("the eFuse block holds %+v, %v, %v", fu, ok, err)
		}
	})
}

func TestVersionComesFromTheImageUnlessThatSaysNothing(t *testing.T) {
	for _, c := range []struct{ image, config, want string }{
		{"1.0.0", "9.9.9", "1.0.0"},
		{"", "2.0.0", "2.0.0"},
		{"1", "2.0.0", "2.0.0"},
		{"esp-idf: v4.4.6", "2.0.0", "2.0.0"},
		{"esp-idf: v4.4.6", "", "esp-idf: v4.4.6"},
	} {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, layout(image(t, c.image), fmt.Sprintf(`,"current_version":%q`, c.config)), &server{})
			b.on()
			b.settle(time.Second)
			b.off()
			if got := b.hub.last().CurrentVersion; got != c.want {
				t.Errorf("image %q, configuration %q: says %q, want %q", c.image, c.config, got, c.want)
			}
		})
	}
}

func TestFirstStatusSaysWhatAServerNeeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := image(t, "1.0.0")
		b := newBench(t, layout(old, trusting(t, newKey(t))), &server{}, func(c *Config) { c.NoRollback = true })
		b.on()
		b.settle(time.Second)
		b.off()
		s := b.hub.last()
		if s.DeviceID != "bms-abcdef" || s.Chip != "esp32" || s.Project != "monitor" || s.Slot != "ota_0" || s.SlotSize != 0x180000 ||
			s.ImageSHA256 != sha(old) || !s.Signed || s.RollbackProtected || s.ResetReason != "poweron" || s.FreeHeap <= 0 ||
			s.MinFreeHeap <= 0 || s.LargestFreeBlock <= 0 || s.Battery == nil || s.BootID == "" || s.Seq == 0 || s.TimestampUS == 0 {
			t.Errorf("first status is %+v", s)
		}
	})
}

// slow is a body of 16 KiB a second.
type slow struct {
	r *http.Request
	b *bytes.Reader
}

func (s slow) Read(p []byte) (int, error) {
	select {
	case <-time.After(100 * time.Millisecond):
	case <-s.r.Context().Done():
		return 0, s.r.Context().Err()
	}
	return s.b.Read(p[:min(len(p), 1638)])
}

func TestProgressIsSaidOftenAndNotTooOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := newKey(t)
		next := image(t, "1.1.0", quarterMiB)
		b := stand(t, next, trusting(t, key), release(t, next, key))
		b.server.set(func(s *server) {
			s.respond = func(r *http.Request, body []byte) *http.Response {
				return reply(r, 200, nil, slow{r, bytes.NewReader(body)}, int64(len(body)))
			}
		})
		b.hub.order(`{"action":"update"}`)
		b.settle(2 * time.Minute)
		b.off()
		b.wantRunning(next)
		var last protocol.Status
		n := 0
		for _, s := range b.hub.all() {
			if s.Phase != protocol.PhaseDownloading {
				continue
			}
			n++
			gap := time.Duration(s.TimestampUS-last.TimestampUS) * time.Microsecond
			if n > 1 && (gap > 2500*time.Millisecond || gap < 500*time.Millisecond || s.BytesDone < last.BytesDone) {
				t.Errorf("%d %% after %d %%, %v later", s.ProgressPct, last.ProgressPct, gap)
			}
			last = s
		}
		if n < 10 || n > 40 {
			t.Errorf("a download of 16 s was told in %d statuses", n)
		}
	})
}

// TestRollbackReportIsRepeatedUntilTheBrokerHasIt and survives power cuts meanwhile.
func TestRollbackReportIsRepeatedUntilTheBrokerHasIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		next := image(t, "1.1.0", trial(appimage.BehaviourCrash))
		b := stand(t, next, "", release(t, next, nil))
		b.board.cfg.OnBoot = func(p string, _ ResetReason) {
			b.hub.mu.Lock()
			b.hub.acks = false
			b.hub.mu.Unlock()
		}
		b.hub.order(`{"action":"update"}`)
		b.settle(time.Minute)
		for range 3 {
			b.off()
			b.on()
			b.settle(time.Minute)
		}
		if strings.Contains(b.hub.phases(), "rolled_back") {
			t.Fatal("a status without a PUBACK was taken for said")
		}
		b.board.cfg.OnBoot = nil
		b.off()
		b.hub.acks = true
		b.on()
		b.settle(time.Minute)
		if !strings.HasSuffix(b.hub.phases(), "rolled_back:crash idle") {
			t.Errorf("said %s", b.hub.phases())
		}
		before := len(b.hub.all())
		b.off()
		b.on()
		b.settle(time.Minute)
		b.off()
		for _, s := range b.hub.all()[before:] {
			if s.Phase == protocol.PhaseRolledBack {
				t.Error("told again after the PUBACK")
			}
		}
	})
}

func TestUnhealthyImageStaysWhereItMay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		next := image(t, "1.1.0", trial(appimage.BehaviourUnhealthy))
		l := layout(image(t, "1.0.0"), "")
		l.OTAConfig = []byte(strings.Replace(string(l.OTAConfig), `"auto_rollback_enabled":true`, `"auto_rollback_enabled":false`, 1))
		b := newBench(t, l, serve(t, release(t, next, nil), next))
		b.on()
		b.settle(5 * time.Second)
		b.hub.order(`{"action":"update"}`)
		b.settle(time.Hour)
		if last := b.hub.last(); last.Phase != protocol.PhaseTrial || last.Reason != protocol.ReasonBMSSilent || !last.RollbackPending {
			t.Errorf("ends as %s:%s", last.Phase, last.Reason)
		}
		// The next reset ends it all the same: that is the bootloader's word.
		b.board.Reset(Brownout)
		b.settle(time.Minute)
		if last := b.hub.last(); last.CurrentVersion != "1.0.0" {
			t.Errorf("after a reset it runs %s", last.CurrentVersion)
		}
		b.off()
	})
}

func TestBoardInAFileIsTheSameBoard(t *testing.T) {
	path := filepath.Join(t.TempDir(), "board.bin")
	old, next := image(t, "1.0.0"), image(t, "1.1.0")
	if err := Create(path, layout(old, "")); err != nil {
		t.Fatal(err)
	}
	if err := Create(path, layout(old, "")); err == nil {
		t.Error("a board is created over another one")
	}
	for range 2 {
		synctest.Test(t, func(t *testing.T) {
			h := newHub()
			h.retain(`{"action":"update"}`)
			board, err := Open(Config{Path: path, Transport: serve(t, release(t, next, nil), next), newLink: h.link, strict: true})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Open(Config{Path: path}); !errors.Is(err, ErrInUse) {
				t.Errorf("opened twice: %v", err)
			}
			b := &bench{t: t, hub: h, board: board}
			b.on()
			b.settle(time.Minute)
			b.off()
			b.wantRunning(next)
			if err := board.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestCreateRefusesWhatCannotRun(t *testing.T) {
	good := layout(image(t, "1.0.0"), "")
	for name, spoil := range map[string]func(*Layout){
		"no image":      func(l *Layout) { l.Image = nil },
		"damaged image": func(l *Layout) { l.Image = bytes.Clone(l.Image); l.Image[5000] ^= 1 },
		"image too big": func(l *Layout) {
			l.Image = image(t, "1.0.0", func(o *appimage.BuildOptions) { o.Size = 0x180000 + 16 })
		},
		"no application":  func(l *Layout) { l.Table = parttable.Default()[:3] },
		"no storage":      func(l *Layout) { l.Table = parttable.Default()[:5] },
		"flash too small": func(l *Layout) { l.Size = 2 << 20 },
		"odd flash":       func(l *Layout) { l.Size = 3 << 20 },
	} {
		l := good
		spoil(&l)
		if _, err := Build(l); err == nil {
			t.Errorf("%s: built", name)
		}
	}
	if _, err := Build(good); err != nil {
		t.Error(err)
	}
}

// TestBoardThatIsCutContinuesInItsNextRun, at every hundredth operation and in every way, from a file.
func TestBoardThatIsCutContinuesInItsNextRun(t *testing.T) {
	next := image(t, "1.1.0")
	f := release(t, next, nil)
	for _, how := range []CutMoment{"", CutBefore, CutTorn, CutAfter} {
		for at := 1; ; at += 97 {
			path := filepath.Join(t.TempDir(), "board.bin")
			if err := Create(path, layout(image(t, "1.0.0"), "")); err != nil {
				t.Fatal(err)
			}
			cut := false
			synctest.Test(t, func(t *testing.T) {
				h := newHub()
				h.retain(update)
				board, err := Open(Config{Path: path, Transport: serve(t, f, next), newLink: h.link, strict: true, PowerCut: PowerCut{At: at, How: how, Seed: uint64(at)}})
				if err != nil {
					t.Fatal(err)
				}
				defer board.Close()
				b := &bench{t: t, hub: h, board: board}
				for range 2 {
					b.on()
					b.settle(3 * time.Minute)
					if err := b.off(); err != nil && (cut || !errors.Is(err, ErrPowerCut)) {
						t.Errorf("%s operation %d: ends with %v", how, at, err)
					} else if err != nil {
						cut = true
					}
				}
				b.wantRunning(next)
			})
			if !cut && at < 1000 {
				t.Errorf("%s operation %d: the power did not fail", how, at)
			}
			if !cut {
				break
			}
		}
	}
	if _, err := Open(Config{Flash: new(Flash), PowerCut: PowerCut{At: 1, How: "during"}}); err == nil {
		t.Error("a cut that nobody knows is accepted")
	}
	if _, err := Open(Config{Flash: new(Flash), PowerCut: PowerCut{At: -1}}); err == nil {
		t.Error("a cut at operation -1 is accepted")
	}
}
