//go:build unix

package e2e

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// process is a program in the background. Its output is in $WORK/NAME.log; that of the one before it under the same
// name in $WORK/NAME.log.1.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed after err is set
	err  error
}

const (
	patience  = 30 * time.Second // how long a condition may take to hold
	pollEvery = 50 * time.Millisecond
	askEvery  = 200 * time.Millisecond // where each look is a program that starts
	tailBytes = 4 << 10                // of each log, shown when a story fails
)

// cmdStart starts a program in the background: start NAME PROGRAM ARGS…
func cmdStart(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg, "start")
	if len(args) < 2 {
		ts.Fatalf("usage: start NAME PROGRAM ARGS…")
	}
	ts.Check(begin(ts, args[0], args[1:]...))
}

func begin(ts *testscript.TestScript, name string, args ...string) error {
	s := of(ts)
	if p := s.procs[name]; p != nil && p.alive() {
		return fmt.Errorf("%s runs already", name)
	}
	log := filepath.Join(ts.Getenv("WORK"), name+".log")
	if _, err := os.Stat(log); err == nil {
		if err := os.Rename(log, log+".1"); err != nil {
			return err
		}
	}
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := command(ts, context.Background(), args)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{name: name, cmd: cmd, log: log, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	if s.procs[name] == nil {
		s.order = append(s.order, name)
	}
	s.procs[name] = p
	return nil
}

// command makes a command in the script's folder and environment, in a process group of its own so that its children go
// with it.
func command(ts *testscript.TestScript, ctx context.Context, args []string) *exec.Cmd {
	path := args[0]
	if !strings.Contains(path, "/") {
		for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
			if _, err := os.Stat(filepath.Join(dir, args[0])); err == nil {
				path = filepath.Join(dir, args[0])
				break
			}
		}
	}
	cmd := exec.CommandContext(ctx, path, args[1:]...)
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = environment(ts)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	return cmd
}

// environment is that of the script; testscript does not hand it out, so the variables are asked for one by one.
func environment(ts *testscript.TestScript) []string {
	var env []string
	for _, name := range []string{"PATH", "HOME", "XDG_CONFIG_HOME", "WORK", "LC_ALL", "TMPDIR", "GORACE", "BMSOTA_DATA", "BMSOTA_SERVER",
		"BMSOTA_TOKEN", "BMSOTA_CA_FILE", "BMSOTA_BROKER", "BMSOTA_USERNAME", "BMSOTA_PASSWORD", "BMSOTA_KEY_PASSPHRASE_FILE", "SSH_AUTH_SOCK",
		"PGPASSWORD", "OTA_HOST_BATTERY_HANGS", "OTA_HOST_CLOCK", "OTA_HOST_HANG", "OTA_HOST_ORDERS", "OTA_HOST_SLOW_FLASH", "OTA_HOST_SPEEDUP"} {
		if v := ts.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return append(env, "PWD="+ts.MkAbs("."))
}

func (p *process) alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

func (p *process) signal(sig syscall.Signal) error {
	if err := syscall.Kill(-p.cmd.Process.Pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal %s: %w", p.name, err)
	}
	return nil
}

// end signals the process and waits until it is gone.
func (p *process) end(sig syscall.Signal) error {
	if err := p.signal(sig); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(patience):
		return errors.Join(fmt.Errorf("%s does not end within %v of signal %v", p.name, patience, sig), p.signal(syscall.SIGKILL))
	}
}

// cmdHalt ends processes: halt [-9] NAME… Without -9 each must end by itself, with exit code 0; "! halt" wants another.
func cmdHalt(ts *testscript.TestScript, neg bool, args []string) {
	sig := syscall.SIGTERM
	if len(args) > 0 && args[0] == "-9" {
		sig, args = syscall.SIGKILL, args[1:]
	}
	for _, name := range args {
		p := running(ts, name)
		if !p.alive() {
			ts.Fatalf("%s ended before: %v\n%s", name, p.err, tail(p.log))
		}
		ts.Check(p.end(sig))
		if sig == syscall.SIGTERM && (p.err != nil) != neg {
			ts.Fatalf("%s ended with: %v\n%s", name, p.err, tail(p.log))
		}
	}
}

