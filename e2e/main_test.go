//go:build unix

package e2e

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"bmsota/server/pgtest"

	"github.com/rogpeppe/go-internal/testscript"
)

// binFolder holds the binary under test.
var binFolder string

var goOn = flag.Bool("go-on", false, "go on with a story after a line that failed")

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	// Stories wait most of the time, so more of them fit beside each other than the machine has processors.
	if !given("test.parallel") {
		if err := flag.Set("test.parallel", "6"); err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
			return 1
		}
	}
	dir, err := os.MkdirTemp("", "bmsota-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	binFolder = dir
	if err := build(filepath.Join(dir, "bmsota")); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: build the binary:", err)
		return 1
	}
	return m.Run()
}

func given(name string) (yes bool) {
	flag.Visit(func(f *flag.Flag) { yes = yes || f.Name == name })
	return yes
}

func build(out string) error {
	if path := os.Getenv("BMSOTA_E2E_BINARY"); path != "" {
		abs, err := filepath.Abs(path)
		if err != nil {
			return err
		}
		return os.Symlink(abs, out)
	}
	args := []string{"build", "-o", out}
	if os.Getenv("BMSOTA_E2E_RACE") != "" {
		args = append(args, "-race")
	}
	b, err := exec.Command("go", append(args, "bmsota/cmd/bmsota")...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w\n%s", err, b)
	}
	return nil
}

// TestScripts tells every story, and those with a device in them once for each kind: TestScripts/component/good-update.
func TestScripts(t *testing.T) {
	for _, kind := range deviceKinds {
		t.Run(kind.name, func(t *testing.T) { runStories(t, kind) })
	}
	t.Run("postgres", func(t *testing.T) {
		server, err := pgtest.Start()
		if err != nil {
			pgtest.Missing(t, err)
		}
		t.Cleanup(func() { // after the stories, which are subtests
			if err := server.Stop(); err != nil {
				t.Error(err)
			}
		})
		runStories(t, deviceKind{name: "postgres", postgres: server})
	})
}

func runStories(t *testing.T, kind deviceKind) {
	files, err := kind.stories()
	if err != nil {
		t.Fatal(err)
	}
	application := kind.application(t)
	testscript.Run(t, testscript.Params{
		Files:              files,
		RequireUniqueNames: true,
		ContinueOnError:    *goOn,
		Setup: func(env *testscript.Env) error {
			if err := setup(env, application); err != nil || kind.postgres == nil {
				return err
			}
			database, err := kind.postgres.New("template0")
			env.Setenv("DATABASE", kind.postgres.URL(database, pgtest.Superuser))
			env.Setenv("PGDATABASE", database)
			env.Setenv("PGHOST", kind.postgres.Dir)
			env.Setenv("PGUSER", pgtest.Superuser)
			return err
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"needs":         cmdNeeds,
			"freeports":     cmdFreePorts,
			"start":         cmdStart,
			"device":        cmdDevice,
			"halt":          cmdHalt,
			"ended":         cmdEnded,
			"waitfor":       cmdWaitFor,
			"eventually":    cmdEventually,
			"exits":         cmdExits,
			"capture":       cmdCapture,
			"json":          cmdJSON,
			"jsonkeys":      cmdJSONKeys,
			"jsonlines":     cmdJSONLines,
			"expandfile":    cmdExpandFile,
			"linecount":     cmdLineCount,
			"flip":          cmdFlip,
			"server":        cmdServer,
			"board":         cmdBoard,
			"boardfiles":    cmdBoardFiles,
			"testca":        cmdTestCA,
			"s3":            cmdS3,
			"hostile":       cmdHostile,
			"served":        cmdServed,
			"killrounds":    cmdKillRounds,
			"smalldisk":     cmdSmallDisk,
			"notbelow":      cmdNotBelow,
			"slowlink":      cmdSlowLink,
			"cutlink":       cmdCutLink,
			"passed":        cmdPassed,
			"killpublishes": cmdKillPublishes,
			"browse":        cmdBrowse,
			"killrollouts":  cmdKillRollouts,
			"killreplicas":  cmdKillReplicas,
			"later":         cmdLater,
			"sleep":         signals("sleep", syscall.SIGSTOP), // as a machine is paused
			"wake":          signals("wake", syscall.SIGCONT),
			"untouched":     cmdUntouched,
			"realidf":       cmdRealIDF,
			"sshd":          cmdSSHD,
			"interrupt":     signals("interrupt", syscall.SIGINT), // Ctrl-C
			"interrupts":    cmdInterrupts,
			"tool":          cmdTool,
			"secret":        cmdSecret,
			"silent":        cmdSilent,
		},
	})
}

