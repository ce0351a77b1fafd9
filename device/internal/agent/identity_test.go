package agent

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"bmsota/protocol"
)

// pairOf is a certificate of a board with its key, in PEM.
func pairOf(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "d1"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	text, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: text}))
}

// A certificate counts with its own key only.
func TestTheIdentityIsAPair(t *testing.T) {
	cert, key := pairOf(t)
	_, other := pairOf(t)
	for name, c := range map[string]protocol.MQTTConfig{
		"key of another": {ClientCertPEM: cert, ClientKeyPEM: other}, "no key": {ClientCertPEM: cert, ClientKeyPEM: "x"}, "no certificate": {ClientCertPEM: "x", ClientKeyPEM: key},
		"the other way round": {ClientCertPEM: key, ClientKeyPEM: cert},
	} {
		if got, err := identity(c); err == nil || got != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got, err := identity(protocol.MQTTConfig{}); got != nil || err != nil {
		t.Errorf("none: %v", err)
	}
	if got, err := identity(protocol.MQTTConfig{ClientCertPEM: cert, ClientKeyPEM: key}); got == nil || err != nil {
		t.Errorf("a pair: %v", err)
	}
}

// A board shows its certificate to its own server; a mirror that asks for one gets none.
func TestTheCertificateIsShownToTheOwnServerOnly(t *testing.T) {
	var shown string
	ask := func() *httptest.Server {
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			shown = ""
			for _, c := range r.TLS.PeerCertificates {
				shown += c.Subject.CommonName
			}
		}))
		s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
		s.StartTLS()
		t.Cleanup(s.Close)
		return s
	}
	server, mirror := ask(), ask()
	cert, key := pairOf(t)
	own, err := identity(protocol.MQTTConfig{ClientCertPEM: cert, ClientKeyPEM: key})
	if err != nil {
		t.Fatal(err)
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	w, err := newWeb(settings{ota: protocol.OTAConfig{ServerURL: server.URL + "/firmware/firmware.bin", CertPEM: string(ca)}, identity: own}, &Config{Trust: &Trust{}, Dial: dialer()}, &heap{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	for url, want := range map[string]string{server.URL + "/version.json": "d1", mirror.URL + "/version.json": ""} {
		resp, fl := w.get(t.Context(), http.MethodGet, url, nil)
		if fl != nil {
			t.Fatal(fl.err)
		}
		resp.stop()
		if shown != want {
			t.Errorf("%s was shown %q, want %q", url, shown, want)
		}
	}
}
