package deploy

import (
	"errors"
	"net"
	"net/url"

	"bmsota/api"
	"bmsota/protocol"
)

// DeviceFiles makes the two configuration files of a device from what the server says of itself and the token it gave.
// trustedKeyPEM may be empty: the device then takes unsigned releases too, and says so in its statuses.
func DeviceFiles(info api.ServerInfo, device, token, trustedKeyPEM string) (protocol.OTAConfig, protocol.MQTTConfig, error) {
	u, err := url.Parse(info.URL)
	if err != nil || u.Host == "" {
		return protocol.OTAConfig{}, protocol.MQTTConfig{}, errors.New("the server does not say how devices reach it")
	}
	ota := protocol.OTAConfig{ServerURL: info.URL + "/firmware/firmware.bin", CertPEM: info.CAPEM, TimeoutMS: 60_000,
		AutoRollbackEnabled: true, DeviceID: device, TrustedKeyPEM: trustedKeyPEM}
	if info.MQTT.Prefix != protocol.DefaultPrefix {
		ota.TopicPrefix = info.MQTT.Prefix
	}
	mqtt := protocol.MQTTConfig{BrokerHost: info.MQTT.Host, BrokerPort: info.MQTT.Port, Username: device, Password: token, QoS: 1, TLS: info.MQTT.TLS}
	if mqtt.TLS {
		mqtt.CAPEM = info.CAPEM
	}
	// Plain MQTT is open on loopback only, so a device elsewhere would get files that cannot work.
	if ip := net.ParseIP(mqtt.BrokerHost); !mqtt.TLS && ip != nil && !ip.IsLoopback() && mqtt.BrokerHost != u.Hostname() {
		return ota, mqtt, errors.New("the broker offers plain MQTT to this machine only")
	}
	return ota, mqtt, nil
}
