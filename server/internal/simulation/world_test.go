package simulation

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/device"
	"bmsota/esp/appimage"
	"bmsota/manifest"
	"bmsota/protocol"
	"bmsota/server/internal/broker"
	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"
	"bmsota/server/internal/web"
)

const project = "monitor"

var admin = fleet.Identity{Name: "olga", Role: fleet.RoleAdmin}

// world is a server, boards and the network between them, in one bubble of virtual time.
type world struct {
	t     *testing.T
	net   *wires
	store *store.Memory
	blobs *store.Folder
	key   *ecdsa.PrivateKey
	began time.Time

	lifeMu sync.Mutex
	life   *life // nil while the server is off

	restarts sync.WaitGroup

	boards []*board

	mu    sync.Mutex
	trace []entry
}

// entry is something that happened.
type entry struct {
	at   time.Duration
	text string
}

// life is the server from a start to its end.
type life struct {
	fleet  *fleet.Fleet
	broker *broker.Embedded
	end    func()
}

// board is a device.Board and what its owner sees.
type board struct {
	*device.Board
	id     string
	number int

	cancel context.CancelFunc
	done   chan struct{}

	mu       sync.Mutex
	boots    []string
	statuses []protocol.Status
	died     error
}

func newWorld(t *testing.T, boards int, change func(i int, c *device.Config)) *world {
	t.Helper()
	// A bubble begins in 2000, which a board rightly takes for a clock that was never set.
	time.Sleep(time.Until(time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)))
	w := &world{t: t, net: newWires(), store: store.NewMemory(), began: time.Now()}
	var err error
	if w.blobs, err = store.OpenFolder(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	if w.key, err = manifest.NewKey(rand.Reader); err != nil {
		t.Fatal(err)
	}
	w.start()
	image := w.image("1.0.0", appimage.BehaviourOK, 32<<10)
	for i := range boards {
		w.boards = append(w.boards, w.newBoard(i, image, change))
	}
	return w
}

// close ends everything; nothing may be left.
func (w *world) close() {
	w.net.listen(nil)
	w.restarts.Wait()
	for _, b := range w.boards {
		b.off()
	}
	w.stop()
	if err := w.blobs.Close(); err != nil {
		w.t.Error(err)
	}
	settle(time.Minute) // what was on the wire
}

// start begins a life of the server on what the store holds.
func (w *world) start() {
	log := slog.New(slog.DiscardHandler)
	f, err := fleet.New(fleet.Config{Store: w.store, Blobs: w.blobs, Log: log, Silence: 20 * time.Minute})
	if err != nil {
		w.t.Fatal(err)
	}
	mqttLn, webLn := newListener(), newListener()
	e, err := broker.NewEmbedded(broker.Config{Handler: f, Plain: mqttLn, Log: log})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	srv := web.NewServer(web.New(web.Config{Fleet: f, Log: log, Closing: ctx.Done()}), log)
	var wg sync.WaitGroup
	for _, run := range []func() error{
		func() error { return f.Run(ctx, e) },
		func() error { return e.Run(ctx) },
		func() error { return srv.Serve(webLn, nil) },
	} {
		wg.Go(func() {
			if err := run(); err != nil && !errors.Is(err, http.ErrServerClosed) {
				w.t.Errorf("server: %v", err)
			}
		})
	}
	w.lifeMu.Lock()
	w.life = &life{fleet: f, broker: e, end: func() {
		cancel()
		srv.Close()
		wg.Wait()
	}}
	w.lifeMu.Unlock()
	w.net.serve(map[string]*listener{mqttAddr: mqttLn, webAddr: webLn})
}

// stop ends the server as a kill does: the connections first, so that nobody is told goodbye.
func (w *world) stop() {
	w.net.serve(nil)
	w.net.cut(-1)
	w.lifeMu.Lock()
	l := w.life
	w.life = nil
	w.lifeMu.Unlock()
	if l != nil {
		l.end()
	}
}

// restart stops the server and starts it after a while. It may be called from the server's own connections.
func (w *world) restart(after time.Duration) {
	w.restarts.Go(func() {
		w.stop()
		time.Sleep(after)
		w.start()
	})
}

func (w *world) fleet() *fleet.Fleet {
	w.lifeMu.Lock()
	defer w.lifeMu.Unlock()
	if w.life == nil {
		w.t.Fatal("the server is off")
	}
	return w.life.fleet
}

func (w *world) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.trace = append(w.trace, entry{time.Since(w.began), fmt.Sprintf(format, args...)})
}

// sorted is the trace by time. What happens at one instant has no order, so it is put into that of its words; and how often
// a board says one thing within one instant depends on which of its goroutines comes first, so it counts once.
func (w *world) sorted() []entry {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := slices.Clone(w.trace)
	slices.SortFunc(all, func(a, b entry) int {
		if a.at != b.at {
			return int(min(max(a.at-b.at, -1), 1))
		}
		return strings.Compare(a.text, b.text)
	})
	return slices.Compact(all)
}

// tell prints the trace.
func (w *world) tell() {
	for _, e := range w.sorted() {
		w.t.Logf("%v %s", e.at, e.text)
	}
}

