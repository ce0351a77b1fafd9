package lint

import (
	"cmp"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"bmsota/esp/appimage"
	"bmsota/esp/idfproject"
	"bmsota/esp/parttable"
)

const noSlots = "A board with this table cannot be updated over the air, and the table itself can only be changed by USB."

// checkTable looks at the partition table that the build takes. A table cannot be changed over the air: what is wrong
// with it in the field stays wrong.
func (p *project) checkTable() {
	f := p.tableFile()
	if f == nil {
		return
	}
	opt := parttable.CSVOptions{MD5: true, PrimaryBootloaderOffset: p.bootloader()}
	if text := p.setting("CONFIG_PARTITION_TABLE_OFFSET").value; text != "" {
		if n, err := strconv.ParseUint(text, 0, 32); err == nil {
			opt.Offset = uint32(n)
		}
	}
	t, err := parttable.ParseCSV([]byte(f.text), opt)
	if err != nil {
		p.refusedTable(f, err)
		return
	}
	row := func(name string) int {
		return f.line(func(l string) bool {
			first, _, _ := strings.Cut(l, ",")
			return strings.TrimSpace(first) == name
		})
	}
	p.checkSlots(f, t, row)
	if _, ok := t.OTAData(); !ok && len(t.Slots()) > 0 {
		p.add(Finding{"no-otadata", Danger, f.path, 0, "no row data, ota", csvRow("otadata", "data", "ota", parttable.OTADataSize),
			"Without it the bootloader cannot be told to start another slot: every update ends in an error."})
	}
	if _, ok := t.Storage(); !ok {
		p.add(Finding{"no-storage", Warning, f.path, 0, "no row data, spiffs", csvRow("storage", "data", "spiffs", 768<<10),
			"The board has no place for ota_config.txt and mqtt_config.txt: it knows no server."})
	}
	p.checkImage(f, t, row)
}

// tableFile finds the table that the build takes, and tells where it takes none of the project.
func (p *project) tableFile() *file {
	name := cmp.Or(p.setting("CONFIG_PARTITION_TABLE_CUSTOM_FILENAME").value, "partitions.csv")
	f := p.files[strings.TrimPrefix(name, "./")]
	switch {
	case p.files["platformio.ini"] != nil: // it names the table itself
		return f
	case p.setting("CONFIG_PARTITION_TABLE_CUSTOM").on():
		if f == nil {
			s := p.setting("CONFIG_PARTITION_TABLE_CUSTOM")
			p.add(Finding{"table-missing", Warning, s.file.path, s.line, "the custom partition table is " + name + ", and there is none", `CONFIG_PARTITION_TABLE_CUSTOM_FILENAME="partitions.csv"`,
				"Where the table comes from another place its slots could not be checked."})
		}
		return f
	case p.setting("CONFIG_PARTITION_TABLE_TWO_OTA").on(), p.setting("CONFIG_PARTITION_TABLE_TWO_OTA_LARGE").on():
		return nil
	}
	found, line := "no partition table is chosen, and ESP-IDF's default has one application and no slots", 0
	for _, name := range []string{"CONFIG_PARTITION_TABLE_SINGLE_APP", "CONFIG_PARTITION_TABLE_SINGLE_APP_LARGE"} {
		if s := p.setting(name); s.on() {
			found, line = name+"=y", s.line
		}
	}
	where := defaultsFile
	if p.config != nil {
		where = "sdkconfig"
	}
	if f != nil {
		found += "; " + f.path + " is not used"
	}
	if c := p.files["CMakeLists.txt"]; c != nil && strings.Contains(c.text, "PARTITION_TABLE") {
		found += ", and what CMakeLists.txt sets of it has no effect"
	}
	p.add(Finding{"no-slots", Danger, where, line, found, "CONFIG_PARTITION_TABLE_CUSTOM=y", noSlots})
	return f
}

// bootloader is where the target's bootloader lies, for tables with a row for it.
func (p *project) bootloader() *uint32 {
	chip, err := appimage.ParseChip(cmp.Or(p.setting("CONFIG_IDF_TARGET").value, "esp32"))
	if err != nil {
		return nil
	}
	at := uint32(chip.BootloaderOffset())
	return &at
}

// refusedTable tells why ESP-IDF will not take the table.
func (p *project) refusedTable(f *file, err error) {
	line, message := 0, err.Error()
	if ce, ok := errors.AsType[*parttable.CSVError](err); ok {
		line, message = ce.Line, strings.TrimSpace(ce.Message)
	}
	if at, size := otadataRow(f); at > 0 && size != parttable.OTADataSize {
		p.addAt(Danger, "otadata-size", f, at, csvRow("otadata", "data", "ota", parttable.OTADataSize), "otadata is two sectors, one for each boot record; ESP-IDF takes no other size.")
		return
	}
	p.add(Finding{"table-refused", Danger, f.path, line, clip(message), "a table that 'bmsota partition show " + f.path + "' takes", "ESP-IDF does not build with it, so what is in the field has another one."})
}

