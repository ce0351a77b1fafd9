package device

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"bmsota/device/internal/agent"
	"bmsota/device/internal/norflash"
	"bmsota/esp/parttable"
)

// lockedFlash is a flash that boards are forked from. Forking marks its pages as shared, so it takes a lock.
type lockedFlash struct {
	mu    sync.Mutex
	flash *norflash.Flash
}

func (l *lockedFlash) fork() *norflash.Flash {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.flash.Clone()
}

// FleetConfig is many boards that start from one flash.
type FleetConfig struct {
	Layout Layout // what they have in common
	Board  Config // likewise; Path and Flash stay empty, Seed is the fleet's
	Count  int
	Mix    Mix           // what becomes of new images on the boards; nil: they are as good as they are
	Spread time.Duration // the boards are switched on at random within this time
	// Each changes what board i has of its own, before its flash is made: MAC, files, sensors, hooks. MAC starts out as
	// 02:00 and the board's number. May be nil.
	Each func(i int, l *Layout, c *Config)
}

// Fleet is many boards in one process. What they have in common is in memory once: sectors of flash, those of an image that
// they were updated to included, and certificates to trust.
type Fleet struct {
	cfg    FleetConfig
	boards []*Board
}

// NewFleet makes the boards and does not switch them on.
func NewFleet(cfg FleetConfig) (*Fleet, error) {
	if cfg.Layout.Table == nil {
		cfg.Layout.Table = parttable.Default()
	}
	base, err := Build(cfg.Layout)
	if err != nil {
		return nil, err
	}
	fates, err := cfg.Mix.deal(cfg.Count, cfg.Board.Seed)
	if err != nil {
		return nil, err
	}
	base.base.flash.Share(norflash.NewPool())
	f := &Fleet{cfg: cfg, boards: make([]*Board, 0, cfg.Count)}
	trust := new(agent.Trust)
	for i := range cfg.Count {
		l, c := cfg.Layout, cfg.Board
		l.MAC = [6]byte{2, 0}
		binary.BigEndian.PutUint32(l.MAC[2:], uint32(i+1))
		c.Flash, c.Path, c.trust, c.Seed = base, "", trust, cfg.Board.Seed+uint64(i)*0x9E3779B97F4A7C15
		c.Sensors, c.Fate = NewSensors(), fates[i]
		if cfg.Each != nil {
			cfg.Each(i, &l, &c)
		}
		c.MAC = l.MAC
		b, err := Open(c)
		if err != nil {
			return nil, fmt.Errorf("board %d: %w", i, err)
		}
		if c.Path == "" {
			if err := l.putFiles(b.flash); err != nil {
				return nil, fmt.Errorf("board %d: %w", i, err)
			}
		}
		f.boards = append(f.boards, b)
	}
	return f, nil
}

// Run switches the boards on and returns when ctx has ended and all are off. A board that dies does not stop the
// others; its error is part of the result.
func (f *Fleet) Run(ctx context.Context) error {
	errs := make([]error, len(f.boards))
	random := rand.New(rand.NewPCG(f.cfg.Board.Seed, 0xF1EE7))
	var wg sync.WaitGroup
	for i, b := range f.boards {
		delay := time.Duration(random.Int64N(int64(f.cfg.Spread) + 1))
		wg.Go(func() {
			if !sleep(ctx, delay) {
				return
			}
			if err := b.Run(ctx); err != nil {
				errs[i] = fmt.Errorf("board %s: %w", b.ID(), err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Close gives back every flash.
func (f *Fleet) Close() error {
	var errs []error
	for _, b := range f.boards {
		errs = append(errs, b.Close())
	}
	return errors.Join(errs...)
}
