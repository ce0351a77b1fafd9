package broker

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"os"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"bmsota/protocol"
)

// selfSigned is a certificate for 127.0.0.1.
func selfSigned(t testing.TB) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

func loopback(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// TestOverTLSWithARealClient: paho over TLS and over plain loopback, both listeners at once.
func TestOverTLSWithARealClient(t *testing.T) {
	cert, pool := selfSigned(t)
	secure, plain := loopback(t), loopback(t)
	f := newFleet("d1")
	r := start(t, f, func(c *Config) {
		c.Secure, c.Plain, c.TLS = secure, plain, &tls.Config{Certificates: []tls.Certificate{cert}}
	})
	got := make(chan string, 4)
	for i, url := range []string{"ssl://" + secure.Addr().String(), "tcp://" + plain.Addr().String()} {
		c := paho.NewClient(paho.NewClientOptions().AddBroker(url).SetTLSConfig(&tls.Config{RootCAs: pool}).SetClientID("c" + strconv.Itoa(i)).
			SetUsername("d1").SetPassword("d1-secret").SetAutoReconnect(false))
		done(t, c.Connect())
		done(t, c.Subscribe("bms/ota/command/d1", 1, func(_ paho.Client, m paho.Message) { got <- string(m.Payload()) }))
		done(t, c.Publish(myStatus, 1, true, status(protocol.PhaseIdle)))
		f.until(t, "fold d1")
		if err := r.Send(t.Context(), "d1", protocol.Command{Action: protocol.ActionCheck, ID: url}); err != nil {
			t.Fatal(err)
		}
		for p := <-got; p == ""; p = <-got {
		}
		c.Disconnect(100)
	}
	f.until(t, "disconnected d1")
}

// TestHandshakeThatDawdlesIsCut: the deadline counts from accept, so a slow handshake is no way around it.
func TestHandshakeThatDawdlesIsCut(t *testing.T) {
	cert, _ := selfSigned(t)
	synctest.Test(t, func(t *testing.T) {
		ln := newPipeListener()
		r := start(t, newFleet("d1"), func(c *Config) {
			c.Plain, c.Secure, c.TLS = nil, ln, &tls.Config{Certificates: []tls.Certificate{cert}}
		})
		nc := ln.dial(t)
		began := time.Now()
		// The first bytes of a ClientHello record that never ends.
		if _, err := nc.Write([]byte{0x16, 0x03, 0x01, 0x02, 0x00, 0x01}); err != nil {
			t.Fatal(err)
		}
		_ = nc.SetReadDeadline(began.Add(time.Minute))
		if _, err := io.Copy(io.Discard, nc); os.IsTimeout(err) || time.Since(began) != 5*time.Second {
			t.Errorf("cut after %v: %v", time.Since(began), err)
		}
		synctest.Wait()
		if r.Stats().Waiting != 0 {
			t.Error("place is still taken")
		}
	})
}

// TestGoodClientsBesideSilentOnes: 1,000 connections that say nothing neither keep a device out nor slow it down.
func TestGoodClientsBesideSilentOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newFleet("d1"), func(c *Config) { c.MaxFromOne = 1024 })
		for range 1000 {
			r.ln.dial(t)
		}
		synctest.Wait()
		began := time.Now()
		c := r.device("d1")
		c.send(publish(myStatus, status(protocol.PhaseIdle), 1, false, 1))
		c.recv()
		if took := time.Since(began); took != 0 {
			t.Errorf("took %v", took)
		}
		if s := r.Stats(); s.Waiting != 1000 {
			t.Errorf("%+v", s)
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if s := r.Stats(); s.Waiting != 0 || s.Sessions != 1 {
			t.Errorf("%+v", s)
		}
	})
}
