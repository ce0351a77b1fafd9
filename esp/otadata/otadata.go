// Package otadata reads and writes the two boot records of an ESP32: which
// application slot starts, and how much it is trusted.
//
// A record is 32 bytes at the start of a 4 KiB sector; the otadata partition
// has two of them. The package promises the decisions of ESP-IDF to the bit:
// what counts as invalid, which record is active, which slot a sequence
// number means, and which sector the next record goes to. It holds no flash
// and writes nothing; order of erase and program is its caller's matter.
//
// It refuses records that are not exactly 32 bytes, slots that do not exist
// and sequence numbers that would run over into the erased pattern. It keeps
// every other content as it is: a record with a wrong CRC or an unknown state
// is something the bootloader meets and decides on, so it parses here too.
//
// The CRC covers the four bytes of the sequence number and nothing else. State
// and label are unprotected; a caller must not rest its safety on them.
//
// Specified by ESP-IDF v5.5: esp_flash_partitions.h
// (esp_ota_select_entry_t), bootloader_common_loader.c (CRC, validity,
// selection) and esp_ota_ops.c (esp_rewrite_ota_data).
package otadata

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// Sizes of the format, in bytes.
const (
	RecordSize    = 32             // one record
	SectorSize    = 4096           // distance between the two records
	PartitionSize = 2 * SectorSize // the least an otadata partition may have
)

// SeqErased is the sequence number of an erased record, which names no slot.
const SeqErased uint32 = 0xFFFFFFFF

// State is how much the image of a record's slot is trusted
// (esp_ota_img_states_t). Any value without a name here is treated by the
// bootloader as Undefined: it boots, and is never put on trial.
type State uint32

// The states that ESP-IDF names.
const (
	New           State = 0          // written by the app, not booted yet
	PendingVerify State = 1          // on its first boot, to be confirmed
	Valid         State = 2          // confirmed
	Invalid       State = 3          // given up by the app
	Aborted       State = 4          // not confirmed before the next reset
	Undefined     State = 0xFFFFFFFF // never part of a trial
)

// String is one of new, pending, valid, invalid, aborted and undefined. A
// value that ESP-IDF does not name is "undefined", because that is how it
// behaves; Hex tells such values apart.
func (s State) String() string {
	switch s {
	case New:
		return "new"
	case PendingVerify:
		return "pending"
	case Valid:
		return "valid"
	case Invalid:
		return "invalid"
	case Aborted:
		return "aborted"
	}
	return "undefined"
}

// Hex is the raw value as 0x and eight lower-case digits.
func (s State) Hex() string { return fmt.Sprintf("0x%08x", uint32(s)) }

// Named reports whether ESP-IDF has a name for the value.
func (s State) Named() bool { return s <= Aborted || s == Undefined }

// ParseState is the inverse of String.
func ParseState(name string) (State, error) {
	for _, s := range []State{New, PendingVerify, Valid, Invalid, Aborted, Undefined} {
		if s.String() == name {
			return s, nil
		}
	}
	return 0, fmt.Errorf("unknown record state %q (new, pending, valid, invalid, aborted, undefined)", name)
}

// Record is one of the two boot records.
//
//	typedef struct {              // esp_flash_partitions.h
//	    uint32_t ota_seq;         //  0
//	    uint8_t  seq_label[20];   //  4
//	    uint32_t ota_state;       // 24
//	    uint32_t crc;             // 28: of ota_seq only
//	} esp_ota_select_entry_t;     // 32, little-endian
type Record struct {
	Seq   uint32
	Label [20]byte // unused by ESP-IDF, but kept across rewrites
	State State
	CRC   uint32 // as stored, right or wrong
}

// FormatError says where bytes are not what the format asks for.
type FormatError struct {
	Offset int64  // in bytes from the start of the input
	Field  string // what was being read
	Reason string
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("otadata: %s at offset 0x%x: %s", e.Field, e.Offset, e.Reason)
}

// CRC is the checksum of a sequence number as the ROM computes it:
// esp_rom_crc32_le with a running value of 0xFFFFFFFF. It is not the common
// CRC-32 of those four bytes, which starts from 0.
func CRC(seq uint32) uint32 {
	var b [4]byte
	binary.LittleEndian.PutUint32(b[:], seq)
	return crc32.Update(0xFFFFFFFF, crc32.IEEETable, b[:])
}

// NewRecord returns a record with its label erased and its CRC right, as the
// bootloader writes one.
func NewRecord(seq uint32, st State) Record {
	r := Record{Seq: seq, State: st, CRC: CRC(seq)}
	for i := range r.Label {
		r.Label[i] = 0xFF
	}
	return r
}

// ErasedRecord is the record an erased sector reads as.
func ErasedRecord() Record {
	r := NewRecord(SeqErased, Undefined)
	r.CRC = 0xFFFFFFFF
	return r
}

// ParseRecord reads a record of exactly RecordSize bytes. Content is not
// judged: see CRCOK, Erased, Invalid and Usable.
func ParseRecord(b []byte) (Record, error) {
	if len(b) != RecordSize {
		return Record{}, &FormatError{Offset: int64(min(len(b), RecordSize)), Field: "record",
			Reason: fmt.Sprintf("%d bytes where a record has %d", len(b), RecordSize)}
	}
	return decode(b), nil
}

func decode(b []byte) Record {
	r := Record{
		Seq:   binary.LittleEndian.Uint32(b[0:]),
		State: State(binary.LittleEndian.Uint32(b[24:])),
		CRC:   binary.LittleEndian.Uint32(b[28:]),
	}
	copy(r.Label[:], b[4:24])
	return r
}

