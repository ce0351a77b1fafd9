package broker

import (
	"errors"
	"fmt"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"bmsota/audit"
	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

// admit is the login, once the form of CONNECT has been checked. A peer that may not in has been told so when it returns.
func (e *Embedded) admit(c *conn, cl *mqtt.Client, pk packets.Packet) error {
	drops := e.dropCount()
	id, err := e.authenticate(c, pk)
	if err != nil {
		if errors.Is(err, fleet.ErrDenied) {
			e.count.refused.Add(1)
			name, about := string(pk.Connect.Username), ""
			if c.cert != nil {
				name, about = c.cert.name, "certificate"
			}
			e.noteErr("mqtt login refused", err, "peer", c.source) // without the name: see fleet.Knock
			e.knock(c, audit.LoginFailed, name, about)
			return e.refuse(cl, packets.ErrBadUsernameOrPassword)
		}
		// Not "wrong password": a device must not take a fault of ours for a fault of its own.
		e.noteErr("mqtt login not possible", err, "peer", c.source)
		return e.refuse(cl, packets.ErrServerUnavailable)
	}
	if err := e.checkWill(id, pk); err != nil {
		e.count.refused.Add(1)
		e.noteErr("mqtt login refused", err, "peer", c.source, "name", id.Name)
		e.knock(c, audit.AccessDenied, id.Name, "will to "+pk.Connect.WillTopic)
		return e.refuse(cl, packets.ErrBadUsernameOrPassword)
	}
	// The identity is part of the session id, so a client identifier can only ever meet its own kind.
	cl.ID = string(id.Role) + "/" + id.Name + "/" + cl.ID
	if !e.claim(c, id, cl.ID) {
		return e.refuse(cl, packets.ErrServerUnavailable)
	}
	if e.dropCount() != drops {
		// Somebody was dropped between the check and the claim. If it was this one, the check now says so; if it is
		// dropped from here on, Drop finds the session.
		if _, err := e.authenticate(c, pk); err != nil {
			return e.refuse(cl, packets.ErrServerUnavailable)
		}
	}
	if pk.Connect.WillFlag {
		c.will = &packets.Packet{
			FixedHeader: packets.FixedHeader{Qos: pk.Connect.WillQos, Retain: pk.Connect.WillRetain},
			TopicName:   pk.Connect.WillTopic,
			Payload:     pk.Connect.WillPayload,
		}
		cl.Properties.Will = mqtt.Will{}
	}
	asked := time.Duration(pk.Connect.Keepalive) * time.Second
	granted := min(max(asked, minKeepalive), maxKeepalive)
	if asked == 0 {
		granted = maxKeepalive
	}
	cl.State.Keepalive = uint16(granted / time.Second)
	cl.State.ServerKeepalive = granted != asked

	cl.Properties.Username = nil // it would keep all of CONNECT in memory, password included
	cl.Properties.Clean = true   // for 3.1.1; 5.0 is told in CONNACK that a session expires at once
	cl.Properties.Props.TopicAliasMaximum = 0
	// mochi's send quota is lost when packet ids of both directions meet, and what refills it locks a lock twice
	// (Inflight.NextImmediate). Zero switches it off; OnSubscribe keeps a client's Receive Maximum in another way.
	cl.State.Inflight.ResetSendQuota(0)
	c.release()
	c.release = nil
	if id.Role == fleet.RoleOperator {
		e.knock(c, audit.LoginOK, id.Name, "") // a device that comes is seen, not noted
	}
	return nil
}

// knock tells whoever keeps the audit log about a peer.
func (e *Embedded) knock(c *conn, what audit.Action, name, about string) {
	if e.cfg.TurnedAway != nil {
		e.cfg.TurnedAway(fleet.Knock{What: what, Name: name, Via: fleet.ViaMQTT, Address: c.source, About: about})
	}
}

// authenticate asks the Handler, but not about what no account can be.
func (e *Embedded) authenticate(c *conn, pk packets.Packet) (fleet.Identity, error) {
	con := pk.Connect
	switch {
	case len(con.Username) > maxName || len(con.Password) > maxSecret, c.cert == nil && (len(con.Username) == 0 || len(con.Password) == 0):
		return fleet.Identity{}, fmt.Errorf("%w: no user name and password of usual length", fleet.ErrDenied)
	case len(con.ClientIdentifier) > maxName:
		return fleet.Identity{}, fmt.Errorf("%w: client identifier longer than %d bytes", fleet.ErrDenied, maxName)
	case pk.Properties.AuthenticationMethod != "":
		return fleet.Identity{}, fmt.Errorf("%w: authentication method is not offered", fleet.ErrDenied)
	}
	id, err := e.login(c, con)
	switch {
	case err != nil:
		return fleet.Identity{}, err
	case id.Role == fleet.RoleDevice && protocol.CheckDeviceID(id.Name) == nil, id.Role == fleet.RoleOperator && id.Name != "":
		return id, nil
	}
	return fleet.Identity{}, fmt.Errorf("%w: %q has no role here", fleet.ErrDenied, id.Name)
}

func (e *Embedded) login(c *conn, con packets.ConnectParams) (fleet.Identity, error) {
	if c.cert != nil {
		return e.byCertificate(c.cert, con)
	}
	ctx, cancel := e.call()
	defer cancel()
	return e.cfg.Handler.Authenticate(ctx, string(con.Username), string(con.Password))
}

// checkWill: a will is a publish that nobody is there to answer for, so it has the rights of its device and an operator
// has none.
func (e *Embedded) checkWill(id fleet.Identity, pk packets.Packet) error {
	if pk.Connect.WillFlag && (id.Role != fleet.RoleDevice || !e.rights.publish(id, pk.Connect.WillTopic)) {
		return fmt.Errorf("will to %q is not allowed", pk.Connect.WillTopic)
	}
	return nil
}

func (e *Embedded) dropCount() uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.drops
}

// claim makes c the holder of a session id. The holder before it, of the same identity, is ended first, and completely:
// mochi deletes the new session when the old one ends late. An identity with too many sessions loses its oldest.
func (e *Embedded) claim(c *conn, id fleet.Identity, session string) bool {
	limit := maxSessions
	if id.Role == fleet.RoleOperator {
		limit = maxOperator
	}
	patience := time.NewTimer(e.cfg.HandlerTimeout)
	defer patience.Stop()
	for {
		e.mu.Lock()
		if e.closed {
			e.mu.Unlock()
			return false
		}
		p := e.peers[id]
		if p == nil {
			p = new(peer)
			e.peers[id] = p
		}
		old := e.live[session]
		if old == nil && len(p.sessions) >= limit {
			old = p.sessions[0]
		}
		if old == nil {
			c.id, c.session, c.peer = id, session, p
			if id.Role == fleet.RoleOperator {
				c.wire.limit = maxWaitingOperator
			}
			beside := ""
			for _, other := range p.sessions {
				if other.source != c.source {
					beside = other.source
				}
			}
			p.sessions = append(p.sessions, c)
			e.live[session] = c
			e.mu.Unlock()
			if beside != "" {
				e.met(p, id, "", beside, c.source)
			}
			return true
		}
		if old.done == nil {
			old.done = make(chan struct{})
		}
		done := old.done
		e.mu.Unlock()
		old.noWill.Store(true)
		if old.cut(packets.ErrSessionTakenOver) {
			e.count.takeovers.Add(1)
			e.note("session taken over", "name", id.Name, "session", old.session, "from", old.source, "by", c.source)
			e.met(p, id, old.session, old.source, c.source)
		}
		select {
		case <-done:
		case <-patience.C:
			return false
		case <-c.gone:
			return false
		}
	}
}
