package deploy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"

	"bmsota/durable"
)

// WriteFolder puts a release into a folder of this machine that any web server serves. It keeps the promises of a
// deployment of kind dir (docs/deploying.md) and returns the paths written.
func WriteFolder(dir string, p *Prepared) ([]string, error) {
	return place(context.Background(), folder{}, folderLayout(dir), p, nil)
}

func folderLayout(dir string) layout {
	dir = filepath.ToSlash(dir)
	return layout{path.Join(dir, firmwareName), path.Join(dir, versionName)}
}

// folder is a shelf on this machine.
type folder struct{}

func (folder) mkdir(dir string) error { return os.MkdirAll(filepath.FromSlash(dir), 0o755) }

func (folder) read(name string, limit int64) ([]byte, error) {
	f, err := os.Open(filepath.FromSlash(name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAtMost(f, name, limit)
}

func (folder) stage(name string, r io.Reader, _ int64) (staged, error) {
	return durable.Stage(filepath.FromSlash(name), r, 0o644)
}

// errTooLarge is wrapped by reads of a file that has more bytes than its kind can have.
var errTooLarge = errors.New("too large")

func readAtMost(r io.Reader, name string, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s is %w: more than %d bytes", name, errTooLarge, limit)
	}
	return b, err
}
