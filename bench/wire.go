package bench

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// session is a client of MQTT 3.1.1 with as much of it as is measured here. It is no library's, because a library has
// goroutines and queues for each client, and what clients take is missing to what is measured on the same machine.
type session struct {
	conn net.Conn
	in   *bufio.Reader
	room []byte // for what is published
}

// login is who logs in where. A nil tls is plain MQTT.
type login struct {
	addr           string
	tls            *tls.Config
	client         string
	name, password string
}

// Types of packets (MQTT 3.1.1 §2.2.1), in the upper half of the first byte.
const (
	packetConnack = 2
	packetPublish = 3
	packetPuback  = 4
	packetSuback  = 9
)

// within bounds each answer that is waited for.
const within = 2 * time.Minute

// open connects and logs in. The session is kept alive for as long as a server lets one be silent.
func (l login) open(ctx context.Context) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", l.addr)
	if err != nil {
		return nil, err
	}
	// Reset at the end: thousands of ports that wait out their time would be missing to the next round.
	if err := conn.(*net.TCPConn).SetLinger(0); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if l.tls != nil {
		secure := tls.Client(conn, l.tls)
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
		conn = secure
	}
	s := &session{conn: conn, in: bufio.NewReaderSize(conn, 256)}
	if err := s.connect(l); err != nil {
		return nil, errors.Join(fmt.Errorf("log in as %s: %w", l.name, err), conn.Close())
	}
	return s, nil
}

// connect says CONNECT: a clean session with user name and password.
func (s *session) connect(l login) error {
	body := append(text(nil, "MQTT"), 4, 0xc2)
	body = binary.BigEndian.AppendUint16(body, 600)
	for _, field := range []string{l.client, l.name, l.password} {
		body = text(body, field)
	}
	answer, err := s.ask(0x10, body, packetConnack)
	if err == nil && (len(answer) != 2 || answer[1] != 0) {
		err = fmt.Errorf("CONNACK % x", answer)
	}
	return err
}

// subscribe asks for filter at a QoS, and insists on it.
func (s *session) subscribe(filter string, qos byte) error {
	answer, err := s.ask(0x82, append(text([]byte{0, 1}, filter), qos), packetSuback)
	if err == nil && (len(answer) != 3 || answer[2] != qos) {
		err = fmt.Errorf("SUBACK % x to %s", answer, filter)
	}
	return err
}

// publish sends a message at QoS 1; acknowledged waits for the answer.
func (s *session) publish(topic string, id uint16, payload []byte) error {
	packet := binary.AppendUvarint(append(s.room[:0], 0x32), uint64(2+len(topic)+2+len(payload)))
	packet = append(binary.BigEndian.AppendUint16(text(packet, topic), id), payload...)
	s.room = packet
	return s.write(packet)
}

func (s *session) acknowledged(id uint16) error {
	answer, err := s.wait(packetPuback)
	if err == nil && (len(answer) != 2 || binary.BigEndian.Uint16(answer) != id) {
		err = fmt.Errorf("PUBACK % x to %d", answer, id)
	}
	return err
}

// take waits for a message, acknowledges it and returns it.
func (s *session) take() (payload []byte, err error) {
	body, err := s.wait(packetPublish)
	if err != nil {
		return nil, err
	}
	if len(body) < 2 {
		return nil, io.ErrUnexpectedEOF
	}
	n := 2 + int(binary.BigEndian.Uint16(body))
	if len(body) < n+2 {
		return nil, errors.New("a message that is shorter than its topic, or not at QoS 1")
	}
	return body[n+2:], s.send(0x40, body[n:n+2])
}

func (s *session) close() { _ = s.conn.Close() }

// ask sends a packet and waits for its answer.
func (s *session) ask(first byte, body []byte, kind byte) ([]byte, error) {
	if err := s.send(first, body); err != nil {
		return nil, err
	}
	return s.wait(kind)
}

func (s *session) send(first byte, body []byte) error {
	return s.write(append(binary.AppendUvarint([]byte{first}, uint64(len(body))), body...))
}

func (s *session) write(packet []byte) error {
	if err := s.conn.SetWriteDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	_, err := s.conn.Write(packet)
	return err
}

// wait reads the next packet, which must be of this kind. Its body is at most 64 KiB.
func (s *session) wait(kind byte) ([]byte, error) {
	if err := s.conn.SetReadDeadline(time.Now().Add(within)); err != nil {
		return nil, err
	}
	first, err := s.in.ReadByte()
	if err != nil {
		return nil, err
	}
	n, err := binary.ReadUvarint(s.in) // the same encoding: seven bits a byte, lowest first
	if err != nil {
		return nil, err
	}
	if n > 64<<10 {
		return nil, fmt.Errorf("a packet of %d bytes", n)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(s.in, body); err != nil {
		return nil, err
	}
	if first>>4 != kind {
		return nil, fmt.Errorf("a packet of type %d where %d is due", first>>4, kind)
	}
	return body, nil
}

func text(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
}
