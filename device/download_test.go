package device

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/device/internal/agent"
	"bmsota/device/internal/otaops"
	"bmsota/esp/appimage"
	"bmsota/protocol"
)

// updated runs one update to its end.
func updated(b *bench, limit time.Duration) {
	b.on()
	b.settle(5 * time.Second)
	b.hub.order(`{"action":"update"}`)
	b.settle(limit)
	b.off()
}

func quarterMiB(o *appimage.BuildOptions) { o.Size = 256 << 10 }

// TestDownloadSurvivesACutAtEverySector ends the connection after every 4 KiB, with servers that know Range and
// servers that do not, once and again and again.
func TestDownloadSurvivesACutAtEverySector(t *testing.T) {
	key := newKey(t)
	old, next := image(t, "1.0.0"), image(t, "1.1.0", quarterMiB)
	f := release(t, next, key)
	for _, ranges := range []bool{true, false} {
		for cut := int64(4 << 10); cut <= int64(len(next)); cut += 4 << 10 {
			synctest.Test(t, func(t *testing.T) {
				s := serve(t, f, next)
				s.ranges, s.cut, s.cuts = ranges, cut, 1
				b := newBench(t, layout(old, trusting(t, key)), s)
				updated(b, 10*time.Minute)
				if b.hub.last().ImageSHA256 != sha(next) {
					t.Fatalf("cut at %d, ranges %v: %s", cut, ranges, b.hub.phases())
				}
				want := 2
				if cut == int64(len(next)) {
					want = 1
				}
				if got := s.log(".bin"); got != want {
					t.Errorf("cut at %d, ranges %v: %d requests for the image, want %d", cut, ranges, got, want)
				}
				for _, st := range b.hub.all() {
					if st.BytesDone > int64(len(next)) || st.ProgressPct > 100 {
						t.Fatalf("cut at %d: %d bytes, %d %%", cut, st.BytesDone, st.ProgressPct)
					}
				}
			})
		}
	}
}

func TestResumeFetchesOnlyWhatIsMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := newKey(t)
		old, next := image(t, "1.0.0"), image(t, "1.1.0", quarterMiB)
		s := serve(t, release(t, next, key), next)
		s.cut = 100 << 10 // of every answer
		b := newBench(t, layout(old, trusting(t, key)), s)
		updated(b, 10*time.Minute)
		b.wantRunning(next)
		var from []string
		for _, r := range s.requests {
			if strings.HasSuffix(r.URL.Path, ".bin") {
				from = append(from, r.Header.Get("Range"))
			}
		}
		if got, want := fmt.Sprint(from), "[ bytes=102400- bytes=204800-]"; got != want {
			t.Errorf("asked for %s, want %s", got, want)
		}
	})
}

// nginx and Apache name a file by its time and size, so the digest means nothing to them.
func TestResumeFromAStaticServerUsesItsOwnName(t *testing.T) {
	for tag, want := range map[string]string{
		`"4a1-61f0"`:   "[ bytes=102400- bytes=204800-]",
		`W/"4a1-61f0"`: "[ bytes=102400- bytes=102400-", // a weak name is no name for a part: each answer is the whole file
	} {
		synctest.Test(t, func(t *testing.T) {
			key := newKey(t)
			old, next := image(t, "1.0.0"), image(t, "1.1.0", quarterMiB)
			s := serve(t, release(t, next, key), next)
			s.etag, s.cut, s.cuts = tag, 100<<10, 3
			b := newBench(t, layout(old, trusting(t, key)), s)
			updated(b, 10*time.Minute)
			b.wantRunning(next)
			var from []string
			for _, r := range s.requests {
				if strings.HasSuffix(r.URL.Path, ".bin") {
					from = append(from, r.Header.Get("Range"))
				}
			}
			if got := fmt.Sprint(from); !strings.HasPrefix(got, want) {
				t.Errorf("%s: asked for %s, want %s", tag, got, want)
			}
		})
	}
}

