// Package device is a battery monitor without the board: a flash image that is true to the byte, ESP-IDF's boot decision
// over it, and the firmware's side of an update, in a reset loop. It is how an update is tested where there is no
// hardware, one board at a time or thousands.
//
// It promises that nothing but the flash carries over from one life of a board to the next, as on the chip: switched off at
// any moment and on again, a board does what a real one would. An image built with a trial behaviour other than ok
// behaves that way each time it runs: it crashes, hangs until the watchdog bites, or never hears from the battery.
//
// It refuses a flash that another process runs, and images that do not fit the board. A board on which nothing boots
// says so with ErrNoBoot instead of resetting for ever.
//
// What it does not have: the application itself, a bootloader's code, flash encryption, secure boot, a radio.
// The truth is in the packages below internal/: norflash (the chip), bootloader (what starts), otaops (what ESP-IDF's
// application side writes) and agent (the update).
package device

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"bmsota/device/internal/agent"
	"bmsota/device/internal/bootloader"
	"bmsota/device/internal/norflash"
	"bmsota/device/internal/otaops"
	"bmsota/esp/appimage"
	"bmsota/esp/parttable"
	"bmsota/protocol"
)

// ErrNoBoot is returned by Run when nothing in flash boots. A real board would reset for ever.
var ErrNoBoot = errors.New("nothing in flash boots")

// ErrInUse is wrapped by Open for a flash file that another board or process has open.
var ErrInUse = norflash.ErrLocked

// ErrPowerCut is wrapped by what Run returns when the power failed as Config.PowerCut says.
var ErrPowerCut = norflash.ErrPowerCut

// PowerCut is a power failure in the middle of writing flash. An operation is an erased sector or a programmed piece of at
// most 64 bytes; the bootloader's count, too, and so does what a virtual chip writes to its eFuses.
type PowerCut struct {
	At   int       // the operation it comes in, the first one after Open being 1; 0 is never
	How  CutMoment // empty is CutBefore
	Seed uint64    // decides how far a torn operation got
}

// CutMoment is when the power fails, seen from the operation.
type CutMoment string

// The moments.
const (
	CutBefore CutMoment = "before" // it is not done
	CutTorn   CutMoment = "torn"   // it is done in part
	CutAfter  CutMoment = "after"  // it is done, and nothing after it
)

func (p PowerCut) cut() (norflash.Cut, error) {
	switch {
	case p.At < 0:
		return norflash.Cut{}, fmt.Errorf("power cut at operation %d", p.At)
	case p.How == "" || p.How == CutBefore:
		return norflash.Before, nil
	case p.How == CutTorn:
		return norflash.Torn(p.Seed), nil
	case p.How == CutAfter:
		return norflash.After, nil
	}
	return norflash.Cut{}, fmt.Errorf("power cut %q an operation: before, torn or after is known", p.How)
}

// ResetReason is why the chip starts, in the words of a status.
type ResetReason = agent.ResetReason

// The reasons.
const (
	PowerOn  = agent.PowerOn
	Software = agent.Software
	Panic    = agent.Panic
	Watchdog = agent.Watchdog
	Brownout = agent.Brownout
)

// Timing is how long things take on the board. Zero fields are the defaults.
type Timing struct {
	Boot     time.Duration // reset to application; 300 ms
	Crash    time.Duration // application start to panic of an image that crashes; 2 s
	Watchdog time.Duration // until it resets an image that hangs; 10 s
	Frame    time.Duration // between two readings of the battery; 1 s
	// Flash is how long the chip takes, in times that Config.Seed decides; none. A data sheet says 45 ms for a sector and 0.7 ms
	// for a page of 256 bytes, which are four pieces, and for a chip that is worn 400 ms and 5 ms (Winbond W25Q32JV, t_SE and
	// t_PP). The bootloader and the firmware built in wait for it; a program of yours has its own flash.
	Flash Pace
}

// Pace is how long the operations of a flash chip take, and Span a range of times.
type (
	Pace = norflash.Pace
	Span = norflash.Span
)

