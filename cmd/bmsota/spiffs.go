package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"bmsota/esp/spiffs"
)

// maxSPIFFS is what 16-bit page numbers reach with pages of 256 bytes.
const maxSPIFFS = 16 << 20

var (
	spiffsKind = inputKind{what: "a SPIFFS image", limit: maxSPIFFS, hint: "cut the partition out of a flash image first"}
	orderKind  = inputKind{what: "a list of paths", limit: 1 << 20, hint: "give a text file with one path a line"}
)

func newSPIFFSCmd() *cobra.Command {
	return group("spiffs", "build, list and extract SPIFFS images", newSPIFFSBuildCmd(), newSPIFFSListCmd(), newSPIFFSExtractCmd())
}

func newSPIFFSBuildCmd() *cobra.Command {
	var size sizeFlag
	var order string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "build --size BYTES DIR OUT",
		Short: "make an image of a folder",
		Long: `Make a SPIFFS image of the files in DIR, byte for byte as ESP-IDF's spiffsgen.py does with its default settings.

Files are taken in the order of their paths, so that the same files give the same image everywhere. --order names a text
file with one path a line, relative to DIR; those come first, in that order. SPIFFS has no folders: a file in one has
the slash in its name, and empty folders leave no trace. - as OUT writes to standard output.`,
		Example: `  bmsota spiffs build --size 0xC0000 storage/ storage.bin
  bmsota spiffs build --size 768K --order order.txt storage/ storage.bin`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := needFlags(cmd, "size"); err != nil {
				return err
			}
			// An empty image tells whether the size is possible, before any file is read.
			if _, err := spiffs.Build(int64(size), nil); err != nil {
				return usageFault(cmd, "--size: %w", err)
			}
			files, err := filesOf(cmd, args[0], order, int64(size))
			if err != nil {
				return err
			}
			image, err := spiffs.Build(int64(size), files)
			if err != nil {
				hint := "rename the file"
				if errors.Is(err, spiffs.ErrFull) {
					hint = "remove files, or give a larger --size and a larger partition"
				}
				return badContent(args[0], err, hint)
			}
			return reportOutput(cmd, args[1], image, asJSON)
		},
	}
	cmd.Flags().Var(&size, "size", "size of the image, that of its partition (a multiple of 4K)")
	cmd.Flags().StringVar(&order, "order", "", "file with the paths in the order they go into the image")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what was written as JSON")
	return cmd
}

// filesOf reads the files below dir, sorted by path or as the order file says, and gives up when they have more bytes than
// the image.
func filesOf(cmd *cobra.Command, dir, order string, size int64) ([]spiffs.File, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return nil, inputKind{what: "the folder to make an image of"}.unreadable(dir, err)
	}
	if !info.IsDir() {
		return nil, failure("give the folder to make an image of", "%s is not a folder", shown(dir))
	}
	paths, err := pathsBelow(dir)
	if err != nil {
		return nil, err
	}
	if order != "" {
		if paths, err = orderPaths(cmd, order, paths); err != nil {
			return nil, err
		}
	}
	room := size
	files := make([]spiffs.File, 0, len(paths))
	for _, p := range paths {
		hint := "remove files, or give a larger --size and a larger partition"
		kind := inputKind{what: "what is left of the image", limit: room, hint: hint}
		data, err := kind.read(cmd, filepath.Join(dir, filepath.FromSlash(p)))
		if err != nil {
			return nil, err
		}
		room -= int64(len(data))
		files = append(files, spiffs.File{Name: "/" + p, Data: data})
	}
	return files, nil
}

// pathsBelow lists the files below dir, slash-separated and sorted. A link to a file counts as the file; anything else that
// is no file is refused, because an image without it would be a surprise.
func pathsBelow(dir string) ([]string, error) {
	var paths []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return inputKind{what: "a folder that can be read"}.unreadable(p, err)
		}
		if d.IsDir() {
			return nil
		}
		if p == dir {
			return nil // a link to the folder
		}
		info, err := os.Stat(p)
		if err != nil {
			return inputKind{what: "a file that can be read"}.unreadable(p, err)
		}
		if !info.Mode().IsRegular() {
			return badContent(p, errors.New("neither a file nor a folder"), "leave it out of the folder")
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return failure("", "path of %s: %w", shown(p), err)
		}
		paths = append(paths, filepath.ToSlash(rel))
		return nil
	})
	slices.Sort(paths)
	return paths, err
}

// orderPaths puts the paths that the file lists first.
func orderPaths(cmd *cobra.Command, file string, paths []string) ([]string, error) {
	text, err := orderKind.read(cmd, file)
	if err != nil {
		return nil, err
	}
	left := make(map[string]bool, len(paths))
	for _, p := range paths {
		left[p] = true
	}
	ordered := make([]string, 0, len(paths))
	for i, line := range strings.Split(string(text), "\n") {
		name := strings.TrimSuffix(line, "\r")
		if name == "" {
			continue
		}
		name = path.Clean(strings.TrimPrefix(name, "/"))
		if !left[name] {
			return nil, badContent(file, fmt.Errorf("line %d: %q is no file of the folder, or is there twice", i+1, name), "list paths relative to the folder")
		}
		delete(left, name)
		ordered = append(ordered, name)
	}
	for _, p := range paths {
		if left[p] {
			ordered = append(ordered, p)
		}
	}
	return ordered, nil
}

func readSPIFFS(cmd *cobra.Command, file string) (*spiffs.FS, error) {
	image, err := spiffsKind.read(cmd, file)
	if err != nil {
		return nil, err
	}
	fsys, err := spiffs.Read(image)
	if err != nil {
		return nil, badContent(file, err, "only images with ESP-IDF's default SPIFFS settings, as long as their partition, can be read")
	}
	return fsys, nil
}

