package server

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/acme"
)

var day = 24 * time.Hour

// clock is a time that a test moves.
type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

func newClock() *clock { return &clock{time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)} }

func localCerts(t *testing.T, dir string, c *clock, names ...string) *certificates {
	t.Helper()
	certs, err := openCertificates(TLS{}, dir, names, c.now, quiet())
	if err != nil {
		t.Fatal(err)
	}
	return certs
}

func verify(c *certificates, name string, at time.Time) error {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(c.localCA)
	_, err := c.current.Load().Leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: name, CurrentTime: at})
	return err
}

func TestLocalAuthorityIsWhatDevicesNeed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tls")
	c := newClock()
	names := machineNames("ota.example.org", "10.1.2.3", "fd00::5")
	certs := localCerts(t, dir, c, names...)
	for _, name := range append(names, "localhost", "127.0.0.1", "::1") {
		if err := verify(certs, name, c.t); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if verify(certs, "other.example.org", c.t) == nil {
		t.Error("a foreign name is covered")
	}
	block, rest := pem.Decode(certs.localCA)
	ca, err := x509.ParseCertificate(block.Bytes)
	if err != nil || len(bytes.TrimSpace(rest)) != 0 {
		t.Fatalf("ca.pem: %v", err)
	}
	leaf := certs.current.Load().Leaf
	if key, ok := ca.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() || !ca.IsCA || !ca.MaxPathLenZero || ca.NotAfter.Before(c.t.Add(3650*day)) {
		t.Errorf("authority: %+v", ca)
	}
	if leaf.IsCA || leaf.NotAfter.Sub(leaf.NotBefore) > 825*day || leaf.PublicKeyAlgorithm != x509.ECDSA || !slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}) {
		t.Errorf("server certificate: %+v", leaf)
	}
	// mbedTLS of ESP-IDF 4.4 knows DNS names only.
	if !slices.Contains(leaf.DNSNames, "10.1.2.3") || slices.Contains(leaf.DNSNames, "fd00::5") {
		t.Errorf("DNS names are %q", leaf.DNSNames)
	}
	if runtime.GOOS == "windows" {
		return
	}
	for _, name := range []string{caCertName, caKeyName, serverCertName, serverKeyName} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 4 {
		t.Errorf("the folder holds %v, %v", entries, err)
	}
}

func TestMachineNamesAreUsableAndUnique(t *testing.T) {
	seen := make(map[string]bool)
	for _, name := range machineNames("a", "", "a", "localhost") {
		if seen[name] || name == "" {
			t.Errorf("%q twice or empty", name)
		}
		seen[name] = true
		if addr, err := netip.ParseAddr(name); err == nil && (addr.Zone() != "" || addr.IsLinkLocalUnicast()) {
			t.Errorf("%q is link-local", name)
		}
	}
}

