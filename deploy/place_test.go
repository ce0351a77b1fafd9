package deploy_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bmsota/deploy"
	"bmsota/manifest"
	"bmsota/protocol"
)

func prepared(t *testing.T, r deploy.Release) *deploy.Prepared {
	t.Helper()
	p, err := deploy.Prepare(r)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// content is what a folder holds, by name.
func content(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		all[e.Name()] = string(b)
	}
	return all
}

func same(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for name, text := range a {
		if b[name] != text {
			return false
		}
	}
	return true
}

// interruptEverywhere delivers a second release to a place and ends its context at every step of the copying. read gives
// what the place holds then.
func interruptEverywhere(t *testing.T, open func() deploy.Place, read func() map[string]string) {
	t.Helper()
	first, second := prepared(t, deploy.Release{Image: imageOf(t, "1.0.0", 300<<10)}), prepared(t, deploy.Release{Image: imageOf(t, "1.1.0", 200<<10)})
	deliver := func(ctx context.Context, p *deploy.Prepared, progress func(done, total int64)) error {
		at := open()
		defer at.Close()
		_, _, err := deploy.Deliver(ctx, at, p, false, progress)
		return err
	}
	if err := deliver(t.Context(), first, nil); err != nil {
		t.Fatal(err)
	}
	before := read()
	if len(before) != 3 {
		t.Fatalf("the place holds %d files, want image, firmware.bin and version.json", len(before))
	}
	for step := range 100 {
		ctx, cancel := context.WithCancel(t.Context())
		n, whole := 0, false
		err := deliver(ctx, second, func(done, total int64) {
			if n == step {
				cancel()
			}
			n++
			whole = done == total
		})
		cancel()
		if err == nil {
			// The context ended when all was copied, or later: then the release is there as a whole.
			if !whole || step < 10 {
				t.Fatalf("step %d: not interrupted", step)
			}
			after := read()
			if v := after["version.json"]; !strings.Contains(v, `"1.1.0"`) || len(after) != 4 || after["firmware.bin"] != after[second.Manifest.SHA256+".bin"] {
				t.Errorf("step %d: done, but the place holds %d files, version.json %s", step, len(after), v)
			}
			return
		}
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("step %d: %v", step, err)
		}
		if n > step+1 {
			t.Fatalf("step %d: copying went on for %d steps", step, n-step-1)
		}
		if after := read(); !same(before, after) {
			t.Fatalf("step %d: the place has changed: %d files before, %d now", step, len(before), len(after))
		}
	}
	t.Error("never came to the end")
}

func TestInterruptedCopyIntoAFolderChangesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "www")
	interruptEverywhere(t, func() deploy.Place { return deploy.OpenFolder(dir) }, func() map[string]string { return content(t, dir) })
}

func TestVersionsThatMayFollow(t *testing.T) {
	key, err := manifest.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	old := deploy.Release{Image: image(t, "1.2.0")}
	signed := old
	signed.Keys = []crypto.Signer{key}
	strict := old
	strict.MinVersion = "1.0.0"
	for _, c := range []struct {
		name     string
		next     deploy.Release
		force    bool
		uploaded bool
		refused  bool
	}{
		{"newer", deploy.Release{Image: image(t, "1.10.0")}, false, true, false},
		{"older", deploy.Release{Image: image(t, "1.1.9")}, false, false, true},
		{"older, forced", deploy.Release{Image: image(t, "1.1.9")}, true, true, false},
		{"a candidate of it", deploy.Release{Image: image(t, "1.2.0-rc.1")}, false, false, true},
		{"the same", old, false, false, false},
		{"the same, forced", old, true, false, false},
		{"the same bytes under a newer version", deploy.Release{Image: old.Image, Version: "1.3.0"}, false, true, false},
		{"other bytes", deploy.Release{Image: image(t, "other"), Version: "1.2.0"}, false, false, true},
		{"other bytes, forced", deploy.Release{Image: image(t, "other"), Version: "1.2.0"}, true, true, false},
		{"with a v, other bytes", deploy.Release{Image: image(t, "v1.2.0")}, false, false, true},
		{"signed now", signed, false, true, false},
		{"said otherwise now", strict, false, false, false},
	} {
		dir := t.TempDir()
		if _, err := deploy.WriteFolder(dir, prepared(t, old)); err != nil {
			t.Fatal(err)
		}
		before := content(t, dir)
		uploaded, _, err := deploy.Deliver(t.Context(), deploy.OpenFolder(dir), prepared(t, c.next), c.force, nil)
		if uploaded != c.uploaded || errors.Is(err, deploy.ErrNotNewer) != c.refused || !c.refused && err != nil {
			t.Errorf("%s: uploaded %v, %v", c.name, uploaded, err)
		}
		if !c.uploaded && !same(before, content(t, dir)) {
			t.Errorf("%s: the folder has changed", c.name)
		}
	}
}

