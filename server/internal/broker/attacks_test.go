package broker

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// frame is a packet of a type with its remaining length, whatever is in it.
func frame(first byte, parts ...[]byte) []byte {
	body := slices.Concat(parts...)
	return slices.Concat([]byte{first}, length(len(body)), body)
}

// length is a variable byte integer (MQTT 5.0 §1.5.5).
func length(n int) (b []byte) {
	for {
		digit := byte(n % 128)
		if n /= 128; n > 0 {
			digit |= 128
		}
		if b = append(b, digit); n == 0 {
			return b
		}
	}
}

// text is a string with its two bytes of length.
func text(s string) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(s))), s...) }

// connectAs is a CONNECT that would do, but for what a row changes: the flags and what follows keepalive.
func connectAs(version, flags byte, keepalive uint16, rest ...[]byte) []byte {
	return frame(0x10, text("MQTT"), []byte{version, flags}, binary.BigEndian.AppendUint16(nil, keepalive), slices.Concat(rest...))
}

const (
	nobody  = 0 // not logged in
	board4  = 4 // logged in as d1, MQTT 3.1.1
	board5  = 5 // the same, 5.0
	repeats = 200
)

// attack is one row: what is sent by whom, and whether the connection must have ended after it.
type attack struct {
	name string
	who  int
	send []byte
	ends bool
}

