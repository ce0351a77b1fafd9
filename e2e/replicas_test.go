//go:build unix

package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/rogpeppe/go-internal/testscript"
)

// cmdLater builds the program as a later version of it would be: later PROGRAM VERSION MIGRATION.sql…
// The migrations are files of the story, for PostgreSQL, and stand behind those of the tree.
func cmdLater(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg, "later")
	if len(args) < 3 {
		ts.Fatalf("usage: later PROGRAM VERSION MIGRATION.sql…")
	}
	added := make(map[string]string)
	for _, file := range args[2:] {
		added[filepath.Join(folder("../server/internal/store/migrations/postgres"), filepath.Base(file))] = ts.MkAbs(file)
	}
	overlay, err := json.Marshal(map[string]any{"Replace": added})
	ts.Check(err)
	path := ts.MkAbs(args[0] + ".json")
	ts.Check(os.WriteFile(path, overlay, 0o600))
	out, err := exec.Command("go", "build", "-overlay", path, "-ldflags", "-s -w -X main.version="+args[1], "-o", ts.MkAbs(args[0]), "bmsota/cmd/bmsota").CombinedOutput()
	if err != nil {
		ts.Fatalf("build %s: %v\n%s", args[0], err, out)
	}
}

// pageFollowsBothServers is of a person whose requests come to two servers in turn, with data folders a and b.
func pageFollowsBothServers(b *browser) {
	b.signIn("anna", password)
	b.open("/devices/bms-000001")
	b.live()
	said := func(at string, args ...string) {
		b.ts.Setenv("BMSOTA_DATA", b.ts.MkAbs(at))
		if out, err := b.bmsota(password+" two\n", args...); err != nil {
			b.fail("%q at %s: %v\n%s", args, at, err, out)
		}
	}
	for _, at := range []string{"a", "b", "a"} {
		said(at, "devices", "label", "bms-000001", "last=by-"+at)
		b.until("what was done at "+at, `document.querySelector("main").innerText.includes("by-`+at+`")`)
	}
	b.wants("the page was never loaded again", `window.sameOne === true`)
	said("b", "accounts", "password", "anna", "--password-file", "-")
	b.open("/devices")
	b.wants("the session has ended with the password", `location.pathname === "/login"`)
	b.ts.Setenv("BMSOTA_DATA", b.ts.MkAbs("a"))
}
