//go:build unix

package e2e

import (
	"os/exec"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// cmdTool builds a program of tools/go.mod and says where it is: tool VARIABLE NAME
func cmdTool(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg, "tool")
	if len(args) != 2 {
		ts.Fatalf("usage: tool VARIABLE NAME")
	}
	out, err := exec.Command("go", "tool", "-modfile=../tools/go.mod", "-n", args[1]).Output()
	if err != nil {
		if e, ok := err.(*exec.ExitError); ok {
			ts.Fatalf("build %s: %v\n%s", args[1], err, e.Stderr)
		}
		ts.Check(err)
	}
	ts.Setenv(args[0], strings.TrimSpace(string(out)))
}
