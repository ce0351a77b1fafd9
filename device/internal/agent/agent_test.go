package agent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"bmsota/device/internal/norflash"
	"bmsota/esp/parttable"
	"bmsota/protocol"
)

// wire is the receiving end of a connection that brings b.
type wire struct {
	net.Conn
	io.Reader
}

func (w wire) Read(p []byte) (int, error) { return w.Reader.Read(p) }

func guarded(b []byte) ([]byte, error) {
	return io.ReadAll(newFrameGuard(wire{Reader: bytes.NewReader(b)}))
}

func publish(qos byte, topic string, payload int) []byte {
	size := 2 + len(topic) + payload
	if qos > 0 {
		size += 2
	}
	b := appendFixed(nil, 3<<4|qos<<1, int64(size))
	b = binary.BigEndian.AppendUint16(b, uint16(len(topic)))
	b = append(b, topic...)
	if qos > 0 {
		b = append(b, 0, 7)
	}
	return append(b, bytes.Repeat([]byte{'x'}, payload)...)
}

func TestFrameGuardPassesPacketsAndShortensLongCommands(t *testing.T) {
	connack, puback, pingresp := []byte{0x20, 2, 0, 0}, []byte{0x40, 2, 0, 7}, []byte{0xD0, 0}
	for name, c := range map[string]struct{ in, want []byte }{
		"small packets":                 {bytes.Join([][]byte{connack, puback, pingresp}, nil), bytes.Join([][]byte{connack, puback, pingresp}, nil)},
		"commands":                      {append(publish(1, "a/b", 20), publish(0, "a/b", 0)...), append(publish(1, "a/b", 20), publish(0, "a/b", 0)...)},
		"as large as is read":           {publish(1, "a/b", maxCommandKept), publish(1, "a/b", maxCommandKept)},
		"one byte more":                 {publish(1, "a/b", maxCommandKept+1), publish(1, "a/b", maxCommandKept)},
		"a mebibyte, and then the next": {append(publish(1, "a/b", 1<<20), connack...), append(publish(1, "a/b", maxCommandKept), connack...)},
	} {
		got, err := guarded(c.in)
		if err != nil || !bytes.Equal(got, c.want) {
			t.Errorf("%s: %d bytes, %v; want %d", name, len(got), err, len(c.want))
		}
	}
}

func TestFrameGuardRefusesWhatNoBrokerSends(t *testing.T) {
	for name, b := range map[string][]byte{
		"length of five bytes":     {0x20, 0x80, 0x80, 0x80, 0x80, 1},
		"256 MiB of CONNACK":       {0x20, 0xFF, 0xFF, 0xFF, 0x7F},
		"topic longer than packet": {0x30, 4, 0, 9, 'a', 'b'},
		"topic of 64 KiB":          append([]byte{0x30, 0xFF, 0xFF, 0x7F, 0xFF, 0xFF}, make([]byte, 1<<17)...),
		"no room for a topic":      {0x30, 1, 0},
		"no room for an id":        {0x32, 4, 0, 2, 'a', 'b'},
		"end in a header":          {0x30, 0x80},
		"end in a topic":           {0x30, 20, 0, 9, 'a'},
	} {
		if got, err := guarded(b); err == nil {
			t.Errorf("%s: passes %d bytes", name, len(got))
		}
	}
}

// FuzzFrameGuard: what comes out is never longer than what went in, and no packet in it is longer than allowed.
func FuzzFrameGuard(f *testing.F) {
	f.Add([]byte{0x20, 2, 0, 0})
	f.Add(publish(1, "bms/ota/command", 600))
	f.Add([]byte{0x20, 0xFF, 0xFF, 0xFF, 0x7F})
	f.Fuzz(func(t *testing.T, b []byte) {
		out, _ := guarded(b)
		if len(out) > len(b) {
			t.Fatalf("%d bytes out of %d", len(out), len(b))
		}
		for len(out) > 0 {
			length, i := 0, 1
			for ; i < len(out); i++ {
				length |= int(out[i]&0x7F) << (7 * (i - 1))
				if out[i] < 0x80 {
					break
				}
			}
			if length > 2+maxTopic+2+maxCommandKept+maxPacket {
				t.Fatalf("a packet of %d bytes passes", length)
			}
			out = out[min(len(out), i+1+length):]
		}
	})
}

// chip is an agent with nothing but a flash.
func chip(t *testing.T) (*agent, *norflash.Flash) {
	t.Helper()
	f := norflash.New(1 << 20)
	return newAgent(Config{Flash: f, Table: parttable.Default()}), f
}

func TestNoteSurvivesItsRecordAndNothingElse(t *testing.T) {
	for _, cause := range protocol.Reasons() {
		a, f := chip(t)
		n := note{digest: [32]byte{1, 2, 3, 31: 9}, cause: cause}
		if err := a.writeNote(1, n); err != nil {
			t.Fatal(err)
		}
		if got, ok, err := a.readNote(1); err != nil || !ok || got != n {
			t.Fatalf("reads back as %+v, %v, %v", got, ok, err)
		}
		ops := f.Ops()
		if err := a.writeNote(1, n); err != nil || f.Ops() != ops {
			t.Errorf("the same note again: %v, %d operations", err, f.Ops()-ops)
		}
		if err := a.writeNote(1, note{digest: [32]byte{4}, cause: cause}); err == nil {
			t.Error("another note is written over the first")
		}
		if err := errors.Join(a.mark(1, noteTold), a.mark(1, noteVoid)); err != nil {
			t.Fatal(err)
		}
		if got, ok, _ := a.readNote(1); !ok || !got.told || !got.void {
			t.Errorf("marked, it reads as %+v, %v", got, ok)
		}
		if err := f.Erase(0x11000, 4096); err != nil {
			t.Fatal(err)
		}
		if _, ok, _ := a.readNote(1); ok {
			t.Error("a note outlives its record")
		}
	}
}

func TestTornNoteIsNone(t *testing.T) {
	want := note{digest: [32]byte{0xAB, 31: 0xCD}, cause: protocol.ReasonBMSSilent}
	for seed := range uint64(500) {
		for op := 1; op <= 2; op++ {
			a, f := chip(t)
			f.CutAt(op, norflash.Torn(seed))
			if err := a.writeNote(0, want); err == nil || !gone(err) {
				continue // a note of one operation
			}
			f.PowerOn()
			if got, ok, err := a.readNote(0); err != nil || ok && got != want {
				t.Fatalf("seed %d: torn in operation %d it reads as %+v, %v, %v", seed, op, got, ok, err)
			}
			// The same note can be finished.
			if err := a.writeNote(0, want); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
	}
}

func TestPausesGrowAndDifferWithinTheirLimits(t *testing.T) {
	seen := map[time.Duration]bool{}
	for seed := range uint64(200) {
		p := pauses{rand: rand.New(rand.NewPCG(seed, 1)), first: time.Second, limit: time.Minute}
		for i := range 40 {
			d := p.next()
			whole := min(time.Second<<min(i, 10), time.Minute)
			if d < whole/2 || d > whole {
				t.Fatalf("seed %d: pause %d is %v, want %v to %v", seed, i, d, whole/2, whole)
			}
			seen[d] = true
		}
	}
	if len(seen) < 7000 {
		t.Errorf("8000 pauses of 200 boards take only %d values", len(seen))
	}
}