func TestServerCertificateIsMadeAgainOnlyWhenItMustBe(t *testing.T) {
	for _, c := range []struct {
		name  string
		later time.Duration
		names []string
		spoil string // file to write nonsense into
		again bool
	}{
		{"same day", 0, []string{"a.example", "10.0.0.1"}, "", false},
		{"long before the end", 700 * day, []string{"a.example", "10.0.0.1"}, "", false},
		{"fewer names", 0, []string{"a.example"}, "", false},
		{"31 days before the end", serverLife - 31*day, []string{"a.example"}, "", false},
		{"29 days before the end", serverLife - 29*day, []string{"a.example"}, "", true},
		{"after the end", serverLife + day, []string{"a.example"}, "", true},
		{"another address", 0, []string{"a.example", "10.0.0.2"}, "", true},
		{"another name", 0, []string{"b.example"}, "", true},
		{"spoilt key", 0, []string{"a.example"}, serverKeyName, true},
		{"spoilt certificate", 0, []string{"a.example"}, serverCertName, true},
		{"clock set back", -2 * day, []string{"a.example"}, "", true},
	} {
		dir := t.TempDir()
		clk := newClock()
		first := localCerts(t, dir, clk, "a.example", "10.0.0.1")
		if c.spoil != "" {
			if err := os.WriteFile(filepath.Join(dir, c.spoil), []byte("nonsense"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		clk.t = clk.t.Add(c.later)
		second := localCerts(t, dir, clk, c.names...)
		if again := !second.current.Load().Leaf.Equal(first.current.Load().Leaf); again != c.again {
			t.Errorf("%s: made again: %v", c.name, again)
		}
		if !bytes.Equal(first.localCA, second.localCA) {
			t.Errorf("%s: the authority changed", c.name)
		}
		for _, name := range c.names {
			if err := verify(second, name, clk.t); err != nil && c.later >= 0 {
				t.Errorf("%s: %s: %v", c.name, name, err)
			}
		}
	}
}

// In the last years of its authority a certificate ends with it, and is not made again at every look.
func TestCertificateEndsWithItsAuthority(t *testing.T) {
	dir, clk := t.TempDir(), newClock()
	localCerts(t, dir, clk, "a.example")
	clk.t = clk.t.Add(caLife - 20*day)
	first := localCerts(t, dir, clk, "a.example")
	second := localCerts(t, dir, clk, "a.example")
	if a, b := first.current.Load().Leaf, second.current.Load().Leaf; !a.Equal(b) || verify(second, "a.example", clk.t.Add(19*day)) != nil {
		t.Errorf("ends %v and %v", a.NotAfter, b.NotAfter)
	}
	clk.t = clk.t.Add(21 * day)
	if _, err := openCertificates(TLS{}, dir, []string{"a.example"}, clk.now, quiet()); err == nil || !strings.Contains(err.Error(), "has expired on 2036-") {
		t.Errorf("after its end: %v", err)
	}
}

// An authority that devices hold is never replaced behind their back.
func TestAuthorityIsNeverReplacedSilently(t *testing.T) {
	for _, c := range []struct {
		name  string
		harm  func(dir string) error
		names []string
		want  string // empty = works
	}{
		{"key gone, certificate still good", func(d string) error { return os.Remove(filepath.Join(d, caKeyName)) }, []string{"a.example"}, ""},
		{"key gone, certificate needed", func(d string) error { return os.Remove(filepath.Join(d, caKeyName)) }, []string{"b.example"}, "put it back"},
		{"key spoilt", func(d string) error { return os.WriteFile(filepath.Join(d, caKeyName), []byte("x"), 0o600) }, []string{"b.example"}, "no PEM block"},
		{"authority spoilt", func(d string) error { return os.WriteFile(filepath.Join(d, caCertName), []byte("x"), 0o600) }, []string{"a.example"}, "is not a PEM certificate"},
		{"key of another", func(d string) error {
			b, err := os.ReadFile(filepath.Join(d, serverKeyName))
			return errors.Join(err, os.WriteFile(filepath.Join(d, caKeyName), b, 0o600))
		}, []string{"b.example"}, "is not the key of"},
	} {
		dir, clk := t.TempDir(), newClock()
		first := localCerts(t, dir, clk, "a.example")
		if err := c.harm(dir); err != nil {
			t.Fatal(err)
		}
		before, _ := os.ReadFile(filepath.Join(dir, caCertName))
		certs, err := openCertificates(TLS{}, dir, c.names, clk.now, quiet())
		switch {
		case c.want == "" && (err != nil || !bytes.Equal(certs.localCA, first.localCA)):
			t.Errorf("%s: %v", c.name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v", c.name, err)
		}
		if after, _ := os.ReadFile(filepath.Join(dir, caCertName)); !bytes.Equal(before, after) {
			t.Errorf("%s: ca.pem was written", c.name)
		}
	}
	// A crash before the certificate was written left a key that nobody knows: a new authority is made.
	dir, clk := t.TempDir(), newClock()
	localCerts(t, dir, clk, "a.example")
	if err := os.Remove(filepath.Join(dir, caCertName)); err != nil {
		t.Fatal(err)
	}
	if err := verify(localCerts(t, dir, clk, "a.example"), "a.example", clk.t); err != nil {
		t.Error(err)
	}
}

func TestClockThatCannotBeRightMakesNoCertificate(t *testing.T) {
	dir := t.TempDir()
	if _, err := openCertificates(TLS{}, dir, []string{"a"}, func() time.Time { return time.Unix(100, 0) }, quiet()); !errors.Is(err, errClock) {
		t.Error(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("%v, %v", entries, err)
	}
}

// ownFiles puts a certificate for name, and its key, where a user's own would be.
func ownFiles(t *testing.T, cert, key, name string, at time.Time) {
	t.Helper()
	dir := t.TempDir()
	localCerts(t, dir, &clock{at}, name)
	for from, to := range map[string]string{serverCertName: cert, serverKeyName: key} {
		if to == "" {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, from))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, b, 0o600); err != nil {
			t.Fatal(err)
		}
		// The stamp is time and size; both may be the same within a test.
		if err := os.Chtimes(to, at, at); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOwnCertificateIsReadAgainWhenItChanges(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "c.pem"), filepath.Join(dir, "k.pem")
	synctest.Test(t, func(t *testing.T) {
		// The bubble begins in 2000, and files have times of the world outside.
		start := newClock().t
		skew := time.Until(start)
		now := func() time.Time { return time.Now().Add(skew) }
		ownFiles(t, cert, key, "a.example", start)
		c, err := openCertificates(TLS{CertFile: cert, KeyFile: key}, filepath.Join(dir, "none"), nil, now, quiet())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- c.watch(ctx) }()
		shown := func() string {
			time.Sleep(watchFiles + time.Second)
			synctest.Wait()
			return c.current.Load().Leaf.DNSNames[0]
		}
		if got := shown(); got != "a.example" {
			t.Errorf("unchanged: %s", got)
		}
		ownFiles(t, cert, key, "b.example", start.Add(2*day))
		if got := shown(); got != "a.example" {
			t.Errorf("a certificate that is not valid yet was taken: %s", got)
		}
		time.Sleep(2 * day)
		if got := shown(); got != "b.example" {
			t.Errorf("changed: %s", got)
		}
		ownFiles(t, cert, "", "c.example", start.Add(day)) // the key is not there yet
		if got := shown(); got != "b.example" {
			t.Errorf("half changed: %s", got)
		}
		if err := os.Remove(cert); err != nil {
			t.Fatal(err)
		}
		if got := shown(); got != "b.example" {
			t.Errorf("gone: %s", got)
		}
		ownFiles(t, cert, key, "d.example", start.Add(day+time.Hour))
		if got := shown(); got != "d.example" {
			t.Errorf("replaced: %s", got)
		}
		ownFiles(t, cert, key, "e.example", start.Add(day+2*time.Hour))
		c.look()
		synctest.Wait()
		if got := c.current.Load().Leaf.DNSNames[0]; got != "e.example" {
			t.Errorf("looked at without waiting: %s", got)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if _, err := os.Stat(filepath.Join(dir, "none")); err == nil {
		t.Error("a local authority was made beside an own certificate")
	}
}

func TestLocalCertificateIsRenewedWhileTheServerRuns(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		skew := time.Until(newClock().t)
		c, err := openCertificates(TLS{}, dir, []string{"a.example"}, func() time.Time { return time.Now().Add(skew) }, quiet())
		if err != nil {
			t.Fatal(err)
		}
		first := c.current.Load().Leaf
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- c.watch(ctx) }()
		time.Sleep(serverLife)
		synctest.Wait()
		if second := c.current.Load().Leaf; second.Equal(first) || verify(c, "a.example", c.now()) != nil {
			t.Errorf("after %v the certificate ends %v", serverLife, second.NotAfter)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestOwnCertificateThatCannotServeIsRefused(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "c.pem"), filepath.Join(dir, "k.pem")
	clk := newClock()
	ownFiles(t, cert, key, "a.example", clk.t)
	for _, c := range []struct {
		name string
		cfg  TLS
		at   time.Time
		want string
	}{
		{"expired", TLS{CertFile: cert, KeyFile: key}, clk.t.Add(900 * day), "has expired on"},
		{"not yet", TLS{CertFile: cert, KeyFile: key}, clk.t.Add(-10 * day), "is the clock right?"},
		{"key is none", TLS{CertFile: cert, KeyFile: cert}, clk.t, "own certificate"},
		{"absent", TLS{CertFile: cert + "x", KeyFile: key}, clk.t, "own certificate"},
		{"authority is none", TLS{CertFile: cert, KeyFile: key, CAFile: key}, clk.t, "holds no PEM certificate"},
	} {
		if _, err := openCertificates(c.cfg, dir, nil, func() time.Time { return c.at }, quiet()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// With ACME the authority is asked for its own names only; under every other name the local certificate is shown.
func TestACMEServesItsNamesAndLeavesTheRest(t *testing.T) {
	var asked atomic.Int32
	directory := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		http.Error(w, "closed", http.StatusServiceUnavailable)
	}))
	defer directory.Close()
	dir := t.TempDir()
	caFile := filepath.Join(dir, "acme-ca.pem")
	if err := os.WriteFile(caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: directory.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := openCertificates(TLS{ACME: ACME{Hosts: []string{"ota.example.org"}, DirectoryURL: directory.URL, CacheDir: filepath.Join(dir, "acme"), CAFile: caFile}},
		filepath.Join(dir, "tls"), []string{"localhost"}, time.Now, quiet())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"localhost", "", "evil.example.org"} {
		if cert, err := c.get(&tls.ClientHelloInfo{ServerName: name}); err != nil || cert != c.current.Load() {
			t.Errorf("%q: %v", name, err)
		}
	}
	if asked.Load() != 0 {
		t.Errorf("the authority was asked %d times for names that are not its own", asked.Load())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := c.acme.Client.Discover(ctx); err == nil {
		t.Error("a directory that answers 503 was read")
	}
	if asked.Load() == 0 {
		t.Error("the configured directory was not asked")
	}
	c.acme.Client.HTTPClient.CloseIdleConnections()
	if err := c.acme.HostPolicy(t.Context(), "ota.example.org"); err != nil {
		t.Error(err)
	}
	if c.acme.HostPolicy(t.Context(), "evil.example.org") == nil {
		t.Error("a certificate for a foreign name would be asked for")
	}
	if !slices.Contains(c.config(true, nil).NextProtos, acme.ALPNProto) || len(c.config(false, nil).NextProtos) != 0 {
		t.Errorf("protocols are %q and %q", c.config(true, nil).NextProtos, c.config(false, nil).NextProtos)
	}
	if !bytes.Contains(c.caPEM, []byte("CERTIFICATE")) || bytes.Equal(c.caPEM, c.localCA) {
		t.Error("devices are not given the authority of the ACME side")
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	certs := localCerts(t, t.TempDir(), &clock{time.Now()}, "localhost")
	for version, ok := range map[uint16]bool{tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		client, server := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer server.Close()
			s := tls.Server(server, certs.config(true, nil))
			_ = s.Handshake()
			_, _ = io.Copy(io.Discard, s)
		}()
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(certs.localCA)
		conn := tls.Client(client, &tls.Config{RootCAs: pool, ServerName: "localhost", MinVersion: version, MaxVersion: version})
		if err := conn.Handshake(); (err == nil) != ok {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
		client.Close()
		<-done
	}
}

// shake shakes hands once, and returns how both ends see the connection.
func shake(t *testing.T, server, client *tls.Config) (theirs, ours tls.ConnectionState, err error) {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := conn.Write([]byte("x")); err == nil { // in TLS 1.3 a client learns from what it reads whether it is let in
			ours = conn.(*tls.Conn).ConnectionState()
		}
	}()
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", l.Addr().String(), client)
	if err == nil {
		defer conn.Close()
		_, err = io.ReadFull(conn, make([]byte, 1))
		theirs = conn.ConnectionState()
	}
	<-done
	return theirs, ours, err
}

func TestClientsOfTLS12AreGivenTheCheapestCurve(t *testing.T) {
	certs := localCerts(t, t.TempDir(), &clock{time.Now()}, "localhost")
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(certs.localCA)
	server := certs.config(true, nil)
	for _, c := range []struct {
		version uint16
		offered []tls.CurveID
		want    tls.CurveID // 0 = the handshake fails
	}{
		{tls.VersionTLS12, nil, tls.CurveP256}, // what Go offers by itself has X25519 before it
		{tls.VersionTLS12, []tls.CurveID{tls.X25519, tls.CurveP256}, tls.CurveP256},
		{tls.VersionTLS12, []tls.CurveID{tls.CurveP256}, tls.CurveP256},
		{tls.VersionTLS12, []tls.CurveID{tls.X25519}, tls.X25519},
		{tls.VersionTLS12, []tls.CurveID{tls.CurveP384}, tls.CurveP384},
		{tls.VersionTLS12, []tls.CurveID{tls.CurveP521}, tls.CurveP521},
		{tls.VersionTLS12, []tls.CurveID{tls.X25519, tls.CurveP384}, tls.X25519},
		{tls.VersionTLS12, []tls.CurveID{tls.X25519MLKEM768}, 0},
		{tls.VersionTLS13, nil, tls.X25519MLKEM768},
		{tls.VersionTLS13, []tls.CurveID{tls.X25519, tls.CurveP256}, tls.X25519},
		{tls.VersionTLS13, []tls.CurveID{tls.CurveP384}, tls.CurveP384},
	} {
		client := &tls.Config{RootCAs: pool, ServerName: "localhost", MinVersion: tls.VersionTLS12, MaxVersion: c.version, CurvePreferences: c.offered}
		theirs, _, err := shake(t, server, client)
		switch {
		case c.want == 0 && err == nil:
			t.Errorf("%s, %v: agreed on %v", tls.VersionName(c.version), c.offered, theirs.CurveID)
		case c.want != 0 && (err != nil || theirs.CurveID != c.want || theirs.Version != c.version):
			t.Errorf("%s, %v: %s, curve %v: %v", tls.VersionName(c.version), c.offered, tls.VersionName(theirs.Version), theirs.CurveID, err)
		}
	}
}

// Whoever is given the other configuration is asked for a certificate, resumes and is shown a replaced certificate as everybody is.
func TestTheCheapestCurveLeavesTheRestAsItIs(t *testing.T) {
	dir := t.TempDir()
	certs := localCerts(t, dir, &clock{time.Now()}, "localhost")
	devices, err := openDeviceCertificates(t.TempDir(), time.Now, quiet())
	if err != nil {
		t.Fatal(err)
	}
	key := newKey(t)
	issued, err := devices.issue("bms-1", key.Public())
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(issued.PEM))
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(certs.localCA)
	client := &tls.Config{RootCAs: pool, ServerName: "localhost", MaxVersion: tls.VersionTLS12, ClientSessionCache: tls.NewLRUClientSessionCache(1),
		Certificates: []tls.Certificate{{Certificate: [][]byte{block.Bytes}, PrivateKey: key}}}
	for _, alpn := range []bool{true, false} {
		server := certs.config(alpn, devices)
		client.NextProtos = nil
		if alpn {
			client.NextProtos = []string{"http/1.1"}
		}
		for _, resumed := range []bool{false, true} {
			theirs, ours, err := shake(t, server, client)
			if err != nil || theirs.CurveID != tls.CurveP256 || theirs.DidResume != resumed || (theirs.NegotiatedProtocol == "http/1.1") != alpn {
				t.Errorf("alpn %v: resumed %v with %v, protocol %q: %v", alpn, theirs.DidResume, theirs.CurveID, theirs.NegotiatedProtocol, err)
			}
			if len(ours.VerifiedChains) != 1 || ours.PeerCertificates[0].Subject.CommonName != "bms-1" {
				t.Errorf("alpn %v, resumed %v: the device's certificate was not asked for", alpn, resumed)
			}
		}
		stranger := client.Clone()
		stranger.Certificates, stranger.ClientSessionCache = []tls.Certificate{otherAuthority(t).client("bms-1", nil)}, nil
		stranger.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &stranger.Certificates[0], nil }
		if _, _, err := shake(t, server, stranger); err == nil {
			t.Errorf("alpn %v: a certificate of another authority was taken", alpn)
		}
	}
	server := certs.config(false, nil)
	before := certs.current.Load().Leaf
	if err := os.Remove(filepath.Join(dir, serverCertName)); err != nil {
		t.Fatal(err)
	}
	if _, err := certs.readLocal(); err != nil {
		t.Fatal(err)
	}
	client.ClientSessionCache = nil
	theirs, _, err := shake(t, server, client)
	if err != nil || theirs.PeerCertificates[0].Equal(before) || !theirs.PeerCertificates[0].Equal(certs.current.Load().Leaf) {
		t.Errorf("a certificate that was replaced is not shown: %v", err)
	}
}
