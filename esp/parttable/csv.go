package parttable

import (
	"fmt"
	"math"
	"strings"
	"unicode/utf8"
)

// MaxCSVSize is the longest CSV text that is read, in bytes; a full table of 95 rows takes about 6 KiB.
const MaxCSVSize = 1 << 20

// Secure is the Secure Boot scheme a table is checked for.
type Secure uint8

// The schemes gen_esp32part.py knows (--secure). V1 wants application sizes in steps of 64 KiB; the others 4 KiB.
const (
	SecureNone Secure = iota
	SecureV1
	SecureV2
)

// CSVOptions are the facts about a build that gen_esp32part.py takes as arguments.
type CSVOptions struct {
	// Offset is where the table lies in flash (--offset), in bytes; 0 means the default [Offset].
	Offset uint32
	// FlashSize is the size of the flash chip in bytes (--flash-size); 0 checks nothing.
	FlashSize int64
	// Secure is the Secure Boot scheme (--secure).
	Secure Secure
	// MD5 counts the MD5 row towards the most rows a table may have; the generator's default is to write it.
	MD5 bool
	// PrimaryBootloaderOffset and RecoveryBootloaderOffset (--primary-bootloader-offset, --recovery-bootloader-offset), in
	// bytes, give the bootloader rows their place; nil refuses such rows. A pointer, because 0 is a place.
	PrimaryBootloaderOffset, RecoveryBootloaderOffset *uint32
	// Lookup gives the value of $NAME and ${NAME} in a line. gen_esp32part.py takes them from its environment; nil
	// knows none, so that a table means the same wherever it is read. Unknown ones stay as they are.
	Lookup func(name string) (string, bool)
}

func (o CSVOptions) tableOffset() int64 {
	if o.Offset == 0 {
		return Offset
	}
	return int64(o.Offset)
}

// CSVError is a refusal in gen_esp32part.py's own words, where it has any.
type CSVError struct {
	Line    int      // CSV line, from 1; 0 where the fault is not in one line
	Context []string // the lines the generator prints before Message, such as the rows it is about
	Message string
	Hint    string // the line it prints after Message
}

func (e *CSVError) Error() string { return e.Message }

// Lines gives everything that gen_esp32part.py prints about the fault, line by line.
func (e *CSVError) Lines() []string {
	lines := append(append([]string(nil), e.Context...), e.Message)
	if e.Hint != "" {
		lines = append(lines, e.Hint)
	}
	return lines
}

const subtypesHint = "Please check extra_partition_subtypes.inc file in build/config directory"

// row is a CSV line on its way to a Partition: the generator's numbers are unbounded until it packs them, and its name is
// whole until then.
type row struct {
	line          int
	name          string
	typ, subtype  int64
	offset, size  int64
	hasOffset     bool
	encrypted, ro bool
	otherFlags    uint32
}

// ParseCSV reads a table from CSV text as gen_esp32part.py does: automatic offsets and "end address" sizes are resolved,
// everything is checked. Use [DecodeCSV] to see the warnings.
//
// Errors are of type [*CSVError] and carry the generator's text. The text is our own where the generator ends in a Python
// exception (numbers that do not fit their field, text that is not UTF-8), and for the two things that it takes and we do
// not: a label that the cut to 16 bytes would break, and digits that are not ASCII.
func ParseCSV(text []byte, opt CSVOptions) (Table, error) {
	d, err := DecodeCSV(text, opt)
	if err != nil {
		return nil, err
	}
	return d.Table, nil
}

// DecodeCSV is [ParseCSV] with the warnings. A label longer than LabelSize is cut, with a warning, after the names were
// compared at full length; HasMD5 repeats opt.MD5.
func DecodeCSV(text []byte, opt CSVOptions) (Decoded, error) {
	if len(text) > MaxCSVSize {
		return Decoded{}, &CSVError{Message: fmt.Sprintf("%d bytes of CSV are more than the %d a table can need", len(text), MaxCSVSize)}
	}
	s, err := decodeText(text)
	if err != nil {
		return Decoded{}, err
	}
	rows, err := parseLines(s, opt)
	if err != nil {
		return Decoded{}, err
	}
	if err := place(rows, opt); err != nil {
		return Decoded{}, err
	}
	warnings, err := check(rows, opt)
	if err != nil {
		return Decoded{}, err
	}
	d := Decoded{HasMD5: opt.MD5, Warnings: warnings}
	for _, r := range rows {
		p, err := r.partition()
		if err != nil {
			return Decoded{}, err
		}
		if p.Name != r.name {
			d.Warnings = append(d.Warnings, Warning{Line: r.line, Name: r.name, Message: fmt.Sprintf("the label %q does not fit in %d bytes without NUL; the table holds %q", r.name, LabelSize, p.Name)})
		}
		d.Table = append(d.Table, p)
	}
	length := len(rows) * RowSize
	if opt.MD5 {
		length += RowSize
	}
	if length >= BinarySize {
		return Decoded{}, &CSVError{Message: tooLong(length)}
	}
	return d, nil
}

