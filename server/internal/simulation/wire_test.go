package simulation

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"time"
)

// listener is fed by the network.
type listener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newListener() *listener {
	return &listener{conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *listener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

var (
	errRefused = errors.New("connection refused")
	errReset   = errors.New("connection reset")
)

// The two places of the server.
const (
	webAddr  = "fw.example:80"
	mqttAddr = "mqtt.example:1883"
)

// direction is of a packet.
type direction bool

const (
	toServer direction = false
	toBoard  direction = true
)

// tap sees a whole MQTT packet and says what is delivered in its place. die breaks the connection after that.
type tap func(board int, way direction, packet []byte) (instead [][]byte, die bool)

// wires is the network. What is lost on it is late, as TCP has it, until the way is whole again.
type wires struct {
	mu      sync.Mutex
	places  map[string]*listener // by address; no entry: refused
	lost    map[int][2]bool      // by board: to the server, to the board
	open    map[*wire]struct{}
	changed chan struct{} // closed and replaced when lost changes
	tap     tap
}

func newWires() *wires {
	return &wires{places: map[string]*listener{}, lost: map[int][2]bool{}, open: map[*wire]struct{}{}, changed: make(chan struct{})}
}

func (n *wires) serve(places map[string]*listener) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.places = places
}

// listen puts t in the way of every MQTT packet; nil: nothing.
func (n *wires) listen(t tap) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tap = t
}

// lose sets what is lost between a board and the server.
func (n *wires) lose(board int, up, down bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lost[board] = [2]bool{up, down}
	close(n.changed)
	n.changed = make(chan struct{})
}

// cut breaks what stands; board below 0: of everybody.
func (n *wires) cut(board int) {
	n.mu.Lock()
	var victims []*wire
	for w := range n.open {
		if board < 0 || w.board == board {
			victims = append(victims, w)
		}
	}
	n.mu.Unlock()
	for _, w := range victims {
		w.Close()
		w.far.Close()
	}
}

// passes waits until nothing is lost that way; false when done is closed first.
func (n *wires) passes(board int, way direction, done <-chan struct{}) bool {
	for {
		n.mu.Lock()
		lost, changed := n.lost[board][0], n.changed
		if way == toBoard {
			lost = n.lost[board][1]
		}
		n.mu.Unlock()
		if !lost {
			return true
		}
		select {
		case <-changed:
		case <-done:
			return false
		}
	}
}

// dialer is board's way to the network; rate is how fast it takes a body, in bytes a second.
func (n *wires) dialer(board int, rate int) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, addr string) (net.Conn, error) {
		if !n.passes(board, toServer, ctx.Done()) || !n.passes(board, toBoard, ctx.Done()) {
			return nil, ctx.Err()
		}
		n.mu.Lock()
		l := n.places[addr]
		n.mu.Unlock()
		if l == nil {
			return nil, errRefused
		}
		near, far := net.Pipe()
		w := &wire{Conn: near, far: far, net: n, board: board, rate: rate, packets: addr == mqttAddr, closed: make(chan struct{})}
		if w.packets {
			w.more = make(chan struct{}, 1)
			go w.take()
		}
		select {
		case l.conns <- far:
		case <-l.done:
			return nil, errRefused
		}
		n.mu.Lock()
		n.open[w] = struct{}{}
		n.mu.Unlock()
		return w, nil
	}
}

// wire is the board's end of a connection.
type wire struct {
	net.Conn
	far     net.Conn
	net     *wires
	board   int
	rate    int
	packets bool   // MQTT
	rest    []byte // of what the board has not read yet
	dying   bool

	more    chan struct{} // capacity 1: something has arrived
	mu      sync.Mutex
	arrived []arrival // guarded by mu

	once   sync.Once
	closed chan struct{}
}

// arrival is a packet of the server, or the end of its connection.
type arrival struct {
	at     time.Time
	packet []byte
	err    error
}

