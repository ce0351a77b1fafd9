package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptrace"
	"sync/atomic"
)

// minRSABits is the shortest RSA key that counts in a chain, in bits.
const minRSABits = 2048

// strong refuses chains that mbedTLS refuses and crypto/tls does not: by ESP-IDF's default (mbedtls_x509_crt_profile_default) an
// RSA key has 2048 bits and more, the root's included, a curve 256, and other keys are not known. A session in
// which nothing is verified has no chains, and passes.
func strong(s tls.ConnectionState) error {
	var weak error
	for _, chain := range s.VerifiedChains {
		err := error(nil)
		for _, c := range chain {
			err = errors.Join(err, strongKey(c))
		}
		if err == nil {
			return nil
		}
		weak = err
	}
	if weak != nil {
		return &tls.CertificateVerificationError{UnverifiedCertificates: s.PeerCertificates, Err: weak}
	}
	return nil
}

func strongKey(c *x509.Certificate) error {
	bits, least := 0, 0
	switch key := c.PublicKey.(type) {
	case *rsa.PublicKey:
		bits, least = key.N.BitLen(), minRSABits
	case *ecdsa.PublicKey:
		bits, least = key.Params().BitSize, 256
	default:
		return fmt.Errorf("a key of the kind %v is not known", c.PublicKeyAlgorithm)
	}
	if bits < least {
		return fmt.Errorf("%v key of %d bits is too weak, at least %d are needed", c.PublicKeyAlgorithm, bits, least)
	}
	return nil
}

// handshake watches how the handshake of a request's connection ends.
type handshake struct{ err atomic.Pointer[error] }

func (h *handshake) watch(ctx context.Context) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{TLSHandshakeDone: func(_ tls.ConnectionState, err error) {
		if err != nil {
			h.err.Store(&err)
		}
	}})
}

// refused says whether one side refused the other. A line that breaks in the handshake says nothing about a certificate.
func (h *handshake) refused() bool {
	p := h.err.Load()
	if p == nil {
		return false
	}
	err := *p
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return isAlert(op)
	}
	for _, broken := range []error{io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe, net.ErrClosed, context.Canceled} {
		if errors.Is(err, broken) {
			return false
		}
	}
	timeout, ok := errors.AsType[net.Error](err)
	return !ok || !timeout.Timeout()
}

// isAlert says whether an error is an alert of TLS, by which side soever. Package tls gives it no type outside QUIC.
func isAlert(op *net.OpError) bool { return op.Op == "remote error" || op.Op == "local error" }

func isTLS(err error) bool {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return true
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && isAlert(op) {
		return true
	}
	_, ok := errors.AsType[tls.RecordHeaderError](err)
	return ok
}