// otadataRow finds the row of the boot records in a table that cannot be read as a whole.
func otadataRow(f *file) (line int, size int64) {
	n := 0
	for l := range strings.Lines(f.text) {
		n++
		fields := strings.Split(l, ",")
		if len(fields) < 5 || strings.TrimSpace(fields[1]) != "data" || strings.TrimSpace(fields[2]) != "ota" {
			continue
		}
		text, unit := strings.ToUpper(strings.TrimSpace(fields[4])), int64(1)
		if digits, ok := strings.CutSuffix(text, "K"); ok {
			text, unit = digits, 1<<10
		}
		if v, err := strconv.ParseInt(text, 0, 32); err == nil {
			return n, v * unit
		}
	}
	return 0, 0
}

func csvRow(name, typ, subtype string, size int64) string {
	return fmt.Sprintf("%s, %s, %s, , 0x%x,", name, typ, subtype, size)
}

// checkSlots wants two slots or more, numbered without a gap, of one size.
func (p *project) checkSlots(f *file, t parttable.Table, row func(string) int) {
	slots := t.Slots()
	all := 0
	for _, q := range t {
		if q.IsOTA() {
			all++
		}
	}
	switch {
	case all > len(slots):
		next := fmt.Sprintf("ota_%d", len(slots))
		for _, q := range t {
			if q.IsOTA() && q.Subtype > parttable.SubtypeOTA0+uint8(len(slots)) {
				p.addAt(Danger, "slot-gap", f, row(q.Name), csvRow(next, "app", next, int64(q.Size)),
					"Applications count slots up to the first number that is missing and never use this one, while the bootloader counts every row.")
				break
			}
		}
	case all == 0:
		p.add(Finding{"no-slots", Danger, f.path, 0, "no row app, ota_0", csvRow("ota_0", "app", "ota_0", 1536<<10),
			noSlots})
	case all == 1:
		p.addAt(Danger, "one-slot", f, row(slots[0].Name), csvRow("ota_1", "app", "ota_1", int64(slots[0].Size)),
			"An update is written to the slot that does not run: with one slot there is none, and no image to go back to.")
	}
	smallest := smallestOf(slots)
	for _, q := range slots {
		if q.Size > smallest.Size {
			p.addAt(Danger, "slots-unequal", f, row(smallest.Name), csvRow(smallest.Name, "app", smallest.SubtypeName(), int64(q.Size)),
				fmt.Sprintf("%s has %d bytes, %s has %d: an image that fits only one slot updates a board every second time, and then never again.", q.Name, q.Size, smallest.Name, smallest.Size))
			break
		}
	}
}

func smallestOf(slots []parttable.Partition) parttable.Partition {
	var smallest parttable.Partition
	for i, q := range slots {
		if i == 0 || q.Size < smallest.Size {
			smallest = q
		}
	}
	return smallest
}

// tight is how little room may be left in a slot, in parts of it, before it is worth a word: 1/20.
const tight = 20

// checkImage holds the image that was built last against the smallest slot.
func (p *project) checkImage(f *file, t parttable.Table, row func(string) int) {
	slot := smallestOf(t.Slots())
	name, size := p.image()
	if name == "" || slot.Size == 0 {
		return
	}
	left := int64(slot.Size) - size
	if left >= int64(slot.Size)/tight {
		return
	}
	// A quarter more than today, in steps that a slot may have.
	want := (size + size/4 + 0xFFFF) &^ 0xFFFF
	finding := Finding{"image-tight", Warning, f.path, row(slot.Name), fmt.Sprintf("%s has %d bytes, %s has %d: %d bytes left", name, size, slot.Name, slot.Size, left),
		csvRow(slot.Name, "app", slot.SubtypeName(), want) + " (and the same for every slot)", "Soon a release will not fit, and the table of boards in the field can only be changed by USB."}
	if left < 0 {
		finding.Rule, finding.Severity = "image-too-large", Danger
		finding.Found = fmt.Sprintf("%s has %d bytes, %s has %d: %d too many", name, size, slot.Name, slot.Size, -left)
		finding.Why = "No board with this table can take the image, and its table can only be changed by USB: make the image smaller, or the slots larger before the first board leaves."
	}
	p.add(finding)
}

// image finds the application in the folder build: the one its description names, else the largest that is an image.
func (p *project) image() (name string, size int64) {
	if text, err := p.text("build/project_description.json", idfproject.MaxDescription); err == nil {
		if d, err := idfproject.ParseDescription([]byte(text)); err == nil && d.AppBin != "" {
			if info, err := p.root.Stat("build/" + d.AppBin); err == nil && info.Mode().IsRegular() {
				return "build/" + clip(d.AppBin), info.Size()
			}
		}
	}
	dir, err := p.root.Open("build")
	if err != nil {
		return "", 0
	}
	defer dir.Close()
	entries, _ := dir.ReadDir(maxEntries / 10) // what is behind the cap, or cannot be read, is not the application
	for _, e := range entries {
		path := "build/" + e.Name()
		if !strings.HasSuffix(path, ".bin") || !e.Type().IsRegular() {
			continue
		}
		if n, ok := p.imageSize(path); ok && n > size {
			name, size = path, n
		}
	}
	return name, size
}

// imageSize gives the size of a file that starts like an application image.
func (p *project) imageSize(name string) (int64, bool) {
	f, err := p.root.Open(name)
	if err != nil {
		return 0, false
	}
	defer f.Close()
	var head [appimage.HeaderSize]byte
	info, err := f.Stat()
	if err != nil {
		return 0, false
	}
	if _, err := f.ReadAt(head[:], 0); err != nil {
		return 0, false
	}
	_, err = appimage.ParseHeader(head[:])
	return info.Size(), err == nil
}
