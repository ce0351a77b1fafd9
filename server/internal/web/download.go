package web

import (
	"bytes"
	"io"
	"net/http"
	"sync/atomic"
	"time"
)

// SendBuffer bounds what the kernel takes for a peer, in bytes. Without it the kernel grows the buffer to megabytes, and a write that
// has "moved" says nothing about whether the peer has. Whoever listens sets it for each connection.
const SendBuffer = 128 << 10

// A peer that has shown to be fast gets a larger send buffer for the rest of its image, and chunks of up to fastChunk: it would be
// waited for some fifteen times for each megabyte, and a wait costs as much as the encryption of 16 KiB. An ESP32 is not one of them,
// and whoever reads fast and then stalls can have no more than fastPeers buffers held.
const (
	fastPeers  = 64
	fastBuffer = 1 << 20
	fastChunk  = 256 << 10
	fastTaken  = 160 << 10              // more than the kernel of a peer that reads nothing takes for it, which is 128 KiB at Linux
	fastWithin = 250 * time.Millisecond // for fastTaken
)

// downloadWriter is a pacedWriter for an image. It waits before a chunk is encrypted and not after, so that a download which stalls
// holds no record of TLS: many stall at once, boards on a bad link and whoever means harm. An image that is in memory is written from
// there: no copy, no buffer for each download.
type downloadWriter struct {
	*pacedWriter
	wire *wire
	fast *atomic.Int32 // peers that have a large buffer
}

// download is the writer for an image. Without a connection, as in a test that records, it is paced alone.
func (h *handler) download(w http.ResponseWriter, r *http.Request) http.ResponseWriter {
	p := paced(w)
	if l := linkOf(r); l != nil {
		return &downloadWriter{p, l.wire, &h.fast}
	}
	return p
}

func (d *downloadWriter) Write(b []byte) (written int, err error) {
	began, fast, fastSize := time.Now(), false, 0
	defer func() {
		if fast {
			d.slow()
			d.fast.Add(-1)
		}
	}()
	for len(b) > 0 && err == nil {
		size := pacedChunk
		if fast && len(b) > pacedChunk {
			size = min(len(b)-pacedChunk, fastSize)
		}
		last := fast && len(b) <= pacedChunk
		if last {
			// Before the last chunk the buffer is small again. There is room when most of what was in it has gone, so an answer
			// that has been written is no further ahead of a fast peer than of any other.
			d.slow()
		}
		if err = d.wire.await(); err != nil {
			break
		}
		if last {
			d.fast.Add(-1)
			fast = false
		}
		var n int
		n, err = d.chunk(b[:min(len(b), size)])
		written += n
		b = b[n:]
		if !fast && len(b) > 2*fastChunk && d.isFast(written, time.Since(began)) {
			fastSize, fast = d.hurry()
		}
	}
	return written, err
}

// chunk writes one as a whole.
func (d *downloadWriter) chunk(b []byte) (int, error) {
	d.wire.hold()
	n, err := d.ResponseWriter.Write(b)
	if flushed := d.wire.flush(); flushed != nil {
		// What was taken from us is lost on the way, and nobody else is told.
		if c, ok := d.ResponseWriter.(*counted); ok {
			c.bytes -= int64(n)
		}
		_ = d.wire.Close()
		return 0, flushed
	}
	return n, err
}

// isFast says whether the peer has taken fastTaken bytes soon after the first was written.
func (d *downloadWriter) isFast(written int, after time.Duration) bool {
	if d.wire.kernel == nil || after > fastWithin || written <= fastTaken {
		return false
	}
	left := d.wire.kernel.queued()
	return left >= 0 && written-left >= fastTaken
}

// hurry gives the peer a large buffer, if there is one left, and returns the size of its chunks: less than the third of the buffer that
// is free when there is room.
func (d *downloadWriter) hurry() (size int, ok bool) {
	if d.fast.Add(1) > fastPeers {
		d.fast.Add(-1)
		return 0, false
	}
	return max(pacedChunk, min(fastChunk, d.wire.kernel.resize(fastBuffer)/2)), true
}

func (d *downloadWriter) slow() { d.wire.kernel.resize(SendBuffer) }

// ReadFrom is what http.ServeContent ends in, through io.CopyN: src is an io.LimitedReader on the content it was given.
func (d *downloadWriter) ReadFrom(src io.Reader) (int64, error) {
	if limited, ok := src.(*io.LimitedReader); ok {
		if image, ok := limited.R.(*imageReader); ok {
			n, err := d.Write(image.next(limited.N))
			limited.N -= int64(n)
			return int64(n), err
		}
	}
	return io.Copy(struct{ io.Writer }{d}, src)
}

// imageReader reads an image that is shared in memory. Nobody writes to the slice.
type imageReader struct {
	*bytes.Reader
	image []byte
}

func newImageReader(image []byte) *imageReader { return &imageReader{bytes.NewReader(image), image} }

// next returns at most n bytes from where the reader stands, and moves it past them.
func (r *imageReader) next(n int64) []byte {
	at := r.Size() - int64(r.Len())
	n = min(n, int64(r.Len()))
	_, _ = r.Seek(n, io.SeekCurrent) // within the slice
	return r.image[at : at+n]
}