func (t Timing) withDefaults() Timing {
	or := func(d *time.Duration, fallback time.Duration) {
		if *d == 0 {
			*d = fallback
		}
	}
	or(&t.Boot, 300*time.Millisecond)
	or(&t.Crash, 2*time.Second)
	or(&t.Watchdog, 10*time.Second)
	or(&t.Frame, time.Second)
	return t
}

// Config is one board and what is around it. One of Path and Flash is set.
type Config struct {
	Path  string // flash file: content of the chip; what the board writes is there at once
	Flash *Flash // or this content, copied; it is gone when the board is

	MAC     [6]byte // zero: what Create wrote
	Seed    uint64  // of jitter
	Timing  Timing
	Sensors *Sensors // nil: a healthy battery at 80 %

	NoRollback   bool // bootloader and application are built without rollback, as the first firmware was
	AntiRollback bool // and with anti-rollback

	Dial      func(ctx context.Context, network, addr string) (net.Conn, error) // nil: the system's network
	Roots     *x509.CertPool                                                    // public authorities; nil: the system's
	Transport http.RoundTripper                                                 // instead of HTTPS over Dial

	MaxPause time.Duration // between two tries to reach server or broker; 0: as the firmware has it

	Fate Fate // of new images on this board; empty is FateGood

	// Application is a program that runs as the board's firmware, one process for each life, as docs/virtual-boards.md has
	// it: your own, built for this machine. The reset loop stays as it is, and so does what images with a trial behaviour
	// do. It needs Path, finds its own way to the network and has the randomness it is given by Seed. Empty: the firmware
	// that is built in.
	Application string

	PowerCut PowerCut // comes once; the Run after it continues from what the cut left

	Log *slog.Logger // nil: none
	// OnStatus sees every status, also those said while there is no session. It must not block.
	OnStatus func(protocol.Status)
	// OnBoot sees every boot decision: the partition that starts ("none" where nothing does) and why the chip was reset.
	OnBoot func(partition string, reset ResetReason)

	trust   *agent.Trust
	keys    []*ecdsa.PublicKey // instead of those that an image carries
	newLink func(agent.LinkConfig) agent.Link
	clock   func() time.Time
	strict  bool
	mutant  agent.Mutant
	wrap    func(otaops.Flash) otaops.Flash                               // what the application sees of the flash
	atReset func(ResetReason) bool                                        // before each boot decision; false ends Run
	behave  func(*norflash.Flash, parttable.Partition) appimage.Behaviour // of what runs from there; nil: as the image was built
}

// Board is one board. Run may be called again after it returned; the methods of one Board but Reset are for one goroutine.
type Board struct {
	cfg    Config
	log    *slog.Logger
	flash  *norflash.Flash
	fuses  fuses
	fused  bool // the flash has an eFuse block
	resets chan ResetReason
}

// Open takes the flash of a board.
func Open(cfg Config) (*Board, error) {
	b := &Board{cfg: cfg, log: cfg.Log, resets: make(chan ResetReason, 1)}
	if b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	b.cfg.Timing = cfg.Timing.withDefaults()
	if b.cfg.Sensors == nil {
		b.cfg.Sensors = NewSensors()
	}
	if cfg.Application != "" && cfg.Path == "" {
		return nil, errors.New("open board: an application needs a flash file, a flash in memory cannot be lent to it")
	}
	if cfg.Application != "" {
		var err error
		if b.cfg.Application, err = findApplication(cfg.Application); err != nil {
			return nil, err
		}
	}
	cut, err := cfg.PowerCut.cut()
	if err != nil {
		return nil, fmt.Errorf("open board: %w", err)
	}
	switch {
	case (cfg.Path == "") == (cfg.Flash == nil):
		return nil, errors.New("open board: give a flash file or a flash in memory, one of them")
	case cfg.Path != "":
		if b.flash, err = openFlash(cfg); err != nil {
			return nil, fmt.Errorf("open board: %w", err)
		}
	default:
		b.flash = cfg.Flash.base.fork()
	}
	if err := b.plugIn(); err != nil {
		b.flash.Close()
		return nil, fmt.Errorf("open board: %w", err)
	}
	b.flash.CutAt(cfg.PowerCut.At, cut)
	if cfg.Timing.Flash != (Pace{}) {
		b.flash.Slow(cfg.Timing.Flash, cfg.Seed, time.Sleep)
	}
	return b, nil
}

