package otaops

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strings"

	"bmsota/esp/parttable"
)

// MaxCause is the longest cause in a tombstone, in bytes.
const MaxCause = 32

// Tombstone says of a slot why its image was given up. It stands where the
// image began, so that the slot cannot boot:
//
//	 0  magic[8]  "bmstomb1"; never 0xE9, the first byte of an image
//	 8  sha256[32] of the image file, zero if unknown
//	40  cause[32]  printable ASCII, NUL padded
//	72  crc        LE32, CRC-32 (IEEE) of the 72 bytes before
//	76  acked      0xFF, programmed to 0x00 without an erase
type Tombstone struct {
	SHA256 [32]byte // of the failed image file; zero if unknown
	Cause  string   // short printable ASCII
	Acked  bool     // the report of it was acknowledged
}

const (
	tombMagic = "bmstomb1"
	tombCRC   = 8 + 32 + MaxCause
	tombAck   = tombCRC + 4
	tombSize  = tombAck + 1
)

// WriteTombstone erases the first sector of a slot other than the running one
// and leaves a tombstone there, not acknowledged. A slot that has one with the
// same digest, or a known digest where sum is zero, keeps it and its cause: no
// image can have been there since, and the first cause is the nearest to what
// happened. Cut anywhere, it can be repeated; a torn one reads as absent. The
// slot cannot boot from the moment its erase has begun to show.
func (o *Ops) WriteTombstone(slot parttable.Partition, sum [32]byte, cause string) error {
	const op = "write tombstone"
	if err := o.checkTarget(op, slot); err != nil {
		return err
	}
	if !slot.IsOTA() || slot.Size < sectorSize {
		return fail(op, InvalidArg, "%q is no numbered slot", slot.Name)
	}
	if !printable(cause) {
		return fail(op, InvalidArg, "cause %q is not 1 to %d printable ASCII characters", cause, MaxCause)
	}
	there, ok, err := o.ReadTombstone(slot)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if ok && (there.SHA256 == sum || sum == [32]byte{}) {
		return nil
	}
	raw := appendTombstone(nil, Tombstone{SHA256: sum, Cause: cause})
	if back, ok := parseTombstone(raw); !ok || back.SHA256 != sum || back.Cause != cause {
		panic("otaops: an encoded tombstone does not decode to itself")
	}
	if err := o.flash.Erase(int64(slot.Offset), sectorSize); err != nil {
		return fmt.Errorf("%s: erase: %w", op, err)
	}
	if err := o.flash.Program(int64(slot.Offset), raw); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return wrap(op, o.readBack("tombstone", int64(slot.Offset), raw))
}

// ReadTombstone reads the tombstone of a slot; ok is false where there is none,
// or one that was not finished. An error is of the flash.
func (o *Ops) ReadTombstone(slot parttable.Partition) (t Tombstone, ok bool, err error) {
	if slot.Size < sectorSize {
		return Tombstone{}, false, nil
	}
	raw := make([]byte, tombSize)
	if _, err := o.flash.ReadAt(raw, int64(slot.Offset)); err != nil {
		return Tombstone{}, false, fmt.Errorf("read tombstone of %s: %w", slot.Name, err)
	}
	t, ok = parseTombstone(raw)
	return t, ok, nil
}

// AckTombstone remembers that the report of the slot's tombstone was
// acknowledged. It needs no erase; cut in the middle it reads as not
// acknowledged, and can be repeated. NotFound where there is no tombstone.
func (o *Ops) AckTombstone(slot parttable.Partition) error {
	const op = "acknowledge tombstone"
	if err := o.checkTarget(op, slot); err != nil {
		return err
	}
	t, ok, err := o.ReadTombstone(slot)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if !ok {
		return fail(op, NotFound, "%s has no tombstone", slot.Name)
	}
	if t.Acked {
		return nil
	}
	off := int64(slot.Offset) + tombAck
	if err := o.flash.Program(off, []byte{0}); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return wrap(op, o.readBack("acknowledgement", off, []byte{0}))
}

func appendTombstone(dst []byte, t Tombstone) []byte {
	start := len(dst)
	dst = append(dst, tombMagic...)
	dst = append(dst, t.SHA256[:]...)
	dst = append(dst, t.Cause...)
	dst = append(dst, make([]byte, start+tombCRC-len(dst))...)
	dst = binary.LittleEndian.AppendUint32(dst, crc32.ChecksumIEEE(dst[start:]))
	if t.Acked {
		return append(dst, 0x00)
	}
	return append(dst, 0xFF)
}

func parseTombstone(b []byte) (Tombstone, bool) {
	if len(b) < tombSize || string(b[:8]) != tombMagic ||
		binary.LittleEndian.Uint32(b[tombCRC:]) != crc32.ChecksumIEEE(b[:tombCRC]) {
		return Tombstone{}, false
	}
	cause := strings.TrimRight(string(b[40:tombCRC]), "\x00")
	if !printable(cause) {
		return Tombstone{}, false
	}
	// Anything but zero is an acknowledgement that was cut short.
	return Tombstone{SHA256: [32]byte(b[8:40]), Cause: cause, Acked: b[tombAck] == 0}, true
}

func printable(cause string) bool {
	if cause == "" || len(cause) > MaxCause {
		return false
	}
	for i := range len(cause) {
		if cause[i] < 0x20 || cause[i] > 0x7E {
			return false
		}
	}
	return true
}
