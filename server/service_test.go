package server

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestSystemdIsToldWhatHappens: up when it is up, alive while it is, and that it ends.
func TestSystemdIsToldWhatHappens(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	heard := func() string {
		t.Helper()
		_ = socket.SetReadDeadline(time.Now().Add(time.Minute))
		buf := make([]byte, 256)
		n, err := socket.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "20000")
	t.Setenv("WATCHDOG_PID", "")
	s, stop := run(t, testConfig(t))
	if got := heard(); got != "READY=1" {
		t.Errorf("first %q", got)
	}
	if resp, err := httpClient(t, s.CAPEM()).Get(s.URL() + "/healthz"); err != nil {
		t.Errorf("said to be up: %v", err)
	} else {
		resp.Body.Close()
	}
	for range 3 {
		if got := heard(); got != "WATCHDOG=1" {
			t.Errorf("then %q", got)
		}
	}
	stop()
	for got := heard(); got != "STOPPING=1"; got = heard() {
		if got != "WATCHDOG=1" {
			t.Errorf("at the end %q", got)
		}
	}
}

func TestWatchdogOfAnotherProcessIsNotOurs(t *testing.T) {
	for _, c := range []struct {
		usec, pid string
		want      time.Duration
	}{
		{"", "", 0}, {"30000000", "", 15 * time.Second}, {"30000000", "7", 15 * time.Second}, {"30000000", "8", 0}, {"-1", "7", 0}, {"soon", "7", 0},
		{"99999999999999999", "7", 0},
	} {
		env := map[string]string{"WATCHDOG_USEC": c.usec, "WATCHDOG_PID": c.pid}
		if got := supervisorOf(func(key string) string { return env[key] }, 7); got.every != c.want {
			t.Errorf("%+v: %v", c, got.every)
		}
	}
	if err := (supervisor{}).tell("READY=1"); err != nil {
		t.Errorf("nobody is told: %v", err)
	}
}

func TestProfilesAreServedWhereTheyAreAskedForOnly(t *testing.T) {
	c := testConfig(t)
	c.Debug.Listen = "127.0.0.1:0"
	s, stop := run(t, c)
	for path, want := range map[string]int{"/debug/pprof/": 200, "/debug/pprof/heap": 200, "/debug/pprof/goroutine?debug=1": 200, "/": 404, "/metrics": 404} {
		resp, err := http.Get("http://" + s.DebugAddr() + path)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != want || want == 200 && len(b) == 0 {
			t.Errorf("%s: %d with %d bytes, want %d (%v)", path, resp.StatusCode, len(b), want, err)
		}
	}
	resp, err := httpClient(t, s.CAPEM()).Get(s.URL() + "/debug/pprof/")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("on the web side: %d", resp.StatusCode)
	}
	addr := s.DebugAddr()
	stop()
	if _, err := http.Get("http://" + addr + "/debug/pprof/"); err == nil {
		t.Error("the profiles outlive the server")
	}
}

func TestLogIsWrittenAsConfigured(t *testing.T) {
	for _, c := range []struct {
		log   Log
		lines int
		json  bool
	}{{Log{}, 2, false}, {Log{Format: "json"}, 2, true}, {Log{Level: "debug"}, 3, false}, {Log{Format: "json", Level: "error"}, 1, true}} {
		var b bytes.Buffer
		log := slog.New(c.log.Handler(&b))
		log.Debug("small", "n", 1)
		log.Info("usual\nand a line", "n", 2)
		log.Error("bad", "n", 3)
		lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
		if len(lines) != c.lines {
			t.Errorf("%+v: %s lines %q", c.log, strconv.Itoa(len(lines)), lines)
		}
		for _, line := range lines {
			if json.Valid([]byte(line)) != c.json {
				t.Errorf("%+v: %s", c.log, line)
			}
		}
	}
}
