package deploy_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"bmsota/deploy"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/crypto/ssh/knownhosts"
)

// machine is another machine as far as SSH goes: one account, whose files are those of this one. The stories run against
// OpenSSH; here is what they cannot have, such as a password that is right.
type machine struct {
	host     ssh.Signer // Ed25519
	second   ssh.Signer // ECDSA: OpenSSH's servers have several
	password string
	keys     []ssh.PublicKey // that may log in
	noSFTP   bool

	port  int
	home  string
	mu    sync.Mutex
	tried []string // names of the ways that were tried
	wg    sync.WaitGroup
}

func newKey(t *testing.T) (ssh.Signer, ed25519.PrivateKey) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return signer, private
}

// start switches m on; its host key is known to the .ssh/known_hosts in m.home.
func (m *machine) start(t *testing.T) {
	t.Helper()
	m.host, _ = newKey(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if m.second, err = ssh.NewSignerFromKey(key); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m.port, m.home = l.Addr().(*net.TCPAddr).Port, t.TempDir()
	m.know(t, m.host.PublicKey())
	m.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			m.wg.Go(func() { m.serve(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		m.wg.Wait()
	})
}

func (m *machine) address() string { return "127.0.0.1:" + strconv.Itoa(m.port) }

// know makes .ssh/known_hosts say that the machine has these keys.
func (m *machine) know(t *testing.T, keys ...ssh.PublicKey) {
	t.Helper()
	var text string
	for _, k := range keys {
		text += knownhosts.Line([]string{m.address()}, k) + "\n"
	}
	m.write(t, "known_hosts", text)
}

func (m *machine) write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(m.home, ".ssh", name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (m *machine) serve(c net.Conn) {
	defer c.Close()
	try := func(name string, ok bool) (*ssh.Permissions, error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.tried = append(m.tried, name)
		if ok {
			return nil, nil
		}
		return nil, errors.New("no")
	}
	config := &ssh.ServerConfig{
		PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			ok := false
			for _, k := range m.keys {
				ok = ok || bytes.Equal(k.Marshal(), key.Marshal())
			}
			return try("key", ok)
		},
	}
	if m.password != "" {
		config.KeyboardInteractiveCallback = func(_ ssh.ConnMetadata, ask ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
			answers, err := ask("", "", []string{"Password: "}, []bool{false})
			return try("password", err == nil && len(answers) == 1 && answers[0] == m.password)
		}
	}
	config.AddHostKey(m.host)
	config.AddHostKey(m.second)
	conn, channels, requests, err := ssh.NewServerConn(c, config)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	var sessions sync.WaitGroup
	for ch := range channels {
		channel, in, err := ch.Accept()
		if err != nil {
			break
		}
		sessions.Go(func() { m.session(channel, in) })
	}
	conn.Close()
	sessions.Wait()
}

func (m *machine) session(channel ssh.Channel, in <-chan *ssh.Request) {
	defer channel.Close()
	r, open := <-in
	if !open {
		return
	}
	ok := r.Type == "subsystem" && !m.noSFTP
	if err := r.Reply(ok, nil); err != nil || !ok {
		return
	}
	if server, err := sftp.NewServer(channel); err == nil {
		_ = server.Serve() // ends when the client goes
	}
}

// way is how to reach m by what it has given.
func (m *machine) way() deploy.SSH { return deploy.SSH{Home: m.home} }

func (m *machine) settings(dir string) deploy.Config {
	var c deploy.Config
	c.Server.Kind, c.Server.Username = deploy.KindSFTP, "ota"
	c.Server.SFTP = deploy.SFTPConfig{Host: "127.0.0.1", Port: m.port, Path: dir}
	return c
}

// open connects, and closes again.
func (m *machine) open(t *testing.T, way deploy.SSH) error {
	t.Helper()
	at, err := deploy.OpenSFTP(t.Context(), m.settings(t.TempDir()), way)
	if err != nil {
		return err
	}
	return at.Close()
}

func (m *machine) count(name string) (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range m.tried {
		if t == name {
			n++
		}
	}
	return n
}

// showed says whether a fingerprint is of one of the machine's keys.
func (m *machine) showed(fingerprint string) bool {
	return strings.HasSuffix(fingerprint, ssh.FingerprintSHA256(m.host.PublicKey())) || strings.HasSuffix(fingerprint, ssh.FingerprintSHA256(m.second.PublicKey()))
}

func pemOf(t *testing.T, key ed25519.PrivateKey, passphrase string) string {
	t.Helper()
	block, err := ssh.MarshalPrivateKey(key, "")
	if passphrase != "" {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(key, "", []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(block))
}

func TestInterruptedCopyToAMachineChangesNothing(t *testing.T) {
	signer, private := newKey(t)
	m := &machine{keys: []ssh.PublicKey{signer.PublicKey()}}
	m.start(t)
	m.write(t, "id_ed25519", pemOf(t, private, ""))
	dir := filepath.Join(t.TempDir(), "www", "firmware")
	interruptEverywhere(t, func() deploy.Place {
		at, err := deploy.OpenSFTP(t.Context(), m.settings(dir), m.way())
		if err != nil {
			t.Fatal(err)
		}
		return at
	}, func() map[string]string { return content(t, dir) })
}

func TestPathsOfTheOriginalToolAreKept(t *testing.T) {
	signer, private := newKey(t)
	m := &machine{keys: []ssh.PublicKey{signer.PublicKey()}}
	m.start(t)
	m.write(t, "id_ed25519", pemOf(t, private, ""))
	root := t.TempDir()
	var c deploy.Config
	c.Server.BaseURL, c.Server.Username, c.Server.SFTP.Port = "http://127.0.0.1", "ota", m.port
	c.Server.FirmwarePath, c.Server.VersionPath = root+"/a/app.bin", root+"/b/version"
	at, err := deploy.OpenSFTP(t.Context(), c, m.way())
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	p := prepared(t, deploy.Release{Image: image(t, "1.0.0")})
	if _, _, err := deploy.Deliver(t.Context(), at, p, false, nil); err != nil {
		t.Fatal(err)
	}
	if a, b := content(t, root+"/a"), content(t, root+"/b"); len(a) != 1 || len(b) != 2 || a["app.bin"] != b[p.Manifest.SHA256+".bin"] || !strings.Contains(b["version"], `"1.0.0"`) {
		t.Errorf("%d and %d files", len(a), len(b))
	}
}

func TestLogins(t *testing.T) {
	signer, private := newKey(t)
	_, strangersKey := newKey(t)
	m := &machine{keys: []ssh.PublicKey{signer.PublicKey()}, password: "right"}
	m.start(t)
	key := m.write(t, "mine", pemOf(t, private, ""))
	locked := m.write(t, "locked", pemOf(t, private, "open"))
	other := m.write(t, "other", pemOf(t, strangersKey, "open"))
	asks := 0
	answer := func(text string) func(string) (string, error) {
		return func(string) (string, error) { asks++; return text, nil }
	}
	for _, c := range []struct {
		name string
		way  deploy.SSH
		want error
		text string // in the error
		asks int
	}{
		{"a key file", deploy.SSH{KeyFile: key}, nil, "", 0},
		{"a password", deploy.SSH{Password: "right"}, nil, "", 0},
		{"a wrong password", deploy.SSH{Password: "wrong"}, deploy.ErrMachineLogin, "", 0},
		{"a wrong key and the password", deploy.SSH{KeyFile: other, Password: "right"}, nil, "", 0},
		{"nothing", deploy.SSH{}, deploy.ErrMachineLogin, "", 0},
		{"a key with a passphrase", deploy.SSH{KeyFile: locked, Ask: answer("open")}, nil, "", 1},
		{"and nobody to ask", deploy.SSH{KeyFile: locked}, deploy.ErrMachineLogin, "ssh-add", 0},
		{"and a wrong answer", deploy.SSH{KeyFile: locked, Ask: answer("sesame")}, deploy.ErrMachineLogin, "", -1},
		{"a key that the machine does not want is not unlocked", deploy.SSH{KeyFile: other}, deploy.ErrMachineLogin, "", 0},
		{"a key file that is not there", deploy.SSH{KeyFile: key + "x"}, deploy.ErrMachineLogin, "no such file", 0},
		{"an agent that is gone", deploy.SSH{Agent: key, KeyFile: key}, nil, "", 0},
		{"an agent with the locked key", deploy.SSH{Agent: startAgent(t, private), KeyFile: locked}, nil, "", 0},
		{"an agent alone", deploy.SSH{Agent: startAgent(t, strangersKey, private)}, nil, "", 0},
		{"a named key is the only one", deploy.SSH{Agent: startAgent(t, private), KeyFile: other}, deploy.ErrMachineLogin, "", 0},
	} {
		asks = 0
		c.way.Home = m.home
		err := m.open(t, c.way)
		if !errors.Is(err, c.want) || (c.want == nil) != (err == nil) || err != nil && !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v, want %v %s", c.name, err, c.want, c.text)
		}
		if c.asks >= 0 && asks != c.asks {
			t.Errorf("%s: a person was asked %d times, want %d", c.name, asks, c.asks)
		}
	}
}

// startAgent is an ssh-agent that holds keys; it returns its socket.
func startAgent(t *testing.T, keys ...ed25519.PrivateKey) string {
	t.Helper()
	ring := agent.NewKeyring()
	for _, k := range keys {
		if err := ring.Add(agent.AddedKey{PrivateKey: k}); err != nil {
			t.Fatal(err)
		}
	}
	dir, err := os.MkdirTemp("", "agent") // a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_ = agent.ServeAgent(ring, c) // ends when the client goes
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
		os.RemoveAll(dir)
	})
	return socket
}

