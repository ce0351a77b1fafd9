package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set at link time for a release; a build from a checkout says which commit it is.
var version = ""

// buildInfo is what `bmsota version --json` prints.
type buildInfo struct {
	Version string `json:"version"`
	Commit  string `json:"commit"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
}

func readBuildInfo() buildInfo {
	b := buildInfo{Version: version, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				b.Commit = s.Value
			}
		}
	}
	if b.Version == "" {
		b.Version = "devel"
	}
	return b
}

func newVersionCmd() *cobra.Command {
	var asJSON, asBOM bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "print what this binary is, and with --sbom what it is made of",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if asJSON && asBOM {
				return usageFault(cmd, "--sbom prints JSON of its own: give one of --json and --sbom")
			}
			b := readBuildInfo()
			if asBOM {
				info, _ := debug.ReadBuildInfo()
				bom, err := makeBOM(info, b.Version)
				if err != nil {
					return err
				}
				return printJSON(cmd, bom)
			}
			if asJSON {
				return printJSON(cmd, b)
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "bmsota %s %s %s/%s\n", b.Version, b.Go, b.OS, b.Arch)
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&asBOM, "sbom", false, "print the bill of materials (CycloneDX, JSON): every module that is linked, with its sum")
	return cmd
}
