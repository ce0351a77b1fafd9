package server

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"bmsota/durable"
	"bmsota/server/internal/fleet"
)

// Files of the authority for devices, below <data_dir>/tls. It is another than the local one: that one says who the server is,
// may be replaced by one of the user's, and no certificate of a device should ever stand for a server.
const (
	deviceCACertName = "devices-ca.pem"
	deviceCAKeyName  = "devices-ca.key"
)

// A certificate ends for a device when the record says so, not by the calendar: one that ran out would strand its board. So both
// outlast the boards.
const (
	deviceCALife = 40 * 365 * 24 * time.Hour
	deviceLife   = 20 * 365 * 24 * time.Hour
)

// deviceCertificates signs certificates of devices, and says by which a connection is believed.
type deviceCertificates struct {
	authority *authority
	ca        *x509.Certificate
}

func openDeviceCertificates(dir string, now func() time.Time, log *slog.Logger) (*deviceCertificates, error) {
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make certificate folder: %w", err)
	}
	a := &authority{what: "device authority", cert: filepath.Join(dir, deviceCACertName), key: filepath.Join(dir, deviceCAKeyName), life: deviceCALife,
		advice: "to make a new authority, and enroll every device that has a certificate again", now: now, log: log}
	_, ca, err := a.read()
	if err != nil {
		return nil, err
	}
	return &deviceCertificates{authority: a, ca: ca}, nil
}

// issue signs a device's certificate: its name is the device's id, and it is good for being a client and nothing else.
func (d *deviceCertificates) issue(id string, public crypto.PublicKey) (fleet.Certificate, error) {
	now := d.authority.now()
	if now.Before(oldest) {
		return fleet.Certificate{}, errClock
	}
	signer, err := d.authority.signer(d.ca)
	if err != nil {
		return fleet.Certificate{}, err
	}
	serial, err := newSerial()
	if err != nil {
		return fleet.Certificate{}, fmt.Errorf("make certificate: %w", err)
	}
	end := now.Add(deviceLife)
	if end.After(d.ca.NotAfter) {
		end = d.ca.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: id},
		NotBefore:             now.Add(-backdate),
		NotAfter:              end,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, d.ca, public, signer)
	if err != nil {
		return fleet.Certificate{}, fmt.Errorf("make certificate: %w", err)
	}
	sum := sha256.Sum256(der)
	return fleet.Certificate{PEM: string(certificatePEM(der)), SHA256: hex.EncodeToString(sum[:]), Ends: end.UTC().Truncate(time.Second)}, nil
}

// ask has a side ask its clients for a certificate of a device. Whoever has none goes on without; one that is of another
// authority, out of time or not for clients ends the handshake. Whether it is the one on record is asked at each login and
// each request, so a session that was resumed is no way around a revocation.
func (d *deviceCertificates) ask(conf *tls.Config) {
	conf.ClientAuth = tls.VerifyClientCertIfGiven
	conf.ClientCAs = x509.NewCertPool()
	conf.ClientCAs.AddCert(d.ca)
}