// spiffsRow is one element of `spiffs list --json`.
type spiffsRow struct {
	Name  string `json:"name"` // as stored, with its leading slash
	Size  int64  `json:"size"` // bytes
	Error string `json:"error,omitempty"`
}

func newSPIFFSListCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list FILE",
		Short: "list the files of an image",
		Long: `List the files of a SPIFFS image in the order in which firmware finds them. - reads standard input.
Damage is told: a file that cannot be read says why, and everything a sound image would not have is a warning.`,
		Example: `  bmsota spiffs list storage.bin
  bmsota spiffs list --json storage.bin`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			fsys, err := readSPIFFS(cmd, args[0])
			if err != nil {
				return err
			}
			for _, a := range fsys.Anomalies() {
				warn(cmd, "%s: %s", shown(args[0]), plain(a))
			}
			rows := []spiffsRow{}
			for _, f := range fsys.Files() {
				row := spiffsRow{Name: f.Name, Size: f.Size}
				if f.Err != nil {
					row.Error = f.Err.Error()
				}
				rows = append(rows, row)
			}
			if asJSON {
				return printJSON(cmd, rows)
			}
			var buf bytes.Buffer
			w := tabwriter.NewWriter(&buf, 0, 8, 2, ' ', 0)
			fmt.Fprintln(w, "SIZE\tNAME\t")
			for _, r := range rows {
				fmt.Fprintf(w, "%d\t%s\t%s\n", r.Size, plain(r.Name), plain(r.Error))
			}
			w.Flush()
			return printf(cmd, "%s", trimLines(buf.String()))
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newSPIFFSExtractCmd() *cobra.Command {
	var skipDamaged bool
	cmd := &cobra.Command{
		Use:   "extract FILE DIR",
		Short: "write the files of an image to a folder",
		Long: `Write the files of a SPIFFS image to DIR, which is made if it is not there; files of the same name are replaced.
Nothing is written outside DIR, and nothing at all when a name is unsafe or a file is damaged.`,
		Example: `  bmsota spiffs extract storage.bin files/
  bmsota spiffs extract --skip-damaged dump.bin files/`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			fsys, err := readSPIFFS(cmd, args[0])
			if err != nil {
				return err
			}
			files, err := extractable(cmd, args[0], fsys, skipDamaged)
			if err != nil {
				return err
			}
			return extractTo(cmd, args[1], files)
		},
	}
	cmd.Flags().BoolVar(&skipDamaged, "skip-damaged", false, "leave out files that cannot be read, with a warning")
	return cmd
}

// extractable reads every file and checks every name before anything is written. Names are safe relative paths of which
// none is a folder of another.
func extractable(cmd *cobra.Command, image string, fsys *spiffs.FS, skipDamaged bool) ([]spiffs.File, error) {
	var files []spiffs.File
	taken := make(map[string]bool)
	for _, info := range fsys.Files() {
		name, err := spiffs.SafeName(info.Name)
		if err != nil {
			return nil, badContent(image, err, "the image was not made by ESP-IDF's tools; look at it with 'bmsota spiffs list'")
		}
		data, err := fsys.ReadFile(info.Name)
		if err != nil {
			if skipDamaged {
				warn(cmd, "%s is left out: %s", plain(name), plain(err.Error()))
				continue
			}
			return nil, badContent(image, fmt.Errorf("%s is damaged: %w", info.Name, err), "give --skip-damaged to extract the others")
		}
		if taken[name] {
			return nil, badContent(image, fmt.Errorf("two files are called %q", name), "")
		}
		taken[name] = true
		files = append(files, spiffs.File{Name: name, Data: data})
	}
	for _, f := range files {
		for dir := path.Dir(f.Name); dir != "."; dir = path.Dir(dir) {
			if taken[dir] {
				return nil, badContent(image, fmt.Errorf("%q is a file and the folder of %q, which no folder can hold", dir, f.Name), "")
			}
		}
	}
	return files, nil
}

// extractTo writes the files below dir. An os.Root keeps every path inside, also where dir holds links that lead out.
func extractTo(cmd *cobra.Command, dir string, files []spiffs.File) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return unwritable(filepath.Join(dir, "."), err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return unwritable(dir, err)
	}
	defer root.Close()

	// Every byte is on the disk under a temporary name before the first name changes: what fails up to here (no room, a
	// folder in the way) leaves the files of before.
	temps := make([]string, 0, len(files))
	defer func() {
		for _, t := range temps {
			_ = root.Remove(t) // those that have their name by now are not there
		}
	}()
	for _, f := range files {
		name := filepath.FromSlash(f.Name)
		where := filepath.Join(dir, name)
		if info, err := root.Stat(name); err == nil && info.IsDir() {
			return unwritable(where, errFolder)
		}
		if err := root.MkdirAll(filepath.Dir(name), 0o777); err != nil {
			return unwritable(where, err)
		}
		temp := filepath.Join(filepath.Dir(name), tempName())
		out, err := root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
		if err != nil {
			return unwritable(where, err)
		}
		temps = append(temps, temp)
		if err := writeSyncClose(out, f.Data); err != nil {
			return unwritable(where, err)
		}
	}
	for i, f := range files {
		if err := root.Rename(temps[i], filepath.FromSlash(f.Name)); err != nil {
			return unwritable(filepath.Join(dir, f.Name), err)
		}
	}
	return printf(cmd, "extracted %d files to %s\n", len(files), shown(dir))
}
