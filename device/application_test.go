//go:build unix

package device

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"bmsota/device/internal/norflash"
	"bmsota/esp/appimage"
	"bmsota/protocol"
)

// asApplication makes this test binary an application: the variable says which.
const asApplication = "BMSOTA_TEST_APPLICATION"

func TestMain(m *testing.M) {
	if what := os.Getenv(asApplication); what != "" {
		os.Exit(beApplication(what))
	}
	goleak.VerifyTestMain(m)
}

// beApplication is one life of a program as docs/virtual-boards.md asks for one, good and bad.
func beApplication(what string) int {
	f := flag.NewFlagSet("application", flag.ExitOnError)
	path, reset, storage := f.String("flash", "", ""), f.String("reset", "", ""), f.String("storage", "", "")
	efuse, cutAt, cut, cutSeed := f.Uint("efuse", 0, ""), f.Int("cut-at", 0, ""), f.String("cut", "", ""), f.Uint64("cut-seed", 0, "")
	report, unhealthy := f.String("report", "", ""), f.Bool("unhealthy", false, "")
	for _, name := range []string{"running", "mac", "chip", "revision", "rollback", "anti-rollback", "seed", "frame-ms", "soc", "current", "charging", "temp-min", "temp-max"} {
		f.String(name, "", "")
	}
	if err := f.Parse(os.Args[1:]); err != nil || f.NArg() > 0 {
		return 99
	}
	say := func(message string) {
		b, _ := protocol.Status{Phase: protocol.PhaseIdle, DeviceID: "bms-000001", Message: message}.Append(nil)
		fmt.Printf("%s\n", b)
	}
	flash, err := norflash.Open(*path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 98
	}
	end := func(status int) int {
		os.WriteFile(*report, fmt.Appendf(nil, "%d\n%d\n", flash.Ops(), *efuse), 0o600)
		return status
	}
	config, _ := os.ReadFile(filepath.Join(*storage, protocol.OTAConfigFile))
	say(strings.Join([]string{*reset, fmt.Sprint(*unhealthy), string(config)}, " "))
	switch what {
	case "restarts once":
		if *reset == string(PowerOn) {
			*efuse += 2
			return end(exitRestart)
		}
	case "panics once":
		if *reset == string(PowerOn) {
			fmt.Fprintln(os.Stderr, "guru meditation")
			fmt.Println("not a status\n{}\n" + strings.Repeat("x", 1<<20))
			syscall.Kill(os.Getpid(), syscall.SIGABRT)
			<-time.After(time.Minute) // another thread may be the one that gets it, and this one must say nothing more
		}
	case "writes":
		flash.CutAt(*cutAt, map[string]norflash.Cut{"before": norflash.Before, "after": norflash.After, "torn": norflash.Torn(*cutSeed)}[*cut])
		for i := range int64(3) {
			if err := flash.Program(0x9000+64*i, []byte{byte(i)}); errors.Is(err, norflash.ErrPowerCut) {
				return end(exitPowerCut)
			}
		}
		return end(exitRestart)
	case "leaves no report":
		return exitRestart
	case "leaves garbage":
		os.WriteFile(*report, []byte("12\n-1\n"), 0o600)
		return exitRestart
	case "raises too much":
		*efuse = 33
		return end(exitRestart)
	case "cuts by itself":
		return end(exitPowerCut)
	case "ends":
		return end(exitStopped)
	}
	stop := make(chan os.Signal, 1)
	if what == "stays" {
		signal.Ignore(syscall.SIGTERM)
	} else {
		signal.Notify(stop, syscall.SIGTERM)
	}
	say("waiting")
	<-stop
	return end(exitStopped)
}

// hosted is a board that runs this test binary as what.
type hosted struct {
	board  *Board
	said   chan string
	boots  []string
	stop   context.CancelFunc
	result chan error
}

