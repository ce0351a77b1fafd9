package provision

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"bmsota/esp/appimage"
	"bmsota/esp/idfproject"
	"bmsota/esp/parttable"
	"bmsota/esp/spiffs"
)

// flasherArgs is the file of a build folder that says what goes where in flash.
const flasherArgs = "flasher_args.json"

// defaultFlash is the size of a flash chip of which the build says only "detect" or "keep", in bytes.
const defaultFlash = 4 << 20

// piece is one file of a build and where it goes.
type piece struct {
	name   string
	offset int64
	data   []byte
}

func (p piece) end() int64 { return p.offset + int64(len(p.data)) }

// build is a firmware build on its way into one image.
type build struct {
	chip   appimage.ChipID
	size   int64 // of the flash, bytes
	pieces []piece
	table  parttable.Table
}

// FromBuild makes the recipe for the boards that a firmware build runs on. dir is the build folder; files are put into the
// storage partition beside the two configuration files, and so are those that the build itself puts there.
//
// The image has what flasher_args.json lists, each at its offset, blank boot records, and FF everywhere else. The
// bootloader has to lie where the chip looks for it; the application has to suit the chip, to fit its partition and to
// verify, because the first thing a board that does not boot needs is a person.
func FromBuild(dir string, files []spiffs.File) (*Recipe, error) {
	raw, err := readFile(filepath.Join(dir, flasherArgs), idfproject.MaxFlasherArgs)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no %s in it: build the project first (idf.py build): %w", flasherArgs, err)
	}
	if err != nil {
		return nil, err
	}
	args, err := idfproject.ParseFlasherArgs(raw)
	if err != nil {
		return nil, err
	}
	if name := encryptedFile(raw); name != "" {
		return nil, fmt.Errorf("%s is written encrypted: an image of a flash with flash encryption cannot be merged, use idf.py flash and the storage image", name)
	}
	b := &build{}
	if b.size, err = flashSize(args.Settings.Size); err != nil {
		return nil, err
	}
	if err := b.read(dir, args.Files); err != nil {
		return nil, err
	}
	tableAt, err := b.findTable()
	if err != nil {
		return nil, err
	}
	if err := b.checkApp(args.Chip); err != nil {
		return nil, err
	}
	if err := b.checkBootloader(tableAt); err != nil {
		return nil, err
	}
	r, err := FromTable(b.table, files)
	if err != nil {
		return nil, err
	}
	r.Chip = b.chip.String()
	if err := b.merge(r, tableAt); err != nil {
		return nil, err
	}
	return r, nil
}

// readFile reads a plain file of at most limit bytes.
func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is no plain file", path)
	case info.Size() > limit:
		return nil, fmt.Errorf("%s has %d bytes, at most %d are read", path, info.Size(), limit)
	}
	return io.ReadAll(io.LimitReader(f, limit))
}

// encryptedFile names a file that esptool would be told to write encrypted. Those keys are beside the known ones:
// {"app": {"offset": …, "file": …, "encrypted": "true"}}.
func encryptedFile(raw []byte) string {
	var entries map[string]json.RawMessage
	if json.Unmarshal(raw, &entries) != nil {
		return ""
	}
	for _, entry := range entries {
		var e struct{ File, Encrypted string }
		if json.Unmarshal(entry, &e) == nil && e.Encrypted == "true" {
			return e.File
		}
	}
	return ""
}

// flashSize reads esptool's word for the size of a flash chip.
func flashSize(word string) (int64, error) {
	switch strings.ToLower(word) {
	case "", "detect", "keep":
		return defaultFlash, nil
	}
	for mib := int64(1); mib <= 32; mib *= 2 {
		if strings.EqualFold(word, fmt.Sprintf("%dMB", mib)) {
			return mib << 20, nil
		}
	}
	return 0, fmt.Errorf("a flash of %q cannot be merged: 1MB, 2MB, 4MB, 8MB, 16MB and 32MB can (CONFIG_ESPTOOLPY_FLASHSIZE)", word)
}

// read reads the files and holds them to the flash and to each other.
func (b *build) read(dir string, files []idfproject.FlashFile) error {
	for _, f := range files {
		path := filepath.FromSlash(f.Path)
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		data, err := readFile(path, b.size)
		if err != nil {
			return err
		}
		p := piece{f.Path, int64(f.Offset), data}
		if p.end() > b.size {
			return fmt.Errorf("%s ends at 0x%x, the flash at 0x%x", p.name, p.end(), b.size)
		}
		if n := len(b.pieces); n > 0 && b.pieces[n-1].end() > p.offset {
			return fmt.Errorf("%s ends at 0x%x, %s starts at 0x%x", b.pieces[n-1].name, b.pieces[n-1].end(), p.name, p.offset)
		}
		b.pieces = append(b.pieces, p)
	}
	return nil
}

