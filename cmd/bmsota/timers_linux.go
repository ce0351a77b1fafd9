package main

import (
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// timerSlack is how much longer than it asked for a thread of the server may sleep: half a millisecond, which no deadline here
	// notices. Go's supervisor of threads sleeps for 20 µs again and again while there is work, and was a tenth of a new connection.
	timerSlack = 500 * time.Microsecond

	// kernelTimerSlack is what Linux gives every process that nobody gave anything else (init/init_task.c).
	kernelTimerSlack = 50 * time.Microsecond

	// timerSlackSet is the variable of the environment that says that somebody has seen to it; the process is left as it is.
	timerSlackSet = "BMSOTA_TIMER_SLACK"
)

// relaxTimers gives this process timerSlack. A thread has its slack from the one that made it, and the supervisor is made before
// main begins, so the program starts itself once more in place of itself (prctl(2), PR_SET_TIMERSLACK; execve(2) keeps it). Where
// that cannot be, where the environment says that it has been, or the slack is not the kernel's own, everything stays as it is.
func relaxTimers() {
	// Set and empty counts: of two values the first would win, and the second start would not know itself.
	if _, set := os.LookupEnv(timerSlackSet); set {
		return
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	has, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil || time.Duration(has) != kernelTimerSlack {
		return
	}
	path, err := os.Executable()
	if err != nil || unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(timerSlack), 0, 0, 0) != nil {
		return
	}
	_ = syscall.Exec(path, os.Args, append(os.Environ(), timerSlackSet+"="+timerSlack.String()))
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(kernelTimerSlack), 0, 0, 0)
}
