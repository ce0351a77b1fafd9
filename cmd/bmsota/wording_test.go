package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"bmsota/api"
	"bmsota/deploy"
	"bmsota/protocol"

	"github.com/spf13/cobra"
)

func TestWrongUseIsSaidInWordsOfThisTool(t *testing.T) {
	for _, c := range []struct {
		says string
		args []string
	}{
		{"the use is bmsota publish IMAGE", []string{"publish"}},
		{"wrong number of arguments (1)", []string{"serve", "extra"}},
		{"not a duration such as 90s", []string{"update", "--all", "--timeout", "5"}},
		{`"--devices": not a number`, []string{"demo", "--devices", "x"}},
		{`"--seed": out of range`, []string{"device", "run", "--seed", "99999999999999999999"}},
		{`"--json": neither true nor false`, []string{"version", "--json=perhaps"}},
		{"less than nothing", []string{"update", "--all", "--timeout", "-1s"}},
		{"less than nothing", []string{"status", "--timeout", "-1s"}},
		{"less than nothing", []string{"monitor", "--timeout", "-1s"}},
		{"give one of --json and --sbom", []string{"version", "--json", "--sbom"}},
		{"give its public key with --key", []string{"publish", "testdata/otadata/erased.bin", "--signer", "sign"}},
		{"give --all, or any of", []string{"rollout", "create", "1.0.0", "--dry-run"}},
		{`no help on "device nope"`, []string{"help", "device", "nope"}},
		{`unknown command "tcsh"`, []string{"completion", "tcsh"}},
		{"is not N:HASH", []string{"audit", "verify", "log.jsonl", "--head", "9"}},
		{"not within 1 to 1000", []string{"audit", "list", "--limit", "0"}},
		{"no day, no time", []string{"audit", "list", "--until", "-1h"}},
		{"is not a number from 1 to 65535", []string{"status", "--broker", "mqtt://127.0.0.1:99999"}},
		{"is not a number from 1 to 65535", []string{"status", "--broker", "mqtt://127.0.0.1:0"}},
		{"not within 0 to 100", []string{"device", "run", "--flash", "x.bin", "--soc", "900"}},
		{"not within 0 to 100", []string{"device", "run", "--flash", "x.bin", "--soc", "NaN"}},
	} {
		o := mustFail(t, exitUsage, c.says, c.args...)
		for _, noise := range []string{"strconv", "time:", "arg(s)", "syntax"} {
			if strings.Contains(o.errout, noise) {
				t.Errorf("%q: %q is not for people: %s", c.args, noise, o.errout)
			}
		}
	}
	for _, c := range []struct{ word, meant string }{{"upate", "update"}, {"relases", "releases"}} {
		if o := command(t, nil, c.word); o.code != exitUsage || !strings.Contains(o.errout, "did you mean 'bmsota "+c.meant+"'?") {
			t.Errorf("%s: exit %d: %s", c.word, o.code, o.errout)
		}
	}
}

// TestShellsAreOfferedWhatIsMeant: files where a file is meant, words where a flag takes words, and neither for a name.
func TestShellsAreOfferedWhatIsMeant(t *testing.T) {
	for _, c := range []struct {
		want string
		args []string
	}{
		{":0\n", []string{"publish", ""}},
		{":0\n", []string{"keys", "pin", "--project", "p", ""}},
		{":4\n", []string{"rollout", "pause", ""}},
		{":4\n", []string{"devices", "label", "bms-1", ""}},
		{"viewer\noperator\nadmin\n:4\n", []string{"tokens", "add", "ci", "--role", ""}},
	} {
		if o := command(t, nil, append([]string{"__complete"}, c.args...)...); o.out != c.want {
			t.Errorf("%q: %q, want %q", c.args, o.out, c.want)
		}
	}
}

