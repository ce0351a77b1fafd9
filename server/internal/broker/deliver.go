package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"bmsota/protocol"
)

// mochi would put what it passes on into a queue of each reader, for a goroutine of each reader. Here whoever publishes writes
// to all of them: see wire.Write, which makes nobody wait.

// keep retains a message, where it asks for that.
func (e *Embedded) keep(pk *packets.Packet) {
	if pk.FixedHeader.Retain {
		e.srv.Topics.RetainMessage(pk.Copy(false))
	}
}

// heard says whether anybody reads a topic now.
func (e *Embedded) heard(topic string) bool {
	readers := e.srv.Topics.Subscribers(topic)
	return len(readers.Subscriptions)+len(readers.Shared) > 0
}

// pass hands a message to its readers.
func (e *Embedded) pass(pk *packets.Packet) {
	readers := e.srv.Topics.Subscribers(pk.TopicName)
	if len(readers.Shared) > 0 {
		readers.SelectShared()
		readers.MergeSharedSelected()
	}
	for id, sub := range readers.Subscriptions {
		if cl, ok := e.srv.Clients.Get(id); ok {
			e.deliver(cl, sub, pk, sub.RetainAsPublished && pk.FixedHeader.Retain)
		}
	}
}

// deliver writes a message to one reader, marked as retained or not, and says whether the reader can be written to. At QoS 1
// and 2 mochi keeps it until it is acknowledged.
func (e *Embedded) deliver(cl *mqtt.Client, sub packets.Subscription, pk *packets.Packet, retained bool) bool {
	if sub.NoLocal && pk.Origin == cl.ID || !e.hook.OnACLCheck(cl, pk.TopicName, false) {
		return true
	}
	out := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: min(pk.FixedHeader.Qos, sub.Qos), Retain: retained},
		TopicName:   pk.TopicName, Payload: pk.Payload, Properties: pk.Properties,
		Origin: pk.Origin, Created: pk.Created, Expiry: pk.Expiry,
	}
	if cl.Properties.ProtocolVersion == 5 {
		out.Properties = pk.Properties.Copy(false)
		for _, id := range sub.Identifiers {
			out.Properties.SubscriptionIdentifier = append(out.Properties.SubscriptionIdentifier, id)
		}
		slices.Sort(out.Properties.SubscriptionIdentifier)
	}
	if out.FixedHeader.Qos > 0 {
		id, err := cl.NextPacketID()
		if err != nil {
			return true
		}
		out.PacketID = uint16(id)
		cl.State.Inflight.Set(out)
	}
	if err := cl.WritePacket(out); err != nil {
		cl.State.Inflight.Delete(out.PacketID)
		if c := connOf(cl); errors.Is(err, errSlow) && c.cut(packets.ErrQuotaExceeded) {
			// Rather than left with a gap that it cannot see; when it comes back it gets what is retained.
			e.note("reader too slow", "name", c.id.Name)
		}
		return errors.Is(err, packets.ErrPacketTooLarge) // by the reader's own word
	}
	return true
}

// say publishes a message of the server's.
func (e *Embedded) say(topic string, payload []byte, retain bool, qos byte) {
	pk := &packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: qos, Retain: retain},
		TopicName:   topic, Payload: payload, Created: time.Now().Unix(),
	}
	e.keep(pk)
	e.pass(pk)
}

func (e *Embedded) publish(ctx context.Context, device string, payload []byte, retain bool) error {
	if err := protocol.CheckDeviceID(device); err != nil {
		return fmt.Errorf("send command: %w", err)
	}
	e.mu.Lock()
	closed := e.closed
	e.mu.Unlock()
	if closed {
		return fmt.Errorf("send to %s: %w", device, ErrClosed)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("send to %s: %w", device, err)
	}
	e.say(e.cfg.Topics.Command(device), payload, retain, 1)
	return nil
}

// publishWill folds a device's will as the status it is and, when that holds, passes it on. mochi would publish it
// without asking anyone.
func (e *Embedded) publishWill(c *conn) {
	will := c.will
	_, device := e.cfg.Topics.Parse(will.TopicName)
	ctx, cancel := e.call()
	defer cancel()
	if err := e.cfg.Handler.Fold(ctx, c.id.Name, device == "", will.Payload); err != nil {
		e.noteErr("will not taken", err, "device", c.id.Name)
		return
	}
	e.say(will.TopicName, will.Payload, will.FixedHeader.Retain && device != "", will.FixedHeader.Qos)
	if device != "" {
		e.repeat(will.Payload)
	}
}

// repeat publishes a device's status on the shared topic as well, while somebody listens to just that: the original tool
// knows no other. Its readers are asked for first, because a repetition for nobody would double the work of every status.
func (e *Embedded) repeat(payload []byte) {
	topic := e.statusAll
	for _, sub := range e.srv.Topics.Subscribers(topic).Subscriptions {
		if sub.Filter == topic {
			e.say(topic, payload, false, 0)
			return
		}
	}
}

// sendRetained writes what is retained to a session that has subscribed, at the speed of the reader: it may be a message of
// each device of a large fleet. Each message is looked up when its turn comes, so that it is not older than what was published
// in between.
func (e *Embedded) sendRetained(cl *mqtt.Client, granted []packets.Subscription) {
	topics, c := e.srv.Topics, connOf(cl)
	shared := e.statusAll
	for _, sub := range granted {
		filter := sub.Filter
		if filter == shared {
			// Nothing is retained there. The original tool is told what it would have been told: see repeat.
			filter = e.cfg.Topics.Status("+")
		}
		if sub.Identifier > 0 {
			sub.Identifiers = map[string]int{sub.Filter: sub.Identifier}
		}
		for _, found := range topics.Messages(filter) {
			pk, ok := topics.Retained.Get(found.TopicName)
			if !ok || !e.rights.read(c.id, found.TopicName) {
				continue
			}
			if filter != sub.Filter {
				pk.TopicName = shared
			}
			if !c.wire.written(maxWaitingOperator/4, maxKeepalive) || !e.deliver(cl, sub, &pk, true) {
				return
			}
		}
	}
}
