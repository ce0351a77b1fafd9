package broker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

const myStatus = "bms/ota/status/d1"

// TestAcknowledgementWaitsForTheFold: no PUBACK or PUBREC while Fold is under way, one as soon as it has returned.
func TestAcknowledgementWaitsForTheFold(t *testing.T) {
	for qos, ack := range map[byte]byte{1: packets.Puback, 2: packets.Pubrec} {
		synctest.Test(t, func(t *testing.T) {
			f := newFleet("d1")
			inFold, goOn := make(chan struct{}), make(chan struct{})
			f.onFold = func(string, []byte) error {
				close(inFold)
				<-goOn
				return nil
			}
			r := start(t, f, nil)
			c := r.device("d1")
			c.send(publish(myStatus, status(protocol.PhaseIdle), qos, true, 7))
			<-inFold
			if pk, err := c.next(9 * time.Second); err == nil {
				t.Fatalf("QoS %d: answer of type %d before the fold returned", qos, pk.FixedHeader.Type)
			}
			close(goOn)
			if pk := c.recv(); pk.FixedHeader.Type != ack || pk.PacketID != 7 {
				t.Errorf("QoS %d: answer of type %d, id %d", qos, pk.FixedHeader.Type, pk.PacketID)
			}
			if qos == 2 {
				c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pubrel, Qos: 1}, PacketID: 7})
				if pk := c.recv(); pk.FixedHeader.Type != packets.Pubcomp {
					t.Errorf("PUBREL answered with type %d", pk.FixedHeader.Type)
				}
			}
			if want := fmt.Sprintf("fold d1 false %s", status(protocol.PhaseIdle)); !slices.Contains(f.seen(), want) {
				t.Errorf("told %q", f.seen())
			}
		})
	}
}

// TestWhatTheFoldSaysDecidesTheAnswer: acknowledged and passed on, acknowledged and dropped, or not acknowledged.
func TestWhatTheFoldSaysDecidesTheAnswer(t *testing.T) {
	good := status(protocol.PhaseIdle)
	rows := []struct {
		name    string
		payload string
		err     error
		acked   bool
		passed  bool
	}{
		{"taken", good, nil, true, true},
		{"unreadable", `{"status":99}`, nil, true, false},
		{"no JSON", "\x00\xff", nil, true, false},
		{"empty", "", nil, true, false},
		{"too large", `{"message":"` + strings.Repeat("x", protocol.MaxStatus) + `"}`, nil, true, false},
		{"refused", good, fmt.Errorf("fold: %w", fleet.ErrRefused), true, false},
		{"unknown device", good, fmt.Errorf("fold: %w", fleet.ErrNotFound), true, false},
		{"disk full", good, fmt.Errorf("fold: %w", fleet.ErrStorage), false, false},
		{"disk full, unreadable", "{", fmt.Errorf("fold: %w", fleet.ErrStorage), false, false},
		{"an error nobody planned", good, errors.New("what"), false, false},
	}
	for _, row := range rows {
		for qos := range byte(3) {
			for _, version := range []byte{4, 5} {
				t.Run(fmt.Sprintf("%s qos %d v%d", row.name, qos, version), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						f := newFleet("d1")
						r := start(t, f, nil)
						watch := r.operator()
						watch.subscribed(1, 1, "bms/ota/status/#")
						c := r.must(login{name: "d1", secret: "d1-secret", id: "x", version: version})
						f.onFold = func(string, []byte) error { return row.err }
						id := uint16(0)
						if qos > 0 {
							id = 9
						}
						c.send(publish(myStatus, row.payload, qos, true, id))
						switch {
						case qos == 0:
							c.sync() // nothing to answer, nothing to send again: the session goes on
						case row.acked:
							if pk := c.recv(); pk.FixedHeader.Type != packets.Puback && pk.FixedHeader.Type != packets.Pubrec || pk.ReasonCode != 0 {
								t.Fatalf("answer of type %d, code %#x", pk.FixedHeader.Type, pk.ReasonCode)
							}
						default:
							// 3.1.1 sends again on a new connection only, so this one has to end.
							if pk, err := c.next(time.Minute); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
								t.Fatalf("what was not stored: answer of type %d, %v; want the end", pk.FixedHeader.Type, err)
							}
							// The way a device sends again: it comes back and storage works.
							f.onFold = nil
							c = r.device("d1")
							again := publish(myStatus, good, qos, true, 9)
							again.FixedHeader.Dup = true
							c.send(again)
							c.recv()
							if f.count("fold") != 1 {
								t.Errorf("told %q", f.seen())
							}
							return
						}
						if row.passed {
							if pk := watch.recv(); string(pk.Payload) != row.payload {
								t.Errorf("watcher got %q", pk.Payload)
							}
						} else {
							watch.sync()
						}
						if _, kept := r.srv.Topics.Retained.Get(myStatus); kept != row.passed {
							t.Errorf("retained: %t", kept)
						}
					})
				})
			}
		}
	}
}

