package bench

import (
	"context"
	"crypto/tls"
	"fmt"
	"sync"
	"time"
)

// stalledDownloads is how many are held at once. Each fills the kernel's send buffer besides, which no program's memory shows:
// a quarter of a megabyte, so that ten thousand are more than the kernel lets all of TCP have (tcp_mem) on a small machine.
const stalledDownloads = 1000

// stallsWithin is how long a server may take to have sent all that it can, below the minute after which ours cuts who takes nothing.
const stallsWithin = 45 * time.Second

// stalled measures the memory of a download whose client reads nothing more: what a server grows by with many of them. Each turn has a
// process of its own, because memory that was used once is not given back at once.
func stalled(ctx context.Context, b *Bench, s *Server, image string, files map[string][]byte) error {
	f := Figure{Name: fmt.Sprintf("memory of a stalled download, %d at once over TLS 1.2", stalledDownloads), Unit: "KiB each", Peer: "nginx"}
	if !b.wants(f.Name) {
		return nil
	}
	ours := func(ctx context.Context) (float64, error) {
		s, err := b.serve(ctx, map[string]any{"https": map[string]any{"max_connections": stalledDownloads + 100}})
		if err != nil {
			return 0, err
		}
		defer s.stop()
		if _, err := s.Publish(ctx, "1.0.0", ImageSize, ""); err != nil {
			return 0, err
		}
		return b.stall(ctx, s.Process, s.addr(), s.CAPEM, "/firmware/firmware.bin")
	}
	n, err := b.startNginx(ctx, s, files)
	if err != nil {
		return err
	}
	var theirs Turn
	if n != nil {
		n.stop()
		theirs = func(ctx context.Context) (float64, error) {
			n, err := b.startNginx(ctx, s, files)
			if err != nil {
				return 0, err
			}
			defer n.stop()
			return b.stall(ctx, n.Process, n.addr, s.CAPEM, image)
		}
	}
	return b.Beside(ctx, f, ours, theirs)
}

// stall is one turn: KiB of each download.
func (b *Bench) stall(ctx context.Context, p *Process, addr string, caPEM []byte, path string) (_ float64, err error) {
	conf, err := versionOf(caPEM, tls.VersionTLS12)
	if err != nil {
		return 0, err
	}
	a := asking{tls: conf, path: path}
	if _, err := a.fetch(ctx, addr); err != nil { // what is loaded once is no download's
		return 0, err
	}
	before, err := p.Memory()
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, stallsWithin)
	defer cancel()
	var mu sync.Mutex
	var open []*connection
	defer func() {
		for _, c := range open {
			_ = c.NetConn().Close()
		}
	}()
	var first error
	var all sync.WaitGroup
	for client := range b.Clients {
		all.Go(func() {
			for i := client; i < stalledDownloads; i += b.Clients {
				c, err := a.open(ctx, addr)
				if err == nil {
					err = a.ask(c)
				}
				mu.Lock()
				if c != nil {
					open = append(open, c)
				}
				if err != nil {
					first = err
				}
				done := first != nil
				mu.Unlock()
				if done {
					return
				}
			}
		})
	}
	if all.Wait(); first != nil {
		return 0, first
	}
	if err := p.rests(ctx); err != nil {
		return 0, err
	}
	after, err := p.Memory()
	return float64(after-before) / 1024 / stalledDownloads, err
}

// rests waits until the program has taken no processor time for a second, but for what it takes anyway.
func (p *Process) rests(ctx context.Context) error {
	for used := time.Duration(0); ; {
		now, err := p.Used()
		if err != nil {
			return err
		}
		if now-used <= tick {
			return nil
		}
		used = now
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s has not come to rest: %w", p.name, ctx.Err())
		case <-time.After(time.Second):
		}
	}
}
