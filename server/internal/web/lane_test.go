package web

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// onNetHTTP serves what a Server serves by net/http alone.
func onNetHTTP(s *Server) *http.Server {
	return &http.Server{Handler: s.handler, Protocols: s.http.Protocols, ReadHeaderTimeout: headerTimeout, WriteTimeout: stallTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHeader, ErrorLog: s.http.ErrorLog}
}

// answers is all that a server answers to bytes, and whether it closed the connection before it was told that there is no more.
type answers struct {
	all    []string
	closed bool
}

// tell sends bytes to what serve serves, in a bubble, and returns what is answered. Answers lose their Date.
func tell(t *testing.T, serve func(net.Listener) error, stop func() error, sent string) (got answers) {
	l := newPipeListener()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = serve(l) // ends with the listener
	}()
	client, server := net.Pipe()
	l.conns <- server
	go func() { _, _ = io.WriteString(client, sent) }() // a server that has heard enough reads no more
	in := bufio.NewReader(client)
	for {
		_ = client.SetReadDeadline(time.Now().Add(time.Second)) // virtual: everything that will be said has been
		resp, err := http.ReadResponse(in, &http.Request{Method: methodOf(sent)})
		if err != nil {
			got.closed = !errors.Is(err, context.DeadlineExceeded) && !isTimeout(err)
			break
		}
		body, err := io.ReadAll(resp.Body)
		resp.Header.Del("Date")
		var header strings.Builder
		_ = resp.Header.Write(&header)
		got.all = append(got.all, fmt.Sprintf("%s length %d close %t %v\n%s\n%s %v", resp.Status, resp.ContentLength, resp.Close, resp.TransferEncoding, header.String(), body, err))
	}
	client.Close()
	_ = l.Close()
	_ = stop()
	<-done
	return got
}

func isTimeout(err error) bool {
	var timeout interface{ Timeout() bool }
	return errors.As(err, &timeout) && timeout.Timeout()
}

// methodOf is the method of the last request, by which an answer without a body is read.
func methodOf(sent string) string {
	if strings.HasPrefix(sent, "HEAD") {
		return "HEAD"
	}
	return "GET"
}

