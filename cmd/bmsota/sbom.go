package main

import (
	"errors"
	"runtime/debug"
	"slices"
	"strings"
)

// A bill of materials in CycloneDX 1.6 (ECMA-424), of which only what the program knows about itself is written. It has
// no serial number and no time of its own: the same binary always prints the same bytes.
type bom struct {
	Format      string         `json:"bomFormat"`
	SpecVersion string         `json:"specVersion"`
	Version     int            `json:"version"`
	Metadata    bomMetadata    `json:"metadata"`
	Components  []bomComponent `json:"components"`
}

type bomMetadata struct {
	Component bomComponent `json:"component"`
}

type bomComponent struct {
	Type       string        `json:"type"`
	Ref        string        `json:"bom-ref"`
	Name       string        `json:"name"`
	Version    string        `json:"version"`
	PURL       string        `json:"purl"`
	Properties []bomProperty `json:"properties,omitempty"`
}

type bomProperty struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// makeBOM lists the modules that the Go linker recorded in a binary, and the standard library, which it does not count as
// one. h1 sums are those of go.sum, so each row can be held against the sum database.
func makeBOM(info *debug.BuildInfo, version string) (bom, error) {
	if info == nil || info.Main.Path == "" {
		return bom{}, errors.New("this binary holds no build information: build it with the go command from a checkout")
	}
	self := component("application", info.Main.Path, version)
	for _, s := range info.Settings {
		// What of the build decides the bytes; a folder's name does not, with -trimpath.
		if slices.Contains([]string{"-compiler", "-ldflags", "-tags", "-trimpath", "CGO_ENABLED", "GOOS", "GOARCH", "vcs.revision", "vcs.time", "vcs.modified"}, s.Key) {
			self.Properties = append(self.Properties, bomProperty{"go:build:" + strings.TrimPrefix(s.Key, "-"), s.Value})
		}
	}
	b := bom{Format: "CycloneDX", SpecVersion: "1.6", Version: 1, Metadata: bomMetadata{Component: self}, Components: []bomComponent{
		component("library", "std", strings.TrimPrefix(info.GoVersion, "go")),
	}}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		c := component("library", m.Path, m.Version)
		if m.Sum != "" {
			c.Properties = []bomProperty{{"go:h1", m.Sum}}
		}
		b.Components = append(b.Components, c)
	}
	return b, nil
}

// component names a module as a package URL does (purl-spec, type golang): lower case, the version after @.
func component(kind, path, version string) bomComponent {
	purl := "pkg:golang/" + strings.ToLower(path) + "@" + version
	return bomComponent{Type: kind, Ref: purl, Name: path, Version: version, PURL: purl}
}