// findTable takes the one file that is a partition table. Blank boot records look like an empty one, and are not it.
func (b *build) findTable() (offset int64, err error) {
	for _, p := range b.pieces {
		if len(p.data) > parttable.SectorSize || !parttable.IsBinary(p.data) {
			continue
		}
		t, err := parttable.ParseBinary(p.data)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", p.name, err)
		}
		switch {
		case len(t) == 0:
			continue
		case b.table != nil:
			return 0, fmt.Errorf("%s is a second partition table", p.name)
		}
		// What boots is decided by what the bootloader reads, and it does not look for overlaps.
		_, err = parttable.ParseFlash(p.data, b.size)
		if err == nil {
			_, err = t.Check(parttable.CSVOptions{Offset: uint32(p.offset), FlashSize: b.size})
		}
		if err != nil {
			return 0, fmt.Errorf("%s: %w", p.name, err)
		}
		b.table, offset = t, p.offset
	}
	if b.table == nil {
		return 0, fmt.Errorf("%s lists no partition table", flasherArgs)
	}
	return offset, nil
}

// at gives the piece that starts at an offset.
func (b *build) at(offset int64) (piece, bool) {
	for _, p := range b.pieces {
		if p.offset == offset {
			return p, true
		}
	}
	return piece{}, false
}

// checkApp verifies the application as the bootloader will, in the partition that a board without boot records starts.
func (b *build) checkApp(chip string) error {
	home, ok := b.table.Blank()
	if !ok {
		return errors.New("the partition table has no place for an application")
	}
	app, ok := b.at(int64(home.Offset))
	if !ok {
		return fmt.Errorf("%s lists no application for %s at 0x%x, which a new board starts", flasherArgs, home.Name, home.Offset)
	}
	h, err := appimage.ParseHeader(app.data)
	if err != nil {
		return fmt.Errorf("%s: %w", app.name, err)
	}
	b.chip = h.Chip
	if chip != "" {
		if b.chip, err = appimage.ParseChip(chip); err != nil {
			return fmt.Errorf("%s: %w", flasherArgs, err)
		}
	}
	if h.Chip != b.chip {
		return fmt.Errorf("%s is for %s, the build for %s", app.name, h.Chip, b.chip)
	}
	if int64(len(app.data)) > int64(home.Size) {
		return fmt.Errorf("%s has %d bytes, partition %s has %d (%d too many)", app.name, len(app.data), home.Name, home.Size, int64(len(app.data))-int64(home.Size))
	}
	_, err = appimage.Verify(bytes.NewReader(app.data), appimage.Target{Chip: b.chip, Revision: h.MinRevision, PartitionSize: int64(home.Size), FlashOffset: int64(home.Offset)})
	if err != nil {
		return fmt.Errorf("%s is not a valid image: %w", app.name, err)
	}
	return nil
}

// checkBootloader looks whether the chip will find a bootloader. Of one that is signed or of another build it says nothing.
func (b *build) checkBootloader(tableAt int64) error {
	want := b.chip.BootloaderOffset()
	p, ok := b.at(want)
	switch {
	case !ok:
		return fmt.Errorf("%s lists no bootloader at 0x%x, where the %s looks for it", flasherArgs, want, b.chip)
	case len(p.data) == 0:
		return fmt.Errorf("%s is empty", p.name)
	case p.end() > tableAt:
		return fmt.Errorf("%s ends at 0x%x, behind the start of the partition table at 0x%x", p.name, p.end(), tableAt)
	}
	if h, err := appimage.ParseHeader(p.data); err == nil && h.Chip != b.chip {
		return fmt.Errorf("%s is for %s, the application for %s", p.name, h.Chip, b.chip)
	}
	return nil
}

// merge lays the pieces out, but for boot records and storage: those are the board's own.
func (b *build) merge(r *Recipe, tableAt int64) error {
	r.flash = bytes.Repeat([]byte{0xFF}, int(b.size))
	records, _ := b.table.OTAData()
	for _, p := range b.pieces {
		home, ok := b.partition(p.offset)
		switch {
		case ok && uint64(p.end()) > home.End():
			return fmt.Errorf("%s has %d bytes, partition %s ends after %d of them", p.name, len(p.data), home.Name, home.End()-uint64(p.offset))
		case ok && home == r.Storage:
			if err := r.adopt(p); err != nil {
				return err
			}
			continue
		case ok && home == records:
			continue
		case !ok && p.offset >= tableAt+parttable.SectorSize:
			return fmt.Errorf("%s goes to 0x%x, where the partition table has nothing", p.name, p.offset)
		}
		copy(r.flash[p.offset:], p.data)
	}
	return nil
}

// partition gives the partition that an offset lies in.
func (b *build) partition(offset int64) (parttable.Partition, bool) {
	for _, p := range b.table {
		if offset >= int64(p.Offset) && uint64(offset) < p.End() {
			return p, true
		}
	}
	return parttable.Partition{}, false
}
