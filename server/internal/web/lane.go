package web

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"sync"
	"time"
)

// lane serves one connection while devices' requests come on it: version.json and images. A kept-alive version.json costs a third less
// than by net/http, which starts a goroutine for each request to notice a client that goes away, and has it taken back by a deadline
// that has passed: two changes of goroutine and a system call. And one goroutine holds a download that stalls, not two.
//
// A lane interprets nothing. It answers the requests that simple describes, which leave nothing to interpret, and their bytes are read by
// http.ReadRequest as net/http reads them. All others are net/http's, and so is whatever comes after them on their connection.
type lane struct {
	*link
	server *Server
	secure *tls.Config // nil = plain
	rest   *handedOn
	conn   net.Conn // the wire, or TLS above it
	peer   string
	waits  bool // for a request, or for the rest of its header; guarded by server.mu

	in  *heard
	out answer
}

// fewest is how many bytes net/http awaits after an answer before it takes them for a request.
const fewest = 4

// maxSimple is how many bytes the header of a request has that a lane answers.
const maxSimple = 4 << 10

// heard is what has been read of a connection and not been answered.
type heard struct {
	b      [maxSimple]byte
	n      int
	head   bytes.Reader // of b, for parser
	parser *bufio.Reader
}

var heards = sync.Pool{New: func() any { return &heard{parser: bufio.NewReaderSize(nil, 1<<10)} }}

// serve is the life of a lane.
func (c *lane) serve() {
	defer c.server.ended(c)
	defer func() {
		p := recover()
		_ = c.settle(true) // says no more than that it is over
		if p != nil {
			if p != http.ErrAbortHandler {
				c.server.log.Error("http connection panicked", "panic", p, "peer", c.peer, "stack", string(debug.Stack()))
			}
			_ = c.wire.Close()
		}
		c.forget()
	}()
	c.peer = c.wire.RemoteAddr().String()
	if !c.handshake() {
		_ = c.wire.Close()
		return
	}
	ctx := context.WithValue(c.server.ctx, linkKey{}, c.link)
	patience := headerTimeout
	for {
		n, err := c.header(patience)
		var r *http.Request
		switch {
		case err == nil:
			r = c.request(ctx, n)
		case errors.Is(err, os.ErrDeadlineExceeded) && c.lead != nil:
			if c.level() != nil {
				_ = c.wire.Close()
				return
			}
			c.server.state(c.link, http.StateIdle)
			patience = idleTimeout
			continue
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, http.ErrServerClosed):
			_ = c.conn.Close()
			return
		case !errors.Is(err, errNotSimple):
			// The peer has gone, or says no more and still reads. It is not sent the alert of TLS that says so, because nobody reads it,
			// and the kernel of a board would answer with a reset.
			_ = c.settle(!errors.Is(err, io.EOF)) // closed in any case
			_ = c.wire.Close()
			return
		}
		if r == nil {
			c.hand()
			return
		}
		if c.lead == nil {
			c.server.state(c.link, http.StateActive)
		}
		if !c.answer(r) {
			return
		}
		patience = settleAfter
		if c.lead == nil {
			c.server.state(c.link, http.StateIdle)
			patience = idleTimeout
		}
	}
}

// settleAfter is how long a peer may keep a lead without another request. A download appears to take up to that longer than it did.
const settleAfter = 250 * time.Millisecond

// hand has net/http go on with the connection.
func (c *lane) hand() {
	if c.level() != nil {
		_ = c.wire.Close()
		return
	}
	c.leads = false
	c.rest.take(&handed{c.conn, c.link, c.server.ctx, bytes.Clone(c.in.b[:c.in.n])})
}

// handshake is that of TLS, if it is spoken.
func (c *lane) handshake() bool {
	if c.secure == nil {
		return true
	}
	if !c.server.waits(c, true) {
		return false
	}
	defer c.server.waits(c, false)
	conn := tls.Server(c.wire, c.secure)
	if err := c.wire.SetDeadline(time.Now().Add(headerTimeout)); err != nil {
		return false
	}
	if err := conn.Handshake(); err != nil { // Close ends it by closing the wire; a context would cost a goroutine
		c.server.log.Debug("http: TLS handshake error", "peer", c.peer, "err", err)
		notTLS(err)
		return false
	}
	state := conn.ConnectionState()
	c.conn, c.tls = conn, &state
	return true
}

// header reads until there is a whole header, and returns its length with the empty line at its end. errNotSimple says that the request
// is net/http's. os.ErrDeadlineExceeded: the peer was silent for longer than patience, or headerTimeout within the header.
func (c *lane) header(patience time.Duration) (n int, err error) {
	if !c.server.waits(c, c.lead == nil) { // who has a lead has not all of its answer
		return 0, http.ErrServerClosed
	}
	defer c.server.waits(c, false)
	if c.in == nil {
		c.in = heards.Get().(*heard)
		c.in.n = 0
	}
	if err := c.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return 0, err
	}
	first := patience == headerTimeout
	late := first // its end has a deadline
	for {
		if first || c.in.n >= fewest {
			n, ok := simple(c.in.b[:c.in.n])
			switch {
			case !ok, n == 0 && c.in.n == len(c.in.b):
				return 0, errNotSimple
			case n > 0:
				return n, nil
			case !late:
				if err := c.conn.SetReadDeadline(time.Now().Add(headerTimeout)); err != nil {
					return 0, err
				}
				late = true
			}
		}
		more, err := c.conn.Read(c.in.b[c.in.n:])
		c.in.n += more
		if err != nil && more == 0 {
			return 0, err
		}
	}
}

