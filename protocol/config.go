package protocol

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"bmsota/strictjson"
)

// MaxConfig is the largest configuration file in bytes that a device reads.
const MaxConfig = 16 << 10

// maxThreshold is how many signatures a release can carry: the manifest's own and three beside it.
const maxThreshold = 4

// Names of the two files on a device's SPIFFS partition, as SPIFFS stores them: without the mount point.
const (
	OTAConfigFile  = "/ota_config.txt"
	MQTTConfigFile = "/mqtt_config.txt"
)

// OTAConfig is /spiffs/ota_config.txt. The first six fields are the original tool's.
type OTAConfig struct {
	// ServerURL is where the image lies; version.json is looked for in the same folder.
	ServerURL string `json:"server_url"`
	// CertPEM is the certificate to trust for the server; empty means the built-in bundle of public authorities.
	CertPEM string `json:"cert_pem"`
	// SkipCertVerification allows a server that proves nothing, plain http:// included. With a trusted key the image
	// is still safe; without one, whoever is on the wire can replace it.
	SkipCertVerification bool `json:"skip_cert_verification"`
	// TimeoutMS is how long the server may be silent; 0 means 60,000.
	TimeoutMS int64 `json:"timeout_ms"`
	// CurrentVersion fills in where the image's own description says nothing useful.
	CurrentVersion string `json:"current_version"`
	// AutoRollbackEnabled lets the device undo an image that runs but is not healthy. A crash is always undone.
	AutoRollbackEnabled bool `json:"auto_rollback_enabled"`

	DeviceID      string `json:"device_id,omitempty"`
	TrustedKeyPEM string `json:"trusted_key_pem,omitempty"` // P-256 public key(s) that sign releases
	// TrustedThreshold is how many of the trusted keys have to have signed a release; 0 means one.
	TrustedThreshold int `json:"trusted_threshold,omitempty"`
	// ServerKeyPEM holds one to eight P-256 public keys, one of which signs the server's answers to this device: what is not
	// signed, or was answered to another question, is stale. Empty = answers are taken as they come.
	ServerKeyPEM string `json:"server_key_pem,omitempty"`
	// MirrorURL is where a copy of the releases lies, for a device that holds a key: it is asked when the server cannot be
	// reached or its certificate is not trusted. Plain http:// will do.
	MirrorURL   string `json:"mirror_url,omitempty"`
	TopicPrefix string `json:"topic_prefix,omitempty"`
	// OwnTopicOnly keeps statuses to the device's own topic. Without it the device repeats them on the shared one, where
	// the original tool listens; files that a server makes set it, because its broker does the repeating.
	OwnTopicOnly bool   `json:"own_topic_only,omitempty"`
	Health       Health `json:"health,omitzero"`
	Gate         Gate   `json:"gate,omitzero"`
}

// Health is what a new image must show before it stays. Zero fields mean the defaults of WithDefaults.
type Health struct {
	DeadlineS int64 `json:"deadline_s,omitempty"` // seconds after boot
	BMSFrames int   `json:"bms_frames,omitempty"` // good readings of the pack
	MinHeap   int64 `json:"min_heap,omitempty"`   // bytes free
}

// WithDefaults fills in 300 s, 3 frames, 16 KiB.
func (h Health) WithDefaults() Health {
	if h.DeadlineS == 0 {
		h.DeadlineS = 300
	}
	if h.BMSFrames == 0 {
		h.BMSFrames = 3
	}
	if h.MinHeap == 0 {
		h.MinHeap = 16 << 10
	}
	return h
}

// MQTTConfig is /spiffs/mqtt_config.txt. The first five fields are the original tool's.
type MQTTConfig struct {
	BrokerHost string `json:"broker_host"`
	BrokerPort int    `json:"broker_port"`
	Username   string `json:"username"`
	Password   string `json:"password"`
	QoS        int    `json:"qos"`

	TLS   bool   `json:"tls,omitempty"`
	CAPEM string `json:"ca_pem,omitempty"` // empty with TLS means the built-in bundle

	// ClientCertPEM and ClientKeyPEM are the board's own certificate and its key, which stand for username and password: with
	// the broker, and with the server where that asks for it. They need TLS.
	ClientCertPEM string `json:"client_cert_pem,omitempty"`
	ClientKeyPEM  string `json:"client_key_pem,omitempty"`
}

