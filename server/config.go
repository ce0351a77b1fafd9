package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
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
}

// Database is the section "database".
type Database struct {
	// URL is a PostgreSQL database for what else stands in bmsota.db of the data folder, as
	// postgres://user@host/database?sslmode=verify-full. It takes the parameters of libpq, and those of the server such as
	// statement_timeout. It holds no password. Default: none, SQLite.
	URL string `json:"url"`

	// PasswordFile is a file with the password of the database's user, in its first line. Default: PGPASSWORD, or what the file
	// that PGPASSFILE names says.
	PasswordFile string `json:"password_file"`

	// MaxConnections is how many connections are open to it at most, one of them for changes. Default 9.
	MaxConnections int64 `json:"max_connections"`
}

// Webhooks is the section "webhooks".
type Webhooks struct {
	// AllowLoopback lets webhooks go to this machine itself. Addresses at which a cloud gives a machine its credentials
	// are refused always. Default false.
	AllowLoopback bool `json:"allow_loopback"`
}

// Metrics is the section "metrics".
type Metrics struct {
	// Listen is a loopback address on which /metrics is served over plain HTTP and without a login, "off" to close it.
	// From another machine the figures are had with a viewer's token, from /metrics of the web side. Default "off".
	Listen string `json:"listen"`
}

// Log is the section "log".
type Log struct {
	// Format is "text" or "json", one line for each event in either. Default "text".
	Format string `json:"format"`

	// Level is the least that is written: "debug", "info", "warn" or "error". Default "info".
	Level string `json:"level"`
}

// formatJSON is the log.format for programs.
const formatJSON = "json"

// logLevels are the values of log.level.
var logLevels = map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}

// Handler writes to w as the section says.
func (l Log) Handler(w io.Writer) slog.Handler {
	opt := &slog.HandlerOptions{Level: logLevels[l.Level]} // info where it is empty, as slog's own zero is
	if l.Format == formatJSON {
		return slog.NewJSONHandler(w, opt)
	}
	return slog.NewTextHandler(w, opt)
}

// Debug is the section "debug".
type Debug struct {
	// Listen is a loopback address on which /debug/pprof/ is served over plain HTTP and without a login, "off" to close it. A
	// profile shows what is in memory. Default "off".
	Listen string `json:"listen"`
}

// HTTPS is the section "https".
type HTTPS struct {
	// Listen is the address for HTTPS, host:port or :port. "off" closes it, which makes sense behind a reverse proxy
	// only. Default ":8443".
	Listen string `json:"listen"`

	// PlainListen is an address for plain HTTP, for a reverse proxy that holds the certificate. Operator tokens cross
	// it in the clear. Default: closed.
	PlainListen string `json:"plain_listen"`

	// TrustedProxies are the addresses, or networks like 10.0.0.0/8, of reverse proxies in front of this server. From them
	// alone X-Forwarded-For is believed: login waits, refusals and the audit log are about the client it names. Default: none.
	TrustedProxies []string `json:"trusted_proxies"`

	// CacheBytes is how much memory may hold images that were served lately. Default 67108864 (64 MiB).
	CacheBytes int64 `json:"cache_bytes"`

	// ClientCertificates has HTTPS ask for a device's certificate, as MQTT over TLS does always: a device that shows the one
	// on record needs no other name when it asks for its release, and one that is revoked or named otherwise is refused. It is
	// off by default, because TLS asks before it knows the path, and so asks every browser: a browser with a certificate
	// of some kind in its store may then ask its user. Needs mqtt.tls_listen. Default false.
	ClientCertificates bool `json:"client_certificates"`

	// MaxConnections is how many connections may be open at once. A further one takes the place of one that serves no
	// request, or waits. Every one is an open file of the process, as is every MQTT session. Default 1500.
	MaxConnections int64 `json:"max_connections"`
}

// proxies are the trusted ones. A network so wide that it holds strangers would let anybody be anybody.
func (h HTTPS) proxies() ([]netip.Prefix, error) {
	var list []netip.Prefix
	for _, text := range h.TrustedProxies {
		p, err := netip.ParsePrefix(text)
		if a, err2 := netip.ParseAddr(text); err2 == nil {
			p, err = a.Prefix(a.BitLen())
		}
		if err != nil || p.Addr().Zone() != "" {
			return nil, fmt.Errorf("https.trusted_proxies: %q is not an address or a network like 10.0.0.0/8", text)
		}
		if p.Bits() < 8 {
			return nil, fmt.Errorf("https.trusted_proxies: %q holds everybody: name the proxies", text)
		}
		list = append(list, p.Masked())
	}
	return list, nil
}