// AppendCSV appends the table as gen_esp32part.py prints it: two comment lines, then a line for each row.
// What CSV has no way to say does not survive the way back: flags without a name, labels that start like a comment or a
// variable, and labels with commas, line ends or outer blanks, which only a table read from flash can have.
func (t Table) AppendCSV(dst []byte) []byte {
	dst = append(dst, "# ESP-IDF Partition Table\n# Name, Type, SubType, Offset, Size, Flags\n"...)
	for _, p := range t {
		dst = append(dst, newRow(p).csv()...)
		dst = append(dst, '\n')
	}
	return dst
}

func newRow(p Partition) row {
	return row{
		name: p.Name, typ: int64(p.Type), subtype: int64(p.Subtype),
		offset: int64(p.Offset), size: int64(p.Size), hasOffset: true,
		encrypted: p.Encrypted, ro: p.ReadOnly, otherFlags: p.OtherFlags,
	}
}

// partition packs the row as the generator does, label cut included.
func (r row) partition() (Partition, error) {
	for _, f := range []struct {
		field      string
		value, max int64
	}{
		{"type", r.typ, math.MaxUint8},
		{"subtype", r.subtype, math.MaxUint8},
		{"offset", r.offset, math.MaxUint32},
		{"size", r.size, math.MaxUint32},
	} {
		if f.value < 0 || f.value > f.max {
			return Partition{}, &CSVError{Line: r.line, Message: fmt.Sprintf("Partition %s invalid: %s %d does not fit in the table: 0 to %d", r.name, f.field, f.value, f.max)}
		}
	}
	name := r.name
	if len(name) > LabelSize {
		name = name[:LabelSize]
	}
	name, _, _ = strings.Cut(name, "\x00")
	if !utf8.ValidString(name) {
		return Partition{}, &CSVError{Line: r.line, Message: fmt.Sprintf("Partition %s invalid: cut to %d bytes, the label ends within a character", r.name, LabelSize)}
	}
	return Partition{
		Name: name, Type: uint8(r.typ), Subtype: uint8(r.subtype),
		Offset: uint32(r.offset), Size: uint32(r.size),
		Encrypted: r.encrypted, ReadOnly: r.ro, OtherFlags: r.otherFlags,
	}, nil
}

// csv is the row as a line without its end.
func (r row) csv() string {
	size := fmt.Sprintf("0x%x", r.size)
	switch {
	case r.size%(1<<20) == 0:
		size = fmt.Sprintf("%dM", r.size>>20)
	case r.size%(1<<10) == 0:
		size = fmt.Sprintf("%dK", r.size>>10)
	}
	var flags []string
	if r.encrypted {
		flags = append(flags, "encrypted")
	}
	if r.ro {
		flags = append(flags, "readonly")
	}
	return strings.Join([]string{
		r.name,
		lookupName(typeWords, r.typ),
		lookupName(subtypeWords(r.typ), r.subtype),
		fmt.Sprintf("0x%x", r.offset),
		size,
		strings.Join(flags, ":"),
	}, ",")
}

func parseLines(s string, opt CSVOptions) ([]row, error) {
	var rows []row
	for i, line := range splitLines(s) {
		line, err := expand(line, opt.Lookup)
		if err != nil {
			return nil, err
		}
		line = strings.TrimFunc(line, isSpace)
		if line == "" || line[0] == '#' {
			continue
		}
		r, err := parseRow(line, opt)
		if err != nil {
			return nil, &CSVError{Line: i + 1, Message: fmt.Sprintf("Error at line %d: %s", i+1, err), Hint: subtypesHint}
		}
		r.line = i + 1
		rows = append(rows, r)
	}
	return rows, nil
}

func parseRow(line string, opt CSVOptions) (row, error) {
	var fields [6]string
	for i, f := range strings.Split(line, ",") {
		if i == len(fields) {
			break
		}
		fields[i] = strings.TrimFunc(f, isSpace)
	}
	r := row{name: fields[0]}
	if fields[1] == "" {
		return row{}, errorString("Field 'type' can't be left empty.")
	}
	var err error
	if r.typ, err = parseInt(fields[1], typeWords); err != nil {
		return row{}, err
	}
	if r.subtype, err = parseSubtype(fields[2], r.typ); err != nil {
		return row{}, err
	}
	if err = r.parseOffset(fields[3], opt); err != nil {
		return row{}, err
	}
	if err = r.parseSize(fields[4], opt); err != nil {
		return row{}, err
	}
	for flag := range strings.SplitSeq(fields[5], ":") {
		switch flag {
		case "":
		case "encrypted":
			r.encrypted = true
		case "readonly":
			r.ro = true
		default:
			return row{}, errorString(fmt.Sprintf("CSV flag column contains unknown flag '%s'", flag))
		}
	}
	return r, nil
}