// ParseOTAConfig reads ota_config.txt. The error names the field.
func ParseOTAConfig(b []byte) (OTAConfig, error) {
	c := OTAConfig{AutoRollbackEnabled: true}
	r, err := configFields(b)
	if err != nil {
		return OTAConfig{}, fmt.Errorf("ota_config.txt: %w", err)
	}
	r.Text("server_url", MaxURL, &c.ServerURL)
	r.Text("cert_pem", MaxConfig, &c.CertPEM)
	r.Take("skip_cert_verification", &c.SkipCertVerification)
	r.Take("timeout_ms", &c.TimeoutMS)
	r.Text("current_version", 64, &c.CurrentVersion)
	r.Take("auto_rollback_enabled", &c.AutoRollbackEnabled)
	r.Text("device_id", MaxDeviceID, &c.DeviceID)
	r.Text("trusted_key_pem", MaxConfig, &c.TrustedKeyPEM)
	r.Take("trusted_threshold", &c.TrustedThreshold)
	r.Text("server_key_pem", MaxConfig, &c.ServerKeyPEM)
	r.Text("mirror_url", MaxURL, &c.MirrorURL)
	r.Text("topic_prefix", 128, &c.TopicPrefix)
	r.Take("own_topic_only", &c.OwnTopicOnly)
	r.Sub("health", func(sub *strictjson.Object) {
		sub.Take("deadline_s", &c.Health.DeadlineS)
		sub.Take("bms_frames", &c.Health.BMSFrames)
		sub.Take("min_heap", &c.Health.MinHeap)
	})
	r.Sub("gate", func(sub *strictjson.Object) {
		sub.Take("min_soc_pct", &c.Gate.MinSOCPct)
		sub.Take("not_while_charging", &c.Gate.NotWhileCharging)
		sub.Take("max_current_a", &c.Gate.MaxCurrentA)
		sub.Take("min_temp_c", &c.Gate.MinTempC)
		sub.Take("max_temp_c", &c.Gate.MaxTempC)
		sub.Text("window", 11, &c.Gate.Window)
	})
	if r.Err() != nil {
		return OTAConfig{}, fmt.Errorf("ota_config.txt: %w", r.Err())
	}
	if err := c.Check(); err != nil {
		return OTAConfig{}, fmt.Errorf("ota_config.txt: %w", err)
	}
	return c, nil
}

// Check holds the values to their ranges.
func (c OTAConfig) Check() error {
	plain, err := checkServerURL(c.ServerURL)
	switch {
	case c.ServerURL == "":
		return errors.New("no server_url")
	case err != nil:
		return err
	case plain && !c.SkipCertVerification:
		return fmt.Errorf("server_url %q is plain http: use https, or set skip_cert_verification to true for a test bench", c.ServerURL)
	case c.TimeoutMS < 0 || c.TimeoutMS > time.Hour.Milliseconds():
		return fmt.Errorf("timeout_ms of %d is not within 0 to 3600000", c.TimeoutMS)
	case c.Health.DeadlineS < 0 || c.Health.DeadlineS > 86400 || c.Health.BMSFrames < 0 || c.Health.BMSFrames > 10000 || c.Health.MinHeap < 0:
		return errors.New("health: a value is out of range")
	}
	if c.MirrorURL != "" {
		if _, err := checkServerURL(c.MirrorURL); err != nil {
			return fmt.Errorf("mirror_url: %w", err)
		}
	}
	if c.TrustedThreshold < 0 || c.TrustedThreshold > maxThreshold {
		return fmt.Errorf("trusted_threshold of %d is not within 0 to %d", c.TrustedThreshold, maxThreshold)
	}
	if c.DeviceID != "" {
		if err := CheckDeviceID(c.DeviceID); err != nil {
			return err
		}
	}
	if c.TopicPrefix != "" {
		if err := CheckPrefix(c.TopicPrefix); err != nil {
			return err
		}
	}
	return c.Gate.Check()
}

// ParseMQTTConfig reads mqtt_config.txt, as JSON or as the older key=value lines.
func ParseMQTTConfig(b []byte) (MQTTConfig, error) {
	c := MQTTConfig{QoS: 1}
	r, err := configFields(b)
	if err != nil {
		return MQTTConfig{}, fmt.Errorf("mqtt_config.txt: %w", err)
	}
	r.Text("broker_host", 253, &c.BrokerHost)
	r.Take("broker_port", &c.BrokerPort)
	r.Text("username", 128, &c.Username)
	r.Text("password", 256, &c.Password)
	r.Take("qos", &c.QoS)
	r.Take("tls", &c.TLS)
	r.Text("ca_pem", MaxConfig, &c.CAPEM)
	r.Text("client_cert_pem", MaxConfig, &c.ClientCertPEM)
	r.Text("client_key_pem", MaxConfig, &c.ClientKeyPEM)
	if r.Err() != nil {
		return MQTTConfig{}, fmt.Errorf("mqtt_config.txt: %w", r.Err())
	}
	if err := c.Check(); err != nil {
		return MQTTConfig{}, fmt.Errorf("mqtt_config.txt: %w", err)
	}
	if c.BrokerPort == 0 {
		c.BrokerPort = 1883
		if c.TLS {
			c.BrokerPort = 8883
		}
	}
	return c, nil
}

