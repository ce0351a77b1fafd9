package server

import (
	"path/filepath"
	"testing"
	"time"

	"bmsota/api"
	"bmsota/protocol"
)

// TestRevocationCutsLiveSessionsWithinASecond, of devices and of operators' tokens, from the API's answer on, with a real
// client over a real connection.
func TestRevocationCutsLiveSessionsWithinASecond(t *testing.T) {
	s, _ := run(t, testConfig(t))
	c := operatorClient(t, s)
	enrolled, err := c.Enroll(t.Context(), "bms-1")
	if err != nil {
		t.Fatal(err)
	}
	_, board := deviceFiles(t, s, enrolled.DeviceID, enrolled.Token)
	made, err := c.AddToken(t.Context(), api.AddTokenRequest{Name: "ci", Role: "operator"})
	if err != nil {
		t.Fatal(err)
	}
	tool := board
	tool.Username, tool.Password = "ci", made.Token
	for name, login := range map[string]protocol.MQTTConfig{"device": board, "token": tool} {
		client, err := mqttClient(t, login, "x")
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if name == "device" {
			err = c.Revoke(t.Context(), "bms-1")
		} else {
			err = c.RemoveToken(t.Context(), "ci")
		}
		if err != nil {
			t.Fatal(err)
		}
		for began := time.Now(); client.IsConnected(); time.Sleep(5 * time.Millisecond) {
			if time.Since(began) > time.Second {
				t.Errorf("%s: still connected a second later", name)
				break
			}
		}
		if _, err := mqttClient(t, login, "y"); err == nil {
			t.Errorf("%s: comes back", name)
		}
	}
}

// TestBrowsersComeByHTTPSOnlyWhereSomebodyChoseTheName: not with the authority this server made for itself.
func TestBrowsersComeByHTTPSOnlyWhereSomebodyChoseTheName(t *testing.T) {
	s, _ := run(t, testConfig(t))
	for name, want := range map[string]bool{"local authority": false, "plain address": false, "proxy": true, "own certificate": true, "acme": true} {
		copied := Server{https: s.https, cfg: s.cfg}
		switch name {
		case "plain address":
			copied.cfg.PublicURL = "http://ota.example.net"
		case "proxy":
			copied.https, copied.cfg.PublicURL = nil, "https://ota.example.net"
		case "own certificate":
			copied.cfg.TLS.CertFile = filepath.Join(t.TempDir(), "cert.pem")
		case "acme":
			copied.cfg.TLS.ACME.Hosts = []string{"ota.example.net"}
		}
		if got := copied.httpsOnly(); got != want {
			t.Errorf("%s: %t", name, got)
		}
	}
}
