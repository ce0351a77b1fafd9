package bench

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"path"
	"strconv"
)

// download is one figure of processor time over TLS.
type download struct {
	name string
	goal float64
	ask  asking
	file string // that the peer serves for it
	size int64
}

// device is who asks for version.json.
const device = "bms-000001"

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
	const version = "/firmware/version.json?device=" + device
	if _, err := s.Client.Enroll(ctx, device); err != nil { // its row is read for each answer
		return err
	}
	files, err := s.files(ctx, asking{tls: tls13}, image, version)
	if err != nil {
		return err
	}
	ours, theirs := &side{Process: s.Process, addr: s.addr()}, (*side)(nil)
	if b.Bare {
		if ours, err = b.startBare(ctx, s, files); err != nil {
			return err
		}
		defer ours.stop()
	}
	switch {
	case b.Other != "":
		if theirs, err = b.startOther(ctx, s); err != nil {
			return err
		}
	default:
		if theirs, err = b.startNginx(ctx, s, files); err != nil {
			return err
		}
	}
	if theirs != nil {
		defer theirs.stop()
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
		f := Figure{Name: d.name, Unit: "µs of processor time each", Goal: d.goal, Peer: b.peerName()}
		if err := b.Beside(ctx, f, ours.turn(b, d), theirs.turn(b, d)); err != nil {
			return err
		}
	}
	return stalled(ctx, b, s, image, files)
}

// side is a server that is measured.
type side struct {
	*Process
	addr  string // host:port
	files bool   // it has what is asked for as files
	caPEM []byte // of the authority of its own; empty = that of ours
}

// turn is nil where there is no such side.
func (s *side) turn(b *Bench, d download) Turn {
	if s == nil {
		return nil
	}
	if s.files {
		d.ask.path = d.file
	}
	if s.caPEM != nil {
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(s.caPEM)
		d.ask.tls = d.ask.tls.Clone()
		d.ask.tls.RootCAs = roots
	}
	return Cost(s.Process, func(ctx context.Context) (int, error) {
		return d.ask.load(ctx, s.addr, b.Clients, b.Duration, d.size)
	})
}

// peerName is who stands beside ours.
func (b *Bench) peerName() string {
	if b.Other != "" {
		return "other"
	}
	return "nginx"
}

// startBare starts Go's own parts alone, with the certificate of s.
func (b *Bench) startBare(ctx context.Context, s *Server, files map[string][]byte) (*side, error) {
	dir, err := b.writeFiles("bare", files)
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(1)
	if err != nil {
		return nil, err
	}
	bare := &side{addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[0])), files: true}
	if bare.Process, err = b.start("bare", b.Binary, "bench", "bare-server", bare.addr, dir, s.certificate(), s.key()); err != nil {
		return nil, err
	}
	return bare, bare.listens(ctx, bare.addr)
}

// startOther starts another build of this program with the release of s.
func (b *Bench) startOther(ctx context.Context, s *Server) (*side, error) {
	with := *b
	with.Binary = b.Other
	other, err := with.serve(ctx, nil)
	if err != nil {
		return nil, err
	}
	other.Key = s.Key
	if _, err := other.Publish(ctx, "1.0.0", ImageSize, ""); err != nil {
		return nil, err
	}
	if _, err := other.Client.Enroll(ctx, device); err != nil {
		return nil, err
	}
	return &side{Process: other.Process, addr: other.addr(), caPEM: other.CAPEM}, nil
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
