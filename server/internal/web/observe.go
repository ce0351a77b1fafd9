package web

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"bmsota/server/internal/fleet"
)

// Served is one answered request, for figures.
type Served struct {
	Route  string // a pattern of this server, never what was asked for
	Method string
	Status int
	Bytes  int64 // of the body that were sent
	Took   time.Duration
	Image  bool // firmware was asked for
	Cut    bool // the answer ended before its end
}

// counted notes what is answered.
type counted struct {
	http.ResponseWriter
	began  time.Time
	status int
	bytes  int64
}

// Unwrap lets http.ResponseController reach the connection.
func (c *counted) Unwrap() http.ResponseWriter { return c.ResponseWriter }

func (c *counted) WriteHeader(status int) {
	if c.status == 0 && status >= 200 {
		c.status = status
	}
	c.ResponseWriter.WriteHeader(status)
}

func (c *counted) Write(b []byte) (int, error) {
	if c.status == 0 {
		c.status = http.StatusOK
	}
	n, err := c.ResponseWriter.Write(b)
	c.bytes += int64(n)
	return n, err
}

// observe tells of an answer. One that may be far ahead of its peer is told of when the connection knows what has become of it.
func (c *counted) observe(r *http.Request, tell func(Served)) {
	s := c.served(r)
	l := linkOf(r)
	if l == nil || l.lead == nil {
		tell(s)
		return
	}
	l.lead.told = func(lost int) {
		s.Took = time.Since(c.began)
		if lost > 0 {
			s.Bytes, s.Cut = max(0, s.Bytes-int64(lost)), true
		}
		tell(s)
	}
}

func (c *counted) served(r *http.Request) Served {
	s := Served{Route: routeOf(r), Method: r.Method, Status: c.status, Bytes: c.bytes, Took: time.Since(c.began)}
	s.Image = s.Route == routeImage && r.Method == http.MethodGet
	if promised, err := strconv.ParseInt(c.Header().Get("Content-Length"), 10, 64); err == nil && r.Method == http.MethodGet {
		s.Cut = c.bytes < promised
	}
	if s.Status == 0 {
		s.Status = http.StatusOK
	}
	return s
}

const routeImage = "/firmware/image"

// routeOf is which of the few kinds of request r is. What was asked for is the caller's to choose and no label.
func routeOf(r *http.Request) string {
	p := r.URL.Path
	switch {
	case p == "/firmware" || strings.HasPrefix(p, "/firmware/"):
		switch {
		case strings.HasSuffix(p, ".bin"):
			return routeImage
		case strings.HasSuffix(p, "/version"), strings.HasSuffix(p, "/version.json"):
			return "/firmware/version"
		}
		return "/firmware/"
	case strings.HasPrefix(r.Pattern, "GET /static/"):
		return "/static/"
	case r.Pattern == "" || r.Pattern == "/":
		return "none"
	}
	if _, path, ok := strings.Cut(r.Pattern, " "); ok {
		return path
	}
	return r.Pattern
}

// metrics answers Prometheus, with a token that may view.
func (h *handler) metrics(w http.ResponseWriter, r *http.Request) {
	if !h.allow(w, r) {
		return
	}
	if _, ok := h.admit(w, r, fleet.RightView); ok {
		h.cfg.Metrics.ServeHTTP(paced(w), r)
	}
}
