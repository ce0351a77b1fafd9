package main

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	"bmsota/lint"

	"github.com/spf13/cobra"
)

func newLintCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "lint [DIR]",
		Short: "read a firmware project and name what will hurt in the field",
		Long: `Reads the firmware project in DIR (default: this folder) and names what loses boards, lets strangers install
firmware, or makes updates fail: rollback that is off, servers that are not verified, plain HTTP, MQTT client ids that all
boards share, slots that are unequal or too small for the image, an ESP-IDF whose resume corrupts, releases without a key.
Each with its place, the line to put instead, and why.

sdkconfig, sdkconfig.defaults, partition table, CMakeLists.txt, dependencies.lock, the device's files and the last build are
read exactly; C and C++ are looked at without compiling. build, managed_components and tests are passed over, links that
lead out of DIR are not followed. Exit 3 when something is dangerous; warnings and notes alone are exit 0.`,
		Example: `  bmsota lint
  bmsota lint firmware --json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := "."
			if len(args) == 1 {
				dir = args[0]
			}
			findings, err := lint.Check(dir)
			if err != nil {
				return lintFault(dir, err)
			}
			count := make(map[lint.Severity]int)
			for _, f := range findings {
				count[f.Severity]++
			}
			if asJSON {
				err = printJSON(cmd, emptyNotNull(findings))
			} else {
				err = printf(cmd, "%s", lintText(dir, findings, count))
			}
			if err == nil && count[lint.Danger] > 0 {
				return refused(fmt.Errorf("%s dangerous in %s", things(count[lint.Danger]), shown(dir)), "each has the line to put instead")
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func things(n int) string {
	if n == 1 {
		return "1 thing is"
	}
	return fmt.Sprintf("%d things are", n)
}

func lintFault(dir string, err error) error {
	const hint = "give the folder with the project's CMakeLists.txt"
	switch {
	case errors.Is(err, lint.ErrNoProject):
		return failure(hint, "%s: %w", shown(dir), errors.Unwrap(err))
	case errors.Is(err, fs.ErrNotExist):
		return failure(hint, "there is no folder %s", shown(dir))
	case errors.Is(err, syscall.ENOTDIR):
		return failure(hint, "%s is not a folder", shown(dir))
	case errors.Is(err, fs.ErrPermission):
		return failure("change its permissions or run as its owner", "this user may not read %s", shown(dir))
	}
	return failure(hint, "%s: %w", shown(dir), cause(err))
}

// lintText is a paragraph for each finding. What is quoted from files is made safe for a terminal.
func lintText(dir string, findings []lint.Finding, count map[lint.Severity]int) string {
	if len(findings) == 0 {
		return fmt.Sprintf("%s: nothing found that would hurt\n", shown(dir))
	}
	var b strings.Builder
	for _, f := range findings {
		where := plain(f.File)
		if f.Line > 0 {
			where += fmt.Sprintf(":%d", f.Line)
		}
		fmt.Fprintf(&b, "%s: %s: %s\n  found  %s\n", where, f.Severity, f.Rule, plain(f.Found))
		if f.Change != "" {
			fmt.Fprintf(&b, "  put    %s\n", plain(f.Change))
		}
		fmt.Fprintf(&b, "  why    %s\n\n", plain(f.Why))
	}
	fmt.Fprintf(&b, "%d danger, %d warning, %d note\n", count[lint.Danger], count[lint.Warning], count[lint.Note])
	return b.String()
}
