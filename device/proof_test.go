package device

import (
	"context"
	"errors"
	"strings"
	"testing"

	"bmsota/device/internal/norflash"
	"bmsota/esp/appimage"
	"bmsota/esp/parttable"
)

func tinyPair(t *testing.T, change ...func(*appimage.BuildOptions)) ProofConfig {
	t.Helper()
	of := func(version string) []byte {
		return image(t, version, append([]func(*appimage.BuildOptions){func(o *appimage.BuildOptions) { o.Size = 8 << 10 }}, change...)...)
	}
	return ProofConfig{Old: of("1.0.0"), New: of("1.1.0"), Table: componentTable(), Seed: 3}
}

// TestProofOfAPair: what the command proves, in real time, all its stories.
func TestProofOfAPair(t *testing.T) {
	cfg := tinyPair(t)
	cfg.Every = 8
	cfg.OnFailure = func(f ProofFailure) { t.Errorf("seed %d: %s: %s: %s", cfg.Seed, f.Story, f.Cut, f.Problem) }
	stories, err := Prove(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	told := ""
	for _, s := range stories {
		told += s.Story + " "
		if s.Done == 0 || s.Done+s.Escaped != s.Cuts || !s.Complete || s.Bricks != 0 || s.Boots < 1 || s.Boots > 4 || s.Distinct < s.Operations/8 && s.Story == "update" {
			t.Errorf("%+v", s)
		}
		t.Logf("%+v", s)
	}
	if told != "update crash silent rollback back damage " {
		t.Errorf("told %s", told)
	}
}

// TestProofThatIsInterrupted: what was not reached is in the report, and nothing more is run for it.
func TestProofThatIsInterrupted(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	cfg := tinyPair(t)
	var begun []string
	cfg.OnStory = func(p ProofPlan) {
		begun = append(begun, p.Story)
		interrupt()
	}
	stories, err := Prove(ctx, cfg)
	if err != nil || len(stories) != 6 || len(begun) != 1 {
		t.Fatalf("%d stories begun, %d reported: %v", len(begun), len(stories), err)
	}
	for _, s := range stories {
		if s.Complete || s.Story == "" || s.Done > 0 && s.Story != "update" {
			t.Errorf("%+v", s)
		}
	}
}

// TestProofFindsWhatIsWrong: what ESP-IDF's own bootloader tears is set aside as a rule. Looked at, it is found, and each
// of the findings fails again when it is replayed from its flash.
func TestProofFindsWhatIsWrong(t *testing.T) {
	cfg := tinyPair(t)
	p, err := newProof(cfg)
	if err != nil {
		t.Fatal(err)
	}
	crash := &p.stories[1]
	x := p.explorer(crash)
	x.holes = false
	x.ways = func(op norflash.Op, _ int) []norflash.Cut {
		if op.Off < int64(crash.table.Slots()[0].Offset) {
			return tears(op, cfg.Seed, 100)
		}
		return nil
	}
	var found []finding
	x.found = func(f finding) { found = append(found, f) }
	if err := x.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(found) == 0 || len(found) != x.figures.bad {
		t.Fatalf("%d of %d found", len(found), x.figures.bad)
	}
	for _, f := range found {
		content := make([]byte, f.flash.Size())
		f.flash.ReadAt(content, 0)
		if problem, err := Replay(cfg, "crash", content, func(string) {}); err != nil || problem == "" {
			t.Errorf("%s: %s; replayed: %q, %v", f.what, f.problem, problem, err)
		}
	}
	t.Logf("%d found: %s: %s", len(found), found[0].what, found[0].problem)
}

// keyed is a small image with a set of trusted keys, or with room for one.
func keyed(t *testing.T, version string, sequence uint32) []byte {
	t.Helper()
	return carrying(t, version, sequence, newKey(t))
}

// TestProofOfImagesThatCarryKeysAndOfTablesWithoutStorage: each story that is told comes to its end. Nobody who asks for a
// proof has the private halves of the keys at hand.
func TestProofOfImagesThatCarryKeysAndOfTablesWithoutStorage(t *testing.T) {
	all := "update crash silent rollback back damage"
	for name, c := range map[string]struct {
		change func(*ProofConfig)
		want   string
	}{
		"room":        {func(c *ProofConfig) { c.Old, c.New = keyed(t, "1.0.0", 0), keyed(t, "1.1.0", 0) }, all},
		"first keys":  {func(c *ProofConfig) { c.Old, c.New = keyed(t, "1.0.0", 0), keyed(t, "1.1.0", 1) }, "update crash silent damage"},
		"same keys":   {func(c *ProofConfig) { c.Old, c.New = keyed(t, "1.0.0", 4), keyed(t, "1.1.0", 4) }, all},
		"later keys":  {func(c *ProofConfig) { c.Old, c.New = keyed(t, "1.0.0", 4), keyed(t, "1.1.0", 5) }, "update crash silent damage"},
		"no storage":  {func(c *ProofConfig) { c.Table = parttable.Default()[:5] }, all},
		"a full chip": {func(c *ProofConfig) { c.Table = tableOf(t, noStorage) }, all},
		"higher floor": {func(c *ProofConfig) {
			c.New = image(t, "1.1.0", func(o *appimage.BuildOptions) { o.SecureVersion = 3 })
		}, "update crash silent rollback damage"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := tinyPair(t)
			c.change(&cfg)
			p, err := newProof(cfg)
			if err != nil {
				t.Fatal(err)
			}
			var told []string
			for i := range p.stories {
				told = append(told, p.stories[i].name)
				if _, err := p.undisturbed(&p.stories[i]); err != nil {
					t.Error(err)
				}
			}
			if got := strings.Join(told, " "); got != c.want {
				t.Errorf("told %s, want %s", got, c.want)
			}
		})
	}
}

func TestNoProofOfWhatNoBoardCanHave(t *testing.T) {
	for want, spoil := range map[string]func(*ProofConfig){
		"the old image is not valid": func(c *ProofConfig) { c.Old = []byte("hello") },
		"the new image is not valid": func(c *ProofConfig) { c.New = c.New[:5000] },
		"for esp32, the new one for e": func(c *ProofConfig) {
			c.New = image(t, "1.1.0", func(o *appimage.BuildOptions) { o.Chip = appimage.ESP32C3 })
		},
		"of project": func(c *ProofConfig) {
			c.New = image(t, "1.1.0", func(o *appimage.BuildOptions) { o.Project = "other" })
		},
		"the same image":        func(c *ProofConfig) { c.New = c.Old },
		"too many":              func(c *ProofConfig) { c.New = image(t, "1.1.0", quarterMiB) },
		"no second slot":        func(c *ProofConfig) { c.Table = tableOf(t, oneSlot) },
		"no otadata":            func(c *ProofConfig) { c.Table = tableOf(t, noRecords) },
		"set 2 of trusted keys": func(c *ProofConfig) { c.Old, c.New = keyed(t, "1.0.0", 2), keyed(t, "1.1.0", 1) },
		"carries set 1":         func(c *ProofConfig) { c.Old = keyed(t, "1.0.0", 1) },
		"secure version 3": func(c *ProofConfig) {
			c.Old = image(t, "1.0.0", func(o *appimage.BuildOptions) { o.SecureVersion = 3 })
		},
		"ends at": func(c *ProofConfig) {
			c.Table, c.FlashSize = tableOf(t, threeSlots+"more,data,nvs,0x320000,2M\n"), 4<<20
		},
	} {
		cfg := tinyPair(t)
		spoil(&cfg)
		if _, err := Prove(t.Context(), cfg); !errors.Is(err, ErrNoProof) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}
