package manifest

import (
	"crypto"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// MaxCosignatures is how many signatures may stand beside the manifest's own.
const MaxCosignatures = 3

const (
	signatureDigits = 86 // 64 bytes in base64url
	// MaxCosigned is the longest text of cosignatures in bytes.
	MaxCosigned = MaxCosignatures*(signatureDigits+1) - 1
)

// Trust is whom a device believes. The zero value is a device that holds no key.
type Trust struct {
	// Sequence counts the sets of a project's images, from 1. The set that stands in a device's settings is 0.
	Sequence uint32
	// Threshold is how many of Keys have to have signed; 0 means 1.
	Threshold int
	Keys      []*ecdsa.PublicKey
}

// Check says whether the set can be met at all: a threshold that the keys, each counted once, cannot reach would refuse
// every release, and one beside no keys would protect nothing although somebody meant it to.
func (t Trust) Check() error {
	n := len(distinct(t.Keys))
	switch {
	case n > maxKeys:
		return fmt.Errorf("trusted keys: %d, at most %d are held", n, maxKeys)
	case t.Threshold < 0 || t.Threshold > n:
		return fmt.Errorf("trusted keys: %d have to sign, of %d different ones", t.Threshold, n)
	}
	return nil
}

// Verify returns the manifest in text when enough keys of the set signed it. The error wraps ErrSignature when they did
// not, and is another one when a text or a field is not what it has to be.
func (t Trust) Verify(text, cosignatures string) (Manifest, error) {
	m, signed, err := SignedBy(text, cosignatures, t.Keys...)
	if err != nil {
		return Manifest{}, err
	}
	if need := max(t.Threshold, 1); len(signed) < need {
		return Manifest{}, fmt.Errorf("%w: %d of the %d that have to sign did", ErrSignature, len(signed), need)
	}
	return m, nil
}

// SignedBy says which of keys signed the manifest in text, by its own signature or one of the cosignatures. A key counts
// once, however often it stands in keys and however many signatures it made: ECDSA lets anybody make a second one out of
// a first. Without one the error wraps ErrSignature.
//
// Cosignatures are one to three signatures in base64url with dots between them, or none. Each is what the third part of
// another compact JWS over the same header and payload would be.
func SignedBy(text, cosignatures string, keys ...*ecdsa.PublicKey) (Manifest, []*ecdsa.PublicKey, error) {
	jws, err := parse(text)
	if err != nil {
		return Manifest{}, nil, err
	}
	all := []verifier{jws}
	if cosignatures != "" {
		parts := strings.Split(cosignatures, ".")
		if len(parts) > MaxCosignatures {
			return Manifest{}, nil, fmt.Errorf("manifest: %d cosignatures, the limit is %d", len(parts), MaxCosignatures)
		}
		for _, part := range parts {
			jws, err := parse(text[:strings.LastIndexByte(text, '.')+1] + part)
			if err != nil {
				return Manifest{}, nil, fmt.Errorf("cosignature: %w", err)
			}
			all = append(all, jws)
		}
	}
	var signed []*ecdsa.PublicKey
	var payload []byte
	for _, key := range distinct(keys) {
		for _, jws := range all {
			if b, err := jws.Verify(key); err == nil {
				payload = b
				signed = append(signed, key)
				break
			}
		}
	}
	if len(signed) == 0 {
		return Manifest{}, nil, ErrSignature
	}
	m, err := decode(payload)
	return m, signed, err
}

type verifier interface {
	Verify(key any) ([]byte, error)
}

// Cosign adds a signature over the manifest in text, which it neither checks nor changes, to cosignatures, and returns
// them. The key must be ECDSA P-256.
func Cosign(text, cosignatures string, key crypto.Signer) (string, error) {
	m, err := Unverified(text)
	if err != nil {
		return "", err
	}
	jws, err := parse(text)
	if err != nil {
		return "", err
	}
	again, err := sign(jws.UnsafePayloadWithoutVerification(), m, key)
	if err != nil {
		return "", err
	}
	signature := again[strings.LastIndexByte(again, '.')+1:]
	if cosignatures != "" {
		signature = cosignatures + "." + signature
	}
	if len(signature) > MaxCosigned {
		return "", fmt.Errorf("manifest: more than %d cosignatures", MaxCosignatures)
	}
	return signature, nil
}

// SignAll makes the manifest's JWS with the first key and cosignatures with the others. The keys must differ.
func SignAll(m Manifest, keys ...crypto.Signer) (text, cosignatures string, err error) {
	var public []*ecdsa.PublicKey
	for i, key := range keys {
		if i == 0 {
			text, err = Sign(m, key)
		} else {
			cosignatures, err = Cosign(text, cosignatures, key)
		}
		if err != nil {
			return "", "", err
		}
		public = append(public, key.Public().(*ecdsa.PublicKey)) // Sign takes no other
	}
	if len(distinct(public)) != len(keys) {
		return "", "", errors.New("manifest: the same key signs twice, and counts once")
	}
	return text, cosignatures, nil
}

// distinct is keys with each once, in their order.
func distinct(keys []*ecdsa.PublicKey) []*ecdsa.PublicKey {
	var once []*ecdsa.PublicKey
	for _, key := range keys {
		if !slices.ContainsFunc(once, func(k *ecdsa.PublicKey) bool { return k.Equal(key) }) {
			once = append(once, key)
		}
	}
	return once
}