// Check holds the values to their ranges.
func (c MQTTConfig) Check() error {
	switch {
	case c.BrokerHost == "":
		return errors.New("no broker_host")
	case strings.ContainsAny(c.BrokerHost, "/ @"):
		return fmt.Errorf("broker_host %q is a host name or address only, without scheme or path", c.BrokerHost)
	case c.BrokerPort < 0 || c.BrokerPort > 65535:
		return fmt.Errorf("broker_port of %d is not within 0 to 65535", c.BrokerPort)
	case c.QoS < 0 || c.QoS > 2:
		return fmt.Errorf("qos of %d is not 0, 1 or 2", c.QoS)
	case (c.ClientCertPEM == "") != (c.ClientKeyPEM == ""):
		return errors.New("client_cert_pem and client_key_pem go together")
	case c.ClientCertPEM != "" && !c.TLS:
		return errors.New("client_cert_pem needs tls")
	}
	return nil
}

// configFields reads a configuration file into fields, whichever of its two forms it has.
func configFields(b []byte) (*strictjson.Object, error) {
	if len(b) > MaxConfig {
		return nil, fmt.Errorf("%d bytes, the limit is %d", len(b), MaxConfig)
	}
	text := strings.Trim(string(b), blank)
	if strings.HasPrefix(text, "{") || !strings.Contains(text, "=") {
		return strictjson.Parse([]byte(text))
	}
	if !utf8.ValidString(text) {
		return nil, errors.New("not valid UTF-8")
	}
	fields := &strictjson.Object{}
	for line := range strings.Lines(text) {
		line = strings.Trim(line, blank)
		if line == "" || line[0] == '#' {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			return nil, fmt.Errorf("line %q is not key=value", line)
		}
		if err := keyValue(fields, strings.Trim(key, blank), strings.Trim(value, blank)); err != nil {
			return nil, err
		}
	}
	return fields, nil
}

// blank is what JSON takes for white space, and so does the older form.
const blank = " \t\r\n"

// keyValue adds one line of the older form. Its words become the newer ones, and no field may be given twice.
func keyValue(fields *strictjson.Object, key, value string) error {
	switch key {
	case "broker":
		return setBroker(fields, value)
	case "url":
		return fields.Set("server_url", value)
	case "version":
		return fields.Set("current_version", value)
	case "broker_port", "qos", "timeout_ms", "trusted_threshold":
		n, err := strconv.Atoi(value)
		if err != nil {
			return fmt.Errorf("%s of %q is not a number", key, value)
		}
		return fields.Set(key, n)
	case "skip_cert_verification", "auto_rollback_enabled", "own_topic_only", "tls":
		return fields.Set(key, value == "true" || value == "1")
	}
	return fields.Set(key, value)
}

func setBroker(fields *strictjson.Object, value string) error {
	host, port, tls, err := brokerAddress(value)
	if err != nil {
		return err
	}
	if err := fields.Set("broker_host", host); err != nil {
		return err
	}
	if port != 0 {
		if err := fields.Set("broker_port", port); err != nil {
			return err
		}
	}
	if tls {
		return fields.Set("tls", true)
	}
	return nil
}

// Append writes ota_config.txt, indented.
func (c OTAConfig) Append(dst []byte) ([]byte, error) { return appendConfig(dst, c, c.Check()) }

// Append writes mqtt_config.txt, indented.
func (c MQTTConfig) Append(dst []byte) ([]byte, error) { return appendConfig(dst, c, c.Check()) }

func appendConfig(dst []byte, v any, bad error) ([]byte, error) {
	if bad != nil {
		return nil, bad
	}
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode configuration: %w", err)
	}
	if len(b) > MaxConfig {
		return nil, fmt.Errorf("configuration is %d bytes, the limit is %d", len(b), MaxConfig)
	}
	return append(append(dst, b...), '\n'), nil
}
