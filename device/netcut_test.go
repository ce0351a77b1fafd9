package device

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/device/internal/agent"
	"bmsota/esp/appimage"
)

const flashSector = 4096

// metered counts the bytes of images that reach the board.
type metered struct {
	http.RoundTripper
	bytes atomic.Int64
	asked atomic.Int64
}

func (m *metered) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := m.RoundTripper.RoundTrip(r)
	if err == nil && strings.HasSuffix(r.URL.Path, ".bin") {
		m.asked.Add(1)
		resp.Body = meteredBody{resp.Body, &m.bytes}
	}
	return resp, err
}

type meteredBody struct {
	io.ReadCloser
	n *atomic.Int64
}

func (b meteredBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n.Add(int64(n))
	return n, err
}

// thrifty insists that what was fetched twice is less than a sector for each answer that was cut.
func (m *metered) thrifty(t *testing.T, size int) {
	t.Helper()
	if again, most := m.bytes.Load()-int64(size), (m.asked.Load()-1)*flashSector; again > most {
		t.Errorf("%d bytes of the image were fetched twice in %d requests, %d may be", again, m.asked.Load(), most)
	}
}

// TestCutEvery256BytesRefetchesLessThanASector: of 64 KiB, which is a single block of the manifest, and of an image that
// ends within its second one; cut once, and every answer of a line that carries no more.
func TestCutEvery256BytesRefetchesLessThanASector(t *testing.T) {
	key := newKey(t)
	old, next, longer := image(t, "1.0.0"), image(t, "1.1.0"), image(t, "1.1.0", func(o *appimage.BuildOptions) { o.Size = 88 << 10 })
	try := func(img []byte, cut int64, cuts int) {
		synctest.Test(t, func(t *testing.T) {
			s := serve(t, release(t, img, key), img)
			s.cut, s.cuts = cut, cuts
			m := &metered{RoundTripper: s}
			b := newBench(t, layout(old, trusting(t, key)), s, func(c *Config) { c.Transport = m })
			updated(b, 20*time.Minute)
			b.wantRunning(img)
			m.thrifty(t, len(img))
		})
		if t.Failed() {
			t.Fatalf("cut after %d bytes, %d times", cut, cuts)
		}
	}
	for cut := int64(256); cut <= int64(len(next)); cut += 256 {
		try(next, cut, 1)
	}
	for _, cut := range []int64{4096, 4352, 5000, 8191, 20_000, 65_535, 65_792} {
		try(longer, cut, 0)
	}
}

// TestBlockBegunAgainCostsMoreThanASector: the mutant that forgets where it was within a block.
func TestBlockBegunAgainCostsMoreThanASector(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := newKey(t)
		old, next := image(t, "1.0.0"), image(t, "1.1.0")
		s := serve(t, release(t, next, key), next)
		s.cut, s.cuts = 40_000, 1
		m := &metered{RoundTripper: s}
		b := newBench(t, layout(old, trusting(t, key)), s, func(c *Config) { c.Transport, c.mutant = m, agent.MutantWholeBlocks })
		updated(b, 20*time.Minute)
		b.wantRunning(next)
		if again := m.bytes.Load() - int64(len(next)); again != 40_000 {
			t.Errorf("%d bytes were fetched twice, 40,000 by the mutant", again)
		}
	})
}

// TestResumeWithinABlockIsProvedByItsDigest: a line that dies, and a cache that has the rest of another file under the same
// name. The block that is put together of two is noticed, and the whole comes from one.
func TestResumeWithinABlockIsProvedByItsDigest(t *testing.T) {
	key := newKey(t)
	old, next, other := image(t, "1.0.0"), image(t, "1.1.0"), image(t, "1.0.5")
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, release(t, next, key), next)
		s.cut, s.cuts = 30_000, 1
		mixed := 0
		s.respond = func(r *http.Request, body []byte) *http.Response {
			if r.Header.Get("Range") == "" {
				return s.file(r, body)
			}
			mixed++
			return ranged(r, other, `"`+sha(body)+`"`)
		}
		b := newBench(t, layout(old, trusting(t, key)), s)
		updated(b, 20*time.Minute)
		b.wantRunning(next)
		if got := s.log(".bin"); mixed != 1 || got != 3 {
			t.Errorf("%d requests, %d of them for a part, want 3 and 1: cut, part of another, whole", got, mixed)
		}
	})
}

