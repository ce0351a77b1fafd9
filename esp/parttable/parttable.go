// Package parttable reads and writes ESP-IDF partition tables: the 3 KiB binary form that lives in flash and the CSV form
// that people edit.
//
// It promises what ESP-IDF's own readers and its generator do, kept apart because they disagree:
// [ParseBinary] and [ParseCSV] follow gen_esp32part.py, [ParseFlash] follows the second-stage bootloader, [Table.Slots]
// counts as a running application does and [Table.BootSlots] as the bootloader does. Row order is kept, so that
// CSV to binary and back gives the bytes and the text that gen_esp32part.py gives.
//
// It refuses what those readers refuse, and a few things that only one of them lets through: rows after the MD5 row,
// rows that wrap past 4 GiB, labels that cannot be written back. What the generator accepts silently
// although it changes the meaning (a label cut to 16 bytes, a name that contradicts its type) comes back as a [Warning].
//
// The truth is in ESP-IDF v5.5: components/partition_table/gen_esp32part.py (1.5),
// components/bootloader_support/src/flash_partitions.c and include/esp_flash_partitions.h,
// components/bootloader_support/src/bootloader_utility.c, components/esp_partition/partition.c.
//
// Nothing here keeps state; all functions may be called from several goroutines.
package parttable

import (
	"fmt"
	"strconv"
)

const (
	// Offset is where the table lies in flash unless CONFIG_PARTITION_TABLE_OFFSET says otherwise, in bytes.
	Offset = 0x8000
	// SectorSize is the flash sector the table occupies, in bytes; the first partition starts behind it.
	SectorSize = 0x1000
	// BinarySize is the length of the binary form, in bytes: the rest of the sector is kept for a signature.
	BinarySize = 0xC00
	// RowSize is the length of one binary row, in bytes.
	RowSize = 32
	// LabelSize is the room for a label in a row, in bytes; a label that fills it has no terminator.
	LabelSize = 16
	// MaxRowsMD5 and MaxRows are the most partitions a table can hold with and without an MD5 row.
	// The generator wants the rows to stay below BinarySize, not within it.
	MaxRowsMD5 = BinarySize/RowSize - 2
	MaxRows    = BinarySize/RowSize - 1
)

// Partition types (esp_partition.h, esp_partition_type_t). 0x40 to 0xFE are free for applications.
const (
	TypeApp            uint8 = 0x00
	TypeData           uint8 = 0x01
	TypeBootloader     uint8 = 0x02
	TypePartitionTable uint8 = 0x03
)

// Subtypes that decisions hang on (esp_partition.h, esp_partition_subtype_t).
const (
	SubtypeFactory  uint8 = 0x00 // app
	SubtypeOTA0     uint8 = 0x10 // app; ota_0 to ota_15 are 0x10 to 0x1F
	SubtypeOTA15    uint8 = 0x1F // app
	SubtypeTest     uint8 = 0x20 // app
	SubtypeOTAData  uint8 = 0x00 // data
	SubtypePHY      uint8 = 0x01 // data
	SubtypeNVS      uint8 = 0x02 // data
	SubtypeCoredump uint8 = 0x03 // data
	SubtypeUnset    uint8 = 0x06 // data/undefined; what an empty CSV field means for every type but app
	SubtypeSPIFFS   uint8 = 0x82 // data
	SubtypeTEEOTA   uint8 = 0x90 // data
	SubtypePrimary  uint8 = 0x00 // bootloader and partition_table
	SubtypeRecovery uint8 = 0x02 // bootloader
)

// OTADataSize is the only size the generator accepts for the otadata partition, in bytes: two sectors, one record in each.
const OTADataSize = 0x2000

// MaxSlots is how many application slots the format has numbers for.
const MaxSlots = 16

// Partition is one row of the table. Offset and Size are in bytes from the start of flash.
type Partition struct {
	// Name is the label, at most LabelSize bytes, without NUL. A table read from flash may hold any other bytes in it.
	Name          string
	Type, Subtype uint8
	Offset, Size  uint32
	Encrypted     bool // flag bit 0
	ReadOnly      bool // flag bit 1
	// OtherFlags are the flag bits this package has no name for (bits 2 to 31), kept so that a row is written as it was read.
	// CSV has no words for them.
	OtherFlags uint32
}

