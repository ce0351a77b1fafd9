package appimage

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

func TestBuildMakesValidImagesForEveryChipAndSize(t *testing.T) {
	for _, chip := range Chips() {
		for _, trial := range append([]Behaviour{""}, behaviours...) {
			sizes := []int64{0, 4 << 10}
			if trial == "" {
				sizes = append(sizes, 64<<10, 128<<10-16, 128<<10, 192<<10+16, 1<<20)
			}
			for _, size := range sizes {
				for _, noHash := range []bool{false, true} {
					opt := BuildOptions{Chip: chip, Project: "bms", Version: "1.2.3", SecureVersion: 7, Size: size, Trial: trial, NoHash: noHash}
					t.Run(fmt.Sprintf("%s/%s/%d/%t", chip, trial, size, noHash), func(t *testing.T) {
						b, err := Build(opt)
						if err != nil {
							t.Fatal(err)
						}
						if size != 0 && int64(len(b)) != size {
							t.Errorf("got %d bytes, want %d", len(b), size)
						}
						img, err := Parse(b)
						if err != nil {
							t.Fatal(err)
						}
						if img.Length != int64(len(b)) || img.Header.Chip != chip || img.HashAppended == noHash {
							t.Errorf("got length %d chip %s hash %t", img.Length, img.Header.Chip, img.HashAppended)
						}
						segments := 1
						if size >= 128<<10 {
							segments = 2
						}
						if len(img.Segments) != segments {
							t.Errorf("%d segments, want %d", len(img.Segments), segments)
						}
						if d := img.Desc; d == nil || d.Project != "bms" || d.Version != "1.2.3" || d.SecureVersion != 7 {
							t.Errorf("description is %+v", d)
						}
						want := trial
						if want == "" {
							want = BehaviourOK
						}
						if got := TrialBehaviour(bytes.NewReader(b), img); got != want {
							t.Errorf("trial behaviour %q, want %q", got, want)
						}
					})
				}
			}
		}
	}
}

func TestBuildIsDeterministicAndTellsOptionsApart(t *testing.T) {
	base := BuildOptions{Chip: ESP32C3, Project: "bms", Version: "1.0.0", Size: 8 << 10}
	first, err := Build(base)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Build(base)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, again) {
		t.Fatal("the same options gave other bytes")
	}
	for name, change := range map[string]func(*BuildOptions){
		"chip":           func(o *BuildOptions) { o.Chip = ESP32 },
		"project":        func(o *BuildOptions) { o.Project = "bmt" },
		"version":        func(o *BuildOptions) { o.Version = "1.0.1" },
		"secure version": func(o *BuildOptions) { o.SecureVersion = 1 },
		"trial":          func(o *BuildOptions) { o.Trial = BehaviourHang },
		"moved boundary": func(o *BuildOptions) { o.Project, o.Version = "bms1", ".0.0" },
	} {
		opt := base
		change(&opt)
		other, err := Build(opt)
		if err != nil {
			t.Fatal(err)
		}
		same := 0
		for i := trialOffset + trialSize; i < len(first); i++ {
			if first[i] == other[i] {
				same++
			}
		}
		if same > len(first)/32 {
			t.Errorf("%s: %d of %d filler bytes are the same", name, same, len(first))
		}
	}
}

func TestBuildRefusesWhatItCannotMake(t *testing.T) {
	for name, opt := range map[string]BuildOptions{
		"unknown chip":     {Chip: 0x1234},
		"long project":     {Project: strings.Repeat("p", 32)},
		"long version":     {Version: strings.Repeat("v", 32)},
		"nul in version":   {Version: "1\x00"},
		"unknown trial":    {Trial: "explode"},
		"size not by 16":   {Size: 4097},
		"size too small":   {Size: 336},
		"size negative":    {Size: -16},
		"size over 16 MiB": {Size: MaxPartitionSize + 16},
	} {
		if b, err := Build(opt); err == nil {
			t.Errorf("%s: got %d bytes and no error", name, len(b))
		}
	}
}

func TestBuildFillsTheLargestPartition(t *testing.T) {
	b, err := Build(BuildOptions{Chip: ESP32S3, Project: "bms", Version: "1.0.0", Size: MaxPartitionSize})
	if err != nil || len(b) != MaxPartitionSize {
		t.Fatalf("got %d bytes, %v", len(b), err)
	}
}