// asked is what devices and others send. %s is the digest of an image.
var asked = []struct {
	text string
	lane bool // a lane answers the first of it
}{
	{"GET /firmware/version.json HTTP/1.1\r\nHost: x\r\n\r\n", true},
	{"GET /firmware/version?device=bms-1 HTTP/1.1\r\nHost: 192.168.1.7:8443\r\nUser-Agent: ESP32 HTTP Client/1.0\r\nAuthorization: Basic Ym1zLTE6eA==\r\n\r\n", true},
	{"GET /firmware/version.json?device=.. HTTP/1.1\r\nHost: x\r\n\r\n", true},
	{"GET /firmware/version.json?%%zz HTTP/1.1\r\nHost: x\r\n\r\n", true},
	{"GET /firmware/a/b/version.json HTTP/1.1\r\nhost: x\r\n\r\n", true},
	{"GET /firmware/../version.json HTTP/1.1\r\nHost: x\r\n\r\n", true},
	{"GET /firmware/%s.bin HTTP/1.1\r\nHost: [::1]:443\r\n\r\n", true},
	{"GET /firmware/%s.bin HTTP/1.1\r\nHost: x\r\nRange: bytes=100-\r\n\r\n", true},
	{"GET /firmware/%s.bin HTTP/1.1\r\nHost: x\r\nRange: bytes=100-200000\r\nConnection: close\r\n\r\n", true},
	{"GET /firmware/%s.bin HTTP/1.1\r\nHost: x\r\nRange: bytes=9999999-\r\n\r\n", true},
	{"GET /firmware/%s.bin HTTP/1.1\r\nHost: x\r\nRange: bytes=-0\r\n\r\n", true},
	{"GET /firmware/%s.bin HTTP/1.1\r\nHost: x\r\nRange: bytes=0-1,3-4\r\n\r\n", true},
	{"GET /firmware/%s.bin HTTP/1.1\r\nHost: x\r\nRange: nonsense\r\n\r\n", true},
	{"GET /firmware/%s.bin HTTP/1.1\r\nHost: x\r\nIf-None-Match: \"%[1]s\"\r\n\r\n", true},
	{"GET /firmware/%s.bin HTTP/1.1\r\nHost: x\r\nIf-Range: \"other\"\r\nRange: bytes=5-\r\n\r\n", true},
	{"GET /firmware/firmware.bin HTTP/1.1\r\nHost: x\r\nConnection: Keep-Alive\r\n\r\n", true},
	{"GET /firmware/nothing.bin HTTP/1.1\r\nHost: x\r\n\r\n", true},
	{"GET /firmware/version HTTP/1.1\r\nHost: x\r\n\r\nGET /firmware/version.json HTTP/1.1\r\nHost: x\r\n\r\nGET /firmware/ HTTP/1.1\r\nHost: x\r\n\r\nGET /firmware/version HTTP/1.1\r\nHost: x\r\n\r\n", true},
	{"GET /firmware/version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\nGET /firmware/version.json HTTP/1.1\r\nHost: x\r\n\r\n", true},
	{"GET /firmware/version HTTP/1.1\r\nHost: x\r\n\r\nPOST /api/v1/devices HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}GET /firmware/version HTTP/1.1\r\nHost: x\r\n\r\n", true},
	{"GET /firmware/version HTTP/1.1\r\nHost: x\r\nX-Long: " + strings.Repeat("a", maxSimple/2) + "\r\n\r\n", true},
	{"GET /firmware/version HTTP/1.1\r\nHost: x\r\nX-Twice: a\r\nX-Twice: b\r\nX-Empty:\r\n\r\n", true},
	{"GET /firmware/version HTTP/1.1\r\nHost: x\r\nX-Long: " + strings.Repeat("a", maxSimple) + "\r\n\r\n", false},
	{"GET /firmware/version HTTP/1.1\r\nHost: x\r\nX-Longer: " + strings.Repeat("a", 2*maxHeader) + "\r\n\r\n", false},
	{"GET /firmware/ HTTP/1.1\r\nHost: x\r\n\r\n", false},
	{"HEAD /firmware/version HTTP/1.1\r\nHost: x\r\n\r\n", false},
	{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", false},
	{"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /firmware/version HTTP/1.1\r\nHost: x\r\n\r\n", false},
	{"PUT /firmware/version HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", false},
	{"GET /firmware/version HTTP/1.0\r\n\r\n", false},
	{"GET /firmware/version HTTP/1.1\r\n\r\n", false},
	{"GET /firmware/version HTTP/1.1\r\nHost:\r\n\r\n", false},
	{"GET /firmware/version HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", false},
	{"GET /firmware/version HTTP/1.1\r\nHost: x y\r\n\r\n", false},
	{"GET /firmware/version HTTP/1.1\nHost: x\n\n", false},
	{"GET /firmware/version HTTP/1.1\r\nHost: x\r\nX-Split: a\r\n b\r\n\r\n", false},
	{"GET /firmware/version HTTP/1.1\r\nHost: x\r\nX-Bad : a\r\n\r\n", false},
	{"GET /firmware/version HTTP/1.1\r\nHost: x\r\nX-Return: a\rb\r\n\r\n", false},
	{"GET /firmware/version HTTP/1.1\r\nHost: x\r\nX-Feed: a\nX-Next: b\r\n\r\n", false},
	{"GET /firmware/version HTTP/1.1\r\nHost: x\r\nX-Nul: a\x00b\r\n\r\n", false},
	{"GET /firmware/version HTTP/1.1\r\nHost: x\r\nnothing\r\n\r\n", false},
	{"GET /firmware/version HTTP/1.1\r\nHost: x\r\n: nameless\r\n\r\n", false},
	{"GET /firmware/version HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", false},
	{"GET /firmware/version HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", false},
	{"GET /firmware/version HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /firmware/version HTTP/1.1\r\nHost: x\r\n\r\n", false},
	{"GET /firmware/version HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", false},
	{"GET /firmware/version HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\r\n", false},
	{"GET /firmware/version HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n", false},
	{"GET /firmware/version HTTP/1.1\r\nHost: x\r\nConnection: X-Secret, close\r\n\r\n", false},
	{"GET http://x/firmware/version HTTP/1.1\r\nHost: x\r\n\r\n", false},
	{"GET /firmware/%%2e%%2e/version HTTP/1.1\r\nHost: x\r\n\r\n", true},
	{"GET /firmware/%%zz/version HTTP/1.1\r\nHost: x\r\n\r\n", true}, // http.ReadRequest does not take it, so net/http answers after all
	{"GET /firmware/\x80/version HTTP/1.1\r\nHost: x\r\n\r\n", false},
	{"GET /firmware/version#a HTTP/1.1\r\nHost: x\r\n\r\n", false},
	{"GET /firmware/ver sion HTTP/1.1\r\nHost: x\r\n\r\n", false},
	{"GET /firmware/version  HTTP/1.1\r\nHost: x\r\n\r\n", false},
	{"GET\t/firmware/version HTTP/1.1\r\nHost: x\r\n\r\n", false},
	{"get /firmware/version HTTP/1.1\r\nHost: x\r\n\r\n", false},
	{"\r\n\r\nGET /firmware/version HTTP/1.1\r\nHost: x\r\n\r\n", false},
	{"nonsense\r\n\r\n", false},
	{"\x16\x03\x01\x00\x05", false},
	{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", false},
}

// A lane answers as net/http does, to the byte but for the order of the header: whatever is sent, and however it is cut into pieces.
func TestALaneAnswersAsNetHTTP(t *testing.T) {
	f := newFake()
	digest := f.add("bms", "1.0.0", testImage(1, 300_000))
	for _, a := range asked {
		sent := a.text
		if strings.Contains(sent, "%") {
			sent = fmt.Sprintf(sent, digest)
			sent, _, _ = strings.Cut(sent, "%!(EXTRA")
		}
		if n, ok := simple([]byte(sent[:min(len(sent), maxSimple)])); (ok && n > 0) != a.lane {
			t.Errorf("%.200q is simple: %t", sent, !a.lane)
		}
		checkAsNetHTTP(t, f, sent)
	}
}

func checkAsNetHTTP(t *testing.T, f Fleet, sent string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := NewServer(New(Config{Fleet: f, Log: quiet()}), quiet())
		other := onNetHTTP(s)
		got := tell(t, func(l net.Listener) error { return s.Serve(l, nil) }, s.Close, sent)
		want := tell(t, other.Serve, other.Close, sent)
		if !slices.Equal(got.all, want.all) || got.closed != want.closed {
			t.Errorf("%.300q\nis answered by a Server, which closes: %t\n%.600q\nand by net/http, which closes: %t\n%.600q", sent, got.closed, got.all, want.closed, want.all)
		}
	})
}

