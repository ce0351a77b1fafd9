package deploy

import (
	"fmt"
	"os"
	"path/filepath"

	"bmsota/durable"
)

// WriteFolder puts a release into a folder that any web server serves: the image under its digest and as firmware.bin
// (for firmware of the original tool), then version.json. Bytes first, pointer last: version.json names the immutable
// file, so a device that reads in between gets the old release or the new one, never a mix. Every file is complete and
// on disk before it gets its name. It returns the paths written.
func WriteFolder(dir string, p *Prepared) ([]string, error) {
	name := p.Manifest.SHA256 + ".bin"
	text, err := p.VersionFile(name).Append(nil)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("firmware folder: %w", err)
	}
	files := []struct {
		name string
		data []byte
	}{{name, p.release.Image}, {"firmware.bin", p.release.Image}, {"version.json", text}}
	var written []string
	for _, f := range files {
		path := filepath.Join(dir, f.name)
		if err := durable.WriteFile(path, f.data, 0o644); err != nil {
			return written, err
		}
		written = append(written, path)
	}
	return written, nil
}
