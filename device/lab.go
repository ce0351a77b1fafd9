package device

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"bmsota/device/internal/agent"
)

// offer is a firmware server without a network, as a board's HTTP transport: one release that never changes, so that any
// number of boards may ask at once.
type offer struct {
	version []byte // body of version
	image   []byte
	tag     string // what the image is called
}

// RoundTrip implements http.RoundTripper.
func (o *offer) RoundTrip(r *http.Request) (*http.Response, error) {
	switch {
	case strings.HasSuffix(r.URL.Path, "/version"):
		return plain(r, http.StatusOK, o.version), nil
	case strings.HasSuffix(r.URL.Path, ".bin"):
		return ranged(r, o.image, o.tag), nil
	}
	return plain(r, http.StatusNotFound, []byte("not here")), nil
}

// ranged answers a request for a file that the server calls tag, or for the rest of it.
func ranged(r *http.Request, body []byte, tag string) *http.Response {
	code, header := http.StatusOK, http.Header{"Etag": {tag}}
	if from, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok && r.Header.Get("If-Range") == tag {
		start, err := strconv.Atoi(strings.TrimSuffix(from, "-"))
		if err != nil || start < 0 || start >= len(body) {
			return plain(r, http.StatusRequestedRangeNotSatisfiable, nil)
		}
		header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, len(body)-1, len(body)))
		code, body = http.StatusPartialContent, body[start:]
	}
	return reply(r, code, header, bytes.NewReader(body), int64(len(body)))
}

func plain(r *http.Request, code int, body []byte) *http.Response {
	return reply(r, code, nil, bytes.NewReader(body), int64(len(body)))
}

func reply(r *http.Request, code int, header http.Header, body io.Reader, length int64) *http.Response {
	if header == nil {
		header = http.Header{}
	}
	return &http.Response{StatusCode: code, Status: strconv.Itoa(code), Header: header, Body: io.NopCloser(body),
		ContentLength: length, Request: r, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}
}

// session is a board's session with a broker that never fails and retains one order.
type session struct{ order []byte }

// Run implements agent.Link.
func (s session) Run(ctx context.Context, on agent.LinkEvents) {
	on.Reached()
	on.Up()
	if len(s.order) > 0 {
		on.Command(s.order, true)
	}
	<-ctx.Done()
}

// Publish implements agent.Link.
func (session) Publish(context.Context, []byte, byte) error { return nil }

// sha is the digest of a file as statuses and manifests write it.
func sha(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