func FuzzALaneAnswersAsNetHTTP(f *testing.F) {
	fleet := newFake()
	digest := fleet.add("bms", "1.0.0", testImage(1, 3_000))
	for _, a := range asked {
		if len(a.text) < 2*maxSimple {
			f.Add(strings.ReplaceAll(a.text, "%s", digest))
		}
	}
	f.Fuzz(func(t *testing.T, sent string) { checkAsNetHTTP(t, fleet, sent) })
}

const simpleRequest = "GET /firmware/version HTTP/1.1\r\nHost: x\r\n\r\n"

// A handler that does not do what it has said, or panics, costs its connection and nobody else's.
func TestAHandlerThatBreaksItsWordEndsTheConnection(t *testing.T) {
	for what, h := range map[string]http.HandlerFunc{
		"less than it promised": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "10")
			_, _ = w.Write([]byte("four"))
		},
		"more than it promised": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "2")
			if _, err := w.Write([]byte("four")); !errors.Is(err, http.ErrContentLength) {
				t.Errorf("more than it promised: %v", err)
			}
		},
		"a body without end": func(w http.ResponseWriter, _ *http.Request) {
			for range 100 {
				if _, err := w.Write(make([]byte, 1<<10)); err != nil {
					return
				}
			}
			t.Error("a body without a length was taken, whatever its size")
		},
		"a panic": func(http.ResponseWriter, *http.Request) { panic("of a test") },
		"a panic in the middle": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100000")
			_, _ = w.Write(make([]byte, 50_000))
			panic(http.ErrAbortHandler)
		},
	} {
		var log bytes.Buffer
		inLane(t, h, slog.New(slog.NewTextHandler(&log, nil)), func(_ *Server, conn net.Conn) {
			if _, err := io.WriteString(conn, simpleRequest); err != nil {
				t.Fatal(err)
			}
			_ = conn.SetReadDeadline(time.Now().Add(time.Second))
			if resp, err := http.ReadResponse(bufio.NewReader(conn), nil); err == nil {
				if b, err := io.ReadAll(resp.Body); err == nil {
					t.Errorf("%s: %q was a whole answer", what, b)
				}
			}
			if _, err := io.Copy(io.Discard, conn); isTimeout(err) {
				t.Errorf("%s: the connection lives", what)
			}
		})
		if strings.Contains(log.String(), "panicked") != (what == "a panic") {
			t.Errorf("%s is logged as %q", what, log.String())
		}
	}
}

func TestFieldsAreWrittenAsNetHTTPWritesThem(t *testing.T) {
	many := make(http.Header)
	for i := range 20 {
		many.Set(fmt.Sprintf("X-%d", i), "v")
	}
	for _, header := range []http.Header{
		{},
		{"Content-Type": {"application/json"}, "Etag": {`"1"`}, "Accept-Ranges": {"bytes"}, "Content-Length": {"12"}},
		{"Vary": {"a", "b"}, "Allow": {}},
		{"X-Split": {"a\r\nSet-Cookie: b"}, "Y": {"c"}},
		{"X-Split": {"a\nb"}},
		many,
	} {
		var got, want bytes.Buffer
		writeFields(&got, header)
		if err := header.Write(&want); err != nil || got.String() != want.String() {
			t.Errorf("%q, net/http writes %q", got.String(), want.String())
		}
	}
}

func TestTheDateIsThatOfTheSecond(t *testing.T) {
	for _, at := range []time.Time{time.Unix(0, 0), time.Unix(0, 999_999_999), time.Unix(1, 0), time.Date(2026, 11, 27, 9, 30, 0, 0, time.FixedZone("", 7200)), time.Unix(1, 0)} {
		if got, want := dateOf(at), at.UTC().Format(http.TimeFormat); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
