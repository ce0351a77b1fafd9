package server

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bmsota/api"
	"bmsota/protocol"

	paho "github.com/eclipse/paho.mqtt.golang"
)

// certificates of this file that the server did not give.
type maker struct {
	t   *testing.T
	ca  *x509.Certificate
	key crypto.Signer
}

// authorityOf is the server's own authority for devices, in the hands of somebody else.
func authorityOf(t *testing.T, s *Server, cert, key string) maker {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(s.cfg.DataDir, tlsName, cert), filepath.Join(s.cfg.DataDir, tlsName, key))
	if err != nil {
		t.Fatal(err)
	}
	return maker{t, pair.Leaf, pair.PrivateKey.(crypto.Signer)}
}

func otherAuthority(t *testing.T) maker {
	t.Helper()
	key := newKey(t)
	m := maker{t: t, key: key}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "another"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	m.ca = m.sign(template, template, key.Public(), key).Leaf
	return m
}

// sign makes a certificate; pair is the key that its holder has.
func (m maker) sign(template, parent *x509.Certificate, public crypto.PublicKey, pair crypto.Signer) tls.Certificate {
	m.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, m.key)
	if err != nil {
		m.t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		m.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: pair, Leaf: leaf}
}

// client is a certificate for a client, as the server makes them, but for what change does to it.
func (m maker) client(id string, change func(*x509.Certificate)) tls.Certificate {
	m.t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: id}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true}
	if change != nil {
		change(template)
	}
	key := newKey(m.t)
	return m.sign(template, m.ca, key.Public(), key)
}

func enrolled(t *testing.T, c *api.Client, id string) tls.Certificate {
	t.Helper()
	_, login, err := api.EnrollDevice(t.Context(), c, id, true)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair([]byte(login.CertificatePEM), []byte(login.KeyPEM))
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// shower connects with a certificate, or without.
type shower struct {
	t      *testing.T
	server *Server
	conf   *tls.Config
}

func holding(t *testing.T, s *Server, certs ...tls.Certificate) shower {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.CAPEM())
	conf := &tls.Config{RootCAs: pool, ServerName: "127.0.0.1"}
	if len(certs) > 0 {
		// Whatever the server says it wants.
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certs[0], nil }
	}
	return shower{t, s, conf}
}

func (c shower) mqtt(username, password string) (paho.Client, error) {
	o := paho.NewClientOptions().SetClientID("c").SetUsername(username).SetPassword(password).SetAutoReconnect(false).SetConnectTimeout(5 * time.Second).
		SetTLSConfig(c.conf).AddBroker("ssl://" + c.server.MQTTTLSAddr())
	lost := make(chan struct{})
	o.SetConnectionLostHandler(func(paho.Client, error) { close(lost) })
	client := paho.NewClient(o)
	token := client.Connect()
	token.WaitTimeout(10 * time.Second)
	c.t.Cleanup(func() { client.Disconnect(0) })
	return &watched{client, lost}, token.Error()
}

// watched says when its session is lost.
type watched struct {
	paho.Client
	lost chan struct{}
}

