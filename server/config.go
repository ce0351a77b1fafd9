package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"bmsota/protocol"
	"bmsota/server/internal/store"
)

// Config is everything that can be set, and these comments are the manual. In the JSON file a key that is left out, an
// empty text and a zero mean the default. A key that is not known is refused. Paths are taken from the working folder.
type Config struct {
	// Version is bmsota's own. The program sets it; it is no key of the file.
	Version string `json:"-"`

	// DataDir is the folder for everything the server keeps: database, firmware, certificates, operator.json. It is
	// made on first start, readable by the server's account only. Only one server can use it at a time. Removing
	// operator.json from it makes the next start replace the operator's token.
	// Default "./bmsota-data".
	DataDir string `json:"data_dir"`

	// Host is the name or address by which devices reach this server. It goes into the certificate and into the files
	// made for devices. Default: the machine's first IPv4 address that is not loopback, else its name.
	Host string `json:"host"`

	// PublicURL is the address of the web side where it is not https://<host>:<port of https.listen>, as behind a
	// reverse proxy. Without a path. Default: none.
	PublicURL string `json:"public_url"`
	// MirrorURL is where a copy of the releases lies (bmsota publish --folder), as the address of firmware.bin there. It goes
	// into the files of devices that hold a release key: they look there when this server cannot be reached or its
	// certificate is not trusted any more. Plain http will do; empty = none.
	MirrorURL string `json:"mirror_url"`

	// Firmware is where the bytes of releases are kept.
	Firmware Firmware `json:"firmware"`

	// HTTPS is the web side: firmware for devices, the API for operators.
	HTTPS HTTPS `json:"https"`

	// TLS says which certificate the web side and the broker show. With nothing set the server makes its own authority
	// in <data_dir>/tls and a certificate for every name and address of this machine; devices are given ca.pem.
	TLS TLS `json:"tls"`

	// MQTT is the broker: the embedded one, or a connection to yours.
	MQTT MQTT `json:"mqtt"`

	// OIDC lets people sign in by a provider of theirs.
	OIDC OIDC `json:"oidc"`

	// Fleet holds the rules for releases and devices.
	Fleet Fleet `json:"fleet"`

	// Metrics is where Prometheus finds the figures.
	Metrics Metrics `json:"metrics"`

	// Log says how the log is written, which goes to the standard error.
	Log Log `json:"log"`

	// Debug is where profiles of the running server are had.
	Debug Debug `json:"debug"`

	// Webhooks is where webhooks may go.
	Webhooks Webhooks `json:"webhooks"`

	// Database is where the rows are kept: in a file of the data folder, or in PostgreSQL.
	Database Database `json:"database"`

	// Retention is for how long what is past is kept.
	Retention Retention `json:"retention"`

	// Replicas lets several servers work on one database.
	Replicas Replicas `json:"replicas"`
}

// off closes a listener.
const off = "off"

// Duration is a length of time written as "90s", "30m", "12h" or "7d".
type Duration time.Duration

// UnmarshalText reads a duration. Days are 24 hours.
func (d *Duration) UnmarshalText(b []byte) error {
	s := string(b)
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		if err != nil {
			return fmt.Errorf("%q is not a time like 30m, 12h or 7d", s)
		}
		*d = Duration(time.Duration(n) * 24 * time.Hour)
		return nil
	}
	if s == "" {
		*d = 0
		return nil
	}
	v, err := time.ParseDuration(s)
	if err != nil || v < 0 {
		return fmt.Errorf("%q is not a time like 30m, 12h or 7d", s)
	}
	*d = Duration(v)
	return nil
}

// UnmarshalJSON refuses a bare number: 30 of what?
func (d *Duration) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("%s is not a time in quotes like \"30m\", \"12h\" or \"7d\"", b)
	}
	return d.UnmarshalText([]byte(s))
}

// MarshalText writes what UnmarshalText reads.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// maxConfigFile bounds the configuration file, in bytes.
const maxConfigFile = 1 << 20

// Load reads a configuration file over the defaults and checks it. The error says which key is wrong and, for one that
// is not known, which may be meant.
func Load(path string) (Config, error) {
	info, err := os.Stat(path)
	if err != nil {
		return Config{}, fmt.Errorf("read configuration: %w", err)
	}
	if info.Size() > maxConfigFile {
		return Config{}, fmt.Errorf("configuration %s is larger than %d bytes", path, maxConfigFile)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("read configuration: %w", err)
	}
	var c Config
	if err := decodeConfig(b, &c); err != nil {
		return Config{}, fmt.Errorf("configuration %s: %w", path, err)
	}
	c = c.withDefaults()
	if err := c.Check(); err != nil {
		return Config{}, fmt.Errorf("configuration %s: %w", path, err)
	}
	return c, nil
}

// Default is the configuration of a server that was told nothing.
func Default() Config { return Config{}.withDefaults() }