var errNotSimple = errors.New("web: not a request that a lane answers")

// request takes a simple header of n bytes out of what was heard. It is nil, and nothing was taken, where http.ReadRequest does not agree.
func (c *lane) request(ctx context.Context, n int) *http.Request {
	c.in.head.Reset(c.in.b[:n])
	c.in.parser.Reset(&c.in.head)
	r, err := http.ReadRequest(c.in.parser)
	if err != nil || r.Body != http.NoBody {
		return nil
	}
	c.in.n = copy(c.in.b[:], c.in.b[n:c.in.n])
	if c.in.n == 0 {
		c.forget()
	}
	r = r.WithContext(ctx)
	r.RemoteAddr, r.TLS = c.peer, c.tls
	return r
}

// forget gives back the memory for what was heard.
func (c *lane) forget() {
	if c.in != nil {
		c.in.head.Reset(nil)
		heards.Put(c.in)
		c.in = nil
	}
}

// answer has the handler answer, and says whether there may be another request. Where there may not it has closed the connection.
func (c *lane) answer(r *http.Request) bool {
	switch {
	case c.lead == nil:
	case c.wire.queued() > SendBuffer: // it asks for more before it has what was answered
		if c.level() != nil {
			_ = c.wire.Close()
			return false
		}
	default:
		c.lead.tell(0)
		c.lead.used = false
	}
	if c.conn.SetWriteDeadline(time.Now().Add(stallTimeout)) != nil {
		_ = c.wire.Close()
		return false
	}
	c.out.begin(c.conn, r.Close, c.server.isClosing)
	c.server.handler.ServeHTTP(&c.out, r)
	err := c.out.end()
	if err != nil {
		c.server.log.LogAttrs(r.Context(), slog.LevelDebug, "http: answer was cut", slog.String("peer", c.peer), slog.Any("err", err))
	}
	switch {
	case err != nil:
		_ = c.settle(true)
	case c.out.last:
		err = c.settle(false)
	case c.lead != nil && !c.lead.used:
		err = c.level()
	}
	switch {
	case err != nil: // an alert would wait for a peer that has stalled
		_ = c.wire.Close()
	case c.out.last:
		_ = c.conn.Close()
	default:
		return true
	}
	return false
}

var (
	lineEnd = []byte("\r\n")
	get     = []byte("GET /firmware/")
	http11  = []byte(" HTTP/1.1")
)

// simple says whether b, as far as it goes, is the header of a request that leaves nothing to interpret: GET, by HTTP/1.1, of a path that
// devices ask for; one Host; header fields that are a token, a colon and printable ASCII; none that says that a body follows, or that
// something else is spoken from here on; and each line ended with CR and LF. n is its length when it is whole.
func simple(b []byte) (n int, ok bool) {
	if !bytes.HasPrefix(b, get[:min(len(b), len(get))]) {
		return 0, false
	}
	hosts := 0
	for first := true; ; first = false {
		end := bytes.IndexByte(b[n:], '\n')
		if end < 0 {
			return 0, true
		}
		line, ok := bytes.CutSuffix(b[n:n+end], []byte("\r"))
		n += end + 1
		switch {
		case !ok:
			return 0, false
		case first:
			if !simpleRequestLine(line) {
				return 0, false
			}
		case len(line) == 0:
			return n, hosts == 1
		default:
			host, ok := simpleField(line)
			if host {
				hosts++
			}
			if !ok {
				return 0, false
			}
		}
	}
}

func simpleRequestLine(line []byte) bool {
	target, ok := bytes.CutSuffix(bytes.TrimPrefix(line, []byte("GET ")), http11)
	if !ok || !isPrintable(target) || bytes.IndexByte(target, ' ') >= 0 {
		return false
	}
	path, _, _ := bytes.Cut(target, []byte("?"))
	return bytes.HasSuffix(path, []byte(".bin")) || bytes.HasSuffix(path, []byte("/version.json")) || bytes.HasSuffix(path, []byte("/version"))
}

func simpleField(line []byte) (host, ok bool) {
	name, value, ok := bytes.Cut(line, []byte(":"))
	if value = bytes.Trim(value, " "); !ok || len(name) == 0 || !isPrintable(value) {
		return false, false
	}
	for _, c := range name {
		if c != '-' && c != '_' && !isLetterOrDigit(c) {
			return false, false
		}
	}
	switch {
	case bytes.EqualFold(name, []byte("Host")):
		return true, isHost(value)
	case bytes.EqualFold(name, []byte("Connection")):
		return false, bytes.EqualFold(value, []byte("keep-alive")) || bytes.EqualFold(value, []byte("close"))
	}
	for _, odd := range notSimple {
		if bytes.EqualFold(name, odd) {
			return false, false
		}
	}
	return false, true
}

// notSimple are fields that say how to read what follows.
var notSimple = [][]byte{[]byte("Content-Length"), []byte("Transfer-Encoding"), []byte("Trailer"), []byte("Expect"), []byte("Upgrade"), []byte("TE")}

func isPrintable(b []byte) bool {
	for _, c := range b {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}

func isLetterOrDigit(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
}

// isHost says whether b is a host name or an address, with or without a port.
func isHost(b []byte) bool {
	for _, c := range b {
		if bytes.IndexByte([]byte(".-:[]"), c) < 0 && !isLetterOrDigit(c) {
			return false
		}
	}
	return len(b) > 0
}