// plugIn finds out which chip this is.
func (b *Board) plugIn() error {
	var err error
	if b.fuses, b.fused, err = readFuses(b.flash); err != nil {
		return err
	}
	if !b.fused {
		if b.fuses.chip, err = chipOf(b.flash); err != nil {
			return err
		}
	}
	if b.cfg.MAC != [6]byte{} {
		b.fuses.mac = b.cfg.MAC
	}
	return nil
}

// chipOf takes the chip from the first application in flash: a flash read from a real board has no eFuse block.
func chipOf(f *norflash.Flash) (appimage.ChipID, error) {
	table, err := readTable(f)
	if err != nil {
		return 0, err
	}
	for _, p := range table {
		if p.Type != parttable.TypeApp {
			continue
		}
		var b [appimage.HeaderSize]byte
		if _, err := f.ReadAt(b[:], int64(p.Offset)); err != nil {
			continue
		}
		if h, err := appimage.ParseHeader(b[:]); err == nil {
			return h.Chip, nil
		}
	}
	return appimage.ESP32, nil
}

func readTable(f *norflash.Flash) (parttable.Table, error) {
	sector := make([]byte, parttable.SectorSize)
	if _, err := f.ReadAt(sector, parttable.Offset); err != nil {
		return nil, fmt.Errorf("read partition table: %w", err)
	}
	return parttable.ParseFlash(sector, f.Size())
}

// Close gives the flash back. The board must not run.
func (b *Board) Close() error { return b.flash.Close() }

// ID is the id that the board has when its configuration gives it none.
func (b *Board) ID() string { return protocol.DeviceID(b.fuses.mac) }

// Sensors is what the board measures.
func (b *Board) Sensors() *Sensors { return b.cfg.Sensors }

// Reset resets the running board, as a brown-out or a person at the plug would. Without one that runs it takes effect
// when Run is called. It may be called from any goroutine; of resets that come at once, one is done.
func (b *Board) Reset(why ResetReason) {
	select {
	case b.resets <- why:
	default:
	}
}

// Run is power on until ctx ends, which is power off and no error. Every other end has one: ErrNoBoot when nothing
// boots, ErrPowerCut, or what is wrong with the flash.
func (b *Board) Run(ctx context.Context) error {
	if b.flash.Dead() {
		b.flash.PowerOn()
	}
	reset := PowerOn
	for {
		if b.cfg.atReset != nil && !b.cfg.atReset(reset) {
			return nil
		}
		res, err := bootloader.Boot(b.flash, bootloader.Config{
			Rollback: !b.cfg.NoRollback, AntiRollback: b.cfg.AntiRollback, Efuse: &b.fuses.secure,
			Chip: b.fuses.chip, ChipRevision: b.fuses.revision})
		if err == nil {
			err = b.saveFuses()
		}
		if errors.Is(err, norflash.ErrPowerCut) {
			return err
		}
		if b.cfg.OnBoot != nil {
			b.cfg.OnBoot(res.Booted, reset)
		}
		b.log.Info("boot", "slot", res.Booted, "selected", res.Selected, "reset", reset)
		if err != nil || res.Booted == "none" {
			return b.dead(err)
		}
		if !sleep(ctx, b.cfg.Timing.Boot) {
			return nil
		}
		if reset, err = b.live(ctx, res, reset); err != nil || ctx.Err() != nil {
			return err
		}
	}
}

// dead tells that nothing boots.
func (b *Board) dead(err error) error {
	err = errors.Join(ErrNoBoot, err)
	b.log.Error("board does not boot", "err", err)
	if b.cfg.OnStatus != nil {
		code, _ := protocol.PhaseFailed.Code()
		b.cfg.OnStatus(protocol.Status{TimestampUS: time.Now().UnixMicro(), DeviceID: b.ID(), Protocol: protocol.Version,
			Phase: protocol.PhaseFailed, Status: code, Reason: protocol.ReasonCorrupt, Message: err.Error()})
	}
	return err
}