func host(t *testing.T, what string, img []byte, change ...func(*Config)) *hosted {
	t.Helper()
	path := t.TempDir() + "/board.flash"
	if err := Create(path, Layout{Image: img, OTAConfig: []byte(`{"server_url":"https://x.example/f.bin"}`), MAC: [6]byte{2, 0, 0, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(asApplication, what)
	t.Setenv("TMPDIR", t.TempDir())
	h := &hosted{said: make(chan string, 64), result: make(chan error, 1)}
	cfg := Config{Path: path, Application: self, Timing: Timing{Boot: time.Millisecond, Crash: time.Millisecond, Watchdog: time.Millisecond},
		OnStatus: func(s protocol.Status) { h.said <- s.Message },
		OnBoot: func(p string, why ResetReason) {
			h.boots = append(h.boots, p+":"+string(why))
		}}
	for _, c := range change {
		c(&cfg)
	}
	if h.board, err = Open(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.board.Close(); err != nil {
			t.Error(err)
		}
		if left, _ := filepath.Glob(os.Getenv("TMPDIR") + "/*"); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
	h.on()
	return h
}

func (h *hosted) on() {
	var ctx context.Context
	ctx, h.stop = context.WithCancel(context.Background())
	go func() { h.result <- h.board.Run(ctx) }()
}

// hear waits for a status with this message and gives those before it.
func (h *hosted) hear(t *testing.T, want string) (before []string) {
	t.Helper()
	for {
		select {
		case got := <-h.said:
			if got == want {
				return before
			}
			before = append(before, got)
		case err := <-h.result:
			t.Fatalf("board ended with %v, said %q", err, before)
		}
	}
}

func (h *hosted) want(t *testing.T, boots ...string) {
	t.Helper()
	if !slices.Equal(h.boots, boots) {
		t.Errorf("boots %q, want %q", h.boots, boots)
	}
}

func TestApplicationRestartsStopsAndKeepsEfuses(t *testing.T) {
	h := host(t, "restarts once", image(t, "1.0.0"))
	before := h.hear(t, "waiting")
	if want := `poweron false {"server_url":"https://x.example/f.bin"}`; len(before) != 2 || before[0] != want || !strings.HasPrefix(before[1], "software ") {
		t.Errorf("the application was told %q, want %q and then software", before, want)
	}
	h.stop()
	if err := <-h.result; err != nil {
		t.Errorf("power off: %v", err)
	}
	h.want(t, "ota_0:poweron", "ota_0:software")
	if there, ok, err := readFuses(h.board.flash); err != nil || !ok || there.secure != 2 {
		t.Errorf("secure version %d (%v, %v), the application burnt 2", there.secure, ok, err)
	}
}

func TestApplicationThatDiesIsAPanic(t *testing.T) {
	h := host(t, "panics once", image(t, "1.0.0"))
	h.hear(t, "waiting")
	h.stop()
	if err := <-h.result; err != nil {
		t.Error(err)
	}
	h.want(t, "ota_0:poweron", "ota_0:panic")
}

func TestPowerCutCountsThroughApplicationAndBootloader(t *testing.T) {
	// A new board: the bootloader writes its first record in two operations, and then each life three.
	for at, boots := range map[int]int{1: 1, 3: 1, 5: 1, 6: 2, 9: 3} {
		h := host(t, "writes", image(t, "1.0.0"), func(c *Config) { c.PowerCut = PowerCut{At: at, How: CutAfter} })
		if err := <-h.result; !errors.Is(err, ErrPowerCut) {
			t.Fatalf("cut at %d: %v", at, err)
		}
		if got := h.board.flash.Ops(); got != at || !h.board.flash.Dead() {
			t.Errorf("cut at %d came at operation %d", at, got)
		}
		if len(h.boots) != boots && at > 2 {
			t.Errorf("cut at %d came in life %d, want %d", at, len(h.boots), boots)
		}
	}
	h := host(t, "writes", image(t, "1.0.0"), func(c *Config) { c.PowerCut = PowerCut{At: 4} })
	if err := <-h.result; !errors.Is(err, ErrPowerCut) {
		t.Fatal(err)
	}
	h.board.flash.PowerOn()
	var got [66]byte
	h.board.flash.ReadAt(got[:], 0x9000)
	if got[0] != 0 || got[64] != 0xFF {
		t.Errorf("cut before the second operation left %x and %x", got[0], got[64])
	}
	t.Setenv(asApplication, "waits")
	h.on() // the power comes back, and no second cut
	h.hear(t, "waiting")
	h.stop()
	if err := <-h.result; err != nil {
		t.Error(err)
	}
}

func TestApplicationThatKeepsNoContractEndsTheBoard(t *testing.T) {
	for what, want := range map[string]string{
		"leaves no report": "it left no report",
		"leaves garbage":   "not two lines with a number each",
		"raises too much":  "secure version 33, the chip has 32 bits",
		"cuts by itself":   "it ended in a power cut at operation 0, and was told 0",
		"ends":             "status 0, and nothing had asked it to stop",
	} {
		h := host(t, what, image(t, "1.0.0"))
		if err := <-h.result; !errors.Is(err, ErrApplication) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", what, err, want)
		}
	}
}

func TestApplicationThatCannotBeStartedIsSaidInOneSentence(t *testing.T) {
	script := t.TempDir() + "/app"
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	flash := t.TempDir() + "/board.flash"
	if err := Create(flash, Layout{Image: image(t, "1.0.0")}); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{script: "cannot be started: permission denied", script + "2": "cannot be started: no such file or directory"} {
		_, err := Open(Config{Path: flash, Application: path})
		if !errors.Is(err, ErrApplication) || !strings.Contains(err.Error(), path+" "+want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v, want %q", err, want)
		}
	}
	// That nothing in the file runs is seen at the start.
	if err := os.WriteFile(script, []byte{0x7F, 'E', 'L', 'F'}, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(script, 0o700); err != nil {
		t.Fatal(err)
	}
	h := host(t, "waits", image(t, "1.0.0"), func(c *Config) { c.Application = script })
	if err := <-h.result; !errors.Is(err, ErrApplication) || !strings.Contains(err.Error(), "cannot be started: exec format error") {
		t.Error(err)
	}
	if _, err := Open(Config{Flash: &Flash{}, Application: script}); err == nil {
		t.Error("an application runs on a flash in memory")
	}
}

func TestImagesThatFailDoSoUnderAnApplication(t *testing.T) {
	for behaviour, why := range map[appimage.Behaviour]string{appimage.BehaviourCrash: "panic", appimage.BehaviourHang: "watchdog"} {
		reset := make(chan struct{}, 16)
		h := host(t, "waits", image(t, "1.0.0", trial(behaviour)), func(c *Config) {
			c.OnBoot = func(_ string, r ResetReason) {
				if string(r) == why {
					reset <- struct{}{}
				}
			}
		})
		<-reset
		h.stop()
		if err := <-h.result; err != nil {
			t.Error(err)
		}
		if len(h.said) > 0 {
			t.Errorf("an image that does not live said %q", <-h.said)
		}
	}
	h := host(t, "waits", image(t, "1.0.0", trial(appimage.BehaviourUnhealthy)))
	if before := h.hear(t, "waiting"); len(before) != 1 || !strings.HasPrefix(before[0], "poweron true") {
		t.Errorf("an unhealthy image was told %q", before)
	}
	h.stop()
	<-h.result
}

func TestApplicationThatDoesNotStopIsKilled(t *testing.T) {
	h := host(t, "stays", image(t, "1.0.0"))
	h.hear(t, "waiting")
	h.stop()
	if err := <-h.result; err != nil {
		t.Error(err)
	}
}

func TestApplicationHasTheFlashToItself(t *testing.T) {
	h := host(t, "waits", image(t, "1.0.0"))
	h.hear(t, "waiting")
	if _, err := Open(Config{Path: h.board.cfg.Path}); !errors.Is(err, ErrInUse) {
		t.Errorf("a flash that an application runs from opens: %v", err)
	}
	h.board.Reset(Brownout)
	h.hear(t, "waiting")
	h.stop()
	if err := <-h.result; err != nil {
		t.Error(err)
	}
	h.want(t, "ota_0:poweron", "ota_0:brownout")
}

func TestApplicationThatIsAboutToLeaveIsWaitedFor(t *testing.T) {
	path := t.TempDir() + "/board.flash"
	if err := Create(path, Layout{Image: image(t, "1.0.0")}); err != nil {
		t.Fatal(err)
	}
	held, err := norflash.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	opened := make(chan error)
	go func() {
		b, err := Open(Config{Path: path, Application: self})
		if err == nil {
			err = b.Close()
		}
		opened <- err
	}()
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-opened; err != nil {
		t.Error(err)
	}
}
