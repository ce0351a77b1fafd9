package fleet

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"bmsota/protocol"
)

// Certificate is a device's certificate.
type Certificate struct {
	PEM    string
	SHA256 string // of its DER, in hex: the fingerprint
	Ends   time.Time
}

// Issuer signs a certificate that names a device and holds a public key.
type Issuer func(device string, key crypto.PublicKey) (Certificate, error)

// maxRequest bounds a certificate request in PEM, in bytes; one with a P-256 key has about 500.
const maxRequest = 4 << 10

// EnrollCertificate gives a device a certificate in place of its token or of any certificate before it, like Enroll.
// request is PKCS #10 in PEM, signed by the device's key: the key itself is never here. Of the request nothing is taken but
// the public key. Errors: ErrInvalid (the request), ErrRefused (this server gives none), and those of Enroll.
func (f *Fleet) EnrollCertificate(ctx context.Context, by Identity, id, request string) (Certificate, error) {
	if err := f.mayEnroll(by, id); err != nil {
		return Certificate{}, err
	}
	if f.cfg.Issue == nil {
		return Certificate{}, fmt.Errorf("%w: devices have certificates only where the server's own broker is open for TLS (mqtt.tls_listen)", ErrRefused)
	}
	key, err := requestedKey(id, request)
	if err != nil {
		return Certificate{}, err
	}
	cert, err := f.cfg.Issue(id, key)
	if err != nil {
		return Certificate{}, fmt.Errorf("sign the certificate of %s: %w", id, err)
	}
	err = f.enroll(ctx, by, id, func(d *Device) {
		d.TokenSHA256, d.CertificateSHA256, d.CertificateEnds = "", cert.SHA256, cert.Ends
	})
	if err != nil {
		return Certificate{}, err
	}
	return cert, nil
}

// requestedKey is the key of a certificate request whose sender holds the private half of it.
func requestedKey(id, request string) (crypto.PublicKey, error) {
	if len(request) > maxRequest {
		return nil, invalid("certificate_request has %d bytes, at most %d are read", len(request), maxRequest)
	}
	block, _ := pem.Decode([]byte(request))
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, invalid("certificate_request is no CERTIFICATE REQUEST in PEM")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, invalid("certificate_request: %v", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, invalid("certificate_request is not signed by the key in it: %v", err)
	}
	key, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, invalid("certificate_request: the key is not ECDSA P-256, which every chip can do")
	}
	if name := csr.Subject.CommonName; name != "" && name != id {
		return nil, invalid("certificate_request is for %.64q, not for %q", name, id)
	}
	return key, nil
}

// AuthenticateCertificate checks the login of a device by its certificate, whose chain and time have been verified: the name
// in it and its fingerprint. Like Authenticate, it says ErrDenied for whatever is not the certificate on record of a device
// that may log in.
func (f *Fleet) AuthenticateCertificate(ctx context.Context, name, sha256 string) (Identity, error) {
	denied := fmt.Errorf("%w: the certificate is not the one on record", ErrDenied)
	if name == "" || len(name) > protocol.MaxDeviceID {
		return Identity{}, denied
	}
	var d Device
	err := f.cfg.Store.View(ctx, func(tx Tx) (err error) {
		d, err = tx.Device(name)
		return err
	})
	if errors.Is(err, ErrNotFound) {
		return Identity{}, denied
	}
	if err != nil {
		return Identity{}, err
	}
	if d.Revoked || !sameDigest(d.CertificateSHA256, sha256) {
		return Identity{}, denied
	}
	return Identity{Name: d.ID, Role: RoleDevice}, nil
}