// take reads what the server sends for as long as the connection stands, as the buffers of TCP do.
func (w *wire) take() {
	r := bufio.NewReader(w.Conn)
	for {
		packet, err := readPacket(r)
		w.mu.Lock()
		w.arrived = append(w.arrived, arrival{time.Now(), packet, err})
		w.mu.Unlock()
		select {
		case w.more <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

// next is the packet that the board gets next. Which of the server's goroutines writes first at one instant is chance, and
// MQTT promises an order within a kind alone: answers come before messages, so that a seed means one run.
func (w *wire) next() ([]byte, error) {
	for {
		w.mu.Lock()
		some := len(w.arrived) > 0
		w.mu.Unlock()
		if some {
			break
		}
		<-w.more
	}
	time.Sleep(time.Nanosecond) // time goes on when nobody has anything left to send at this instant
	w.mu.Lock()
	defer w.mu.Unlock()
	first := 0
	for i, a := range w.arrived {
		if !a.at.Equal(w.arrived[0].at) {
			break
		}
		if a.rank() < w.arrived[first].rank() {
			first = i
		}
	}
	a := w.arrived[first]
	w.arrived = slices.Delete(w.arrived, first, first+1)
	return a.packet, a.err
}

// rank orders what arrives at one instant: CONNACK, other answers, messages, the end.
func (a arrival) rank() int {
	const connack, publish = 2, 3 // MQTT 3.1.1 §2.2.1
	switch {
	case a.err != nil:
		return 3
	case a.packet[0]>>4 == publish:
		return 2
	case a.packet[0]>>4 == connack:
		return 0
	}
	return 1
}

func (w *wire) Close() error {
	w.once.Do(func() {
		close(w.closed)
		w.net.mu.Lock()
		delete(w.net.open, w)
		w.net.mu.Unlock()
	})
	return w.Conn.Close()
}

func (w *wire) Read(p []byte) (int, error) {
	if !w.packets {
		n, err := w.Conn.Read(p[:min(len(p), 1024)])
		time.Sleep(time.Duration(n) * time.Second / time.Duration(w.rate))
		if !w.net.passes(w.board, toBoard, w.closed) {
			return 0, net.ErrClosed
		}
		return n, err
	}
	for len(w.rest) == 0 {
		if w.dying {
			w.Close()
			return 0, errReset
		}
		packet, err := w.next()
		// A line takes its time. It also puts an order to what would else happen at one instant, where which of two
		// goroutines comes first decides.
		time.Sleep(3*time.Millisecond + time.Duration(w.board)*37*time.Microsecond)
		if !w.net.passes(w.board, toBoard, w.closed) {
			return 0, net.ErrClosed
		}
		if err != nil {
			return 0, err
		}
		w.rest, w.dying = w.tapped(toBoard, packet)
	}
	n := copy(p, w.rest)
	w.rest = w.rest[n:]
	return n, nil
}

// Write is given whole packets by the board's MQTT client.
func (w *wire) Write(p []byte) (int, error) {
	if !w.net.passes(w.board, toServer, w.closed) {
		return 0, net.ErrClosed
	}
	if !w.packets {
		return w.Conn.Write(p)
	}
	instead, die := w.tapped(toServer, p)
	if _, err := w.Conn.Write(instead); err != nil {
		return 0, err
	}
	if die {
		w.Close()
		return 0, errReset
	}
	return len(p), nil
}

func (w *wire) tapped(way direction, packet []byte) ([]byte, bool) {
	w.net.mu.Lock()
	t := w.net.tap
	w.net.mu.Unlock()
	if t == nil {
		return packet, false
	}
	instead, die := t(w.board, way, packet)
	var all []byte
	for _, b := range instead {
		all = append(all, b...)
	}
	return all, die
}

// readPacket reads one MQTT packet as bytes (MQTT 3.1.1 §2.2).
func readPacket(r *bufio.Reader) ([]byte, error) {
	kind, err := r.ReadByte()
	if err != nil {
		return nil, err
	}
	packet := []byte{kind}
	length, shift := 0, 0
	for more := true; more; shift += 7 {
		b, err := r.ReadByte()
		if err != nil {
			return nil, err
		}
		packet = append(packet, b)
		length |= int(b&0x7f) << shift
		more = b&0x80 != 0
	}
	head := len(packet)
	packet = append(packet, make([]byte, length)...)
	_, err = io.ReadFull(r, packet[head:])
	return packet, err
}
