package device

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"

	"bmsota/device/internal/norflash"
	"bmsota/esp/appimage"
	"bmsota/esp/otadata"
	"bmsota/esp/parttable"
	"bmsota/firmware/host_test/hosttest"
	"bmsota/protocol"
)

// hostSpeedup divides every wait of the component's processes. More, and a loaded machine is late for their deadlines.
const hostSpeedup = 50

// openDoor lets everybody in.
type openDoor struct{ mqtt.HookBase }

func (openDoor) Provides(b byte) bool                                    { return b == mqtt.OnConnectAuthenticate || b == mqtt.OnACLCheck }
func (openDoor) OnConnectAuthenticate(*mqtt.Client, packets.Packet) bool { return true }
func (openDoor) OnACLCheck(*mqtt.Client, string, bool) bool              { return true }

// componentBench is a broker and a server on the loopback, and the component's firmware as a program.
type componentBench struct {
	t       *testing.T
	program string
	broker  *mqtt.Server
	port    int // of the broker
	url     string
	server  *server
}

func newComponentBench(t *testing.T) *componentBench {
	t.Helper()
	t.Setenv("OTA_HOST_SPEEDUP", strconv.Itoa(hostSpeedup))
	b := &componentBench{t: t, program: hosttest.Build(t, "monitor", true)}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.port = listener.Addr().(*net.TCPAddr).Port
	b.broker = mqtt.New(&mqtt.Options{InlineClient: true, Logger: slog.New(slog.DiscardHandler)})
	if err := errors.Join(b.broker.AddHook(new(openDoor), nil), b.broker.AddListener(listeners.NewNet("test", listener)), b.broker.Serve()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.broker.Close() })
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		resp, err := b.server.RoundTrip(r)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		for name, values := range resp.Header {
			w.Header()[name] = values
		}
		w.Header().Set("Content-Length", strconv.FormatInt(resp.ContentLength, 10))
		w.WriteHeader(resp.StatusCode)
		if _, err := io.Copy(w, resp.Body); err != nil {
			hangUp(w)
		}
	}))
	t.Cleanup(web.Close)
	b.url = web.URL
	return b
}

// hangUp ends a connection in the middle of an answer, and what was sent of it still arrives: a reset would take it back.
func hangUp(w http.ResponseWriter) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	_ = rw.Flush()
	_ = conn.Close()
}

// order puts a retained command where every board hears it.
func (b *componentBench) order(payload string) {
	if err := b.broker.Publish(protocol.Topics{}.CommandAll(), []byte(payload), true, 1); err != nil {
		b.t.Fatal(err)
	}
}

// componentTable is a small chip with room for small images.
func componentTable() parttable.Table {
	slot := func(n uint32) parttable.Partition {
		return parttable.Partition{Name: fmt.Sprintf("ota_%d", n), Type: parttable.TypeApp, Subtype: parttable.SubtypeOTA0 + uint8(n), Offset: 0x20000 + n<<16, Size: 0x10000}
	}
	return parttable.Table{{Name: "otadata", Type: parttable.TypeData, Subtype: parttable.SubtypeOTAData, Offset: 0x10000, Size: parttable.OTADataSize},
		slot(0), slot(1), {Name: "storage", Type: parttable.TypeData, Subtype: parttable.SubtypeSPIFFS, Offset: 0x40000, Size: 0x10000}}
}

// componentCase is one update that is cut.
type componentCase struct {
	*sweep
	bench  *componentBench
	number atomic.Uint32 // of boards
	holes  atomic.Int32  // see escaped
}

func newComponentCase(t *testing.T, behaviour appimage.Behaviour, final func(old, next []byte) []byte) *componentCase {
	t.Helper()
	return newComponentCaseOf(t, 16<<10, behaviour, final)
}

