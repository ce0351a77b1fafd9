package api

import (
	"errors"
	"strings"

	"bmsota/protocol"
)

// DeviceFiles makes the two configuration files of a device from what the server says of itself and the login it gave.
// trustedKeyPEM may be empty: the device then takes unsigned releases too, and says so in its statuses.
func (i ServerInfo) DeviceFiles(device string, login Login, trustedKeyPEM string) (protocol.OTAConfig, protocol.MQTTConfig, error) {
	if i.URL == "" || i.MQTT.Host == "" {
		return protocol.OTAConfig{}, protocol.MQTTConfig{}, errors.New("the server does not say how devices reach it")
	}
	ota := protocol.OTAConfig{
		ServerURL: i.URL + "/firmware/firmware.bin", CertPEM: i.CAPEM, TimeoutMS: 60_000,
		// The server is behind plain HTTP only where its operator chose so; the device would refuse it otherwise.
		SkipCertVerification: strings.HasPrefix(i.URL, "http:"),
		AutoRollbackEnabled:  true, DeviceID: device, TrustedKeyPEM: trustedKeyPEM,
	}
	if trustedKeyPEM != "" {
		ota.MirrorURL = i.MirrorURL // without a key it would be anybody's word
		ota.ServerKeyPEM = i.OfferKeyPEM
	}
	if i.MQTT.Prefix != protocol.DefaultPrefix {
		ota.TopicPrefix = i.MQTT.Prefix
	}
	// The embedded broker repeats statuses for the original tool by itself; elsewhere the device has to.
	ota.OwnTopicOnly = !i.MQTT.External
	mqtt := protocol.MQTTConfig{
		BrokerHost: i.MQTT.Host, BrokerPort: i.MQTT.Port, Username: device, Password: login.Token, QoS: 1,
		TLS: i.MQTT.TLS, CAPEM: i.MQTT.CAPEM, ClientCertPEM: login.CertificatePEM, ClientKeyPEM: login.KeyPEM,
	}
	return ota, mqtt, errors.Join(ota.Check(), mqtt.Check())
}
