// Sections of the configuration file; config.go reads and checks them.

package server

import (
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"time"
)

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

// Retention is the section "retention": what is forgotten, and when. What is needed is kept however old it is.
type Retention struct {
	// Attempts is for how long attempts are kept after their end, at least 30d. Default: for good.
	Attempts Duration `json:"attempts"`

	// Audit is for how long rows of the audit log are kept, at least 30d. Default: for good.
	Audit Duration `json:"audit"`
}

// shortestRetention is beyond all that pages and figures count back.
const shortestRetention = 30 * 24 * time.Hour

func (r Retention) check() error {
	for _, k := range []struct {
		key  string
		keep Duration
	}{{"attempts", r.Attempts}, {"audit", r.Audit}} {
		if k.keep != 0 && time.Duration(k.keep) < shortestRetention {
			return fmt.Errorf("retention.%s: %v is less than 30d", k.key, time.Duration(k.keep))
		}
	}
	return nil
}

// Replicas is the section "replicas". All servers on one database have it, each with a name of its own; docs/scaling.md says what
// else they share.
type Replicas struct {
	// Name is this server's among them: 1 to 32 letters, digits and hyphens. Needs database.url, firmware.folder or
	// firmware.bucket, fleet.offer_key_file, and a certificate (tls.cert_file) for what listens with TLS. Default: none, this
	// server works alone.
	Name string `json:"name"`

	// ShareGroup is the group by which the servers share what an external broker brings ($share/<group>/…), "off" for a broker
	// that knows no groups: then everything comes to every server, and what has come already is dropped. Default "bmsota".
	ShareGroup string `json:"share_group"`
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
