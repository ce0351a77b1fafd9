package main

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestDeviceRunCutAtAnOperationContinuesInTheNextRun: a blank board writes its first boot record in two operations, one
// erase and one program. Whatever becomes of them, the next run boots and finishes them.
func TestDeviceRunCutAtAnOperationContinuesInTheNextRun(t *testing.T) {
	dir := t.TempDir()
	app := filepath.Join(dir, "app.bin")
	mustRun(t, "image", "new", "--chip", "esp32", "--project", "monitor", "--version", "1.0.0", "-o", app)
	for _, at := range []string{"1", "2"} {
		for _, how := range []string{"before", "torn", "after"} {
			flash := filepath.Join(dir, how+at+".bin")
			mustRun(t, "device", "create", "--flash", flash, "--image", app, "--mac", "02:00:00:00:00:01")
			out := mustRun(t, "device", "run", "--flash", flash, "--cut-at", at, "--cut", how, "--seed", "3")
			if want := "power cut at operation " + at + "\n"; out != want {
				t.Errorf("cut %s operation %s: prints %q, want %q", how, at, out, want)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			first := writerFunc(func(p []byte) (int, error) {
				cancel() // the first status: the board is up
				return len(p), nil
			})
			var errout strings.Builder
			if code := run(ctx, streams{strings.NewReader(""), first, &errout}, []string{"device", "run", "--flash", flash}); code != exitDone || ctx.Err() != context.Canceled {
				t.Errorf("cut %s operation %s: the next run ends with %d, %v: %s", how, at, code, ctx.Err(), errout.String())
			}
			cancel()
			if got := mustRun(t, "device", "inspect", "--flash", flash); !strings.Contains(got, "valid") {
				t.Errorf("cut %s operation %s: no valid record in the end:\n%s", how, at, got)
			}
		}
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestDeviceRunRefusesCutsThatMeanNothing(t *testing.T) {
	mustFail(t, exitUsage, "the first one is 1", "device", "run", "--flash", "x.bin", "--cut-at", "0")
	mustFail(t, exitUsage, "the first one is 1", "device", "run", "--flash", "x.bin", "--cut-at", "-4")
	mustFail(t, exitUsage, "--cut-at has to say where", "device", "run", "--flash", "x.bin", "--cut", "torn")
	mustFail(t, exitUsage, "not before, torn or after", "device", "run", "--flash", "x.bin", "--cut-at", "3", "--cut", "during")
}

func TestDeviceRunSaysWhatIsWrongWithAnApplication(t *testing.T) {
	dir := t.TempDir()
	app, flash := filepath.Join(dir, "app.bin"), filepath.Join(dir, "board.bin")
	mustRun(t, "image", "new", "--chip", "esp32", "--project", "monitor", "--version", "1.0.0", "-o", app)
	mustRun(t, "device", "create", "--flash", flash, "--image", app, "--mac", "02:00:00:00:00:01")
	mustFail(t, exitFailed, "application "+dir+"/nowhere cannot be started: no such file or directory", "device", "run", "--flash", flash, "--application", dir+"/nowhere")
	mustFail(t, exitFailed, "cannot be started: permission denied", "device", "run", "--flash", flash, "--application", app)
}
