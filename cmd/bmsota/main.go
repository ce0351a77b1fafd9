// Command bmsota is the whole system in one binary: firmware server, operator's tool and virtual boards.
//
// This package reads flags, opens one door (server, device, deploy, api or a format package) and turns the outcome
// into a sentence and an exit code. Nothing is decided here.
//
// Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused (verification, policy), 4 device failed or rolled back,
// 5 unreachable or timed out.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		relaxTimers()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// After the first signal the handler is removed, so that a second one ends a shutdown that hangs.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, streams{os.Stdin, os.Stdout, os.Stderr}, os.Args[1:]))
}

// streams are a command's three files; tests pass buffers.
type streams struct {
	in  io.Reader
	out io.Writer
	err io.Writer
}
