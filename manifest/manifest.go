// Package manifest is the signed promise about one image: which bytes, for which chip and project, as which version.
// It is the root of trust of an update: a device that holds a key installs what a manifest signed by that key
// describes and nothing else, whatever TLS, the broker or version.json say.
//
// On the wire a manifest is a compact JWS (RFC 7515), algorithm ES256 and no other, whose payload is the JSON form of
// Manifest. mbedTLS can check it with what every ESP-IDF build carries. Sign decodes and verifies what it made before
// it hands it over; Verify decides on the raw payload that was signed and refuses any other header, any other form of the
// same base64, oversize input, a key that stands twice and fields out of range.
//
// The package is small on purpose: keys stay with the operator, files and networks with the caller.
package manifest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"bmsota/esp/appimage"
	"bmsota/strictjson"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/cryptosigner"
)

// BlockSize is the length in bytes of the blocks whose digests a manifest lists. A resumed download checks what flash
// already holds block by block and fetches only what is missing.
const BlockSize = 64 << 10

// MaxSize is the largest image a manifest may describe: ESP-IDF refuses app partitions above 16 MiB.
const MaxSize = 16 << 20

// MaxJWS is the longest compact JWS that Verify looks at.
const MaxJWS = 48 << 10

// Manifest is what is promised. JSON names are short because a device keeps the text in RAM.
type Manifest struct {
	Format        int    `json:"format"` // 1
	Project       string `json:"project"`
	Chip          string `json:"chip"`
	Version       string `json:"version"`
	MinVersion    string `json:"min_version,omitempty"`
	SecureVersion uint32 `json:"secure_version"`
	Size          int64  `json:"size"`                 // bytes of the image file
	SHA256        string `json:"sha256"`               // of the image file, lower-case hex
	Blocks        string `json:"blocks"`               // base64 (raw, URL alphabet) of the SHA-256 of each BlockSize bytes, in order
	BuildDate     string `json:"build_date,omitempty"` // RFC 3339
	ForceUpdate   bool   `json:"force_update,omitempty"`
	// Sequence is when the manifest was signed, in milliseconds since 1970 by the clock of who signs. A server takes no
	// release whose manifest is older than those it has, and its offer names it, so that of two manifests over the same
	// bytes only the one that is meant counts. A device does not compare it with any clock. 0 = not said.
	Sequence int64 `json:"sequence,omitempty"`
}

// ErrSignature says that no trusted key signed the manifest.
var ErrSignature = errors.New("manifest is not signed by a trusted key")

// New describes the image file b, whose structure img the caller has parsed and verified. version overrides the
// image's own when it is not empty.
func New(b []byte, img *appimage.Image, version string) (Manifest, error) {
	if img.Desc == nil && version == "" {
		return Manifest{}, errors.New("image has no description: give the version")
	}
	m := Manifest{Format: 1, Chip: img.Header.Chip.String(), Size: int64(len(b)), Version: version}
	if img.Desc != nil {
		m.Project, m.SecureVersion = img.Desc.Project, img.Desc.SecureVersion
		if version == "" {
			m.Version = img.Desc.Version
		}
	}
	sum := sha256.Sum256(b)
	m.SHA256 = hex.EncodeToString(sum[:])
	m.Blocks = base64.RawURLEncoding.EncodeToString(blockDigests(b))
	return m, m.check()
}

func blockDigests(b []byte) []byte {
	var sums []byte
	for len(b) > 0 {
		n := min(len(b), BlockSize)
		sum := sha256.Sum256(b[:n])
		sums = append(sums, sum[:]...)
		b = b[n:]
	}
	return sums
}

// Block is the promised digest of block i. ok is false beyond the image and for a manifest that lists none.
func (m Manifest) Block(i int) (sum [32]byte, ok bool) {
	sums, err := base64.RawURLEncoding.DecodeString(m.Blocks)
	if err != nil || i < 0 || i >= len(sums)/32 {
		return sum, false
	}
	return [32]byte(sums[i*32:]), true
}

// check holds every field to its range, for a manifest about to be signed and for one just verified.
func (m Manifest) check() error {
	sums, err := base64.RawURLEncoding.DecodeString(m.Blocks)
	sum, err2 := hex.DecodeString(m.SHA256)
	switch {
	case m.Format != 1:
		return fmt.Errorf("manifest: format %d is not known", m.Format)
	case m.Size <= 0 || m.Size > MaxSize:
		return fmt.Errorf("manifest: size of %d bytes is not within 1 to %d", m.Size, MaxSize)
	case err2 != nil || len(sum) != 32 || hex.EncodeToString(sum) != m.SHA256:
		return errors.New("manifest: sha256 is not 64 lower-case hex digits")
	case err != nil || int64(len(sums)) != (m.Size+BlockSize-1)/BlockSize*32 || base64.RawURLEncoding.EncodeToString(sums) != m.Blocks:
		return errors.New("manifest: blocks do not cover the image")
	case m.Version == "" || len(m.Version) > 64 || len(m.MinVersion) > 64 || len(m.Project) > 32 || len(m.Chip) > 32 || len(m.BuildDate) > 64:
		return errors.New("manifest: a text is empty or too long")
	case m.Sequence < 0:
		return errors.New("manifest: sequence is negative")
	}
	return nil
}