func (w *world) image(version string, trial appimage.Behaviour, size int64) []byte {
	b, err := appimage.Build(appimage.BuildOptions{Chip: appimage.ESP32, Project: project, Version: version, Size: size, Trial: trial})
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

func (w *world) newBoard(i int, image []byte, change func(int, *device.Config)) *board {
	mac := [6]byte{2, 0, 0, 0, 0, byte(i + 1)}
	b := &board{id: protocol.DeviceID(mac), number: i}
	token, err := w.fleet().Enroll(context.Background(), admin, b.id)
	if err != nil {
		w.t.Fatal(err)
	}
	trusted, err := manifest.EncodePublicKey(&w.key.PublicKey)
	if err != nil {
		w.t.Fatal(err)
	}
	flash, err := device.Build(device.Layout{Image: image, MAC: mac,
		OTAConfig:  fmt.Appendf(nil, `{"server_url":"http://fw.example/firmware/firmware.bin","skip_cert_verification":true,"auto_rollback_enabled":true,"trusted_key_pem":%q,"health":{"deadline_s":900}}`, trusted),
		MQTTConfig: fmt.Appendf(nil, `{"broker_host":"mqtt.example","broker_port":1883,"username":%q,"password":%q,"qos":1}`, b.id, token)})
	if err != nil {
		w.t.Fatal(err)
	}
	// Speeds that have no common measure, so that what two boards do does not fall on one instant.
	cfg := device.Config{Flash: flash, Seed: uint64(i)*0x9E3779B97F4A7C15 + 1, Dial: w.net.dialer(i, 16_001+977*i),
		Timing:   device.Timing{Frame: 10 * time.Second},
		OnStatus: func(s protocol.Status) { b.said(w, s) },
		OnBoot: func(slot string, why device.ResetReason) {
			b.mu.Lock()
			b.boots = append(b.boots, slot+":"+string(why))
			b.mu.Unlock()
			w.note("%s boots %s after %s", b.id, slot, why)
		}}
	if change != nil {
		change(i, &cfg)
	}
	if b.Board, err = device.Open(cfg); err != nil {
		w.t.Fatal(err)
	}
	return b
}

func (b *board) said(w *world, s protocol.Status) {
	b.mu.Lock()
	b.statuses = append(b.statuses, s)
	b.mu.Unlock()
	w.note("%s says %s:%s of %s, runs %s, %d %% %s", b.id, s.Phase, s.Reason, s.AvailableVersion, s.CurrentVersion, s.ProgressPct, s.Message)
}

// last is what the board said last.
func (b *board) last() protocol.Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.statuses) == 0 {
		return protocol.Status{}
	}
	return b.statuses[len(b.statuses)-1]
}

// proved says whether the board has reported that it runs a version, outside of a trial.
func (b *board) proved(version string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.ContainsFunc(b.statuses, func(s protocol.Status) bool {
		return s.CurrentVersion == version && !s.RollbackPending && s.Phase != protocol.PhaseTrial
	})
}

// installs counts the restarts into an image that was just written.
func (b *board) installs() (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, boot := range b.boots {
		if strings.HasSuffix(boot, ":"+string(device.Software)) {
			n++
		}
	}
	return n
}

// on switches the board on. A power cut that comes in the middle is over after ten minutes.
func (b *board) on() {
	if b.cancel != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	b.cancel, b.done = cancel, make(chan struct{})
	go func() {
		defer close(b.done)
		for {
			err := b.Run(ctx)
			if errors.Is(err, device.ErrPowerCut) {
				time.Sleep(10 * time.Minute)
				continue
			}
			b.mu.Lock()
			b.died = err
			b.mu.Unlock()
			return
		}
	}()
}

// off pulls the plug.
func (b *board) off() {
	if b.cancel == nil {
		return
	}
	b.cancel()
	<-b.done
	b.cancel = nil
}

// settle lets virtual time pass.
func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// publish uploads and publishes a release, as an operator's tool does.
func (w *world) publish(version string, trial appimage.Behaviour, size int64) string {
	image := w.image(version, trial, size)
	parsed, err := appimage.Parse(image)
	if err != nil {
		w.t.Fatal(err)
	}
	m, err := manifest.New(image, parsed, version)
	if err != nil {
		w.t.Fatal(err)
	}
	jws, err := manifest.Sign(m, w.key)
	if err != nil {
		w.t.Fatal(err)
	}
	pem, err := manifest.EncodePublicKey(&w.key.PublicKey)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx := context.Background()
	if err := w.fleet().Upload(ctx, admin, m.SHA256, m.Size, bytes.NewReader(image)); err != nil {
		w.t.Fatal(err)
	}
	if _, _, err := w.fleet().Publish(ctx, admin, fleet.PublishRequest{SHA256: m.SHA256, Manifest: jws, PublicKeyPEM: string(pem)}); err != nil {
		w.t.Fatal(err)
	}
	return m.SHA256
}

func (w *world) device(b *board) fleet.Device {
	d, err := w.fleet().Device(context.Background(), b.id)
	if err != nil {
		w.t.Fatal(err)
	}
	return d
}

func (w *world) attempts(b *board) []fleet.Attempt {
	list, err := w.fleet().Attempts(context.Background(), b.id, 100)
	if err != nil {
		w.t.Fatal(err)
	}
	return list
}
