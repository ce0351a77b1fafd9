package broker

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"bmsota/server/internal/fleet"
)

// A session has no goroutine of mochi's. While its peer is silent, one small one waits in a read (await); when there is
// something, a worker takes the connection's turn (turn): it logs in, or handles packets until there is no more. mochi
// decodes, acknowledges, keeps subscriptions and encodes, through what it exports.

// await is all that there is of a session whose peer is silent. It must stay shallow: a goroutine's first stack is 2 KiB, of
// which a waiting read takes half, and one that has grown does not shrink below twice that.
func (e *Embedded) await(c *conn) {
	c.wire.await()
	e.workers.Give(c)
}

// readers are what packets are read through, for a turn each.
var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 4<<10) }}

var errPanic = errors.New("panic")

// turn handles what has come, until there is no more or the connection ends.
func (e *Embedded) turn(c *conn) {
	ended := errPanic // what stays when a panic skips the line that sets it
	defer func() {
		// mochi's decoders index past the end of some short packets. A panic ends the peer that caused it.
		if p := recover(); p != nil {
			e.count.panics.Add(1)
			e.log.Error("mqtt connection panicked", "panic", p, "peer", c.source, "stack", string(debug.Stack()))
		}
		if errors.Is(ended, errIdle) {
			go e.await(c)
			return
		}
		e.finish(c, ended)
	}()
	c.in = readers.Get().(*bufio.Reader)
	defer func() {
		c.in.Reset(nil)
		readers.Put(c.in)
		c.in = nil
	}()
	c.in.Reset(c.Conn)
	if !c.established {
		if ended = e.begin(c); ended != nil {
			return
		}
	}
	ended = e.packets(c)
}

// begin is the handshake and the login, with one deadline for both. What it returns has ended the connection.
func (e *Embedded) begin(c *conn) error {
	if err := c.SetDeadline(time.Now().Add(e.cfg.ConnectTimeout)); err != nil {
		return err
	}
	if c.conf != nil {
		secure := tls.Server(c.Conn, c.conf)
		if err := secure.Handshake(); err != nil { // ended by its deadline or by closing the wire; a context would cost a goroutine
			e.noteCertificate(c, err)
			return err
		}
		c.Conn, c.cert = secure, shown(secure.ConnectionState())
		c.in.Reset(c.Conn)
	}
	cl := e.srv.NewClient(c, "", "", false)
	c.client.Store(cl)
	first, err := c.in.ReadByte()
	if err != nil {
		return err
	}
	pk, err := c.packet(cl, first)
	if err != nil {
		return err
	}
	if pk.FixedHeader.Type != packets.Connect {
		return packets.ErrProtocolViolationRequireFirstConnect
	}
	cl.ParseConnect("", pk)
	cl.State.TopicAliases = e.aliases
	switch code := pk.ConnectValidate(); {
	case e.full() && pk.ProtocolVersion < 5:
		return e.refuse(cl, packets.ErrServerUnavailable)
	case e.full():
		return e.refuse(cl, packets.ErrServerBusy)
	case code != packets.CodeSuccess:
		return e.refuse(cl, code)
	case pk.ProtocolVersion < 5 && !pk.Connect.Clean && pk.Connect.ClientIdentifier == "":
		return e.refuse(cl, packets.ErrUnspecifiedError)
	}
	if err := e.admit(c, cl, pk); err != nil {
		return err
	}
	e.srv.Clients.Add(cl)
	if err := e.srv.SendConnack(cl, packets.CodeSuccess, false, nil); err != nil {
		return fmt.Errorf("answer login: %w", err)
	}
	c.established = true
	e.tellStart(c)
	c.alive(cl)
	return nil
}

// packets handles one after the other: errIdle when there is no more now, nil when the session was ended in order.
func (e *Embedded) packets(c *conn) error {
	cl := c.client.Load()
	for !cl.Closed() {
		c.wire.patient = false
		first, err := c.in.ReadByte()
		c.wire.patient = true
		if err != nil {
			return err
		}
		pk, err := c.packet(cl, first)
		if err != nil {
			return err
		}
		err = e.srv.InjectPacket(cl, pk)
		if pk := c.passing; pk != nil {
			c.passing = nil
			e.pass(pk)
		}
		if err != nil {
			if code, ok := errors.AsType[packets.Code](err); ok && cl.Properties.ProtocolVersion == 5 && code.Code >= packets.ErrUnspecifiedError.Code {
				_ = e.srv.DisconnectClient(cl, code)
			}
			return err
		}
		c.alive(cl)
	}
	return nil
}

