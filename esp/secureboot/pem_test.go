package secureboot

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"
)

func TestPEM(t *testing.T) {
	enc := func(kind string, der []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	}
	rsaKey := signedVectors[0].private(t).(*rsa.PrivateKey)
	ec := signedVectors[1].private(t).(*ecdsa.PrivateKey)
	pkcs8RSA, err1 := x509.MarshalPKCS8PrivateKey(rsaKey)
	pkcs8EC, err2 := x509.MarshalPKCS8PrivateKey(ec)
	sec1, err3 := x509.MarshalECPrivateKey(ec)
	pkix, err4 := x509.MarshalPKIXPublicKey(ec.Public())
	params := enc("EC PARAMETERS", []byte{6, 8, 42, 134, 72, 206, 61, 3, 1, 7}, nil)
	for name, c := range map[string]struct {
		pem     []byte
		private bool
		want    crypto.PublicKey
	}{
		"pkcs1":                {enc("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey), nil), true, rsaKey.Public()},
		"pkcs8 rsa":            {enc("PRIVATE KEY", pkcs8RSA, err1), true, rsaKey.Public()},
		"pkcs8 ec":             {enc("PRIVATE KEY", pkcs8EC, err2), true, ec.Public()},
		"sec1":                 {enc("EC PRIVATE KEY", sec1, err3), true, ec.Public()},
		"sec1 with parameters": {append(params, enc("EC PRIVATE KEY", sec1, err3)...), true, ec.Public()},
		"pkix":                 {enc("PUBLIC KEY", pkix, err4), false, ec.Public()},
		"pkcs1 public":         {enc("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&rsaKey.PublicKey), nil), false, rsaKey.Public()},
	} {
		pub, err := ParsePublicKeyPEM(c.pem)
		if err != nil || digestOf(t, pub) != digestOf(t, c.want) {
			t.Errorf("%s: public %v", name, err)
		}
		key, err := ParsePrivateKeyPEM(c.pem)
		if c.private && (err != nil || digestOf(t, key.Public()) != digestOf(t, c.want)) || !c.private && err == nil {
			t.Errorf("%s: private %v", name, err)
		}
	}
	x25519 := []byte{0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x6e, 4, 0x22, 4, 0x20}
	for name, c := range map[string]struct {
		pem  []byte
		want string
	}{
		"empty":            {nil, "not a PEM file"},
		"text":             {[]byte("hello"), "not a PEM file"},
		"parameters only":  {params, "not a PEM file"},
		"certificate":      {enc("CERTIFICATE", []byte{1}, nil), "CERTIFICATE"},
		"rubbish private":  {enc("EC PRIVATE KEY", []byte{1}, nil), "private key: "},
		"rubbish pkcs8":    {enc("PRIVATE KEY", []byte{1}, nil), "private key: "},
		"cannot sign":      {enc("PRIVATE KEY", append(x25519, make([]byte, 32)...), nil), "cannot sign"},
		"encrypted pkcs8":  {enc("ENCRYPTED PRIVATE KEY", []byte{1}, nil), "passphrase"},
		"encrypted legacy": {[]byte("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n"), "passphrase"},
	} {
		if _, err := ParsePrivateKeyPEM(c.pem); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: private: %v", name, err)
		}
		if _, err := ParsePublicKeyPEM(c.pem); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: public: %v", name, err)
		}
	}
	if _, err := ParsePublicKeyPEM(enc("PUBLIC KEY", []byte{1}, nil)); err == nil || !strings.Contains(err.Error(), "public key: ") {
		t.Errorf("rubbish public: %v", err)
	}
}
