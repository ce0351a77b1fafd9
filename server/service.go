package server

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"
)

// supervisor is who started the server, when that is systemd and wants to be told: sd_notify(3), and sd_watchdog_enabled(3).
// The zero value is nobody.
type supervisor struct {
	socket string        // NOTIFY_SOCKET; an abstract one begins with @
	every  time.Duration // half of what the watchdog allows; 0 = it does not watch
}

// supervisorOf reads what systemd has put into the environment. What is for another process is nobody's.
func supervisorOf(env func(string) string, pid int) supervisor {
	s := supervisor{socket: env("NOTIFY_SOCKET")}
	usec, err := strconv.ParseInt(env("WATCHDOG_USEC"), 10, 64)
	if watched := env("WATCHDOG_PID"); err == nil && usec > 0 && usec < int64(24*time.Hour/time.Microsecond) && (watched == "" || watched == strconv.Itoa(pid)) {
		s.every = time.Duration(usec) * time.Microsecond / 2
	}
	return s
}

// tell sends one state, such as READY=1.
func (s supervisor) tell(state string) error {
	if s.socket == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: s.socket, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("tell systemd: %w", err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(state)); err != nil {
		return fmt.Errorf("tell systemd: %w", err)
	}
	return nil
}

// runSupervised says that the server is up, and from then on that it is alive, until ctx ends. It says so only while the
// question whether the server can do its work is answered: yes or no, for no restart mends a full disk, but a process that does
// not answer hangs.
func (s *Server) runSupervised(ctx context.Context) error {
	up := supervisorOf(os.Getenv, os.Getpid())
	say := func(state string) {
		if err := up.tell(state); err != nil {
			s.log.Warn("systemd is not told", "err", err)
		}
	}
	say("READY=1")
	defer say("STOPPING=1")
	var alive <-chan time.Time
	if up.every > 0 && up.socket != "" {
		tick := time.NewTicker(up.every)
		defer tick.Stop()
		alive = tick.C
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-alive:
			_ = s.checkReady(ctx) // what it answers is for /readyz
			say("WATCHDOG=1")
		}
	}
}
