package device

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"bmsota/device/internal/bootloader"
	"bmsota/device/internal/norflash"
	"bmsota/esp/parttable"
	"bmsota/protocol"
)

// ErrApplication is wrapped by what Run returns when Config.Application cannot be started, or does not keep to what
// docs/virtual-boards.md asks of it.
var ErrApplication = errors.New("application")

// Exit statuses of an application. Every other one, and a signal, is a panic of the chip.
const (
	exitStopped  = 0  // it was told to stop
	exitRestart  = 10 // esp_restart
	exitPowerCut = 12 // the power failed as --cut-at says
)

const (
	// stopGrace is how long an application may take to stop after SIGTERM, before it is killed.
	stopGrace = 5 * time.Second
	// leaveGrace is how long the application of a board that was killed may go on holding the flash.
	leaveGrace = 2 * time.Second
	// maxReport is more than two numbers of 32 bits take, in bytes.
	maxReport = 64
	// tailLines is how much of an application's log is told again when it panics.
	tailLines = 12
)

// application is one life of a program that runs as the board's firmware.
type application struct {
	board   *Board
	folder  string // private: the storage files and the report
	running parttable.Partition
	reset   ResetReason
	silent  bool // the image is one whose battery never answers

	mu   sync.Mutex // statuses and log come in two goroutines
	tail []string   // of the log
}

// findApplication is the program's path as package exec wants it, and whether it can be started as far as that can be seen.
func findApplication(path string) (string, error) {
	if filepath.Base(path) == path {
		path = "." + string(filepath.Separator) + path // a file, not a name to look for in PATH
	}
	if _, err := exec.LookPath(path); err != nil {
		return path, unstartable(path, err)
	}
	return path, nil
}

func unstartable(path string, err error) error {
	if ee, ok := errors.AsType[*exec.Error](err); ok {
		err = ee.Err
	}
	if pe, ok := errors.AsType[*os.PathError](err); ok {
		err = pe.Err
	}
	return fmt.Errorf("%w %s cannot be started: %w", ErrApplication, path, err)
}

// openFlash takes the flash file of a board. One that was killed may have left an application that is about to end.
func openFlash(cfg Config) (*norflash.Flash, error) {
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		f, err := norflash.Open(cfg.Path)
		if cfg.Application == "" || !errors.Is(err, ErrInUse) || time.Since(began) > leaveGrace {
			return f, err
		}
	}
}

// runApplication runs the program until it ends, with the flash lent to it, and says why the chip is reset.
func (b *Board) runApplication(ctx context.Context, p parttable.Partition, reset ResetReason, silent bool) (ResetReason, error) {
	folder, err := os.MkdirTemp("", "bmsota-board-") // 0700: the files hold passwords
	if err != nil {
		return Panic, fmt.Errorf("folder for the storage files: %w", err)
	}
	defer os.RemoveAll(folder)
	a := &application{board: b, folder: folder, running: p, reset: reset, silent: silent}
	if err := a.putStorage(); err != nil {
		return Panic, err
	}
	var why ResetReason
	err = b.flash.Lend(func(cutIn int) (ops int, err error) {
		ops, why, err = a.live(ctx, cutIn)
		return ops, err
	})
	if err != nil {
		return why, err
	}
	if why == Panic {
		b.log.Error("application panicked", "last", strings.Join(a.tail, "\n"))
		sleep(ctx, b.cfg.Timing.Crash)
	}
	return why, b.saveFuses()
}