func (c Config) withDefaults() Config {
	set := func(s *string, value string) {
		if *s == "" {
			*s = value
		}
	}
	set(&c.DataDir, "./bmsota-data")
	set(&c.HTTPS.Listen, ":8443")
	set(&c.HTTPS.PlainListen, off)
	set(&c.Metrics.Listen, off)
	set(&c.Debug.Listen, off)
	set(&c.Log.Format, "text")
	set(&c.Log.Level, "info")
	c.Firmware.Bucket.fillIn(set)
	set(&c.MQTT.TLSListen, ":8883")
	set(&c.MQTT.Listen, "127.0.0.1:1883")
	set(&c.MQTT.Prefix, protocol.DefaultPrefix)
	if c.HTTPS.CacheBytes == 0 {
		c.HTTPS.CacheBytes = 64 << 20
	}
	if c.HTTPS.MaxConnections == 0 {
		c.HTTPS.MaxConnections = 1500
	}
	if c.Database.URL != "" && c.Database.MaxConnections == 0 {
		c.Database.MaxConnections = 9
	}
	if len(c.TLS.ACME.Hosts) > 0 {
		set(&c.TLS.ACME.CacheDir, filepath.Join(c.DataDir, "tls", "acme"))
	}
	c.PublicURL = strings.TrimRight(c.PublicURL, "/")
	if u, err := url.Parse(c.OIDC.Issuer); err == nil && c.OIDC.Issuer != "" {
		set(&c.OIDC.Name, u.Hostname())
		set(&c.OIDC.Claim, "email")
		set(&c.OIDC.GroupsClaim, "groups")
		if c.OIDC.Scopes == nil {
			c.OIDC.Scopes = []string{"email"}
		}
	}
	return c
}

// Check says what is wrong with a configuration, by key, without opening anything.
func (c Config) Check() error {
	c = c.withDefaults()
	for _, l := range []struct{ key, addr string }{
		{"https.listen", c.HTTPS.Listen}, {"https.plain_listen", c.HTTPS.PlainListen},
		{"mqtt.tls_listen", c.MQTT.TLSListen}, {"mqtt.listen", c.MQTT.Listen}, {"metrics.listen", c.Metrics.Listen}, {"debug.listen", c.Debug.Listen},
	} {
		if err := checkListen(l.addr); err != nil {
			return fmt.Errorf("%s: %w", l.key, err)
		}
	}
	if c.HTTPS.Listen == off && c.HTTPS.PlainListen == off {
		return errors.New("https.listen and https.plain_listen are both off: nothing would serve firmware")
	}
	if c.HTTPS.CacheBytes < 0 {
		return errors.New("https.cache_bytes is negative")
	}
	if n := c.HTTPS.MaxConnections; n < 1 || n > 1_000_000 {
		return fmt.Errorf("https.max_connections of %d is not within 1 to 1000000", n)
	}
	if c.HTTPS.ClientCertificates && (c.HTTPS.Listen == off || !c.certifiesDevices()) {
		return errors.New("https.client_certificates needs https.listen and the embedded broker with mqtt.tls_listen: only there have devices certificates")
	}
	if err := c.OIDC.check(); err != nil {
		return err
	}
	if _, err := c.HTTPS.proxies(); err != nil {
		return err
	}
	if c.Host != "" && !isHost(c.Host) {
		return fmt.Errorf("host: %q is not a name or address (without port)", c.Host)
	}
	if c.PublicURL != "" {
		// What is wrong is not repeated here and below: it may hold a password.
		u, err := url.Parse(c.PublicURL)
		if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil || !bareHost(u) {
			return errors.New("public_url: it is not https://host:port")
		}
	}
	if err := (protocol.OTAConfig{ServerURL: "https://localhost/", MirrorURL: c.MirrorURL}).Check(); err != nil {
		return err // it names the key, and is what a device would say
	}
	if err := c.TLS.check(); err != nil {
		return err
	}
	if err := c.Firmware.Bucket.check(); err != nil {
		return fmt.Errorf("firmware.bucket.%w", err)
	}
	if !onLoopback(c.Metrics.Listen) {
		return fmt.Errorf("metrics.listen: %q would show the fleet to the network without a login: use a loopback address such as 127.0.0.1:9464, or /metrics of the web side with a viewer's token", c.Metrics.Listen)
	}
	if err := errors.Join(c.Database.check(), c.Retention.check()); err != nil {
		return err
	}
	if err := c.checkReplicas(); err != nil {
		return err
	}
	if !onLoopback(c.Debug.Listen) {
		return fmt.Errorf("debug.listen: %q would show the memory of the server to the network: use a loopback address such as 127.0.0.1:6060, and a tunnel", c.Debug.Listen)
	}
	if c.Log.Format != "text" && c.Log.Format != formatJSON {
		return fmt.Errorf("log.format: %q is neither text nor json", c.Log.Format)
	}
	if _, ok := logLevels[c.Log.Level]; !ok {
		return fmt.Errorf("log.level: %q is none of debug, info, warn and error", c.Log.Level)
	}
	return c.MQTT.check(c.Fleet.AcceptSeedStatus)
}