// TestDeniedPublishChangesNothing over the wire, for what rights says in TestRightsOddTopics.
func TestDeniedPublishChangesNothing(t *testing.T) {
	for _, topic := range []string{"bms/ota/status/d2", "bms/ota/status", "bms/ota/command", "bms/ota/command/d1",
		"bms/ota/status/d1/", "BMS/ota/status/d1", "x", "$SYS/broker/version"} {
		for qos := range byte(3) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet("d1", "d2")
				r := start(t, f, nil)
				watch := r.operator()
				watch.subscribed(1, 0, "bms/ota/#")
				c := r.device("d1")
				id := uint16(0)
				if qos > 0 {
					id = 3
				}
				c.send(publish(topic, status(protocol.PhaseIdle), qos, true, id))
				if qos == 0 || strings.HasPrefix(topic, "$SYS") {
					c.sync()
				} else {
					c.ended() // 3.1.1 knows no other refusal
				}
				watch.sync()
				if f.count("fold")+f.count("order") != 0 || r.srv.Topics.Retained.Len() != 0 {
					t.Errorf("%s: told %q, %d retained", topic, f.seen(), r.srv.Topics.Retained.Len())
				}
			})
		}
	}
}

// TestTopicAliasCannotSmuggle: an alias is resolved after the rights were checked, so none is taken.
func TestTopicAliasCannotSmuggle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet("d1")
		r := start(t, f, nil)
		c := r.must(login{name: "d1", secret: "d1-secret", id: "x", version: 5})
		if c.acked.Properties.TopicAliasMaximum != 0 || c.acked.Properties.MaximumPacketSize != maxPacket {
			t.Errorf("CONNACK offers %+v", c.acked.Properties)
		}
		pk := publish(myStatus, status(protocol.PhaseIdle), 0, false, 0)
		pk.Properties.TopicAlias, pk.Properties.TopicAliasFlag = 1, true
		c.send(pk)
		c.ended()
		if f.count("fold") != 0 {
			t.Error("folded")
		}
	})
}

func TestSubscriptionsOverTheWire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newFleet("d1", "d2"), nil)
		filters := []string{"bms/ota/command", "bms/ota/command/d1", "bms/ota/command/d2", "#", "+/#", "bms/ota/command/+",
			"bms/ota/command/#", "bms/ota/status/d1", "$SYS/#", "$share/g/bms/ota/command", "$SHARE/g/bms/ota/command/d1", "bms/ota/command/d1/#"}
		want := []byte{1, 1, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80}
		if got := r.device("d1").subscribed(5, 1, filters...); !slices.Equal(got, want) {
			t.Errorf("device was granted %#x, want %#x", got, want)
		}
		o := r.operator()
		want = []byte{0, 0, 0x80, 0x80, 0}
		if got := o.subscribed(5, 2, "bms/ota/#", "$share/g/bms/ota/status/#", "#", "$SYS/#", "bms/ota/command/d2"); !slices.Equal(got, want) {
			t.Errorf("operator was granted %#x, want %#x", got, want)
		}
		var many []string
		for i := range maxSubscriptions {
			many = append(many, fmt.Sprintf("bms/ota/status/d%d", i))
		}
		got := o.subscribed(6, 0, many...)
		if granted := slices.Index(got, 0x80); granted != maxSubscriptions-3 || got[len(got)-1] != 0x80 {
			t.Errorf("%d more granted, want %d", granted, maxSubscriptions-3)
		}
	})
}

