package server

import (
	"context"
	"errors"
	"sync"
	"time"
)

// readiness remembers the last answer for a moment, because anyone may ask.
type readiness struct {
	mu  sync.Mutex
	at  time.Time // guarded by mu
	err error     // guarded by mu
}

const readyFor = 2 * time.Second

// checkReady says why the server cannot do its work; nil when it can.
func (s *Server) checkReady(ctx context.Context) error {
	s.ready.mu.Lock()
	defer s.ready.mu.Unlock()
	if !s.ready.at.IsZero() && time.Since(s.ready.at) < readyFor {
		return s.ready.err
	}
	// Not the asker's own context: its answer is for the others too.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readyFor)
	defer cancel()
	s.ready.err = s.probe(ctx)
	s.ready.at = time.Now()
	return s.ready.err
}

func (s *Server) probe(ctx context.Context) error {
	if err := canWrite(s.cfg.DataDir); err != nil {
		s.log.Error("data folder cannot be written", "err", err)
		return errors.New("data folder cannot be written")
	}
	if err := s.store.Probe(ctx); err != nil {
		s.log.Error("database cannot be written", "err", err)
		return errors.New("database cannot be written")
	}
	if err := s.bucket.reached(); err != nil {
		return err
	}
	if !s.up() {
		return errors.New("mqtt broker is not connected")
	}
	return nil
}