// attacks are faults that other brokers have had, replayed, and every breach of the standard that such faults grew from.
// The CVE is that of the other broker; where none is named the row is the standard's. Not every breach must end the
// connection: mochi takes a Receive Maximum and a subscription identifier of 0 for none, and the last of two properties.
func attacks() []attack {
	login := [][]byte{text("d1"), text("d1-secret")}
	good := connectAs(4, 0xc2, 60, text("x"), login[0], login[1])
	id := []byte{0, 1}
	none := []byte{0} // no properties
	properties := func(p ...[]byte) []byte { b := slices.Concat(p...); return append(length(len(b)), b...) }
	statusTopic := text("bms/ota/status/d1")
	var userProperties []byte
	for range 1000 {
		userProperties = append(userProperties, slices.Concat([]byte{0x26}, text("k"), text("v"))...)
	}
	return []attack{
		// Before the login.
		{"CVE-2017-7651 mosquitto: CONNECT that claims 256 MiB", nobody, []byte{0x10, 0xff, 0xff, 0xff, 0x7f}, true},
		{"CVE-2023-0809 mosquitto: large first packet that is no CONNECT", nobody, []byte{0x30, 0xff, 0xff, 0xff, 0x7f}, true},
		{"CVE-2021-41039 mosquitto: CONNECT with a thousand user properties", nobody, connectAs(5, 0xc2, 60, properties(userProperties), text("x"), login[0], login[1]), false},
		{"CVE-2023-3592 mosquitto: will with properties that do not belong to one", nobody, connectAs(5, 0xc6, 60, none, text("x"), properties([]byte{0x21, 0, 10}), statusTopic, text("w"), login[0], login[1]), true},
		{"CVE-2019-11778 mosquitto: will delayed beyond the session's end", nobody, connectAs(5, 0xc6, 60, properties([]byte{0x11, 0, 0, 0, 1}), text("x"), properties([]byte{0x18, 0xff, 0xff, 0xff, 0xff}), statusTopic, text("w"), login[0], login[1]), false},
		{"CVE-2017-7650 mosquitto: user name that is a wildcard", nobody, connectAs(4, 0xc2, 60, text("#"), text("#"), text("d1-secret")), true},
		{"CVE-2017-7650 mosquitto: user name with a level of its own", nobody, connectAs(4, 0xc2, 60, text("x"), text("+/d1"), text("d1-secret")), true},
		{"will to a wildcard", nobody, connectAs(4, 0xc6, 60, text("x"), text("bms/ota/status/#"), text("w"), login[0], login[1]), true},
		{"will to everybody's command", nobody, connectAs(4, 0xe6, 60, text("x"), text("bms/ota/command"), text(`{"action":"update"}`), login[0], login[1]), true},
		{"will of QoS 3", nobody, connectAs(4, 0xde, 60, text("x"), statusTopic, text("w"), login[0], login[1]), true},
		{"length of five bytes", nobody, []byte{0x10, 0x80, 0x80, 0x80, 0x80, 0x01}, true},
		{"reserved packet type 0", nobody, []byte{0x00, 0x00}, true},
		{"CONNECT with the reserved flag", nobody, connectAs(4, 0xc3, 60, text("x"), login[0], login[1]), true},
		{"CONNECT of version 9", nobody, connectAs(9, 0xc2, 60, text("x"), login[0], login[1]), true},
		{"CONNECT whose strings lie about their length", nobody, connectAs(4, 0xc2, 60, []byte{0xff, 0xff, 'x'}), true},
		{"CONNECT without a password where the flag promises one", nobody, connectAs(4, 0xc2, 60, text("x"), login[0]), true},
		{"empty CONNECT", nobody, []byte{0x10, 0x00}, true},
		{"Receive Maximum 0", nobody, connectAs(5, 0xc2, 60, properties([]byte{0x21, 0, 0}), text("x"), login[0], login[1]), false},
		{"property that is not known", nobody, connectAs(5, 0xc2, 60, properties([]byte{0x7f, 1}), text("x"), login[0], login[1]), true},
		{"property twice", nobody, connectAs(5, 0xc2, 60, properties([]byte{0x21, 0, 9, 0x21, 0, 9}), text("x"), login[0], login[1]), false},
		{"AUTH before CONNECT", nobody, []byte{0xf0, 0x02, 0x18, 0x00}, true},
		{"CVE-2023-5632 mosquitto: half a packet and nothing more", nobody, good[:7], true},

		// As a device.
		{"CVE-2019-11779 mosquitto: SUBSCRIBE to 65,400 slashes", board4, frame(0x82, id, text(strings.Repeat("/", 65400)), []byte{0}), true},
		{"SUBSCRIBE to as many slashes as a packet holds", board4, frame(0x82, id, text(strings.Repeat("/", maxPacket-100)), []byte{0}), false},
		{"CVE-2021-34432 mosquitto: PUBLISH to the empty topic", board4, frame(0x30, text(""), []byte("x")), true},
		{"CVE-2018-12543 mosquitto: PUBLISH to $ and no more", board4, frame(0x30, text("$"), []byte("x")), false},
		{"PUBLISH to $SYS", board4, frame(0x31, text("$SYS/broker/version"), []byte("x")), false},
		{"CVE-2021-28166 mosquitto: CONNACK from a client", board5, []byte{0x20, 0x03, 0x00, 0x00, 0x00}, true},
		{"CVE-2023-28366 mosquitto: one QoS 2 id over and over, never released", board4, bytes.Repeat(frame(0x34, text("bms/ota/status/d2"), id, []byte("x")), repeats), true},
		{"QoS 2 ids without end, never released", board4, manyIDs(0x34, "bms/ota/status/d2"), true},
		{"CVE-2019-5432 mqtt-packet: SUBSCRIBE cut short", board4, []byte{0x82, 0x05, 0x00, 0x01, 0x00, 0x05, 'a'}, true},
		{"CVE-2016-10523 mqtt-packet: PUBLISH whose topic is longer than it", board4, []byte{0x30, 0x03, 0xff, 0xff, 'a'}, true},
		{"CVE-2020-27220 hono: PUBLISH of 1 MiB", board4, frame(0x30, statusTopic, make([]byte, 1<<20)), true},
		{"topic alias 0", board5, frame(0x30, statusTopic, properties([]byte{0x23, 0, 0}), []byte("x")), true},
		{"topic alias, which is not offered, to another's topic", board5, slices.Concat(frame(0x30, statusTopic, properties([]byte{0x23, 0, 1}), []byte("x")), frame(0x30, text(""), properties([]byte{0x23, 0, 1}), []byte("x"))), true},
		{"PUBLISH of QoS 3", board4, frame(0x36, statusTopic, id, []byte("x")), true},
		{"PUBLISH of QoS 1 with id 0", board4, frame(0x32, statusTopic, []byte{0, 0}, []byte("x")), true},
		{"PUBLISH to a wildcard", board4, frame(0x31, text("bms/ota/command/+"), []byte(`{"action":"update"}`)), true},
		{"PUBLISH to a topic with NUL", board4, frame(0x30, text("bms/ota/status/d1\x00"), []byte("x")), true},
		{"PUBLISH to a topic that is no UTF-8", board4, frame(0x30, text("bms/ota/status/\xff\xfe"), []byte("x")), true},
		{"retained command from a device", board4, frame(0x33, text("bms/ota/command"), id, []byte(`{"action":"update"}`)), true},
		{"second CONNECT", board4, good, true},
		{"SUBSCRIBE with id 0", board4, frame(0x82, []byte{0, 0}, text("bms/ota/command"), []byte{0}), true},
		{"SUBSCRIBE to nothing", board4, frame(0x82, id), true},
		{"SUBSCRIBE with wrong fixed flags", board4, frame(0x80, id, text("bms/ota/command"), []byte{0}), true},
		{"SUBSCRIBE with subscription identifier 0", board5, frame(0x82, id, properties([]byte{0x0b, 0}), text("bms/ota/command"), []byte{0}), false},
		{"shared subscription that keeps commands from others", board5, frame(0x82, id, none, text("$share/g/bms/ota/command"), []byte{0}), false},
		{"SUBSCRIBE without its options, which mochi's decoder reads past", board5, []byte{0x82, 6, 0, 1, 0, 0, 1, 'a'}, true},
		{"UNSUBSCRIBE from nothing", board4, frame(0xa2, id), true},
		{"CVE-2024-8376 mosquitto: SUBSCRIBE and UNSUBSCRIBE in turn, then the end", board5, slices.Concat(bytes.Repeat(slices.Concat(frame(0x82, id, none, text("bms/ota/command"), []byte{0}), frame(0xa2, id, none, text("bms/ota/command"))), repeats/2), []byte{0xe0, 0x00}), true},
		{"acknowledgements of what was never sent", board4, bytes.Repeat([]byte{0x40, 0x02, 0x00, 0x09, 0x50, 0x02, 0x00, 0x09, 0x62, 0x02, 0x00, 0x09, 0x70, 0x02, 0x00, 0x09}, repeats), false},
		{"DISCONNECT that gives itself a session for ever", board5, []byte{0xe0, 0x07, 0x00, 0x05, 0x11, 0xff, 0xff, 0xff, 0xff}, true},
		{"PINGRESP from a client", board4, []byte{0xd0, 0x00}, true},
	}
}

