package manifest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"strings"
)

// NewKey makes a P-256 key that signs manifests.
func NewKey(rand io.Reader) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand)
	if err != nil {
		return nil, fmt.Errorf("make signing key: %w", err)
	}
	return key, nil
}

// EncodePrivateKey writes key as PKCS #8 PEM, which OpenSSL and espsecure read.
func EncodePrivateKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode signing key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// EncodePublicKey writes key as PKIX PEM, the form of a device's trusted_key_pem.
func EncodePublicKey(key *ecdsa.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode public key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}

// ParsePrivateKey reads a P-256 private key in PKCS #8 or SEC 1 PEM.
func ParsePrivateKey(text []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("signing key: no PEM block")
	}
	var parsed any
	var err error
	switch block.Type {
	case "PRIVATE KEY":
		parsed, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		parsed, err = x509.ParseECPrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("signing key: PEM block is %q, not a private key", block.Type)
	}
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("signing key: not an ECDSA P-256 key")
	}
	return key, nil
}

const (
	beginKey = "-----BEGIN PUBLIC KEY-----"
	endKey   = "-----END PUBLIC KEY-----"
	maxKeys  = 8
)

// ParsePublicKeys reads one to eight P-256 public keys from PEM. A block that is no such key is an error: a trust set that
// is half read would trust less or more than was meant. Lines outside the blocks are for people and are skipped, unless
// they hold the five dashes of a block that somebody meant to be one.
func ParsePublicKeys(text []byte) ([]*ecdsa.PublicKey, error) {
	var keys []*ecdsa.PublicKey
	var body strings.Builder
	inside := false
	for line := range strings.Lines(string(text)) {
		line = strings.Trim(line, " \t\r\n")
		switch {
		case !inside && line == beginKey:
			inside = true
			body.Reset()
		case inside && line == endKey:
			inside = false
			key, err := parsePublicKey(body.String())
			if err != nil {
				return nil, err
			}
			if len(keys) == maxKeys {
				return nil, fmt.Errorf("trusted key: more than %d keys", maxKeys)
			}
			keys = append(keys, key)
		case strings.Contains(line, "-----"):
			return nil, fmt.Errorf("trusted key: unexpected line %q", line)
		case inside:
			body.WriteString(line)
		}
	}
	if inside {
		return nil, fmt.Errorf("trusted key: no line %q", endKey)
	}
	if len(keys) == 0 {
		return nil, errors.New("trusted key: no PEM public key")
	}
	return keys, nil
}

func parsePublicKey(body string) (*ecdsa.PublicKey, error) {
	der, err := base64.StdEncoding.DecodeString(body)
	if err != nil || base64.StdEncoding.EncodeToString(der) != body {
		return nil, errors.New("trusted key: not base64")
	}
	parsed, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, fmt.Errorf("trusted key: %w", err)
	}
	key, ok := parsed.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("trusted key: not an ECDSA P-256 public key")
	}
	// The parser forgives bytes behind the fields that it knows; a device in C compares them.
	if again, err := x509.MarshalPKIXPublicKey(key); err != nil || !bytes.Equal(again, der) {
		return nil, errors.New("trusted key: not in its one DER form")
	}
	return key, nil
}
