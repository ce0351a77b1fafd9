package agent

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"

	"bmsota/esp/otadata"
	"bmsota/protocol"
)

// note is what firmware tells the firmware after the restart: why a slot was left, and which image was in it.
//
// It stands in the otadata partition, behind the record of that slot: ESP-IDF uses the first 32 bytes of each of the two
// sectors and leaves the rest erased. That place has what no other has. It is in flash, so it survives a power cut,
// where RTC memory or a reset reason would not. It belongs to the record: whoever rewrites the record erases the note
// with it, so a note never speaks of an older trial. Firmware that does not know it never reads it. And it can be
// programmed without an erase and without touching the record, which the failed slot itself does not offer (a running
// application may not write to its own partition) and a tombstone neither (it stands where the image still is).
//
//	 0  magic[8]   "bmsnote1"
//	 8  sha256[32] of the image file that was in the slot
//	40  cause[20]  a protocol reason, NUL padded
//	60  crc        LE32, CRC-32 (IEEE) of the 60 bytes before
//	64  told       0xFF, programmed to 0 when the report of it was acknowledged
//	65  void       0xFF, programmed to 0 when the slot runs again
type note struct {
	digest [32]byte
	cause  protocol.Reason
	told   bool
	void   bool
}

const (
	noteOffset = 64 // in the record's sector, in bytes
	noteMagic  = "bmsnote1"
	noteCause  = 40
	noteCRC    = 60
	noteTold   = 64
	noteVoid   = 65
	noteSize   = 66
)

func appendNote(dst []byte, n note) []byte {
	start := len(dst)
	dst = append(dst, noteMagic...)
	dst = append(dst, n.digest[:]...)
	dst = append(dst, n.cause...)
	dst = append(dst, make([]byte, start+noteCRC-len(dst))...)
	return binary.LittleEndian.AppendUint32(dst, crc32.ChecksumIEEE(dst[start:]))
}

func parseNote(b []byte) (note, bool) {
	if len(b) < noteSize || string(b[:8]) != noteMagic ||
		binary.LittleEndian.Uint32(b[noteCRC:]) != crc32.ChecksumIEEE(b[:noteCRC]) {
		return note{}, false
	}
	cause := protocol.Reason(bytes.TrimRight(b[noteCause:noteCRC], "\x00")).Known()
	return note{digest: [32]byte(b[8:40]), cause: cause, told: b[noteTold] == 0, void: b[noteVoid] == 0}, true
}

func (a *agent) noteAt(record int) (int64, error) {
	data, ok := a.env.Table.OTAData()
	if !ok || data.Size < otadata.PartitionSize {
		return 0, errors.New("no otadata partition")
	}
	return int64(data.Offset) + int64(record)*otadata.SectorSize + noteOffset, nil
}

// readNote reads the note behind a record; ok is false where there is none or a torn one.
func (a *agent) readNote(record int) (n note, ok bool, err error) {
	off, err := a.noteAt(record)
	if err != nil {
		return note{}, false, err
	}
	var b [noteSize]byte
	if _, err := a.env.Flash.ReadAt(b[:], off); err != nil {
		return note{}, false, fmt.Errorf("read note %d: %w", record, err)
	}
	n, ok = parseNote(b[:])
	return n, ok, nil
}

// writeNote leaves a note behind a record. There is room for one until the sector is erased: a second, different one
// is refused, the same one again is no write at all.
func (a *agent) writeNote(record int, n note) error {
	if len(n.cause) > noteCRC-noteCause {
		panic("agent: reason does not fit a note: " + string(n.cause))
	}
	off, err := a.noteAt(record)
	if err != nil {
		return err
	}
	want := appendNote(nil, n)
	var have [noteSize]byte
	if _, err := a.env.Flash.ReadAt(have[:], off); err != nil {
		return fmt.Errorf("read note %d: %w", record, err)
	}
	if !fits(have[:len(want)], want) || have[noteTold] != 0xFF || have[noteVoid] != 0xFF {
		return fmt.Errorf("note %d: another one is there", record)
	}
	if bytes.Equal(have[:len(want)], want) {
		return nil
	}
	if err := a.env.Flash.Program(off, want); err != nil {
		return fmt.Errorf("write note %d: %w", record, err)
	}
	if back, ok, err := a.readNote(record); err != nil || !ok || back.digest != n.digest || back.cause != n.cause {
		return errors.Join(fmt.Errorf("note %d reads back differently", record), err)
	}
	return nil
}

// fits says whether programming want over have gives want: NOR flash only clears bits.
func fits(have, want []byte) bool {
	for i := range want {
		if have[i]&want[i] != want[i] {
			return false
		}
	}
	return true
}

// mark programs one of a note's two flags.
func (a *agent) mark(record int, flag int64) error {
	off, err := a.noteAt(record)
	if err != nil {
		return err
	}
	if err := a.env.Flash.Program(off+flag, []byte{0}); err != nil {
		return fmt.Errorf("mark note %d: %w", record, err)
	}
	return nil
}

// digestText is how a digest is written in statuses; empty for the unknown one.
func digestText(sum [32]byte) string {
	if sum == ([32]byte{}) {
		return ""
	}
	return hex.EncodeToString(sum[:])
}