// live runs the image that booted until the chip is reset, and says why it was.
func (b *Board) live(ctx context.Context, res bootloader.Result, reset ResetReason) (ResetReason, error) {
	life, end := context.WithCancelCause(ctx)
	pulled := make(chan ResetReason, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case why := <-b.resets:
			pulled <- why
			end(errReset)
		case <-life.Done():
		}
	})
	var after ResetReason
	var err error
	suffered := false
	if onTrial(res) {
		after, suffered = b.suffer(life)
	}
	if !suffered {
		after, err = b.behave(life, b.behaviour(res), res.Partition, reset)
	}
	end(nil)
	wg.Wait()
	select {
	case why := <-pulled:
		return why, err
	default:
		return after, err
	}
}

var errReset = errors.New("reset")

func (b *Board) behaviour(res bootloader.Result) appimage.Behaviour {
	p := res.Partition
	if b.cfg.behave != nil {
		return b.cfg.behave(b.flash, p)
	}
	return appimage.TrialBehaviour(section(b.flash, p), res.Image)
}

func (b *Board) behave(ctx context.Context, behaviour appimage.Behaviour, p parttable.Partition, reset ResetReason) (ResetReason, error) {
	switch behaviour {
	case appimage.BehaviourCrash:
		sleep(ctx, b.cfg.Timing.Crash)
		return Panic, nil
	case appimage.BehaviourHang:
		sleep(ctx, b.cfg.Timing.Watchdog)
		return Watchdog, nil
	}
	if b.cfg.Application != "" {
		return b.runApplication(ctx, p, reset, behaviour == appimage.BehaviourUnhealthy)
	}
	return b.runAgent(ctx, behaviour, p, reset)
}

// runAgent runs the firmware that is built in.
func (b *Board) runAgent(ctx context.Context, behaviour appimage.Behaviour, p parttable.Partition, reset ResetReason) (ResetReason, error) {
	battery := b.cfg.Sensors.Read
	if behaviour == appimage.BehaviourUnhealthy {
		battery = func() (protocol.Battery, bool) { return protocol.Battery{}, false }
	}
	table, err := readTable(b.flash)
	if err != nil {
		return Panic, err
	}
	var flash otaops.Flash = b.flash
	if b.cfg.wrap != nil {
		flash = b.cfg.wrap(flash)
	}
	end, err := agent.Run(ctx, agent.Config{
		Flash: flash, Table: table, Running: p, MAC: b.fuses.mac, Reset: reset,
		Ops: otaops.Config{Rollback: !b.cfg.NoRollback, AntiRollback: b.cfg.AntiRollback, Efuse: &b.fuses.secure,
			EfuseBits: bootloader.SecureVersionBits(b.fuses.chip), Chip: b.fuses.chip, ChipRevision: b.fuses.revision},
		Battery: battery, FramePeriod: b.cfg.Timing.Frame,
		Dial: b.cfg.Dial, Roots: b.cfg.Roots, Trust: b.cfg.trust, Keys: b.cfg.keys, Transport: b.cfg.Transport, NewLink: b.cfg.newLink, Clock: b.cfg.clock,
		Seed: b.cfg.Seed, MaxPause: b.cfg.MaxPause, Log: b.log, OnStatus: b.cfg.OnStatus, Strict: b.cfg.strict, Mutant: b.cfg.mutant,
	})
	if errors.Is(err, norflash.ErrPowerCut) {
		return PowerOn, err
	}
	if err != nil {
		// As on the chip: what cannot go on panics, and starts over.
		b.log.Error("application ended", "err", err)
		sleep(ctx, b.cfg.Timing.Crash)
		return Panic, b.saveFuses()
	}
	if end == agent.Restart {
		return Software, b.saveFuses()
	}
	return PowerOn, b.saveFuses()
}

// saveFuses burns what was raised. A flash without an eFuse block keeps it as long as the Board lives.
func (b *Board) saveFuses() error {
	if !b.fused {
		return nil
	}
	there, ok, err := readFuses(b.flash)
	if err != nil || !ok || there.secure >= b.fuses.secure {
		return err
	}
	return burn(b.flash, b.fuses.secure)
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
