package parttable

import (
	"bytes"
	"crypto/md5"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

/*
esp_partition_info_t, esp_flash_partitions.h; 32 bytes, little-endian:

	 0  u16  magic     0x50AA; 0xEBEB for the MD5 row, 0xFFFF for the end
	 2  u8   type
	 3  u8   subtype
	 4  u32  offset
	 8  u32  size
	12  u8[16] label   NUL padded, not terminated when full
	28  u32  flags     bit 0 encrypted, bit 1 readonly

The MD5 row is EB EB, 14 bytes FF, and the MD5 of every row before it.
*/
const (
	flagEncrypted = 1 << 0
	flagReadOnly  = 1 << 1

	md5SumOffset = 16 // of the sum within its row
)

var (
	rowMagic = []byte{0xAA, 0x50}
	md5Magic = []byte{0xEB, 0xEB}
)

// Decoded is a table together with what its written form says beside the rows.
type Decoded struct {
	Table Table
	// HasMD5 says whether a binary table carries its MD5 row. The bootloader does without; an application built
	// with ESP-IDF's defaults finds no partition at all where it is missing.
	HasMD5   bool
	Warnings []Warning
}

// IsBinary reports whether b looks like a binary table rather than CSV text.
func IsBinary(b []byte) bool {
	if len(b) < RowSize {
		return false
	}
	return bytes.HasPrefix(b, rowMagic) || bytes.HasPrefix(b, md5Magic) || isFilled(b[:RowSize])
}

// ParseBinary reads a binary table as gen_esp32part.py does: rows, an optional MD5 row that must be right, and a row of FF.
// What follows that row is not looked at. Use [DecodeBinary] to learn of the MD5 row and of warnings.
// Errors are of type [*FormatError].
func ParseBinary(b []byte) (Table, error) {
	d, err := DecodeBinary(b)
	if err != nil {
		return nil, err
	}
	return d.Table, nil
}

// DecodeBinary is [ParseBinary] with everything it learns. Where it gives no warning,
// AppendBinary(nil, d.HasMD5) gives the rows that were read, byte for byte, and FF behind them.
func DecodeBinary(b []byte) (Decoded, error) {
	var d Decoded
	for off := 0; off < len(b); off += RowSize {
		if len(b)-off < RowSize {
			return Decoded{}, &FormatError{int64(off), "length", fmt.Sprintf("%d bytes are not a multiple of %d", len(b), RowSize)}
		}
		row := b[off : off+RowSize]
		switch {
		case isFilled(row):
			return d, nil
		case bytes.HasPrefix(row, md5Magic):
			if d.HasMD5 {
				return Decoded{}, &FormatError{int64(off), "md5", "a second MD5 row"}
			}
			if err := checkMD5(b, off); err != nil {
				return Decoded{}, err
			}
			d.HasMD5 = true
			if !isFilled(row[len(md5Magic):md5SumOffset]) {
				d.Warnings = append(d.Warnings, Warning{Message: "the MD5 row has other bytes than FF between its mark and its sum"})
			}
		case !bytes.HasPrefix(row, rowMagic):
			return Decoded{}, &FormatError{int64(off), "magic", fmt.Sprintf("%02x %02x starts neither a row (aa 50) nor the MD5 row (eb eb) nor the end (ff)", row[0], row[1])}
		case d.HasMD5:
			// The bootloader would lose the last row, the application every row from here on: nobody means this.
			return Decoded{}, &FormatError{int64(off), "magic", "a row behind the MD5 row, where the sum does not cover it"}
		case len(d.Table) >= MaxRows:
			return Decoded{}, &FormatError{int64(off), "length", fmt.Sprintf("more than %d rows", MaxRows)}
		default:
			p, warnings := decodeRow(row)
			if !utf8.ValidString(p.Name) {
				return Decoded{}, &FormatError{int64(off) + 12, "label", fmt.Sprintf("%q is not UTF-8", p.Name)}
			}
			d.Table = append(d.Table, p)
			d.Warnings = append(d.Warnings, warnings...)
		}
	}
	return Decoded{}, &FormatError{int64(len(b)), "end", "no row of FF ends the table"}
}

// ParseFlash reads the table as the bootloader does before it boots (esp_partition_table_verify and
// bootloader_utility_load_partition_table). sector holds the flash at the table's offset, at least BinarySize bytes of it
// (a shorter piece is taken as it is and must hold the end row); flashSize is the size of the flash chip in bytes.
//
// It refuses a row that reaches past the chip, a second or wrong MD5 row, an unknown magic, an empty table, and a table
// without an end within 96 rows. Labels are not looked at, an MD5 row is not needed. Rows behind the MD5 row are let
// through, but the last of them is lost: the bootloader leaves the MD5 row out when it counts rows, yet not when it walks them.
// In one thing it is stricter than the chip, whose 32-bit sum of offset and size wraps round: such a row is refused.
// Errors are of type [*FormatError].
func ParseFlash(sector []byte, flashSize int64) (Table, error) {
	var rows Table
	md5Row := -1
	for n := range BinarySize / RowSize {
		off := n * RowSize
		if len(sector)-off < RowSize {
			return nil, &FormatError{int64(off), "length", fmt.Sprintf("the table breaks off after %d bytes", len(sector))}
		}
		row := sector[off : off+RowSize]
		switch {
		case bytes.HasPrefix(row, rowMagic):
			p, _ := decodeRow(row)
			if flashSize < 0 || p.End() > uint64(flashSize) {
				return nil, &FormatError{int64(off) + 4, "offset", fmt.Sprintf("row %d (%q) covers 0x%x to 0x%x, past the flash chip's 0x%x", n, p.Name, p.Offset, p.End(), flashSize)}
			}
			rows = append(rows, p)
		case bytes.HasPrefix(row, md5Magic):
			if md5Row >= 0 {
				return nil, &FormatError{int64(off), "md5", "a second MD5 row"}
			}
			if err := checkMD5(sector, off); err != nil {
				return nil, err
			}
			md5Row = n
		case n > 0 && isFilled(row[:4]):
			if md5Row >= 0 && md5Row < len(rows) {
				rows = rows[:len(rows)-1]
			}
			return rows, nil
		default:
			return nil, &FormatError{int64(off), "magic", fmt.Sprintf("row %d starts with %02x %02x", n, row[0], row[1])}
		}
	}
	return nil, &FormatError{BinarySize, "end", fmt.Sprintf("no end within %d rows", BinarySize/RowSize)}
}

// AppendBinary appends the binary form, BinarySize bytes, as gen_esp32part.py writes it; with md5 the rows are followed by
// their MD5 row. It refuses more rows than fit and labels that a row cannot hold. Whether the rows make sense is not
// its business: [Table.Check] looks at that. Errors are of type [*FormatError].
func (t Table) AppendBinary(dst []byte, md5 bool) ([]byte, error) {
	n := len(t)
	if md5 {
		n++
	}
	if n*RowSize >= BinarySize {
		return dst, &FormatError{BinarySize, "length", tooLong(n * RowSize)}
	}
	start := len(dst)
	dst = slices.Grow(dst, BinarySize)
	for i, p := range t {
		if len(p.Name) > LabelSize || strings.IndexByte(p.Name, 0) >= 0 {
			return dst[:start], &FormatError{int64(i)*RowSize + 12, "label", fmt.Sprintf("%q does not fit: at most %d bytes and no NUL", p.Name, LabelSize)}
		}
		dst = appendRow(dst, p)
	}
	if md5 {
		dst = appendMD5(dst, dst[start:])
	}
	for len(dst)-start < BinarySize {
		dst = append(dst, 0xFF)
	}
	return dst, nil
}

func appendMD5(dst, rows []byte) []byte {
	sum := md5.Sum(rows)
	dst = append(dst, md5Magic...)
	for range md5SumOffset - len(md5Magic) {
		dst = append(dst, 0xFF)
	}
	return append(dst, sum[:]...)
}

func appendRow(dst []byte, p Partition) []byte {
	flags := p.OtherFlags &^ (flagEncrypted | flagReadOnly)
	if p.Encrypted {
		flags |= flagEncrypted
	}
	if p.ReadOnly {
		flags |= flagReadOnly
	}
	var label [LabelSize]byte
	copy(label[:], p.Name)
	dst = append(dst, rowMagic...)
	dst = append(dst, p.Type, p.Subtype)
	dst = binary.LittleEndian.AppendUint32(dst, p.Offset)
	dst = binary.LittleEndian.AppendUint32(dst, p.Size)
	dst = append(dst, label[:]...)
	return binary.LittleEndian.AppendUint32(dst, flags)
}

// decodeRow reads a row of RowSize bytes whose magic has been looked at. It warns of what writing the row would lose or
// what it does not understand.
func decodeRow(row []byte) (Partition, []Warning) {
	var warnings []Warning
	label := row[12:28]
	if end := bytes.IndexByte(label, 0); end >= 0 {
		if len(bytes.Trim(label[end:], "\x00")) > 0 {
			warnings = append(warnings, Warning{Name: string(label[:end]), Message: fmt.Sprintf("partition %q has bytes behind the end of its label; they are dropped", label[:end])})
		}
		label = label[:end]
	}
	flags := binary.LittleEndian.Uint32(row[28:])
	p := Partition{
		Name:       string(label),
		Type:       row[2],
		Subtype:    row[3],
		Offset:     binary.LittleEndian.Uint32(row[4:]),
		Size:       binary.LittleEndian.Uint32(row[8:]),
		Encrypted:  flags&flagEncrypted != 0,
		ReadOnly:   flags&flagReadOnly != 0,
		OtherFlags: flags &^ (flagEncrypted | flagReadOnly),
	}
	if p.OtherFlags != 0 {
		warnings = append(warnings, Warning{Name: p.Name, Message: fmt.Sprintf("partition %q has unknown flags 0x%08x; a newer format?", p.Name, p.OtherFlags)})
	}
	return p, warnings
}

// checkMD5 compares the MD5 row at off with the rows before it.
func checkMD5(b []byte, off int) error {
	want := md5.Sum(b[:off])
	got := b[off+md5SumOffset : off+RowSize]
	if !bytes.Equal(got, want[:]) {
		return &FormatError{int64(off) + md5SumOffset, "md5", fmt.Sprintf("the row says %x, the rows before it give %x", got, want)}
	}
	return nil
}

// isFilled reports whether b is erased flash.
func isFilled(b []byte) bool {
	for _, c := range b {
		if c != 0xFF {
			return false
		}
	}
	return true
}

// tooLong is the generator's wording for a table with too many rows.
func tooLong(length int) string {
	return fmt.Sprintf("Binary partition table length (%d) longer than max", length)
}
