package broker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"bmsota/audit"
	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

// hook is where mochi asks. A client without a *conn is the broker itself and may do everything.
type hook struct {
	mqtt.HookBase
	e *Embedded
}

func (h *hook) ID() string { return "bmsota" }

func (h *hook) Provides(b byte) bool {
	return bytes.IndexByte([]byte{mqtt.OnConnect, mqtt.OnConnectAuthenticate, mqtt.OnSessionEstablished, mqtt.OnACLCheck,
		mqtt.OnPacketRead, mqtt.OnPacketProcessed, mqtt.OnPacketEncode, mqtt.OnPublish, mqtt.OnPublishDropped,
		mqtt.OnSubscribe, mqtt.OnSubscribed}, b) >= 0
}

func connOf(cl *mqtt.Client) *conn {
	c, _ := cl.Net.Conn.(*conn)
	return c
}

// OnConnect is the login. It comes after mochi has checked the form of CONNECT and before a session is looked up by
// its id. mochi sends no CONNACK when it returns an error, and "not authorised" when OnConnectAuthenticate says no.
func (h *hook) OnConnect(cl *mqtt.Client, pk packets.Packet) error {
	c, e := connOf(cl), h.e
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
			return nil
		}
		// Not "wrong password": a device must not take a fault of ours for a fault of its own.
		e.noteErr("mqtt login not possible", err, "peer", c.source)
		return h.refuse(cl, packets.ErrServerUnavailable)
	}
	if err := e.checkWill(id, pk); err != nil {
		e.count.refused.Add(1)
		e.noteErr("mqtt login refused", err, "peer", c.source, "name", id.Name)
		e.knock(c, audit.AccessDenied, id.Name, "will to "+pk.Connect.WillTopic)
		return nil
	}
	// The identity is part of the session id, so a client identifier can only ever meet its own kind.
	cl.ID = string(id.Role) + "/" + id.Name + "/" + cl.ID
	if !e.claim(c, cl, id, cl.ID) {
		return h.refuse(cl, packets.ErrServerUnavailable)
	}
	if e.dropCount() != drops {
		// Somebody was dropped between the check and the claim. If it was this one, the check now says so; if it is
		// dropped from here on, Drop finds the session.
		if _, err := e.authenticate(c, pk); err != nil {
			return h.refuse(cl, packets.ErrServerUnavailable)
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
	// mochi computes the deadline in 16 bits and takes 0 for "none".
	asked := time.Duration(pk.Connect.Keepalive) * time.Second
	granted := min(max(asked, minKeepalive), maxKeepalive)
	if asked == 0 {
		granted = maxKeepalive
	}
	cl.State.Keepalive = uint16(granted / time.Second)
	cl.State.ServerKeepalive = granted != asked

	cl.Properties.Clean = true // for 3.1.1; 5.0 is told in CONNACK that a session expires at once
	cl.Properties.Props.TopicAliasMaximum = 0
	// mochi's send quota is lost when packet ids of both directions meet, and what refills it locks a lock twice
	// (Inflight.NextImmediate). Zero switches it off; OnSubscribe keeps a client's Receive Maximum in another way.
	cl.State.Inflight.ResetSendQuota(0)
	c.release()
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

// refuse answers CONNECT with code and ends the connection.
func (h *hook) refuse(cl *mqtt.Client, code packets.Code) error {
	if err := h.e.srv.SendConnack(cl, code, false, nil); err != nil {
		return fmt.Errorf("refuse login: %w", err)
	}
	return code
}

// OnConnectAuthenticate says whether OnConnect found somebody.
func (h *hook) OnConnectAuthenticate(cl *mqtt.Client, _ packets.Packet) bool {
	return connOf(cl).session != ""
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
func (e *Embedded) claim(c *conn, cl *mqtt.Client, id fleet.Identity, session string) bool {
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
			p = &peer{sessions: make(map[*conn]struct{})}
			e.peers[id] = p
		}
		old := e.live[session]
		if old == nil && len(p.sessions) >= limit {
			old = slices.MinFunc(slices.Collect(maps.Keys(p.sessions)), func(a, b *conn) int { return a.since.Compare(b.since) })
		}
		if old == nil {
			c.id, c.session, c.peer, c.since = id, session, p, time.Now()
			c.client.Store(cl)
			beside := ""
			for other := range p.sessions {
				if other.source != c.source {
					beside = other.source
				}
			}
			p.sessions[c] = struct{}{}
			e.live[session] = c
			e.mu.Unlock()
			if beside != "" {
				e.met(p, id, "", beside, c.source)
			}
			return true
		}
		e.mu.Unlock()
		old.noWill.Store(true)
		if old.cut(packets.ErrSessionTakenOver) {
			e.count.takeovers.Add(1)
			e.note("session taken over", "name", id.Name, "session", old.session, "from", old.source, "by", c.source)
			e.met(p, id, old.session, old.source, c.source)
		}
		select {
		case <-old.done:
		case <-patience.C:
			return false
		case <-c.gone:
			return false
		}
	}
}

// OnSessionEstablished comes after CONNACK and before the first packet.
func (h *hook) OnSessionEstablished(cl *mqtt.Client, _ packets.Packet) {
	c := connOf(cl)
	c.established = true
	h.e.tellStart(c)
}

// OnACLCheck is asked before a publish, a subscription and a delivery.
func (h *hook) OnACLCheck(cl *mqtt.Client, topic string, write bool) bool {
	c := connOf(cl)
	if c == nil {
		return true
	}
	allowed := write && h.e.rights.publish(c.id, topic) || !write && h.e.rights.read(c.id, topic)
	if !allowed {
		h.e.count.denied.Add(1)
		if !c.denied.Swap(true) { // once for each connection
			h.e.note("topic refused", "name", c.id.Name, "role", string(c.id.Role), "topic", topic, "publish", write)
		}
		if topic != h.e.cfg.Topics.StatusAll() { // boards that are set to repeat their statuses there do no wrong
			h.e.knock(c, audit.AccessDenied, c.id.Name, "topic "+topic)
		}
		return false
	}
	if !write && c.id.Role == fleet.RoleDevice && cl.State.Inflight.Len() >= maxInflight {
		// It takes messages and acknowledges none. mochi would drop every further command in silence; a new session
		// gets what is retained.
		c.cut(packets.ErrQuotaExceeded)
		return false
	}
	if !write && c.id.Role == fleet.RoleOperator && !c.subscribing.Load() {
		c.room()
	}
	return true
}

// OnPacketRead paces devices, and keeps packet ids apart. MQTT numbers the two directions separately, mochi has one
// table for both: a publish of a peer with the id of an unacknowledged message to it would delete that message, and a
// subscription with such an id would be refused. So the message to the peer steps aside while the packet is handled.
func (h *hook) OnPacketRead(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	c := connOf(cl)
	if c == nil || !c.established {
		return pk, nil
	}
	if c.id.Role == fleet.RoleDevice {
		h.e.wait(c, c.packetRate.take(time.Now(), h.e.packetInterval, packetBurst, true))
	}
	switch pk.FixedHeader.Type {
	case packets.Publish, packets.Subscribe, packets.Unsubscribe:
		if out, ok := cl.State.Inflight.Get(pk.PacketID); ok && out.FixedHeader.Type == packets.Publish {
			c.held = &out
			cl.State.Inflight.Delete(pk.PacketID)
		}
	}
	return pk, nil
}

// OnPacketProcessed undoes OnPacketRead's stepping aside and sends an operator what is retained.
func (h *hook) OnPacketProcessed(cl *mqtt.Client, pk packets.Packet, err error) {
	c := connOf(cl)
	if c == nil {
		return
	}
	if c.held != nil {
		if _, used := cl.State.Inflight.Get(c.held.PacketID); !used {
			cl.State.Inflight.Set(*c.held)
		}
		c.held = nil
	}
	c.subscribing.Store(false)
	granted := c.snapshot
	c.snapshot = nil
	if err == nil && pk.FixedHeader.Type == packets.Subscribe {
		h.sendRetained(cl, granted)
	}
}

// OnPacketEncode tells a 5.0 client the largest packet. A message to an operator has left mochi's queue: see conn.room.
func (h *hook) OnPacketEncode(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	switch pk.FixedHeader.Type {
	case packets.Connack:
		pk.Properties.MaximumPacketSize = maxPacket
	case packets.Publish:
		if c := connOf(cl); c != nil && c.id.Role == fleet.RoleOperator {
			c.left()
		}
	}
	return pk
}

// OnSubscribe bounds subscriptions and grants what can be kept. An operator gets QoS 0: statuses are durable in the
// server, and the few messages that mochi keeps for one client until they are acknowledged would leave a watcher of many
// devices with gaps. So does a client whose Receive Maximum is below ours.
func (h *hook) OnSubscribe(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	c := connOf(cl)
	if c == nil {
		return pk
	}
	operator := c.id.Role == fleet.RoleOperator
	receive := cl.Properties.Props.ReceiveMaximum
	pk.Filters = slices.Clone(pk.Filters)
	known := make([]bool, len(pk.Filters))
	if operator {
		c.subscribing.Store(true)
		c.wanted, c.known = slices.Clone(pk.Filters), known
	}
	room := maxSubscriptions - len(cl.State.Subscriptions.GetAll())
	for i := range pk.Filters {
		sub := &pk.Filters[i]
		if _, known[i] = cl.State.Subscriptions.Get(sub.Filter); !known[i] {
			if room--; room < 0 {
				sub.Filter = "" // is refused as a malformed one
				continue
			}
		}
		if operator || receive > 0 && receive < maxInflight {
			sub.Qos = 0
		}
		if operator {
			sub.RetainHandling = 2 // sendRetained does it
		}
	}
	return pk
}

// OnSubscribed notes what an operator was granted; SUBACK goes out after it.
func (h *hook) OnSubscribed(cl *mqtt.Client, _ packets.Packet, codes []byte) {
	c := connOf(cl)
	if c == nil || c.id.Role != fleet.RoleOperator {
		return
	}
	for i, sub := range c.wanted {
		if i < len(codes) && codes[i] <= packets.CodeGrantedQos2.Code && !mqtt.IsSharedFilter(sub.Filter) &&
			(sub.RetainHandling == 0 || sub.RetainHandling == 1 && !c.known[i]) {
			c.snapshot = append(c.snapshot, sub)
		}
	}
}

// sendRetained writes the retained messages of a large fleet at the speed of the reader; mochi would put them into a
// queue and lose what does not fit. Each message is looked up when its turn comes, so that it is not older than what
// was published in between.
func (h *hook) sendRetained(cl *mqtt.Client, granted []packets.Subscription) {
	topics, c := h.e.srv.Topics, connOf(cl)
	shared := h.e.cfg.Topics.StatusAll()
	for _, sub := range granted {
		filter := sub.Filter
		if filter == shared {
			// Nothing is retained there. The original tool is told what it would have been told: see repeat.
			filter = h.e.cfg.Topics.Status("+")
		}
		for _, found := range topics.Messages(filter) {
			pk, ok := topics.Retained.Get(found.TopicName)
			if !ok || !h.e.rights.read(c.id, found.TopicName) {
				continue
			}
			out := pk.Copy(false)
			if filter != sub.Filter {
				out.TopicName = shared
			}
			out.FixedHeader.Qos, out.FixedHeader.Dup, out.FixedHeader.Retain, out.PacketID = 0, false, true, 0
			if sub.Identifier > 0 {
				out.Properties.SubscriptionIdentifier = []int{sub.Identifier}
			}
			if !c.written(maxWaitingOperator/4, maxKeepalive) {
				return
			}
			c.queued.Add(1)
			if cl.WritePacket(out) != nil {
				return
			}
		}
	}
}

// OnPublishDropped: the queue of a reader is full. It is cut rather than left with a gap that it cannot see; when it
// comes back it gets what is retained.
func (h *hook) OnPublishDropped(cl *mqtt.Client, _ packets.Packet) {
	if c := connOf(cl); c != nil {
		h.e.note("reader too slow", "name", c.id.Name)
		c.cut(packets.ErrQuotaExceeded)
	}
}

// OnPublish runs before the acknowledgement (Server.processPublish). Three answers are safe: nil acknowledges and
// passes on, CodeSuccessIgnore acknowledges and passes nothing on, ErrRejectPacket does neither. Any other error passes
// the message on for a 3.1.1 client and must not be returned for one.
func (h *hook) OnPublish(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	c := connOf(cl)
	if c == nil {
		return pk, nil
	}
	if c.isCut() {
		return pk, packets.ErrRejectPacket
	}
	kind, device := h.e.cfg.Topics.Parse(pk.TopicName)
	switch {
	case !h.e.rights.publish(c.id, pk.TopicName):
		return pk, packets.CodeSuccessIgnore
	case kind == protocol.KindStatus:
		return h.status(c, pk, device == "")
	}
	return h.command(cl, c, pk, device)
}

func (h *hook) status(c *conn, pk packets.Packet, shared bool) (packets.Packet, error) {
	e := h.e
	reliable := pk.FixedHeader.Qos > 0
	wait := c.peer.statuses.take(time.Now(), time.Second/time.Duration(e.cfg.StatusRate), e.cfg.StatusBurst, reliable)
	if wait > 0 && !reliable {
		e.count.dropped.Add(1)
		return pk, packets.CodeSuccessIgnore
	}
	if !e.wait(c, wait) {
		return pk, packets.ErrRejectPacket
	}
	ctx, cancel := e.call()
	defer cancel()
	err := e.cfg.Handler.Fold(ctx, c.id.Name, shared, pk.Payload)
	switch judgeStatus(err, pk.Payload) {
	case dropped:
		e.count.dropped.Add(1)
		e.noteErr("status dropped", err, "device", c.id.Name)
		return pk, packets.CodeSuccessIgnore
	case again:
		e.count.unstored.Add(1)
		e.noteErr("status not stored", err, "device", c.id.Name)
		if reliable {
			// MQTT sends again on a new connection only (3.1.1 §4.4), so this one ends.
			c.cut(packets.ErrServerUnavailable)
		}
		return pk, packets.ErrRejectPacket
	}
	if shared {
		pk.FixedHeader.Retain = false // it says nothing about whose it is
	} else {
		e.repeat(pk.Payload)
	}
	pk.Expiry, pk.Properties.MessageExpiryInterval = 0, 0 // the last status stays
	return pk, nil
}

func (h *hook) command(cl *mqtt.Client, c *conn, pk packets.Packet, device string) (packets.Packet, error) {
	e := h.e
	payload, err := order(e.call, e.cfg.Handler, c.id, device, pk.FixedHeader.Retain, pk.Payload)
	switch judgeCommand(err, pk.Payload) {
	case kept:
		return pk, packets.CodeSuccessIgnore
	case dropped:
		e.noteErr("command refused", err, "operator", c.id.Name, "device", device)
		if cl.Properties.ProtocolVersion == 5 && pk.FixedHeader.Qos == 1 {
			return pk, packets.ErrImplementationSpecificError // a PUBACK that says no; 3.1.1 has none
		}
		return pk, packets.CodeSuccessIgnore
	case again:
		e.noteErr("command not stored", err, "operator", c.id.Name, "device", device)
		if pk.FixedHeader.Qos > 0 {
			c.cut(packets.ErrServerUnavailable)
		}
		return pk, packets.ErrRejectPacket
	}
	pk.Payload = payload
	return pk, nil
}

// order hands an operator's command to the Handler. A rollback retained for everyone would meet every device that is
// ever added, so it is refused whatever the Handler thinks.
func order(call func() (context.Context, context.CancelFunc), h Handler, by fleet.Identity, device string, retained bool, payload []byte) ([]byte, error) {
	if !retained || len(payload) > 0 { // an empty retained payload takes the retained command away
		cmd, err := protocol.ParseCommand(payload)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", fleet.ErrInvalid, err)
		}
		if retained && device == "" && cmd.Action == protocol.ActionRollback {
			return nil, fmt.Errorf("%w: a rollback for everyone is not retained", fleet.ErrRefused)
		}
	}
	ctx, cancel := call()
	defer cancel()
	out, err := h.Order(ctx, by, device, retained, payload)
	if err == nil && len(out) > protocol.MaxCommand {
		return nil, fmt.Errorf("%w: the command grew to %d bytes", fleet.ErrInvalid, len(out))
	}
	return out, err
}

// wait holds a peer back; false when its connection ended meanwhile.
func (e *Embedded) wait(c *conn, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-c.gone:
		return false
	case <-e.work.Done():
		return false
	}
}