func TestASignatureIsNotLostByPublishingTheSameWithoutTheKey(t *testing.T) {
	keys := make([]*ecdsa.PrivateKey, 2)
	for i := range keys {
		var err error
		if keys[i], err = manifest.NewKey(rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name     string
		key      *ecdsa.PrivateKey
		uploaded bool
	}{{"the same key", keys[0], false}, {"no key", nil, false}, {"another key", keys[1], true}} {
		dir := t.TempDir()
		r := deploy.Release{Image: image(t, "1.2.0"), Keys: []crypto.Signer{keys[0]}, MinVersion: "1.0.0"}
		if _, err := deploy.WriteFolder(dir, prepared(t, r)); err != nil {
			t.Fatal(err)
		}
		r.Keys, r.MinVersion = nil, ""
		if c.key != nil {
			r.Keys = []crypto.Signer{c.key}
		}
		if uploaded, _, err := deploy.Deliver(t.Context(), deploy.OpenFolder(dir), prepared(t, r), false, nil); err != nil || uploaded != c.uploaded {
			t.Errorf("%s: uploaded %v, %v", c.name, uploaded, err)
		}
		v, err := protocol.ParseVersionFile([]byte(content(t, dir)["version.json"]))
		if err != nil || v.Manifest == "" || !c.uploaded && v.MinVersion != "1.0.0" {
			t.Errorf("%s: version.json %+v, %v", c.name, v, err)
		}
	}
}

func TestWhatTheOriginalToolLeftIsUnderstood(t *testing.T) {
	p := prepared(t, deploy.Release{Image: image(t, "1.2.0")})
	for _, c := range []struct {
		name, version string
		firmware      []byte
		want          error
	}{
		{"older", `{"version": "1.1.0"}`, []byte("whatever"), nil},
		{"same version, other bytes", `{"version": "1.2.0"}`, []byte("whatever"), deploy.ErrNotNewer},
		{"same version, same bytes", `{"version": "1.2.0"}`, image(t, "1.2.0"), nil},
		{"same version, image gone", `{"version": "1.2.0"}`, nil, deploy.ErrNotNewer},
		{"a branch and a commit", `{"version": "main-3f2a91c-dirty"}`, []byte("whatever"), nil},
		{"nobody can read it", `{"version": `, nil, deploy.ErrOffer},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "version.json"), []byte(c.version), 0o644); err != nil {
			t.Fatal(err)
		}
		if c.firmware != nil {
			if err := os.WriteFile(filepath.Join(dir, "firmware.bin"), c.firmware, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		uploaded, _, err := deploy.Deliver(t.Context(), deploy.OpenFolder(dir), p, false, nil)
		if !errors.Is(err, c.want) || uploaded != (c.want == nil) {
			t.Errorf("%s: uploaded %v, %v, want %v", c.name, uploaded, err, c.want)
		}
		if c.want != nil {
			if uploaded, _, err := deploy.Deliver(t.Context(), deploy.OpenFolder(dir), p, true, nil); err != nil || !uploaded {
				t.Errorf("%s, forced: uploaded %v, %v", c.name, uploaded, err)
			}
		}
		v, err := protocol.ParseVersionFile([]byte(content(t, dir)["version.json"]))
		if err != nil || v.SHA256 != p.Manifest.SHA256 {
			t.Errorf("%s: version.json %+v, %v", c.name, v, err)
		}
	}
}

func TestADamagedReleaseIsCopiedAgain(t *testing.T) {
	p := prepared(t, deploy.Release{Image: image(t, "1.2.0")})
	for _, name := range []string{"firmware.bin", p.Manifest.SHA256 + ".bin"} {
		dir := t.TempDir()
		if _, err := deploy.WriteFolder(dir, p); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte("scp was interrupted"), 0o644); err != nil {
			t.Fatal(err)
		}
		uploaded, _, err := deploy.Deliver(t.Context(), deploy.OpenFolder(dir), p, false, nil)
		if err != nil || !uploaded || content(t, dir)[name] != string(image(t, "1.2.0")) {
			t.Errorf("%s: uploaded %v, %v", name, uploaded, err)
		}
	}
}

func TestAnotherProjectOrChipIsSaid(t *testing.T) {
	dir := t.TempDir()
	text := `{"version": "1.0.0", "project": "other", "chip": "esp32c3"}`
	if err := os.WriteFile(filepath.Join(dir, "version.json"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	_, warnings, err := deploy.Deliver(t.Context(), deploy.OpenFolder(dir), prepared(t, deploy.Release{Image: image(t, "1.2.0")}), false, nil)
	all := strings.Join(warnings, "\n")
	if err != nil || !strings.Contains(all, `"other"`) || !strings.Contains(all, "esp32c3") {
		t.Errorf("warnings %q, %v", all, err)
	}
}
