package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestEveryThreadOfTheServerSleepsLonger, the ones that Go made before main too, and a process that has been seen to stays as it was.
func TestEveryThreadOfTheServerSleepsLonger(t *testing.T) {
	const child = "BMSOTA_TEST_TIMERS"
	if os.Getenv(child) != "" {
		relaxTimers()
		fmt.Println(os.Getpid(), slackOfThreads())
		os.Exit(0)
	}
	for _, row := range []struct {
		name string
		has  time.Duration
		env  []string
		want time.Duration
	}{
		{"nobody has seen to it", kernelTimerSlack, nil, timerSlack},
		{"somebody gave another slack", 70 * time.Microsecond, nil, 70 * time.Microsecond},
		{"the environment says so", kernelTimerSlack, []string{timerSlackSet + "=no"}, kernelTimerSlack},
		{"the environment says so, and nothing more", kernelTimerSlack, []string{timerSlackSet + "="}, kernelTimerSlack},
	} {
		t.Run(row.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // one that does not know itself starts for ever
			defer cancel()
			cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+strings.Split(t.Name(), "/")[0]+"$")
			cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, timerSlackSet) })
			cmd.Env = append(append(cmd.Env, child+"=yes"), row.env...)
			var out strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := startWithSlack(cmd, row.has); err != nil {
				t.Fatal(err)
			}
			err := cmd.Wait()
			if want := fmt.Sprintln(cmd.Process.Pid, []time.Duration{row.want}); err != nil || out.String() != want {
				t.Errorf("%v, %q, want %q", err, out.String(), want)
			}
		})
	}
}

// startWithSlack starts cmd from a thread with the slack, from which a process has its own.
func startWithSlack(cmd *exec.Cmd, slack time.Duration) error {
	runtime.LockOSThread() // and never unlocked: the thread ends with its goroutine
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(slack), 0, 0, 0); err != nil {
		return err
	}
	return cmd.Start()
}

// slackOfThreads is what several threads at once have, each value once.
func slackOfThreads() (all []time.Duration) {
	var (
		threads sync.WaitGroup
		mu      sync.Mutex
		seen    = map[time.Duration]bool{}
		ready   sync.WaitGroup
	)
	ready.Add(20)
	for range 20 {
		threads.Go(func() {
			runtime.LockOSThread()
			ready.Done()
			ready.Wait() // so that each has a thread of its own
			slack, _ := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
			mu.Lock()
			defer mu.Unlock()
			if d := time.Duration(slack); !seen[d] {
				seen[d], all = true, append(all, d)
			}
		})
	}
	threads.Wait()
	return all
}