// A cache that answers a Range with bytes of another file still has the whole of the right one.
func TestPartOfAnotherFileIsFollowedByTheWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := newKey(t)
		old, next, other := image(t, "1.0.0"), image(t, "1.1.0", quarterMiB), image(t, "1.0.5", quarterMiB)
		s := serve(t, release(t, next, key), next)
		s.cut, s.cuts = 100<<10, 1
		s.respond = func(r *http.Request, body []byte) *http.Response {
			if r.Header.Get("Range") == "" {
				return s.file(r, body)
			}
			start := 64 << 10
			header := http.Header{"Content-Range": {fmt.Sprintf("bytes %d-%d/%d", start, len(body)-1, len(body))}}
			return reply(r, http.StatusPartialContent, header, bytes.NewReader(other[start:]), int64(len(other)-start))
		}
		b := newBench(t, layout(old, trusting(t, key)), s)
		updated(b, 10*time.Minute)
		b.wantRunning(next)
		if got := s.log(".bin"); got != 3 {
			t.Errorf("%d requests, want 3: cut, part of another, whole", got)
		}
	})
}

func TestResumeAfterARestartTrustsFlashByItsDigestsOnly(t *testing.T) {
	for _, damage := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			key := newKey(t)
			old, next := image(t, "1.0.0"), image(t, "1.1.0", quarterMiB)
			s := serve(t, release(t, next, key), next)
			s.cut, s.down = 200<<10, false
			b := newBench(t, layout(old, trusting(t, key)), s)
			b.hub.retain(`{"action":"update"}`)
			b.on()
			b.settle(600 * time.Millisecond)
			b.off()
			s.set(func(s *server) { s.cut = 0 })
			want := "bytes=196608-"
			if damage {
				// One bit of the second block is lost while the board is off.
				if err := b.flash().Program(0x1A0000+70<<10, []byte{0}); err != nil {
					t.Fatal(err)
				}
				want = "bytes=65536-"
			}
			s.requests = nil
			b.on()
			b.settle(time.Minute)
			b.off()
			b.wantRunning(next)
			for _, r := range s.requests {
				if strings.HasSuffix(r.URL.Path, ".bin") && r.Header.Get("Range") != want {
					t.Errorf("damage %v: asked for %q, want %q", damage, r.Header.Get("Range"), want)
				}
			}
		})
	}
}

// endless never ends.
type endless struct{ n *int64 }

func (e endless) Read(p []byte) (int, error) {
	*e.n += int64(len(p))
	return len(p), nil
}

