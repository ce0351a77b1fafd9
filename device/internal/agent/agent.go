// Package agent is the update as a device lives it: what the firmware on a board does between power on and reset. It
// keeps a session with the broker, answers commands, checks the server's offer, waits for its gates, downloads into
// the other slot, verifies what is in flash, switches, and after the restart proves the new image or gives it up.
//
// It promises that the flash is its only memory. Whatever state a reset leaves, the next Run derives what to do from
// the slots, the boot records, the tombstone of a failed slot, a note in the unused bytes of a record's sector (see
// note) and the command that the broker retains. So a power cut is no case of its own.
//
// It promises the order that makes an update safe: bytes first, pointer second, words last. The boot record is written
// only after every byte was read back from flash and matched the promised digest; a failed slot is made unbootable
// before its failure is told; a new image is confirmed only after it reached network, broker, server and battery.
//
// It refuses what the protocol's Refuse refuses, with a status and never in silence; with a trusted key it decides on
// nothing but the signed manifest. It allocates nothing by a number that comes from the network.
//
// The chip's bootloader is another package, and the two never meet but in the bytes of the flash. The truth is in
// docs/protocol.md for what is said, in the packages protocol and manifest for what is decided, and in ESP-IDF's
// esp_ota_ops.c (package otaops) for what is written.
package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"time"

	"bmsota/device/internal/norflash"
	"bmsota/device/internal/otaops"
	"bmsota/esp/parttable"
	"bmsota/protocol"
)

// ResetReason is why the chip started, in the words a status uses (esp_reset_reason_t).
type ResetReason string

// The reasons that make a difference after a trial.
const (
	PowerOn  ResetReason = "poweron"
	Software ResetReason = "software"
	Panic    ResetReason = "panic"
	Watchdog ResetReason = "watchdog"
	Brownout ResetReason = "brownout"
)

// End is how a run of the firmware ended.
type End int

// The ends.
const (
	Stopped End = iota // the context ended: power off
	Restart            // the firmware restarts the chip
	Halted             // the flash no longer answers; the error says why
)

// Config is the board that the firmware finds itself on.
type Config struct {
	Flash   otaops.Flash
	Table   parttable.Table
	Running parttable.Partition // the partition that the bootloader started
	Ops     otaops.Config       // how this firmware was built, and the board's chip and eFuse
	MAC     [6]byte
	Reset   ResetReason

	// Battery is one reading of the pack; false when the BMS does not answer.
	Battery func() (protocol.Battery, bool)
	// FramePeriod is the time between two readings; 0 means one second.
	FramePeriod time.Duration

	Clock     func() time.Time                                                  // for limits of time; nil: this machine's
	Dial      func(ctx context.Context, network, addr string) (net.Conn, error) // nil: the system's network
	Roots     *x509.CertPool                                                    // public authorities; nil: the system's bundle
	Trust     *Trust                                                            // shared by a fleet; nil: the board's own
	Keys      []*ecdsa.PublicKey                                                // instead of those that an image carries; nil: its own
	Transport http.RoundTripper                                                 // instead of HTTPS over Dial
	NewLink   func(LinkConfig) Link                                             // instead of MQTT over Dial

	MaxPause time.Duration // shortens the longest pause between two tries to reach a server or broker; 0: as built

	Seed     uint64 // of jitter and of everything else that is random
	Log      *slog.Logger
	OnStatus func(protocol.Status) // sees every status, also those said without a session; must not block
	Strict   bool                  // a phase out of order panics
	Mutant   Mutant                // for tests only, see mutant.go
}

const eventQueue = 16

// linkEvent is what the session tells: that it stands, that it does not and why, or a command that came over it.
type linkEvent struct {
	up      bool
	err     error
	command *command
}

type command struct {
	payload  []byte
	retained bool
}

