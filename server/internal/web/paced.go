package web

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"syscall"
	"time"
)

// pacedChunk is how many bytes must move within stallTimeout: about 1 KB/s. It is also what one write hands to TLS, four
// records at once.
const pacedChunk = 64 << 10

// pacedWriter writes in chunks and moves the connection's write deadline before each, so that a download may take as
// long as it needs while it moves, and a reader that stalls is cut. An image that is in memory is written from there:
// no copy, no buffer for each download.
type pacedWriter struct {
	http.ResponseWriter
	control *http.ResponseController
	conn    syscall.RawConn // to await room on before each chunk; nil = the write waits
}

func paced(w http.ResponseWriter) *pacedWriter {
	return &pacedWriter{w, http.NewResponseController(w), nil}
}

// pacedDownload is paced for an image: it waits before a chunk is encrypted and not after, so that a download which stalls holds
// no record of TLS. Many stall at once: boards on a bad link, and whoever means harm.
func pacedDownload(w http.ResponseWriter, r *http.Request) *pacedWriter {
	p := paced(w)
	p.conn, _ = r.Context().Value(rawConnKey{}).(syscall.RawConn)
	return p
}

// rawConnKey is what withRawConn puts into the context of a connection's requests.
type rawConnKey struct{}

// withRawConn is for http.Server.ConnContext.
func withRawConn(ctx context.Context, conn net.Conn) context.Context {
	if secure, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = secure.NetConn()
	}
	if s, ok := conn.(syscall.Conn); ok {
		if raw, err := s.SyscallConn(); err == nil {
			return context.WithValue(ctx, rawConnKey{}, raw)
		}
	}
	return ctx
}

// Unwrap lets http.ResponseController reach the connection.
func (p *pacedWriter) Unwrap() http.ResponseWriter { return p.ResponseWriter }

func (p *pacedWriter) Write(b []byte) (int, error) {
	written := 0
	for len(b) > 0 {
		chunk := b[:min(len(b), pacedChunk)]
		// A recorder in a test has no deadline; a connection that cannot set one fails in the write that follows.
		_ = p.control.SetWriteDeadline(time.Now().Add(stallTimeout))
		if p.conn != nil {
			awaitRoom(p.conn)
		}
		n, err := p.ResponseWriter.Write(chunk)
		written += n
		if err != nil {
			return written, err
		}
		b = b[n:]
	}
	return written, nil
}

// ReadFrom is what http.ServeContent ends in, through io.CopyN: src is an io.LimitedReader on the content it was given.
func (p *pacedWriter) ReadFrom(src io.Reader) (int64, error) {
	if limited, ok := src.(*io.LimitedReader); ok {
		if image, ok := limited.R.(*imageReader); ok {
			n, err := p.Write(image.next(limited.N))
			limited.N -= int64(n)
			return int64(n), err
		}
	}
	return io.Copy(struct{ io.Writer }{p}, src)
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

// pacedBody is the body of an upload: the deadlines of both directions move with it, so that the answer can still be
// written after a slow upload.
type pacedBody struct {
	body    io.Reader
	control *http.ResponseController
}

func (p *pacedBody) Read(b []byte) (int, error) {
	deadline := time.Now().Add(stallTimeout)
	_ = p.control.SetReadDeadline(deadline)
	_ = p.control.SetWriteDeadline(deadline.Add(stallTimeout))
	return p.body.Read(b)
}
