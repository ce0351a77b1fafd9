package server

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// stage is a part of the server that runs until its ctx ends.
type stage struct {
	name string
	run  func(ctx context.Context) error
}

// runStages starts stages in order and runs them until ctx ends or one of them does. Then it ends them in reverse
// order, each after the one before has finished, with one deadline for all: who takes work from outside ends first,
// who makes it durable ends last. A stage that does not end in time is left behind and named in the error.
func runStages(ctx context.Context, deadline time.Duration, stages []stage) error {
	type running struct {
		stage
		cancel context.CancelFunc
		done   chan struct{} // closed after err is set
		err    error
	}
	ended := make(chan struct{}, len(stages))
	list := make([]*running, 0, len(stages))
	for _, s := range stages {
		own, cancel := context.WithCancel(context.WithoutCancel(ctx))
		defer cancel()
		r := &running{stage: s, cancel: cancel, done: make(chan struct{})}
		list = append(list, r)
		go func() {
			r.err = r.run(own)
			close(r.done)
			ended <- struct{}{}
		}()
	}
	select {
	case <-ctx.Done():
	case <-ended:
	}
	limit := time.NewTimer(deadline)
	defer limit.Stop()
	var errs []error
	late := false
	for i := len(list) - 1; i >= 0; i-- {
		r := list[i]
		r.cancel()
		if !late {
			select {
			case <-r.done:
			case <-limit.C:
				late = true
			}
		}
		select {
		case <-r.done:
			if r.err != nil && !errors.Is(r.err, context.Canceled) {
				errs = append(errs, fmt.Errorf("%s: %w", r.name, r.err))
			}
		default:
			errs = append(errs, fmt.Errorf("%s did not end within %v", r.name, deadline))
		}
	}
	return errors.Join(errs...)
}
