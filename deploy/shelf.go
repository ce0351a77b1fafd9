package deploy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"

	"bmsota/manifest"
	"bmsota/protocol"
)

// The names of a release in a folder, as the original tool has them.
const (
	firmwareName = "firmware.bin"
	versionName  = "version.json"
)

// shelf is where the files of a static server lie: a folder of this machine or of another. Paths are with slashes.
type shelf interface {
	// mkdir makes a folder and those above it, where they are missing.
	mkdir(dir string) error
	// read gives a file of at most limit bytes. The error wraps fs.ErrNotExist when there is none.
	read(path string, limit int64) ([]byte, error)
	// stage puts what r gives beside path, whole and where the server's protocol allows on its disk, under a name that
	// nobody looks for. When it fails nothing is left.
	stage(path string, r io.Reader, size int64) (staged, error)
}

// staged is content without its name. Exactly one of Commit and Discard ends it.
type staged interface {
	Commit() error
	Discard() error
}

// layout is where on a shelf a release goes.
type layout struct {
	firmware, version string // paths of firmware.bin and version.json
}

// image is the path of an image's immutable file: beside version.json, whose url is relative.
func (l layout) image(sha256 string) string { return path.Join(path.Dir(l.version), sha256+".bin") }

// place puts a release on a shelf: the image under its digest and as firmware.bin (for firmware of the original tool),
// then version.json. Everything is copied under temporary names first; only then, in this order, are the names given:
// bytes first, pointer last. version.json names the immutable file, so a device that reads in between gets the old
// release or the new one, never a mix.
//
// ctx ends the copying, after which nothing has changed and nothing is left; the three renames behind it are not
// interrupted. progress, when not nil, is called with the bytes copied. It returns the paths written.
func place(ctx context.Context, s shelf, l layout, p *Prepared, progress func(done, total int64)) (written []string, err error) {
	image := l.image(p.Manifest.SHA256)
	text, err := p.VersionFile(path.Base(image)).Append(nil)
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{path.Dir(l.version), path.Dir(l.firmware)} {
		if err := s.mkdir(dir); err != nil {
			return nil, fmt.Errorf("firmware folder: %w", err)
		}
	}
	files := []struct {
		path string
		data []byte
	}{{image, p.release.Image}, {l.firmware, p.release.Image}, {l.version, text}}
	in := &source{ctx: ctx, progress: progress}
	for _, f := range files {
		in.total += int64(len(f.data))
	}
	var ready []staged
	defer func() {
		for _, r := range ready {
			err = errors.Join(err, r.Discard())
		}
	}()
	for _, f := range files {
		in.rest = f.data
		r, err := s.stage(f.path, in, int64(len(f.data)))
		if err != nil {
			return nil, err
		}
		ready = append(ready, r)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	for _, f := range files {
		r := ready[0]
		ready = ready[1:]
		if err := r.Commit(); err != nil {
			return written, err
		}
		written = append(written, f.path)
	}
	return written, nil
}

// source hands out bytes while its context lasts, and counts them over all that it is given.
type source struct {
	ctx         context.Context
	rest        []byte
	done, total int64
	progress    func(done, total int64) // may be nil
}

// sourceChunk bounds how much is handed out before the context is looked at again.
const sourceChunk = 32 << 10

func (s *source) Read(b []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	if len(s.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), sourceChunk)], s.rest)
	s.rest = s.rest[n:]
	s.done += int64(n)
	if s.progress != nil {
		s.progress(s.done, s.total)
	}
	return n, nil
}

// offered reads what a shelf offers. A folder without version.json offers nothing, which is no error.
func offered(s shelf, l layout) (Offer, error) {
	text, err := s.read(l.version, protocol.MaxVersionFile)
	if errors.Is(err, fs.ErrNotExist) {
		return Offer{}, nil
	}
	if err != nil {
		return Offer{}, fmt.Errorf("read what the server offers: %w", err)
	}
	v, err := protocol.ParseVersionFile(text)
	if err != nil {
		return Offer{}, fmt.Errorf("%w: %s: %w", ErrOffer, l.version, err)
	}
	if v.SHA256 == "" {
		// As the original tool writes it. Which bytes they are tells the file itself, if it is there.
		if b, err := s.read(l.firmware, manifest.MaxSize); err == nil {
			v.SHA256 = Digest(b)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return Offer{}, fmt.Errorf("read what the server offers: %w", err)
		}
	}
	return Offer{Version: v.Version, SHA256: v.SHA256, Project: v.Project, Chip: v.Chip, Manifest: v.Manifest, Cosignatures: v.Cosignatures}, nil
}

// holds says whether the files of a release are there as they were published, so that nothing has to be copied again.
func holds(s shelf, l layout, sha256 string) bool {
	for _, name := range []string{l.image(sha256), l.firmware} {
		b, err := s.read(name, manifest.MaxSize)
		if err != nil || Digest(b) != sha256 {
			return false
		}
	}
	return true
}