// TestHostileAnswersEndTheUpdateAndNotTheBoard plays servers that answer for the image with something else.
func TestHostileAnswersEndTheUpdateAndNotTheBoard(t *testing.T) {
	key := newKey(t)
	old, next := image(t, "1.0.0"), image(t, "1.1.0", quarterMiB)
	other := image(t, "1.1.0", quarterMiB, func(o *appimage.BuildOptions) { o.Project = "other" })
	var drawn int64
	cases := []struct {
		name    string
		respond func(r *http.Request, body []byte) *http.Response
		reason  protocol.Reason
	}{
		{"announces more", func(r *http.Request, body []byte) *http.Response {
			return reply(r, 200, nil, endless{&drawn}, 1<<40)
		}, protocol.ReasonSizeMismatch},
		{"announces less", func(r *http.Request, body []byte) *http.Response {
			return plain(r, 200, body[:1000])
		}, protocol.ReasonSizeMismatch},
		{"other bytes", func(r *http.Request, body []byte) *http.Response {
			return plain(r, 200, other)
		}, protocol.ReasonWrongProject},
		{"one bit", func(r *http.Request, body []byte) *http.Response {
			b := bytes.Clone(body)
			b[100<<10] ^= 1
			return plain(r, 200, b)
		}, protocol.ReasonDigestMismatch},
		{"a web page", func(r *http.Request, body []byte) *http.Response {
			return plain(r, 200, bytes.Repeat([]byte("<html>"), len(body)/6+1)[:len(body)])
		}, protocol.ReasonImageInvalid},
		{"redirect", func(r *http.Request, body []byte) *http.Response {
			return reply(r, 302, http.Header{"Location": {"https://elsewhere/x"}}, http.NoBody, 0)
		}, protocol.ReasonHTTPStatus},
		{"not found", func(r *http.Request, body []byte) *http.Response { return plain(r, 404, nil) }, protocol.ReasonHTTPStatus},
		{"always 500", func(r *http.Request, body []byte) *http.Response { return plain(r, 500, nil) }, protocol.ReasonDeadline},
		{"206 unasked", func(r *http.Request, body []byte) *http.Response {
			return reply(r, 206, http.Header{"Content-Range": {"bytes 0-9/10"}}, bytes.NewReader(body), int64(len(body)))
		}, protocol.ReasonHTTPStatus},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				drawn = 0
				s := serve(t, release(t, next, key), next)
				s.respond = c.respond
				b := newBench(t, layout(old, trusting(t, key)), s)
				updated(b, time.Hour)
				last := b.hub.last()
				if last.Phase != protocol.PhaseFailed || last.Reason != c.reason {
					t.Errorf("ends as %s:%s (%s), want failed:%s", last.Phase, last.Reason, last.Message, c.reason)
				}
				if len(b.boots) != 1 {
					t.Errorf("boots: %v", b.boots)
				}
				if drawn > 16<<10 {
					t.Errorf("%d bytes drawn from an endless body", drawn)
				}
				// A failure is no state to stay in: once the server is right, the next order goes through.
				s.set(func(s *server) { s.respond = nil })
				updated(b, time.Hour)
				b.wantRunning(next)
			})
		})
	}
}

func TestNothingBehindThePromisedBytesIsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := newKey(t)
		old, next := image(t, "1.0.0"), image(t, "1.1.0", quarterMiB)
		s := serve(t, release(t, next, key), next)
		var drawn int64
		s.respond = func(r *http.Request, body []byte) *http.Response {
			return reply(r, 200, nil, io.MultiReader(bytes.NewReader(body), endless{&drawn}), -1)
		}
		b := newBench(t, layout(old, trusting(t, key)), s)
		updated(b, time.Hour)
		b.wantRunning(next)
		if drawn > 0 {
			t.Errorf("%d bytes drawn from an endless body", drawn)
		}
	})
}

// TestEndlessBodyOfUnknownSizeStopsAtTheSlot: nothing is promised but a version.
func TestEndlessBodyOfUnknownSizeStopsAtTheSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, next := image(t, "1.0.0"), image(t, "1.1.0", quarterMiB)
		s := serve(t, release(t, next, nil), next)
		s.version = []byte(`{"version":"1.1.0"}`)
		var drawn int64
		s.respond = func(r *http.Request, body []byte) *http.Response {
			return reply(r, 200, nil, io.MultiReader(bytes.NewReader(body), endless{&drawn}), -1)
		}
		b := newBench(t, layout(old, ""), s)
		updated(b, time.Hour)
		if last := b.hub.last(); last.Phase != protocol.PhaseFailed || len(b.boots) != 1 {
			t.Errorf("ends as %s:%s, boots %v", last.Phase, last.Reason, b.boots)
		}
		if drawn > 0x180000 {
			t.Errorf("%d bytes drawn, the slot has %d", drawn, 0x180000)
		}
	})
}