// End is the first byte behind the partition. It is 64 bits wide because offset and size are not checked against each other.
func (p Partition) End() uint64 { return uint64(p.Offset) + uint64(p.Size) }

// IsOTA reports whether the partition is one of the application slots ota_0 to ota_15.
func (p Partition) IsOTA() bool {
	return p.Type == TypeApp && p.Subtype >= SubtypeOTA0 && p.Subtype <= SubtypeOTA15
}

// TypeName is the type's keyword, or its decimal number where it has none.
func (p Partition) TypeName() string { return lookupName(typeWords, int64(p.Type)) }

// SubtypeName is the subtype's keyword within its type, or its decimal number where it has none.
func (p Partition) SubtypeName() string {
	return lookupName(subtypeWords(int64(p.Type)), int64(p.Subtype))
}

// Table is a partition table in row order, which is the order of the CSV lines and of the binary rows.
type Table []Partition

// Find gives the first partition with this label.
func (t Table) Find(name string) (Partition, bool) {
	for _, p := range t {
		if p.Name == name {
			return p, true
		}
	}
	return Partition{}, false
}

// OTAData gives the partition that holds the two boot records (data/ota).
// Of several rows the last counts, as in the bootloader; the generator refuses a second one.
func (t Table) OTAData() (Partition, bool) { return t.last(TypeData, SubtypeOTAData) }

// Factory gives the factory application. Of several rows the last counts, as in the bootloader.
func (t Table) Factory() (Partition, bool) { return t.last(TypeApp, SubtypeFactory) }

// Test gives the test application. Of several rows the last counts, as in the bootloader.
func (t Table) Test() (Partition, bool) { return t.last(TypeApp, SubtypeTest) }

// Blank gives the application that a board with blank boot records starts: the factory one, else the first slot.
func (t Table) Blank() (Partition, bool) {
	if p, ok := t.Factory(); ok {
		return p, true
	}
	return t.first(TypeApp, SubtypeOTA0)
}

// Storage gives the first SPIFFS partition, where the configuration files are.
func (t Table) Storage() (Partition, bool) { return t.first(TypeData, SubtypeSPIFFS) }

func (t Table) first(typ, subtype uint8) (Partition, bool) {
	for _, p := range t {
		if p.Type == typ && p.Subtype == subtype {
			return p, true
		}
	}
	return Partition{}, false
}

func (t Table) last(typ, subtype uint8) (Partition, bool) {
	for i := len(t) - 1; i >= 0; i-- {
		if t[i].Type == typ && t[i].Subtype == subtype {
			return t[i], true
		}
	}
	return Partition{}, false
}

// Slots gives the slots as the running application counts them (get_ota_partition_count in esp_ota_ops.c):
// ota_0, ota_1 and so on until the first number that is missing. Of duplicates the first row counts.
func (t Table) Slots() []Partition {
	var slots []Partition
	for n := range uint8(MaxSlots) {
		p, ok := t.first(TypeApp, SubtypeOTA0+n)
		if !ok {
			break
		}
		slots = append(slots, p)
	}
	return slots
}

// BootSlots gives the slots as the bootloader counts them (bootloader_utility_load_partition_table): every row ota_0 to
// ota_15 adds one to count, duplicates included and gaps allowed, while slot looks up by number. So in a table with
// ota_0 and ota_2 count is 2, and ota_2 can never be reached because its number is not below count.
//
// slot(i) is false for a number outside 0 to count-1, for a number no row has, and for a row of size zero, which the
// bootloader passes over. Of duplicates the last row counts.
func (t Table) BootSlots() (count int, slot func(i int) (Partition, bool)) {
	var byNumber [MaxSlots]Partition
	for _, p := range t {
		if p.IsOTA() {
			byNumber[p.Subtype-SubtypeOTA0] = p
			count++
		}
	}
	return count, func(i int) (Partition, bool) {
		if i < 0 || i >= count || i >= MaxSlots || byNumber[i].Size == 0 {
			return Partition{}, false
		}
		return byNumber[i], true
	}
}

