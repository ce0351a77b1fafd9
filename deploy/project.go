package deploy

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"bmsota/esp/appimage"
	"bmsota/esp/idfproject"
	"bmsota/esp/parttable"
	"bmsota/manifest"
)

// ErrNoImage says that a project has nothing to publish; the sentence says where it was looked for.
var ErrNoImage = errors.New("no image")

// Project is a firmware project as it was built last: what is published, and what the boards it is for look like.
type Project struct {
	Dir       string
	ImagePath string
	Image     []byte // verified
	Parsed    *appimage.Image
	Chip      string // the project's, in idf.py's words; empty where no file says
	ChipFrom  string // the file that says so
	// Slot is the smallest OTA slot of the project's partition table; its Size is 0 where the project has no table.
	Slot     parttable.Partition
	SlotFrom string // the file of the table
}

// Room is how many bytes the image leaves free in the smallest slot. ok is false where that is not known.
func (p *Project) Room() (free int64, ok bool) {
	return int64(p.Slot.Size) - int64(len(p.Image)), p.Slot.Size > 0
}

// BuildFolder is where idf.py builds in a project unless it is told otherwise.
const BuildFolder = "build"

// OpenProject looks at the firmware project in dir, which was built in the folder build. firmware is the image when not
// empty (build.firmware_path); otherwise it is what the build names, or else the only application image in the build
// folder. It errors with ErrNoImage where there is none, and with ErrImage where the image does not verify. Whether it
// suits the project is told by Check.
func OpenProject(dir, build, firmware string) (*Project, error) {
	p := &Project{Dir: dir}
	// An image that is named may lie in a build folder of another name: idf.py -B.
	if own := filepath.Dir(firmware); firmware != "" && exists(filepath.Join(own, "project_description.json")) {
		build = own
	}
	desc, err := description(build)
	if err != nil {
		return nil, err
	}
	if err := p.findImage(build, firmware, desc.AppBin); err != nil {
		return nil, err
	}
	config, configPath, err := p.sdkconfig(desc)
	if err != nil {
		return nil, err
	}
	if p.Chip, p.ChipFrom = desc.Target, filepath.Join(build, "project_description.json"); p.Chip == "" {
		p.Chip, p.ChipFrom = config["CONFIG_IDF_TARGET"], configPath
	}
	return p, p.findSlot(build, config)
}

// Check says whether the image suits the project: its chip, and the smallest slot an update may have to fit. What the
// project does not tell is a warning.
func (p *Project) Check() (warnings []string, err error) {
	if p.Chip == "" {
		warnings = append(warnings, "no project_description.json and no sdkconfig: whether the image is for the chip of the boards is left to them")
	} else if chip, err := appimage.ParseChip(p.Chip); err != nil {
		warnings = append(warnings, fmt.Sprintf("%s: %v: whether the image is for the chip of the boards is left to them", p.ChipFrom, err))
	} else if p.Parsed.Header.Chip != chip {
		return nil, fmt.Errorf("%w: it is for %s, the project is for %s (%s)", ErrImage, p.Parsed.Header.Chip, chip, p.ChipFrom)
	}
	switch free, ok := p.Room(); {
	case !ok:
		warnings = append(warnings, "no partition table in the project: whether the image fits its slot is left to the boards")
	case free < 0:
		return nil, fmt.Errorf("%w: %d bytes do not fit slot %s, which has %d (%s): %d too many", ErrImage, len(p.Image), p.Slot.Name, p.Slot.Size, p.SlotFrom, -free)
	}
	return warnings, nil
}

func (p *Project) findImage(build, firmware, appBin string) error {
	switch {
	case firmware != "":
		p.ImagePath = firmware
	case appBin != "":
		// As CMake writes it: a name in the build folder. A path from another machine is of no use.
		p.ImagePath = filepath.Join(build, filepath.Base(filepath.FromSlash(appBin)))
	default:
		return p.onlyImage(build)
	}
	b, err := readFile(p.ImagePath, manifest.MaxSize)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: there is no file %s", ErrNoImage, p.ImagePath)
	}
	if errors.Is(err, syscall.EISDIR) {
		return fmt.Errorf("%w: %s is a folder", ErrNoImage, p.ImagePath)
	}
	if errors.Is(err, errTooLarge) {
		return fmt.Errorf("%w: %w", ErrImage, err)
	}
	if err != nil {
		return fmt.Errorf("read image: %w", err)
	}
	img, err := appimage.Parse(b)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrImage, p.ImagePath, err)
	}
	p.Image, p.Parsed = b, img
	return nil
}

