package provision

import (
	"fmt"
	"path/filepath"
	"strings"
)

// Command is one command line of esptool in its two spellings. Version 5 still takes the older one, with a warning.
type Command struct{ V4, V5 string }

// WriteStorage is how a device's storage image gets onto a board and leaves the rest of it as it is.
func (r *Run) WriteStorage(id string) Command {
	return r.command(int64(r.Recipe.Storage.Offset), filepath.Join(r.Folder(id), StorageFile))
}

// WriteFlash is how a device's whole flash gets onto a board: whatever was there is gone, its NVS too.
func (r *Run) WriteFlash(id string) Command {
	return r.command(0, filepath.Join(r.Folder(id), FlashFile))
}

func (r *Run) command(offset int64, path string) Command {
	rest := fmt.Sprintf("0x%x %s", offset, quote(path))
	return Command{
		V4: fmt.Sprintf("esptool.py --chip %s write_flash %s", r.Recipe.Chip, rest),
		V5: fmt.Sprintf("esptool --chip %s write-flash %s", r.Recipe.Chip, rest),
	}
}

// quote makes one word of a path for a POSIX shell.
func quote(path string) string {
	safe := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-/:@%+=,", r)
	}
	if path != "" && !strings.ContainsFunc(path, func(r rune) bool { return !safe(r) }) {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}
