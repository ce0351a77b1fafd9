package bench

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// stalledDownloads is how many are held at once where no other number is asked for. Each fills the kernel's send buffer besides, which no
// program's memory shows, and the note of the figure does.
const stalledDownloads = 1000

// stallsWithin is how long a server may take to have sent all that it can, below the minute after which ours cuts who takes nothing.
const stallsWithin = 45 * time.Second

// stalled measures the memory of a download whose client reads nothing more: what a server grows by with many of them. Each turn has a
// process of its own, because memory that was used once is not given back at once.
func stalled(ctx context.Context, b *Bench, s *Server, image string, files map[string][]byte) error {
	n := b.count(stalledDownloads)
	f := Figure{Name: fmt.Sprintf("memory of a stalled download, %d at once over TLS 1.2", n), Unit: "KiB each", Goal: 40, Own: true, Peer: "nginx"}
	if !b.wants(f.Name) || b.Bare || b.Other != "" {
		return nil
	}
	if err := enoughFiles(n); err != nil {
		return err
	}
	var kernel int64
	ours := func(ctx context.Context) (float64, error) {
		s, err := b.serve(ctx, map[string]any{"https": map[string]any{"max_connections": n + 100}})
		if err != nil {
			return 0, err
		}
		defer s.stop()
		if _, err := s.Publish(ctx, "1.0.0", ImageSize, ""); err != nil {
			return 0, err
		}
		before, err := tcpMemory()
		if err != nil {
			return 0, err
		}
		return b.stall(ctx, s.Process, s.addr(), s.CAPEM, "/firmware/firmware.bin", n, func() error {
			after, err := tcpMemory()
			kernel = max(kernel, after-before)
			return err
		})
	}
	peer, err := b.startNginx(ctx, s, files)
	if err != nil {
		return err
	}
	var theirs Turn
	if peer != nil {
		peer.stop()
		theirs = func(ctx context.Context) (float64, error) {
			peer, err := b.startNginx(ctx, s, files)
			if err != nil {
				return 0, err
			}
			defer peer.stop()
			return b.stall(ctx, peer.Process, peer.addr, s.CAPEM, image, n, func() error { return nil })
		}
	}
	if err := b.Beside(ctx, f, ours, theirs); err != nil {
		return err
	}
	b.noted(fmt.Sprintf("the kernel held %d MiB for TCP besides, both ends of ours", kernel>>20))
	return nil
}

// enoughFiles says so where this process or a server, which has the same limit, may not open as many connections.
func enoughFiles(n int) error {
	if need := uint64(n + 200); files() < need {
		return fmt.Errorf("%d connections need %d open files, and a process here may have %d: raise the limit (ulimit -n %d), or ask for fewer with --count",
			n, need, files(), need)
	}
	return nil
}

// tcpMemory is what the kernel holds for all TCP connections, in bytes.
func tcpMemory() (int64, error) {
	b, err := os.ReadFile("/proc/net/sockstat")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if fields := strings.Fields(line); len(fields) > 2 && fields[0] == "TCP:" && fields[len(fields)-2] == "mem" {
			pages, err := strconv.ParseInt(fields[len(fields)-1], 10, 64)
			return pages * int64(os.Getpagesize()), err
		}
	}
	return 0, errors.New("/proc/net/sockstat has no memory of TCP")
}

// stall is one turn: KiB of each of n downloads. full is called while they stall.
func (b *Bench) stall(ctx context.Context, p *Process, addr string, caPEM []byte, path string, n int, full func() error) (_ float64, err error) {
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
			for i := client; i < n; i += b.Clients {
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
	if err := full(); err != nil {
		return 0, err
	}
	after, err := p.Memory()
	return float64(after-before) / 1024 / float64(n), err
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
