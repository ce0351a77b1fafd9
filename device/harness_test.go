package device

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/device/internal/agent"
	"bmsota/device/internal/norflash"
	"bmsota/esp/appimage"
	"bmsota/manifest"
	"bmsota/protocol"
)

// image builds an application of 64 KiB unless opt says otherwise.
func image(t testing.TB, version string, change ...func(*appimage.BuildOptions)) []byte {
	t.Helper()
	opt := appimage.BuildOptions{Chip: appimage.ESP32, Project: "monitor", Version: version, Size: 64 << 10}
	for _, c := range change {
		c(&opt)
	}
	b, err := appimage.Build(opt)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func trial(b appimage.Behaviour) func(*appimage.BuildOptions) {
	return func(o *appimage.BuildOptions) { o.Trial = b }
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := manifest.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// release is a version file of an image, with a manifest when there is a key.
func release(t testing.TB, b []byte, key *ecdsa.PrivateKey, change ...func(*manifest.Manifest)) protocol.VersionFile {
	t.Helper()
	img, err := appimage.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	m, err := manifest.New(b, img, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range change {
		c(&m)
	}
	f := protocol.VersionFile{Version: m.Version, Project: m.Project, Chip: m.Chip, Size: m.Size, SHA256: m.SHA256,
		SecureVersion: m.SecureVersion, MinVersion: m.MinVersion, ForceUpdate: m.ForceUpdate, URL: m.SHA256 + ".bin"}
	if key != nil {
		if f.Manifest, err = manifest.Sign(m, key); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// server is a firmware server without a network: the board's HTTP transport. What it does wrong is set per field.
type server struct {
	mu       sync.Mutex
	version  []byte            // body of version; nil is 404
	static   []byte            // body of version.json; nil is 404
	files    map[string][]byte // by name
	requests []*http.Request
	forgets  bool // requests: in a long run they and what hangs on them would fill the memory

	ranges  bool                                              // answers Range
	etag    string                                            // what files are called; empty: by their digest, as our server does
	cut     int64                                             // the body of a file ends with an error after this many bytes; 0: never
	cuts    int                                               // how many bodies are cut; 0: all
	respond func(r *http.Request, body []byte) *http.Response // instead of all this, for files
	answer  func(r *http.Request) *http.Response              // before all this, for anything; nil from it: as usual
	down    bool
	downErr error // what a request fails with while down; nil: errLine
}

func serve(t testing.TB, f protocol.VersionFile, images ...[]byte) *server {
	t.Helper()
	body, err := f.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{version: body, files: map[string][]byte{}, ranges: true}
	for _, b := range images {
		s.files[sha(b)+".bin"] = b
		s.files["firmware.bin"] = b
	}
	return s
}

func (s *server) set(change func(*server)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

func (s *server) log(method string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.requests {
		if strings.Contains(r.URL.Path, method) {
			n++
		}
	}
	return n
}

var errLine = errors.New("connection reset")

func (s *server) RoundTrip(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.forgets {
		s.requests = append(s.requests, r)
	}
	if s.down && s.downErr != nil {
		return nil, s.downErr
	}
	if s.down {
		return nil, errLine
	}
	if s.answer != nil {
		if resp := s.answer(r); resp != nil {
			return resp, nil
		}
	}
	name := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	var body []byte
	switch name {
	case "version":
		body = s.version
	case "version.json":
		body = s.static
	default:
		body = s.files[name]
		if body != nil && s.respond != nil {
			return s.respond(r, body), nil
		}
		if body != nil {
			return s.file(r, body), nil
		}
	}
	if body == nil {
		return plain(r, http.StatusNotFound, []byte("not here")), nil
	}
	return plain(r, http.StatusOK, body), nil
}

func (s *server) file(r *http.Request, body []byte) *http.Response {
	tag := `"` + sha(body) + `"`
	if s.etag != "" {
		tag = s.etag
	}
	if !s.ranges {
		r = r.Clone(r.Context())
		r.Header.Del("Range")
	}
	resp := ranged(r, body, tag)
	if s.cut > 0 && s.cut < resp.ContentLength {
		resp.Body = io.NopCloser(io.MultiReader(io.LimitReader(resp.Body, s.cut), errReader{}))
		if s.cuts--; s.cuts == 0 {
			s.cut = 0
		}
	}
	return resp
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errLine }

// hub is a broker without a network: retained commands, and every status in order.
type hub struct {
	mu       sync.Mutex
	retained map[string][]byte // by topic
	live     map[string]agent.LinkEvents
	refuse   bool
	statuses []protocol.Status
	acks     bool
	eager    bool // what is retained is quicker than the news that the subscription stands
}

func newHub() *hub {
	return &hub{retained: map[string][]byte{}, live: map[string]agent.LinkEvents{}, acks: true}
}

type hubLink struct {
	h   *hub
	cfg agent.LinkConfig
}

func (h *hub) link(cfg agent.LinkConfig) agent.Link { return &hubLink{h, cfg} }

func (l *hubLink) Run(ctx context.Context, on agent.LinkEvents) {
	l.h.mu.Lock()
	refuse := l.h.refuse
	l.h.mu.Unlock()
	on.Reached()
	if refuse {
		on.Down(errors.New("refused"))
		<-ctx.Done()
		return
	}
	l.h.mu.Lock()
	l.h.live[l.cfg.DeviceID] = on
	kept := [][]byte{l.h.retained[l.cfg.Topics.CommandAll()], l.h.retained[l.cfg.Topics.Command(l.cfg.DeviceID)]}
	eager := l.h.eager
	l.h.mu.Unlock()
	if !eager {
		on.Up()
	}
	for _, payload := range kept {
		if payload != nil {
			on.Command(payload, true)
		}
	}
	if eager {
		on.Up()
	}
	<-ctx.Done()
	l.h.mu.Lock()
	delete(l.h.live, l.cfg.DeviceID)
	l.h.mu.Unlock()
}

func (l *hubLink) Publish(_ context.Context, payload []byte, _ byte) error {
	s, err := protocol.ParseStatus(payload)
	if err != nil {
		panic(err)
	}
	l.h.mu.Lock()
	defer l.h.mu.Unlock()
	if !l.h.acks {
		return errors.New("no PUBACK")
	}
	l.h.statuses = append(l.h.statuses, s)
	return nil
}

// drop ends every session, and up brings them back with what is retained.
func (h *hub) drop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.acks = false
	for _, e := range h.live {
		e.Down(errors.New("broker gone"))
	}
}

func (h *hub) up() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.acks = true
	for _, e := range h.live {
		if !h.eager {
			e.Up()
		}
		if kept := h.retained[protocol.Topics{}.CommandAll()]; kept != nil {
			e.Command(kept, true)
		}
		if h.eager {
			e.Up()
		}
	}
}

// order publishes a command to every board, live.
func (h *hub) order(payload string) {
	h.mu.Lock()
	var on []agent.LinkEvents
	for _, e := range h.live {
		on = append(on, e)
	}
	h.mu.Unlock()
	for _, e := range on {
		e.Command([]byte(payload), false)
	}
}

func (h *hub) retain(payload string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.retained[protocol.Topics{}.CommandAll()] = []byte(payload)
}

func (h *hub) all() []protocol.Status {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]protocol.Status(nil), h.statuses...)
}

// phases are the phases that were said, repetitions left out.
func (h *hub) phases() string {
	var words []string
	for _, s := range h.all() {
		word := string(s.Phase)
		if s.Reason != "" {
			word += ":" + string(s.Reason)
		}
		if len(words) == 0 || words[len(words)-1] != word {
			words = append(words, word)
		}
	}
	return strings.Join(words, " ")
}

func (h *hub) last() protocol.Status {
	all := h.all()
	if len(all) == 0 {
		return protocol.Status{}
	}
	return all[len(all)-1]
}

const update = `{"action":"update"}`

// bench is a board on a test bench.
type bench struct {
	t      testing.TB
	hub    *hub
	server *server
	board  *Board
	layout Layout
	boots  []string
	runErr error
	cancel context.CancelFunc
	done   chan struct{}
}

const otaConfig = `{"server_url":"https://fw.example/firmware/firmware.bin","auto_rollback_enabled":true%s}`
const mqttConfig = `{"broker_host":"broker.example","broker_port":8883,"tls":true,"qos":1}`

func layout(running []byte, extra string) Layout {
	return Layout{Image: running, OTAConfig: fmt.Appendf(nil, otaConfig, extra), MQTTConfig: []byte(mqttConfig), MAC: [6]byte{2, 0, 0, 0xab, 0xcd, 0xef}}
}

func trusting(t testing.TB, key *ecdsa.PrivateKey) string {
	t.Helper()
	pem, err := manifest.EncodePublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf(`,"trusted_key_pem":%q`, pem)
}

func newBench(t testing.TB, l Layout, s *server, change ...func(*Config)) *bench {
	t.Helper()
	flash, err := Build(l)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, hub: newHub(), server: s, layout: l}
	cfg := Config{Flash: flash, Seed: 1, Transport: s, newLink: b.hub.link, strict: true,
		OnBoot: func(p string, why ResetReason) { b.boots = append(b.boots, p+":"+string(why)) }}
	for _, c := range change {
		c(&cfg)
	}
	if b.board, err = Open(cfg); err != nil {
		t.Fatal(err)
	}
	return b
}

// on switches the board on.
func (b *bench) on() {
	ctx, cancel := context.WithCancel(context.Background())
	b.cancel, b.done = cancel, make(chan struct{})
	go func() {
		defer close(b.done)
		b.runErr = b.board.Run(ctx)
	}()
}

// off switches it off.
func (b *bench) off() error {
	b.cancel()
	<-b.done
	return b.runErr
}

// settle lets virtual time pass.
func (b *bench) settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (b *bench) flash() *norflash.Flash { return b.board.flash }

// running is the digest that the board says it runs.
func (b *bench) wantRunning(img []byte) {
	b.t.Helper()
	if got := b.hub.last(); got.ImageSHA256 != sha(img) || got.Phase != protocol.PhaseIdle {
		b.t.Errorf("board is %s and runs %.12s (%s), want idle and %.12s\nsaid: %s\nboots: %v", got.Phase, got.ImageSHA256, got.CurrentVersion, sha(img), b.hub.phases(), b.boots)
	}
}

func (b *bench) wantPhases(want string) {
	b.t.Helper()
	if got := b.hub.phases(); got != want {
		b.t.Errorf("the board said\n  %s\nwant\n  %s", got, want)
	}
}