// TestWrongPartialAnswersCannotMixImages plays servers that get Range wrong.
func TestWrongPartialAnswersCannotMixImages(t *testing.T) {
	key := newKey(t)
	old, next := image(t, "1.0.0"), image(t, "1.1.0", quarterMiB)
	for name, respond := range map[string]func(s *server, r *http.Request, start string, body []byte) *http.Response{
		"200 to a range": func(s *server, r *http.Request, _ string, body []byte) *http.Response { return plain(r, 200, body) },
		"range from zero": func(s *server, r *http.Request, _ string, body []byte) *http.Response {
			return reply(r, 206, http.Header{"Content-Range": {fmt.Sprintf("bytes 0-%d/%d", len(body)-1, len(body))}}, bytes.NewReader(body), int64(len(body)))
		},
		"206 without content-range": func(s *server, r *http.Request, _ string, body []byte) *http.Response {
			return reply(r, 206, nil, bytes.NewReader(body), int64(len(body)))
		},
		"other total": func(s *server, r *http.Request, start string, body []byte) *http.Response {
			return reply(r, 206, http.Header{"Content-Range": {fmt.Sprintf("bytes %s-%d/%d", start, len(body)-1, len(body)+1)}}, bytes.NewReader(body[65536:]), int64(len(body)-65536))
		},
		"416": func(s *server, r *http.Request, _ string, body []byte) *http.Response { return plain(r, 416, nil) },
		"bytes of another file": func(s *server, r *http.Request, start string, body []byte) *http.Response {
			h := http.Header{"Content-Range": {fmt.Sprintf("bytes %s-%d/%d", start, len(body)-1, len(body))}}
			if s.cuts++; s.cuts > 1 { // only the first time: a file was being replaced
				return reply(r, 206, h, bytes.NewReader(body[len(body)-int(r.ContentLength):]), 0)
			}
			return reply(r, 206, h, bytes.NewReader(make([]byte, len(body)-65536)), int64(len(body)-65536))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := serve(t, release(t, next, key), next)
				first := true
				s.respond = func(r *http.Request, body []byte) *http.Response {
					rng := r.Header.Get("Range")
					if first {
						first = false
						return reply(r, 200, nil, io.MultiReader(bytes.NewReader(body[:80<<10]), errReader{}), int64(len(body)))
					}
					if rng == "" {
						return plain(r, 200, body)
					}
					if name == "bytes of another file" && s.cuts > 0 {
						return plain(r, 200, body)
					}
					return respond(s, r, strings.TrimSuffix(strings.TrimPrefix(rng, "bytes="), "-"), body)
				}
				b := newBench(t, layout(old, trusting(t, key)), s)
				updated(b, 20*time.Minute)
				b.wantRunning(next)
			})
		})
	}
}

// trickle gives a byte every ten seconds.
type trickle struct{ r *http.Request }

func (tr trickle) Read(p []byte) (int, error) {
	select {
	case <-time.After(10 * time.Second):
		p[0] = 0xE9
		return 1, nil
	case <-tr.r.Context().Done():
		return 0, tr.r.Context().Err()
	}
}

type silence struct{ r *http.Request }

func (s silence) Read([]byte) (int, error) {
	<-s.r.Context().Done()
	return 0, s.r.Context().Err()
}

func TestSlowAndSilentServersAreLeftWithinAMinute(t *testing.T) {
	key := newKey(t)
	old, next := image(t, "1.0.0"), image(t, "1.1.0")
	for name, body := range map[string]func(*http.Request) io.Reader{
		"trickle": func(r *http.Request) io.Reader { return trickle{r} },
		"silence": func(r *http.Request) io.Reader { return silence{r} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := serve(t, release(t, next, key), next)
				var at []time.Time
				s.respond = func(r *http.Request, b []byte) *http.Response {
					at = append(at, time.Now())
					if len(at) == 3 {
						return plain(r, 200, b)
					}
					return reply(r, 200, nil, body(r), int64(len(b)))
				}
				b := newBench(t, layout(old, trusting(t, key)), s)
				updated(b, 10*time.Minute)
				b.wantRunning(next)
				if gap := at[1].Sub(at[0]); gap > 62*time.Second {
					t.Errorf("the first answer was waited for %v", gap)
				}
			})
		})
	}
}

