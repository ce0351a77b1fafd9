package server

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"go.uber.org/goleak"

	"bmsota/api"
	"bmsota/esp/appimage"
	"bmsota/manifest"
	"bmsota/protocol"
)

func TestMain(m *testing.M) {
	slowClients()
	goleak.VerifyTestMain(m)
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// testConfig is a server on free ports of loopback, in a folder of its own.
func testConfig(t testing.TB) Config {
	c := Default()
	c.Version = "1.2.3"
	c.DataDir = filepath.Join(t.TempDir(), "data")
	c.Host = "127.0.0.1"
	c.HTTPS.Listen = "127.0.0.1:0"
	c.MQTT.TLSListen = "127.0.0.1:0"
	c.MQTT.Listen = "127.0.0.1:0"
	return c
}

// run opens and runs a server until stop is called, or the test ends.
func run(t testing.TB, c Config) (s *Server, stop func()) {
	t.Helper()
	s, err := Open(context.Background(), c, quiet())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(stop)
	return s, stop
}

// operatorClient is what the tool on this machine makes of operator.json.
func operatorClient(t testing.TB, s *Server) *api.Client {
	t.Helper()
	a, err := api.ReadAccess(s.AccessFile())
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(a.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	hc := httpClient(t, ca)
	c, err := api.NewClient(api.Options{BaseURL: a.Server, Token: a.Token, HTTPClient: hc})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func httpClient(t testing.TB, ca []byte) *http.Client {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		t.Fatal("no authority")
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

type release struct {
	image  []byte
	digest string
	req    api.PublishRequest
}

func makeRelease(t testing.TB, key *ecdsa.PrivateKey, version string, size int64) release {
	t.Helper()
	image, err := appimage.Build(appimage.BuildOptions{Project: "bms-monitor", Version: version, Size: size})
	if err != nil {
		t.Fatal(err)
	}
	img, err := appimage.Parse(image)
	if err != nil {
		t.Fatal(err)
	}
	m, err := manifest.New(image, img, "")
	if err != nil {
		t.Fatal(err)
	}
	text, err := manifest.Sign(m, key)
	if err != nil {
		t.Fatal(err)
	}
	public, err := manifest.EncodePublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return release{image, m.SHA256, api.PublishRequest{SHA256: m.SHA256, Manifest: text, PublicKeyPEM: string(public), Channel: "stable"}}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := manifest.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func publish(t testing.TB, c *api.Client, r release) {
	t.Helper()
	if err := c.Upload(context.Background(), r.digest, int64(len(r.image)), bytes.NewReader(r.image), nil); err != nil {
		t.Fatalf("upload: %v", err)
	}
	if _, err := c.Publish(context.Background(), r.req); err != nil {
		t.Fatalf("publish: %v", err)
	}
}

func get(t testing.TB, hc *http.Client, url string, lines ...string) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequest("GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range lines {
		name, value, _ := strings.Cut(line, ": ")
		req.Header.Set(name, value)
	}
	resp, err := hc.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, b
}

func TestServerWithNothingConfiguredDeliversARelease(t *testing.T) {
	s, _ := run(t, testConfig(t))
	if !s.FirstStart() {
		t.Error("the first start does not know that it is")
	}
	c := operatorClient(t, s)
	r := makeRelease(t, newKey(t), "1.0.0", 256<<10)
	publish(t, c, r)

	// As a device does it: only what the files made for it say.
	oc, mc := deviceFiles(t, s, "bms-1", "x")
	hc := httpClient(t, []byte(oc.CertPEM))
	base := strings.TrimSuffix(oc.ServerURL, "firmware.bin")
	resp, b := get(t, hc, base+"version.json?device=bms-1")
	file, err := protocol.ParseVersionFile(b)
	if err != nil || resp.StatusCode != 200 || resp.ProtoMajor != 1 || file.Version != "1.0.0" || file.SHA256 != r.digest {
		t.Fatalf("version.json: %d %s %+v %v", resp.StatusCode, resp.Proto, file, err)
	}
	if m, err := manifest.Unverified(file.Manifest); err != nil || m.SHA256 != r.digest {
		t.Errorf("manifest: %+v, %v", m, err)
	}
	if _, b := get(t, hc, oc.ServerURL); !bytes.Equal(b, r.image) {
		t.Errorf("firmware.bin has %d bytes that are not the image", len(b))
	}
	// The rest of a download that broke off, as esp_https_ota asks for it.
	half := len(r.image) / 2
	resp, b = get(t, hc, base+file.URL, fmt.Sprintf("Range: bytes=%d-%d", half, len(r.image)), `If-Range: "`+r.digest+`"`)
	sum := sha256.Sum256(append(bytes.Clone(r.image[:half]), b...))
	if resp.StatusCode != 206 || hex.EncodeToString(sum[:]) != r.digest {
		t.Errorf("resumed download: %d with %d bytes", resp.StatusCode, len(b))
	}
	if mc.TLS != true || mc.BrokerPort != portOf(s.mqttTLS) {
		t.Errorf("mqtt_config.txt: %+v", mc)
	}
	info, err := c.Server(t.Context())
	if err != nil || info.Version != "1.2.3" || !info.Ready || info.URL != s.URL() || info.MQTT != s.MQTT() || info.CAPEM != string(s.CAPEM()) ||
		len(info.Addresses) != 3 || info.CertificateExpires.Before(time.Now().Add(renewAhead)) {
		t.Errorf("server: %+v, %v", info, err)
	}
	if runtime.GOOS == "linux" && info.StorageFreeBytes <= 0 {
		t.Errorf("free storage is %d", info.StorageFreeBytes)
	}
	if err := c.Ready(t.Context()); err != nil {
		t.Errorf("ready: %v", err)
	}
}

func deviceFiles(t testing.TB, s *Server, id, token string) (protocol.OTAConfig, protocol.MQTTConfig) {
	t.Helper()
	ota, mqtt, err := s.DeviceFiles(id, token)
	if err != nil {
		t.Fatal(err)
	}
	oc, err := protocol.ParseOTAConfig(ota)
	if err != nil {
		t.Fatal(err)
	}
	mc, err := protocol.ParseMQTTConfig(mqtt)
	if err != nil {
		t.Fatal(err)
	}
	return oc, mc
}

func mqttClient(t testing.TB, mc protocol.MQTTConfig, id string) (paho.Client, error) {
	t.Helper()
	c, err := mqttConnect(mc, id)
	t.Cleanup(func() { c.Disconnect(0) })
	return c, err
}

func mqttConnect(mc protocol.MQTTConfig, id string) (paho.Client, error) {
	scheme := "tcp"
	o := paho.NewClientOptions().SetClientID(id).SetUsername(mc.Username).SetPassword(mc.Password).SetAutoReconnect(false).SetConnectTimeout(5 * time.Second)
	if mc.TLS {
		scheme = "ssl"
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM([]byte(mc.CAPEM))
		o.SetTLSConfig(&tls.Config{RootCAs: pool})
	}
	c := paho.NewClient(o.AddBroker(scheme + "://" + net.JoinHostPort(mc.BrokerHost, strconv.Itoa(mc.BrokerPort))))
	token := c.Connect()
	token.WaitTimeout(10 * time.Second)
	return c, token.Error()
}

// A device logs in over TLS with the token it was given and its status shows in the listing; revoked, it is thrown out.
// The operator's login of operator.json works at the broker.
func TestDeviceSpeaksAndOperatorSeesIt(t *testing.T) {
	s, _ := run(t, testConfig(t))
	c := operatorClient(t, s)
	enrolled, err := c.Enroll(t.Context(), "bms-1")
	if err != nil {
		t.Fatal(err)
	}
	_, mc := deviceFiles(t, s, enrolled.DeviceID, enrolled.Token)
	device, err := mqttClient(t, mc, "bms-1")
	if err != nil {
		t.Fatal(err)
	}
	status := protocol.Status{DeviceID: "bms-1", CurrentVersion: "1.0.0", Phase: protocol.PhaseIdle, BootID: "b", Seq: 1, Message: "here"}
	payload, err := status.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	token := device.Publish(protocol.Topics{}.Status("bms-1"), 1, true, payload)
	if !token.WaitTimeout(10*time.Second) || token.Error() != nil {
		t.Fatalf("status was not acknowledged: %v", token.Error())
	}
	// Acknowledged means durable, so it is there without waiting.
	got, err := c.Device(t.Context(), "bms-1")
	if err != nil || got.CurrentVersion != "1.0.0" || !got.Online || got.LastSeen == nil || got.Message != "here" {
		t.Errorf("device: %+v, %v", got, err)
	}

	a := s.Access()
	operator, err := mqttClient(t, protocol.MQTTConfig{BrokerHost: a.MQTT.Host, BrokerPort: a.MQTT.Port, Username: a.MQTT.Username, Password: a.MQTT.Password}, "tool")
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan string, 1)
	operator.Subscribe(protocol.Topics{}.StatusFilter(), 1, func(_ paho.Client, m paho.Message) {
		select {
		case seen <- m.Topic():
		default:
		}
	}).WaitTimeout(10 * time.Second)
	select {
	case topic := <-seen:
		if topic != "bms/ota/status/bms-1" {
			t.Errorf("status on %s", topic)
		}
	case <-time.After(10 * time.Second):
		t.Error("the operator sees no status")
	}

	if err := c.Revoke(t.Context(), "bms-1"); err != nil {
		t.Fatal(err)
	}
	if _, err := mqttClient(t, mc, "bms-1-again"); err == nil {
		t.Error("a revoked device was let in")
	}
}

func TestSecondStartFindsEverythingAgain(t *testing.T) {
	cfg := testConfig(t)
	first, stop := run(t, cfg)
	ca, access := first.CAPEM(), first.Access()
	r := makeRelease(t, newKey(t), "1.0.0", 0)
	publish(t, operatorClient(t, first), r)
	leaf := first.certs.current.Load().Leaf
	stop()

	second, _ := run(t, cfg)
	if second.FirstStart() || !bytes.Equal(second.CAPEM(), ca) || second.Access().Token != access.Token {
		t.Error("authority or token changed")
	}
	if !second.certs.current.Load().Leaf.Equal(leaf) {
		t.Error("the certificate was made again without need")
	}
	releases, err := operatorClient(t, second).Releases(t.Context())
	if err != nil || len(releases) != 1 || releases[0].SHA256 != r.digest {
		t.Errorf("releases: %+v, %v", releases, err)
	}
	if _, b := get(t, httpClient(t, ca), second.URL()+"/firmware/"+r.digest+".bin"); !bytes.Equal(b, r.image) {
		t.Error("the image is not served any more")
	}
}

func TestLostOrSpoiltOperatorFileGetsANewToken(t *testing.T) {
	cfg := testConfig(t)
	s, stop := run(t, cfg)
	token := s.Access().Token
	stop()
	for _, spoil := range []func() error{
		func() error { return os.Remove(s.AccessFile()) },
		func() error { return os.WriteFile(s.AccessFile(), []byte(`{"tok`), 0o600) },
		func() error { return os.WriteFile(s.AccessFile(), []byte(`{"token":"guessed"}`), 0o600) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		next, stop := run(t, cfg)
		if next.Access().Token == token || next.Access().Token == "guessed" || next.Access().Token == "" {
			t.Errorf("token is %q", next.Access().Token)
		}
		if _, err := operatorClient(t, next).Releases(t.Context()); err != nil {
			t.Errorf("the new token does not work: %v", err)
		}
		old, err := api.NewClient(api.Options{BaseURL: next.URL(), Token: token, HTTPClient: httpClient(t, next.CAPEM())})
		if err != nil {
			t.Fatal(err)
		}
		var e *api.Error
		if _, err := old.Releases(t.Context()); !errors.As(err, &e) || e.Status != 401 {
			t.Errorf("the old token: %v", err)
		}
		token = next.Access().Token
		stop()
	}
}

func TestDataFolderIsOursAlone(t *testing.T) {
	cfg := testConfig(t)
	first, stop := run(t, cfg)
	_, err := Open(t.Context(), cfg, quiet())
	want := fmt.Sprintf("data folder %s is in use by another server (process %d): stop that one, or give this one another folder", cfg.DataDir, os.Getpid())
	if err == nil || err.Error() != want {
		t.Errorf("a second server: %v\nwant %s", err, want)
	}
	if _, err := operatorClient(t, first).Releases(t.Context()); err != nil {
		t.Errorf("the first server was disturbed: %v", err)
	}
	if runtime.GOOS != "windows" {
		open := 0
		err := filepath.WalkDir(cfg.DataDir, func(path string, d os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			// SQLite makes its own side files with the permissions of the database.
			if info.Mode().Perm()&0o077 != 0 {
				open++
				t.Errorf("%s has mode %v", path, info.Mode())
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	stop()
	again, err := Open(t.Context(), cfg, quiet())
	if err != nil {
		t.Fatalf("after the first has ended: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

func TestOpenSaysWhatToDo(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	addr := taken.Addr().String()
	for _, c := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"web port taken", func(c *Config) { c.HTTPS.Listen = addr }, addr + " is taken by another program: stop it, or set https.listen to another port"},
		{"mqtt port taken", func(c *Config) { c.MQTT.TLSListen = addr }, "set mqtt.tls_listen to another port"},
		{"foreign address", func(c *Config) { c.HTTPS.Listen = "192.0.2.1:0" }, "is no address of this machine: set https.listen"},
		{"bad configuration", func(c *Config) { c.MQTT.Prefix = "a//b" }, "configuration: mqtt.prefix"},
		{"no certificate", func(c *Config) { c.TLS.CertFile, c.TLS.KeyFile = "/none.pem", "/none.key" }, "own certificate"},
		{"folder is a file", func(c *Config) { c.DataDir = os.Args[0] }, "cannot be the data folder: a part of it is a file"},
	} {
		cfg := testConfig(t)
		c.change(&cfg)
		s, err := Open(t.Context(), cfg, quiet())
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
		if err == nil {
			s.Close()
			continue
		}
		// What a failed start took is given back.
		if c.name == "mqtt port taken" {
			cfg.MQTT.TLSListen = "127.0.0.1:0"
			s, err := Open(t.Context(), cfg, quiet())
			if err != nil {
				t.Fatalf("%s: then: %v", c.name, err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestBannerSaysWhatADeviceNeedsAndNoSecret(t *testing.T) {
	cfg := testConfig(t)
	cfg.MQTT.Prefix = "fleet/bms"
	s, _ := run(t, cfg)
	banner := s.Banner()
	for _, want := range []string{
		s.URL() + "/", s.URL() + "/firmware/", "mqtts://127.0.0.1:" + strconv.Itoa(portOf(s.mqttTLS)), s.AccessFile(), "bmsota devices enroll DEVICE-ID --files",
		`"server_url": "` + s.URL() + `/firmware/firmware.bin"`, `"topic_prefix": "fleet/bms"`, `"password": "TOKEN"`, "BEGIN CERTIFICATE",
	} {
		if !strings.Contains(banner, want) {
			t.Errorf("no %q in\n%s", want, banner)
		}
	}
	if strings.Contains(banner, s.Access().Token) || strings.Contains(banner, "PRIVATE KEY") {
		t.Error("the banner holds a secret")
	}
}

func TestPlainHTTPBehindAProxy(t *testing.T) {
	cfg := testConfig(t)
	cfg.HTTPS.Listen, cfg.HTTPS.PlainListen, cfg.PublicURL = off, "127.0.0.1:0", "https://ota.example.org"
	s, _ := run(t, cfg)
	if s.URL() != "https://ota.example.org" || s.HTTPSAddr() != "" {
		t.Errorf("URL %s, https on %q", s.URL(), s.HTTPSAddr())
	}
	c, err := api.NewClient(api.Options{BaseURL: s.Access().Server, Token: s.Access().Token})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Releases(t.Context()); err != nil {
		t.Errorf("operator.json names %s: %v", s.Access().Server, err)
	}
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
}

// A server that ends does not wait for connections that wait for a place.
func TestFullServerEnds(t *testing.T) {
	cfg := testConfig(t)
	cfg.HTTPS.MaxConnections = 1
	s, stop := run(t, cfg)
	hc := httpClient(t, s.CAPEM())
	if resp, _ := get(t, hc, s.URL()+"/healthz"); resp.StatusCode != 200 { // keeps its connection, the only place
		t.Errorf("%d", resp.StatusCode)
	}
	conn, err := net.Dial("tcp", s.HTTPSAddr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stop()
}

// A server can use the broker of another make; here it is the embedded one of a second server.
func TestExternalBroker(t *testing.T) {
	other, _ := run(t, testConfig(t))
	enrolled, err := operatorClient(t, other).Enroll(t.Context(), "bms-1")
	if err != nil {
		t.Fatal(err)
	}
	cfg := testConfig(t)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, other.CAPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg.MQTT.External = ExternalBroker{URL: "mqtts://" + other.MQTTTLSAddr(), Username: other.Access().MQTT.Username, Password: other.Access().MQTT.Password, CAFile: ca}
	s, _ := run(t, cfg)
	if s.MQTTAddr() != "" || s.MQTTTLSAddr() != "" || s.MQTT().Port != portOf(other.mqttTLS) || !s.MQTT().TLS {
		t.Errorf("broker is %+v, own listeners on %q and %q", s.MQTT(), s.MQTTAddr(), s.MQTTTLSAddr())
	}
	a := s.Access()
	if a.MQTT.Username != cfg.MQTT.External.Username || a.MQTT.CAFile != ca {
		t.Errorf("operator.json says %+v", a.MQTT)
	}
	c := operatorClient(t, s)
	if _, err := c.Enroll(t.Context(), "bms-1"); err != nil {
		t.Fatal(err)
	}
	// What devices are told is how to reach that broker.
	_, mc := deviceFiles(t, s, "bms-1", enrolled.Token)
	device, err := mqttClient(t, mc, "bms-1")
	if err != nil {
		t.Fatal(err)
	}
	payload, err := protocol.Status{DeviceID: "bms-1", CurrentVersion: "4.5.6", Phase: protocol.PhaseIdle, BootID: "b", Seq: 1}.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	device.Publish(protocol.Topics{}.Status("bms-1"), 1, true, payload).WaitTimeout(10 * time.Second)
	for deadline := time.Now().Add(20 * time.Second); ; {
		got, err := c.Device(t.Context(), "bms-1")
		if err == nil && got.CurrentVersion == "4.5.6" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the status did not arrive: %+v, %v", got, err)
		}
		runtime.Gosched()
	}
}

// Publishing goes on while readers download over real TLS, and nobody gets a mix.
func TestReadersSeeOldOrNewWhileReleasesArePublished(t *testing.T) {
	s, _ := run(t, testConfig(t))
	c := operatorClient(t, s)
	key := newKey(t)
	publish(t, c, makeRelease(t, key, "1.0.0", 128<<10))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	versions := make([]map[string]bool, 8)
	for i := range versions {
		versions[i] = make(map[string]bool)
		hc := httpClient(t, s.CAPEM())
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				resp, err := hc.Get(s.URL() + "/firmware/firmware.bin")
				if err != nil {
					t.Error(err)
					return
				}
				b, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				sum := sha256.Sum256(b)
				if etag := strings.Trim(resp.Header.Get("ETag"), `"`); err != nil || hex.EncodeToString(sum[:]) != etag {
					t.Errorf("%d bytes under %s: %v", len(b), etag, err)
					return
				}
				versions[i][resp.Header.Get("ETag")] = true
			}
		})
	}
	for i := 1; i <= 5; i++ {
		publish(t, c, makeRelease(t, key, fmt.Sprintf("1.%d.0", i), int64(128+i)<<10))
	}
	close(stop)
	wg.Wait()
	total := make(map[string]bool)
	for _, m := range versions {
		for v := range m {
			total[v] = true
		}
	}
	if len(total) < 2 {
		t.Errorf("readers saw %d releases: nothing was switched under them", len(total))
	}
}

// The original firmware keeps three sessions at once: it is gone when the last of them is, and not for ever there.
func TestDeviceWithSeveralSessionsIsGoneWithTheLast(t *testing.T) {
	s, _ := run(t, testConfig(t))
	c := operatorClient(t, s)
	enrolled, err := c.Enroll(t.Context(), "bms-1")
	if err != nil {
		t.Fatal(err)
	}
	_, mc := deviceFiles(t, s, enrolled.DeviceID, enrolled.Token)
	var sessions []paho.Client
	for _, id := range []string{"ota", "telemetry", "log"} {
		session, err := mqttClient(t, mc, id)
		if err != nil {
			t.Fatal(err)
		}
		sessions = append(sessions, session)
	}
	online := func(want bool) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
			got, err := c.Device(t.Context(), "bms-1")
			if err == nil && got.Online == want {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("online is %v (%v), want %v", got.Online, err, want)
			}
		}
	}
	online(true)
	for i, session := range sessions {
		session.Disconnect(0)
		online(i < len(sessions)-1)
	}
}
