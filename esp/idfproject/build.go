package idfproject

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
)

// Description is what build/project_description.json says about a build.
type Description struct {
	ProjectName    string `json:"project_name"`
	ProjectVersion string `json:"project_version"` // as PROJECT_VER became; ESP-IDF before 5.0 does not write it
	ProjectPath    string `json:"project_path"`
	BuildDir       string `json:"build_dir"`
	ConfigFile     string `json:"config_file"` // the sdkconfig that was built with
	AppBin         string `json:"app_bin"`     // below BuildDir
	Target         string `json:"target"`      // the chip, as idf.py calls it
}

// ParseDescription reads build/project_description.json. Any key may be missing.
func ParseDescription(b []byte) (Description, error) {
	var d Description
	if err := decode("project_description.json", b, MaxDescription, &d); err != nil {
		return Description{}, err
	}
	return d, nil
}

// FlasherArgs is what build/flasher_args.json says: how esptool writes the build to a board.
type FlasherArgs struct {
	Files          []FlashFile   // by offset
	Settings       FlashSettings // of the flash chip
	Chip           string        // as esptool calls it; empty before ESP-IDF 4.1
	WriteFlashArgs []string      // the options of esptool write_flash, as written
}

// FlashFile is one file and where in flash it goes.
type FlashFile struct {
	Offset uint32
	Path   string // below the build folder, or absolute
}

// FlashSettings are the settings of the flash chip in esptool's words, such as dio, 4MB or detect, 80m.
type FlashSettings struct {
	Mode string `json:"flash_mode"`
	Size string `json:"flash_size"`
	Freq string `json:"flash_freq"`
}

// maxFlashFiles is more than a partition table has rows.
const maxFlashFiles = 128

// ParseFlasherArgs reads build/flasher_args.json. An offset that is no number of 32 bits, and two files at one offset,
// are refused.
func ParseFlasherArgs(b []byte) (FlasherArgs, error) {
	var raw struct {
		WriteFlashArgs []string          `json:"write_flash_args"`
		FlashSettings  FlashSettings     `json:"flash_settings"`
		FlashFiles     map[string]string `json:"flash_files"`
		Extra          struct {
			Chip string `json:"chip"`
		} `json:"extra_esptool_args"`
	}
	if err := decode("flasher_args.json", b, MaxFlasherArgs, &raw); err != nil {
		return FlasherArgs{}, err
	}
	if len(raw.FlashFiles) > maxFlashFiles {
		return FlasherArgs{}, fmt.Errorf("flasher_args.json: %w: %d flash files, at most %d are read", ErrTooLarge, len(raw.FlashFiles), maxFlashFiles)
	}
	a := FlasherArgs{Settings: raw.FlashSettings, Chip: raw.Extra.Chip, WriteFlashArgs: raw.WriteFlashArgs}
	for key, path := range raw.FlashFiles {
		offset, err := strconv.ParseUint(key, 0, 32)
		if err != nil {
			return FlasherArgs{}, fmt.Errorf("flasher_args.json: %w: flash offset %q is no number of 32 bits", ErrSyntax, key)
		}
		a.Files = append(a.Files, FlashFile{uint32(offset), path})
	}
	slices.SortFunc(a.Files, func(x, y FlashFile) int { return cmp.Compare(x.Offset, y.Offset) })
	for i := 1; i < len(a.Files); i++ {
		if a.Files[i].Offset == a.Files[i-1].Offset {
			return FlasherArgs{}, fmt.Errorf("flasher_args.json: %w: two files at 0x%x", ErrSyntax, a.Files[i].Offset)
		}
	}
	return a, nil
}

// decode reads one JSON object of at most limit bytes into v; null is none.
func decode(name string, b []byte, limit int, v any) error {
	if len(b) > limit {
		return fmt.Errorf("%s: %w: %d bytes, at most %d are read", name, ErrTooLarge, len(b), limit)
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal(b, &object); err != nil || object == nil {
		return fmt.Errorf("%s: %w: no JSON object", name, ErrSyntax)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w: %w", name, ErrSyntax, err)
	}
	return nil
}
