package main

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"unicode"

	"github.com/spf13/cobra"
)

// standardStream is the file name that means standard input or output.
const standardStream = "-"

// inputKind is what a command expects in a file: how to call it, and how much of it is read at most.
type inputKind struct {
	what  string // with its article, as in "an ESP32 application image"
	limit int64  // bytes
	hint  string // what to do about a file that is longer than limit
}

// tooLargeError says that an input was not read because it is longer than what it should hold can be.
type tooLargeError struct {
	size int64 // bytes; 0 where it is not known, as for standard input
	kind inputKind
}

func (e *tooLargeError) Error() string {
	if e.size == 0 {
		return fmt.Sprintf("more than %d bytes, the most that %s can have", e.kind.limit, e.kind.what)
	}
	return fmt.Sprintf("%d bytes, but %s has at most %d", e.size, e.kind.what, e.kind.limit)
}

// read gives the whole content of path, or of standard input for "-". Whatever the file is, it takes no more memory than
// the kind allows. Errors are faults: 1 where the file cannot be read, 3 around a *tooLargeError.
func (k inputKind) read(cmd *cobra.Command, path string) ([]byte, error) {
	if path == standardStream {
		return k.readAll(cmd.InOrStdin(), path, 0)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, k.unreadable(path, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, k.unreadable(path, err)
	}
	if info.IsDir() {
		return nil, failure("give the path of "+k.what, "%s is a folder", shown(path))
	}
	if info.Mode().IsRegular() && info.Size() > k.limit {
		return nil, k.tooLarge(path, info.Size())
	}
	return k.readAll(f, path, info.Size())
}

func (k inputKind) readAll(r io.Reader, path string, size int64) ([]byte, error) {
	var buf bytes.Buffer
	if size > 0 && size <= k.limit {
		buf.Grow(int(size) + bytes.MinRead)
	}
	if _, err := buf.ReadFrom(io.LimitReader(r, k.limit+1)); err != nil {
		return nil, k.unreadable(path, err)
	}
	if int64(buf.Len()) > k.limit {
		return nil, k.tooLarge(path, 0)
	}
	return buf.Bytes(), nil
}

func (k inputKind) tooLarge(path string, size int64) error {
	return refused(fmt.Errorf("%s: %w", shown(path), &tooLargeError{size, k}), k.hint)
}

func (k inputKind) unreadable(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return failure("give the path of "+k.what, "there is no file %s", shown(path))
	case errors.Is(err, fs.ErrPermission):
		return failure("change its permissions or run as its owner", "this user may not read %s", shown(path))
	case errors.Is(err, syscall.EISDIR):
		return failure("give the path of "+k.what, "%s is a folder", shown(path))
	}
	return failure("", "read %s: %w", shown(path), cause(err))
}

// writeOutput puts data where path says: standard output for "-", otherwise a file that is replaced as a whole or not at
// all. A device or a pipe is written to as it is.
func writeOutput(cmd *cobra.Command, path string, data []byte) error {
	if path == standardStream {
		if _, err := cmd.OutOrStdout().Write(data); err != nil {
			return failure("", "write standard output: %w", cause(err))
		}
		return nil
	}
	if err := replaceFile(path, data); err != nil {
		return unwritable(path, err)
	}
	return nil
}

// written is what a command that makes a file prints with --json.
type written struct {
	File   string `json:"file"`
	Size   int    `json:"size"` // bytes
	SHA256 string `json:"sha256"`
}

// reportOutput is writeOutput, followed by what was written; when that went to standard output there is nothing to add.
func reportOutput(cmd *cobra.Command, path string, data []byte, asJSON bool) error {
	if err := writeOutput(cmd, path, data); err != nil || path == standardStream {
		return err
	}
	sum := sha256.Sum256(data)
	if asJSON {
		return printJSON(cmd, written{path, len(data), hex.EncodeToString(sum[:])})
	}
	return printf(cmd, "wrote %s: %d bytes, sha256 %x\n", shown(path), len(data), sum)
}

func alreadyThere(path string) error {
	return refused(fmt.Errorf("%s is there already and is not overwritten", shown(path)), "choose another name with -o")
}

func unwritable(path string, err error) error {
	switch {
	case errors.Is(err, errFolder):
		return failure("give the name of a file", "%s is a folder", shown(path))
	case errors.Is(err, fs.ErrNotExist):
		return failure("make the folder first", "there is no folder %s", shown(filepath.Dir(path)))
	case errors.Is(err, fs.ErrPermission):
		return failure("choose another place or change the permissions", "this user may not write %s", shown(path))
	}
	return failure("", "write %s: %w", shown(path), cause(err))
}

var errFolder = errors.New("is a folder")

func replaceFile(path string, data []byte) error {
	info, err := os.Stat(path)
	exists := err == nil
	switch {
	case exists && info.IsDir():
		return errFolder
	case exists && !info.Mode().IsRegular():
		// Renaming a file over /dev/null would take it away from everybody.
		return writeThrough(path, data)
	case exists:
		// The file behind a link is meant, not the link.
		if path, err = filepath.EvalSymlinks(path); err != nil {
			return err
		}
	}
	temp := filepath.Join(filepath.Dir(path), tempName())
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return err
	}
	defer os.Remove(temp) // does nothing once it has its name
	if exists {
		if err := f.Chmod(info.Mode().Perm()); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	// Bytes first, name second: after a power cut the name means the old content or the new one, never a part.
	if err := writeSyncClose(f, data); err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	syncFolder(filepath.Dir(path))
	return nil
}

