package deploy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"bmsota/manifest"
	"bmsota/protocol"
)

// ConfigName is where a firmware project keeps its deployment settings. It holds secrets: keep it out of git.
const ConfigName = "ota_deploy_config.json"

// Kind is what puts a release where devices find it.
type Kind string

// The kinds.
const (
	KindServer Kind = "bmsota" // a server of ours, over its API
	KindSFTP   Kind = "sftp"   // a folder of another machine that a web server there shows
	KindDir    Kind = "dir"    // a folder of this machine
)

// Config is ota_deploy_config.json. The keys of the original tool keep their meaning; kind, dir, sftp, ca_file, tls and
// signing are ours. Unknown keys are ignored, as the original tool did.
type Config struct {
	Server  ServerConfig  `json:"server"`
	MQTT    MQTTConfig    `json:"mqtt"`
	Build   BuildConfig   `json:"build"`
	Signing SigningConfig `json:"signing,omitzero"`
}

// ServerConfig says where releases go.
type ServerConfig struct {
	Kind         Kind       `json:"kind,omitempty"` // empty: see [Config.Kind]
	BaseURL      string     `json:"base_url"`       // https://host[:port]
	FirmwarePath string     `json:"firmware_path"`  // kind sftp: the file on that machine
	VersionPath  string     `json:"version_path"`   // kind sftp: the file on that machine
	Username     string     `json:"username"`       // kind sftp: the login
	Password     string     `json:"password"`       // kind sftp: the login's; kind bmsota: the operator's token
	VerifySSL    *bool      `json:"verify_ssl"`     // never switches a check off: see docs/deploying.md
	CAFile       string     `json:"ca_file,omitempty"`
	Dir          string     `json:"dir,omitempty"` // kind dir: the folder
	SFTP         SFTPConfig `json:"sftp,omitzero"`
}

// SFTPConfig is what kind sftp needs beyond the original tool's keys.
type SFTPConfig struct {
	Host       string `json:"host,omitempty"` // default: that of base_url
	Port       int    `json:"port,omitempty"` // default 22
	Path       string `json:"path,omitempty"` // the folder there; wins over firmware_path and version_path
	KeyFile    string `json:"key_file,omitempty"`
	KnownHosts string `json:"known_hosts,omitempty"` // default: what ssh uses
}

// MQTTConfig says where commands go.
type MQTTConfig struct {
	Broker       string  `json:"broker"`
	Port         int     `json:"port"`
	Username     string  `json:"username"`
	Password     string  `json:"password"`
	CommandTopic string  `json:"command_topic"`
	StatusTopic  string  `json:"status_topic"`
	Timeout      float64 `json:"timeout"` // seconds
	TLS          bool    `json:"tls,omitempty"`
}

// BuildConfig says what is published.
type BuildConfig struct {
	FirmwarePath string `json:"firmware_path"`
}

// SigningConfig says who signs it: one key, and those that sign beside it.
type SigningConfig struct {
	SigningKey
	Cosigners []SigningKey `json:"cosigners,omitempty"`
}

// SigningKey is a release key: a file with its private half, or one with its public half and a command that signs.
type SigningKey struct {
	KeyFile string `json:"key_file,omitempty"`
	Signer  string `json:"signer,omitempty"` // run by the shell: docs/keys.md
}

// Keys are the keys that sign, the first one first; none means an unsigned release.
func (s SigningConfig) Keys() []SigningKey {
	if s.SigningKey == (SigningKey{}) {
		return slices.Clone(s.Cosigners)
	}
	return append([]SigningKey{s.SigningKey}, s.Cosigners...)
}

// check wants a file for each key, and no more of them than a manifest can carry.
func (s SigningConfig) check() error {
	if n, most := len(s.Keys()), 1+manifest.MaxCosignatures; n > most {
		return fmt.Errorf("signing names %d keys, the most is %d", n, most)
	}
	if s.KeyFile == "" && (s.Signer != "" || len(s.Cosigners) > 0) {
		return errors.New("signing.key_file is empty beside signing.signer or signing.cosigners: name the first key there")
	}
	for i, k := range s.Cosigners {
		if k.KeyFile == "" {
			return fmt.Errorf("signing.cosigners[%d].key_file is empty", i)
		}
	}
	return nil
}

const maxConfig = 1 << 20

// LoadConfig reads a configuration file. Paths in it are relative to its folder. The error wraps fs.ErrNotExist when
// there is none.
func LoadConfig(path string) (Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return Config{}, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return Config{}, fmt.Errorf("read configuration %s: %w", path, err)
	}
	if len(b) > maxConfig {
		return Config{}, fmt.Errorf("configuration %s is larger than 1 MiB", path)
	}
	c, err := parseConfig(b)
	if err != nil {
		return Config{}, fmt.Errorf("configuration %s: %w", path, err)
	}
	dir := filepath.Dir(path)
	for _, p := range c.Paths() {
		if *p == "" {
			continue
		}
		if home, ok := strings.CutPrefix(*p, "~/"); ok {
			base, err := os.UserHomeDir()
			if err != nil {
				return Config{}, fmt.Errorf("configuration %s: %q: %w", path, *p, err)
			}
			*p = filepath.Join(base, home)
		} else if !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
	return c, nil
}

// Paths are the places in c that hold the path of a file or folder.
func (c *Config) Paths() []*string {
	paths := []*string{&c.Server.CAFile, &c.Server.Dir, &c.Server.SFTP.KeyFile, &c.Server.SFTP.KnownHosts, &c.Build.FirmwarePath, &c.Signing.KeyFile}
	for i := range c.Signing.Cosigners {
		paths = append(paths, &c.Signing.Cosigners[i].KeyFile)
	}
	return paths
}

