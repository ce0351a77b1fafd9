package parttable

import (
	"fmt"
	"slices"
	"strings"
)

// nvsMinSize is the least size of an NVS partition that can be written: three sectors.
const nvsMinSize = 0x3000

// Check holds a table against gen_esp32part.py's rules, which it applies to CSV and binary tables alike: alignment, unique
// names, overlaps, one otadata partition of the right size, flash size. ParseCSV has done so already. The error is of
// type [*CSVError], with no line.
func (t Table) Check(opt CSVOptions) ([]Warning, error) {
	rows := make([]row, len(t))
	for i, p := range t {
		rows[i] = newRow(p)
	}
	return check(rows, opt)
}

// check runs the rules in the generator's order, which decides which of several faults is told.
func check(rows []row, opt CSVOptions) ([]Warning, error) {
	var warnings []Warning
	for _, r := range rows {
		more, err := r.check(opt)
		if err != nil {
			return nil, err
		}
		warnings = append(warnings, more...)
	}
	for _, rule := range []func([]row, CSVOptions) error{checkNames, checkOverlaps, checkRecords, checkFlashSize} {
		if err := rule(rows, opt); err != nil {
			return nil, err
		}
	}
	return warnings, nil
}

func (r row) check(opt CSVOptions) ([]Warning, error) {
	invalid := func(format string, args ...any) error {
		return &CSVError{Line: r.line, Message: "Partition " + r.name + " invalid: " + fmt.Sprintf(format, args...)}
	}
	if align := r.offsetAlignment(); r.offset%align != 0 {
		return nil, invalid("Offset %s is not aligned to %s", pyHex(r.offset), pyHex(align))
	}
	if r.typ == int64(TypeApp) {
		align := int64(0x1000)
		if opt.Secure == SecureV1 {
			align = 0x10000 // its signature lies at the end of a 64 KiB block
		}
		if r.size%align != 0 {
			return nil, invalid("Size %s is not aligned to %s", pyHex(r.size), pyHex(align))
		}
	}
	warnings := r.nameWarnings()
	if r.typ != int64(TypeData) {
		return warnings, nil
	}
	if r.ro && (r.subtype == int64(SubtypeOTAData) || r.subtype == int64(SubtypeCoredump)) {
		return nil, invalid("'%s' partition of type %d and subtype %d is always read-write and cannot be read-only", r.name, r.typ, r.subtype)
	}
	if r.subtype == int64(SubtypeNVS) && r.size < nvsMinSize && !r.ro {
		return nil, invalid("'%s' partition of type %d and subtype %d of this size (%s) must be flagged as 'readonly' (the size of read/write NVS has to be at least %s)",
			r.name, r.typ, r.subtype, pyHex(r.size), pyHex(nvsMinSize))
	}
	return warnings, nil
}

// nameWarnings tells of a name that is a keyword and says something else than the row.
func (r row) nameWarnings() []Warning {
	var warnings []Warning
	warn := func(format string, args ...any) {
		warnings = append(warnings, Warning{Line: r.line, Name: r.name, Message: fmt.Sprintf(format, args...)})
	}
	if typ, known := lookupValue(typeWords, r.name); known && typ != r.typ {
		warn("Partition has name '%s' which is a partition type, but does not match this partition's type (%s). Mistake in partition table?", r.name, pyHex(r.typ))
	}
	known := false
	for _, t := range typeWords {
		_, ok := lookupValue(subtypeWords(t.value), r.name)
		known = known || ok
	}
	if subtype, ok := lookupValue(subtypeWords(r.typ), r.name); known && (!ok || subtype != r.subtype) {
		warn("Partition has name '%s' which is a partition subtype, but this partition has non-matching type %s and subtype %s. Mistake in partition table?", r.name, pyHex(r.typ), pyHex(r.subtype))
	}
	return warnings
}

func checkNames(rows []row, _ CSVOptions) error {
	seen := make(map[string]int, len(rows))
	for _, r := range rows {
		seen[r.name]++
	}
	if len(seen) == len(rows) {
		return nil
	}
	byName := slices.Clone(rows)
	slices.SortStableFunc(byName, func(a, b row) int { return strings.Compare(a.name, b.name) })
	context := []string{"A list of partitions that have the same name:"}
	for _, r := range byName {
		if seen[r.name] > 1 {
			context = append(context, r.csv())
		}
	}
	return &CSVError{Context: context, Message: "Partition names must be unique"}
}

func checkOverlaps(rows []row, opt CSVOptions) error {
	byOffset := slices.Clone(rows)
	slices.SortStableFunc(byOffset, func(a, b row) int {
		switch {
		case a.offset < b.offset:
			return -1
		case a.offset > b.offset:
			return 1
		}
		return 0
	})
	lowest := opt.tableOffset() + SectorSize
	for i, r := range byOffset {
		if r.offset < lowest && !r.fixed() {
			return &CSVError{Line: r.line, Message: fmt.Sprintf("Partition offset %s is below %s", pyHex(r.offset), pyHex(lowest))}
		}
		if i == 0 {
			continue
		}
		if last := byOffset[i-1]; r.offset < last.offset+last.size {
			return &CSVError{Line: r.line, Message: fmt.Sprintf("Partition at %s overlaps %s-%s", pyHex(r.offset), pyHex(last.offset), pyHex(last.offset+last.size-1))}
		}
	}
	return nil
}

// checkRecords wants at most one partition with boot records, of the right size; the same for those of the trusted
// execution environment.
func checkRecords(rows []row, _ CSVOptions) error {
	for _, kind := range []struct {
		subtype        uint8
		many, sizeName string
	}{
		{SubtypeOTAData, `Found multiple otadata partitions. Only one partition can be defined with type="data"(1) and subtype="ota"(0).`, "otadata"},
		{SubtypeTEEOTA, `Found multiple TEE otadata partitions. Only one partition can be defined with type="data"(1) and subtype="tee_ota"(0x90).`, "TEE otadata"},
	} {
		var found []string
		sizeOK := true
		for _, r := range rows {
			if r.typ == int64(TypeData) && r.subtype == int64(kind.subtype) {
				found = append(found, r.csv())
				sizeOK = r.size == OTADataSize
			}
		}
		if len(found) > 1 {
			return &CSVError{Context: found, Message: kind.many}
		}
		if !sizeOK {
			return &CSVError{Context: found, Message: fmt.Sprintf("%s partition must have size = %s", kind.sizeName, pyHex(OTADataSize))}
		}
	}
	return nil
}

// checkFlashSize looks at the end of the row with the highest offset, and at no other's, as the generator does.
func checkFlashSize(rows []row, opt CSVOptions) error {
	if opt.FlashSize == 0 || len(rows) == 0 {
		return nil
	}
	last := rows[0]
	for _, r := range rows[1:] {
		if r.offset > last.offset {
			last = r
		}
	}
	if end := last.offset + last.size; end > opt.FlashSize {
		const mb = 1 << 20
		return &CSVError{Line: last.line, Message: fmt.Sprintf("Partitions tables occupies %.1fMB of flash (%d bytes) which does not fit in configured flash size %dMB. Change the flash size in menuconfig under the 'Serial Flasher Config' menu.",
			float64(end)/mb, end, opt.FlashSize/mb)}
	}
	return nil
}
