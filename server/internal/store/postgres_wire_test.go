//go:build unix

package store_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"bmsota/server/pgtest"
)

// wire is a proxy between a store and its PostgreSQL that knows where messages end, and cuts the line at one of them.
type wire struct {
	dir    string // of its socket
	server string // path of the server's

	mu   sync.Mutex
	left int    // messages until the cut; below 0: none
	only string // counts messages that are this statement; empty: all
	last string // what the line was cut at
	all  map[net.Conn]bool
}

// newWire is a wire to the server, and the URL of a database through it.
func newWire(t *testing.T, s *pgtest.Server, database string) (*wire, string) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "bmsota-wire-")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{dir: dir, server: filepath.Join(s.Dir, ".s.PGSQL.5432"), left: -1, all: map[net.Conn]bool{}}
	l, err := net.Listen("unix", filepath.Join(dir, ".s.PGSQL.5432"))
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { w.carry(client) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		w.mu.Lock()
		for c := range w.all {
			c.Close()
		}
		w.mu.Unlock()
		serving.Wait()
		os.RemoveAll(dir)
	})
	return w, fmt.Sprintf("postgres://%s@/%s?host=%s&sslmode=disable", pgtest.Superuser, database, dir)
}

// arm cuts the line on which the nth message from now goes: behind it when it goes to the server, which may then do what it
// says, and before it when it is an answer. The rows of one answer are one message: there are more of them with every release that
// a sweep has published, and it would never come to its end.
func (w *wire) arm(n int, only string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.left, w.only, w.last = n, only, ""
}

// cut is what the line was cut at, empty while it was not. It is cut no more.
func (w *wire) cut() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.left = -1
	return w.last
}

// now says whether the line is cut at this message.
func (w *wire) now(what string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.left < 0 || w.only != "" && what != w.only {
		return false
	}
	w.left--
	if w.left >= 0 {
		return false
	}
	w.last = what
	return true
}

func (w *wire) carry(client net.Conn) {
	server, err := net.Dial("unix", w.server)
	if err != nil {
		client.Close()
		return
	}
	w.mu.Lock()
	w.all[client], w.all[server] = true, true
	w.mu.Unlock()
	var both sync.WaitGroup
	end := func() { client.Close(); server.Close() }
	both.Go(func() {
		defer end()
		for first := true; ; first = false {
			kind, message, err := readMessage(client, first)
			if err != nil {
				return
			}
			if _, err := server.Write(message); err != nil || w.now(kind) {
				return
			}
		}
	})
	both.Go(func() {
		defer end()
		for before := ""; ; {
			kind, message, err := readMessage(server, false)
			if err != nil || (kind != dataRow || kind != before) && w.now("answer: "+kind) {
				return
			}
			before = kind
			if _, err := client.Write(message); err != nil {
				return
			}
		}
	})
	both.Wait()
	w.mu.Lock()
	delete(w.all, client)
	delete(w.all, server)
	w.mu.Unlock()
}

// The letters of one row of an answer, and of rows that are copied.
const (
	dataRow  = "D"
	copyData = "d"
)

// readMessage reads one message; the first of a client has no letter.
func readMessage(from io.Reader, first bool) (kind string, message []byte, err error) {
	head := make([]byte, 5)
	if first {
		head = head[:4]
	}
	if _, err := io.ReadFull(from, head); err != nil {
		return "", nil, err
	}
	size := binary.BigEndian.Uint32(head[len(head)-4:])
	if size < 4 || size > 1<<28 {
		return "", nil, fmt.Errorf("a message of %d bytes", size)
	}
	message = append(head[:len(head):len(head)], make([]byte, size-4)...)
	if _, err := io.ReadFull(from, message[len(head):]); err != nil {
		return "", nil, err
	}
	if first {
		return "startup", message, nil
	}
	if head[0] == 'Q' && len(message) > 6 { // a statement without values
		return string(message[5 : len(message)-1]), message, nil
	}
	return string(head[:1]), message, nil
}