func TestAMachineThatDoesNotProveItselfGetsNothing(t *testing.T) {
	signer, private := newKey(t)
	m := &machine{keys: []ssh.PublicKey{signer.PublicKey()}, password: "right"}
	m.start(t)
	m.write(t, "id_ed25519", pemOf(t, private, ""))
	another, _ := newKey(t)
	line := knownhosts.Normalize(m.address()) + " "
	host := string(bytes.TrimSpace(ssh.MarshalAuthorizedKey(m.host.PublicKey())))
	for _, c := range []struct {
		name, known string
		line        int
		revoked     bool
		command     string
	}{
		{"unknown", "", 0, false, fmt.Sprintf("ssh-keyscan -p %d 127.0.0.1 >>", m.port)},
		{"another port is another machine", "127.0.0.1 " + host + "\n", 0, false, "ssh-keyscan"},
		{"changed", "# kept\n" + line + string(ssh.MarshalAuthorizedKey(another.PublicKey())), 2, false, fmt.Sprintf("-R '[127.0.0.1]:%d'", m.port)},
		{"revoked", "@revoked * " + host + "\n" + line + host + "\n", 1, true, ""},
	} {
		m.write(t, "known_hosts", c.known)
		before := m.count("key") + m.count("password")
		way := m.way()
		way.Password = "right"
		err := m.open(t, way)
		var e *deploy.HostKeyError
		if !errors.As(err, &e) || e.Line != c.line || e.Revoked != c.revoked || !strings.Contains(e.Command, c.command) || !m.showed(e.Fingerprint) {
			t.Errorf("%s: %v, %+v", c.name, err, e)
		}
		if after := m.count("key") + m.count("password"); after != before {
			t.Errorf("%s: %d logins were tried", c.name, after-before)
		}
	}
	// Of several keys the one that is known is asked for, whichever the machine would rather show.
	for _, key := range []ssh.Signer{m.host, m.second} {
		m.know(t, key.PublicKey())
		if err := m.open(t, m.way()); err != nil {
			t.Errorf("only its %s key is known: %v", key.PublicKey().Type(), err)
		}
	}
	m.write(t, "known_hosts", "nonsense\n")
	if err := m.open(t, m.way()); err == nil || !strings.Contains(err.Error(), "known_hosts") || !strings.Contains(err.Error(), "line 1") {
		t.Errorf("a known_hosts nobody can read: %v", err)
	}
}

func TestAMachineThatIsNotThere(t *testing.T) {
	signer, private := newKey(t)
	m := &machine{keys: []ssh.PublicKey{signer.PublicKey()}, noSFTP: true}
	m.start(t)
	m.write(t, "id_ed25519", pemOf(t, private, ""))
	if err := m.open(t, m.way()); !errors.Is(err, deploy.ErrMachineUnreachable) {
		t.Errorf("no SFTP there: %v", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m.port = l.Addr().(*net.TCPAddr).Port
	l.Close()
	if err := m.open(t, m.way()); !errors.Is(err, deploy.ErrMachineUnreachable) {
		t.Errorf("nobody there: %v", err)
	}
	// One that takes the connection and says nothing is left when the caller's patience ends.
	if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	m.port = l.Addr().(*net.TCPAddr).Port
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		if c, err := l.Accept(); err == nil {
			cancel()
			_, _ = io.Copy(io.Discard, c)
		}
	}()
	if _, err := deploy.OpenSFTP(ctx, m.settings("/x"), m.way()); !errors.Is(err, context.Canceled) {
		t.Errorf("silent: %v", err)
	}
}
