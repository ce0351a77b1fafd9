//go:build unix

package e2e

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// hostile is a web server that serves a folder the way servers should not, over plain HTTP. version.json is served
// honestly unless the mode says otherwise: the device must get as far as the image.
type hostile struct {
	dir, mode string
	n         int64
	server    *http.Server
	done      chan struct{}

	mu    sync.Mutex
	lines []string
	sent  int64 // bytes of images
}

// The modes.
var modes = map[string]func(*hostile, http.ResponseWriter, *http.Request, []byte){
	"honest":   (*hostile).honest,   // as it should be, for stories in which something else is wrong
	"cut":      (*hostile).cut,      // dies after -n bytes of each image answer, ranges understood
	"norange":  (*hostile).noRange,  // 200 with everything, whatever was asked, and dies after -n bytes the first two times
	"badrange": (*hostile).badRange, // 206 from another place than asked for; dies after -n bytes the first time
	"liar":     (*hostile).liar,     // 206 whose bytes are another image's; dies after -n bytes the first time
	"captive":  (*hostile).captive,  // a login page for everything
	"portal":   (*hostile).captive,  // the same, but only for images
	"huge":     (*hostile).huge,     // a version file of a gigabyte, whose length is announced at every other request
	"drip":     (*hostile).drip,     // every image answer comes byte by byte
	"endless":  (*hostile).endless,  // bytes without end, and no length
	"short":    (*hostile).short,    // a length that is larger than the image, and then nothing
	"hotel":    (*hostile).honest,   // and once an image is fetched, a network's welcome page for everything else
	"errors":   (*hostile).errors,   // 503 with Retry-After three times, then what is asked for
}

// cmdHostile starts such a server: hostile [-n BYTES] NAME MODE PORT DIR
func cmdHostile(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg, "hostile")
	f := flag.NewFlagSet("hostile", flag.ContinueOnError)
	n := f.Int64("n", 70_000, "bytes after which it dies")
	ts.Check(f.Parse(args))
	if f.NArg() != 4 || modes[f.Arg(1)] == nil {
		ts.Fatalf("usage: hostile [-n BYTES] NAME MODE PORT DIR")
	}
	l, err := net.Listen("tcp", "127.0.0.1:"+f.Arg(2))
	ts.Check(err)
	h := &hostile{dir: ts.MkAbs(f.Arg(3)), mode: f.Arg(1), n: *n, done: make(chan struct{})}
	h.server = &http.Server{Handler: h, ReadHeaderTimeout: patience, ErrorLog: log.New(io.Discard, "", 0)}
	of(ts).hostile[f.Arg(0)] = h
	go func() {
		defer close(h.done)
		if err := h.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			h.say("serve: %v", err)
		}
	}()
}

func (h *hostile) close() {
	if err := h.server.Close(); err != nil {
		h.say("close: %v", err)
	}
	<-h.done
}

func (h *hostile) say(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lines = append(h.lines, fmt.Sprintf(format, args...))
}

func (h *hostile) story() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Join(h.lines, "\n") + fmt.Sprintf("\n%d bytes of images", h.sent)
}

// tries counts the requests for images so far.
func (h *hostile) tries() (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, line := range h.lines {
		if strings.Contains(line, ".bin ") {
			n++
		}
	}
	return n
}

// cmdServed holds what a hostile server gave away against a limit: served NAME tries MIN MAX, served NAME bytes MIN MAX
func cmdServed(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg, "served")
	if len(args) != 4 || of(ts).hostile[args[0]] == nil {
		ts.Fatalf("usage: served NAME tries|bytes MIN MAX")
	}
	h := of(ts).hostile[args[0]]
	low, err := strconv.ParseInt(args[2], 10, 64)
	ts.Check(err)
	high, err := strconv.ParseInt(args[3], 10, 64)
	ts.Check(err)
	h.mu.Lock()
	got := h.sent
	h.mu.Unlock()
	if args[1] == "tries" {
		got = int64(h.tries())
	}
	if got < low || got > high {
		ts.Fatalf("%s: %d %s, want %d to %d\n%s", args[0], got, args[1], low, high, h.story())
	}
}

func (h *hostile) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := filepath.Base(r.URL.Path)
	h.say("%s %s range %q if-range %q", r.Method, name+" ", r.Header.Get("Range"), r.Header.Get("If-Range"))
	switch h.mode {
	case "captive":
		h.captive(w, r, nil)
		return
	case "hotel":
		if h.tries() > 0 && !strings.HasSuffix(name, ".bin") {
			h.captive(w, r, nil)
			return
		}
	case "huge":
		h.huge(&counted{w, h}, r, nil)
		return
	}
	b, err := os.ReadFile(filepath.Join(h.dir, name))
	if err != nil {
		http.NotFound(w, r)
		return
	}
	if !strings.HasSuffix(name, ".bin") {
		http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(b))
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("ETag", `"`+strings.TrimSuffix(name, ".bin")+`"`)
	modes[h.mode](h, &counted{w, h}, r, b)
}