// AppendRecord appends the RecordSize bytes of r to dst. The bytes are decoded
// again before they are handed over, because they decide what boots; a
// difference panics.
func AppendRecord(dst []byte, r Record) []byte {
	start := len(dst)
	dst = binary.LittleEndian.AppendUint32(dst, r.Seq)
	dst = append(dst, r.Label[:]...)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(r.State))
	dst = binary.LittleEndian.AppendUint32(dst, r.CRC)
	if decode(dst[start:]) != r {
		panic("otadata: an encoded record does not decode to itself")
	}
	return dst
}

// Parse reads both records of an otadata partition. The input may be longer
// than PartitionSize, as the bootloader accepts a larger partition; bytes
// outside the two records are not looked at.
func Parse(b []byte) ([2]Record, error) {
	if len(b) < PartitionSize {
		return [2]Record{}, &FormatError{Offset: int64(len(b)), Field: "partition",
			Reason: fmt.Sprintf("%d bytes where otadata has %d", len(b), PartitionSize)}
	}
	return [2]Record{decode(b[:RecordSize]), decode(b[SectorSize : SectorSize+RecordSize])}, nil
}

// Append appends the PartitionSize bytes of an otadata partition that holds
// the two records and is erased elsewhere.
func Append(dst []byte, recs [2]Record) []byte {
	for _, r := range recs {
		dst = AppendRecord(dst, r)
		for range SectorSize - RecordSize {
			dst = append(dst, 0xFF)
		}
	}
	return dst
}

// CRCOK reports whether the stored CRC is that of the sequence number. It says
// nothing about state and label.
func (r Record) CRCOK() bool { return r.CRC == CRC(r.Seq) }

// Erased reports whether the record has the erased sequence number, whatever
// else is in it; that is ESP-IDF's word for empty.
func (r Record) Erased() bool { return r.Seq == SeqErased }

// Invalid is bootloader_common_ota_select_invalid: empty, or a state that
// keeps it from booting. The CRC is not looked at.
func (r Record) Invalid() bool {
	return r.Seq == SeqErased || r.State == Invalid || r.State == Aborted
}

// Usable is bootloader_common_ota_select_valid: not Invalid, and the CRC fits.
func (r Record) Usable() bool { return !r.Invalid() && r.CRCOK() }

// Names reports whether the record is usable and leads to the given slot of n.
func (r Record) Names(slot, n int) bool { return r.Usable() && SlotIndex(r.Seq, n) == slot }

// Select is the index of the active record, or -1 when neither is usable. The
// higher sequence number wins, compared as plain unsigned numbers without
// wrap-around; a tie goes to record 0.
func Select(recs [2]Record) int {
	return SelectAmong(recs, [2]bool{recs[0].Usable(), recs[1].Usable()}, true)
}

// SelectAmong is bootloader_common_select_otadata: it chooses between the
// records that the caller found valid, the one with the highest sequence number
// if highest is set and the lowest if not. A tie goes to record 0; -1 means
// that none is valid.
func SelectAmong(recs [2]Record, valid [2]bool, highest bool) int {
	switch {
	case valid[0] && valid[1]:
		want := min(recs[0].Seq, recs[1].Seq)
		if highest {
			want = max(recs[0].Seq, recs[1].Seq)
		}
		if recs[0].Seq == want {
			return 0
		}
		return 1
	case valid[0]:
		return 0
	case valid[1]:
		return 1
	}
	return -1
}

// SlotIndex is the slot, counted from 0, that a sequence number means when
// there are n slots: (seq-1) mod n in 32-bit arithmetic, so that sequence
// number 0 is legal. It is -1 when there are no slots.
func SlotIndex(seq uint32, n int) int {
	if n <= 0 {
		return -1
	}
	return int(uint64(seq-1) % uint64(n))
}

var (
	// ErrNoSuchSlot is returned for a slot outside 0..n-1.
	ErrNoSuchSlot = errors.New("otadata: no such slot")
	// ErrSeqExhausted is returned where the next sequence number would be the
	// erased pattern or beyond. The real loop does not end sensibly there.
	ErrSeqExhausted = errors.New("otadata: sequence numbers are used up")
)

// Next is the arithmetic of esp_rewrite_ota_data: to make slot (of n) the one
// that boots, write rec to the sector with that index. With an active record
// the other sector is the target, and the sequence number is the smallest that
// is not below the active one and means the slot: choosing the active slot
// again gives an equal number. Without one it is sector 0 and slot+1. The
// label is that of the record that is replaced.
func Next(recs [2]Record, slot, n int, st State) (sector int, rec Record, err error) {
	if slot < 0 || slot >= n {
		return 0, Record{}, fmt.Errorf("%w: %d of %d", ErrNoSuchSlot, slot, n)
	}
	seq := uint32(slot + 1)
	if active := Select(recs); active >= 0 {
		sector = 1 - active
		if seq, err = SeqFor(slot, n, recs[active].Seq); err != nil {
			return 0, Record{}, err
		}
	}
	rec = recs[sector]
	rec.Seq, rec.State, rec.CRC = seq, st, CRC(seq)
	return sector, rec, nil
}

// SeqFor is the smallest sequence number of at least atLeast that means slot
// (of n). It may be 0 where atLeast is, as in ESP-IDF.
func SeqFor(slot, n int, atLeast uint32) (uint32, error) {
	if slot < 0 || slot >= n {
		return 0, fmt.Errorf("%w: %d of %d", ErrNoSuchSlot, slot, n)
	}
	// base is the least number that means the slot; 64 bits hold every step.
	base := uint64(slot+1) % uint64(n)
	seq := base
	if least := uint64(atLeast); least > base {
		seq = base + (least-base+uint64(n)-1)/uint64(n)*uint64(n)
	}
	if seq >= uint64(SeqErased) {
		return 0, ErrSeqExhausted
	}
	return uint32(seq), nil
}