func parseConfig(b []byte) (Config, error) {
	var c Config
	err := json.Unmarshal(b, &c)
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && e.Field != "" {
		belongs := "number"
		switch e.Type.Kind() {
		case reflect.String:
			belongs = "text"
		case reflect.Bool:
			belongs = "true or false"
		case reflect.Struct:
			belongs = "object"
		}
		return Config{}, fmt.Errorf("%s holds a JSON %s where a %s belongs", e.Field, e.Value, belongs)
	}
	if err != nil {
		return Config{}, fmt.Errorf("no JSON object: %w", err)
	}
	return c, c.Check()
}

// Check holds every value to its range, and a kind to what it needs.
func (c Config) Check() error {
	s := c.Server
	if s.BaseURL != "" {
		u, err := url.Parse(s.BaseURL)
		if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
			return fmt.Errorf("server.base_url %q is not an http(s) address", s.BaseURL)
		}
	}
	switch s.Kind {
	case "", KindServer, KindSFTP:
	case KindDir:
		if s.Dir == "" {
			return errors.New("server.kind is dir, and server.dir names no folder")
		}
	default:
		return fmt.Errorf("server.kind %q is not bmsota, sftp or dir", s.Kind)
	}
	if s.SFTP.Port < 0 || s.SFTP.Port > 65535 {
		return fmt.Errorf("server.sftp.port of %d is not within 0 to 65535", s.SFTP.Port)
	}
	if c.MQTT.Port < 0 || c.MQTT.Port > 65535 {
		return fmt.Errorf("mqtt.port of %d is not within 0 to 65535", c.MQTT.Port)
	}
	if c.MQTT.Timeout < 0 || c.MQTT.Timeout > maxTimeout.Seconds() {
		return fmt.Errorf("mqtt.timeout of %g s is not within 0 to a day", c.MQTT.Timeout)
	}
	if p := c.Prefix(); p != "" {
		if err := protocol.CheckPrefix(p); err != nil {
			return fmt.Errorf("mqtt.command_topic: %w", err)
		}
	}
	return c.Signing.check()
}

// Kind is the kind that the file names, or the one it means: files of the original tool name none. They have a user
// name, because that tool copied with scp; a file with a token alone is one for a server of ours. Nothing is asked of
// the network to find out: the question itself could hand the password to whoever answers.
func (c Config) Kind() Kind {
	switch {
	case c.Server.Kind != "":
		return c.Server.Kind
	case c.Server.Dir != "":
		return KindDir
	case c.Server.Username != "" || c.Server.SFTP != SFTPConfig{}:
		return KindSFTP
	}
	return KindServer
}

// Prefix is the topic prefix that command_topic implies, empty when it gives none.
func (c Config) Prefix() string {
	prefix, _ := strings.CutSuffix(c.MQTT.CommandTopic, "/command")
	return prefix
}

// Where the original tool puts things when its file does not say.
const (
	defaultFirmware = "/var/www/firmware/firmware.bin"
	defaultVersion  = "/var/www/firmware/version.json"
	defaultBroker   = "localhost"
	defaultAnswer   = 30 * time.Second
	maxTimeout      = 24 * time.Hour
)

// Answer is how long to wait until anybody has answered a command: mqtt.timeout, 30 seconds where it says nothing.
func (c Config) Answer() time.Duration {
	if c.MQTT.Timeout == 0 {
		return defaultAnswer
	}
	return time.Duration(c.MQTT.Timeout * float64(time.Second))
}

// Broker is the broker's host, with the original tool's default where that tool's file leaves it out.
func (c Config) Broker() string {
	if c.MQTT.Broker == "" && c.Server.Kind == "" && c.Kind() == KindSFTP {
		return defaultBroker
	}
	return c.MQTT.Broker
}

// remote gives the two files on an SFTP server, and its host; port is 0 for the default.
func (c Config) remote() (firmware, version, host string, port int, err error) {
	s := c.Server
	firmware, version = s.FirmwarePath, s.VersionPath
	if firmware == "" {
		firmware = defaultFirmware
	}
	if version == "" {
		version = defaultVersion
	}
	if s.SFTP.Path != "" {
		firmware, version = path.Join(s.SFTP.Path, firmwareName), path.Join(s.SFTP.Path, versionName)
	}
	host = s.SFTP.Host
	if host == "" {
		u, err := url.Parse(s.BaseURL)
		if err != nil || u.Hostname() == "" {
			return "", "", "", 0, errors.New("no machine to copy to: give server.sftp.host or server.base_url")
		}
		host = u.Hostname()
	}
	if s.Username == "" {
		return "", "", "", 0, errors.New("no user name for the machine to copy to: give server.username")
	}
	return firmware, version, host, s.SFTP.Port, nil
}

// secret stands where a secret is.
const secret = "********"

// Masked is c without its secrets. A command that signs may have a PIN in it.
func (c Config) Masked() Config {
	secrets := []*string{&c.Server.Password, &c.MQTT.Password, &c.Signing.Signer}
	c.Signing.Cosigners = slices.Clone(c.Signing.Cosigners)
	for i := range c.Signing.Cosigners {
		secrets = append(secrets, &c.Signing.Cosigners[i].Signer)
	}
	for _, p := range secrets {
		if *p != "" {
			*p = secret
		}
	}
	if u, err := url.Parse(c.Server.BaseURL); err == nil && u.User != nil {
		u.User = url.User(secret)
		c.Server.BaseURL = u.String()
	}
	return c
}

// Append writes c as ConfigName has it.
func (c Config) Append(dst []byte) ([]byte, error) {
	buf := bytes.NewBuffer(dst)
	enc := json.NewEncoder(buf)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(c); err != nil {
		return nil, fmt.Errorf("encode configuration: %w", err)
	}
	return buf.Bytes(), nil
}
