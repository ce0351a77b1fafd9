package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// Process is a program that is measured, with what it has started (nginx has workers).
type Process struct {
	name string
	cmd  *exec.Cmd
	log  string        // file of what it says
	done chan struct{} // closed when it has ended
}

// endWithin is how long a program may take to end before it is killed.
const endWithin = 20 * time.Second

// start starts a program whose output goes to a file in the run's folder.
func (b *Bench) start(name, program string, args ...string) (*Process, error) {
	p := &Process{name: name, log: filepath.Join(b.Dir, name+".log"), done: make(chan struct{})}
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p.cmd = exec.Command(program, args...)
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.Dir = out, out, b.Dir
	p.cmd.Env = environment(b.Dir)
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		_ = p.cmd.Wait() // how it ended matters only while somebody waits for it to be ready
		close(p.done)
	}()
	return p, nil
}

// environment is this process's without what it sets for bmsota, so that the server measured is one with nothing configured.
func environment(home string) []string {
	env := []string{"HOME=" + home}
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); name != "HOME" && !strings.HasPrefix(name, "BMSOTA_") {
			env = append(env, v)
		}
	}
	return env
}

// stop ends the program, and kills it where it does not end.
func (p *Process) stop() {
	_ = p.cmd.Process.Signal(os.Interrupt)
	select {
	case <-p.done:
	case <-time.After(endWithin):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// ready waits until ok says so, and gives up when the program ends.
func (p *Process) ready(ctx context.Context, ok func() error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		err := ok()
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended: %s", p.name, p.said())
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w: %s", p.name, err, p.said())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// listens waits until the program takes connections at address, and stops it where that does not come.
func (p *Process) listens(ctx context.Context, address string) error {
	err := p.ready(ctx, func() error {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			err = conn.Close()
		}
		return err
	})
	if err != nil {
		p.stop()
	}
	return err
}

// said is the end of what the program has said.
func (p *Process) said() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return strings.Join(strings.Fields(string(b[max(0, len(b)-1000):])), " ")
}

// Used is the processor time that the program and its children have been charged, ended children included.
func (p *Process) Used() (time.Duration, error) {
	var ticks int64
	err := p.each(func(pid int) error {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return err
		}
		fields, err := statFields(b)
		if err != nil {
			return err
		}
		for _, i := range []int{11, 12, 13, 14} { // utime, stime, cutime, cstime (proc_pid_stat(5): 14 to 17)
			n, err := strconv.ParseInt(fields[i], 10, 64)
			if err != nil {
				return err
			}
			ticks += n
		}
		return nil
	})
	return time.Duration(ticks) * tick, err
}

// Peak is the most that the program without its children has held in memory since it was started, in bytes (VmHWM).
func (p *Process) Peak() (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, fmt.Errorf("%s: %w", p.name, err)
	}
	return kibOf(b, "VmHWM:")
}

// kibOf finds the line of a file in /proc that begins with key and has an amount in KiB, and returns it in bytes.
func kibOf(b []byte, key string) (int64, error) {
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if len(fields) >= 2 && fields[0] == key {
			kib, err := strconv.ParseInt(fields[1], 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("/proc has no %s for it", key)
}

// Memory is what the program and its children hold in memory now, in bytes: pages they share with others in proportion (PSS).
func (p *Process) Memory() (int64, error) {
	var total int64
	err := p.each(func(pid int) error {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return err
		}
		held, err := kibOf(b, "Pss:")
		total += held
		return err
	})
	return total, err
}

// tick is one unit of /proc/PID/stat: USER_HZ is 100 on every architecture that Go runs on.
const tick = 10 * time.Millisecond

// statFields are those of /proc/PID/stat behind the name, which may hold anything.
func statFields(b []byte) ([]string, error) {
	i := bytes.LastIndexByte(b, ')')
	fields := strings.Fields(string(b[i+1:]))
	if i < 0 || len(fields) < 15 {
		return nil, errors.New("/proc/PID/stat reads as nothing known")
	}
	return fields, nil
}

// each calls do for the program and the children it has.
func (p *Process) each(do func(pid int) error) error {
	pid := p.cmd.Process.Pid
	if err := do(pid); err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	for _, text := range strings.Fields(string(b)) {
		child, err := strconv.Atoi(text)
		if err != nil {
			return err
		}
		if err := do(child); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

// Cost makes a turn of work: what one piece of it costs p in microseconds of processor time. work says how many pieces it did.
func Cost(p *Process, work func(ctx context.Context) (int, error)) Turn {
	return func(ctx context.Context) (float64, error) {
		before, err := p.Used()
		if err != nil {
			return 0, err
		}
		n, err := work(ctx)
		if err != nil {
			return 0, err
		}
		after, err := p.Used()
		if err != nil {
			return 0, err
		}
		if n == 0 {
			return 0, errors.New("nothing was done in time: give --duration more")
		}
		return float64((after - before).Microseconds()) / float64(n), nil
	}
}

func processors() int { return runtime.NumCPU() }