func TestSettingsThatCannotBeReadAreNamed(t *testing.T) {
	dir := t.TempDir()
	mustFail(t, exitFailed, "there is no file", "status", "--config", filepath.Join(dir, "none.json"))
	mustFail(t, exitFailed, "there is no file", "serve", "--config", filepath.Join(dir, "none.json"))
	mustFail(t, exitFailed, "is a folder", "serve", "--config", dir)
	broken := filepath.Join(dir, "broken.pem")
	for _, name := range []string{broken, filepath.Join(dir, api.AccessFile)} {
		if err := os.WriteFile(name, []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mustFail(t, exitRefused, "broken.pem: no certificate", "devices", "list", "--server", "https://127.0.0.1:1", "--ca-file", broken)
	mustFail(t, exitFailed, api.AccessFile+" is broken", "devices", "list", "--data", dir)
}

// A key that would be left out without a word is worse than no key.
func TestDeviceCreateLeavesNothingOutInSilence(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	mustRun(t, "image", "new", "--chip", "esp32", "--project", "p", "--version", "1.0.0", "-o", at("app.bin"))
	mustRun(t, "keys", "new", "-o", at("k.pem"))
	mustFail(t, exitUsage, "--trusted-key goes with --enroll", "device", "create", "--flash", at("b.bin"), "--image", at("app.bin"), "--trusted-key", at("k.pub.pem"))
	if err := os.WriteFile(at("lone.csv"), []byte("ota_0, app, ota_0, 0x10000, 1M\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// No server is asked before it is known that the board can be made: enrolled is what exists.
	mustFail(t, exitRefused, "no storage", "device", "create", "--flash", at("b.bin"), "--image", at("app.bin"), "--partitions", at("lone.csv"),
		"--enroll", "--data", at("nowhere"))
	if _, err := os.Stat(at("b.bin")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the flash file is there: %v", err)
	}
	o := command(t, nil, "device", "create", "--flash", at("b.bin"), "--image", at("app.bin"), "--partitions", at("lone.csv"))
	if o.code != exitDone || strings.Count(o.errout, ": warning: ") != 2 {
		t.Errorf("a table without otadata and storage: exit %d, %q", o.code, o.errout)
	}
}

func TestAnswersOfServersAndLibrariesAreSaidOnce(t *testing.T) {
	dial := &net.OpError{Op: "dial", Net: "tcp", Addr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}, Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	lookup := &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: "nas.local", Server: "192.0.2.1:53"}}
	conflict := &api.Error{Status: 409, Code: api.CodeConflict, Detail: "conflict: version 1.1.0 is withdrawn"}
	missing := &api.Error{Status: 404, Code: api.CodeNotFound, Detail: `device "x": not found`}
	for _, c := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("%w: 127.0.0.1:1: network Error : %w", deploy.ErrUnreachable, dial), "broker cannot be reached: 127.0.0.1:1: connection refused"},
		{fmt.Errorf("%w: nas.local: %w", api.ErrUnreachable, lookup), `server cannot be reached: nas.local: no address for the name "nas.local": no such host`},
		{fmt.Errorf("%w: %w", api.ErrUntrusted, &tls.CertificateVerificationError{Err: errors.New("x509: expired")}), "server certificate is not trusted: expired"},
		{serverFault(conflict), "version 1.1.0 is withdrawn"},
		{serverFault(fmt.Errorf("publish: %w", conflict)), "publish: version 1.1.0 is withdrawn"},
		{serverFault(missing), `device "x": not found`},
		{serverFault(&api.Error{Status: 502, Code: api.CodeUnexpectedAnswer}), "server answered 502 (unexpected_answer)"},
	} {
		if got := sentence(c.err); got != c.want {
			t.Errorf("%v:\n got %q\nwant %q", c.err, got, c.want)
		}
	}
	if f, ok := errors.AsType[*fault](serverFault(conflict)); !ok || f.code != exitRefused {
		t.Errorf("a conflict is %v, not exit %d", f, exitRefused)
	}
}

func TestDurationsArePlain(t *testing.T) {
	for d, want := range map[time.Duration]string{time.Hour: "1h", 90 * time.Second: "1m30s", 10 * time.Minute: "10m", 3 * time.Second: "3s", 61 * time.Minute: "1h1m"} {
		if got := plainDuration(d); got != want {
			t.Errorf("%s: %q, want %q", d, got, want)
		}
	}
}

// What the hint promises must be what the link does: a check or a plain rollback is gone when the device comes back.
func TestOnlyKeptCommandsAreSaidToBeKept(t *testing.T) {
	for _, c := range []struct {
		cmd  protocol.Command
		kept bool
	}{
		{protocol.Command{Action: protocol.ActionUpdate}, true},
		{protocol.Command{Action: protocol.ActionRollback, Version: "1.0.0"}, true},
		{protocol.Command{Action: protocol.ActionRollback}, false},
		{protocol.Command{Action: protocol.ActionCheck}, false},
	} {
		if got := strings.Contains(waitingHint(c.cmd), "keeps"); got != c.kept {
			t.Errorf("%s %s: %q", c.cmd.Action, c.cmd.Version, waitingHint(c.cmd))
		}
	}
}