func newComponentCaseOf(t *testing.T, size int64, behaviour appimage.Behaviour, final func(old, next []byte) []byte) *componentCase {
	t.Helper()
	small := func(o *appimage.BuildOptions) { o.Size = size }
	key, old, next := newKey(t), image(t, "1.0.0", small), image(t, "1.1.0", small, trial(behaviour))
	b := newComponentBench(t)
	b.server = serve(t, release(t, next, key), next)
	b.order(`{"action":"update"}`)
	deadline := 3600 // a machine under load must not be what a good image fails on
	if behaviour == appimage.BehaviourUnhealthy {
		deadline = 20 // which each of its lives waits for
	}
	l := Layout{Image: old, Table: componentTable(), Size: 1 << 20,
		OTAConfig:  fmt.Appendf(nil, `{"server_url":"%s/firmware/firmware.bin","auto_rollback_enabled":true,"skip_cert_verification":true,"health":{"deadline_s":%d}%s}`, b.url, deadline, trusting(t, key)),
		MQTTConfig: fmt.Appendf(nil, `{"broker_host":"127.0.0.1","broker_port":%d,"qos":1}`, b.port)}
	return &componentCase{bench: b, sweep: &sweep{layout: l, old: old, next: next, story: &story{table: l.Table, images: [][]byte{old, next}, final: final(old, next), holes: behaviour == appimage.BehaviourCrash}}}
}

// rest runs a new board with this power cut, and after it until the retained order is found fulfilled or refused. It
// returns the operations of the whole, and what was wrong.
func (cc *componentCase) rest(folder string, cut PowerCut) (ops int, problem string) {
	l := cc.layout
	n := cc.number.Add(1)
	l.MAC = [6]byte{2, 0, 0, byte(n >> 16), byte(n >> 8), byte(n)}
	path := fmt.Sprintf("%s/%d.flash", folder, n)
	defer os.Remove(path)
	if err := Create(path, l); err != nil {
		return 0, err.Error()
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var board *Board
	var said []string
	var last protocol.Status
	boots, atRest := 0, false
	board, err := Open(Config{Path: path, Application: cc.bench.program, Seed: uint64(n), PowerCut: cut,
		Timing: Timing{Boot: time.Nanosecond, Crash: time.Nanosecond, Watchdog: time.Nanosecond},
		OnBoot: func(p string, why ResetReason) {
			said = append(said, p+" after "+string(why))
			if boots++; boots > 12 {
				problem = "does not come to rest"
			} else if bad := cc.judge(board.flash, p); bad != "" {
				problem = bad
			}
			if problem != "" {
				cancel()
			}
		},
		OnStatus: func(s protocol.Status) {
			said = append(said, string(s.Phase)+":"+string(s.Reason))
			last = s
			if s.Reason == protocol.ReasonUpToDate || s.Reason == protocol.ReasonQuarantined {
				atRest = true
				cancel()
			}
		}})
	if err != nil {
		return 0, err.Error()
	}
	defer board.Close()
	inBootloader := false // of what the process does nothing is seen here
	board.flash.OnOp(func(norflash.Op) { inBootloader = inBootloader || board.flash.Ops() == cut.At })
	err = board.Run(ctx)
	if errors.Is(err, ErrPowerCut) {
		if board.flash.PowerOn(); cc.story.holes && inBootloader && cc.escapes(board.flash) {
			cc.holes.Add(1)
			return board.flash.Ops(), ""
		}
		err = board.Run(ctx)
	}
	switch {
	case problem != "":
	case err != nil:
		problem = err.Error()
	case !atRest:
		problem = "no end"
	case last.ImageSHA256 != sha(cc.final):
		problem = "runs " + last.CurrentVersion + " in the end"
	default:
		problem = cc.zombies(board.flash)
	}
	if problem != "" {
		problem = fmt.Sprintf("%s: %q", problem, said[max(0, len(said)-40):])
	}
	return board.flash.Ops(), problem
}

// escapes says whether ESP-IDF's bootloader, cut in its rewrite of a trial's record, left one that boots without a trial:
// an image that crashes at once is then undone by nobody (see TestPowerCutSweepOfAFailedTrial).
func (cc *componentCase) escapes(f *norflash.Flash) bool {
	for _, r := range cc.records(f) {
		if r.Usable() && (r.State == otadata.Undefined || !r.State.Named()) {
			return true
		}
	}
	return false
}

// run cuts operations: all of the last, which are those on records and tombstones, and of the others every stride-th.
func (cc *componentCase) run(t *testing.T, stride int) {
	t.Helper()
	folder := t.TempDir()
	began := time.Now()
	total, problem := cc.rest(folder, PowerCut{})
	if problem != "" {
		t.Fatalf("without a power cut: %s", problem)
	}
	cuts := make(chan PowerCut)
	var wg sync.WaitGroup
	var bad atomic.Int32
	for range 2 * runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for cut := range cuts {
				if _, problem := cc.rest(folder, cut); problem != "" && bad.Add(1) <= 5 {
					t.Errorf("cut %s operation %d of %d, seed %d: %s", cut.How, cut.At, total, cut.Seed, problem)
				}
			}
		})
	}
	tried := 0
	for at := 1; at <= total; at++ {
		tears := 1
		if at > total-16 {
			tears = 3
		} else if at%stride != 0 {
			continue
		}
		for seed := range tears {
			cuts <- PowerCut{At: at, How: CutTorn, Seed: uint64(at*tears + seed)}
		}
		cuts <- PowerCut{At: at, How: CutBefore}
		cuts <- PowerCut{At: at, How: CutAfter}
		tried += tears + 2
	}
	close(cuts)
	wg.Wait()
	t.Logf("power cuts: %s: %d operations, %d cuts, %d bad, %d escape ESP-IDF's bootloader, %v", t.Name(), total, tried, bad.Load(), cc.holes.Load(), time.Since(began).Round(time.Millisecond))
}