// https asks for the release of a device; 0 when there is no connection.
func (c shower) https(t *testing.T, query string) int {
	t.Helper()
	tr := &http.Transport{TLSClientConfig: c.conf.Clone(), DisableKeepAlives: true}
	ask := func(method string) int { // GET is answered by the web side's lanes, HEAD by net/http
		req, err := http.NewRequestWithContext(t.Context(), method, "https://"+c.server.HTTPSAddr()+"/firmware/version.json"+query, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := tr.RoundTrip(req)
		if err != nil {
			return 0
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	get := ask(http.MethodGet)
	if head := ask(http.MethodHead); head != get {
		t.Errorf("%s: GET is answered with %d and HEAD with %d", query, get, head)
	}
	return get
}

func withCertificates(t *testing.T) (*Server, *api.Client) {
	t.Helper()
	cfg := testConfig(t)
	cfg.HTTPS.ClientCertificates = true
	s, _ := run(t, cfg)
	c := operatorClient(t, s)
	publish(t, c, makeRelease(t, newKey(t), "1.0.0", 70_000))
	return s, c
}

// A certificate opens what its device may, and only while it is the one on record. Every row is tried at the broker and over
// HTTPS.
func TestOnlyTheCertificateOnRecordOpens(t *testing.T) {
	s, c := withCertificates(t)
	ours := authorityOf(t, s, deviceCACertName, deviceCAKeyName)
	local := authorityOf(t, s, caCertName, caKeyName)
	other := otherAuthority(t)

	good, second := enrolled(t, c, "d1"), enrolled(t, c, "d2")
	old := enrolled(t, c, "replaced")
	fresh := enrolled(t, c, "replaced")
	revoked := enrolled(t, c, "revoked")
	back := enrolled(t, c, "back")
	retired := enrolled(t, c, "retired")
	if _, err := c.Enroll(t.Context(), "retired"); err != nil { // a token now
		t.Fatal(err)
	}
	for _, id := range []string{"revoked", "back"} {
		if err := c.Revoke(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	again := enrolled(t, c, "back")

	intermediate := maker{t, good.Leaf, good.PrivateKey.(crypto.Signer)}
	under := intermediate.client("d2", nil)
	under.Certificate = append(under.Certificate, good.Certificate[0])

	const refused, unconnected = http.StatusForbidden, 0
	for _, row := range []struct {
		name     string
		cert     tls.Certificate
		username string
		query    string
		in       bool // at the broker
		status   int  // over HTTPS
	}{
		{"the one on record", good, "d1", "?device=d1", true, 200},
		{"without a name", good, "", "", true, 200},
		{"with the name of another", good, "d2", "?device=d2", false, refused},
		{"with the name of an operator", good, s.Access().MQTT.Username, "?device=" + s.Access().MQTT.Username, false, refused},
		{"of a second device", second, "d2", "?device=d2", true, 200},
		{"replaced by another", old, "replaced", "", false, refused},
		{"that replaced it", fresh, "replaced", "", true, 200},
		{"replaced by a token", retired, "retired", "", false, refused},
		{"revoked", revoked, "revoked", "", false, refused},
		{"revoked, then replaced", back, "back", "", false, refused},
		{"after a revocation", again, "back", "", true, 200},
		{"signed, not on record", ours.client("d1", nil), "d1", "", false, refused},
		{"signed, for a device that is not there", ours.client("d9", nil), "d9", "", false, refused},
		{"signed, for an operator", ours.client(s.Access().MQTT.Username, nil), "", "", false, refused},
		{"signed, without a name", ours.client("", nil), "", "", false, refused},
		{"signed, with a name without end", ours.client(strings.Repeat("x", 64)+"x", func(x *x509.Certificate) {}), "", "", false, refused},
		{"expired", ours.client("d1", func(x *x509.Certificate) {
			x.NotBefore, x.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
		}), "d1", "", false, unconnected},
		{"not yet valid", ours.client("d1", func(x *x509.Certificate) { x.NotBefore = time.Now().Add(30 * time.Minute) }), "d1", "", false, unconnected},
		{"for servers only", ours.client("d1", func(x *x509.Certificate) { x.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), "d1", "", false, unconnected},
		{"of another authority", other.client("d1", nil), "d1", "", false, unconnected},
		{"of the authority for servers", local.client("d1", nil), "d1", "", false, unconnected},
		{"the server's own", tls.Certificate{Certificate: s.certs.current.Load().Certificate, PrivateKey: s.certs.current.Load().PrivateKey}, "d1", "", false, unconnected},
		{"the authority's own", tls.Certificate{Certificate: [][]byte{ours.ca.Raw}, PrivateKey: ours.key}, "", "", false, refused},
		{"signed by a device", under, "d2", "", false, unconnected},
		{"without its key", tls.Certificate{Certificate: good.Certificate, PrivateKey: newKey(t)}, "d1", "", false, unconnected},
	} {
		peer := holding(t, s, row.cert)
		client, err := peer.mqtt(row.username, "")
		if (err == nil) != row.in {
			t.Errorf("%s: broker says %v, want in=%t", row.name, err, row.in)
		}
		client.Disconnect(0)
		if status := peer.https(t, row.query); status != row.status {
			t.Errorf("%s: HTTPS answers %d, want %d", row.name, status, row.status)
		}
	}

	// With a certificate that is not good a password does not help; without one it is as ever.
	out, err := c.Enroll(t.Context(), "token")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := holding(t, s, old).mqtt("token", out.Token); err == nil {
		t.Error("a password was taken beside a certificate of another")
	}
	if _, err := holding(t, s).mqtt("token", out.Token); err != nil {
		t.Errorf("a token alone: %v", err)
	}
	enrolled(t, c, "token")
	if _, err := holding(t, s).mqtt("token", out.Token); err == nil {
		t.Error("a token was taken after a certificate had replaced it")
	}
	if _, err := holding(t, s).mqtt("d1", ""); err == nil {
		t.Error("a device with a certificate came in without it")
	}
	if status := holding(t, s).https(t, "?device=d1"); status != 200 {
		t.Errorf("without a certificate HTTPS answers %d", status)
	}
}

// The rights of a device by certificate are those of a device, and a revocation ends its session at once; a TLS session that is
// resumed brings the certificate with it and is asked again.
func TestARevocationCutsAndOutlivesResumedSessions(t *testing.T) {
	s, c := withCertificates(t)
	peer := holding(t, s, enrolled(t, c, "d1"))
	peer.conf.ClientSessionCache = tls.NewLRUClientSessionCache(4)

	client, err := peer.mqtt("", "")
	if err != nil {
		t.Fatal(err)
	}
	topics := protocol.Topics{}
	sub := client.SubscribeMultiple(map[string]byte{topics.Command("d1"): 1, topics.Command("d2"): 1}, nil)
	sub.WaitTimeout(5 * time.Second)
	granted := sub.(*paho.SubscribeToken).Result()
	if granted[topics.Command("d1")] != 1 || granted[topics.Command("d2")] != 0x80 {
		t.Errorf("subscriptions are granted as %v", granted)
	}

	// A session is resumed, and the server knows who it is.
	resumed := func() bool {
		conn, err := tls.Dial("tcp", s.HTTPSAddr(), peer.conf)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().DidResume
	}
	if peer.https(t, "?device=d2") != http.StatusForbidden || !resumed() || peer.https(t, "?device=d2") != http.StatusForbidden {
		t.Error("a resumed session forgets its certificate")
	}

	began := time.Now()
	if err := c.Revoke(t.Context(), "d1"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-client.(*watched).lost:
		if took := time.Since(began); took > time.Second {
			t.Errorf("cut after %v", took)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("a revoked device stays connected")
	}
	if !resumed() {
		t.Error("the session is not resumed any more: the next lines show nothing")
	}
	if status := peer.https(t, ""); status != http.StatusForbidden {
		t.Errorf("a resumed session of a revoked device gets %d", status)
	}
	if _, err := peer.mqtt("", ""); err == nil {
		t.Error("a revoked device comes back")
	}
}

// A request is taken only from who has the key, and nothing of it but the key.
func TestCertificateRequests(t *testing.T) {
	s, c := withCertificates(t)
	request := func(key crypto.Signer, template *x509.CertificateRequest) string {
		der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	}
	named := &x509.CertificateRequest{Subject: pkix.Name{CommonName: "d1"}}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := request(newKey(t), named)
	block, _ := pem.Decode([]byte(good))
	block.Bytes[len(block.Bytes)-1] ^= 1
	forged := string(pem.EncodeToMemory(block))
	for name, text := range map[string]string{
		"no PEM": "x", "of another kind": strings.ReplaceAll(good, "CERTIFICATE REQUEST", "CERTIFICATE"), "signed by another key": forged,
		"for another device": request(newKey(t), &x509.CertificateRequest{Subject: pkix.Name{CommonName: "d2"}}), "RSA": request(rsaKey, named),
		"P-384": request(p384, named), "too long": good + strings.Repeat("\n", 5000), "cut off": good[:200],
	} {
		if _, err := c.EnrollCertificate(t.Context(), "d1", text); err == nil || !strings.Contains(err.Error(), "certificate_request") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := c.Device(t.Context(), "d1"); err == nil {
		t.Error("a request that was refused has enrolled the device")
	}
	greedy := &x509.CertificateRequest{Subject: pkix.Name{CommonName: "d1", Organization: []string{"admin"}}, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	out, err := c.EnrollCertificate(t.Context(), "d1", request(newKey(t), greedy))
	if err != nil {
		t.Fatal(err)
	}
	der, _ := pem.Decode([]byte(out.Certificate))
	leaf, err := x509.ParseCertificate(der.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if leaf.Subject.String() != "CN=d1" || len(leaf.DNSNames)+len(leaf.IPAddresses) != 0 || leaf.IsCA || len(leaf.ExtKeyUsage) != 1 || leaf.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth {
		t.Errorf("signed was %s %v %v for %v", leaf.Subject, leaf.DNSNames, leaf.IPAddresses, leaf.ExtKeyUsage)
	}
	if !leaf.NotAfter.Equal(out.CertificateEnds) || time.Until(leaf.NotAfter) < 19*365*24*time.Hour {
		t.Errorf("it ends on %s, said is %s", leaf.NotAfter, out.CertificateEnds)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.CAPEM())
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err == nil {
		t.Error("who trusts the server's authority trusts a device's certificate")
	}
}

// Without a broker of ours over TLS there are no certificates, and no key for them.
func TestNoCertificatesWithoutABrokerThatAsksForThem(t *testing.T) {
	cfg := testConfig(t)
	cfg.MQTT.TLSListen = off
	s, _ := run(t, cfg)
	c := operatorClient(t, s)
	if _, _, err := api.EnrollDevice(t.Context(), c, "d1", true); err == nil || !strings.Contains(err.Error(), "mqtt.tls_listen") {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(filepath.Join(cfg.DataDir, tlsName, deviceCAKeyName)); err == nil {
		t.Error("an authority for devices was made")
	}
	cfg.HTTPS.ClientCertificates = true
	if err := cfg.Check(); err == nil || !strings.Contains(err.Error(), "https.client_certificates") {
		t.Errorf("%v", err)
	}
}

// HTTPS asks nobody for a certificate unless it is told to, because it would ask browsers as well; the next start knows the
// certificates of the last.
func TestBrowsersAreNotAskedAndCertificatesOutliveARestart(t *testing.T) {
	cfg := testConfig(t)
	s, stop := run(t, cfg)
	cert := enrolled(t, operatorClient(t, s), "d1")
	asked := false
	peer := holding(t, s)
	peer.conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { asked = true; return &cert, nil }
	if status := peer.https(t, ""); status != http.StatusNotFound || asked {
		t.Errorf("answered %d, asked for a certificate: %t", status, asked)
	}
	stop()
	s, _ = run(t, cfg)
	if _, err := holding(t, s, cert).mqtt("", ""); err != nil {
		t.Error(err)
	}
}
