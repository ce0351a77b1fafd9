// Package web speaks HTTPS: firmware bytes and version.json to devices, the operator API to tools, and two words to
// whoever watches the process (/healthz, /readyz).
//
// It promises that an answer with firmware is one release from its first byte to its last, whatever is published or
// switched meanwhile: a request opens the bytes once and never looks again. It promises headers that fit the 512-byte
// buffers of ESP32 clients, no redirects below /firmware/, and that a slow download ends while a stalled one is cut.
//
// It refuses more than one range per request (net/http answers thousands, 36 times the file in one measured case), any
// path that is not exactly one it serves, bodies and headers above their limits, JSON with keys it does not know, and
// API calls without an operator's token. No file name comes from a request: paths hold digests and fixed names only.
//
// What is decided is decided by package fleet; errors become statuses in one table (problem.go). Ranges and conditional
// requests are those of RFC 9110, errors RFC 9457 documents, the JSON types those of package api.
package web

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"html/template"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"path"
	"strings"
	"sync/atomic"
	"time"

	"bmsota/api"
	"bmsota/server/internal/fleet"
)

// Fleet is what web needs of a *fleet.Fleet.
type Fleet interface {
	Upload(ctx context.Context, by fleet.Identity, sha256 string, size int64, r io.Reader) error
	Publish(ctx context.Context, by fleet.Identity, req fleet.PublishRequest) (fleet.Release, []string, error)
	Withdraw(ctx context.Context, by fleet.Identity, sha256 string) error
	SetChannel(ctx context.Context, by fleet.Identity, project, chip, channel, version string) (fleet.Channel, error)
	Releases(ctx context.Context) ([]fleet.Release, error)
	Release(ctx context.Context, sha256 string) (fleet.Release, error)
	Channels(ctx context.Context) ([]fleet.Channel, error)

	Offer(ctx context.Context, q fleet.Query) (fleet.Offer, error)
	Firmware(ctx context.Context, sha256 string) (fleet.Blob, error)

	Enroll(ctx context.Context, by fleet.Identity, id string) (token string, err error)
	EnrollCertificate(ctx context.Context, by fleet.Identity, id, request string) (fleet.Certificate, error)
	AuthenticateCertificate(ctx context.Context, name, sha256 string) (fleet.Identity, error)
	Revoke(ctx context.Context, by fleet.Identity, id string) error
	Clear(ctx context.Context, by fleet.Identity, device string) (fleet.Device, error)
	DevicesAfter(ctx context.Context, id string, limit int) ([]fleet.Device, error)
	Device(ctx context.Context, id string) (fleet.Device, error)
	Attempts(ctx context.Context, device string, limit int) ([]fleet.Attempt, error)
	AttemptsAfter(ctx context.Context, device, after string, limit int) ([]fleet.Attempt, error)

	Quarantines(ctx context.Context) ([]fleet.Quarantine, error)
	RolloutFleet

	OperatorByToken(ctx context.Context, token string) (fleet.Identity, error)

	AccountKeeper
	WebhookKeeper
	KeyKeeper
	Dashboard
	Auditor
}

var _ Fleet = (*fleet.Fleet)(nil)

// Config is what a handler needs. Fleet and Log must be given.
type Config struct {
	Fleet Fleet
	Log   *slog.Logger
	// Version is bmsota's own, for the landing page.
	Version string
	// Info answers GET /api/v1/server; nil answers with Version alone.
	Info func(ctx context.Context) (api.ServerInfo, error)
	// Ready answers /readyz: nil when the store can be written and the broker is up. nil = always ready. It is called
	// for every request, by anyone, so it must be cheap.
	Ready func(ctx context.Context) error
	// Observe is told of every answer; nil = nobody.
	Observe func(Served)
	// Metrics answers /metrics to whoever has a token that may view; nil = no such path.
	Metrics http.Handler
	// Messenger carries the commands of the dashboard; nil = no dashboard.
	Messenger fleet.Messenger
	// PublicURL is the address that browsers use where it is not the one they ask; empty = it is.
	PublicURL string
	// TrustedProxies are peers whose X-Forwarded-For is believed.
	TrustedProxies []netip.Prefix
	// SSO is a way to sign in beside passwords; nil = there is none.
	SSO SSO
	// HTTPSOnly has browsers come by HTTPS alone (HSTS). It is for a host name that is this server's own: what a browser
	// remembers holds for every port of the name.
	HTTPSOnly bool
	// ImageURL is where devices get the bytes of an image, in place of here; nil = here.
	ImageURL func(ctx context.Context, sha256 string) (string, error)
	// Closing, when it is closed, ends what would last for ever: streams of events.
	Closing <-chan struct{}
	// CacheBytes bounds the memory for images that were served lately; 0 means 64 MiB, below 0 none.
	CacheBytes int64
}

// The limits of a connection. They are constants because a wrong value strands devices: a monitor on a bad link
// fetches at 5 KB/s and must not be cut, a client that reads nothing must be.
const (
	headerTimeout = 5 * time.Second  // from the first byte of a request to the end of its header; also the TLS handshake
	maxHeader     = 16 << 10         // bytes
	idleTimeout   = 30 * time.Second // between two requests
	stallTimeout  = 60 * time.Second // without progress of pacedChunk bytes, in either direction
	bodyTimeout   = 30 * time.Second // for a JSON body
	maxJSON       = 128 << 10        // bytes; a publish request with the largest manifest is half of it
)

