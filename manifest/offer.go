package manifest

import (
	"crypto"
	"crypto/ecdsa"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"bmsota/strictjson"
)

// MaxOffer is the longest compact JWS of an offer in bytes.
const MaxOffer = 1536

const (
	offerType = "offer"
	// minNonce keeps a device from asking with something that an attacker can have prepared an answer for.
	minNonce, maxNonce = 16, 64
	maxValid           = 86400
	maxPath            = 512
)

// Offer is what a server says to one question of one device: this release is what you are offered now. It is a compact
// JWS like a manifest, by the server's own online key. That key vouches for the moment alone: what may be installed says
// the manifest, whose keys are not on the server. Neither text can pass for the other: an offer has a type and no format,
// a manifest a format and no type.
//
// The device's nonce proves that the answer was made after the question, whatever anybody's clock says.
type Offer struct {
	Type     string `json:"type"`               // "offer"
	Device   string `json:"device"`             // who asked
	Nonce    string `json:"nonce"`              // what it asked with; 16 to 64 of the base64url alphabet
	Path     string `json:"path"`               // what it asked for, as it stands in the address: project and channel are in it
	SHA256   string `json:"sha256"`             // of the image that is offered, lower-case hex
	Version  string `json:"version"`            // as version.json has it
	Sequence int64  `json:"sequence,omitempty"` // of the manifest; 0 = it has none, or there is no manifest
	ValidS   int64  `json:"valid_s"`            // seconds from the question on, by the device's own count
}

// NewOffer fills in the type.
func NewOffer(device, nonce, path, sha256, version string, sequence, validS int64) Offer {
	return Offer{Type: offerType, Device: device, Nonce: nonce, Path: path, SHA256: sha256, Version: version, Sequence: sequence, ValidS: validS}
}

// CheckNonce says whether a device may ask with nonce.
func CheckNonce(nonce string) error {
	if len(nonce) < minNonce || len(nonce) > maxNonce {
		return fmt.Errorf("nonce of %d characters is not within %d to %d", len(nonce), minNonce, maxNonce)
	}
	for _, c := range []byte(nonce) {
		if (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return errors.New("nonce is not base64url")
		}
	}
	return nil
}

func (o Offer) check() error {
	sum, err := hex.DecodeString(o.SHA256)
	switch {
	case o.Type != offerType:
		return errors.New("offer: of another type")
	case o.Device == "" || len(o.Device) > 64 || o.Version == "" || len(o.Version) > 64:
		return errors.New("offer: a text is empty or too long")
	case o.Path == "" || o.Path[0] != '/' || len(o.Path) > maxPath:
		return errors.New("offer: no path, or too long")
	case err != nil || len(sum) != 32 || hex.EncodeToString(sum) != o.SHA256:
		return errors.New("offer: sha256 is not 64 lower-case hex digits")
	case o.Sequence < 0 || o.ValidS < 1 || o.ValidS > maxValid:
		return errors.New("offer: a number is out of range")
	}
	if err := CheckNonce(o.Nonce); err != nil {
		return fmt.Errorf("offer: %w", err)
	}
	return nil
}

// SignOffer makes the compact JWS of o with the server's key, ECDSA P-256. Other than Sign it does not read back what it
// made: an offer is made at every question, and one that is wrong is refused and asked for again.
func SignOffer(o Offer, key crypto.Signer) (string, error) {
	if err := o.check(); err != nil {
		return "", err
	}
	payload, err := json.Marshal(o)
	if err != nil {
		return "", fmt.Errorf("offer: %w", err)
	}
	return compact(payload, key)
}

// VerifyOffer returns the offer in text when one of keys signed it. The error wraps ErrSignature when none did, and is
// another one when the text or its fields are no offer. Whose offer it is and for which question is the caller's to ask.
func VerifyOffer(text string, keys ...*ecdsa.PublicKey) (Offer, error) {
	if len(text) > MaxOffer {
		return Offer{}, fmt.Errorf("offer: %d bytes, the limit is %d", len(text), MaxOffer)
	}
	jws, err := parse(text)
	if err != nil {
		return Offer{}, fmt.Errorf("offer: %w", err)
	}
	for _, key := range keys {
		if payload, err := jws.Verify(key); err == nil {
			return decodeOffer(payload)
		}
	}
	return Offer{}, fmt.Errorf("offer: %w", ErrSignature)
}

func decodeOffer(payload []byte) (Offer, error) {
	fields, err := strictjson.Parse(payload)
	if err != nil {
		return Offer{}, fmt.Errorf("offer: %w", err)
	}
	var o Offer
	fields.Text("type", 64, &o.Type)
	fields.Text("device", 64, &o.Device)
	fields.Text("nonce", maxNonce, &o.Nonce)
	fields.Text("path", maxPath, &o.Path)
	fields.Text("sha256", 64, &o.SHA256)
	fields.Text("version", 64, &o.Version)
	fields.Take("sequence", &o.Sequence)
	fields.Take("valid_s", &o.ValidS)
	if fields.Err() != nil {
		return Offer{}, fmt.Errorf("offer: %w", fields.Err())
	}
	return o, o.check()
}