// agent is one run of the firmware. Its loop owns everything but the flash, which belongs to the one job that runs, if
// one does, and else to the loop.
type agent struct {
	env  Config
	log  *slog.Logger
	ops  *otaops.Ops
	self self
	cfg  settings
	rand *rand.Rand // the job's

	nonces nonces

	link Link
	heap *heap
	rep  *reporter
	web  *web // nil when the configuration names no server

	// links is one channel, because the order is what the events mean: what a board answers to a command that came over a
	// session it has not heard of yet would be forgotten with everything else it had to say before that session.
	links  chan linkEvent
	acks   chan protocol.Phase // of the statuses that the broker has
	health *health

	job        *job
	waiting    *command // one order that came in a trial, before the rollback was told or before the clock was set
	needsClock bool     // it is the last
	began      time.Time
}

// job is a piece of work that runs beside the loop: a trial, a check, an update, a rollback.
type job struct {
	cancel context.CancelCauseFunc
	done   chan outcome
	wish   *wish // nil for a trial
}

type outcome struct {
	restart bool
	err     error // of the flash: the board cannot go on
}

// Run runs the firmware until ctx ends or it restarts the chip. An error comes with Halted only.
func Run(ctx context.Context, cfg Config) (End, error) {
	a := newAgent(cfg)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := a.boot(); err != nil {
		return Halted, err
	}
	if a.self.restart {
		return Restart, nil
	}
	a.rep.onAcked = func(p protocol.Phase) { send(ctx, a.acks, p) }
	var wg sync.WaitGroup
	wg.Go(func() { a.rep.run(ctx) })
	if a.link != nil {
		wg.Go(func() { a.link.Run(ctx, a.linkEvents(ctx)) })
	}
	end, err := a.loop(ctx)
	cancel()
	wg.Wait()
	if a.web != nil {
		a.web.close()
	}
	return end, err
}

func newAgent(cfg Config) *agent {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Dial == nil {
		cfg.Dial = dialer()
	}
	if cfg.NewLink == nil {
		cfg.NewLink = NewMQTT
	}
	if cfg.Trust == nil {
		cfg.Trust = new(Trust)
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.FramePeriod == 0 {
		cfg.FramePeriod = time.Second
	}
	a := &agent{
		env: cfg, log: cfg.Log, rand: newRand(cfg.Seed, 1), began: time.Now(),
		heap:  &heap{rand: newRand(cfg.Seed, 2), minimum: heapAtBoot},
		links: make(chan linkEvent, eventQueue), acks: make(chan protocol.Phase, eventQueue),
	}
	a.health = &health{acked: make(chan struct{})}
	a.nonces.rand = newRand(cfg.Seed, uint64(a.began.UnixNano())) // seeded alike, two boots must not ask alike
	return a
}

// nonces makes what no answer that was given before can hold. A chip takes it from its hardware; here it can be repeated with
// the rest of a run. Safe for concurrent use: a trial asks beside everything else.
type nonces struct {
	mu   sync.Mutex
	rand *rand.Rand // guarded by mu
}

func (n *nonces) next() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	b := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, n.rand.Uint64()), n.rand.Uint64())
	return base64.RawURLEncoding.EncodeToString(b)
}

// longest is the longest pause between two tries, which was built as usual.
func (c *Config) longest(usual time.Duration) time.Duration {
	if c.MaxPause > 0 {
		return min(usual, c.MaxPause)
	}
	return usual
}

// newRand is one stream of the board's randomness; each goroutine has its own.
func newRand(seed, stream uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, stream)) }

// linkEvents hands what the session tells to the loop. Nothing is lost but the run's end: the loop always reads.
func (a *agent) linkEvents(ctx context.Context) LinkEvents {
	return LinkEvents{
		Reached: func() { a.health.network.Store(true) },
		Up:      func() { send(ctx, a.links, linkEvent{up: true}) },
		Down:    func(err error) { send(ctx, a.links, linkEvent{err: err}) },
		Command: func(payload []byte, retained bool) {
			if len(payload) == 0 {
				return // the broker was told to forget what it retained
			}
			kept := append([]byte(nil), payload[:min(len(payload), maxCommandKept)]...)
			select {
			case a.links <- linkEvent{command: &command{kept, retained}}:
			default:
				// A flood: the retained order comes again at the next connect, the rest is the flooder's loss.
			}
		},
	}
}

