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
	"syscall"
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
	tenths   int  // of a byte that each costs; 0 = ten
	asked    int  // how often for room
	dropped  bool // abandon was called
	reset    bool // the peer has gone: nothing moves any more
}

func newPeer(pace func(time.Duration) int) *peer {
	return &peer{pace: pace, began: time.Now(), bound: 2 * SendBuffer, largest: 2 * SendBuffer}
}

func (p *peer) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.deadline.IsZero() && !time.Now().Before(p.deadline) { // asked for before there is room
		return 0, os.ErrDeadlineExceeded
	}
	if p.reset {
		return 0, syscall.EPIPE
	}
	p.sent += len(b)
	p.overfull = max(p.overfull, p.held()-p.bound)
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
	return p.left()
}

// held is what the kernel counts for what it has, more than the bytes where segments are small; mu is held.
func (p *peer) held() int { return p.left() * max(10, p.tenths) / 10 }

// left is called with mu held.
func (p *peer) left() int { return p.sent - min(p.sent, p.pace(time.Since(p.began))) }

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

// seen is its bound, the largest there was, and whether what is queued is to be dropped.
func (p *peer) seen() (bound, largest int, dropped bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.bound, p.largest, p.dropped
}

func (p *peer) abandon() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dropped = true
}

func (p *peer) room() error {
	for {
		p.mu.Lock()
		p.asked++
		bound, deadline, reset, held := p.bound, p.deadline, p.reset, p.held()
		p.mu.Unlock()
		switch {
		case reset, held <= bound*2/3:
			return nil
		case !time.Now().Before(deadline):
			return os.ErrDeadlineExceeded
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// send writes size bytes to p as an image, and waits for it as the lane of a connection does that goes on.
func (p *peer) send(size int, leads *atomic.Int32) (int, error) {
	d := p.downloads(false)
	d.leads = leads
	n, err := d.Write(make([]byte, size))
	if err != nil {
		_ = d.link.settle(true)
		return n, err
	}
	return n, d.link.level()
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

// Whoever downloads has a lead, and gives it back: also at the pace of a bad link, and when it takes no more.
func TestALeadIsTakenBack(t *testing.T) {
	for what, c := range map[string]struct {
		pace  func(time.Duration) int
		size  int
		cut   bool
		took  time.Duration // at least
		limit int           // of its buffer
		cost  int           // of each byte in it, in tenths
	}{
		"a fast one":                                {at(fastRate, all), imageLen, false, 0, 0, 0},
		"one on a bad link with small segments":     {at(5_000, all), imageLen, false, 12 * time.Minute, 0, 22},
		"a fast one, where Linux's own bound holds": {at(fastRate, all), imageLen, false, 0, 212_992, 0},
		"a board": {at(100_000, all), imageLen, false, 35 * time.Second, 0, 0},
		"a board, and an image that fits into the buffer": {at(100_000, all), 700_000, false, 4 * time.Second, 0, 0},
		"a board, and next to nothing":                    {at(100_000, all), SendBuffer, false, 0, 0, 0},
		"one on a bad link":                               {at(5_000, all), imageLen, false, 13 * time.Minute, 0, 0},
		"one on a bad link, as above":                     {at(5_000, all), 700_000, false, 90 * time.Second, 0, 0},
		"one whose kernel alone takes something":          {at(fastRate, 128<<10), imageLen, true, stallTimeout, 0, 0},
		"one that is fast first and then slow":            {then(at(fastRate, all), 1<<20, 5_000), imageLen, false, 8 * time.Minute, 0, 0},
		"one that is fast first and takes no more":        {at(fastRate, 1<<20), imageLen, true, stallTimeout, 0, 0},
		"one that takes all but the end":                  {at(fastRate, imageLen-SendBuffer*3), imageLen, true, stallTimeout, 0, 0},
		"one that takes nothing of what fits":             {at(fastRate, 0), 700_000, true, stallTimeout, 0, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			var leads atomic.Int32
			p := newPeer(c.pace)
			p.limit, p.tenths = c.limit, c.cost
			began := time.Now()
			n, err := p.send(c.size, &leads)
			if took := time.Since(began); (err != nil) != c.cut || !c.cut && n != c.size || took < c.took || c.cut && took > 2*stallTimeout+time.Second {
				t.Errorf("%s was sent %d bytes in %v: %v", what, n, took, err)
			}
			if want := map[bool]int{true: 2 * largeBuffer, false: 2 * SendBuffer}[c.size > SendBuffer]; c.limit == 0 && p.largest != want {
				t.Errorf("%s had a buffer of %d bytes at most", what, p.largest)
			}
			if p.overfull > 0 {
				t.Errorf("%s was written %d bytes more at once than there was room for", what, p.overfull)
			}
			if leads.Load() != 0 || !c.cut && p.bound != 2*SendBuffer || p.dropped != c.cut {
				t.Errorf("%s keeps a buffer of %d bytes, which are dropped: %t; %d leads are given", what, p.bound, p.dropped, leads.Load())
			}
			if left := p.queued(); !c.cut && left > 2*SendBuffer*2/3+pacedChunk {
				t.Errorf("%s has been answered with %d bytes in the buffer", what, left)
			}
		})
	}
}

// downloads is a writer of images to p.
func (p *peer) downloads(secure bool) *downloadWriter {
	l := &link{wire: newWire(p, secure), leads: true}
	c := &counted{ResponseWriter: through{l.wire}}
	return &downloadWriter{&pacedWriter{c, http.NewResponseController(c)}, l, new(atomic.Int32)}
}

// What fits into the buffer is written without a question to the kernel, also when another image was before, and when the image took
// longer to open than a peer may stall.
func TestWhatFitsIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(at(fastRate, all))
		d := p.downloads(false)
		for range 3 {
			_ = p.SetWriteDeadline(time.Now().Add(stallTimeout)) // when it was asked for
			time.Sleep(stallTimeout + time.Second)
			asked := p.asked
			if n, err := d.Write(make([]byte, largeBuffer/2)); n != largeBuffer/2 || err != nil || p.asked > asked+1 { // once after another
				t.Errorf("%d bytes were written, %v: the kernel was asked %d times", n, err, p.asked-asked)
			}
		}
	})
}