// Sign makes the compact JWS of m with an ECDSA P-256 key. It verifies what it made before returning it.
func Sign(m Manifest, key crypto.Signer) (string, error) {
	if err := m.check(); err != nil {
		return "", err
	}
	payload, err := json.Marshal(m)
	if err != nil {
		return "", fmt.Errorf("manifest: %w", err)
	}
	return sign(payload, m, key)
}

func sign(payload []byte, m Manifest, key crypto.Signer) (string, error) {
	text, err := compact(payload, key)
	if err != nil {
		return "", fmt.Errorf("manifest: %w", err)
	}
	if back, err := Verify(text, key.Public().(*ecdsa.PublicKey)); err != nil || back != m {
		return "", fmt.Errorf("manifest: what was signed does not read back (%w)", err)
	}
	return text, nil
}

// compact makes the compact JWS of payload. It takes P-256 keys only.
func compact(payload []byte, key crypto.Signer) (string, error) {
	if public, ok := key.Public().(*ecdsa.PublicKey); !ok || public.Curve != elliptic.P256() {
		return "", errors.New("the signing key is not ECDSA P-256")
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: cryptosigner.Opaque(key)}, nil)
	if err != nil {
		return "", err
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	return jws.CompactSerialize()
}

// Verify returns the manifest in text when one of keys signed it. The error wraps ErrSignature when none did, and is
// another one when the text or its fields are not a manifest.
func Verify(text string, keys ...*ecdsa.PublicKey) (Manifest, error) {
	jws, err := parse(text)
	if err != nil {
		return Manifest{}, err
	}
	for _, key := range keys {
		if payload, err := jws.Verify(key); err == nil {
			return decode(payload)
		}
	}
	return Manifest{}, ErrSignature
}

// Unverified reads a manifest without asking who signed it: for a device that holds no key, and for showing. What it
// says is worth no more than where it came from.
func Unverified(text string) (Manifest, error) {
	jws, err := parse(text)
	if err != nil {
		return Manifest{}, err
	}
	return decode(jws.UnsafePayloadWithoutVerification())
}

// header is the only protected header there is: what Sign makes, byte for byte. A text with another one (a key or a
// critical extension in it, another algorithm) is no manifest, whoever signed it, and a device in C compares bytes.
const header = `{"alg":"ES256"}`

func parse(text string) (*jose.JSONWebSignature, error) {
	if len(text) > MaxJWS {
		return nil, fmt.Errorf("manifest: %d bytes, the limit is %d", len(text), MaxJWS)
	}
	if !strings.HasPrefix(text, base64.RawURLEncoding.EncodeToString([]byte(header))+".") {
		return nil, fmt.Errorf("manifest: the header is not %s", header)
	}
	jws, err := jose.ParseSignedCompact(text, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if len(jws.Signatures[0].Signature) != 64 {
		return nil, errors.New("manifest: the signature is not 64 bytes")
	}
	// Base64 has several texts for the same bytes (line breaks, bits behind the last byte); one of them is the manifest.
	if back, err := jws.CompactSerialize(); err != nil || back != text {
		return nil, errors.New("manifest: not in canonical base64url")
	}
	return jws, nil
}

func decode(payload []byte) (Manifest, error) {
	o, err := strictjson.Parse(payload)
	if err != nil {
		return Manifest{}, fmt.Errorf("manifest: %w", err)
	}
	var m Manifest
	o.Take("format", &m.Format)
	o.Text("project", 32, &m.Project)
	o.Text("chip", 32, &m.Chip)
	o.Text("version", 64, &m.Version)
	o.Text("min_version", 64, &m.MinVersion)
	o.Take("secure_version", &m.SecureVersion)
	o.Take("size", &m.Size)
	o.Text("sha256", 64, &m.SHA256)
	o.Text("blocks", MaxJWS, &m.Blocks)
	o.Text("build_date", 64, &m.BuildDate)
	o.Take("force_update", &m.ForceUpdate)
	o.Take("sequence", &m.Sequence)
	if o.Err() != nil {
		return Manifest{}, fmt.Errorf("manifest: %w", o.Err())
	}
	return m, m.check()
}