// Default is the layout a board has unless it is given another: two slots of 1.5 MiB, no factory application, and 768 KiB
// of storage, for 4 MiB of flash.
func Default() Table {
	return Table{
		{Name: "nvs", Type: TypeData, Subtype: SubtypeNVS, Offset: 0x9000, Size: 0x6000},
		{Name: "phy_init", Type: TypeData, Subtype: SubtypePHY, Offset: 0xF000, Size: 0x1000},
		{Name: "otadata", Type: TypeData, Subtype: SubtypeOTAData, Offset: 0x10000, Size: OTADataSize},
		{Name: "ota_0", Type: TypeApp, Subtype: SubtypeOTA0, Offset: 0x20000, Size: 0x180000},
		{Name: "ota_1", Type: TypeApp, Subtype: SubtypeOTA0 + 1, Offset: 0x1A0000, Size: 0x180000},
		{Name: "storage", Type: TypeData, Subtype: SubtypeSPIFFS, Offset: 0x320000, Size: 0xC0000},
	}
}

// FormatError says which bytes of a binary table are wrong.
type FormatError struct {
	Offset int64  // of the faulty bytes, counted from the start of the input (or of the output, when writing)
	Field  string // what lies there: "magic", "label", "md5", "length", ...
	Reason string
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("partition table: %s at 0x%x: %s", e.Field, e.Offset, e.Reason)
}

// Warning is something a table says that is allowed but hardly meant.
type Warning struct {
	Line    int    // CSV line, from 1; 0 for a binary table
	Name    string // the label as it was written
	Message string
}

func (w Warning) String() string {
	if w.Line > 0 {
		return fmt.Sprintf("line %d: %s", w.Line, w.Message)
	}
	return w.Message
}

// word is a CSV keyword and its number. Slices of them keep the generator's order, which shows in its messages.
type word struct {
	name  string
	value int64
}

var typeWords = []word{{"bootloader", 2}, {"partition_table", 3}, {"app", 0}, {"data", 1}}

var (
	bootloaderWords = []word{{"primary", 0}, {"ota", 1}, {"recovery", 2}}
	tableWords      = []word{{"primary", 0}, {"ota", 1}}
	appWords        = []word{
		{"factory", 0x00}, {"test", 0x20},
		{"ota_0", 0x10}, {"ota_1", 0x11}, {"ota_2", 0x12}, {"ota_3", 0x13},
		{"ota_4", 0x14}, {"ota_5", 0x15}, {"ota_6", 0x16}, {"ota_7", 0x17},
		{"ota_8", 0x18}, {"ota_9", 0x19}, {"ota_10", 0x1A}, {"ota_11", 0x1B},
		{"ota_12", 0x1C}, {"ota_13", 0x1D}, {"ota_14", 0x1E}, {"ota_15", 0x1F},
		{"tee_0", 0x30}, {"tee_1", 0x31},
	}
	dataWords = []word{
		{"ota", 0}, {"phy", 1}, {"nvs", 2}, {"coredump", 3}, {"nvs_keys", 4}, {"efuse", 5}, {"undefined", 6},
		{"esphttpd", 0x80}, {"fat", 0x81}, {"spiffs", 0x82}, {"littlefs", 0x83}, {"tee_ota", 0x90},
	}
)

// subtypeWords gives the keywords of a type's subtypes; none for the types applications define.
func subtypeWords(typ int64) []word {
	switch typ {
	case int64(TypeApp):
		return appWords
	case int64(TypeData):
		return dataWords
	case int64(TypeBootloader):
		return bootloaderWords
	case int64(TypePartitionTable):
		return tableWords
	}
	return nil
}

func lookupName(words []word, value int64) string {
	for _, w := range words {
		if w.value == value {
			return w.name
		}
	}
	return strconv.FormatInt(value, 10)
}

func lookupValue(words []word, name string) (int64, bool) {
	for _, w := range words {
		if w.name == name {
			return w.value, true
		}
	}
	return 0, false
}