// A peer that is gone while records wait below TLS was sent what it has taken.
func TestWhatIsQueuedForAPeerThatIsGoneWasNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const taken = 300_000
		p := newPeer(at(fastRate, taken))
		p.Conn = closable{}
		d := p.downloads(true)
		if n, err := d.Write(make([]byte, 700_000)); n != 700_000 || err != nil {
			t.Fatal(n, err)
		}
		time.Sleep(time.Second)
		p.reset = true
		if _, err := d.Write(make([]byte, 700_000)); err == nil {
			t.Error("it takes more")
		}
		if c := d.ResponseWriter.(*counted); c.bytes != taken || !p.dropped {
			t.Errorf("%d bytes were sent, of %d that were taken; dropped: %t", c.bytes, taken, p.dropped)
		}
	})
}

// closable is a connection that can be closed.
type closable struct{ net.Conn }

func (closable) Close() error { return nil }

// Who asks for next to nothing again and again keeps no lead.
func TestALittleIsNoUseOfALead(t *testing.T) {
	d := newPeer(at(fastRate, all)).downloads(false)
	for i, size := range []int{700_000, 1, SendBuffer, SendBuffer + 1} {
		if d.link.lead != nil {
			d.link.lead.used = false
		}
		if d.link.take(size, d.leads); d.link.lead.used != (size > SendBuffer) {
			t.Errorf("request %d for %d bytes is use of a lead: %t", i, size, d.link.lead.used)
		}
	}
}

// Who takes a little and then nothing more, many times over, has the kernel hold maxLeads large buffers and no more.
func TestFewHaveALargeBuffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var leads atomic.Int32
		var peers []*peer
		var sent sync.WaitGroup
		for i := range 3 * maxLeads {
			most := 1 << 20
			if i%2 == 0 {
				most = imageLen - largeBuffer/2 // all of it is written
			}
			p := newPeer(at(fastRate, most))
			peers = append(peers, p)
			sent.Go(func() {
				if _, err := p.send(imageLen, &leads); !errors.Is(err, os.ErrDeadlineExceeded) {
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
		if most := maxLeads*2*largeBuffer + 2*maxLeads*2*SendBuffer; large != maxLeads || held > most {
			t.Errorf("%d of %d have more in their buffer than others may, and %d bytes are held, of %d", large, len(peers), held, most)
		}
		sent.Wait()
		if leads.Load() != 0 {
			t.Errorf("%d leads are given", leads.Load())
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
