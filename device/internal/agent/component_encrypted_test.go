package agent

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"bmsota/device/internal/norflash"
	"bmsota/device/internal/otaops"
	"bmsota/esp/otadata"
	"bmsota/esp/parttable"
)

// Sizes that flash encryption brings with it, in bytes.
const (
	cipherBlock  = 16
	encryptedAck = 80 // of a tombstone's acknowledgement, from the start of the slot
)

// encrypt is the same flash on a board with flash encryption, as the host port has it: blocks that hold anything are mixed
// with a key, and the flags of notes and tombstones are blocks of their own.
func encrypt(l life) *norflash.Flash {
	b := make([]byte, used)
	l.flash.ReadAt(b, 0)
	data, _ := l.table.OTAData()
	for _, p := range l.table {
		part := b[p.Offset:p.End()]
		if p == data {
			for i := range 2 {
				at := part[i*otadata.SectorSize+noteOffset:]
				moveFlags(at[noteTold:], at[noteTold:noteTold+cipherBlock], at[noteTold+cipherBlock:noteTold+2*cipherBlock])
			}
		} else if string(part[:8]) == "bmstomb1" {
			moveFlags(part[encryptedAck-4:], part[encryptedAck:encryptedAck+cipherBlock])
		}
		for at := 0; at < len(part); {
			n := cipherBlock
			if p == data && at%otadata.SectorSize == 0 {
				n = otadata.RecordSize // written at once
			}
			mix(part[at:at+n], p.Offset+uint32(at))
			at += n
		}
	}
	return norflash.FromBytes(b)
}

// moveFlags turns the bytes that from begins with into blocks, zero for a flag that is set and erased otherwise.
func moveFlags(from []byte, blocks ...[]byte) {
	set := make([]bool, len(blocks))
	for i := range blocks {
		set[i], from[i] = from[i] == 0, 0xFF
	}
	for i, block := range blocks {
		for j := range block {
			if block[j] = 0xFF; set[i] {
				block[j] = 0
			}
		}
	}
}

// mix encrypts what is written at once, or decrypts it. What is erased stays as it is.
func mix(block []byte, at uint32) {
	if bytes.Count(block, []byte{0xFF}) == len(block) {
		return
	}
	for i := range block {
		block[i] ^= byte((at + uint32(i) + 1) * 0x9E3779B1 >> 13)
	}
}

// encryptedRecords are the records of an encrypted flash.
func encryptedRecords(l life, data parttable.Partition) (recs [2]otadata.Record) {
	for i := range recs {
		var raw [otadata.RecordSize]byte
		at := data.Offset + uint32(i)*otadata.SectorSize
		l.flash.ReadAt(raw[:], int64(at))
		mix(raw[:], at)
		recs[i], _ = otadata.ParseRecord(raw[:])
	}
	return recs
}

// With flash encryption, where a byte takes one write, the component does what it does without: the same results, the same
// findings, the same slots and the same records as far as they count, and the boot after it finds the same.
func TestComponentDoesTheSameWithFlashEncryption(t *testing.T) {
	c, m := startComponent(t, false), newStates(t, 4)
	m.images = m.images[:len(m.images)-1] // the signed one has erased bytes inside, which encrypt would take for never written
	for n := range 150 {
		plain := m.next(t)
		secret := plain.with(encrypt(plain))
		secret.encrypted = true
		for _, op := range orders(plain) {
			want, after := c.do(plain, cut{}, op)
			got, secretAfter := c.do(secret, cut{}, op)
			what := fmt.Sprintf("state %d, %s, running %s of %v, records %s", n, op, plain.running.Name, names(plain.table), records(plain))
			same(t, what, want, got)
			next, secretNext := plain.with(after), secret.with(secretAfter)
			sameContent(t, what, next, secretNext)
			want, _ = c.do(next, cut{}, "settle")
			got, _ = c.do(secretNext, cut{}, "settle")
			same(t, what+", the boot after it", want, got)
			if t.Failed() {
				return
			}
		}
	}
}

func same(t *testing.T, what string, want, got did) {
	t.Helper()
	want.ops, got.ops = 0, 0
	if fmt.Sprint(want) != fmt.Sprint(got) {
		t.Errorf("%s: %v, without encryption %v", what, got, want)
	}
}

// sameContent compares a flash with an encrypted one.
func sameContent(t *testing.T, what string, plain, secret life) {
	t.Helper()
	want := encrypt(plain)
	data, _ := plain.table.OTAData()
	for _, p := range plain.table {
		if p == data {
			continue
		}
		x, y := make([]byte, p.Size), make([]byte, p.Size)
		want.ReadAt(x, int64(p.Offset))
		secret.flash.ReadAt(y, int64(p.Offset))
		if !slices.Equal(x, y) {
			t.Errorf("%s: %s holds something else", what, p.Name)
		}
	}
	ops, err := otaops.New(plain.flash, plain.table, plain.running, otaops.Config{})
	if err != nil {
		t.Fatal(err)
	}
	recs, err := ops.Records()
	if err != nil {
		return // no otadata
	}
	for i, r := range encryptedRecords(secret, data) {
		counts := recs[i].CRCOK() && !recs[i].Erased()
		if counts != (r.CRCOK() && !r.Erased()) || counts && (r.Seq != recs[i].Seq || r.State != recs[i].State) {
			t.Errorf("%s: record %d is %v, without encryption %v", what, i, r, recs[i])
		}
	}
}
