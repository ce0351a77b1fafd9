package broker

import (
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"bmsota/protocol"
)

// FuzzConnection plays raw bytes to a broker, before a login (mode 0), and after one as a device or an operator, in
// 3.1.1 and 5.0. Whatever comes, nothing outside the peer's rights happens and everything it held is given back.
func FuzzConnection(f *testing.F) {
	in := func(pks ...packets.Packet) (b []byte) {
		for _, pk := range pks {
			b = append(b, encode(f, pk)...)
		}
		return b
	}
	good := status(protocol.PhaseIdle)
	f.Add(byte(0), in(login{name: "d1", secret: "d1-secret", id: "x", version: 4, keepalive: 60}.packet()))
	f.Add(byte(0), []byte{0x10, 0xff, 0xff, 0xff, 0x7f})
	f.Add(byte(0), []byte{0x10, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01})
	f.Add(byte(0), []byte{0xf0, 0x00})
	for mode := byte(1); mode <= 4; mode++ {
		f.Add(mode, in(publish(myStatus, good, 1, true, 1), publish(myStatus, good, 2, true, 2), publish("bms/ota/status/d2", good, 0, true, 0)))
		f.Add(mode, in(subscribe(1, 1, "bms/ota/command", "bms/ota/command/d1", "bms/ota/#", "$share/g/bms/ota/status/+", "////////")))
		f.Add(mode, in(publish("bms/ota/command", `{"action":"update"}`, 2, true, 1), packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pubrel, Qos: 1}, PacketID: 1}))
		f.Add(mode, []byte{0x82, 6, 0, 1, 0, 0, 1, 'a'})
		f.Add(mode, []byte{0x30, 0x05, 0, 0, 3, 0x23, 0, 0})
		f.Add(mode, []byte{0xe0, 0x00})
		f.Add(mode, []byte{0x62, 0x02, 0x00, 0x01, 0x50, 0x02, 0x00, 0x01, 0x70, 0x02, 0x00, 0x01, 0xf0, 0x00})
	}
	f.Fuzz(func(t *testing.T, mode byte, input []byte) {
		if len(input) > 4*maxPacket {
			return
		}
		synctest.Test(t, func(t *testing.T) {
			h := newFleet("d1", "d2")
			r := start(t, h, nil)
			bystander := r.device("d2")
			var nc net.Conn
			who := ""
			switch mode %= 5; mode {
			case 0:
				nc = r.ln.dial(t)
			case 1, 2:
				who = "d1"
				nc = r.must(login{name: "d1", secret: "d1-secret", id: "x", version: 3 + mode})
			default:
				who = "olga"
				nc = r.must(login{name: "olga", secret: "olga-secret", id: "x", version: 1 + mode})
			}
			drained := make(chan struct{})
			go func() {
				defer close(drained)
				_, _ = io.Copy(io.Discard, rawConn{nc})
			}()
			_ = nc.SetWriteDeadline(time.Now().Add(time.Hour))
			_, _ = nc.Write(input)
			synctest.Wait()
			_ = nc.Close()
			<-drained
			bystander.sync()
			synctest.Wait()
			if s := r.Stats(); s.Sessions != 1 || s.Waiting != 0 {
				t.Errorf("left: %+v", s)
			}
			if n := r.srv.Clients.Len(); n != 1 {
				t.Errorf("%d clients", n)
			}
			for _, e := range h.seen() {
				if mode > 0 && slices.Contains([]string{"connected d2", "connected " + who, "disconnected " + who}, e) {
					continue
				}
				var verb, name string
				if _, err := fmt.Sscan(e, &verb, &name); err != nil {
					t.Errorf("told %q", e)
				}
				if verb == "fold" && name != "d1" || verb == "order" && mode < 3 && mode > 0 {
					t.Errorf("told %q", e)
				}
			}
			for topic := range r.srv.Topics.Retained.GetAll() {
				kind, device := (protocol.Topics{}).Parse(topic)
				if mode > 2 && kind != protocol.KindCommand || mode < 3 && mode > 0 && (kind != protocol.KindStatus || device != "d1") {
					t.Errorf("retained on %q", topic)
				}
			}
			if err := r.stop(); err != nil {
				t.Error(err)
			}
		})
	})
}

// rawConn hides a client's buffered reader.
type rawConn struct{ c net.Conn }

func (r rawConn) Read(p []byte) (int, error) { return r.c.Read(p) }
