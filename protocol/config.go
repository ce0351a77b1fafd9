package protocol

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// MaxConfig is the largest configuration file in bytes that a device reads.
const MaxConfig = 16 << 10

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
	TopicPrefix   string `json:"topic_prefix,omitempty"`
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
}

// ParseOTAConfig reads ota_config.txt. The error names the field.
func ParseOTAConfig(b []byte) (OTAConfig, error) {
	c := OTAConfig{AutoRollbackEnabled: true}
	fields, err := configFields(b)
	if err != nil {
		return OTAConfig{}, fmt.Errorf("ota_config.txt: %w", err)
	}
	r := reader{fields: fields}
	r.text("server_url", 400, &c.ServerURL)
	r.text("cert_pem", MaxConfig, &c.CertPEM)
	r.take("skip_cert_verification", &c.SkipCertVerification)
	r.take("timeout_ms", &c.TimeoutMS)
	r.text("current_version", 64, &c.CurrentVersion)
	r.take("auto_rollback_enabled", &c.AutoRollbackEnabled)
	r.text("device_id", MaxDeviceID, &c.DeviceID)
	r.text("trusted_key_pem", MaxConfig, &c.TrustedKeyPEM)
	r.text("topic_prefix", 128, &c.TopicPrefix)
	r.take("own_topic_only", &c.OwnTopicOnly)
	if sub := r.sub("health"); sub != nil {
		sub.take("deadline_s", &c.Health.DeadlineS)
		sub.take("bms_frames", &c.Health.BMSFrames)
		sub.take("min_heap", &c.Health.MinHeap)
		r.err = errors.Join(r.err, sub.err)
	}
	if sub := r.sub("gate"); sub != nil {
		sub.take("min_soc_pct", &c.Gate.MinSOCPct)
		sub.take("not_while_charging", &c.Gate.NotWhileCharging)
		sub.text("window", 11, &c.Gate.Window)
		r.err = errors.Join(r.err, sub.err)
	}
	if r.err != nil {
		return OTAConfig{}, fmt.Errorf("ota_config.txt: %w", r.err)
	}
	if err := c.Check(); err != nil {
		return OTAConfig{}, fmt.Errorf("ota_config.txt: %w", err)
	}
	return c, nil
}

// Check holds the values to their ranges.
func (c OTAConfig) Check() error {
	u, err := url.Parse(c.ServerURL)
	switch {
	case c.ServerURL == "":
		return errors.New("no server_url")
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		return fmt.Errorf("server_url %q is not an http(s) address", c.ServerURL)
	case u.Scheme == "http" && !c.SkipCertVerification:
		return fmt.Errorf("server_url %q is plain http: use https, or set skip_cert_verification to true for a test bench", c.ServerURL)
	case c.TimeoutMS < 0 || c.TimeoutMS > time.Hour.Milliseconds():
		return fmt.Errorf("timeout_ms of %d is not within 0 to 3600000", c.TimeoutMS)
	case c.Health.DeadlineS < 0 || c.Health.DeadlineS > 86400 || c.Health.BMSFrames < 0 || c.Health.BMSFrames > 10000 || c.Health.MinHeap < 0:
		return errors.New("health: a value is out of range")
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
	fields, err := configFields(b)
	if err != nil {
		return MQTTConfig{}, fmt.Errorf("mqtt_config.txt: %w", err)
	}
	r := reader{fields: fields}
	r.text("broker_host", 253, &c.BrokerHost)
	r.take("broker_port", &c.BrokerPort)
	r.text("username", 128, &c.Username)
	r.text("password", 256, &c.Password)
	r.take("qos", &c.QoS)
	r.take("tls", &c.TLS)
	r.text("ca_pem", MaxConfig, &c.CAPEM)
	if r.err == nil {
		r.err = c.Check()
	}
	if r.err != nil {
		return MQTTConfig{}, fmt.Errorf("mqtt_config.txt: %w", r.err)
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
	}
	return nil
}

// configFields reads a configuration file into JSON fields, whichever of its two forms it has.
func configFields(b []byte) (map[string]json.RawMessage, error) {
	if len(b) > MaxConfig {
		return nil, fmt.Errorf("%d bytes, the limit is %d", len(b), MaxConfig)
	}
	text := strings.TrimSpace(string(b))
	if strings.HasPrefix(text, "{") || !strings.Contains(text, "=") {
		return object([]byte(text))
	}
	return keyValueFields(text)
}

// keyValueFields reads the older form: one key=value a line, # comments. Its words become the newer ones.
func keyValueFields(text string) (map[string]json.RawMessage, error) {
	fields := make(map[string]json.RawMessage)
	set := func(key string, v any) {
		raw, err := json.Marshal(v)
		if err == nil { // strings, numbers and booleans always encode
			fields[key] = raw
		}
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			return nil, fmt.Errorf("line %q is not key=value", line)
		}
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		switch key {
		case "broker":
			u, err := url.Parse(value)
			if err != nil || u.Hostname() == "" {
				return nil, fmt.Errorf("broker %q is not mqtt://host:port", value)
			}
			set("broker_host", u.Hostname())
			set("tls", u.Scheme == "mqtts" || u.Scheme == "ssl")
			if p := u.Port(); p != "" {
				fields["broker_port"] = json.RawMessage(strings.TrimLeft(p, "0"))
			}
		case "url":
			set("server_url", value)
		case "version":
			set("current_version", value)
		case "broker_port", "qos", "timeout_ms":
			n, err := strconv.Atoi(value)
			if err != nil {
				return nil, fmt.Errorf("%s of %q is not a number", key, value)
			}
			set(key, n)
		case "skip_cert_verification", "auto_rollback_enabled", "tls":
			set(key, value == "true" || value == "1")
		default:
			set(key, value)
		}
	}
	return fields, nil
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