// TestStaticServerWithNothingButAVersion: no size is promised, so the end of the answer is the end of the image, also
// where that is in the middle of a flash sector.
func TestStaticServerWithNothingButAVersion(t *testing.T) {
	for _, size := range []int64{64 << 10, 64<<10 + 16, 64<<10 - 2048} {
		t.Run(strconv.FormatInt(size, 10), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				old, next := image(t, "1.0.0"), image(t, "1.1.0", func(o *appimage.BuildOptions) { o.Size = size })
				s := serve(t, release(t, next, nil), next)
				s.version, s.static = nil, []byte(`{"version":"1.1.0"}`)
				b := newBench(t, layout(old, ""), s)
				updated(b, 10*time.Minute)
				b.wantRunning(next)
			})
		})
	}
}

// TestSameImageUnderAnotherVersionDoesNotLoop: the version file says 1.2.0, the image 1.0.0, which runs.
func TestSameImageUnderAnotherVersionDoesNotLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := image(t, "1.0.0")
		s := serve(t, release(t, old, nil), old)
		s.version, s.static = nil, []byte(`{"version":"1.2.0"}`)
		b := newBench(t, layout(old, ""), s)
		updated(b, 10*time.Minute)
		if last := b.hub.last(); last.Reason != protocol.ReasonUpToDate || len(b.boots) != 1 {
			t.Errorf("ends as %s:%s after boots %v", last.Phase, last.Reason, b.boots)
		}
	})
}

// lying is a flash that answers ok and stores something else, once.
type lying struct {
	otaops.Flash
	at   int64
	done *int
}

func (f lying) Program(off int64, p []byte) error {
	if *f.done < 2 && off <= f.at && f.at+1 < off+int64(len(p)) {
		*f.done++
		q := bytes.Clone(p)
		// The same bit in two bytes of one lane: the image's own XOR checksum stays right.
		q[f.at-off] &^= 0x10
		return f.Flash.Program(off, q)
	}
	return f.Flash.Program(off, p)
}

// TestReadBackCatchesFlashThatDidNotTake: an image without an appended hash, and a flash that loses bits the XOR
// checksum does not see. The mutant without read-back installs it.
func TestReadBackCatchesFlashThatDidNotTake(t *testing.T) {
	key := newKey(t)
	old := image(t, "1.0.0")
	next := image(t, "1.1.0", func(o *appimage.BuildOptions) { o.NoHash = true })
	// Two bytes with bit 4 set: losing it in both leaves the XOR over all bytes as it is.
	var at []int64
	for i := int64(20 << 10); len(at) < 2; i += 4096 {
		j := i
		for next[j]&0x10 == 0 {
			j++
		}
		at = append(at, j)
	}
	for _, c := range []struct {
		mutant agent.Mutant
		caught bool
	}{{agent.MutantNone, true}, {agent.MutantSkipReadBack, false}} {
		synctest.Test(t, func(t *testing.T) {
			var n [2]int
			b := newBench(t, layout(old, trusting(t, key)), serve(t, release(t, next, key), next), func(cfg *Config) {
				cfg.mutant = c.mutant
				cfg.wrap = func(f otaops.Flash) otaops.Flash {
					return lying{lying{f, 0x1A0000 + at[0], &n[0]}, 0x1A0000 + at[1], &n[1]}
				}
			})
			updated(b, 10*time.Minute)
			last := b.hub.last()
			if caught := last.Reason == protocol.ReasonDigestMismatch && len(b.boots) == 1; caught != c.caught {
				t.Errorf("mutant %q: caught %v, want %v: %s, boots %v", c.mutant, caught, c.caught, b.hub.phases(), b.boots)
			}
		})
	}
}

func TestTrailingBytesAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := newKey(t)
		old, next := image(t, "1.0.0"), append(image(t, "1.1.0"), make([]byte, 512)...)
		b := newBench(t, layout(old, trusting(t, key)), serve(t, release(t, next, key), next))
		updated(b, 10*time.Minute)
		if last := b.hub.last(); last.Reason != protocol.ReasonImageInvalid || len(b.boots) != 1 {
			t.Errorf("ends as %s:%s", last.Phase, last.Reason)
		}
	})
}
