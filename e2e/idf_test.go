//go:build unix

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"

	"github.com/rogpeppe/go-internal/testscript"
)

var idfMajor = regexp.MustCompile(`IDF_VERSION_MAJOR\s+(\d+)`)

// cmdRealIDF runs a check with the idf.py of the ESP-IDF that IDF_PATH names, in the environment of whoever runs the
// tests: realidf CHECK EXTENSION runs "CHECK MAJOR EXTENSION python idf.py". Without IDF_PATH it runs nothing and says
// so; that is no failure, because ESP-IDF is nothing that a test machine can be asked to have.
func cmdRealIDF(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg, "realidf")
	if len(args) != 2 {
		ts.Fatalf("usage: realidf CHECK EXTENSION")
	}
	idf := os.Getenv("IDF_PATH")
	if idf == "" {
		say(ts, "THE REAL idf.py WAS NOT USED: IDF_PATH is not set. idf_ext.py was held against loader.py only.")
		return
	}
	text, err := os.ReadFile(filepath.Join(idf, "tools", "cmake", "version.cmake"))
	ts.Check(err)
	major := idfMajor.FindSubmatch(text)
	if major == nil {
		ts.Fatalf("no version in %s", idf)
	}
	python := "python3"
	if env := os.Getenv("IDF_PYTHON_ENV_PATH"); env != "" {
		python = filepath.Join(env, "bin", "python3")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, python, "-B", ts.MkAbs(args[0]), string(major[1]), ts.MkAbs(args[1]),
		python, filepath.Join(idf, "tools", "idf.py"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		ts.Fatalf("with the real idf.py of %s: %v\n%s", idf, err, out)
	}
	say(ts, "The real idf.py was used: ESP-IDF "+string(major[1])+" in "+idf)
}

// say is for what a person must hear of a story that passed, too: go test shows a log only with -v.
func say(ts *testscript.TestScript, text string) {
	ts.Logf("%s", text)
	fmt.Fprintln(os.Stderr, "e2e: "+text)
}
