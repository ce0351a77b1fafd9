//go:build unix

package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// sshdConfig is a server for the present account alone, on loopback, with keys of its own.
const sshdConfig = `Port %[1]s
ListenAddress 127.0.0.1
HostKey %[2]s/host
AuthorizedKeysFile %[2]s/authorized_keys
PidFile none
StrictModes no
UsePAM no
PermitRootLogin yes
PasswordAuthentication yes
MaxAuthTries 3
Subsystem sftp internal-sftp
`

// cmdSSHD starts OpenSSH's server: sshd NAME PORT. Below $WORK/NAME are its host key (host), the key that may log in (id),
// one that may not (stranger) and a file that knows the host (known_hosts); $LOGIN is the account.
func cmdSSHD(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg, "sshd")
	if len(args) != 2 {
		ts.Fatalf("usage: sshd NAME PORT")
	}
	name, port := args[0], args[1]
	dir := ts.MkAbs(name)
	ts.Check(os.MkdirAll(dir, 0o700))
	for _, key := range []string{"host", "id", "stranger"} {
		ts.Check(ts.Exec("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", key, "-f", filepath.Join(dir, key)))
	}
	for to, text := range map[string]string{
		"config":          fmt.Sprintf(sshdConfig, port, dir),
		"authorized_keys": ts.ReadFile(filepath.Join(dir, "id.pub")),
		"known_hosts":     fmt.Sprintf("[127.0.0.1]:%s %s", port, ts.ReadFile(filepath.Join(dir, "host.pub"))),
	} {
		ts.Check(os.WriteFile(filepath.Join(dir, to), []byte(text), 0o600))
	}
	if os.Getuid() == 0 {
		// Debian's service makes this folder when it starts, and the service does not run here.
		ts.Check(os.MkdirAll("/run/sshd", 0o755))
	}
	me, err := user.Current()
	ts.Check(err)
	ts.Setenv("LOGIN", me.Username)
	ts.Check(begin(ts, name, "sshd", "-D", "-e", "-f", filepath.Join(dir, "config")))
	p := running(ts, name)
	for end := time.Now().Add(patience); ; time.Sleep(pollEvery) {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			ts.Check(c.Close())
			return
		}
		if !p.alive() || time.Now().After(end) {
			ts.Fatalf("sshd does not answer: %v\n%s", err, tail(p.log))
		}
	}
}

// signals gives the command that sends a process a signal: NAME PROCESS
func signals(name string, sig syscall.Signal) func(ts *testscript.TestScript, neg bool, args []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		plain(ts, neg, name)
		if len(args) != 1 {
			ts.Fatalf("usage: %s NAME", name)
		}
		ts.Check(running(ts, args[0]).signal(sig))
	}
}

// cmdInterrupts publishes one image and another in turn and presses Ctrl-C at a random moment of each, holding the folder
// to be whole after every round: interrupts N UPTO FOLDER IMAGE_A IMAGE_B TARGET PROGRAM ARGS… Each round copies an image
// to TARGET and adds --version.
func cmdInterrupts(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg, "interrupts")
	if len(args) < 7 {
		ts.Fatalf("usage: interrupts N UPTO FOLDER IMAGE_A IMAGE_B TARGET PROGRAM ARGS…")
	}
	var n int
	_, err := fmt.Sscan(args[0], &n)
	ts.Check(err)
	upTo, err := time.ParseDuration(args[1])
	ts.Check(err)
	ts.Logf("seed %d: repeat with -seed=%d", newSeed(), newSeed())
	random := rand.New(rand.NewPCG(newSeed(), uint64(n)))
	done := 0
	for round := range n {
		image, err := os.ReadFile(ts.MkAbs(args[3+round%2]))
		ts.Check(err)
		ts.Check(os.WriteFile(ts.MkAbs(args[5]), image, 0o644))
		ts.Check(begin(ts, "interrupted", append(args[6:], "--version", fmt.Sprintf("1.0.%d", round+1))...))
		p := running(ts, "interrupted")
		select {
		case <-p.done:
		case <-time.After(time.Duration(random.Int64N(int64(upTo)))):
		}
		ts.Check(p.end(syscall.SIGINT))
		switch p.cmd.ProcessState.ExitCode() {
		case 0:
			done++
		case 1, -1: // -1: before it listened to signals
		default:
			ts.Fatalf("round %d: %v\n%s", round, p.cmd.ProcessState, tail(p.log))
		}
		if err := whole(ts.MkAbs(args[2])); err != nil {
			ts.Fatalf("round %d: %v\n%s", round, err, tail(p.log))
		}
	}
	ts.Logf("%d of %d rounds were over before they were interrupted", done, n)
}

// whole says whether a folder holds one release: version.json, the image it names, the same as firmware.bin, and nothing
// half-written.
func whole(dir string) error {
	if left, err := filepath.Glob(filepath.Join(dir, ".bmsota-*")); err != nil || len(left) > 0 {
		return errors.Join(err, fmt.Errorf("left behind: %s", strings.Join(left, " ")))
	}
	text, err := os.ReadFile(filepath.Join(dir, "version.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nothing has been published yet
	}
	if err != nil {
		return err
	}
	var v struct{ SHA256, URL string }
	if err := json.Unmarshal(text, &v); err != nil {
		return fmt.Errorf("version.json: %w", err)
	}
	for _, name := range []string{v.URL, "firmware.bin"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != v.SHA256 {
			return fmt.Errorf("%s is not the image of version.json", name)
		}
	}
	return nil
}
