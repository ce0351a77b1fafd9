package server

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"bmsota/durable"

	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"
)

// How often a running server looks at its certificates: at files of yours for a change, at its own for the end.
const (
	watchFiles = 30 * time.Second
	watchLocal = 12 * time.Hour
)

// certificates is what the web side and the broker show. Exactly one of two is the base: a certificate of the user's
// (files) or one of the local authority; ACME, when it is on, stands in front of the latter for its host names.
type certificates struct {
	cfg   TLS
	dir   string   // <data_dir>/tls
	names []string // the local certificate must cover
	log   *slog.Logger
	now   func() time.Time

	asked   chan struct{} // to look now; room for one
	current atomic.Pointer[tls.Certificate]
	stamp   string            // of the files current was read from; owned by watch after open
	acme    *autocert.Manager // nil when off
	caPEM   []byte            // for devices that reach the server by its host name; empty = public authorities
	localCA []byte            // for tools on this machine; empty = public authorities

	mu         sync.Mutex
	acmeSaid   string    // what was logged last about ACME; guarded by mu
	acmeSaidAt time.Time // guarded by mu
}

func openCertificates(cfg TLS, dir string, names []string, now func() time.Time, log *slog.Logger) (*certificates, error) {
	c := &certificates{cfg: cfg, dir: dir, names: names, log: log, now: now, asked: make(chan struct{}, 1)}
	if cfg.CertFile != "" {
		if err := c.readFiles(); err != nil {
			return nil, err
		}
		if cfg.CAFile != "" {
			pem, err := readPEM(cfg.CAFile)
			if err != nil {
				return nil, fmt.Errorf("tls.ca_file: %w", err)
			}
			c.caPEM, c.localCA = pem, pem
		}
		return c, nil
	}
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make certificate folder: %w", err)
	}
	ca, err := c.readLocal()
	if err != nil {
		return nil, err
	}
	c.localCA = ca
	if len(cfg.ACME.Hosts) == 0 {
		c.caPEM = ca
		return c, nil
	}
	return c, c.openACME()
}

func (c *certificates) openACME() error {
	client := &acme.Client{DirectoryURL: c.cfg.ACME.DirectoryURL, UserAgent: "bmsota"}
	if c.cfg.ACME.CAFile != "" {
		pem, err := readPEM(c.cfg.ACME.CAFile)
		if err != nil {
			return fmt.Errorf("tls.acme.ca_file: %w", err)
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(pem)
		transport := &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
		client.HTTPClient = &http.Client{Transport: transport, Timeout: time.Minute}
		c.caPEM = pem
	}
	c.acme = &autocert.Manager{
		Prompt:     autocert.AcceptTOS,
		Cache:      autocert.DirCache(c.cfg.ACME.CacheDir),
		HostPolicy: autocert.HostWhitelist(c.cfg.ACME.Hosts...),
		Email:      c.cfg.ACME.Email,
		Client:     client,
	}
	return nil
}

// config is for the web side when alpn is set, for MQTT otherwise: a client that offers "mqtt" as its protocol must not
// be refused for it. Clients are asked for certificates of devices; nil = they are not.
func (c *certificates) config(alpn bool, devices *deviceCertificates) *tls.Config {
	conf := &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: c.get,
		// Small records at the beginning let a browser show a page before the whole of it is there. A device wants all of what it asks for.
		DynamicRecordSizingDisabled: true,
	}
	if alpn {
		conf.NextProtos = []string{"http/1.1"}
		if c.acme != nil {
			conf.NextProtos = append(conf.NextProtos, acme.ALPNProto)
		}
	}
	if devices != nil {
		devices.ask(conf)
	}
	conf.GetConfigForClient = cheapestCurve(conf)
	return conf
}

// cheapestCurve gives a client without TLS 1.3 that offers P-256 a configuration that has no other curve, and everybody else nil,
// which means conf. In TLS 1.2 crypto/tls takes the first that it knows of the client's list, and mbedTLS before 3.0, which is in
// ESP-IDF 4.4, has the largest first. P-256 is the cheapest for crypto/tls: X25519 takes a quarter more of the processor, P-384 8
// times as much, P-521 25 times (go test -run '^$' -bench ECDH crypto/ecdh). TLS 1.3 is left as it is.
// conf must be complete. The keys of session tickets stay those of conf, as they do where the other configuration has none.
func cheapestCurve(conf *tls.Config) func(*tls.ClientHelloInfo) (*tls.Config, error) {
	only := conf.Clone()
	only.CurvePreferences = []tls.CurveID{tls.CurveP256}
	return func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if slices.Contains(hello.SupportedVersions, tls.VersionTLS13) || !slices.Contains(hello.SupportedCurves, tls.CurveP256) {
			return nil, nil
		}
		return only, nil
	}
}

