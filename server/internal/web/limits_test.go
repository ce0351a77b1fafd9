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
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/server/internal/fleet"
)

// pipeListener hands out in-memory connections, which synctest can see through: time passes only when all wait.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }

// onPipes serves s over pipes: connect gives it its end of one, end ends it and returns what Serve has said.
func onPipes(s *Server, secure *tls.Config) (connect func(net.Conn), end func() error) {
	l := newPipeListener()
	served := make(chan error, 1)
	go func() { served <- s.Serve(l, secure) }()
	return func(conn net.Conn) { l.conns <- conn }, func() error {
		_ = s.Close()
		return <-served
	}
}

// inBubble serves f inside a bubble of synctest and gives fn a connection to it.
func inBubble(t *testing.T, f Fleet, fn func(conn net.Conn)) {
	inLane(t, New(Config{Fleet: f, Log: quiet()}), quiet(), func(_ *Server, conn net.Conn) { fn(conn) })
}

// inLane is inBubble for any handler.
func inLane(t *testing.T, h http.Handler, log *slog.Logger, fn func(s *Server, conn net.Conn)) {
	synctest.Test(t, func(t *testing.T) {
		s := NewServer(h, log)
		connect, end := onPipes(s, nil)
		client, server := net.Pipe()
		connect(server)
		fn(s, client)
		client.Close()
		if err := end(); !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("serve: %v", err)
		}
	})
}

// secured is a certificate for example.com, for a server, and what trusts it, for a client.
func secured(t *testing.T) (server, client *tls.Config) {
	srv := httptest.NewTLSServer(nil)
	t.Cleanup(srv.Close)
	return srv.TLS, &tls.Config{RootCAs: srv.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs, ServerName: "example.com"}
}