// cmdEnded waits for a process to end by itself: ended NAME CODE
func cmdEnded(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg, "ended")
	if len(args) != 2 {
		ts.Fatalf("usage: ended NAME CODE")
	}
	p := running(ts, args[0])
	select {
	case <-p.done:
	case <-time.After(2 * patience):
		ts.Fatalf("%s still runs after %v\n%s", args[0], 2*patience, tail(p.log))
	}
	if got := strconv.Itoa(p.cmd.ProcessState.ExitCode()); got != args[1] {
		ts.Fatalf("%s ended with code %s, want %s\n%s", args[0], got, args[1], tail(p.log))
	}
}

func running(ts *testscript.TestScript, name string) *process {
	p := of(ts).procs[name]
	if p == nil {
		ts.Fatalf("no process %q was started", name)
	}
	return p
}

// timeFlag takes "-t DURATION" off the front.
func timeFlag(ts *testscript.TestScript, args []string) (time.Duration, []string) {
	if len(args) < 2 || args[0] != "-t" {
		return patience, args
	}
	d, err := time.ParseDuration(args[1])
	ts.Check(err)
	return d, args[2:]
}

// cmdWaitFor waits until a file has a match: waitfor [-t 30s] FILE REGEXP
func cmdWaitFor(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg, "waitfor")
	limit, args := timeFlag(ts, args)
	if len(args) != 2 {
		ts.Fatalf("usage: waitfor [-t 30s] FILE REGEXP")
	}
	re, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	path := ts.MkAbs(args[0])
	name := strings.TrimSuffix(filepath.Base(path), ".log")
	for end := time.Now().Add(limit); ; time.Sleep(pollEvery) {
		// Asked before the file is read: what a process said last is then seen.
		over := time.Now().After(end)
		p := of(ts).procs[name]
		dead := p != nil && !p.alive()
		b, err := os.ReadFile(path)
		if err == nil && re.Match(b) {
			return
		}
		if over || dead {
			ts.Fatalf("no match for %q in %s (process ended: %v) within %v:\n%s", args[1], args[0], dead, limit, tail(path))
		}
	}
}

// cmdEventually runs a command until it succeeds: eventually [-t 30s] [-out REGEXP] PROGRAM ARGS… Of the last run the
// output is left for stdout and stderr.
func cmdEventually(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg, "eventually")
	limit, args := timeFlag(ts, args)
	want := regexp.MustCompile("")
	if len(args) > 2 && args[0] == "-out" {
		var err error
		want, err = regexp.Compile("(?m)" + args[1])
		ts.Check(err)
		args = args[2:]
	}
	if len(args) == 0 {
		ts.Fatalf("usage: eventually [-t 30s] [-out REGEXP] PROGRAM ARGS…")
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for {
		stdout, stderr, err := output(ts, ctx, args)
		if err == nil && want.MatchString(stdout) {
			give(ts, stdout, stderr)
			return
		}
		if ctx.Err() != nil {
			ts.Fatalf("%s: not within %v: %v\n[stdout]\n%s[stderr]\n%s", strings.Join(args, " "), limit, err, stdout, stderr)
		}
		time.Sleep(askEvery)
	}
}

func output(ts *testscript.TestScript, ctx context.Context, args []string) (stdout, stderr string, err error) {
	var out, errs bytes.Buffer
	cmd := command(ts, ctx, args)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// give leaves output for the script's stdout and stderr commands.
func give(ts *testscript.TestScript, stdout, stderr string) {
	_, err := io.WriteString(ts.Stdout(), stdout)
	ts.Check(err)
	_, err = io.WriteString(ts.Stderr(), stderr)
	ts.Check(err)
}

// cmdExits runs a command and wants one exit code: exits CODE PROGRAM ARGS… Of bmsota it wants one sentence with every
// code but 0.
func cmdExits(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg, "exits")
	if len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARGS…")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	defer cancel()
	stdout, stderr, err := output(ts, ctx, args[1:])
	give(ts, stdout, stderr)
	code := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%s: %v", args[1], err)
	}
	if want := args[0]; strconv.Itoa(code) != want {
		ts.Fatalf("exit code %d, want %s\n[stdout]\n%s[stderr]\n%s", code, want, stdout, stderr)
	}
	if args[1] == "bmsota" {
		checkSentence(ts, code, stderr)
	}
}