func send[T any](ctx context.Context, c chan<- T, v T) {
	select {
	case c <- v:
	case <-ctx.Done():
	}
}

func (a *agent) loop(ctx context.Context) (End, error) {
	a.begin(ctx)
	release := func() {}
	for {
		var done chan outcome
		if a.job != nil {
			done = a.job.done
		}
		var clock <-chan time.Time
		if a.waiting != nil && a.needsClock {
			clock = time.After(time.Second)
		}
		select {
		case <-clock:
			a.next(ctx)
		case <-ctx.Done():
			if a.job != nil {
				// The flash is the job's until it has ended.
				a.job.cancel(ctx.Err())
				if out := <-a.job.done; gone(out.err) {
					return Halted, out.err
				}
			}
			return Stopped, nil
		case l := <-a.links:
			if l.command != nil {
				a.command(ctx, *l.command)
				continue
			}
			release()
			if !l.up {
				a.rep.disconnected()
				a.log.Info("no session with the broker", "err", l.err)
				continue
			}
			release = a.heap.use(heapMQTT)
			a.rep.connected()
		case p := <-a.acks:
			if err := a.acked(p); err != nil {
				return Halted, err
			}
			a.next(ctx)
		case out := <-done:
			a.job = nil
			if ctx.Err() != nil && !gone(out.err) {
				return Stopped, nil
			}
			if rb := a.self.rolledBack; rb != nil && rb.acked && !out.restart && out.err == nil {
				out.err = a.settle()
			}
			switch {
			case out.err != nil:
				return Halted, out.err
			case out.restart:
				// Words last: what happened is in flash already, so a lost status loses nothing.
				a.rep.flush(ctx, 2*time.Second)
				return Restart, nil
			}
			a.next(ctx)
		}
	}
}

// begin says the first phase of this boot and starts the trial, if it is one.
func (a *agent) begin(ctx context.Context) {
	switch {
	case a.self.rolledBack != nil:
		rb := a.self.rolledBack
		a.rep.set(func(s *protocol.Status) { s.FailedSHA256 = rb.digest })
		a.rep.phase(protocol.PhaseRolledBack, rb.cause, "")
	case a.self.trial:
		a.rep.phase(protocol.PhaseTrial, protocol.ReasonNone, "")
	case a.cfg.problem != nil:
		a.rep.phase(protocol.PhaseIdle, protocol.ReasonBadConfig, a.cfg.problem.Error())
	default:
		a.rep.phase(protocol.PhaseIdle, protocol.ReasonNone, "")
	}
	if a.self.trial {
		a.start(ctx, nil, a.trial)
	}
}

// start runs work beside the loop.
func (a *agent) start(ctx context.Context, w *wish, work func(context.Context) outcome) {
	ctx, cancel := context.WithCancelCause(ctx)
	j := &job{cancel: cancel, done: make(chan outcome, 1), wish: w}
	a.job = j
	go func() {
		defer cancel(nil)
		j.done <- work(ctx)
	}()
}

// next takes up the order that had to wait.
func (a *agent) next(ctx context.Context) {
	if a.waiting == nil || a.job != nil || a.unsettled() || a.needsClock && a.clockMayCome() {
		return
	}
	c := *a.waiting
	a.waiting = nil
	a.command(ctx, c)
}

// unsettled says that an earlier update has not been told to its end: a trial runs, or a rollback is not acknowledged.
func (a *agent) unsettled() bool {
	return a.job != nil && a.job.wish == nil || a.self.rolledBack != nil
}

// acked hears that the broker has a status of this phase. That of a rollback is remembered, in flash, so that it is not told again.
func (a *agent) acked(p protocol.Phase) error {
	a.health.ack()
	if a.self.rolledBack == nil || p != protocol.PhaseRolledBack {
		return nil
	}
	if a.job != nil {
		// The flash is the trial's. Its end settles this, too: see settle.
		a.self.rolledBack.acked = true
		return nil
	}
	return a.settle()
}

// gone says whether the power has failed: the flash takes and gives nothing any more. Every other error of the flash
// fails what was being done and leaves the board running.
func gone(err error) bool { return errors.Is(err, norflash.ErrPowerCut) }
