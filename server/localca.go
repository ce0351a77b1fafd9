package server

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"bmsota/durable"
)

// Files of the local authority and of its certificate, below <data_dir>/tls.
const (
	caCertName     = "ca.pem"
	caKeyName      = "ca.key"
	serverCertName = "server.pem"
	serverKeyName  = "server.key"
)

const (
	caLife     = 3652 * 24 * time.Hour // ten years: devices hold this certificate in flash
	serverLife = 820 * 24 * time.Hour  // Apple's systems refuse more than 825 days, also of private authorities
	renewAhead = 30 * 24 * time.Hour
)

// local is the authority that signs the server's own certificate.
func (c *certificates) local() *authority {
	return &authority{what: "local authority", cert: c.path(caCertName), key: c.path(caKeyName), life: caLife,
		advice: "to make a new authority, and give that to the devices", now: c.now, log: c.log}
}

// readLocal takes the local authority's certificate for this server into use, making first what is missing: the
// authority once, the server's certificate whenever names are not covered any more or the end is near. It returns the
// authority's PEM.
func (c *certificates) readLocal() ([]byte, error) {
	caPEM, ca, err := c.local().read()
	if err != nil {
		return nil, err
	}
	now := c.now()
	if now.Add(365 * 24 * time.Hour).After(ca.NotAfter) {
		c.log.Warn("the local authority ends within a year; devices must be given a new one before", "path", c.path(caCertName), "expires", ca.NotAfter)
	}
	cert, err := tls.LoadX509KeyPair(c.path(serverCertName), c.path(serverKeyName))
	if err != nil || !c.good(cert.Leaf, ca, now) {
		if cert, err = c.issue(ca, now); err != nil {
			return nil, err
		}
	}
	c.current.Store(&cert)
	return caPEM, nil
}

// good says whether the server's certificate will do: of this authority, in time, covering every name.
func (c *certificates) good(leaf, ca *x509.Certificate, now time.Time) bool {
	// One that ends with its authority cannot be replaced by a longer one.
	ending := now.Add(renewAhead).After(leaf.NotAfter) && leaf.NotAfter.Before(ca.NotAfter)
	if leaf.CheckSignatureFrom(ca) != nil || now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) || ending {
		return false
	}
	for _, name := range c.names {
		if leaf.VerifyHostname(name) != nil {
			return false
		}
	}
	return true
}

// issue makes the server's certificate. Key first: a certificate whose key is not beside it is made again at next start.
func (c *certificates) issue(ca *x509.Certificate, now time.Time) (tls.Certificate, error) {
	if now.Before(oldest) {
		return tls.Certificate{}, errClock
	}
	signer, err := c.local().signer(ca)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("a new server certificate is needed: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make server certificate: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make server certificate: %w", err)
	}
	end := now.Add(serverLife)
	if end.After(ca.NotAfter) {
		end = ca.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: commonName(c.names)},
		NotBefore:             now.Add(-backdate),
		NotAfter:              end,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	template.DNSNames, template.IPAddresses = alternativeNames(c.names)
	der, err := x509.CreateCertificate(rand.Reader, template, ca, &key.PublicKey, signer)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make server certificate: %w", err)
	}
	if err := writeKey(c.path(serverKeyName), key); err != nil {
		return tls.Certificate{}, err
	}
	if err := durable.WriteFile(c.path(serverCertName), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), private); err != nil {
		return tls.Certificate{}, err
	}
	cert, err := tls.LoadX509KeyPair(c.path(serverCertName), c.path(serverKeyName))
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("read back server certificate: %w", err)
	}
	c.log.Info("server certificate was made", "names", c.names, "expires", end)
	return cert, nil
}

// commonName is the first name that fits: X.520 allows 64 characters.
func commonName(names []string) string {
	for _, name := range names {
		if len(name) <= 64 {
			return name
		}
	}
	return "bmsota"
}

// alternativeNames sorts names into the two kinds. An IPv4 address becomes both: older mbedTLS, as in ESP-IDF 4.4,
// compares what it was told to connect to with DNS names only.
func alternativeNames(names []string) (dns []string, ips []net.IP) {
	for _, name := range names {
		addr, err := netip.ParseAddr(name)
		if err != nil {
			dns = append(dns, name)
			continue
		}
		ips = append(ips, addr.AsSlice())
		if addr.Is4() {
			dns = append(dns, name)
		}
	}
	return dns, ips
}

// machineNames lists the names and addresses of this machine: extra first, then its name, localhost, and the addresses
// of its interfaces. Link-local addresses are left out: they mean something only together with an interface.
func machineNames(extra ...string) []string {
	names := slices.Clone(extra)
	if host, err := os.Hostname(); err == nil && isHost(host) {
		names = append(names, host)
	}
	names = append(names, "localhost", "127.0.0.1", "::1")
	for _, addr := range interfaceAddrs() {
		names = append(names, addr.String())
	}
	seen := make(map[string]bool)
	return slices.DeleteFunc(names, func(name string) bool {
		again := name == "" || seen[name]
		seen[name] = true
		return again
	})
}

// interfaceAddrs lists addresses of interfaces, IPv4 first, without loopback and link-local ones.
func interfaceAddrs() []netip.Addr {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var out []netip.Addr
	for _, a := range list {
		prefix, err := netip.ParsePrefix(a.String())
		if err != nil {
			continue
		}
		addr := prefix.Addr().Unmap()
		if addr.IsLoopback() || !addr.IsGlobalUnicast() {
			continue
		}
		out = append(out, addr)
	}
	slices.SortStableFunc(out, func(a, b netip.Addr) int {
		if a.Is4() == b.Is4() {
			return 0
		}
		if a.Is4() {
			return -1
		}
		return 1
	})
	return out
}
