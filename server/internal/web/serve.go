package web

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"bmsota/server/internal/workers"
)

// Server serves a handler that New made, with the limits of this package, by HTTP/1.1 only. Every client of this server (esp_http_client,
// the bmsota tool, curl) speaks HTTP/1.1, and without HTTP/2 there are no streams to reset, no header frames to flood
// and no flow control to hold buffers open with. Errors of single connections go to the log at debug level: anyone can
// cause them.
//
// What devices ask is answered by lanes (lane.go), one for each connection. At the first request that is anything else a
// lane hands its connection to net/http, for good. Its methods are safe for concurrent use.
type Server struct {
	// ConnState is told when a connection that Serve has accepted has sent the header of a request (http.StateActive), and when it
	// has been answered (http.StateIdle). It is set before Serve.
	ConnState func(net.Conn, http.ConnState)

	handler http.Handler
	http    *http.Server // serves what was handed on
	log     *slog.Logger
	ctx     context.Context // of requests; ends with Close
	end     context.CancelFunc
	workers workers.Pool[*lane]

	mu      sync.Mutex
	closing bool               // guarded by mu
	open    []net.Listener     // guarded by mu
	lanes   map[*lane]struct{} // guarded by mu
	left    chan struct{}      // closed when the last lane has ended and closing is set; guarded by mu
}

// NewServer is a Server for h.
func NewServer(h http.Handler, log *slog.Logger) *Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	s := &Server{handler: h, log: log, lanes: make(map[*lane]struct{}), left: make(chan struct{})}
	s.workers.Turn = (*lane).serve
	s.ctx, s.end = context.WithCancel(context.Background())
	s.http = &http.Server{
		Handler:           linked{h},
		Protocols:         protocols,
		ConnContext:       withLink,
		ConnState:         func(conn net.Conn, state http.ConnState) { s.state(conn.(*handed).link, state) },
		ReadHeaderTimeout: headerTimeout,
		WriteTimeout:      stallTimeout, // moved on by every chunk that is written (paced.go)
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	return s
}

// Serve accepts connections from l until the server is closed, which is http.ErrServerClosed, or l fails. A nil secure is plain HTTP.
func (s *Server) Serve(l net.Listener, secure *tls.Config) error {
	rest, err := s.accept(l, secure)
	if err != nil {
		return err
	}
	err = s.http.Serve(rest)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return http.ErrServerClosed
	}
	return err
}

// accept begins lanes on what l accepts. It returns the listener of those that are handed on, which fails as l does and closes it.
func (s *Server) accept(l net.Listener, secure *tls.Config) (*handedOn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return nil, http.ErrServerClosed
	}
	s.open = append(s.open, l)
	rest := &handedOn{Listener: l, conns: make(chan net.Conn), ended: make(chan struct{}), shut: make(chan struct{})}
	go func() {
		rest.err = s.acceptAll(l, secure, rest)
		close(rest.ended)
	}()
	go s.rest(rest.ended)
	return rest, nil
}

// rest has workers end that have nothing to do, until ended.
func (s *Server) rest(ended <-chan struct{}) {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.workers.Rest()
		case <-ended:
			return
		}
	}
}

func (s *Server) acceptAll(l net.Listener, secure *tls.Config, rest *handedOn) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		s.begin(conn, secure, rest)
	}
}

// begin starts the lane of a connection.
func (s *Server) begin(conn net.Conn, secure *tls.Config, rest *handedOn) {
	c := &lane{link: &link{wire: newWire(conn, secure != nil), leads: true}, server: s, secure: secure, rest: rest}
	c.conn = c.wire
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		_ = conn.Close()
		return
	}
	s.lanes[c] = struct{}{}
	s.workers.Give(c)
}

// waits notes whether a lane waits for a request, and says whether it may go on.
func (s *Server) waits(c *lane, waits bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.waits = waits
	return !s.closing || !waits
}

func (s *Server) isClosing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

// ended forgets a lane.
func (s *Server) ended(c *lane) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.lanes, c)
	s.tellLeft()
}

