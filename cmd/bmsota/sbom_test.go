package main

import (
	"runtime/debug"
	"testing"
)

// TestBillOfMaterialsListsEveryModuleOfTheBinary: one row for each module the linker recorded, one for the standard
// library, replacements under the name of what was really linked, and the same bytes each time.
func TestBillOfMaterialsListsEveryModuleOfTheBinary(t *testing.T) {
	info := &debug.BuildInfo{
		GoVersion: "go1.26.8", Main: debug.Module{Path: "bmsota", Version: "(devel)"},
		Deps: []*debug.Module{
			{Path: "github.com/Masterminds/semver/v3", Version: "v3.5.0", Sum: "h1:aa="},
			{Path: "example.com/old", Version: "v1.0.0", Replace: &debug.Module{Path: "example.com/new", Version: "v2.0.0", Sum: "h1:bb="}},
		},
		Settings: []debug.BuildSetting{{Key: "GOOS", Value: "linux"}, {Key: "-trimpath", Value: "true"}, {Key: "CGO_CFLAGS", Value: "-I/home/me"}},
	}
	b, err := makeBOM(info, "1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"pkg:golang/std@1.26.8", "pkg:golang/github.com/masterminds/semver/v3@v3.5.0", "pkg:golang/example.com/new@v2.0.0"}
	if len(b.Components) != len(want) {
		t.Fatalf("%d components, want %d", len(b.Components), len(want))
	}
	for i, c := range b.Components {
		if c.PURL != want[i] || c.Ref != want[i] || c.Type != "library" {
			t.Errorf("component %d: %+v, want %s", i, c, want[i])
		}
	}
	if p := b.Components[2].Properties; len(p) != 1 || p[0] != (bomProperty{"go:h1", "h1:bb="}) {
		t.Errorf("sum of the replacement: %+v", p)
	}
	self := b.Metadata.Component
	if self.PURL != "pkg:golang/bmsota@1.2.3" || len(self.Properties) != 2 || self.Properties[1].Name != "go:build:trimpath" {
		t.Errorf("the program itself: %+v", self)
	}
	if _, err := makeBOM(&debug.BuildInfo{}, "1"); err == nil {
		t.Error("a binary without build information has a bill of materials")
	}
}