// putStorage copies the two configuration files out of the flash, as far as they can be read: that they cannot is for the
// firmware to say.
func (a *application) putStorage() error {
	folder := filepath.Join(a.folder, "storage")
	if err := os.Mkdir(folder, 0o700); err != nil {
		return fmt.Errorf("folder for the storage files: %w", err)
	}
	table, err := readTable(a.board.flash)
	if err != nil {
		return err
	}
	files, err := storage(a.board.flash, table)
	if err != nil {
		a.board.log.Warn("storage partition not read", "err", err)
		return nil
	}
	for _, name := range []string{protocol.OTAConfigFile, protocol.MQTTConfigFile} {
		data, err := files.ReadFile(name)
		if err != nil {
			a.board.log.Warn("storage file not read", "file", name, "err", err)
			continue
		}
		if err := os.WriteFile(filepath.Join(folder, name), data, 0o600); err != nil {
			return fmt.Errorf("copy of a storage file: %w", err)
		}
	}
	return nil
}

// live is the program from start to end.
func (a *application) live(ctx context.Context, cutIn int) (ops int, why ResetReason, err error) {
	program := a.board.cfg.Application
	cmd := exec.CommandContext(ctx, program, a.args(cutIn)...)
	cmd.Cancel = func() error {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			return cmd.Process.Kill() // a system without signals
		}
		return nil
	}
	cmd.WaitDelay = stopGrace
	statuses, log := &lines{each: a.status}, &lines{each: a.logged}
	cmd.Stdout, cmd.Stderr = statuses, log
	// It stays open as long as this process lives. An application that outlives it would hold the flash.
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return 0, Panic, fmt.Errorf("%w %s: %w", ErrApplication, program, err)
	}
	defer stdin.Close()
	if err := cmd.Start(); err != nil {
		return 0, Panic, unstartable(program, err)
	}
	werr := cmd.Wait()
	statuses.end()
	log.end()
	if cmd.ProcessState == nil {
		return 0, Panic, fmt.Errorf("%w %s: %w", ErrApplication, program, werr)
	}
	if ops, why, err = a.ended(ctx, cmd.ProcessState.ExitCode(), cutIn); err != nil && !errors.Is(err, ErrPowerCut) {
		err = fmt.Errorf("%w %s: %w", ErrApplication, program, err)
	}
	return ops, why, err
}

// ended reads what an exit status means. A life that was not to go on, and one that a panic ended, may lack its report.
func (a *application) ended(ctx context.Context, status, cutIn int) (ops int, why ResetReason, err error) {
	r, err := readReport(filepath.Join(a.folder, "report"))
	if err == nil {
		err = a.raise(r.secure)
	}
	stopped := ctx.Err() != nil
	switch {
	case status == exitPowerCut && err != nil, status == exitRestart && err != nil:
		return 0, Panic, err
	case status == exitPowerCut && (cutIn == 0 || r.ops != cutIn):
		return 0, Panic, fmt.Errorf("it ended in a power cut at operation %d, and was told %d (0: none)", r.ops, cutIn)
	case status == exitPowerCut:
		return r.ops, PowerOn, ErrPowerCut
	case cutIn > 0 && r.ops >= cutIn:
		return 0, Panic, fmt.Errorf("it did %d operations, the power was to fail in operation %d", r.ops, cutIn)
	case status == exitRestart:
		return r.ops, Software, nil
	case stopped:
		return r.ops, PowerOn, nil
	case status == exitStopped:
		// A person's Ctrl-C reaches it, too, and may do so first.
		if !sleep(ctx, time.Second) {
			return r.ops, PowerOn, nil
		}
		return 0, Panic, errors.New("it ended with status 0, and nothing had asked it to stop")
	}
	return r.ops, Panic, nil
}

// raise takes over a secure version that the program burnt.
func (a *application) raise(secure uint32) error {
	fuses := &a.board.fuses
	if width := bootloader.SecureVersionBits(fuses.chip); uint64(secure) > uint64(width) {
		return fmt.Errorf("its report has secure version %d, the chip has %d bits for it", secure, width)
	}
	fuses.secure = max(fuses.secure, secure)
	return nil
}