// TLS is the section "tls".
type TLS struct {
	// Names are more names and addresses for the certificate the server makes itself.
	Names []string `json:"names"`

	// CertFile and KeyFile are a certificate of your own with its chain, and its key, both PEM. They are read again
	// when they change. Excludes acme.
	CertFile string `json:"cert_file"`
	KeyFile  string `json:"key_file"`

	// CAFile is the PEM that devices and tools shall trust for cert_file. Default: the public authorities they know.
	CAFile string `json:"ca_file"`

	// ACME gets the certificate from an authority such as Let's Encrypt.
	ACME ACME `json:"acme"`
}

// ACME is the section "tls.acme".
type ACME struct {
	// Hosts are the names to get a certificate for; setting one turns ACME on. The authority must reach this server on
	// port 443 under each name (TLS-ALPN-01 challenge). Under other names the server shows its own certificate.
	Hosts []string `json:"hosts"`

	// Email is who the authority may write to about the certificate. Default: nobody.
	Email string `json:"email"`

	// CacheDir keeps account and certificates. Default <data_dir>/tls/acme.
	CacheDir string `json:"cache_dir"`

	// DirectoryURL is the authority's ACME directory. Default: Let's Encrypt.
	DirectoryURL string `json:"directory_url"`

	// CAFile is the PEM to trust for directory_url, for an authority inside your network; devices are given it too.
	// Default: the system's authorities.
	CAFile string `json:"ca_file"`
}

// MQTT is the section "mqtt".
type MQTT struct {
	// Prefix is what all topics start with. Default "bms/ota".
	Prefix string `json:"prefix"`

	// TLSListen is the embedded broker's address for MQTT over TLS, "off" to close it. Default ":8883".
	TLSListen string `json:"tls_listen"`

	// Listen is the embedded broker's address for plain MQTT, "off" to close it. Default "127.0.0.1:1883".
	Listen string `json:"listen"`

	// PlainAnywhere allows listen to be an address that is not loopback. Tokens then cross the network in the clear.
	PlainAnywhere bool `json:"plain_anywhere"`

	// External is a broker of yours, used in place of the embedded one.
	External ExternalBroker `json:"external"`
}

// ExternalBroker is the section "mqtt.external".
type ExternalBroker struct {
	// URL is the broker's address, mqtts://host:8883 or mqtt://host:1883; setting it turns the embedded broker off.
	URL string `json:"url"`

	// Username and Password are the server's login there. It must be allowed to publish commands and read statuses.
	Username string `json:"username"`
	Password string `json:"password"`

	// CAFile is the PEM to trust for the broker. Default: the system's authorities.
	CAFile string `json:"ca_file"`

	// TestUsername and TestPassword are the login of one device there. With it the server tries at start whether a device
	// can speak for another; without, it tries only whether strangers are let in. What it finds is in the log and in
	// bmsota health.
	TestUsername string `json:"test_username"`
	TestPassword string `json:"test_password"`

	// ClientID is what the server's sessions are called there; two servers need two. Default "bmsota".
	ClientID string `json:"client_id"`
}

// Fleet is the section "fleet".
type Fleet struct {
	// Silence is how long an updating device may say nothing before its update counts as failed. Default "30m".
	Silence Duration `json:"silence"`

	// Expiry is how long an update order stays good that says nothing about it. Default "7d".
	Expiry Duration `json:"expiry"`

	// RequireSigned refuses every release that no key has signed. Without it they are let in with a warning, but never
	// for a project that has had a signed release: its devices would refuse them.
	RequireSigned bool `json:"require_signed"`

	// OfferKeyFile is the private key (ECDSA P-256, PEM) that signs the answers to devices, so that an old one cannot pass for
	// a new one. Servers that answer for each other share it. Public keys behind it in the file are given to devices too,
	// as those that will follow. Default: <data_dir>/tls/offer.key, made on first start.
	OfferKeyFile string `json:"offer_key_file"`

	// DefaultProject is offered to whoever names no project, where several exist.
	DefaultProject string `json:"default_project"`

	// AcceptSeedStatus takes statuses on the shared topic, which the original firmware uses; who speaks is then the
	// MQTT login. Embedded broker only.
	AcceptSeedStatus bool `json:"accept_seed_status"`
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
	if err := c.Database.check(); err != nil {
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

// certifiesDevices says whether devices may have certificates: where there is a broker of ours that asks for them.
func (c Config) certifiesDevices() bool { return c.MQTT.External.URL == "" && c.MQTT.TLSListen != off }

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
