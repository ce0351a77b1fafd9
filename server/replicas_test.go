package server

import (
	"strings"
	"testing"
)

func TestReplicasNeedWhatTheyShare(t *testing.T) {
	whole := func() Config {
		return Config{Database: Database{URL: "postgres://ota@/ota"}, Replicas: Replicas{Name: "a"}, Firmware: Firmware{Folder: "images"},
			Fleet: Fleet{OfferKeyFile: "offer.key"}, TLS: TLS{CertFile: "cert.pem", KeyFile: "key.pem"}}
	}
	if err := whole().Check(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		but  func(*Config)
		want string // "" = it will do
	}{
		{"SQLite", func(c *Config) { c.Database = Database{} }, "replicas.name needs database.url"},
		{"images of its own", func(c *Config) { c.Firmware.Folder = "" }, "needs firmware.folder or firmware.bucket"},
		{"an offer key of its own", func(c *Config) { c.Fleet.OfferKeyFile = "" }, "needs fleet.offer_key_file"},
		{"a certificate of its own", func(c *Config) { c.TLS = TLS{} }, "needs tls.cert_file"},
		{"TLS ends before it", func(c *Config) {
			c.TLS, c.HTTPS, c.MQTT.TLSListen = TLS{}, HTTPS{Listen: off, PlainListen: "127.0.0.1:80"}, off
		}, ""},
		{"a name that is none", func(c *Config) { c.Replicas.Name = "a b" }, "is not 1 to 32 letters"},
		{"a group that is none", func(c *Config) { c.Replicas.ShareGroup = "a/#" }, "is no name of a group"},
		{"a group without a name", func(c *Config) { c.Replicas = Replicas{ShareGroup: "g"}; c.Firmware.Folder = "" }, "replicas.name is empty"},
		{"a folder without a name", func(c *Config) { c.Replicas = Replicas{} }, "firmware.folder is for servers that share it"},
		{"certificates of devices", func(c *Config) { c.HTTPS.ClientCertificates = true }, "https.client_certificates needs"},
	} {
		cfg := whole()
		c.but(&cfg)
		if err := cfg.Check(); c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	cfg := whole()
	if cfg.clientID() != "bmsota-a" || cfg.shareGroup() != "bmsota" || (Config{}).shareGroup() != "" || (Config{}).clientID() != "" {
		t.Errorf("client id %q, group %q", cfg.clientID(), cfg.shareGroup())
	}
	cfg.Replicas.ShareGroup = off
	if cfg.shareGroup() != "" {
		t.Errorf("a group that is off is %q", cfg.shareGroup())
	}
}