// TestRetainedCommandReachesDeviceThatComesLater, also months later, until it is cleared.
func TestRetainedCommandReachesDeviceThatComesLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newFleet("d1", "d2"), nil)
		if err := r.Send(t.Context(), "d1", protocol.Command{Action: protocol.ActionUpdate, ID: "u1"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(90 * 24 * time.Hour)
		c := r.device("d1")
		c.subscribed(1, 1, "bms/ota/command/d1")
		pk := c.recv()
		cmd, err := protocol.ParseCommand(pk.Payload)
		if err != nil || cmd.ID != "u1" || pk.TopicName != "bms/ota/command/d1" || !pk.FixedHeader.Retain || pk.FixedHeader.Qos != 1 {
			t.Fatalf("got %q on %q, retain %t, QoS %d (%v)", pk.Payload, pk.TopicName, pk.FixedHeader.Retain, pk.FixedHeader.Qos, err)
		}
		c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, PacketID: pk.PacketID})
		c.sync()
		if err := r.Clear(t.Context(), "d1"); err != nil {
			t.Fatal(err)
		}
		if pk := c.recv(); len(pk.Payload) != 0 {
			t.Errorf("clearing said %q", pk.Payload)
		}
		_ = c.Close()
		c = r.device("d1")
		c.subscribed(1, 1, "bms/ota/command/d1")
		c.sync()
		for _, id := range []string{"", "a/b", "+", "#"} {
			if r.Send(t.Context(), id, protocol.Command{Action: protocol.ActionCheck}) == nil {
				t.Errorf("a command to %q went out", id)
			}
		}
	})
}

// TestWhatIsToldIsNotKept: it reaches who is there, and what is retained on the topic stays as it is.
func TestWhatIsToldIsNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newFleet("d1"), nil)
		if err := r.Send(t.Context(), "d1", protocol.Command{Action: protocol.ActionUpdate, ID: "u1"}); err != nil {
			t.Fatal(err)
		}
		id := func(c *client) string {
			pk := c.recv()
			cmd, err := protocol.ParseCommand(pk.Payload)
			if err != nil {
				t.Fatalf("%q: %v", pk.Payload, err)
			}
			c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, PacketID: pk.PacketID})
			return cmd.ID
		}
		c := r.device("d1")
		c.subscribed(1, 1, "bms/ota/command/d1")
		if got := id(c); got != "u1" {
			t.Errorf("got %s", got)
		}
		if err := r.Tell(t.Context(), "d1", protocol.Command{Action: protocol.ActionCheck, ID: "c1"}); err != nil {
			t.Fatal(err)
		}
		if got := id(c); got != "c1" {
			t.Errorf("got %s", got)
		}
		_ = c.Close()
		c = r.device("d1")
		c.subscribed(1, 1, "bms/ota/command/d1")
		if got := id(c); got != "u1" {
			t.Errorf("a device that comes later got %s", got)
		}
		if r.Tell(t.Context(), "a/b", protocol.Command{Action: protocol.ActionCheck}) == nil {
			t.Error("a command to a/b went out")
		}
	})
}

