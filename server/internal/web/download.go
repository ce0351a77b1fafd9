package web

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"sync/atomic"
)

// SendBuffer bounds what the kernel takes for a peer, in bytes. Without it the kernel grows the buffer to megabytes, and a write that
// has "moved" says nothing about whether the peer has. Whoever listens sets it for each connection.
const SendBuffer = 128 << 10

// A few peers get a larger send buffer for an image, and chunks of up to largeChunk: most images fit into it, so their download waits for
// nothing, where it would some fifteen times for each megabyte, and a wait costs as much as the encryption of 16 KiB. Whoever reads
// nothing has the kernel hold such a buffer, so there are no more than maxLeads at a time.
const (
	maxLeads    = 64
	largeBuffer = 1 << 20
	largeChunk  = 256 << 10
)

// lead is what the peer of a lane is written an image with that may be further ahead of it than any other's. The kernel has the end of the
// image long before the peer does, so it is the lane that sees to the rest, while it waits for the next request (settle).
type lead struct {
	given *atomic.Int32 // how many there are
	chunk int           // bytes: less than the third of the buffer that is free when there is room
	used  bool          // since the last request, for more than others may be sent at once
	// told is called once, when the peer has what was answered last, or will not have so many bytes of it; nil = nobody waits for it.
	told func(lost int)
}

// tell calls told.
func (l *lead) tell(lost int) {
	if told := l.told; told != nil {
		l.told = nil
		told(lost)
	}
}

// take gives the peer a lead, if it is a lane's and there is one left, and returns the size of chunks for so many bytes of an image.
func (l *link) take(size int, given *atomic.Int32) (chunk int) {
	switch {
	case l.lead != nil:
		l.lead.used = l.lead.used || size > SendBuffer
		return l.lead.chunk
	case !l.leads || !holds || l.wire.kernel == nil || size <= SendBuffer:
		return pacedChunk
	case given.Add(1) > maxLeads:
		given.Add(-1)
		return pacedChunk
	}
	buffer := l.wire.resize(largeBuffer)
	l.lead = &lead{given: given, chunk: max(pacedChunk, min(largeChunk, buffer/2)), used: true}
	return l.lead.chunk
}

// settle waits until a peer that had a lead has no more before it than any other, and takes the lead back. It fails when the peer
// stalls or goes. Of one that is gone nothing is awaited. What the kernel still holds for those two is dropped with their connection, where
// it would stay for minutes.
func (l *link) settle(gone bool) error {
	lead := l.lead
	if lead == nil {
		return nil
	}
	l.lead = nil
	defer lead.given.Add(-1)
	var err error
	left := max(0, l.wire.queued())
	if !gone && left > SendBuffer {
		l.wire.resize(SendBuffer)
		err = l.wire.await(pacedChunk)
		left = max(0, l.wire.queued())
	}
	switch {
	case gone || err != nil:
	case left <= 2*SendBuffer:
		left = 0
	default:
		err = errWent
	}
	if left > 0 {
		left = l.drop()
	}
	lead.tell(left)
	return err
}

// drop has what the kernel holds for the peer dropped when the connection is closed, and says how many bytes that is.
func (l *link) drop() int {
	l.wire.kernel.abandon()
	return max(0, l.wire.queued())
}

// errWent is of a peer that has gone while it was waited for.
var errWent = errors.New("web: peer went before it had its answer")

// level is settle for a connection that goes on, with a buffer as all have.
func (l *link) level() error {
	if l.lead == nil {
		return nil
	}
	err := l.settle(false)
	l.wire.resize(SendBuffer)
	return err
}

// downloadWriter is a pacedWriter for an image. It waits before a chunk is encrypted and not after, so that a download which stalls
// holds no record of TLS: many stall at once, boards on a bad link and whoever means harm. An image that is in memory is written from
// there: no copy, no buffer for each download.
type downloadWriter struct {
	*pacedWriter
	link  *link
	leads *atomic.Int32 // that are given
}

// download is the writer for an image. Without a connection, as in a test that records, it is paced alone.
func (h *handler) download(w http.ResponseWriter, r *http.Request) http.ResponseWriter {
	p := paced(w)
	if l := linkOf(r); l != nil {
		return &downloadWriter{p, l, &h.leads}
	}
	return p
}

func (d *downloadWriter) Write(b []byte) (written int, err error) {
	size := d.link.take(len(b), d.leads)
	for len(b) > 0 && err == nil {
		next := b[:min(len(b), size)]
		if err = d.link.wire.await(len(next)); err != nil {
			break
		}
		var n int
		n, err = d.chunk(next)
		written += n
		b = b[n:]
	}
	return written, err
}

// chunk writes one as a whole.
func (d *downloadWriter) chunk(b []byte) (int, error) {
	d.link.wire.hold()
	n, err := d.ResponseWriter.Write(b)
	if flushed := d.link.wire.flush(); flushed != nil {
		// What was taken from us is lost on the way, with what the kernel holds for a lead, and nobody else is told.
		if d.link.lead != nil {
			n += d.link.drop()
		}
		if c, ok := d.ResponseWriter.(*counted); ok {
			c.bytes = max(0, c.bytes-int64(n))
		}
		_ = d.link.wire.Close()
		return 0, flushed
	}
	return n, err
}

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