//go:embed templates/*.html
var templateFiles embed.FS

var pages = template.Must(template.ParseFS(templateFiles, "templates/*.html"))

type handler struct {
	cfg      Config
	mux      *http.ServeMux
	images   *imageCache
	leads    atomic.Int32 // peers that have one (download.go)
	versions versionCache
	// lost answers where nothing is: with a problem, and where there is a dashboard with a page for those who read pages.
	lost func(w http.ResponseWriter, r *http.Request)
	// described is the OpenAPI document, made when it is first asked for.
	described func() (json.RawMessage, error)
}

// New makes the handler. It starts nothing and is safe for concurrent use. Serve it with a Server, which holds the
// limits of connections.
func New(cfg Config) http.Handler {
	if cfg.CacheBytes == 0 {
		cfg.CacheBytes = 64 << 20
	}
	h := &handler{cfg: cfg, mux: http.NewServeMux(), images: newImageCache(cfg.CacheBytes)}
	h.described = h.describe()
	h.lost = func(w http.ResponseWriter, r *http.Request) { h.fail(w, r, errNoPath) }
	h.mux.HandleFunc("/{$}", h.landing)
	h.mux.HandleFunc("/healthz", h.healthz)
	h.mux.HandleFunc("/readyz", h.readyz)
	h.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { h.lost(w, r) })
	h.routeAPI()
	if cfg.Metrics != nil {
		h.mux.HandleFunc("/metrics", h.metrics)
	}
	if cfg.Messenger != nil {
		h.routeDashboard()
	}
	return behind(cfg.TrustedProxies, h)
}

// ServeHTTP refuses odd paths before anything is matched: ServeMux would answer them with a redirect, which ESP32
// clients follow into errors.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h.cfg.Observe == nil {
		h.serve(w, r)
		return
	}
	c := &counted{ResponseWriter: w, began: time.Now()}
	h.serve(c, r)
	c.observe(r, h.cfg.Observe)
}

func (h *handler) serve(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header["X-Content-Type-Options"], header["Content-Security-Policy"] = noSniffing, noSources
	if !plainPath(r) {
		h.fail(w, r, errNoPath)
		return
	}
	if r.Body != nil && r.Body != http.NoBody {
		// Only for requests that bring a body: without one net/http reads in the background to notice a client that
		// goes away, and a deadline there would cancel the request in the middle of a long download.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout))
	}
	if r.URL.Path == "/firmware" || strings.HasPrefix(r.URL.Path, "/firmware/") {
		h.firmware(w, r)
		return
	}
	h.mux.ServeHTTP(w, r)
}

// What every answer says, under names as net/http spells them and in lists that are made once. Each has room for no more.
var (
	noSniffing = []string{"nosniff"}
	noSources  = []string{"default-src 'none'"}
)

// plainPath says whether the path is spelled the one way this server spells it: absolute, clean, with no escape that
// hides a slash or a dot.
func plainPath(r *http.Request) bool {
	p := r.URL.Path
	if p == "" || p[0] != '/' || r.URL.RawPath != "" {
		return false
	}
	for _, c := range []byte(p) {
		if c < ' ' || c > '~' || c == '\\' {
			return false
		}
	}
	clean := path.Clean(p)
	return p == clean || p == clean+"/" && clean != "/"
}

// allow answers any method but GET and HEAD with 405 and says whether the request may go on.
func (h *handler) allow(w http.ResponseWriter, r *http.Request) bool {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return true
	}
	w.Header().Set("Allow", "GET, HEAD")
	h.fail(w, r, errMethod)
	return false
}

func (h *handler) landing(w http.ResponseWriter, r *http.Request) {
	if h.allow(w, r) {
		h.page(w, r, "landing.html", struct{ Version string }{h.cfg.Version})
	}
}

// page renders before it writes, so that a template that fails is an error and not half a page.
func (h *handler) page(w http.ResponseWriter, r *http.Request, name string, data any) {
	var b strings.Builder
	if err := pages.ExecuteTemplate(&b, name, data); err != nil {
		h.fail(w, r, err)
		return
	}
	h.httpsOnly(w)
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-cache")
	_, _ = io.WriteString(paced(w), b.String())
}

// httpsOnly says HSTS (RFC 6797) where it is wanted, on pages only: a device does not read it, and its buffers are small.
func (h *handler) httpsOnly(w http.ResponseWriter) {
	if h.cfg.HTTPSOnly {
		w.Header().Set("Strict-Transport-Security", "max-age=31536000")
	}
}

func (h *handler) healthz(w http.ResponseWriter, r *http.Request) {
	if h.allow(w, r) {
		plain(w, http.StatusOK, "ok")
	}
}

func (h *handler) readyz(w http.ResponseWriter, r *http.Request) {
	if !h.allow(w, r) {
		return
	}
	if h.cfg.Ready != nil {
		if err := h.cfg.Ready(r.Context()); err != nil {
			plain(w, http.StatusServiceUnavailable, err.Error())
			return
		}
	}
	plain(w, http.StatusOK, "ready")
}

func plain(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text+"\n")
}

// Errors of this package that no caller sees but as a status.
var (
	errNoPath = errors.New("no such path")
	errMethod = errors.New("method is not allowed here")
	errLength = errors.New("an upload must say its length")
	errMedia  = errors.New("a body must be JSON and say so: Content-Type: application/json")
	errToken  = errors.New("an operator's token is needed: Authorization: Bearer <token>")
)
