package web

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// peer is a connection with a kernel whose other end takes what is sent as pace says, in virtual time. The kernel accounts as Linux
// does: twice what it was told is its bound, and there is room when a third of that is free.
type peer struct {
	net.Conn // nil: nothing else is called
	pace     func(since time.Duration) (taken int)

	mu       sync.Mutex
	began    time.Time
	sent     int
	bound    int
	limit    int // of bound, whatever is asked for; 0 = none
	overfull int // what was once written beyond bound: a write that would have waited, with its records in memory
	largest  int // bound there ever was
	deadline time.Time
}

func newPeer(pace func(time.Duration) int) *peer {
	return &peer{pace: pace, began: time.Now(), bound: 2 * SendBuffer, largest: 2 * SendBuffer}
}

func (p *peer) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sent += len(b)
	p.overfull = max(p.overfull, p.sent-min(p.sent, p.pace(time.Since(p.began)))-p.bound)
	return len(b), nil
}

func (p *peer) SetWriteDeadline(t time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deadline = t
	return nil
}

func (p *peer) queued() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sent - min(p.sent, p.pace(time.Since(p.began)))
}

func (p *peer) resize(bytes int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.limit > 0 {
		bytes = min(bytes, p.limit)
	}
	p.bound = 2 * bytes
	p.largest = max(p.largest, p.bound)
	return bytes
}

func (p *peer) room() error {
	for {
		p.mu.Lock()
		bound, deadline := p.bound, p.deadline
		p.mu.Unlock()
		switch {
		case p.queued() <= bound*2/3:
			return nil
		case !time.Now().Before(deadline):
			return os.ErrDeadlineExceeded
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// send writes size bytes to p as an image.
func (p *peer) send(size int, fast *atomic.Int32) (int, error) {
	w := newWire(p, false)
	d := &downloadWriter{&pacedWriter{through{w}, http.NewResponseController(through{w})}, w, fast}
	return d.Write(make([]byte, size))
}

// through is a ResponseWriter without a header.
type through struct{ io.Writer }

func (through) Header() http.Header { return nil }
func (through) WriteHeader(int)     {}

// at takes rate bytes a second, at most most of them.
func at(rate, most int) func(time.Duration) int {
	return func(since time.Duration) int { return min(most, int(since.Seconds()*float64(rate))) }
}

// then is first until it has taken so many, and after that rate bytes a second.
func then(first func(time.Duration) int, taken, rate int) func(time.Duration) int {
	return func(since time.Duration) int {
		n := first(since)
		if n < taken {
			return n
		}
		turned := time.Duration(0)
		for step := time.Minute; step >= time.Millisecond; step /= 2 { // when it was
			if turned+step <= since && first(turned+step) < taken {
				turned += step
			}
		}
		return taken + int((since-turned).Seconds()*float64(rate))
	}
}

const (
	fastRate = 20 << 20
	all      = 1 << 30
	imageLen = 4 << 20
)

func TestWhoIsFastGetsALargeBufferAndGivesItBack(t *testing.T) {
	for what, c := range map[string]struct {
		pace  func(time.Duration) int
		fast  bool // it is taken for fast
		cut   bool
		took  time.Duration // at least
		limit int           // of its buffer
	}{
		"a fast one": {at(fastRate, all), true, false, 0, 0},
		"a fast one, where Linux's own bound holds": {at(fastRate, all), true, false, 0, 212_992},
		"a board":                                  {at(100_000, all), false, false, 35 * time.Second, 0},
		"one on a bad link":                        {at(5_000, all), false, false, 13 * time.Minute, 0},
		"one whose kernel alone takes something":   {at(fastRate, 128<<10), false, true, stallTimeout, 0},
		"one that is fast first and then slow":     {then(at(fastRate, all), 1<<20, 5_000), true, false, 8 * time.Minute, 0},
		"one that is fast first and takes no more": {at(fastRate, 1<<20), true, true, stallTimeout, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			var fast atomic.Int32
			p := newPeer(c.pace)
			p.limit = c.limit
			began := time.Now()
			n, err := p.send(imageLen, &fast)
			if took := time.Since(began); (err != nil) != c.cut || !c.cut && n != imageLen || took < c.took || c.cut && took > 2*stallTimeout+time.Second {
				t.Errorf("%s was sent %d bytes in %v: %v", what, n, took, err)
			}
			if (p.largest > 2*SendBuffer) != c.fast || c.fast && c.limit == 0 && p.largest != 2*fastBuffer {
				t.Errorf("%s had a buffer of %d bytes at most", what, p.largest)
			}
			if p.overfull > 0 {
				t.Errorf("%s was written %d bytes more at once than there was room for", what, p.overfull)
			}
			if p.bound != 2*SendBuffer || fast.Load() != 0 {
				t.Errorf("%s keeps a buffer of %d bytes; %d large ones are given out", what, p.bound, fast.Load())
			}
			// What has been written is as near to the peer as it was without a large buffer.
			if left := p.queued(); !c.cut && left > 2*SendBuffer*2/3+pacedChunk {
				t.Errorf("%s has been answered with %d bytes in the buffer", what, left)
			}
		})
	}
}

// Who reads fast and then nothing more, many times over, has the kernel hold fastPeers large buffers and no more.
func TestFewHaveALargeBuffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fast atomic.Int32
		var peers []*peer
		var sent sync.WaitGroup
		for i := range 3 * fastPeers {
			most := 1 << 20
			if i%2 == 0 {
				most = imageLen - fastBuffer/2 // the rest is written but for its last chunk
			}
			p := newPeer(at(fastRate, most))
			peers = append(peers, p)
			sent.Go(func() {
				if _, err := p.send(imageLen, &fast); !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("who takes nothing more is not cut: %v", err)
				}
			})
		}
		time.Sleep(time.Second)
		large, held := 0, 0
		for _, p := range peers {
			if p.queued() > 2*SendBuffer {
				large++
			}
			held += p.queued()
		}
		if most := fastPeers*2*fastBuffer + 2*fastPeers*2*SendBuffer; large != fastPeers || held > most {
			t.Errorf("%d of %d have more in their buffer than others may, and %d bytes are held, of %d", large, len(peers), held, most)
		}
		sent.Wait()
		if fast.Load() != 0 {
			t.Errorf("%d large buffers are given out", fast.Load())
		}
	})
}

