package server

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"os"
	"time"

	"bmsota/durable"
)

// backdate is for peers whose clock is behind.
const backdate = 24 * time.Hour

// oldest is a day before which no clock can be right.
var oldest = time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)

// authority is a certificate authority in two files of the data folder.
type authority struct {
	what      string // for people: "local authority"
	cert, key string // paths
	life      time.Duration
	advice    string // what moving the certificate away is good for
	now       func() time.Time
	log       *slog.Logger
}

// read takes the authority's certificate from its file, and makes the authority where there is none.
func (a *authority) read() ([]byte, *x509.Certificate, error) {
	text, err := os.ReadFile(a.cert)
	if errors.Is(err, fs.ErrNotExist) {
		return a.make()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", a.what, err)
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, nil, fmt.Errorf("read %s: %s is not a PEM certificate", a.what, a.cert)
	}
	ca, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: %s: %w", a.what, a.cert, err)
	}
	if a.now().After(ca.NotAfter) {
		return nil, nil, fmt.Errorf("the %s has expired on %s: move %s away %s", a.what, ca.NotAfter.Format(time.DateOnly), a.cert, a.advice)
	}
	return text, ca, nil
}

// make makes the authority. The certificate is written last: it is what is given to others, so from then on the key must be
// there.
func (a *authority) make() ([]byte, *x509.Certificate, error) {
	now := a.now()
	if now.Before(oldest) {
		return nil, nil, errClock
	}
	fail := func(err error) ([]byte, *x509.Certificate, error) {
		return nil, nil, fmt.Errorf("make %s: %w", a.what, err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fail(err)
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return fail(err)
	}
	id := sha256.Sum256(public)
	serial, err := newSerial()
	if err != nil {
		return fail(err)
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "bmsota " + a.what + " " + hex.EncodeToString(id[:4])},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(a.life),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
		SubjectKeyId:          id[:20],
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return fail(err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		return fail(err)
	}
	if err := writeKey(a.key, key); err != nil {
		return nil, nil, err
	}
	text := certificatePEM(der)
	if err := durable.WriteFile(a.cert, text, private); err != nil {
		return nil, nil, err
	}
	a.log.Info(a.what+" was made", "path", a.cert, "expires", ca.NotAfter)
	return text, ca, nil
}

// signer reads the authority's key.
func (a *authority) signer(ca *x509.Certificate) (*ecdsa.PrivateKey, error) {
	text, err := os.ReadFile(a.key)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is gone: put it back, or move %s away %s", a.key, a.cert, a.advice)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", a.what, err)
	}
	key, err := parseKey(text)
	if err != nil {
		return nil, fmt.Errorf("read %s: %s: %w", a.what, a.key, err)
	}
	if !key.PublicKey.Equal(ca.PublicKey) {
		return nil, fmt.Errorf("%s is not the key of %s", a.key, a.cert)
	}
	return key, nil
}

func certificatePEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func newSerial() (*big.Int, error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, err
	}
	b[0] &= 0x7f // positive, and so no longer than it looks
	return new(big.Int).SetBytes(b[:]), nil
}

func writeKey(path string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return durable.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), private)
}

func parseKey(text []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("no PEM block")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("not an ECDSA key")
	}
	return key, nil
}
