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

// TestHostileTextsTakeLinearTime: what looks like the worst for the rules, a quarter of a megabyte of each. Whatever grows
// with the square takes minutes for it.
func TestHostileTextsTakeLinearTime(t *testing.T) {
	const source = "main/h.c"
	for _, c := range []struct{ file, piece string }{
		{source, "){"}, {source, "("}, {source, "}"}, {source, `client_id="a";`}, {source, "esp_mqtt_client_init("}, {source, "{vTaskDelay(1);"}, {source, "f(){"},
		{source, "\"\\\n"}, {source, "'"}, {source, "/*"}, {source, "#define A \"x\"\n"}, {source, "client_id=A;"}, {source, "ota_resumption=true;"},
		{source, "void a(){vTaskDelay(1);esp_ota_mark_app_valid_cancel_rollback();}"}, {source, "strcpy(client_id,A);"}, {source, "\n"},
		{"CMakeLists.txt", "project("}, {"partitions.csv", "a,data,ota,"}, {".gitignore", "*?*?*?*?\n"}, {"spiffs/mqtt_config.txt", "password=a\n"}, {"dependencies.lock", " idf:\n"},
	} {
		tr := load(t, "clean.txtar")
		tr[c.file] = strings.Repeat(c.piece, 1<<18/len(c.piece))
		begin := time.Now()
		findings, err := lint.Check(tr.write(t))
		if took := time.Since(begin); err != nil || took > 30*time.Second {
			t.Errorf("%s of %q: %d findings, %v after %v", c.file, c.piece, len(findings), err, took)
		}
		if len(findings) > 100 {
			t.Errorf("%s of %q: %d findings", c.file, c.piece, len(findings))
		}
	}
}