// faultLine is the one line that says why a command failed; hints and warnings have lines of their own.
var faultLine = regexp.MustCompile(`^bmsota[a-z ]*: `)

// checkSentence holds what the binary says to one sentence for a person: no panic, no stack, no second complaint.
func checkSentence(ts *testscript.TestScript, code int, stderr string) {
	if strings.Contains(stderr, "goroutine ") || strings.Contains(stderr, "DATA RACE") {
		ts.Fatalf("the program broke down:\n%s", stderr)
	}
	n := 0
	for line := range strings.Lines(stderr) {
		if faultLine.MatchString(line) && !strings.Contains(line, ": hint: ") && !strings.Contains(line, ": warning: ") {
			n++
		}
	}
	if want := min(code, 1); n != want {
		ts.Fatalf("%d sentences about the fault, want %d:\n%s", n, want, stderr)
	}
}

// cmdCapture puts the output of a command into a variable: capture VARIABLE PROGRAM ARGS…
func cmdCapture(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg, "capture")
	if len(args) < 2 {
		ts.Fatalf("usage: capture VARIABLE PROGRAM ARGS…")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	stdout, stderr, err := output(ts, ctx, args[1:])
	if err != nil {
		ts.Fatalf("%s: %v\n%s", args[1], err, stderr)
	}
	ts.Setenv(args[0], strings.TrimSpace(stdout))
}

// seed is of everything random in these tests; a failure prints it.
var seed = flag.Uint64("seed", 0, "seed of the random moments (default: a new one)")

var newSeed = sync.OnceValue(func() uint64 {
	if *seed != 0 {
		return *seed
	}
	return rand.Uint64()
})

// cmdKillRounds starts a board N times and kills it at a random moment of the time given, each time:
// killrounds N UPTO NAME FLASH [FLAGS…] A board that ends by itself before that fails the story.
func cmdKillRounds(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg, "killrounds")
	if len(args) < 4 {
		ts.Fatalf("usage: killrounds N UPTO NAME FLASH [FLAGS…]")
	}
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	upTo, err := time.ParseDuration(args[1])
	ts.Check(err)
	ts.Logf("seed %d: repeat with -seed=%d", newSeed(), newSeed())
	random := rand.New(rand.NewPCG(newSeed(), uint64(n)))
	for round := range n {
		moment := time.Duration(random.Int64N(int64(upTo)))
		ts.Check(begin(ts, args[2], of(ts).board(args[3:])...))
		p := running(ts, args[2])
		select {
		case <-p.done:
			ts.Fatalf("round %d: %s ended by itself: %v\n%s", round, args[2], p.err, tail(p.log))
		case <-time.After(moment):
		}
		ts.Check(p.end(syscall.SIGKILL))
	}
}

// close ends everything the story started; when the story failed it first shows what the processes said.
func (s *story) close(tb testing.TB) {
	for _, name := range s.order {
		p := s.procs[name]
		if p.alive() {
			if err := p.signal(syscall.SIGKILL); err != nil {
				tb.Error(err)
			}
			<-p.done
		}
		if tb.Failed() {
			tb.Logf("[%s: %v]\n%s", name, p.cmd.ProcessState, tail(p.log))
		}
	}
	for name, l := range s.links {
		if err := l.close(); err != nil {
			tb.Errorf("link %s: %v", name, err)
		}
	}
	for name, h := range s.hostile {
		h.close()
		if tb.Failed() {
			tb.Logf("[hostile %s]\n%s", name, h.story())
		}
	}
	for i := len(s.undo) - 1; i >= 0; i-- {
		s.undo[i]()
	}
}

func tail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	if len(b) > tailBytes {
		b = append([]byte("…"), b[len(b)-tailBytes:]...)
	}
	return string(b)
}
