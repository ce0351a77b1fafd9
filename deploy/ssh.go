package deploy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// Faults of a connection to another machine that an exit code depends on; the third is a [*HostKeyError].
var (
	ErrMachineUnreachable = errors.New("machine cannot be reached over SSH")
	ErrMachineLogin       = errors.New("machine refused the SSH login")
)

// SSH says how to reach another machine, as a person would with ssh.
type SSH struct {
	Host     string
	Port     int // 0 = 22
	User     string
	Password string // tried after keys; empty = none
	// KeyFile is the private key to log in with. Empty: those of the agent, and the usual ones in Home.
	KeyFile string
	// KnownHosts is the file that must know the machine's key. Empty: ssh's own files.
	KnownHosts string
	Agent      string // the agent's socket, as in SSH_AUTH_SOCK; empty = none
	Home       string // where .ssh is
	// Ask asks a person for a passphrase or password. nil: nobody is there, and what would need one fails.
	Ask func(prompt string) (string, error)
}

const (
	sshDialTimeout = 15 * time.Second
	// sshPatience is how long the machine may say nothing while something is asked of it. sshd gives a login two minutes.
	sshPatience = 2 * time.Minute
	// sshGrace is how long cleaning up may take after the caller's context has ended.
	sshGrace = 30 * time.Second
)

func (s SSH) address() string {
	port := s.Port
	if port == 0 {
		port = 22
	}
	return net.JoinHostPort(s.Host, strconv.Itoa(port))
}

// HostKeyError says that the machine did not prove to be the one meant. Nothing was sent to it, no password either.
type HostKeyError struct {
	Address     string // host, or [host]:port, as known_hosts has it
	Fingerprint string // of the key it showed, with its type
	File        string // that should know it
	Line        int    // of File that knows another key; 0 = the machine is unknown
	Revoked     bool   // the key is marked as revoked
	Command     string // that mends File, once a person has made sure
}

func (e *HostKeyError) Error() string {
	switch {
	case e.Revoked:
		return fmt.Sprintf("THE HOST KEY OF %s IS REVOKED: %s line %d says so of %s; nothing was sent", e.Address, e.File, e.Line, e.Fingerprint)
	case e.Line > 0:
		return fmt.Sprintf("THE HOST KEY OF %s HAS CHANGED: %s line %d has another than %s, so this may be another machine that listens in; nothing was sent",
			e.Address, e.File, e.Line, e.Fingerprint)
	}
	return fmt.Sprintf("the machine %s is not known: %s has no key of it, it shows %s", e.Address, e.File, e.Fingerprint)
}

// dial connects and logs in. While ctx lasts the connection may be used, and for sshGrace after that, to clean up.
func (s SSH) dial(ctx context.Context) (*ssh.Client, error) {
	guard, err := s.hostGuard()
	if err != nil {
		return nil, err
	}
	auth, closeAgent := s.auth()
	defer closeAgent()
	dialer := net.Dialer{Timeout: sshDialTimeout}
	raw, err := dialer.DialContext(ctx, "tcp", s.address())
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrMachineUnreachable, s.address(), err)
	}
	conn := &patientConn{raw}
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	config := &ssh.ClientConfig{User: s.User, Auth: auth, HostKeyCallback: guard.check, HostKeyAlgorithms: guard.algorithms(s.address())}
	c, channels, requests, err := ssh.NewClientConn(conn, s.address(), config)
	if !stop() && err == nil {
		err = errors.Join(ctx.Err(), c.Close())
	}
	if err != nil {
		raw.Close()
		return nil, s.dialFault(ctx, guard, err)
	}
	context.AfterFunc(ctx, func() { time.AfterFunc(sshGrace, func() { raw.Close() }) })
	return ssh.NewClient(c, channels, requests), nil
}

func (s SSH) dialFault(ctx context.Context, guard *hostGuard, err error) error {
	var network *net.OpError
	switch {
	case guard.fault != nil:
		return guard.fault
	case ctx.Err() != nil:
		return ctx.Err()
	case guard.passed && !errors.As(err, &network):
		return fmt.Errorf("%w: %s@%s: %w", ErrMachineLogin, s.User, s.Host, err)
	}
	return fmt.Errorf("%w: %s: %w", ErrMachineUnreachable, s.address(), err)
}

// patientConn gives up on a machine that says nothing for sshPatience. There is always something asked of it.
type patientConn struct{ net.Conn }

func (c *patientConn) Read(b []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(sshPatience)); err != nil {
		return 0, err
	}
	return c.Conn.Read(b)
}

// hostGuard lets a machine through whose key known_hosts has, and says why not of another. There is no way round it.
type hostGuard struct {
	file   string // to add a key to
	known  ssh.HostKeyCallback
	passed bool
	fault  error
}

func (s SSH) hostGuard() (*hostGuard, error) {
	files := []string{s.KnownHosts}
	if s.KnownHosts == "" {
		files = []string{filepath.Join(s.Home, ".ssh", "known_hosts"), "/etc/ssh/ssh_known_hosts"}
	}
	g := &hostGuard{file: files[0]}
	var there []string
	for _, f := range files {
		if _, err := os.Stat(f); err == nil {
			there = append(there, f)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("known hosts: %w", err)
		}
	}
	var err error
	if g.known, err = knownhosts.New(there...); err != nil {
		return nil, fmt.Errorf("known hosts: %w", err)
	}
	return g, nil
}

func (g *hostGuard) check(address string, remote net.Addr, key ssh.PublicKey) error {
	err := g.known(address, remote, key)
	if err == nil {
		g.passed = true
		return nil
	}
	host, port, splitErr := net.SplitHostPort(address)
	if splitErr != nil {
		return splitErr
	}
	e := &HostKeyError{Address: knownhosts.Normalize(address), Fingerprint: key.Type() + " " + ssh.FingerprintSHA256(key), File: g.file,
		Command: fmt.Sprintf("ssh-keyscan -p %s %s >>%s", port, host, g.file)}
	g.fault = e
	var mismatch *knownhosts.KeyError
	var revoked *knownhosts.RevokedError
	switch {
	case errors.As(err, &revoked):
		e.Revoked, e.File, e.Line = true, revoked.Revoked.Filename, revoked.Revoked.Line
	case errors.As(err, &mismatch) && len(mismatch.Want) > 0:
		e.File, e.Line = mismatch.Want[0].Filename, mismatch.Want[0].Line
		e.Command = fmt.Sprintf("ssh-keygen -f %s -R '%s'", e.File, e.Address)
	case !errors.As(err, &mismatch):
		g.fault = fmt.Errorf("host key of %s: %w", e.Address, err)
	}
	return g.fault
}

// algorithms are those of the keys that are known of the machine, so that it shows one of them and not another that it
// has as well; nil, for any, when none is known.
func (g *hostGuard) algorithms(address string) []string {
	var mismatch *knownhosts.KeyError
	if err := g.known(address, &net.TCPAddr{IP: net.IPv4zero}, noKey{}); !errors.As(err, &mismatch) {
		return nil
	}
	var list []string
	for _, k := range mismatch.Want {
		if k.Key.Type() == ssh.KeyAlgoRSA {
			list = append(list, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256)
			continue
		}
		list = append(list, k.Key.Type())
	}
	return list
}

// noKey is the key of no machine.
type noKey struct{}

func (noKey) Type() string                        { return "none" }
func (noKey) Marshal() []byte                     { return nil }
func (noKey) Verify([]byte, *ssh.Signature) error { return errors.New("no key") }
