package web

import (
	"bytes"
	"errors"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// answer is the http.ResponseWriter of a lane. What a handler writes without a Content-Length is kept until it has ended and then has one: on
// a lane that is a problem document. It says what it has to say in one write where that is short.
type answer struct {
	conn    net.Conn
	last    bool        // the connection ends with this answer
	closing func() bool // it does; asked when the header is said
	header  http.Header

	status   int   // 0 = nothing was said yet
	promised int64 // bytes of the body; -1 = not said, -2 = there is none
	given    int64
	unsaid   []byte // the body, while its length is not said
	told     bool   // the header is in out, or has gone
	out      *bytes.Buffer
	failed   error // of a write; nothing is written after it
}

// Bytes that wait for others in one write, and of a body without a length.
const (
	shortAnswer = 4 << 10
	maxUnsaid   = 64 << 10
)

var outs = sync.Pool{New: func() any { return bytes.NewBuffer(make([]byte, 0, shortAnswer)) }}

// errUnsaid is a fault of a handler: a long body wants a Content-Length.
var errUnsaid = errors.New("web: a long answer without a length")

// begin makes a ready for one answer.
func (a *answer) begin(conn net.Conn, last bool, closing func() bool) {
	header := a.header
	if header == nil {
		header = make(http.Header, 8)
	}
	clear(header)
	*a = answer{conn: conn, last: last, closing: closing, header: header}
}

func (a *answer) Header() http.Header { return a.header }

// SetReadDeadline and SetWriteDeadline are http.ResponseController's.
func (a *answer) SetReadDeadline(t time.Time) error  { return a.conn.SetReadDeadline(t) }
func (a *answer) SetWriteDeadline(t time.Time) error { return a.conn.SetWriteDeadline(t) }

func (a *answer) WriteHeader(status int) {
	if a.status != 0 {
		return
	}
	a.status, a.promised = status, -1
	if status == http.StatusNotModified || status == http.StatusNoContent {
		a.promised = -2
		a.header.Del("Content-Length")
		return
	}
	if length := a.header.Get("Content-Length"); length != "" {
		n, err := strconv.ParseInt(length, 10, 64)
		if err != nil || n < 0 {
			a.header.Del("Content-Length")
			return
		}
		a.promised = n
	}
}

func (a *answer) Write(b []byte) (int, error) {
	if a.status == 0 {
		a.WriteHeader(http.StatusOK)
	}
	switch {
	case a.failed != nil:
		return 0, a.failed
	case a.promised == -2:
		return 0, http.ErrBodyNotAllowed
	case a.promised == -1 && a.given+int64(len(b)) > maxUnsaid:
		a.failed = errUnsaid
		return 0, a.failed
	case a.promised >= 0 && a.given+int64(len(b)) > a.promised:
		return 0, http.ErrContentLength
	}
	a.given += int64(len(b))
	if a.promised < 0 {
		a.unsaid = append(a.unsaid, b...)
		return len(b), nil
	}
	a.tell()
	if a.out != nil && a.out.Len()+len(b) <= shortAnswer {
		return a.out.Write(b)
	}
	if a.flush(); a.failed != nil {
		return 0, a.failed
	}
	n, err := a.conn.Write(b)
	a.failed = err
	return n, err
}

// tell puts the header into out, once.
func (a *answer) tell() {
	if a.told {
		return
	}
	a.told = true
	a.out = outs.Get().(*bytes.Buffer)
	a.out.WriteString("HTTP/1.1 ")
	a.out.WriteString(strconv.Itoa(a.status))
	a.out.WriteByte(' ')
	a.out.WriteString(http.StatusText(a.status))
	a.out.WriteString("\r\nDate: ")
	a.out.WriteString(dateOf(time.Now()))
	a.out.Write(lineEnd)
	if a.last = a.last || a.closing(); a.last {
		a.out.WriteString("Connection: close\r\n")
	}
	writeFields(a.out, a.header)
	a.out.Write(lineEnd)
}

// date is what was written last.
var date atomic.Pointer[dated]

type dated struct {
	second int64
	text   string
}

// dateOf is t as a Date field has it.
func dateOf(t time.Time) string {
	d := date.Load()
	if second := t.Unix(); d == nil || d.second != second {
		d = &dated{second, t.UTC().Format(http.TimeFormat)}
		date.Store(d)
	}
	return d.text
}

// writeFields is header.Write, in a third of the time for few and plain fields, as answers to devices have. Their names are never a peer's.
func writeFields(out *bytes.Buffer, header http.Header) {
	var few [12]string
	names := few[:0]
	for name, values := range header {
		if len(names) == len(few) || len(values) != 1 || strings.ContainsAny(values[0], "\r\n") {
			_ = header.Write(out) // to memory
			return
		}
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		out.WriteString(name)
		out.WriteString(": ")
		out.WriteString(header[name][0])
		out.Write(lineEnd)
	}
}

// flush writes what waits in out.
func (a *answer) flush() {
	if a.out == nil {
		return
	}
	if a.failed == nil {
		_, a.failed = a.conn.Write(a.out.Bytes())
	}
	if a.out.Cap() <= 2*shortAnswer { // else it is one of the rare long ones
		a.out.Reset()
		outs.Put(a.out)
	}
	a.out = nil
}

// end says what has not been said. Its error means that the peer did not get all of the answer, and gets no other.
func (a *answer) end() error {
	if a.status == 0 {
		a.WriteHeader(http.StatusOK)
	}
	if a.promised == -1 {
		a.promised = a.given
		a.header.Set("Content-Length", strconv.FormatInt(a.given, 10))
	}
	a.tell()
	if a.unsaid != nil { // and so out has the header
		a.out.Write(a.unsaid)
	}
	if a.flush(); a.failed != nil {
		return a.failed
	}
	if a.promised >= 0 && a.given != a.promised {
		return http.ErrContentLength
	}
	return nil
}
