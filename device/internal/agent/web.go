package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"bmsota/protocol"
)

const (
	overallDeadline = 30 * time.Minute
	defaultTimeout  = 60 * time.Second
	minRateWindow   = 30 * time.Second
	minRateBytes    = 30 << 10 // 1 KiB/s over the window
	maxRetryAfter   = 5 * time.Minute
	maxHeaderBytes  = 8 << 10
)

var (
	errStalled  = errors.New("the server sent nothing or next to nothing for too long")
	errDeadline = errors.New("the update took longer than it may")
	errTooLong  = errors.New("answer is too long")
)

// fault is how a step of an update ended when it did not end well.
type fault struct {
	phase  protocol.Phase // refused or failed; idle where nothing is wrong and nothing is to do
	reason protocol.Reason
	err    error
	retry  bool          // another try may go better
	after  time.Duration // the server asked for this pause
}

func failed(reason protocol.Reason, format string, args ...any) *fault {
	return &fault{phase: protocol.PhaseFailed, reason: reason, err: fmt.Errorf(format, args...)}
}

func again(reason protocol.Reason, format string, args ...any) *fault {
	f := failed(reason, format, args...)
	f.retry = true
	return f
}

// transient judges an error of the network, which may pass.
func transient(ctx context.Context, doing string, err error) *fault {
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return again(networkReason(err), "%s: %w", doing, err)
}

func networkReason(err error) protocol.Reason {
	if errors.Is(err, errDeadline) {
		return protocol.ReasonDeadline
	}
	if errors.Is(err, errStalled) {
		return protocol.ReasonStalled
	}
	if isTLS(err) {
		return protocol.ReasonTLS
	}
	return protocol.ReasonUnreachable
}

// web is the board's way to its server.
type web struct {
	client *http.Client
	stall  time.Duration
	least  int64 // bytes that have to come within minRateWindow
	heap   *heap
}

// newWeb trusts what the configuration says: the given certificate, else the bundle, else, only when the
// configuration asks for it in so many words, anybody.
func newWeb(s settings, env *Config, h *heap) (*web, error) {
	cfg := s.ota
	w := &web{stall: time.Duration(cfg.TimeoutMS) * time.Millisecond, least: minRateBytes, heap: h}
	if w.stall == 0 {
		w.stall = defaultTimeout
	}
	transport := env.Transport
	if transport == nil {
		tc := &tls.Config{RootCAs: env.Roots, MinVersion: tls.VersionTLS12, InsecureSkipVerify: cfg.SkipCertVerification}
		tc.VerifyConnection = strong
		if cfg.CertPEM != "" {
			p, err := env.Trust.pool(cfg.CertPEM)
			if err != nil {
				return nil, fmt.Errorf("cert_pem: %w", err)
			}
			tc.RootCAs = p
		}
		plain := &http.Transport{
			DialContext:            env.Dial,
			TLSClientConfig:        tc,
			TLSHandshakeTimeout:    20 * time.Second,
			ResponseHeaderTimeout:  w.stall,
			MaxResponseHeaderBytes: maxHeaderBytes,
			MaxConnsPerHost:        1,
			IdleConnTimeout:        5 * time.Second,
			DisableCompression:     true, // what is hashed is what was sent
			ReadBufferSize:         4 << 10,
			WriteBufferSize:        1 << 10,
		}
		transport = plain
		if s.identity != nil {
			own := plain.Clone()
			own.TLSClientConfig.Certificates = []tls.Certificate{*s.identity}
			transport = &named{server: cfg.ServerURL, own: own, others: plain}
		}
	}
	w.client = &http.Client{
		Transport: transport,
		// A redirect could lead away from the server that was configured, and the chip's buffers have no room for one.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return w, nil
}

// named shows the board's certificate to its own server, where that asks for it, and to nobody else: a mirror is not told who
// asks.
type named struct {
	server      string // its URL
	own, others *http.Transport
}

func (n *named) RoundTrip(r *http.Request) (*http.Response, error) {
	if u, err := url.Parse(n.server); err == nil && u.Host == r.URL.Host {
		return n.own.RoundTrip(r)
	}
	return n.others.RoundTrip(r)
}

func (n *named) CloseIdleConnections() {
	n.own.CloseIdleConnections()
	n.others.CloseIdleConnections()
}

func (w *web) close() { w.client.CloseIdleConnections() }

// response is an answer whose body can neither stall nor trickle.
type response struct {
	*http.Response
	body io.Reader
	ctx  context.Context // of the request; its cause says why a read failed
	stop func()
}

// get makes one request. The caller calls stop. Status codes are the caller's matter.
func (w *web) get(ctx context.Context, method, url string, header http.Header) (*response, *fault) {
	release := w.heap.use(heapTLS)
	ctx, cancel := context.WithCancelCause(ctx)
	stalled := time.AfterFunc(w.stall, func() { cancel(errStalled) })
	stop := func() {
		stalled.Stop()
		cancel(nil)
		release()
	}
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		stop()
		return nil, failed(protocol.ReasonUnreachable, "%w", err)
	}
	if header != nil {
		req.Header = header
	}
	req.Header.Set("User-Agent", "bmsota-device/"+strconv.Itoa(protocol.Version))
	var shaken handshake
	resp, err := w.client.Do(req.WithContext(shaken.watch(ctx)))
	if err != nil {
		f := transient(ctx, "reach server", err)
		if f.reason == protocol.ReasonUnreachable && shaken.refused() {
			f.reason = protocol.ReasonTLS
		}
		stop()
		return nil, f
	}
	stalled.Stop()
	body := &pacedBody{r: resp.Body, web: w, stalled: stalled, giveUp: func() { cancel(errStalled) }}
	return &response{Response: resp, body: body, ctx: ctx, stop: func() {
		stop()
		resp.Body.Close()
	}}, nil
}