func writeThrough(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

func writeSyncClose(f *os.File, data []byte) error {
	_, err := f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// syncFolder makes a new name durable. There are file systems whose folders cannot be synced; the file is whole on them too.
func syncFolder(path string) {
	if dir, err := os.Open(path); err == nil {
		_ = dir.Sync()
		_ = dir.Close()
	}
}

func tempName() string { return ".bmsota-" + rand.Text() + ".tmp" }

// createFile writes a file that must not be there yet: a key that is overwritten is lost for good.
func createFile(path string, data []byte, perm fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if errors.Is(err, fs.ErrExist) {
		return alreadyThere(path)
	}
	if err != nil {
		return unwritable(path, err)
	}
	if err := writeSyncClose(f, data); err != nil {
		return unwritable(path, errors.Join(err, os.Remove(path)))
	}
	syncFolder(filepath.Dir(path))
	return nil
}

// failure is a fault with exit code 1.
func failure(hint, format string, args ...any) error {
	return &fault{code: exitFailed, err: fmt.Errorf(format, args...), hint: hint}
}

// badContent refuses what a file holds. The reason may quote the file, so it is made safe for a terminal.
func badContent(path string, err error, hint string) error {
	return refused(errors.New(shown(path)+": "+plain(err.Error())), plain(hint))
}

// cause leaves out the operation and path that package os puts before an error; the sentence names the file itself.
func cause(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	if le, ok := errors.AsType[*os.LinkError](err); ok {
		return le.Err
	}
	return err
}

// shown is how a sentence names a file.
func shown(path string) string {
	if path == standardStream {
		return "standard input"
	}
	return plain(path)
}

// plain makes text from a file safe for a terminal: what cannot be printed is escaped.
func plain(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }) {
		q := strconv.Quote(s)
		return q[1 : len(q)-1]
	}
	return s
}

// warn tells of something that does not stop the command.
func warn(cmd *cobra.Command, format string, args ...any) {
	fmt.Fprintf(cmd.ErrOrStderr(), "%s: warning: %s\n", cmd.CommandPath(), fmt.Sprintf(format, args...))
}

func printf(cmd *cobra.Command, format string, args ...any) error {
	if _, err := fmt.Fprintf(cmd.OutOrStdout(), format, args...); err != nil {
		return failure("", "write standard output: %w", cause(err))
	}
	return nil
}

// needFlags answers missing flags with exit code 2.
func needFlags(cmd *cobra.Command, names ...string) error {
	var missing []string
	for _, name := range names {
		if !cmd.Flags().Changed(name) {
			missing = append(missing, "--"+name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return usageFault(cmd, "%s must be given", strings.Join(missing, ", "))
}

// usageFault is a wrong use of cmd, exit code 2.
func usageFault(cmd *cobra.Command, format string, args ...any) error {
	return &fault{code: exitUsage, err: fmt.Errorf(format, args...), hint: "see '" + cmd.CommandPath() + " --help'"}
}

// sizeFlag is a number of bytes as partition tables write them: 65536, 0x10000, 64K, 1M, 4MB.
type sizeFlag int64

func (s *sizeFlag) String() string { return strconv.FormatInt(int64(*s), 10) }
func (s *sizeFlag) Type() string   { return "bytes" }

func (s *sizeFlag) Set(text string) error {
	digits, unit := strings.ToLower(text), int64(1)
	for _, u := range []struct {
		suffix string
		bytes  int64
	}{{"kb", 1 << 10}, {"k", 1 << 10}, {"mb", 1 << 20}, {"m", 1 << 20}} {
		if rest, ok := strings.CutSuffix(digits, u.suffix); ok {
			digits, unit = rest, u.bytes
			break
		}
	}
	base := 10
	if rest, ok := strings.CutPrefix(digits, "0x"); ok {
		digits, base = rest, 16
	}
	// 33 bits times 2^20 stay within 64; flash addresses have 32.
	n, err := strconv.ParseUint(digits, base, 33)
	if err != nil || int64(n)*unit > 1<<32 {
		return errors.New("not a size such as 65536, 0x10000, 64K or 1M, up to 4 GiB")
	}
	*s = sizeFlag(int64(n) * unit)
	return nil
}

// sizeText writes a size as partition tables do: 1536K, 4M, or the plain number where it is no multiple.
func sizeText(n int64) string {
	switch {
	case n > 0 && n%(1<<20) == 0:
		return strconv.FormatInt(n>>20, 10) + "M"
	case n > 0 && n%(1<<10) == 0:
		return strconv.FormatInt(n>>10, 10) + "K"
	}
	return strconv.FormatInt(n, 10)
}

// trimLines drops the blanks that a table leaves behind its last column.
func trimLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return strings.Join(lines, "\n")
}