// recordCut is a board's line that dies after so many TLS records of the server, or within one.
type recordCut struct {
	mu    sync.Mutex
	left  int  // records that still get through; below 0: all
	torn  bool // of the record after them, half gets through
	count int  // that got through
}

// wrap reads the server's records from c and hands them on whole.
func (rc *recordCut) wrap(c net.Conn) net.Conn {
	r, w := io.Pipe()
	go func() {
		defer c.Close()
		var head [5]byte
		for {
			if _, err := io.ReadFull(c, head[:]); err != nil {
				w.CloseWithError(io.EOF)
				return
			}
			record := make([]byte, 5+int(binary.BigEndian.Uint16(head[3:])))
			copy(record, head[:])
			if _, err := io.ReadFull(c, record[5:]); err != nil {
				w.CloseWithError(io.EOF)
				return
			}
			rc.mu.Lock()
			dies := rc.left == 0
			rc.left--
			if !dies {
				rc.count++
			}
			rc.mu.Unlock()
			if dies && !rc.torn {
				record = nil
			} else if dies {
				record = record[:len(record)/2]
			}
			if _, err := w.Write(record); err != nil {
				return
			}
			if dies {
				w.CloseWithError(errLine)
				return
			}
		}
	}()
	return &readFrom{Conn: c, r: r}
}

// readFrom is a connection that is read from elsewhere.
type readFrom struct {
	net.Conn
	r *io.PipeReader
}

func (c *readFrom) Read(p []byte) (int, error) { return c.r.Read(p) }
func (c *readFrom) Close() error               { c.r.Close(); return c.Conn.Close() }

// TestDeathAtEveryTLSRecordIsResumed: the line dies after each record that the server sends in the whole update, those of
// the handshakes and of the version file among them, and in the middle of each.
func TestDeathAtEveryTLSRecordIsResumed(t *testing.T) {
	key := newKey(t)
	old, next := image(t, "1.0.0"), image(t, "1.1.0")
	ca, cert := authority(t, "fw.example")
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	run := func(left int, torn bool) (records int) {
		synctest.Test(t, func(t *testing.T) {
			s := serve(t, release(t, next, key), next)
			ln, srv := newPipeListener(), overHTTP(s)
			go srv.Serve(tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{cert}}))
			nw := &network{listeners: map[string]func(net.Conn){"fw.example:443": ln.offer}}
			line := &recordCut{left: left, torn: torn}
			// The board's own transport cannot be counted, so this is the same by its settings.
			tr := &http.Transport{MaxConnsPerHost: 1, IdleConnTimeout: 5 * time.Second, DisableCompression: true, ReadBufferSize: 4 << 10,
				TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, TLSHandshakeTimeout: 20 * time.Second}
			tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				c, err := nw.dial(ctx, network, addr)
				if err != nil {
					return nil, err
				}
				return line.wrap(c), nil
			}
			m := &metered{RoundTripper: tr}
			b := newBench(t, layout(old, trusting(t, key)), s, func(c *Config) { c.Transport = m })
			updated(b, 20*time.Minute)
			b.wantRunning(next)
			m.thrifty(t, len(next))
			records = line.count
			tr.CloseIdleConnections()
			srv.Close()
			synctest.Wait()
		})
		if t.Failed() {
			t.Fatalf("after record %d, torn %v", left, torn)
		}
		return records
	}
	all := run(-1, false)
	if all < 10 {
		t.Fatalf("%d records in all: the test cuts nothing", all)
	}
	for n := range all {
		run(n, false)
		run(n, true)
	}
	t.Logf("%d records, each cut after and within", all)
}