// tellLeft closes left when there is nothing more to wait for; mu is held.
func (s *Server) tellLeft() {
	if !s.closing || len(s.lanes) > 0 {
		return
	}
	select {
	case <-s.left:
	default:
		close(s.left)
	}
}

// stop lets nothing begin any more, and closes the lanes that wait for a request; all of them when all is set.
func (s *Server) stop(all bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closing = true
	s.workers.End()
	for _, l := range s.open {
		_ = l.Close()
	}
	for c := range s.lanes {
		if all || c.waits {
			_ = c.wire.Close()
		}
	}
	s.tellLeft()
}

// Shutdown accepts nothing more, closes the connections that wait for a request, and waits until the others have had their answer,
// or until ctx ends, which is its error.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop(false)
	s.http.SetKeepAlivesEnabled(false) // each answer is the last from here on, on connections that were handed on as well
	select {
	case <-s.left:
	case <-ctx.Done():
		return ctx.Err()
	}
	return s.http.Shutdown(ctx)
}

// Close closes every connection and waits for nobody.
func (s *Server) Close() error {
	s.end()
	s.stop(true)
	return s.http.Close()
}

func (s *Server) state(l *link, state http.ConnState) {
	if s.ConnState != nil {
		s.ConnState(l.wire.Conn, state)
	}
}

// link is what a request's connection is made of.
type link struct {
	wire *wire
	tls  *tls.ConnectionState // nil where TLS is not spoken

	// Of the goroutine that answers:
	leads bool  // whether it looks after a lead, as a lane does
	lead  *lead // nil = there is none
}

type linkKey struct{}

// linkOf is nil where a request has no connection of a Server.
func linkOf(r *http.Request) *link {
	l, _ := r.Context().Value(linkKey{}).(*link)
	return l
}

// withLink is for http.Server.ConnContext.
func withLink(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, linkKey{}, conn.(*handed).link)
}

// linked gives requests the state of TLS, which net/http finds where it is given a *tls.Conn only.
type linked struct{ http.Handler }

func (h linked) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if l := linkOf(r); l != nil {
		r.TLS = l.tls
	}
	h.Handler.ServeHTTP(w, r)
}

// handed is a connection that net/http goes on with, from the first byte of a request that a lane did not answer.
type handed struct {
	net.Conn
	link *link
	ctx  context.Context // of the server
	head []byte          // was read already
}

// Close ends TLS by its alert, but not where the server is closed: the alert would wait 5 s for each peer that reads nothing.
func (c *handed) Close() error {
	if c.ctx.Err() != nil {
		return c.link.wire.Close()
	}
	return c.Conn.Close()
}

func (c *handed) Read(p []byte) (int, error) {
	if len(c.head) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.head)
	c.head = c.head[n:]
	return n, nil
}

// CloseWrite lets net/http say that it is done with a peer which is still sending.
func (c *handed) CloseWrite() error { return closeWrite(c.Conn) }

// handedOn is the listener of the connections that lanes of one listener hand on.
type handedOn struct {
	net.Listener
	conns chan net.Conn
	ended chan struct{} // closed when Listener accepts no more
	err   error         // what it said then
	shut  chan struct{} // closed by Close
	once  sync.Once
}

func (l *handedOn) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.ended:
		return nil, l.err
	case <-l.shut:
		return nil, net.ErrClosed
	}
}

func (l *handedOn) Close() error {
	l.once.Do(func() { close(l.shut) })
	return l.Listener.Close()
}

// take hands on conn, and closes it where nobody takes it any more.
func (l *handedOn) take(conn net.Conn) {
	select {
	case l.conns <- conn:
		return
	case <-l.ended:
	case <-l.shut:
	}
	_ = conn.Close()
}

// notTLS answers who speaks HTTP where HTTPS is spoken.
func notTLS(err error) {
	var header tls.RecordHeaderError
	if errors.As(err, &header) && header.Conn != nil && looksLikeHTTP(header.RecordHeader) {
		_, _ = fmt.Fprint(header.Conn, "HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\n\r\nThis port speaks HTTPS: write https:// in the address.\n")
	}
}

func looksLikeHTTP(b [5]byte) bool {
	switch string(b[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO":
		return true
	}
	return false
}
