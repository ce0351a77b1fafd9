package web

import (
	"io"
	"net/http"
	"time"
)

// pacedChunk is how many bytes must move within stallTimeout: about 1 KB/s. It is also what one write hands to TLS, four
// records at once.
const pacedChunk = 64 << 10

// pacedWriter writes in chunks and moves the connection's write deadline before each, so that an answer may take as
// long as it needs while it moves, and a reader that stalls is cut.
type pacedWriter struct {
	http.ResponseWriter
	control *http.ResponseController
}

func paced(w http.ResponseWriter) *pacedWriter {
	return &pacedWriter{w, http.NewResponseController(w)}
}

// Unwrap lets http.ResponseController reach the connection.
func (p *pacedWriter) Unwrap() http.ResponseWriter { return p.ResponseWriter }

func (p *pacedWriter) Write(b []byte) (int, error) {
	written := 0
	for len(b) > 0 {
		// A recorder in a test has no deadline; a connection that cannot set one fails in the write that follows.
		_ = p.control.SetWriteDeadline(time.Now().Add(stallTimeout))
		n, err := p.ResponseWriter.Write(b[:min(len(b), pacedChunk)])
		written += n
		if err != nil {
			return written, err
		}
		b = b[n:]
	}
	return written, nil
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
