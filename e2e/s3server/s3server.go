// Package s3server starts a real S3 server for tests: versitygw, which checks signatures, rights and digests as the large
// ones do, and keeps an object as a file. It is no dependency of ours: tools/s3.mod names its version, and go tool builds it,
// which takes some minutes the first time on a machine.
package s3server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"
)

// Root is the login that may do everything, and the region the server says it is in.
const (
	RootKey, RootSecret = "root", "root-secret"
	Region              = "eu-test-1"
)

// Program builds the server, or finds it in the build cache, and says where it is.
var Program = sync.OnceValues(func() (string, error) {
	_, file, _, _ := runtime.Caller(0)
	cmd := exec.Command("go", "tool", "-modfile=tools/s3.mod", "-n", "versitygw")
	cmd.Dir = filepath.Join(filepath.Dir(file), "..", "..")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("build versitygw: %w: %s", err, stderr.Bytes())
	}
	return strings.TrimSpace(string(out)), nil
})

// Server is one running server.
type Server struct {
	Addr string // host:port
	dir  string
	cert string // files of TLS; empty = plain HTTP
	key  string

	cmd  *exec.Cmd
	done chan error
}

// New makes a server in dir that is not started yet. cert and key are its certificate, or empty for plain HTTP.
func New(dir, cert, key string) (*Server, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &Server{Addr: l.Addr().String(), dir: dir, cert: cert, key: key}
	for _, folder := range []string{s.Objects(), s.accounts(), s.meta()} {
		err = errors.Join(err, os.MkdirAll(folder, 0o700))
	}
	return s, errors.Join(err, l.Close())
}

// Objects is the folder of the buckets: an object is a file there.
func (s *Server) Objects() string  { return filepath.Join(s.dir, "buckets") }
func (s *Server) accounts() string { return filepath.Join(s.dir, "accounts") }
func (s *Server) meta() string     { return filepath.Join(s.dir, "meta") }

// URL is the endpoint.
func (s *Server) URL() string {
	if s.cert != "" {
		return "https://" + s.Addr
	}
	return "http://" + s.Addr
}

// Args is the command line of the server.
func (s *Server) Args() ([]string, error) {
	program, err := Program()
	args := []string{program, "--access", RootKey, "--secret", RootSecret, "--port", s.Addr, "--quiet", "--region", Region, "--iam-dir", s.accounts()}
	if s.cert != "" {
		args = append(args, "--cert", s.cert, "--key", s.key)
	}
	return append(args, "posix", "--sidecar", s.meta(), s.Objects()), err
}

// Start starts the server and waits until it answers.
func (s *Server) Start() error {
	args, err := s.Args()
	if err != nil {
		return err
	}
	s.cmd = exec.Command(args[0], args[1:]...)
	var said bytes.Buffer
	s.cmd.Stdout, s.cmd.Stderr = &said, &said
	if err := s.cmd.Start(); err != nil {
		return err
	}
	s.done = make(chan error, 1)
	go func() { s.done <- s.cmd.Wait() }()
	limit := time.After(time.Minute)
	for {
		conn, err := net.Dial("tcp", s.Addr)
		if err == nil {
			return conn.Close()
		}
		select {
		case err := <-s.done:
			return fmt.Errorf("versitygw ended: %w: %s", err, said.Bytes())
		case <-limit:
			return errors.Join(fmt.Errorf("versitygw does not listen: %w", err), s.Stop())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Stop kills the server, as a loss of power would.
func (s *Server) Stop() error {
	if s.cmd == nil {
		return nil
	}
	err := s.cmd.Process.Kill()
	<-s.done
	s.cmd = nil
	return err
}

// Admin runs a command of the server's administration, such as create-bucket.
func (s *Server) Admin(ctx context.Context, args ...string) error {
	program, err := Program()
	if err != nil {
		return err
	}
	args = append([]string{"admin", "--access", RootKey, "--secret", RootSecret, "--region", Region, "--endpoint-url", s.URL(), "--allow-insecure"}, args...)
	if out, err := exec.CommandContext(ctx, program, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}