func (c *certificates) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c.acme == nil || !slices.Contains(c.cfg.ACME.Hosts, hello.ServerName) {
		return c.current.Load(), nil
	}
	cert, err := c.acme.GetCertificate(hello)
	if err == nil || slices.Contains(hello.SupportedProtos, acme.ALPNProto) {
		return cert, err // the authority asks for its own challenge, and for nothing else
	}
	// Who trusts the local authority, as the tools on this machine do, need not wait for the other one to be back.
	c.tellACME(hello.ServerName, err)
	return c.current.Load(), nil
}

// tellACME logs why there is no certificate for a name, once an hour while that is the same: every connection asks.
func (c *certificates) tellACME(name string, err error) {
	now := c.now()
	text := name + ": " + err.Error()
	c.mu.Lock()
	said := text == c.acmeSaid && now.Sub(c.acmeSaidAt) < time.Hour
	if !said {
		c.acmeSaid, c.acmeSaidAt = text, now
	}
	c.mu.Unlock()
	if !said {
		c.log.Error("no certificate from the ACME authority; the server's own is shown", "host", name, "directory", cmp.Or(c.cfg.ACME.DirectoryURL, acme.LetsEncryptURL), "err", err)
	}
}

// expires is when the base certificate ends.
func (c *certificates) expires() time.Time {
	return c.current.Load().Leaf.NotAfter
}

// watch keeps the base certificate current until ctx ends. What cannot be read is logged once, and the old one stays.
func (c *certificates) watch(ctx context.Context) error {
	every, renew := watchLocal, func() error { _, err := c.readLocal(); return err }
	if c.cfg.CertFile != "" {
		every, renew = watchFiles, c.readChangedFiles
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	said := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-c.asked:
			said = "" // who asks is answered each time
		}
		err := renew()
		switch {
		case err == nil:
			said = ""
		case err.Error() != said:
			c.log.Error("certificate is not renewed", "err", err)
			said = err.Error()
		}
	}
}

// look has watch look now.
func (c *certificates) look() {
	select {
	case c.asked <- struct{}{}:
	default: // it is about to
	}
}

// readFiles takes the user's own certificate.
func (c *certificates) readFiles() error {
	stamp, err := stampOf(c.cfg.CertFile, c.cfg.KeyFile)
	if err != nil {
		return fmt.Errorf("own certificate: %w", err)
	}
	cert, err := tls.LoadX509KeyPair(c.cfg.CertFile, c.cfg.KeyFile)
	if err != nil {
		return fmt.Errorf("own certificate %s with key %s: %w", c.cfg.CertFile, c.cfg.KeyFile, err)
	}
	switch now := c.now(); {
	case now.After(cert.Leaf.NotAfter):
		return fmt.Errorf("own certificate %s has expired on %s", c.cfg.CertFile, cert.Leaf.NotAfter.Format(time.DateOnly))
	case now.Before(cert.Leaf.NotBefore):
		return fmt.Errorf("own certificate %s is not valid before %s: is the clock right?", c.cfg.CertFile, cert.Leaf.NotBefore.Format(time.DateTime))
	}
	c.current.Store(&cert)
	c.stamp = stamp
	return nil
}

// readChangedFiles reads the files again when they are not those in use. Two files cannot be replaced at once: a pair
// that does not fit is read again at the next look.
func (c *certificates) readChangedFiles() error {
	stamp, err := stampOf(c.cfg.CertFile, c.cfg.KeyFile)
	if err != nil || stamp == c.stamp {
		return err
	}
	if err := c.readFiles(); err != nil {
		return err
	}
	c.log.Info("certificate was replaced", "path", c.cfg.CertFile, "expires", c.expires())
	return nil
}

func stampOf(paths ...string) (string, error) {
	stamp := ""
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return "", err
		}
		stamp += fmt.Sprintf("%d %d;", info.ModTime().UnixNano(), info.Size())
	}
	return stamp, nil
}

// readPEM reads certificates to trust; at least one must be in it.
func readPEM(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if !x509.NewCertPool().AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("%s holds no PEM certificate", path)
	}
	return b, nil
}

func (c *certificates) path(name string) string { return filepath.Join(c.dir, name) }

// caFile is the file that tools on this machine should trust; empty = the system's authorities.
func (c *certificates) caFile() string {
	if c.cfg.CertFile != "" {
		return c.cfg.CAFile
	}
	return c.path(caCertName)
}

var errClock = errors.New("the clock of this machine is wrong: a certificate made now would not hold; set the clock first")