// TestComponentPowerCutSweep cuts the power in a whole update as the ESP-IDF component does it, a process for each life
// of the board, with a server and a broker: each time an image boots that is whole, and the retained order brings the
// board where the undisturbed one is.
func TestComponentPowerCutSweep(t *testing.T) {
	for _, c := range []struct {
		behaviour appimage.Behaviour
		final     func(old, next []byte) []byte
	}{{appimage.BehaviourOK, toNew}, {appimage.BehaviourUnhealthy, toOld}, {appimage.BehaviourCrash, toOld}} {
		t.Run(string(c.behaviour), func(t *testing.T) {
			cc := newComponentCase(t, c.behaviour, c.final)
			stride := 16
			if long(t) {
				stride = 1
			} else if c.behaviour != appimage.BehaviourOK {
				stride = 1 << 20 // the bytes of the image are the good update's
			}
			cc.run(t, stride)
		})
	}
}

// The connection dies once in a download of 64 KiB, in the long run after every 256 bytes of it, else after every 4,352nd: the
// component goes on with the sector that was cut off, and ends with the right image.
func TestComponentCutEvery256BytesRefetchesLessThanASector(t *testing.T) {
	const size = 64 << 10
	step := 17 * 256
	if long(t) {
		step = 256
	}
	cc := newComponentCaseOf(t, size, appimage.BehaviourOK, toNew)
	folder := t.TempDir()
	cuts, again := 0, 0
	for at := 256; at < size; at += step {
		cc.bench.server.set(func(s *server) { s.requests, s.cut, s.cuts = nil, int64(at), 1 })
		if _, problem := cc.rest(folder, PowerCut{}); problem != "" {
			t.Errorf("cut after %d bytes: %s", at, problem)
			continue
		}
		var from []string
		cc.bench.server.set(func(s *server) {
			for _, r := range s.requests {
				if strings.HasSuffix(r.URL.Path, ".bin") {
					from = append(from, r.Header.Get("Range"))
				}
			}
		})
		want := ""
		if whole := at / flashSector * flashSector; whole > 0 {
			want = fmt.Sprintf("bytes=%d-", whole)
		}
		if len(from) != 2 || from[1] != want {
			t.Errorf("cut after %d bytes: asked for %q, want the second to be %q", at, from, want)
		}
		cuts, again = cuts+1, again+at%flashSector
	}
	t.Logf("%d cuts, %d bytes of the image fetched twice in the mean", cuts, again/max(cuts, 1))
}