func (a *application) args(cutIn int) []string {
	b := a.board
	number := func(on bool) string {
		if on {
			return "1"
		}
		return "0"
	}
	decimal := func(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }
	battery, answers := b.cfg.Sensors.Read()
	args := []string{
		"--flash", b.cfg.Path, "--running", a.running.SubtypeName(), "--reset", string(a.reset),
		"--mac", hex.EncodeToString(b.fuses.mac[:]), "--chip", b.fuses.chip.String(), "--revision", strconv.Itoa(int(b.fuses.revision)),
		"--storage", filepath.Join(a.folder, "storage"),
		"--rollback", number(!b.cfg.NoRollback || b.cfg.AntiRollback), "--anti-rollback", number(b.cfg.AntiRollback),
		"--efuse", strconv.FormatUint(uint64(b.fuses.secure), 10), "--seed", strconv.FormatUint(b.cfg.Seed, 10),
		"--frame-ms", strconv.FormatInt(b.cfg.Timing.Frame.Milliseconds(), 10),
		"--soc", decimal(battery.SOCPct), "--current", decimal(battery.PackCurrentA),
		"--charging", number(battery.Charging),
		"--report", filepath.Join(a.folder, "report"),
	}
	if battery.TempMinC != nil && battery.TempMaxC != nil {
		args = append(args, "--temp-min", decimal(*battery.TempMinC), "--temp-max", decimal(*battery.TempMaxC))
	}
	if a.silent || !answers {
		args = append(args, "--unhealthy")
	}
	if cutIn > 0 {
		cut := b.cfg.PowerCut
		if cut.How == "" {
			cut.How = CutBefore
		}
		args = append(args, "--cut-at", strconv.Itoa(cutIn), "--cut", string(cut.How), "--cut-seed", strconv.FormatUint(cut.Seed, 10))
	}
	return args
}

// status hands on what the program says of itself; other lines are its log.
func (a *application) status(line string) {
	s, err := protocol.ParseStatus([]byte(line))
	if err != nil {
		a.logged(line)
		return
	}
	if a.board.cfg.OnStatus != nil {
		a.board.cfg.OnStatus(s)
	}
}

func (a *application) logged(line string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.board.log.Info("application", "says", line)
	if a.tail = append(a.tail, line); len(a.tail) > tailLines {
		a.tail = a.tail[1:]
	}
}

// report is what the program leaves behind.
type report struct {
	ops    int    // flash operations, as norflash counts them
	secure uint32 // secure version in the eFuses
}

func readReport(path string) (report, error) {
	f, err := os.Open(path)
	if err != nil {
		return report{}, errors.New("it left no report")
	}
	defer f.Close()
	b := make([]byte, maxReport+1)
	n, err := f.Read(b)
	if err != nil && n == 0 {
		return report{}, errors.New("its report is empty")
	}
	return parseReport(b[:n])
}

// parseReport reads two decimal numbers, each with a newline.
func parseReport(b []byte) (report, error) {
	bad := errors.New("its report is not two lines with a number each: operations done, secure version")
	first, rest, ok := bytes.Cut(b, []byte("\n"))
	second, rest, ok2 := bytes.Cut(rest, []byte("\n"))
	if !ok || !ok2 || len(rest) > 0 {
		return report{}, bad
	}
	ops, err := strconv.ParseUint(string(first), 10, 31)
	secure, err2 := strconv.ParseUint(string(second), 10, 32)
	if err != nil || err2 != nil {
		return report{}, bad
	}
	return report{ops: int(ops), secure: uint32(secure)}, nil
}

// lines calls each for every line that is written to it. Of a line that is too long to be a status the beginning counts.
type lines struct {
	each func(string)
	line []byte
}

func (l *lines) Write(p []byte) (int, error) {
	n := len(p)
	for {
		text, rest, whole := bytes.Cut(p, []byte("\n"))
		l.line = append(l.line, text[:min(len(text), protocol.MaxStatus-len(l.line))]...)
		if !whole {
			return n, nil
		}
		l.end()
		p = rest
	}
}

// end takes what was written as a line, newline or not.
func (l *lines) end() {
	if len(l.line) > 0 {
		l.each(string(l.line))
	}
	l.line = l.line[:0]
}
