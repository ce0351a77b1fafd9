//go:build unix

// Package pgtest is for tests and measurements: a PostgreSQL of this machine, as Debian installs it, in a temporary folder and on a Unix socket,
// with fsync on as everywhere. Root may not run it, so for root it runs as postgres or nobody.
//
// Its language orders texts otherwise than bytes do, so that a column which forgets COLLATE "C" is noticed.
package pgtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// Superuser is the role that may do everything; the tests connect as it unless they say otherwise.
const Superuser = "bmsota"

// Checked are the roles that are asked for their passwords, once a test has made them: a server's roles are those of every database in it,
// so two stories beside each other need two.
const (
	Checked  = "ota"
	Checked2 = "ota2"
)

// Server is a PostgreSQL that runs.
type Server struct {
	Dir string // of its socket, as a DSN wants it
	bin string
	who *syscall.SysProcAttr
	dbs atomic.Int64
}

// ErrMissing says that there is no PostgreSQL to start.
var ErrMissing = errors.New("PostgreSQL is not installed: bash e2e/deps.sh")

// Start makes a server and starts it; Stop ends it and removes it.
func Start() (_ *Server, err error) {
	bin, err := binaries()
	if err != nil {
		return nil, err
	}
	// The path of a socket may have about a hundred bytes.
	base := os.TempDir()
	if len(base) > 60 {
		base = "/tmp"
	}
	dir, err := os.MkdirTemp(base, "bmsota-pg-")
	if err != nil {
		return nil, err
	}
	s := &Server{Dir: dir, bin: bin}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	if os.Geteuid() == 0 {
		if err := s.leaveRoot(); err != nil {
			return nil, err
		}
	}
	if err := s.run("initdb", "-D", s.data(), "-U", Superuser, "-A", "trust", "-E", "UTF8", "--locale-provider=icu", "--icu-locale=en-US", "--locale=C"); err != nil {
		return nil, err
	}
	conf := fmt.Sprintf("listen_addresses = ''\nunix_socket_directories = '%s'\nfsync = on\nmax_connections = 200\nshared_buffers = '64MB'\nlog_min_messages = log\n", dir)
	f, err := os.OpenFile(filepath.Join(s.data(), "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	_, err = f.WriteString(conf)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	rules := "local all " + Checked + "," + Checked2 + " scram-sha-256\nlocal all all trust\n"
	if err := os.WriteFile(filepath.Join(s.data(), "pg_hba.conf"), []byte(rules), 0); err != nil { // it is there, as initdb has made it
		return nil, err
	}
	return s, s.Up()
}

// binaries is the folder of the newest PostgreSQL's programs.
func binaries() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil {
		return "", err
	}
	best, newest := "", 0
	for _, f := range found {
		if n, err := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(f)))); err == nil && n > newest {
			best, newest = filepath.Dir(f), n
		}
	}
	if best != "" {
		return best, nil
	}
	if f, err := exec.LookPath("initdb"); err == nil {
		if f, err = filepath.EvalSymlinks(f); err == nil {
			return filepath.Dir(f), nil
		}
	}
	return "", ErrMissing
}

func (s *Server) leaveRoot() error {
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, e1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, e2 := strconv.ParseUint(u.Gid, 10, 32)
		if e1 != nil || e2 != nil {
			continue
		}
		s.who = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
		return os.Chown(s.Dir, int(uid), int(gid))
	}
	return errors.New("PostgreSQL does not run as root, and there is neither postgres nor nobody to run it as")
}

func (s *Server) data() string { return filepath.Join(s.Dir, "data") }

func (s *Server) run(program string, args ...string) error {
	cmd := exec.Command(filepath.Join(s.bin, program), args...)
	cmd.Dir, cmd.SysProcAttr = s.Dir, s.who
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "HOME=" + s.Dir}
	// A pipe would be held open by the server that pg_ctl leaves behind.
	log := filepath.Join(s.Dir, program+".out")
	out, err := os.Create(log)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		said, _ := os.ReadFile(log)
		return fmt.Errorf("%s: %w\n%s", program, err, said)
	}
	return nil
}

// Up starts the server and waits until it answers.
func (s *Server) Up() error {
	return s.run("pg_ctl", "-D", s.data(), "-l", filepath.Join(s.Dir, "log"), "-w", "-t", "120", "start")
}

// Kill ends the server as a crash would: no process of it gets to finish anything.
func (s *Server) Kill() error {
	b, err := os.ReadFile(filepath.Join(s.data(), "postmaster.pid"))
	if err != nil {
		return err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	pid, err := strconv.Atoi(line)
	if err != nil || pid < 2 {
		return fmt.Errorf("process of the server: %q", line)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	// Its children end when they notice. A new server refuses to start before the last has let go of the shared memory.
	for end := time.Now().Add(time.Minute); ; {
		if err := s.Up(); err == nil || time.Now().After(end) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Stop ends the server and removes it.
func (s *Server) Stop() error {
	return errors.Join(s.run("pg_ctl", "-D", s.data(), "-m", "immediate", "-w", "stop"), os.RemoveAll(s.Dir))
}

// Log is what the server has written since it was made.
func (s *Server) Log() ([]byte, error) { return os.ReadFile(filepath.Join(s.Dir, "log")) }

// URL is the address of a database, as a role.
func (s *Server) URL(database, role string) string {
	return fmt.Sprintf("postgres://%s@/%s?host=%s&sslmode=disable", role, database, s.Dir)
}

// New makes an empty database, or a copy of one, and gives its name.
func (s *Server) New(template string) (string, error) {
	name := fmt.Sprintf("t%d_%d", os.Getpid(), s.dbs.Add(1))
	return name, s.SQL("postgres", "CREATE DATABASE "+name+" TEMPLATE "+template)
}

// SQL runs statements as an operator with psql would.
func (s *Server) SQL(database string, statements ...string) error {
	_, err := s.Ask(database, statements...)
	return err
}

// Ask is SQL that gives what psql printed.
func (s *Server) Ask(database string, statements ...string) (string, error) {
	args := []string{"-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", s.Dir, "-U", Superuser, "-d", database}
	for _, text := range statements {
		args = append(args, "-c", text)
	}
	out, err := exec.Command(filepath.Join(s.bin, "psql"), args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("psql: %w\n%s", err, out)
	}
	return string(out), nil
}

// Test is a *testing.T, or a *testing.B; measurements, which are part of the program, do without that package.
type Test interface {
	Helper()
	Fatal(args ...any)
	Skip(args ...any)
}

// Missing says what to do about an error of Start in a test: where CI runs, or where PostgreSQL is there and does not start,
// it fails; else the test is skipped, with the reason.
func Missing(t Test, err error) {
	t.Helper()
	if os.Getenv("CI") != "" || !errors.Is(err, ErrMissing) {
		t.Fatal(err)
	}
	t.Skip(err)
}
