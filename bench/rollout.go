package bench

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"bmsota/api"
	"bmsota/esp/appimage"
	"bmsota/protocol"
)

const (
	fewBoards     = 100
	manyBoards    = 1000
	boardImage    = 1 << 20
	underway      = 500 // boards that update at once, at most
	probeEvery    = 100 * time.Millisecond
	pageEvery     = 500 * time.Millisecond
	boardPatience = 300 * time.Millisecond // for each of them, beside minPatience
	minPatience   = 2 * time.Minute
)

// rollout measures whole rollouts to boards with real flash writes, first few and then many: the boards are one process of
// this program, which downloads, writes, reboots, tries and confirms for each of them; the server is another. Nobody is beside
// it. Meanwhile a device waits for commands and somebody looks at the dashboard.
func rollout(ctx context.Context, b *Bench) error {
	many := b.count(manyBoards)
	sizes := []int{min(fewBoards, many), many}
	if sizes[0] == sizes[1] {
		sizes = sizes[:1]
	}
	var runs []fleetRun
	for _, n := range sizes {
		run, err := b.rollOut(ctx, n)
		if err != nil {
			return fmt.Errorf("%d boards: %w", n, err)
		}
		runs = append(runs, run)
		of := fmt.Sprintf("%d boards: ", n)
		for _, f := range []Figure{
			{Name: of + "from the order to the last one confirmed", Unit: "s", Ours: run.took.Seconds()},
			{Name: of + "processor time of the server for each", Unit: "ms", Ours: run.each},
			{Name: of + "memory of one at the peak", Unit: "KiB", Ours: run.board},
			{Name: of + "memory of the server at the peak", Unit: "MiB", Ours: run.server},
			{Name: of + "a command to another device meanwhile, 99th percentile", Unit: "ms", Ours: high(run.commands), Note: fmt.Sprintf("of %d", len(run.commands))},
			{Name: of + "the dashboard's first page meanwhile, 99th percentile", Unit: "ms", Ours: high(run.pages), Note: fmt.Sprintf("of %d", len(run.pages))},
		} {
			f.Rounds = 1
			b.Add(f)
		}
	}
	if len(runs) > 1 && runs[0].each > 0 {
		growth := runs[1].each / runs[0].each
		b.Add(Figure{Name: fmt.Sprintf("processor time for each of %d to that for each of %d", many, fewBoards), Unit: "times", Ours: growth, Rounds: 1})
	}
	return nil
}

// fleetRun is what one rollout came to. Latencies are in milliseconds.
type fleetRun struct {
	took            time.Duration
	each            float64 // ms of the server for one board
	board, server   float64 // memory at the peak: KiB of one board, MiB of the server
	commands, pages []float64
}

// rollOut rolls an image out to n boards that run another.
func (b *Bench) rollOut(ctx context.Context, n int) (run fleetRun, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*(minPatience+time.Duration(n)*boardPatience))
	defer cancel()
	s, err := b.serve(ctx, nil)
	if err != nil {
		return run, err
	}
	defer s.stop()
	boards, err := s.boards(ctx, n)
	if err != nil {
		return run, err
	}
	defer boards.stop()

	around, stop := context.WithCancel(ctx)
	defer stop()
	var probes sync.WaitGroup
	var commandsErr, pagesErr error
	command, err := s.commandProbe(ctx)
	if err != nil {
		return run, err
	}
	page, err := s.pageProbe(ctx)
	if err != nil {
		return run, err
	}
	probes.Go(func() { run.commands, commandsErr = every(around, probeEvery, command) })
	probes.Go(func() { run.pages, pagesErr = every(around, pageEvery, page) })

	b.Say("%s: %d boards are there, the rollout begins", b.suite, n)
	before, err := s.Used()
	if err != nil {
		return run, err
	}
	begin := time.Now()
	r, err := s.Client.CreateRollout(ctx, api.RolloutRequest{Version: "1.1.0", Expect: &n, Policy: api.Policy{
		Selector: api.Selector{All: true}, Waves: []api.Wave{{Percent: 100}}, Concurrency: underway,
	}}, "bench")
	for err == nil && r.State == "running" {
		if err = boards.alive(); err != nil {
			break
		}
		if err = pause(ctx, pageEvery); err == nil {
			r, err = s.Client.Rollout(ctx, r.ID)
		}
	}
	run.took = time.Since(begin)
	if err == nil && (r.State != "done" || r.Figures.Succeeded != n) {
		err = fmt.Errorf("the rollout is %s with %d of %d updated", r.State, r.Figures.Succeeded, n)
	}
	after, usedErr := s.Used()
	stop()
	probes.Wait()
	held, heldErr := boards.Peak()
	served, servedErr := s.Peak()
	run.board, run.server = float64(held)/1024/float64(n), float64(served)/1024/1024
	run.each = float64((after - before).Microseconds()) / 1000 / float64(n)
	return run, errors.Join(err, usedErr, heldErr, servedErr, commandsErr, pagesErr)
}