// A named device that is away is shown as the broker remembers it, as it is when everybody is asked.
func TestStatusShowsWhatIsKnownOfADeviceThatIsAway(t *testing.T) {
	left := deploy.Report{Device: "bms-2", Retained: true, Status: protocol.Status{Phase: protocol.PhaseOffline, CurrentVersion: "1.2.0"}}
	for _, named := range [][]string{{"bms-1", "bms-2"}, nil} {
		track := deploy.NewTrack(protocol.Command{Action: protocol.ActionStatus, ID: "x"}, named...)
		track.Apply(deploy.Report{Device: "bms-1", Status: protocol.Status{Phase: protocol.PhaseIdle, CurrentVersion: "1.0.0"}})
		track.Apply(left)
		rows := withKept(track.Rows(), map[string]deploy.Report{"bms-2": left})
		if len(rows) != 2 || rows[0].Status.CurrentVersion != "1.0.0" || !rows[0].Online {
			t.Fatalf("%v: %+v", named, rows)
		}
		if r := rows[1]; r.Device != "bms-2" || r.Online || r.Status.Phase != protocol.PhaseOffline || r.Status.CurrentVersion != "1.2.0" {
			t.Errorf("%v: %+v", named, r)
		}
	}
}

// Nobody waits for a device that does not exist; one that is only away, and a server that cannot say, stop nothing.
func TestOrdersToUnknownDevicesEndAtOnce(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch path.Base(r.URL.Path) {
		case "bms-away":
			fmt.Fprint(w, `{"device_id":"bms-away"}`)
		case "bms-typo":
			w.Header().Set("Content-Type", api.ProblemType)
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"code":"not_found","detail":"device \"bms-typo\": not found"}`)
		default:
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	defer srv.Close()
	for device, wrong := range map[string]bool{"bms-away": false, "bms-typo": true, "bms-fault": false} {
		o := order{access: access{server: srv.URL, token: "t"}, target: target{devices: []string{device}}}
		err := o.checkKnown(t.Context(), newUpdateCmd(), deploy.NewTrack(protocol.Command{Action: protocol.ActionUpdate}, device))
		if (err != nil) != wrong {
			t.Errorf("%s: %v", device, err)
		}
	}
}

func TestPublishSaysWhatToDoAboutAVersion(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	mustRun(t, "image", "new", "--chip", "esp32", "--project", "p", "--version", "1.0.0", "-o", at("app.bin"))
	mustRun(t, "image", "new", "--chip", "esp32", "--project", "p", "--version", "3f2a91c-dirty", "-o", at("odd.bin"))
	mustFail(t, exitUsage, "--version", "publish", at("app.bin"), "--version", "1.x", "--folder", at("www"))
	mustFail(t, exitUsage, "--min-version", "publish", at("app.bin"), "--min-version", "zz", "--folder", at("www"))
	if o := mustFail(t, exitRefused, "SemVer", "publish", at("odd.bin"), "--folder", at("www")); !strings.Contains(o.errout, "--allow-any-version") {
		t.Errorf("no way out is named: %s", o.errout)
	}
	mustFail(t, exitFailed, "app.bin: not a directory", "publish", at("app.bin"), "--folder", at("app.bin"))
	if _, err := os.Stat(at("www")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a refused release left a folder: %v", err)
	}
	if o := command(t, nil, "publish", at("app.bin"), "--folder", at("www")); o.code != exitDone || !strings.Contains(o.out, "server_url") {
		t.Errorf("exit %d: %s %s", o.code, o.out, o.errout)
	}
}

// A new token locks the device out that has the old one: that is said, on stderr, and stdout stays the token alone.
func TestEnrollWarnsOfTheTokenItReplaces(t *testing.T) {
	enrolled := false
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.Method == http.MethodGet {
			fmt.Fprintf(w, `{"device_id":"bms-1","enrolled":%v}`, enrolled)
			return
		}
		fmt.Fprint(w, `{"device_id":"bms-1","token":"TOKEN"}`)
	}))
	defer srv.Close()
	for _, enrolled = range []bool{false, true} {
		o := command(t, nil, "devices", "enroll", "bms-1", "--server", srv.URL)
		if o.code != exitDone || o.out != "TOKEN\n" || strings.Contains(o.errout, "no longer taken") != enrolled {
			t.Errorf("enrolled %v: exit %d, %q, %q", enrolled, o.code, o.out, o.errout)
		}
	}
}

// What stands on a command line is seen by everybody on the machine, and kept by the shell: a secret comes by a file, the
// environment or a question.
func TestNoFlagTakesASecret(t *testing.T) {
	flags := 0
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		for _, m := range regexp.MustCompile(`--([a-z-]+) ([a-zA-Z]*)`).FindAllStringSubmatch(cmd.LocalFlags().FlagUsages(), -1) {
			flags++
			for _, word := range []string{"password", "token", "secret", "passphrase"} {
				if strings.Contains(m[1], word) && !strings.HasSuffix(m[1], "-file") && m[2] != "" {
					t.Errorf("%s --%s takes a secret", cmd.CommandPath(), m[1])
				}
			}
		}
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(newRoot(streams{}))
	if flags < 100 {
		t.Errorf("only %d flags were looked at", flags)
	}
}