// counted counts the bytes of images.
type counted struct {
	http.ResponseWriter
	h *hostile
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.h.mu.Lock()
	c.h.sent += int64(n)
	c.h.mu.Unlock()
	return n, err
}

// die sends up to n bytes of b and then breaks the connection.
func (h *hostile) die(w http.ResponseWriter, b []byte, n int64) {
	if _, err := w.Write(b[:min(n, int64(len(b)))]); err != nil {
		return
	}
	if int64(len(b)) <= n {
		return
	}
	if f, ok := w.(*counted).ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
	panic(http.ErrAbortHandler)
}

// from is where the asked range starts, 0 without one.
func from(r *http.Request) int64 {
	text, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes=")
	if !ok {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSuffix(text, "-"), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func partial(w http.ResponseWriter, start int64, b []byte) {
	w.Header().Set("Content-Length", strconv.FormatInt(int64(len(b))-start, 10))
	if start > 0 {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, len(b)-1, len(b)))
		w.WriteHeader(http.StatusPartialContent)
	}
}

func (h *hostile) honest(w http.ResponseWriter, r *http.Request, b []byte) {
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}

func (h *hostile) cut(w http.ResponseWriter, r *http.Request, b []byte) {
	start := from(r)
	partial(w, start, b)
	h.die(w, b[start:], h.n)
}

func (h *hostile) noRange(w http.ResponseWriter, _ *http.Request, b []byte) {
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	n := h.n
	if h.tries() > 2 {
		n = int64(len(b))
	}
	h.die(w, b, n)
}

func (h *hostile) badRange(w http.ResponseWriter, r *http.Request, b []byte) {
	start := from(r)
	if start == 0 {
		w.Header().Set("Content-Length", strconv.Itoa(len(b)))
		n := h.n
		if h.tries() > 1 {
			n = int64(len(b))
		}
		h.die(w, b, n)
		return
	}
	// The answer claims another start than was asked for, and has the bytes of that one.
	partial(w, start-4096, b)
	h.die(w, b[start-4096:], int64(len(b)))
}

func (h *hostile) liar(w http.ResponseWriter, r *http.Request, b []byte) {
	start := from(r)
	partial(w, start, b)
	if start == 0 && h.tries() == 1 {
		h.die(w, b, h.n)
	}
	// A proxy that has two versions of a file in its cache: the right range of the wrong bytes.
	other := bytes.Clone(b[start:])
	for i := range other {
		other[i] ^= 0x55
	}
	if start == 0 {
		other = b
	}
	h.die(w, other, int64(len(b)))
}

func (h *hostile) captive(w http.ResponseWriter, _ *http.Request, _ []byte) {
	w.Header().Set("Content-Type", "text/html")
	fmt.Fprint(w, "<!DOCTYPE html><title>Welcome to our network</title><p>Please accept the terms to go on.")
}

func (h *hostile) huge(w http.ResponseWriter, r *http.Request, _ []byte) {
	const size = 1 << 30
	if filepath.Base(r.URL.Path) == "version" {
		w.Header().Set("Content-Length", strconv.Itoa(size))
	}
	blank := bytes.Repeat([]byte{' '}, 1<<20)
	for range size / len(blank) {
		if _, err := w.Write(blank); err != nil {
			return
		}
	}
}

// dripEvery is far below any rate that is of use, and far above any silence that is noticed.
const dripEvery = 5 * time.Millisecond

func (h *hostile) drip(w http.ResponseWriter, r *http.Request, b []byte) {
	start := from(r)
	partial(w, start, b)
	flush := http.NewResponseController(w.(*counted).ResponseWriter)
	for i := range b[start:] {
		if _, err := w.Write(b[start:][i : i+1]); err != nil || flush.Flush() != nil {
			return
		}
		time.Sleep(dripEvery)
	}
}

func (h *hostile) endless(w http.ResponseWriter, r *http.Request, b []byte) {
	w.WriteHeader(http.StatusOK) // without a length: chunked
	if _, err := w.Write(b); err != nil {
		return
	}
	rest := bytes.Repeat([]byte{0xA5}, 32<<10)
	for r.Context().Err() == nil {
		if _, err := w.Write(rest); err != nil {
			return
		}
	}
}

func (h *hostile) short(w http.ResponseWriter, _ *http.Request, b []byte) {
	w.Header().Set("Content-Length", strconv.Itoa(len(b)+4096))
	h.die(w, append(bytes.Clone(b), 0), int64(len(b)))
}

func (h *hostile) errors(w http.ResponseWriter, r *http.Request, b []byte) {
	if h.tries() <= 3 {
		w.Header().Set("Retry-After", "1")
		http.Error(w, "busy", http.StatusServiceUnavailable)
		return
	}
	start := from(r)
	partial(w, start, b)
	h.die(w, b[start:], int64(len(b)))
}
