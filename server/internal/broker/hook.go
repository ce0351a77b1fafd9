package broker

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"bmsota/audit"
	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

// hook is where mochi asks.
type hook struct {
	mqtt.HookBase
	e *Embedded
}

func (h *hook) ID() string { return "bmsota" }

func (h *hook) Provides(b byte) bool {
	return bytes.IndexByte([]byte{mqtt.OnACLCheck, mqtt.OnPacketRead, mqtt.OnPacketProcessed, mqtt.OnPacketEncode, mqtt.OnPublish,
		mqtt.OnSubscribe, mqtt.OnSubscribed}, b) >= 0
}

func connOf(cl *mqtt.Client) *conn { return cl.Net.Conn.(*conn) }

// OnACLCheck is asked before a publish, a subscription and a delivery.
func (h *hook) OnACLCheck(cl *mqtt.Client, topic string, write bool) bool {
	c := connOf(cl)
	allowed := write && h.e.rights.publish(c.id, topic) || !write && h.e.rights.read(c.id, topic)
	if !allowed {
		h.e.count.denied.Add(1)
		if !c.denied.Swap(true) { // once for each connection
			h.e.note("topic refused", "name", c.id.Name, "role", string(c.id.Role), "topic", topic, "publish", write)
		}
		if topic != h.e.statusAll { // boards that are set to repeat their statuses there do no wrong
			h.e.knock(c, audit.AccessDenied, c.id.Name, "topic "+topic)
		}
		return false
	}
	if !write && c.id.Role == fleet.RoleDevice && cl.State.Inflight.Len() >= maxInflight {
		// It takes messages and acknowledges none. A new session gets what is retained.
		c.cut(packets.ErrQuotaExceeded)
		return false
	}
	return true
}

// OnPacketRead paces devices, and keeps packet ids apart. MQTT numbers the two directions separately, mochi has one
// table for both: a publish of a peer with the id of an unacknowledged message to it would delete that message, and a
// subscription with such an id would be refused. So the message to the peer steps aside while the packet is handled.
func (h *hook) OnPacketRead(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	c := connOf(cl)
	if !c.established {
		return pk, nil
	}
	if c.id.Role == fleet.RoleDevice {
		h.e.wait(c, c.packetRate.take(time.Now(), h.e.packetInterval, packetBurst, true))
	}
	switch pk.FixedHeader.Type {
	case packets.Publish, packets.Subscribe, packets.Unsubscribe:
		if out, ok := cl.State.Inflight.Get(pk.PacketID); ok && out.FixedHeader.Type == packets.Publish {
			c.held = onHeap(out)
			cl.State.Inflight.Delete(pk.PacketID)
		}
	}
	return pk, nil
}

// onHeap takes a copy where one is needed: a packet whose own address is kept is put on the heap by everyone who is given it, and
// has 816 bytes.
func onHeap(pk packets.Packet) *packets.Packet { return &pk }

// OnPacketProcessed undoes OnPacketRead's stepping aside and sends what is retained.
func (h *hook) OnPacketProcessed(cl *mqtt.Client, pk packets.Packet, err error) {
	c := connOf(cl)
	if c.held != nil {
		if _, used := cl.State.Inflight.Get(c.held.PacketID); !used {
			cl.State.Inflight.Set(*c.held)
		}
		c.held = nil
	}
	granted := c.snapshot
	c.snapshot = nil
	if err == nil && pk.FixedHeader.Type == packets.Subscribe {
		h.e.sendRetained(cl, granted)
	}
}

// OnPacketEncode tells a 5.0 client the largest packet.
func (h *hook) OnPacketEncode(_ *mqtt.Client, pk packets.Packet) packets.Packet {
	if pk.FixedHeader.Type == packets.Connack {
		pk.Properties.MaximumPacketSize = maxPacket
	}
	return pk
}

// OnSubscribe bounds subscriptions and grants what can be kept. An operator gets QoS 0: statuses are durable in the
// server, and the few messages that mochi keeps for one client until they are acknowledged would leave a watcher of many
// devices with gaps. So does a client whose Receive Maximum is below ours.
func (h *hook) OnSubscribe(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	c := connOf(cl)
	operator := c.id.Role == fleet.RoleOperator
	receive := cl.Properties.Props.ReceiveMaximum
	pk.Filters = slices.Clone(pk.Filters)
	known := make([]bool, len(pk.Filters))
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
	}
	c.wanted, c.known = slices.Clone(pk.Filters), known
	for i := range pk.Filters {
		pk.Filters[i].RetainHandling = 2 // sendRetained does it
	}
	return pk
}

// OnSubscribed notes what was granted; SUBACK goes out after it.
func (h *hook) OnSubscribed(cl *mqtt.Client, _ packets.Packet, codes []byte) {
	c := connOf(cl)
	for i, sub := range c.wanted {
		if i < len(codes) && codes[i] <= packets.CodeGrantedQos2.Code && !mqtt.IsSharedFilter(sub.Filter) &&
			(sub.RetainHandling == 0 || sub.RetainHandling == 1 && !c.known[i]) {
			c.snapshot = append(c.snapshot, sub)
		}
	}
	c.wanted, c.known = nil, nil
}

// OnPublish runs before the acknowledgement (Server.processPublish). Two answers are safe: CodeSuccessIgnore acknowledges,
// ErrRejectPacket does not. mochi would pass on what has any other; here a message waits in conn.passing until its
// acknowledgement is written.
func (h *hook) OnPublish(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	c := connOf(cl)
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
	e.keep(&pk)
	if e.heard(pk.TopicName) {
		c.passing = onHeap(pk)
	}
	return pk, packets.CodeSuccessIgnore
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
	e.keep(&pk)
	c.passing = &pk
	return pk, packets.CodeSuccessIgnore
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