// TestOperatorsCommandGoesThroughTheHandler: what the Handler returns is what devices get.
func TestOperatorsCommandGoesThroughTheHandler(t *testing.T) {
	check := `{"action":"check","force":false}`
	rows := []struct {
		name, topic, payload string
		retain               bool
		order                func([]byte) ([]byte, error)
		sent                 string // empty: nothing
		asked                int
		cut                  bool
		code                 byte // 5.0 PUBACK
	}{
		{"to one", "bms/ota/command/d1", check, false, nil, `{"action":"check","force":false,"id":"id-1"}`, 1, false, 0},
		{"to all", "bms/ota/command", check, false, nil, `{"action":"check","force":false,"id":"id-1"}`, 1, false, 0},
		{"to one, retained", "bms/ota/command/d1", check, true, nil, `{"action":"check","force":false,"id":"id-1"}`, 1, false, 0},
		{"to all, under way", "bms/ota/command", `{"action":"update"}`, false, func([]byte) ([]byte, error) {
			return nil, fmt.Errorf("%w: command u1: %w", fleet.ErrUnderWay, context.DeadlineExceeded)
		}, "", 1, false, 0},
		{"rollback to all, retained", "bms/ota/command", `{"action":"rollback"}`, true, nil, "", 0, false, 0x83},
		{"rollback to a version, to all, retained", "bms/ota/command", `{"action":"rollback","version":"1.0.0"}`, true, nil, "", 0, false, 0x83},
		{"rollback to all", "bms/ota/command", `{"action":"rollback"}`, false, nil, `{"action":"rollback","force":false,"id":"id-1"}`, 1, false, 0},
		{"unreadable", "bms/ota/command", `{"action":"explode"}`, false, nil, "", 0, false, 0x83},
		{"no JSON", "bms/ota/command/d1", "\x00", false, nil, "", 0, false, 0x83},
		{"refused", "bms/ota/command/d1", check, false, func([]byte) ([]byte, error) { return nil, fleet.ErrRefused }, "", 1, false, 0x83},
		{"grown", "bms/ota/command/d1", check, false, func([]byte) ([]byte, error) { return make([]byte, protocol.MaxCommand+1), nil }, "", 1, false, 0x83},
		{"not stored", "bms/ota/command/d1", check, false, func([]byte) ([]byte, error) { return nil, fleet.ErrStorage }, "", 1, true, 0},
		{"taken away", "bms/ota/command/d1", "", true, nil, "-", 1, false, 0},
		{"taken away, not stored", "bms/ota/command/d1", "", true, func([]byte) ([]byte, error) { return nil, fleet.ErrStorage }, "", 1, true, 0},
		{"empty", "bms/ota/command/d1", "", false, nil, "", 0, false, 0x83},
	}
	for _, row := range rows {
		for _, version := range []byte{4, 5} {
			t.Run(fmt.Sprintf("%s v%d", row.name, version), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFleet("d1")
					f.onOrder = row.order
					r := start(t, f, nil)
					d := r.device("d1")
					d.subscribed(1, 1, "bms/ota/command", "bms/ota/command/d1")
					o := r.must(login{name: "olga", secret: "olga-secret", id: "cli", version: version})
					o.send(publish(row.topic, row.payload, 1, row.retain, 4))
					if row.cut {
						o.ended()
					} else if pk := o.recv(); pk.FixedHeader.Type != packets.Puback || version == 5 && pk.ReasonCode != row.code {
						t.Errorf("answer of type %d, code %#x, want %#x", pk.FixedHeader.Type, pk.ReasonCode, row.code)
					}
					switch row.sent {
					case "":
						d.sync()
					case "-":
						if pk := d.recv(); len(pk.Payload) != 0 {
							t.Errorf("device got %q", pk.Payload)
						}
					default:
						if pk := d.recv(); string(pk.Payload) != row.sent {
							t.Errorf("device got %q, want %q", pk.Payload, row.sent)
						}
					}
					if got := f.count("order"); got != row.asked {
						t.Errorf("handler was asked %d times", got)
					}
					if got := r.srv.Topics.Retained.Len(); (got == 1) != (row.retain && row.sent != "" && row.sent != "-") {
						t.Errorf("%d retained", got)
					}
				})
			})
		}
	}
}

// TestWillIsFoldedThenShown: a lost connection tells the Handler first, then the watchers; a farewell tells nobody.
func TestWillIsFoldedThenShown(t *testing.T) {
	offline := status(protocol.PhaseOffline)
	rows := []struct {
		name  string
		will  string
		leave func(*rig, *client)
		fold  error
		shown bool
	}{
		{"connection lost", offline, func(_ *rig, c *client) { _ = c.Close() }, nil, true},
		{"silence", offline, func(*rig, *client) { time.Sleep(90 * time.Second) }, nil, true},
		{"broken packet", offline, func(_ *rig, c *client) { _, _ = c.Write([]byte{0xf8, 0}); c.ended() }, nil, true},
		{"farewell", offline, func(_ *rig, c *client) {
			c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}})
		}, nil, false},
		{"unreadable will", "bye", func(_ *rig, c *client) { _ = c.Close() }, nil, false},
		{"not stored", offline, func(_ *rig, c *client) { _ = c.Close() }, fleet.ErrStorage, false},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet("d1")
				f.onFold = func(string, []byte) error { return row.fold }
				r := start(t, f, nil)
				watch := r.must(login{name: "olga", secret: "olga-secret", id: "w", keepalive: 600})
				watch.subscribed(1, 0, "bms/ota/status/#")
				will := publish(myStatus, row.will, 1, true, 0)
				c := r.must(login{name: "d1", secret: "d1-secret", id: "x", will: &will})
				row.leave(r, c)
				synctest.Wait()
				want := []string{"connected d1", "disconnected d1"}
				if row.shown {
					want = slices.Insert(want, 1, "fold d1 false "+offline)
					if pk := watch.recv(); string(pk.Payload) != offline || pk.TopicName != myStatus {
						t.Errorf("watcher got %q", pk.Payload)
					}
				} else {
					watch.sync()
				}
				if got := f.seen(); !slices.Equal(got, want) {
					t.Errorf("told %q, want %q", got, want)
				}
				if _, kept := r.srv.Topics.Retained.Get(myStatus); kept != row.shown {
					t.Errorf("retained: %t", kept)
				}
			})
		})
	}
}