// countingConn counts what is written to it.
type countingConn struct {
	net.Conn
	writes, bytes int
}

func (c *countingConn) Write(b []byte) (int, error) {
	c.writes++
	c.bytes += len(b)
	return c.Conn.Write(b)
}

// Records go out many at a time, in order and whole.
func TestRecordsOfAnImageGoOutTogether(t *testing.T) {
	secure, trusting := secured(t)
	f := newFake()
	image := testImage(1, 1_250_000)
	digest := f.add("bms", "1.0.0", image)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		client, server := net.Pipe()
		counted := &countingConn{Conn: server}
		connect, end := onPipes(NewServer(New(Config{Fleet: f, Log: quiet()}), quiet()), secure)
		connect(counted)
		config := trusting.Clone()
		config.MaxVersion = version
		transport := &http.Transport{
			DialContext:     func(context.Context, string, string) (net.Conn, error) { return client, nil },
			TLSClientConfig: config,
		}
		resp, err := (&http.Client{Transport: transport}).Get("https://example.com/firmware/" + digest + ".bin")
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !bytes.Equal(got, image) || resp.TLS.Version != version {
			t.Errorf("%d bytes, which are not the image: %v", len(got), err)
		}
		transport.CloseIdleConnections()
		_ = end()
		// 20 chunks, the header, the handshake.
		if records := len(image)>>14 + 1; counted.writes > 30 || counted.writes >= records || counted.bytes < len(image) {
			t.Errorf("%s: %d bytes went out in %d writes", tls.VersionName(version), counted.bytes, counted.writes)
		}
	}
}

// losesAll takes everything until so many bytes, and nothing after them.
type losesAll struct {
	net.Conn
	after, seen int
}

func (c *losesAll) Write(b []byte) (int, error) {
	if c.seen += len(b); c.seen > c.after {
		return 0, os.ErrDeadlineExceeded
	}
	return c.Conn.Write(b)
}

// What was held and is lost on the way was not sent: the download was cut, and its connection ends.
func TestAChunkThatIsLostBelowTLSIsNoneThatWasSent(t *testing.T) {
	secure, trusting := secured(t)
	image := testImage(1, 200_000)
	f := newFake()
	digest := f.add("bms", "1.0.0", image)
	client, server := net.Pipe()
	served := make(chan Served, 1)
	s := NewServer(New(Config{Fleet: f, Log: quiet(), Observe: func(got Served) { served <- got }}), quiet())
	connect, end := onPipes(s, secure)
	connect(&losesAll{Conn: server, after: len(image)})
	conn := tls.Client(client, trusting)
	_ = client.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, "GET /firmware/"+digest+".bin HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, conn)
	if got := <-served; !got.Cut || got.Bytes >= int64(len(image)) || n >= int64(len(image)) || isTimeout(err) {
		t.Errorf("%+v, while %d bytes came and then %v", got, n, err)
	}
	client.Close()
	_ = end()
}
