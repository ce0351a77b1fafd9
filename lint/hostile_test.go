//go:build unix

package lint_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"bmsota/lint"
)

// Nothing outside of the project is read, and whoever made the links learns nothing of it.
func TestLinksDoNotLeadOut(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside.txt")
	if err := os.WriteFile(outside, []byte(`{"skip_cert_verification": true, "password": "secret"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := load(t, "clean.txtar").edit(t, map[string]string{"spiffs/ota_config.txt": ""}).write(t)
	if err := errors.Join(os.Symlink(outside, filepath.Join(dir, "spiffs", "ota_config.txt")), os.Symlink(filepath.Dir(outside), filepath.Join(dir, "more")),
		os.Symlink("..", filepath.Join(dir, "main", "round")), os.Symlink("spiffs/mqtt_config.txt", filepath.Join(dir, "mqtt_config.txt"))); err != nil {
		t.Fatal(err)
	}
	findings, err := lint.Check(dir)
	if err != nil || len(findings) != 1 || findings[0].Rule != "not-read" || findings[0].File != "spiffs/ota_config.txt" {
		t.Errorf("found %+v, %v", findings, err)
	}
	if strings.Contains(fmt.Sprint(findings), "secret") {
		t.Errorf("what is outside is told: %+v", findings)
	}
}

func TestWhatIsNoPlainFileIsNotWaitedFor(t *testing.T) {
	dir := load(t, "clean.txtar").edit(t, map[string]string{"spiffs/mqtt_config.txt": ""}).write(t)
	if err := syscall.Mkfifo(filepath.Join(dir, "spiffs", "mqtt_config.txt"), 0o600); err != nil {
		t.Fatal(err)
	}
	findings, err := lint.Check(dir)
	if err != nil || len(findings) != 1 || findings[0].Rule != "not-read" {
		t.Errorf("found %+v, %v", findings, err)
	}
}

// What goes over the bounds is said, because what is not read is not checked.
func TestBoundsAreTold(t *testing.T) {
	for name, c := range map[string]struct {
		file, text, says string
	}{
		"a file too long":  {"main/a.c", strings.Repeat(" ", 1<<20+1), "1048577 bytes"},
		"folders too deep": {strings.Repeat("d/", 40) + "a.c", "x", "too deep"},
	} {
		tr := load(t, "clean.txtar")
		tr[c.file] = c.text
		findings, err := lint.Check(tr.write(t))
		if err != nil || len(findings) != 1 || findings[0].Rule != "not-read" || !strings.Contains(findings[0].Found, c.says) {
			t.Errorf("%s: found %+v, %v", name, findings, err)
		}
	}
}

// TestHostileSourcesTakeLinearTime: words that look like the worst for the rules, a quarter of a megabyte of each.
func TestHostileSourcesTakeLinearTime(t *testing.T) {
	for _, piece := range []string{"){", "(", "}", `client_id="a";`, "esp_mqtt_client_init(", "{vTaskDelay(1);", "f(){", "\"\\\n", "'", "/*", "#define A \"x\"\n",
		"client_id=A;", "void a(){vTaskDelay(1);esp_ota_mark_app_valid_cancel_rollback();}", "ota_resumption=true;", "strcpy(client_id,A);", "\n"} {
		tr := load(t, "clean.txtar")
		tr["main/h.c"] = strings.Repeat(piece, 1<<18/len(piece))
		tr["CMakeLists.txt"] = strings.Repeat("project(", 1<<17)
		tr["partitions.csv"] = strings.Repeat("a,data,ota,", 1<<16)
		begin := time.Now()
		findings, err := lint.Check(tr.write(t))
		if took := time.Since(begin); err != nil || took > 10*time.Second {
			t.Errorf("%q: %d findings, %v after %v", piece, len(findings), err, took)
		}
		if len(findings) > 100 {
			t.Errorf("%q: %d findings", piece, len(findings))
		}
	}
}
