package lint

import (
	"bytes"
	"encoding/binary"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// maxIndex is the longest git index that is read, in bytes.
const maxIndex = 16 << 20

// repository is the git repository that a project is in.
type repository struct {
	root *os.Root
	at   string // the project's folder in it, with slashes; "." where it is the repository's own
}

// maxAbove is how many folders above a project are asked whether they are a repository.
const maxAbove = 32

// findRepository finds the folder with .git at or above dir; where there is none, dir itself counts as one.
func findRepository(dir string) (*repository, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	top := dir
	for above, n := dir, 0; n < maxAbove; above, n = filepath.Dir(above), n+1 {
		if _, err := os.Lstat(filepath.Join(above, ".git")); err == nil {
			top = above
			break
		}
	}
	at, err := filepath.Rel(top, dir)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(top)
	if err != nil {
		return nil, err
	}
	return &repository{root, filepath.ToSlash(at)}, nil
}

// tracked says whether git's index has a file of the project. A work tree whose index lies elsewhere is not asked.
func (p *project) tracked(name string) bool {
	text, err := p.textIn(p.repo.root, ".git/index", maxIndex)
	return err == nil && indexHas([]byte(text), path.Join(p.repo.at, name))
}

// indexHas looks for a path in a git index of version 2, 3 or 4 (gitformat-index). What is not as git writes it holds nothing.
//
//	0 "DIRC"  4 version BE32  8 entries BE32, then for each:
//	0 stat data[40]  40 object[20]  60 flags BE16 (bit 14: two more bytes of flags)  62 path, NUL
//
// In versions 2 and 3 one to eight NULs make the length a multiple of 8; in version 4 the path is a number of bytes to drop
// from the end of the path before, and what is put there instead.
func indexHas(b []byte, name string) bool {
	const head, fixed, maxPath = 12, 62, 4096
	if len(b) < head || string(b[:4]) != "DIRC" {
		return false
	}
	version, left := binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:])
	if version < 2 || version > 4 {
		return false
	}
	previous := ""
	for b = b[head:]; left > 0; left-- {
		if len(b) < fixed {
			return false
		}
		start := fixed
		if version >= 3 && b[60]&0x40 != 0 {
			start += 2
		}
		rest := b[min(start, len(b)):]
		keep := 0
		if version == 4 {
			drop, n := dropped(rest)
			if n == 0 || drop > len(previous) {
				return false
			}
			keep, rest, start = len(previous)-drop, rest[n:], start+n
		}
		length := bytes.IndexByte(rest[:min(len(rest), maxPath)], 0)
		if length < 0 || keep+length > maxPath {
			return false
		}
		previous = previous[:keep] + string(rest[:length])
		if previous == name {
			return true
		}
		size := start + length + 1
		if version < 4 {
			size = (start + length + 8) &^ 7
		}
		if size > len(b) {
			return false
		}
		b = b[size:]
	}
	return false
}

// dropped reads the number in front of a path of version 4, 7 bits a byte with one added for each that follows, and says how
// many bytes it took; 0 where it is none.
func dropped(b []byte) (value, n int) {
	for n < len(b) && n < 4 {
		c := b[n]
		n++
		value |= int(c & 0x7F)
		if c&0x80 == 0 {
			return value, n
		}
		value = (value + 1) << 7
	}
	return 0, 0
}

// ignored says whether a .gitignore names a file of the project: the one beside it, and those of the folders above it up to
// the repository's own. The last pattern that matches decides, and what is nearer is later.
func (p *project) ignored(name string) bool {
	result := false
	name = path.Join(p.repo.at, name)
	folders := []string{"."}
	for i, c := range name {
		if c == '/' {
			folders = append(folders, name[:i])
		}
	}
	for _, folder := range folders {
		text, err := p.textIn(p.repo.root, path.Join(folder, ".gitignore"), maxFile)
		if err != nil {
			continue
		}
		below := strings.TrimPrefix(name, folder+"/")
		for l := range strings.Lines(text) {
			if pattern, no := strings.CutPrefix(strings.TrimRight(l, " \t\r\n"), "!"); matches(pattern, below) {
				result = !no
			}
		}
	}
	return result
}

// matches holds a path against one line of a .gitignore in its folder (gitignore(5), but for ** inside a pattern). A folder
// that is ignored takes what is in it along.
func matches(pattern, name string) bool {
	if pattern == "" || strings.HasPrefix(pattern, "#") {
		return false
	}
	pattern, onlyFolder := strings.CutSuffix(pattern, "/")
	pattern, anywhere := strings.CutPrefix(pattern, "**/")
	anchored := !anywhere && strings.Contains(pattern, "/")
	pattern = strings.TrimPrefix(pattern, "/")
	parts := strings.Split(name, "/")
	for i := range parts {
		if onlyFolder && i == len(parts)-1 {
			break
		}
		candidate := parts[i]
		if anchored {
			candidate = strings.Join(parts[:i+1], "/")
		}
		if ok, err := path.Match(pattern, candidate); err == nil && ok {
			return true
		}
	}
	return false
}