// alive gives the peer a keepalive and a half for its next packet, all of it.
func (c *conn) alive(cl *mqtt.Client) {
	_ = c.SetDeadline(time.Now().Add(time.Duration(cl.State.Keepalive) * time.Second * 3 / 2))
}

// packet reads what follows the first byte of a packet.
func (c *conn) packet(cl *mqtt.Client, first byte) (pk packets.Packet, err error) {
	var fh packets.FixedHeader
	if err := fh.Decode(first); err != nil {
		return pk, err
	}
	if fh.Remaining, _, err = packets.DecodeLength(c.in); err != nil {
		return pk, err
	}
	if fh.Remaining >= maxPacket {
		return pk, packets.ErrPacketTooLarge
	}
	c.rest = fh.Remaining
	return cl.ReadPacket(&fh)
}

// Read is mochi's: the rest of one packet, and never a byte of the next.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.in.Read(p[:min(len(p), c.rest)])
	c.rest -= n
	return n, err
}

// full says whether there are as many sessions as there may be.
func (e *Embedded) full() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.live) >= e.cfg.MaxClients
}

// refuse answers CONNECT with code and ends the connection.
func (e *Embedded) refuse(cl *mqtt.Client, code packets.Code) error {
	if err := e.srv.SendConnack(cl, code, false, nil); err != nil {
		return fmt.Errorf("refuse login: %w", err)
	}
	return code
}

// finish puts away what is left of a connection: the will, the session in mochi, the places it took.
func (e *Embedded) finish(c *conn, ended error) {
	defer e.handlers.Done()
	cl := c.client.Load()
	if cl != nil {
		cl.Stop(ended)
	} else {
		_ = c.Close()
	}
	c.cut(ErrClosed)
	c.wire.join()
	if c.release != nil {
		c.release()
	}
	if cl != nil {
		if left, ok := e.srv.Clients.Get(cl.ID); ok && left == cl {
			cl.ClearInflights()
			e.srv.UnsubscribeClient(cl)
			e.srv.Clients.Delete(cl.ID)
		}
	}
	if c.established {
		if ended != nil && c.will != nil && !c.noWill.Load() {
			e.publishWill(c)
		}
		e.tellEnd(c)
	} else if ban := e.bans.strike(c.source, time.Now()); ban > 0 {
		e.log.Warn("address is kept out: too many connections without a login", "peer", c.source, "for", ban)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if c.done != nil {
		close(c.done)
	}
	delete(e.conns, c)
	if c.peer != nil {
		c.peer.sessions = slices.DeleteFunc(c.peer.sessions, func(o *conn) bool { return o == c })
	}
	if c.session != "" && e.live[c.session] == c {
		delete(e.live, c.session)
	}
}

// tellStart and tellEnd keep the Handler's view of a device in step with its sessions.
func (e *Embedded) tellStart(c *conn) {
	c.peer.mu.Lock()
	defer c.peer.mu.Unlock()
	if c.peer.online++; c.peer.online > 1 || c.id.Role != fleet.RoleDevice {
		return
	}
	ctx, cancel := e.call()
	defer cancel()
	if err := e.cfg.Handler.Connected(ctx, c.id.Name); err != nil {
		e.noteErr("mqtt connect not recorded", err, "device", c.id.Name)
	}
}

func (e *Embedded) tellEnd(c *conn) {
	c.peer.mu.Lock()
	defer c.peer.mu.Unlock()
	if c.peer.online--; c.peer.online > 0 || c.id.Role != fleet.RoleDevice {
		return
	}
	ctx, cancel := e.call()
	defer cancel()
	if err := e.cfg.Handler.Disconnected(ctx, c.id.Name); err != nil {
		e.noteErr("mqtt disconnect not recorded", err, "device", c.id.Name)
	}
}