// onlyImage takes the one file build/*.bin that is an application: not what lies beside it of partition tables, storage
// and the like.
func (p *Project) onlyImage(build string) error {
	entries, err := os.ReadDir(build)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for images: %w", err)
	}
	var found []string
	for _, e := range entries {
		name := filepath.Join(build, e.Name())
		if !e.Type().IsRegular() || filepath.Ext(name) != ".bin" {
			continue
		}
		b, err := readFile(name, manifest.MaxSize)
		if err != nil {
			continue // too large for an application
		}
		// A bootloader is an image too, but describes itself as no application.
		if img, err := appimage.Parse(b); err == nil && img.Desc != nil {
			p.ImagePath, p.Image, p.Parsed = name, b, img
			found = append(found, filepath.Base(name))
		}
	}
	switch len(found) {
	case 0:
		return fmt.Errorf("%w: there is no application image in %s", ErrNoImage, build)
	case 1:
		return nil
	}
	return fmt.Errorf("%w: %s has several (%s)", ErrNoImage, build, strings.Join(found, ", "))
}

func description(build string) (idfproject.Description, error) {
	b, err := readFile(filepath.Join(build, "project_description.json"), idfproject.MaxDescription)
	if errors.Is(err, fs.ErrNotExist) {
		return idfproject.Description{}, nil
	}
	if err != nil {
		return idfproject.Description{}, fmt.Errorf("read project description: %w", err)
	}
	d, err := idfproject.ParseDescription(b)
	if err != nil {
		return d, fmt.Errorf("folder %s: %w", build, err)
	}
	return d, nil
}

// sdkconfig reads the one the image was built with, when it is on this machine, or else the project's.
func (p *Project) sdkconfig(desc idfproject.Description) (idfproject.SDKConfig, string, error) {
	path := desc.ConfigFile
	if path == "" || !exists(path) {
		path = filepath.Join(p.Dir, "sdkconfig")
	}
	b, err := readFile(path, idfproject.MaxSDKConfig)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, path, nil
	}
	if err != nil {
		return nil, path, fmt.Errorf("read sdkconfig: %w", err)
	}
	c, err := idfproject.ParseSDKConfig(b)
	if err != nil {
		return nil, path, fmt.Errorf("%s: %w", path, err)
	}
	return c, path, nil
}

// findSlot finds the smallest slot: in the table that was built, or else in the text it is built from.
func (p *Project) findSlot(build string, config idfproject.SDKConfig) error {
	csv := "partitions.csv"
	if config.On("CONFIG_PARTITION_TABLE_CUSTOM") && config["CONFIG_PARTITION_TABLE_CUSTOM_FILENAME"] != "" {
		csv = config["CONFIG_PARTITION_TABLE_CUSTOM_FILENAME"]
	}
	if !filepath.IsAbs(csv) {
		csv = filepath.Join(p.Dir, csv)
	}
	for _, path := range []string{filepath.Join(build, "partition_table", "partition-table.bin"), csv} {
		b, err := readFile(path, parttable.MaxCSVSize)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read partition table: %w", err)
		}
		table, err := parseTable(b, config)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		slots := table.Slots()
		if len(slots) == 0 {
			return fmt.Errorf("%w: the partition table %s has no OTA slot, so its boards cannot be updated over the air", ErrImage, path)
		}
		p.Slot, p.SlotFrom = slots[0], path
		for _, s := range slots {
			if s.Size < p.Slot.Size {
				p.Slot = s
			}
		}
		return nil
	}
	return nil
}

func parseTable(b []byte, config idfproject.SDKConfig) (parttable.Table, error) {
	if parttable.IsBinary(b) {
		return parttable.ParseBinary(b)
	}
	var opt parttable.CSVOptions
	if offset, ok := config.Int("CONFIG_PARTITION_TABLE_OFFSET"); ok && offset > 0 && offset <= 1<<32-1 {
		opt.Offset = uint32(offset)
	}
	return parttable.ParseCSV(b, opt)
}

func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAtMost(f, path, limit)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