// A monitor on a bad link takes five minutes for an image, and gets it.
func TestSlowDownloadIsNotCut(t *testing.T) {
	f := newFake()
	image := testImage(1, 1_500_000)
	digest := f.add("bms", "1.0.0", image)
	for _, limit := range []int64{0, -1} { // from memory, and from the file
		inBubble(t, uncached{f, limit != 0}, func(conn net.Conn) {
			start := time.Now()
			if _, err := io.WriteString(conn, "GET /firmware/"+digest+".bin HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			in := bufio.NewReaderSize(conn, 1000)
			resp, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			for got.Len() < len(image) {
				if _, err := io.CopyN(&got, resp.Body, min(5000, int64(len(image)-got.Len()))); err != nil {
					t.Fatalf("after %d bytes and %v: %v", got.Len(), time.Since(start), err)
				}
				time.Sleep(time.Second)
			}
			if took := time.Since(start); took < 290*time.Second {
				t.Errorf("the download took %v only", took)
			}
			if !bytes.Equal(got.Bytes(), image) {
				t.Errorf("%d bytes that are not the image", got.Len())
			}
			// The connection is as good as new afterwards, and the request lived to its end.
			if _, err := io.WriteString(conn, "GET /firmware/version HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			if resp, err = http.ReadResponse(in, nil); err != nil || resp.StatusCode != 200 {
				t.Errorf("the next request: %v, %v", resp, err)
			}
			if f.cancelled != 0 {
				t.Errorf("%d downloads were cancelled on the way", f.cancelled)
			}
		})
	}
}

// uncached makes images larger than the cache takes when big is set, so that they are served from the file.
type uncached struct {
	*fakeFleet
	big bool
}

type bigBlob struct{ fleet.Blob }

func (u uncached) Firmware(ctx context.Context, digest string) (fleet.Blob, error) {
	b, err := u.fakeFleet.Firmware(ctx, digest)
	if err != nil || !u.big {
		return b, err
	}
	return bigBlob{b}, nil
}

func (bigBlob) Size() int64 { return 1 << 40 }

func TestStalledReaderIsCut(t *testing.T) {
	f := newFake()
	digest := f.add("bms", "1.0.0", testImage(1, 1_500_000))
	inBubble(t, f, func(conn net.Conn) {
		if _, err := io.WriteString(conn, "GET /firmware/"+digest+".bin HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, conn, 100_000); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if f.opened != 1 || f.closed != 1 {
			t.Errorf("a download from memory holds a file: %d opened, %d closed", f.opened, f.closed)
		}
		before := time.Now()
		time.Sleep(stallTimeout + 5*time.Second) // reads nothing meanwhile
		n, err := io.Copy(io.Discard, conn)
		if time.Since(before) > stallTimeout+6*time.Second || n > pacedChunk {
			t.Errorf("a reader that stalled got %d bytes more (%v) after %v", n, err, time.Since(before))
		}
		synctest.Wait()
		if f.opened != 1 || f.closed != 1 {
			t.Errorf("%d images opened, %d closed", f.opened, f.closed)
		}
	})
}

// A short answer counts too: whoever asks and never reads is cut, be it for an error.
func TestReaderThatNeverReadsAnErrorIsCut(t *testing.T) {
	inBubble(t, newFake(), func(conn net.Conn) {
		if _, err := io.WriteString(conn, "GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(stallTimeout + time.Second)
		if b, err := io.ReadAll(conn); len(b) != 0 || err != nil {
			t.Errorf("after a minute %d bytes were still to be had (%v)", len(b), err)
		}
	})
}

func TestSlowHeaderIsCut(t *testing.T) {
	inBubble(t, newFake(), func(conn net.Conn) {
		start := time.Now()
		if _, err := io.WriteString(conn, "GET /firmware/version HTTP/1.1\r\nHost: x\r\n"); err != nil {
			t.Fatal(err)
		}
		_, err := io.Copy(io.Discard, conn)
		if took := time.Since(start); took > headerTimeout+time.Second {
			t.Errorf("a header that never ends was waited for %v (%v)", took, err)
		}
	})
}

func TestSlowBodyIsCut(t *testing.T) {
	f := newFake()
	inBubble(t, f, func(conn net.Conn) {
		start := time.Now()
		if _, err := io.WriteString(conn, "POST /api/v1/devices HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "+operatorToken+"\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"); err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(conn)
		if took := time.Since(start); took > bodyTimeout+time.Second || !strings.HasPrefix(string(b), "HTTP/1.1 400") {
			t.Errorf("a body that never ends was answered after %v with %q", took, b)
		}
	})
}

// An upload at 2 KB/s takes nine minutes and arrives; one that stalls is cut.
func TestSlowUploadArrivesAndStalledOneIsCut(t *testing.T) {
	f := newFake()
	image := testImage(1, 1_000_000)
	head := "PUT /api/v1/blobs/" + digestHex(image) + " HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + operatorToken + "\r\nContent-Length: 1000000\r\nConnection: close\r\n\r\n"
	inBubble(t, f, func(conn net.Conn) {
		if _, err := io.WriteString(conn, head); err != nil {
			t.Fatal(err)
		}
		for at := 0; at < len(image); at += 20_000 {
			time.Sleep(10 * time.Second)
			if _, err := conn.Write(image[at : at+20_000]); err != nil {
				t.Fatalf("at %d: %v", at, err)
			}
		}
		if b, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 204") {
			t.Errorf("%q, %v", b, err)
		}
	})
	if len(f.blobs) != 1 {
		t.Errorf("%d blobs are stored", len(f.blobs))
	}
	inBubble(t, f, func(conn net.Conn) {
		if _, err := io.WriteString(conn, head+"some"); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) > stallTimeout+time.Second {
			t.Errorf("a stalled upload was held for %v (%v)", time.Since(start), err)
		}
	})
}

// The connection stays usable after a long pause between requests: deadlines of one request do not end the next.
func TestNextRequestHasItsOwnDeadlines(t *testing.T) {
	f := newFake()
	f.add("bms", "1.0.0", testImage(1, 10))
	inBubble(t, f, func(conn net.Conn) {
		for range 5 {
			if _, err := io.WriteString(conn, "HEAD /firmware/version HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 1024)
			n, err := conn.Read(buf)
			if err != nil || !strings.HasPrefix(string(buf[:n]), "HTTP/1.1 200") {
				t.Fatalf("%q, %v", buf[:n], err)
			}
			time.Sleep(idleTimeout - time.Second)
		}
	})
}