// TestSeedStatusIsWhoLoggedIn: on the shared topic the login speaks, and nothing is retained there.
func TestSeedStatusIsWhoLoggedIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet("d1")
		r := start(t, f, func(c *Config) { c.AcceptSeedStatus = true })
		watch := r.operator()
		watch.subscribed(1, 0, "bms/ota/status/#") // # includes the parent level
		c := r.device("d1")
		c.send(publish("bms/ota/status", status(protocol.PhaseIdle), 1, true, 2))
		c.recv()
		if want := "fold d1 true " + status(protocol.PhaseIdle); !slices.Contains(f.seen(), want) {
			t.Errorf("told %q", f.seen())
		}
		if pk := watch.recv(); pk.TopicName != "bms/ota/status" {
			t.Errorf("watcher got %q", pk.TopicName)
		}
		if r.srv.Topics.Retained.Len() != 0 {
			t.Error("retained")
		}
	})
}

// TestStatusesAreRepeatedForTheOriginalTool: it listens to the shared topic alone. While it does, what devices say on
// their own topics is said there too, the last of it at once, and folded once; while nobody does, everything is said once.
func TestStatusesAreRepeatedForTheOriginalTool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet("d1")
		r := start(t, f, nil)
		all := r.operator()
		all.subscribed(1, 0, "bms/ota/status/#")
		c := r.device("d1")
		say := func(id uint16) {
			c.send(publish(myStatus, status(protocol.PhaseIdle), 1, true, id))
			c.recv()
		}
		say(2)
		if pk := all.recv(); pk.TopicName != myStatus {
			t.Errorf("watcher got %q", pk.TopicName)
		}
		all.sync() // and nothing else
		original := r.must(login{name: "olga", secret: "olga-secret", id: "original", keepalive: 600})
		original.subscribed(1, 0, "bms/ota/status")
		if pk := original.recv(); pk.TopicName != "bms/ota/status" || string(pk.Payload) != status(protocol.PhaseIdle) || !pk.FixedHeader.Retain {
			t.Errorf("the original tool is first told %q on %q", pk.Payload, pk.TopicName)
		}
		original.sync()
		say(3)
		if pk := original.recv(); pk.TopicName != "bms/ota/status" || string(pk.Payload) != status(protocol.PhaseIdle) {
			t.Errorf("the original tool got %q on %q", pk.Payload, pk.TopicName)
		}
		original.sync()
		if n := f.count("fold d1"); n != 2 {
			t.Errorf("%d folds of 2 statuses", n)
		}
		if _, kept := r.srv.Topics.Retained.Get("bms/ota/status"); kept {
			t.Error("a repetition is retained")
		}
	})
}

// TestCloseFinishesWhatIsUnderWay: a status in the Handler's hands when Run ends is stored and acknowledged, wills stay
// unsaid, every device is reported gone.
func TestCloseFinishesWhatIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet("d1", "d2")
		inFold, goOn := make(chan struct{}), make(chan struct{})
		f.onFold = func(string, []byte) error {
			close(inFold)
			<-goOn
			return nil
		}
		r := start(t, f, nil)
		will := publish(myStatus, status(protocol.PhaseOffline), 1, true, 0)
		c := r.must(login{name: "d1", secret: "d1-secret", id: "x", will: &will})
		idle := r.device("d2")
		c.send(publish(myStatus, status(protocol.PhaseIdle), 1, true, 7))
		<-inFold
		stopped := make(chan error, 1)
		go func() { stopped <- r.stop() }()
		idle.ended()
		close(goOn)
		if pk := c.recv(); pk.FixedHeader.Type != packets.Puback {
			t.Errorf("answer of type %d", pk.FixedHeader.Type)
		}
		c.ended()
		if err := <-stopped; err != nil {
			t.Errorf("run: %v", err)
		}
		if f.count("fold") != 1 || f.count("disconnected") != 2 {
			t.Errorf("told %q", f.seen())
		}
	})
}
