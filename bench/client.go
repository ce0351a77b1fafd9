package bench

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// asking is how clients ask a server, the same for every side. They are no net/http: what they cost is nobody's figure, but
// the less they take of the machine the more there is to measure.
type asking struct {
	tls  *tls.Config
	path string
	// header lines beyond Host, each ended by \r\n.
	header string
	// keep has a client ask again on its connection; else each question has a connection of its own, as a device's has.
	keep bool
}

// askWithin bounds one question.
const askWithin = 30 * time.Second

// versionOf is TLS of one version, with what mbedTLS on an ESP32 and a Go client have in common: X25519 or P-256, AES-128-GCM.
// Sessions are not resumed.
func versionOf(caPEM []byte, version uint16) (*tls.Config, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(caPEM) {
		return nil, errors.New("the server's authority cannot be read")
	}
	return &tls.Config{RootCAs: roots, ServerName: "127.0.0.1", MinVersion: version, MaxVersion: version,
		CurvePreferences: []tls.CurveID{tls.X25519, tls.CurveP256},
		CipherSuites:     []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}}, nil
}

// connection is a client's, with what it reads into.
type connection struct {
	*tls.Conn
	in   *bufio.Reader
	room []byte
}

// open connects and shakes hands.
func (a asking) open(ctx context.Context, addr string) (*connection, error) {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, a.tls)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	return &connection{Conn: conn, in: bufio.NewReaderSize(conn, 16<<10), room: make([]byte, 32<<10)}, nil
}

// ask sends one question.
func (a asking) ask(c *connection) error {
	if err := c.SetDeadline(time.Now().Add(askWithin)); err != nil {
		return err
	}
	_, err := io.WriteString(c, "GET "+a.path+" HTTP/1.1\r\nHost: 127.0.0.1\r\n"+a.header+"\r\n")
	return err
}

// answer reads the answer, its body into to, and returns how long that was. Anything but 200 and 206 is an error.
func (c *connection) answer(to io.Writer) (int64, error) {
	status, length := "", int64(-1)
	for {
		line, err := c.in.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		if status == "" {
			status = string(line)
			continue
		}
		if name, value, ok := bytes.Cut(line, []byte(":")); ok && strings.EqualFold(string(name), "Content-Length") {
			if length, err = strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64); err != nil {
				return 0, err
			}
		}
	}
	if !strings.HasPrefix(status, "HTTP/1.1 200") && !strings.HasPrefix(status, "HTTP/1.1 206") || length < 0 {
		return 0, fmt.Errorf("answered %q", status)
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{io.LimitReader(c.in, length)}, c.room)
	if err == nil && n != length {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// fetch asks once, on a connection of its own, and returns the body.
func (a asking) fetch(ctx context.Context, addr string) ([]byte, error) {
	c, err := a.open(ctx, addr)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var body bytes.Buffer
	if err := a.ask(c); err != nil {
		return nil, err
	}
	if _, err := c.answer(&body); err != nil {
		return nil, fmt.Errorf("%s: %w", a.path, err)
	}
	return body.Bytes(), nil
}

// load asks addr from so many clients until d has passed, and returns how many answers of size bytes there were. An answer of
// another size is an error.
func (a asking) load(ctx context.Context, addr string, clients int, d time.Duration, size int64) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, d+askWithin)
	defer cancel()
	var answers atomic.Int64
	var first error
	var once sync.Once
	var wg sync.WaitGroup
	end := time.Now().Add(d)
	for range clients {
		wg.Go(func() {
			if err := a.repeat(ctx, addr, end, size, &answers); err != nil {
				once.Do(func() { first = err })
				cancel()
			}
		})
	}
	wg.Wait()
	return int(answers.Load()), first
}

// repeat is one client.
func (a asking) repeat(ctx context.Context, addr string, end time.Time, size int64, answers *atomic.Int64) error {
	var c *connection
	defer func() {
		if c != nil {
			_ = c.Close()
		}
	}()
	for asked := 0; time.Now().Before(end) && ctx.Err() == nil; asked++ {
		// nginx closes a connection after 1,000 questions (keepalive_requests): every client begins anew before that.
		if c != nil && (!a.keep || asked%500 == 0) {
			_ = c.Close()
			c = nil
		}
		if c == nil {
			var err error
			if c, err = a.open(ctx, addr); err != nil {
				return err
			}
		}
		if err := a.ask(c); err != nil {
			return err
		}
		n, err := c.answer(io.Discard)
		if err != nil {
			return err
		}
		if n != size {
			return fmt.Errorf("an answer of %d bytes in place of %d", n, size)
		}
		answers.Add(1)
	}
	return nil
}