// pacedBody gives a server up that sends nothing for the stall time, or next to nothing within minRateWindow. Only the time
// counts in which the board waits for it: while it erases and writes, the server has no say in how long that takes.
type pacedBody struct {
	r       io.Reader
	web     *web
	stalled *time.Timer // runs within Read
	giveUp  func()

	waited time.Duration // in the present window
	bytes  int64         // that came in it
}

func (b *pacedBody) Read(p []byte) (int, error) {
	began := time.Now()
	b.stalled.Reset(b.web.stall)
	n, err := b.r.Read(p)
	b.stalled.Stop()
	b.waited += time.Since(began)
	b.bytes += int64(n)
	if b.waited >= minRateWindow {
		if b.bytes < b.web.least && err == nil {
			b.giveUp()
			return n, errStalled
		}
		b.waited, b.bytes = 0, 0
	}
	return n, err
}

// statusFault judges an answer that is not the one wanted.
func statusFault(resp *http.Response) *fault {
	f := failed(protocol.ReasonHTTPStatus, "server answered %d", resp.StatusCode)
	switch {
	case resp.StatusCode >= 300 && resp.StatusCode < 400:
		f.err = fmt.Errorf("server answered %d: redirects are not followed", resp.StatusCode)
	case resp.StatusCode >= 500, resp.StatusCode == http.StatusTooManyRequests, resp.StatusCode == http.StatusRequestTimeout:
		f.retry = true
		if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
			f.after = min(time.Duration(s)*time.Second, maxRetryAfter)
		}
	}
	return f
}

// readCapped reads a small answer; one byte more than limit is an error.
func readCapped(r io.Reader, limit int) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if err != nil {
		return nil, err
	}
	if len(b) > limit {
		return nil, fmt.Errorf("%w: more than %d bytes", errTooLong, limit)
	}
	return b, nil
}

// dialer is how a board reaches the network when nothing else is given.
func dialer() func(context.Context, string, string) (net.Conn, error) {
	d := &net.Dialer{Timeout: 20 * time.Second, KeepAlive: 30 * time.Second}
	return d.DialContext
}