func parseSubtype(field string, typ int64) (int64, error) {
	if field != "" {
		return parseInt(field, subtypeWords(typ))
	}
	if typ == int64(TypeApp) {
		return 0, errorString("App partition cannot have an empty subtype")
	}
	return int64(SubtypeUnset), nil
}

const (
	noPrimaryOffset  = errorString("Primary bootloader offset is not defined. Please use --primary-bootloader-offset")
	noRecoveryOffset = errorString("Recovery bootloader offset is not defined. Please use --recovery-bootloader-offset")
)

// parseOffset leaves hasOffset false where the row is to be placed after the one before it. Rows whose place the build
// gives do not even have their field read.
func (r *row) parseOffset(field string, opt CSVOptions) error {
	given := func(offset int64) error {
		r.offset, r.hasOffset = offset, true
		return nil
	}
	switch {
	case r.typ == int64(TypeBootloader) && r.subtype == int64(SubtypePrimary):
		if opt.PrimaryBootloaderOffset == nil {
			return noPrimaryOffset
		}
		return given(int64(*opt.PrimaryBootloaderOffset))
	case r.typ == int64(TypeBootloader) && r.subtype == int64(SubtypeRecovery):
		if opt.RecoveryBootloaderOffset == nil {
			return noRecoveryOffset
		}
		return given(int64(*opt.RecoveryBootloaderOffset))
	case r.typ == int64(TypePartitionTable) && r.subtype == int64(SubtypePrimary):
		return given(opt.tableOffset())
	case field == "":
		return nil
	}
	offset, err := parseInt(field, nil)
	if err != nil {
		return err
	}
	return given(offset)
}

func (r *row) parseSize(field string, opt CSVOptions) (err error) {
	switch {
	case r.typ == int64(TypeBootloader):
		if opt.PrimaryBootloaderOffset == nil {
			return noPrimaryOffset
		}
		r.size = opt.tableOffset() - int64(*opt.PrimaryBootloaderOffset)
	case r.typ == int64(TypePartitionTable):
		r.size = SectorSize
	case field == "":
		return errorString("Size field can't be empty")
	default:
		r.size, err = parseInt(field, nil)
	}
	return err
}

// fixed reports whether the row is the bootloader or the table itself: it lies before the partitions and takes no part in
// placing them.
func (r row) fixed() bool {
	return (r.typ == int64(TypeBootloader) || r.typ == int64(TypePartitionTable)) && r.subtype == int64(SubtypePrimary)
}

func (r row) offsetAlignment() int64 {
	if r.typ == int64(TypeApp) {
		return 0x10000
	}
	return 0x1000
}

// place resolves missing offsets and negative sizes, row after row. Offsets must ascend in file order.
func place(rows []row, opt CSVOptions) error {
	end := opt.tableOffset() + SectorSize
	for i := range rows {
		r := &rows[i]
		if r.fixed() {
			continue
		}
		if r.hasOffset && r.offset < end {
			// The generator compares values here, not places: a copy of the first row gets the first row's message.
			if first := rows[0]; first.name == r.name && first.typ == r.typ && first.subtype == r.subtype &&
				first.hasOffset == r.hasOffset && first.offset == r.offset && first.size == r.size {
				return &CSVError{Line: r.line, Message: fmt.Sprintf("CSV Error at line %d: Partitions overlap. Partition sets offset %s. But partition table occupies the whole sector %s. Use a free offset %s or higher.",
					r.line, pyHex(r.offset), pyHex(opt.tableOffset()), pyHex(end))}
			}
			return &CSVError{Line: r.line, Message: fmt.Sprintf("CSV Error at line %d: Partitions overlap. Partition sets offset %s. Previous partition ends %s", r.line, pyHex(r.offset), pyHex(end))}
		}
		if !r.hasOffset {
			align := r.offsetAlignment()
			r.offset, r.hasOffset = end+(align-end%align)%align, true
		}
		if r.size < 0 {
			r.size = -r.size - r.offset
		}
		end = r.offset + r.size
		if r.offset > maxNumber || r.size > maxNumber || end > maxNumber || end < -maxNumber {
			return &CSVError{Line: r.line, Message: fmt.Sprintf("CSV Error at line %d: the partition reaches to %s, past any flash", r.line, pyHex(end))}
		}
	}
	return nil
}