// manyIDs are PUBLISH packets with ids of their own.
func manyIDs(first byte, topic string) (b []byte) {
	for i := range uint16(repeats) {
		b = append(b, frame(first, text(topic), binary.BigEndian.AppendUint16(nil, i+1), []byte("x"))...)
	}
	return b
}

// TestAttacksOnOtherBrokersEndWithTheirSender: after each row the broker lives, another device's session has noticed
// nothing, nothing was published in anybody's name, what was sent has cost little memory, and when the attacker has gone
// nothing of him is left.
func TestAttacksOnOtherBrokersEndWithTheirSender(t *testing.T) {
	rows := attacks()
	if len(rows) < 20 {
		t.Fatalf("%d rows", len(rows))
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet("d1", "d2")
				r := start(t, f, nil)
				bystander := r.device("d2")
				var nc net.Conn
				if row.who == nobody {
					nc = r.ln.dial(t)
				} else {
					nc = r.must(login{name: "d1", secret: "d1-secret", id: "x", version: byte(row.who)}).Conn
				}
				read := make(chan error, 1)
				go func() {
					_, err := io.Copy(io.Discard, nc)
					read <- err
				}()
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				_ = nc.SetWriteDeadline(time.Now().Add(time.Hour))
				_, writeErr := nc.Write(row.send)
				time.Sleep(6 * time.Second) // beyond the deadline for a login, below any keepalive
				synctest.Wait()
				runtime.ReadMemStats(&after)
				ended := writeErr != nil
				select {
				case err := <-read:
					ended = true
					if errors.Is(err, os.ErrDeadlineExceeded) {
						t.Error(err)
					}
					read <- err
				default:
				}
				if ended != row.ends {
					t.Errorf("connection ended: %t, want %t", ended, row.ends)
				}
				if cost := after.TotalAlloc - before.TotalAlloc; cost > 4<<20 {
					t.Errorf("%d bytes were allocated for %d", cost, len(row.send))
				}
				bystander.sync()
				_ = nc.Close()
				<-read
				synctest.Wait()
				if s := r.Stats(); s.Sessions != 1 || s.Waiting != 0 || r.srv.Clients.Len() != 1 {
					t.Errorf("left: %+v, %d clients", s, r.srv.Clients.Len())
				}
				if n := r.srv.Topics.Retained.Len(); n != 0 {
					t.Errorf("%d messages are retained", n)
				}
				if f.count("fold") != 0 || f.count("order") != 0 {
					t.Errorf("told %q", f.seen())
				}
				r.device("d1").sync() // whose login still works
			})
		})
	}
}