// boards switches n boards on, with an image of their own and the release to come published, and waits until all of them
// could take it.
func (s *Server) boards(ctx context.Context, n int) (*Process, error) {
	first, err := appimage.Build(appimage.BuildOptions{Chip: appimage.ESP32, Project: project, Version: "1.0.0", Size: boardImage})
	if err != nil {
		return nil, err
	}
	image, key := filepath.Join(s.Data, "first.bin"), filepath.Join(s.Data, "release.pub.pem")
	if err := os.WriteFile(image, first, 0o600); err != nil {
		return nil, err
	}
	p, err := s.Publish(ctx, "1.1.0", boardImage, "next")
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(key, []byte(p.Public), 0o600); err != nil {
		return nil, err
	}
	// In the field boards are other machines. Here they share the processors of the server, and stand back for it.
	boards, err := s.b.start("boards", "nice", "-n", "10", s.b.Binary, "device", "fleet", "--data", s.Data, "--count", strconv.Itoa(n), "--image", image,
		"--trusted-key", key, "--seed", "7", "--quiet")
	if err != nil {
		return nil, err
	}
	for {
		devices, err := s.Client.Devices(ctx)
		online := 0
		for _, d := range devices {
			if d.Online && d.CurrentVersion == "1.0.0" {
				online++
			}
		}
		if err == nil && online >= n {
			return boards, nil
		}
		if err = errors.Join(err, boards.alive()); err == nil {
			err = pause(ctx, time.Second)
		}
		if err != nil {
			boards.stop()
			return nil, fmt.Errorf("%d boards are there: %w", online, err)
		}
	}
}

// alive is an error once the program has ended.
func (p *Process) alive() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s ended: %s", p.name, p.said())
	default:
		return nil
	}
}

// commandProbe is how long a command of an operator takes to a device that waits for it over TLS.
func (s *Server) commandProbe(ctx context.Context) (func() error, error) {
	conf, err := versionOf(s.CAPEM, tls.VersionTLS12)
	if err != nil {
		return nil, err
	}
	const id = "bench-probe"
	enrolled, err := s.Client.Enroll(ctx, id)
	if err != nil {
		return nil, err
	}
	device, err := login{addr: s.mqttTLS, tls: conf, client: id, name: id, password: enrolled.Token}.open(ctx)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, device.close)
	m := s.Access.MQTT
	operator, err := login{addr: s.mqttPlain, client: "bench-operator", name: m.Username, password: m.Password}.open(ctx)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, operator.close)
	topic := protocol.Topics{Prefix: m.Prefix}.Command(id)
	if err := device.subscribe(topic, 1); err != nil {
		return nil, err
	}
	payload, err := protocol.Command{Action: protocol.ActionStatus, ID: "bench"}.Append(nil)
	return func() error {
		if err := operator.publish(topic, 1, payload); err != nil {
			return err
		}
		if _, err := device.take(); err != nil {
			return err
		}
		return operator.acknowledged(1)
	}, err
}

// pageProbe is how long the dashboard's first page takes somebody who is logged in.
func (s *Server) pageProbe(ctx context.Context) (func() error, error) {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.CAPEM)
	jar, err := cookiejar.New(nil)
	if err != nil {
		return nil, err
	}
	client := &http.Client{Jar: jar, Timeout: within, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	get := func(resp *http.Response, err error) error {
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK || resp.Request.URL.Path == "/login" {
			return fmt.Errorf("the dashboard answers %s at %s", resp.Status, resp.Request.URL.Path)
		}
		return nil
	}
	context.AfterFunc(ctx, client.CloseIdleConnections)
	err = get(client.PostForm(s.Access.Server+"/login", url.Values{"name": {"operator"}, "password": {s.Access.Token}, "next": {"/"}}))
	return func() error { return get(client.Get(s.Access.Server + "/")) }, err
}

// every does it again and again until ctx ends, and returns how long each took in milliseconds.
func every(ctx context.Context, interval time.Duration, do func() error) (took []float64, err error) {
	for ctx.Err() == nil {
		begin := time.Now()
		if err := do(); err != nil {
			return took, err
		}
		took = append(took, float64(time.Since(begin).Microseconds())/1000)
		_ = pause(ctx, interval)
	}
	return took, nil
}

// high is the 99th percentile.
func high(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	return s[int(math.Ceil(0.99*float64(len(s))))-1]
}