func (d Database) check() error {
	if d.URL == "" {
		if d != (Database{}) {
			return errors.New("database.url is empty, but other keys of database are set")
		}
		return nil
	}
	if err := store.CheckPostgresURL(d.URL); err != nil {
		return fmt.Errorf("database.url: %w", err)
	}
	if d.MaxConnections < 2 || d.MaxConnections > 1000 {
		return fmt.Errorf("database.max_connections of %d is not within 2 to 1000", d.MaxConnections)
	}
	return nil
}

// certifiesDevices says whether devices may have certificates: where there is a broker of ours that asks for them, and no other
// server whose authority for them would be another.
func (c Config) certifiesDevices() bool {
	return c.MQTT.External.URL == "" && c.MQTT.TLSListen != off && c.Replicas.Name == ""
}

func (t TLS) check() error {
	for _, name := range t.Names {
		if !isHost(name) {
			return fmt.Errorf("tls.names: %q is not a name or address", name)
		}
	}
	switch {
	case (t.CertFile == "") != (t.KeyFile == ""):
		return errors.New("tls.cert_file and tls.key_file go together")
	case t.CertFile != "" && len(t.ACME.Hosts) > 0:
		return errors.New("tls.cert_file and tls.acme exclude each other")
	case t.CAFile != "" && t.CertFile == "":
		return errors.New("tls.ca_file is for a certificate of your own: set tls.cert_file and tls.key_file too")
	case len(t.ACME.Hosts) == 0 && (t.ACME.Email != "" || t.ACME.CacheDir != "" || t.ACME.DirectoryURL != "" || t.ACME.CAFile != ""):
		return errors.New("tls.acme.hosts is empty: name what the certificate is for")
	}
	for _, name := range t.ACME.Hosts {
		if _, err := netip.ParseAddr(name); err == nil || !isHost(name) || !strings.Contains(name, ".") {
			return fmt.Errorf("tls.acme.hosts: %q is not a public host name", name)
		}
	}
	if d := t.ACME.DirectoryURL; d != "" {
		if u, err := url.Parse(d); err != nil || u.Scheme != "https" || u.Host == "" {
			return fmt.Errorf("tls.acme.directory_url: %q is not an https address", d)
		}
	}
	return nil
}

func (m MQTT) check(seedStatus bool) error {
	if err := protocol.CheckPrefix(m.Prefix); err != nil {
		return fmt.Errorf("mqtt.prefix: %w", err)
	}
	if m.External.URL != "" {
		u, err := url.Parse(m.External.URL)
		if err != nil {
			return errors.New("mqtt.external.url: it is not mqtts://host:port")
		}
		switch u.Scheme {
		case "mqtt", "tcp", "mqtts", "ssl", "tls":
		default:
			return fmt.Errorf("mqtt.external.url: %q is not mqtts://host:port or mqtt://host:port", u.Redacted())
		}
		switch {
		case !isHost(u.Hostname()) || !bareHost(u):
			return fmt.Errorf("mqtt.external.url: %q is not mqtts://host:port", u.Redacted())
		case u.User != nil:
			return errors.New("mqtt.external.url: the login goes into username and password")
		case seedStatus:
			return errors.New("fleet.accept_seed_status needs the embedded broker: an external one does not say who sent a status")
		}
		return nil
	}
	if m.External != (ExternalBroker{}) {
		return errors.New("mqtt.external.url is empty, but other keys of mqtt.external are set")
	}
	if m.TLSListen == off && m.Listen == off {
		return errors.New("mqtt.tls_listen and mqtt.listen are both off, and there is no mqtt.external.url: no device could be reached")
	}
	if !m.PlainAnywhere && !onLoopback(m.Listen) {
		return fmt.Errorf("mqtt.listen: plain MQTT on %q would show tokens to the network: use mqtt.tls_listen, or set mqtt.plain_anywhere", m.Listen)
	}
	return nil
}

// onLoopback says whether a listener's address is of this machine only, or none at all.
func onLoopback(listen string) bool {
	host, _, err := net.SplitHostPort(listen)
	if err != nil || host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}

// bareHost says whether nothing follows the host and port of an address.
func bareHost(u *url.URL) bool {
	return u.Path == "" && u.RawQuery == "" && !u.ForceQuery && u.Fragment == ""
}

func checkListen(addr string) error {
	if addr == off {
		return nil
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("%q is not host:port, :port or off", addr)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("port %q of %q is not within 0 to 65535", port, addr)
	} else if host != "" && !isHost(host) {
		return fmt.Errorf("host %q of %q is not a name or address (port %d)", host, addr, n)
	}
	return nil
}

// isHost says whether s is an IP address or could be a host name.
func isHost(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return false
			}
		}
	}
	return true
}
