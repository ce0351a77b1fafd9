package api

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
)

// Login is what a device proves with who it is: a token, or a certificate and its key.
type Login struct{ Token, CertificatePEM, KeyPEM string }

// Enroller gives devices their login. *Client is one.
type Enroller interface {
	Enroll(ctx context.Context, id string) (EnrollResponse, error)
	EnrollCertificate(ctx context.Context, id, request string) (EnrollResponse, error)
}

// EnrollDevice gives a device a new login in place of the one it had. The key of a certificate is made here, and is in the
// Login that is returned and nowhere else.
func EnrollDevice(ctx context.Context, e Enroller, id string, certificate bool) (EnrollResponse, Login, error) {
	if !certificate {
		out, err := e.Enroll(ctx, id)
		return out, Login{Token: out.Token}, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return EnrollResponse{}, Login{}, fmt.Errorf("make device key: %w", err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return EnrollResponse{}, Login{}, fmt.Errorf("make device key: %w", err)
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: id}}, key)
	if err != nil {
		return EnrollResponse{}, Login{}, fmt.Errorf("make certificate request: %w", err)
	}
	out, err := e.EnrollCertificate(ctx, id, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: request})))
	return out, Login{CertificatePEM: out.Certificate, KeyPEM: string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))}, err
}
