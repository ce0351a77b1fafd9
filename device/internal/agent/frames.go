package agent

import (
	"encoding/binary"
	"errors"
	"io"
	"net"

	"bmsota/protocol"
)

// maxCommandKept is how much of a command reaches the parser: one byte more than is allowed, so that it can tell.
const maxCommandKept = protocol.MaxCommand + 1

// maxPacket is the largest packet other than PUBLISH that a broker may send; those a client gets have a few bytes.
const maxPacket = 1024

const maxTopic = 256

var errFrame = errors.New("mqtt: packet from the broker is malformed or too large")

// frameGuard stands between the network and the MQTT client, which allocates whatever length a packet announces, up to
// 256 MiB. It passes packets on as they are, but shortens the payload of a PUBLISH to maxCommandKept bytes and drops
// the rest as it arrives. So an oversize command is refused with its reason instead of costing the heap, and a
// retained one does not throw every board off the broker at each connect.
type frameGuard struct {
	net.Conn
	head [2 + maxTopic + 2 + 5]byte // what is to be handed out before the body
	out  []byte                     // rest of head
	pass int64                      // body bytes to hand out
	drop int64                      // then body bytes to throw away
}

func newFrameGuard(c net.Conn) net.Conn { return &frameGuard{Conn: c} }

func (g *frameGuard) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(g.out) == 0 && g.pass == 0 {
		if err := g.discard(); err != nil {
			return 0, err
		}
		if err := g.packet(); err != nil {
			return 0, err
		}
	}
	if len(g.out) > 0 {
		n := copy(p, g.out)
		g.out = g.out[n:]
		return n, nil
	}
	n, err := g.Conn.Read(p[:min(int64(len(p)), g.pass)])
	g.pass -= int64(n)
	return n, err
}

func (g *frameGuard) discard() error {
	if g.drop == 0 {
		return nil
	}
	n, err := io.CopyN(io.Discard, g.Conn, g.drop)
	g.drop -= n
	return err
}

// packet reads the next fixed header, and of a PUBLISH also what precedes the payload.
func (g *frameGuard) packet() error {
	var b [1]byte
	if _, err := io.ReadFull(g.Conn, b[:]); err != nil {
		return err
	}
	first := b[0]
	var length int64
	for i := 0; ; i++ {
		if i == 4 { // MQTT 3.1.1 §2.2.3: at most four bytes
			return errFrame
		}
		if _, err := io.ReadFull(g.Conn, b[:]); err != nil {
			return unexpected(err)
		}
		length |= int64(b[0]&0x7F) << (7 * i)
		if b[0] < 0x80 {
			break
		}
	}
	const publish = 3
	if first>>4 != publish {
		if length > maxPacket {
			return errFrame
		}
		g.out, g.pass = appendFixed(g.head[:0], first, length), length
		return nil
	}
	// Topic, and with QoS 1 or 2 a packet id.
	var vh [2 + maxTopic + 2]byte
	if length < 2 {
		return errFrame
	}
	if _, err := io.ReadFull(g.Conn, vh[:2]); err != nil {
		return unexpected(err)
	}
	topic := int(binary.BigEndian.Uint16(vh[:2]))
	size := 2 + topic
	if first&0x06 != 0 {
		size += 2
	}
	if topic > maxTopic || int64(size) > length {
		return errFrame
	}
	if _, err := io.ReadFull(g.Conn, vh[2:size]); err != nil {
		return unexpected(err)
	}
	payload := length - int64(size)
	g.pass = min(payload, maxCommandKept)
	g.drop = payload - g.pass
	g.out = append(appendFixed(g.head[:0], first, int64(size)+g.pass), vh[:size]...)
	return nil
}

func appendFixed(dst []byte, first byte, length int64) []byte {
	dst = append(dst, first)
	for length >= 0x80 {
		dst = append(dst, byte(length)|0x80)
		length >>= 7
	}
	return append(dst, byte(length))
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