// story is what belongs to one running script.
type story struct {
	application string // that its boards run; empty for the firmware built in
	procs       map[string]*process
	order       []string
	hostile     map[string]*hostile
	links       map[string]*slowLink
	undo        []func()
	secrets     map[string]string // that must not be seen, by name
}

type storyKey struct{}

func of(ts *testscript.TestScript) *story { return ts.Value(storyKey{}).(*story) }

func setup(env *testscript.Env, application string) error {
	s := &story{application: application, procs: make(map[string]*process), hostile: make(map[string]*hostile), links: make(map[string]*slowLink)}
	env.Values[storyKey{}] = s
	home := filepath.Join(env.WorkDir, ".home")
	if err := os.MkdirAll(home, 0o700); err != nil {
		return err
	}
	// nginx and Apache, started by root, read their files under an account of their own.
	if err := os.Chmod(filepath.Dir(env.WorkDir), 0o711); err != nil {
		return err
	}
	// Debian keeps servers where an ordinary account's PATH does not look.
	path := strings.Join([]string{binFolder, "/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"}, string(os.PathListSeparator))
	for k, v := range map[string]string{"PATH": path, "HOME": home, "XDG_CONFIG_HOME": home, "TMPDIR": env.Getenv("TMPDIR"), "LC_ALL": "C",
		"SCRIPT": folder("testdata"), "FIRMWARE": folder("../firmware"), "DOCS": folder("../docs"), "GORACE": "halt_on_error=1 exitcode=66"} {
		env.Setenv(k, v)
	}
	boards, kills := rolloutFigures()
	replicaBoards, replicaKills := replicaFigures()
	env.Setenv("BOARDS", boards)
	env.Setenv("KILLS", kills)
	env.Setenv("REPLICA_BOARDS", replicaBoards)
	env.Setenv("REPLICA_KILLS", replicaKills)
	// What the person who runs the tests has set must not reach the stories.
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "BMSOTA_") {
			env.Setenv(name, "")
		}
	}
	tb, _ := env.T().(testing.TB)
	env.Defer(func() { s.close(tb) })
	return nil
}

// folder is a folder of the tree, by its way from this one.
func folder(name string) string {
	dir, err := filepath.Abs(name)
	if err != nil {
		panic("e2e: no working folder: " + err.Error())
	}
	return dir
}

// packages says which of Debian's packages has a program.
var packages = map[string]string{"mosquitto": "mosquitto", "mosquitto_pub": "mosquitto-clients", "mosquitto_sub": "mosquitto-clients",
	"nginx": "nginx-light", "pgbouncer": "pgbouncer", "apache2": "apache2", "curl": "curl", "python3": "python3", "shellcheck": "shellcheck", "systemd-analyze": "systemd",
	"sshd": "openssh-server", "ssh-keygen": "openssh-client", "ssh-agent": "openssh-client", "ssh-add": "openssh-client", "ssh-keyscan": "openssh-client",
	"git": "git", "chromium": "chromium", "bash": "bash", "openssl": "openssl", "zsh": "zsh", "fish": "fish"}

// cmdNeeds fails a story whose programs are not there: needs PROGRAM…
func cmdNeeds(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg, "needs")
	var missing []string
	for _, program := range args {
		found := false
		for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
			if _, err := os.Stat(filepath.Join(dir, program)); err == nil {
				found = true
			} else if !errors.Is(err, fs.ErrNotExist) {
				ts.Check(err)
			}
		}
		if !found {
			missing = append(missing, packages[program])
		}
	}
	if len(missing) > 0 {
		ts.Fatalf("programs are missing: run e2e/deps.sh, or apt-get install %s", strings.Join(missing, " "))
	}
}

// plain refuses "!" before a command that has no opposite.
func plain(ts *testscript.TestScript, neg bool, name string) {
	if neg {
		ts.Fatalf("%s has no !", name)
	}
}
