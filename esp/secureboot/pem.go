package secureboot

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

// ParsePrivateKeyPEM reads the first private key of a PEM file, as PKCS#1, SEC1
// or PKCS#8 and not encrypted. Whether its kind can sign is for [Sign] to say.
func ParsePrivateKeyPEM(b []byte) (crypto.Signer, error) {
	block, err := firstKey(b)
	if err != nil {
		return nil, err
	}
	return privateKey(block)
}

func privateKey(block *pem.Block) (crypto.Signer, error) {
	var key any
	var err error
	switch block.Type {
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	default:
		err = fmt.Errorf("the file holds %q, which is not a private key", block.Type)
	}
	if err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("private key: a key of type %T cannot sign", key)
	}
	return signer, nil
}

// ParsePublicKeyPEM reads the first key of a PEM file, as PKIX or PKCS#1. Of a
// private key it returns the public half, as espsecure does.
func ParsePublicKeyPEM(b []byte) (crypto.PublicKey, error) {
	block, err := firstKey(b)
	if err != nil {
		return nil, err
	}
	var key crypto.PublicKey
	switch {
	case block.Type == "PUBLIC KEY":
		key, err = x509.ParsePKIXPublicKey(block.Bytes)
	case block.Type == "RSA PUBLIC KEY":
		key, err = x509.ParsePKCS1PublicKey(block.Bytes)
	case strings.HasSuffix(block.Type, "PRIVATE KEY"):
		signer, err := privateKey(block)
		if err != nil {
			return nil, err
		}
		return signer.Public(), nil
	default:
		err = fmt.Errorf("the file holds %q, which is not a key", block.Type)
	}
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	return key, nil
}

// firstKey returns the first PEM block that is not parameters of a curve, which
// OpenSSL writes before the key.
func firstKey(b []byte) (*pem.Block, error) {
	for {
		block, rest := pem.Decode(b)
		if block == nil {
			return nil, errors.New("key: not a PEM file, or nothing in it")
		}
		if block.Type == "EC PARAMETERS" {
			b = rest
			continue
		}
		if block.Type == "ENCRYPTED PRIVATE KEY" || strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED") {
			return nil, errors.New("key: the key is encrypted with a passphrase; decrypt it first, for instance with openssl pkey")
		}
		return block, nil
	}
}
