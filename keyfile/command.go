package keyfile

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"os/exec"
	"strings"
	"time"
)

const (
	commandTime  = 5 * time.Minute // somebody may have to touch a token, or to type a PIN
	maxSignature = 4 << 10         // bytes of output
)

// Command signs with a key that stays elsewhere (a token, a vault, another machine), by a command of the shell. It gets
// the digest to sign, 32 or 48 bytes as they are, on standard input, and in its environment
//
//	BMSOTA_SIGN_SCHEME       ecdsa-sha256, ecdsa-sha384 or rsa-pss-sha256 (MGF1 with SHA-256, a salt of 32 bytes)
//	BMSOTA_SIGN_FINGERPRINT  SHA-256 of the public key (SubjectPublicKeyInfo) in hex, as `bmsota keys show` prints it
//
// and writes the signature, and nothing else, to standard output: for ECDSA in DER or as r and s of equal length, for RSA
// as it is; or either in base64, with white space. Who uses the signature verifies it with the public key.
type Command struct {
	Context     context.Context // ends the command
	Line        string          // for sh -c
	Key         crypto.PublicKey
	Fingerprint string
	Stderr      io.Writer // where it says what is wrong, or asks for a PIN
}

// Public implements crypto.Signer.
func (c *Command) Public() crypto.PublicKey { return c.Key }

// Sign implements crypto.Signer. random is not used.
func (c *Command) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	scheme, err := c.scheme(opts)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(c.Context, commandTime)
	defer cancel()
	out := capped{limit: maxSignature}
	run := exec.CommandContext(ctx, "sh", "-c", c.Line)
	run.Stdin, run.Stdout, run.Stderr = bytes.NewReader(digest), &out, c.Stderr
	run.Env = append(os.Environ(), "BMSOTA_SIGN_SCHEME="+scheme, "BMSOTA_SIGN_FINGERPRINT="+c.Fingerprint)
	run.WaitDelay = time.Second
	if err := run.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("signing command: %w", err)
	}
	if out.over {
		return nil, fmt.Errorf("signing command: it wrote more than %d bytes, a signature is shorter", maxSignature)
	}
	return c.signature(out.kept.Bytes())
}

func (c *Command) scheme(opts crypto.SignerOpts) (string, error) {
	switch c.Key.(type) {
	case *ecdsa.PublicKey:
		switch opts.HashFunc() {
		case crypto.SHA256:
			return "ecdsa-sha256", nil
		case crypto.SHA384:
			return "ecdsa-sha384", nil
		}
	case *rsa.PublicKey:
		if _, pss := opts.(*rsa.PSSOptions); pss && opts.HashFunc() == crypto.SHA256 {
			return "rsa-pss-sha256", nil
		}
	}
	return "", errors.New("signing command: this kind of key and digest is not asked for")
}

// signature reads what the command wrote, in any of its forms.
func (c *Command) signature(b []byte) ([]byte, error) {
	public, isECDSA := c.Key.(*ecdsa.PublicKey)
	candidates := [][]byte{b}
	if text, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(string(b)), "")); err == nil {
		candidates = append(candidates, text)
	}
	for _, sig := range candidates {
		if !isECDSA {
			if key, ok := c.Key.(*rsa.PublicKey); ok && len(sig) == key.Size() {
				return sig, nil
			}
			continue
		}
		size := (public.Params().BitSize + 7) / 8
		var rs struct{ R, S *big.Int }
		if rest, err := asn1.Unmarshal(sig, &rs); err == nil && len(rest) == 0 {
			return sig, nil
		}
		if len(sig) == 2*size {
			rs.R, rs.S = new(big.Int).SetBytes(sig[:size]), new(big.Int).SetBytes(sig[size:])
			return asn1.Marshal(rs)
		}
	}
	return nil, fmt.Errorf("signing command: its %d bytes are no signature by this kind of key", len(b))
}

// capped keeps the first limit bytes.
type capped struct {
	kept  bytes.Buffer // not embedded: its ReadFrom would go past the limit
	limit int
	over  bool
}

func (c *capped) Write(p []byte) (int, error) {
	keep := min(len(p), c.limit-c.kept.Len())
	c.over = c.over || keep < len(p)
	c.kept.Write(p[:keep])
	return len(p), nil
}
