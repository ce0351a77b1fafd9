package deploy

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"bmsota/protocol"
)

// ConfigName is where a firmware project keeps its deployment settings. It holds secrets: keep it out of git.
const ConfigName = "ota_deploy_config.json"

// Config is ota_deploy_config.json. The keys of the original tool keep their meaning; kind, ca_file, tls and signing
// are ours. Unknown keys are ignored, as the original tool did.
type Config struct {
	Server struct {
		BaseURL      string `json:"base_url"`      // https://host[:port]
		FirmwarePath string `json:"firmware_path"` // below base_url
		VersionPath  string `json:"version_path"`  // below base_url
		Username     string `json:"username"`
		Password     string `json:"password"` // for kind bmsota: the operator's token
		VerifySSL    *bool  `json:"verify_ssl"`
		Kind         string `json:"kind"` // bmsota, sftp or dir
		CAFile       string `json:"ca_file"`
	} `json:"server"`
	MQTT struct {
		Broker       string  `json:"broker"`
		Port         int     `json:"port"`
		Username     string  `json:"username"`
		Password     string  `json:"password"`
		CommandTopic string  `json:"command_topic"`
		StatusTopic  string  `json:"status_topic"`
		Timeout      float64 `json:"timeout"` // seconds
		TLS          bool    `json:"tls"`
	} `json:"mqtt"`
	Build struct {
		FirmwarePath string `json:"firmware_path"`
	} `json:"build"`
	Signing struct {
		KeyFile string `json:"key_file"`
	} `json:"signing"`
}

// LoadConfig reads a configuration file. Paths in it are relative to its folder. The error wraps fs.ErrNotExist when
// there is none.
func LoadConfig(path string) (Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return Config{}, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 1<<20+1))
	if err != nil {
		return Config{}, fmt.Errorf("read configuration %s: %w", path, err)
	}
	if len(b) > 1<<20 {
		return Config{}, fmt.Errorf("configuration %s is larger than 1 MiB", path)
	}
	var c Config
	if err := json.Unmarshal(b, &c); err != nil {
		return Config{}, fmt.Errorf("configuration %s: %w", path, err)
	}
	dir := filepath.Dir(path)
	for _, p := range []*string{&c.Server.CAFile, &c.Build.FirmwarePath, &c.Signing.KeyFile} {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
	if err := c.check(); err != nil {
		return Config{}, fmt.Errorf("configuration %s: %w", path, err)
	}
	return c, nil
}

func (c Config) check() error {
	if c.Server.BaseURL != "" {
		u, err := url.Parse(c.Server.BaseURL)
		if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
			return fmt.Errorf("server.base_url %q is not an http(s) address", c.Server.BaseURL)
		}
	}
	switch c.Server.Kind {
	case "", "bmsota", "sftp", "dir":
	default:
		return fmt.Errorf("server.kind %q is not bmsota, sftp or dir", c.Server.Kind)
	}
	if c.MQTT.Port < 0 || c.MQTT.Port > 65535 {
		return fmt.Errorf("mqtt.port of %d is not within 0 to 65535", c.MQTT.Port)
	}
	if c.MQTT.Timeout < 0 {
		return errors.New("mqtt.timeout is negative")
	}
	if p := c.Prefix(); p != "" {
		if err := protocol.CheckPrefix(p); err != nil {
			return fmt.Errorf("mqtt.command_topic: %w", err)
		}
	}
	return nil
}

// Prefix is the topic prefix that command_topic implies, empty when it gives none.
func (c Config) Prefix() string {
	prefix, _ := strings.CutSuffix(c.MQTT.CommandTopic, "/command")
	return prefix
}
