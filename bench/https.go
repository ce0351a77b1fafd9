package bench

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"path"
)

// download is one figure of processor time over TLS.
type download struct {
	name string
	goal float64
	ask  asking
	file string // that the peer serves for it
	size int64
}

// https measures what answers over TLS cost the server, beside nginx with the same files, the same certificate and the same
// clients. version.json is made for each question by ours, from the release and the device's own state; nginx has it as a file.
func https(ctx context.Context, b *Bench) error {
	s, err := b.serve(ctx, nil)
	if err != nil {
		return err
	}
	defer s.stop()
	p, err := s.Publish(ctx, "1.0.0", ImageSize, "")
	if err != nil {
		return err
	}
	tls12, err := versionOf(s.CAPEM, tls.VersionTLS12)
	if err != nil {
		return err
	}
	tls13, err := versionOf(s.CAPEM, tls.VersionTLS13)
	if err != nil {
		return err
	}
	image := "/firmware/" + p.Manifest.SHA256 + ".bin"
	const version = "/firmware/version.json?device=bms-000001"
	if _, err := s.Client.Enroll(ctx, "bms-000001"); err != nil { // its row is read for each answer
		return err
	}
	files, err := s.files(ctx, asking{tls: tls13}, image, version)
	if err != nil {
		return err
	}
	n, err := b.startNginx(ctx, s, files)
	if err != nil {
		return err
	}
	if n != nil {
		defer n.stop()
	}
	const half = ImageSize / 2
	offer := int64(len(files["/firmware/version.json"]))
	for _, d := range []download{
		{"download of 1.25 MB, a new TLS 1.2 connection each", 0.75, asking{tls: tls12, path: image}, image, ImageSize},
		{"download of 1.25 MB, TLS 1.3 kept alive", 0.75, asking{tls: tls13, path: image, keep: true}, image, ImageSize},
		{"version.json, a new TLS 1.2 connection each", 0.90, asking{tls: tls12, path: version}, "/firmware/version.json", offer},
		{"version.json, TLS 1.3 kept alive", 1.0, asking{tls: tls13, path: version, keep: true}, "/firmware/version.json", offer},
		{"resume of the second half, a new TLS 1.2 connection each", 0.80,
			asking{tls: tls12, path: image, header: fmt.Sprintf("Range: bytes=%d-\r\n", half)}, image, ImageSize - half},
	} {
		f := Figure{Name: d.name, Unit: "µs of processor time each", Goal: d.goal, Peer: "nginx"}
		if err := b.Beside(ctx, f, d.turn(b, s.Process, s.addr(), d.ask.path), n.turn(b, d)); err != nil {
			return err
		}
	}
	return stalled(ctx, b, s, image, files)
}

// turn measures one side.
func (d download) turn(b *Bench, p *Process, addr, at string) Turn {
	d.ask.path = at
	return Cost(p, func(ctx context.Context) (int, error) {
		return d.ask.load(ctx, addr, b.Clients, b.Duration, d.size)
	})
}

// turn is nil where there is no nginx.
func (n *nginx) turn(b *Bench, d download) Turn {
	if n == nil {
		return nil
	}
	return d.turn(b, n.Process, n.addr, d.file)
}

// files are what our server answers under these paths, for the peer to serve: the same bytes without the question.
func (s *Server) files(ctx context.Context, a asking, paths ...string) (map[string][]byte, error) {
	files := make(map[string][]byte)
	for _, at := range paths {
		a.path = at
		body, err := a.fetch(ctx, s.addr())
		if err != nil {
			return nil, err
		}
		name, _, _ := bytes.Cut([]byte(at), []byte("?"))
		files[path.Clean(string(name))] = body
	}
	return files, nil
}
