package device

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/md5"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"
)

// factory makes chains of certificates as a board may meet them, the wrong ones included. Their dates are around now. Keys of
// each kind are made once: what a row is about is what stands in the certificates.
type factory struct {
	t      testing.TB
	now    time.Time
	keys   map[string]crypto.Signer
	serial int64
	root   link // the authority that the boards trust
}

// link is one certificate of a chain with its key.
type link struct {
	cert *x509.Certificate
	key  crypto.Signer
}

const year = 365 * 24 * time.Hour

func newFactory(t testing.TB, now time.Time) *factory {
	f := &factory{t: t, now: now, keys: map[string]crypto.Signer{}}
	f.root = f.authority("Firmware Root")
	return f
}

// key is a key of a kind: rsa1024, p224, and for the rest a fresh one for each other name, on P-256.
func (f *factory) key(kind string) crypto.Signer {
	if k, ok := f.keys[kind]; ok {
		return k
	}
	var k crypto.Signer
	var err error
	switch kind {
	case "rsa1024":
		k, err = rsa.GenerateKey(rand.Reader, 1024)
	case "rsa2048":
		k, err = rsa.GenerateKey(rand.Reader, 2048)
	case "p224":
		k, err = ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	case "p384":
		k, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "ed25519":
		_, k, err = ed25519.GenerateKey(rand.Reader)
	default:
		k, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		f.t.Fatal(err)
	}
	f.keys[kind] = k
	return k
}

type change = func(*x509.Certificate)

// issue makes a certificate for key under parent; a zero parent is itself.
func (f *factory) issue(parent link, key crypto.Signer, c *x509.Certificate, changes []change) link {
	f.t.Helper()
	f.serial++
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(f.serial), f.now.Add(-24*time.Hour), f.now.Add(year)
	for _, change := range changes {
		change(c)
	}
	if parent.cert == nil {
		parent = link{c, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent.cert, key.Public(), parent.key)
	if err != nil {
		f.t.Fatal(err)
	}
	return f.read(der, key)
}

func (f *factory) read(der []byte, key crypto.Signer) link {
	f.t.Helper()
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		f.t.Fatal(err)
	}
	return link{cert, key}
}

func ca(name string) *x509.Certificate {
	return &x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
}

// authority is a root, its key known by its name.
func (f *factory) authority(name string, changes ...change) link {
	return f.issue(link{}, f.key(name), ca(name), changes)
}

// between is an authority under another one.
func (f *factory) between(parent link, name string, changes ...change) link {
	return f.issue(parent, f.key(name), ca(name), changes)
}

const factoryHost = "fw.localhost"

// leaf is the certificate of a server called fw.localhost.
func (f *factory) leaf(parent link, changes ...change) link {
	return f.leafOf(parent, "leaf", changes...)
}

func (f *factory) leafOf(parent link, kind string, changes ...change) link {
	return f.issue(parent, f.key(kind), &x509.Certificate{Subject: pkix.Name{CommonName: "a server"}, DNSNames: []string{factoryHost},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, changes)
}

// dates moves the time in which a certificate counts, from now.
func (f *factory) dates(from, to time.Duration) change {
	return func(c *x509.Certificate) { c.NotBefore, c.NotAfter = f.now.Add(from), f.now.Add(to) }
}

func names(dns ...string) change { return func(c *x509.Certificate) { c.DNSNames = dns } }

func uses(u ...x509.ExtKeyUsage) change { return func(c *x509.Certificate) { c.ExtKeyUsage = u } }

// unknown is a critical extension that nobody knows.
func unknown(c *x509.Certificate) {
	c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}, Critical: true, Value: []byte{5, 0}})
}

// spoilt is l with one bit of its signature turned.
func (f *factory) spoilt(l link) link {
	der := bytes.Clone(l.cert.Raw)
	der[len(der)-1] ^= 1
	return f.read(der, l.key)
}

// md5 is an RSA certificate by an RSA parent, signed anew over its MD5, which package x509 does not do.
func (f *factory) md5(l, parent link) link {
	f.t.Helper()
	sha, md := []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 1, 11}, []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 1, 4}
	var c struct {
		TBS       asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}
	if _, err := asn1.Unmarshal(bytes.ReplaceAll(l.cert.Raw, sha, md), &c); err != nil {
		f.t.Fatal(err)
	}
	sum := md5.Sum(c.TBS.FullBytes)
	sig, err := rsa.SignPKCS1v15(nil, parent.key.(*rsa.PrivateKey), crypto.MD5, sum[:])
	if err != nil {
		f.t.Fatal(err)
	}
	c.Signature = asn1.BitString{Bytes: sig, BitLength: 8 * len(sig)}
	der, err := asn1.Marshal(c)
	if err != nil {
		f.t.Fatal(err)
	}
	return f.read(der, l.key)
}

// chainCase is a server as a board meets it.
type chainCase struct {
	name   string
	chain  []link // the server's first
	roots  []link // what the board trusts; nil: the factory's root
	host   string // empty: fw.localhost
	server func(*tls.Config)
	plain  bool // and it does not speak TLS

	good   bool
	detail string // of the board's message
	// differs says why the component's verdict on this machine is the opposite one; empty: it is the same.
	differs string
	mbedTLS string // and why mbedTLS's is
}

func (c chainCase) config() *tls.Config {
	cert := tls.Certificate{PrivateKey: c.chain[0].key}
	for _, l := range c.chain {
		cert.Certificate = append(cert.Certificate, l.cert.Raw)
	}
	tc := &tls.Config{Certificates: []tls.Certificate{cert}}
	if c.server != nil {
		c.server(tc)
	}
	return tc
}

func (c chainCase) trusted(f *factory) string {
	roots := c.roots
	if roots == nil {
		roots = []link{f.root}
	}
	return encoded(roots)
}

// encoded is certificates as PEM.
func encoded(links []link) string {
	var text strings.Builder
	for _, l := range links {
		pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: l.cert.Raw})
	}
	return text.String()
}

// What the libraries do otherwise than crypto/tls, none of it without the signature of an authority that is trusted.
const (
	firstWay   = "of two ways to a root it goes the first: a server sends the one that its devices trust before the other"
	commonName = "it takes the common name where there is no other"
)

// openSSL is why the component accepts on this machine what the chip's library refuses.
const openSSL = "OpenSSL knows it and takes it for strong enough, mbedTLS does not"

// cases are the rows: what is accepted first.
func (f *factory) cases() []chainCase {
	root, other := f.root, f.authority("Another Root")
	middle := f.between(root, "Middle")
	own := f.authority(factoryHost, names(factoryHost))
	rsaRoot := f.authority("rsa2048")
	versions := func(from, to uint16) func(*tls.Config) {
		return func(c *tls.Config) { c.MinVersion, c.MaxVersion = from, to }
	}
	suites := func(ids ...uint16) func(*tls.Config) {
		return func(c *tls.Config) {
			c.MinVersion, c.MaxVersion, c.CipherSuites = tls.VersionTLS10, tls.VersionTLS12, ids
		}
	}
	cn := func(name string) change {
		return func(c *x509.Certificate) { c.Subject.CommonName, c.DNSNames = name, nil }
	}
	address := func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = nil, []net.IP{net.IPv4(127, 0, 0, 1)} }
	sha1 := func(c *x509.Certificate) { c.SignatureAlgorithm = x509.SHA1WithRSA }
	chain := func(l ...link) []link { return l }
	// under is a server's chain under an authority between that has something special.
	under := func(parent link, name string, changes ...change) []link {
		between := f.between(parent, name, changes...)
		return chain(f.leaf(between), between)
	}
	past, future := f.dates(-48*time.Hour, -24*time.Hour), f.dates(24*time.Hour, 48*time.Hour)
	notCA := func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = false, false }
	notSigning := func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }
	weakRoot := f.authority("rsa1024")
	p224Root := f.authority("p224")
	short := f.between(root, "Short Path", func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 0, true })
	return []chainCase{
		{name: "by the root", chain: chain(f.leaf(root)), good: true},
		{name: "by an authority between", chain: chain(f.leaf(middle), middle), good: true},
		{name: "with certificates that belong to nothing", chain: chain(f.leaf(middle), f.leaf(other), middle, other), good: true},
		{name: "the server's own, pinned", chain: chain(own), roots: chain(own), good: true},
		{name: "cross-signed", chain: chain(f.leaf(middle), middle, f.between(other, "Middle")), good: true},
		{name: "cross-signed, the way that is not trusted first", chain: chain(f.leaf(middle), f.between(other, "Middle"), middle), good: true,
			differs: firstWay, mbedTLS: firstWay},
		{name: "two pins, the second counts", chain: chain(f.leaf(root)), roots: chain(other, root), good: true},
		{name: "RSA of 2048 bits", chain: chain(f.leafOf(rsaRoot, "rsa2048")), roots: chain(rsaRoot), good: true},
		{name: "P-384", chain: chain(f.leafOf(root, "p384")), good: true},
		{name: "TLS 1.2", chain: chain(f.leaf(root)), server: versions(tls.VersionTLS12, tls.VersionTLS12), good: true},
		{name: "wildcard", chain: chain(f.leaf(root, names("*.fw.localhost"))), host: "a.fw.localhost", good: true},
		{name: "an address", chain: chain(f.leaf(root, address)), host: "127.0.0.1", good: true, mbedTLS: "this version of it reads no addresses"},

		{name: "expired", chain: chain(f.leaf(root, past)), detail: "expired"},
		{name: "not valid yet", chain: chain(f.leaf(root, future)), detail: "not yet valid"},
		{name: "a clock at 1970", chain: chain(f.leaf(root, f.dates(25*year, 30*year))), detail: "not yet valid"},
		{name: "a clock 20 years ahead", chain: chain(f.leaf(root, f.dates(-21*year, -20*year))), detail: "expired"},
		{name: "authority between has expired", chain: under(root, "Middle", past), detail: "expired"},
		{name: "authority between is not valid yet", chain: under(root, "Middle", future), detail: "not yet valid"},
		{name: "root has expired", chain: chain(f.leaf(root)), roots: chain(f.authority("Firmware Root", past)), detail: "expired"},
		{name: "root is not valid yet", chain: chain(f.leaf(root)), roots: chain(f.authority("Firmware Root", future)), detail: "not yet valid"},

		{name: "self-signed", chain: chain(f.leaf(link{})), detail: "unknown authority"},
		{name: "self-signed in the root's name", chain: chain(f.issue(link{}, f.key("leaf"), ca("Firmware Root"), []change{names(factoryHost)})), detail: "unknown authority"},
		{name: "by another root", chain: chain(f.leaf(other)), detail: "unknown authority"},
		{name: "by another root, which is sent along", chain: chain(f.leaf(other), other), detail: "unknown authority"},
		{name: "pin withdrawn", chain: chain(f.leaf(root)), roots: chain(other), detail: "unknown authority"},
		{name: "authority between is missing", chain: chain(f.leaf(middle)), detail: "unknown authority"},
		{name: "authority between is another's of that name", chain: chain(f.leaf(middle), f.between(other, "Middle")), detail: "unknown authority"},
		{name: "cross-signed by nobody who is trusted", chain: chain(f.leaf(middle), f.between(other, "Middle")), roots: chain(f.authority("Third Root")), detail: "unknown authority"},
		{name: "in the root's name by another key", chain: chain(f.leaf(f.issue(link{}, f.key("stranger"), ca("Firmware Root"), nil))), detail: "unknown authority"},
		{name: "signature spoilt", chain: chain(f.spoilt(f.leaf(root))), detail: "unknown authority"},
		{name: "signature of the one between spoilt", chain: chain(f.leaf(middle), f.spoilt(middle)), detail: "unknown authority"},
		{name: "the key is another", chain: chain(link{f.leaf(root).cert, f.key("stranger")}), detail: "invalid signature"},

		{name: "another host", chain: chain(f.leaf(root, names("other.localhost"))), detail: "valid for other.localhost"},
		{name: "the chain of another server", chain: chain(f.leaf(middle, names("broker.localhost")), middle), detail: "valid for broker.localhost"},
		{name: "the name goes on", chain: chain(f.leaf(root, names("fw.localhost.evil.example"))), detail: "valid for"},
		{name: "the name is a part", chain: chain(f.leaf(root, names("localhost"))), detail: "valid for"},
		{name: "wildcard above", chain: chain(f.leaf(root, names("*.localhost"))), host: "a.fw.localhost", detail: "valid for"},
		{name: "wildcard below", chain: chain(f.leaf(root, names("*.fw.localhost"))), detail: "valid for"},
		{name: "wildcard of a part", chain: chain(f.leaf(root, names("f*.localhost"))), detail: "valid for"},
		{name: "wildcard of everything", chain: chain(f.leaf(root, names("*"))), detail: "valid for"},
		{name: "no name but the common one", chain: chain(f.leaf(root, cn(factoryHost))), detail: "SANs", differs: commonName, mbedTLS: commonName},
		{name: "no name", chain: chain(f.leaf(root, cn(""))), detail: "valid for"},
		{name: "a name where an address is asked for", chain: chain(f.leaf(root, names("127.0.0.1"))), host: "127.0.0.1", detail: "IP", mbedTLS: "it compares texts: an authority that is trusted wrote the address there, if as a name"},
		{name: "an address where a name is asked for", chain: chain(f.leaf(root, address)), detail: "valid for"},
		{name: "another address", chain: chain(f.leaf(root, func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(10, 0, 0, 1)} })), host: "127.0.0.1", detail: "10.0.0.1"},

		{name: "RSA of 1024 bits", chain: chain(f.leafOf(root, "rsa1024")), detail: "too weak"},
		{name: "RSA of 1024 bits between", chain: under(root, "rsa1024"), detail: "too weak"},
		{name: "root of RSA of 1024 bits", chain: chain(f.leaf(weakRoot)), roots: chain(weakRoot), detail: "too weak"},
		{name: "P-224", chain: chain(f.leafOf(root, "p224")), detail: "handshake failure"},
		{name: "P-224 between", chain: under(root, "p224"), detail: "too weak", differs: openSSL},
		{name: "root of P-224", chain: chain(f.leaf(p224Root)), roots: chain(p224Root), detail: "too weak", differs: openSSL},
		{name: "Ed25519, which mbedTLS does not know", chain: chain(f.leafOf(root, "ed25519")), detail: "Ed25519", differs: openSSL},
		{name: "SHA-1", chain: chain(f.leaf(rsaRoot, sha1)), roots: chain(rsaRoot), detail: "SHA1"},
		{name: "SHA-1 between", chain: under(rsaRoot, "Middle", sha1), roots: chain(rsaRoot), detail: "SHA1"},
		{name: "MD5", chain: chain(f.md5(f.leaf(rsaRoot), rsaRoot)), roots: chain(rsaRoot), detail: "MD5"},

		{name: "authority that does not say it is one", chain: under(root, "No CA", notCA), detail: "cannot sign this kind of certificate"},
		{name: "a server as authority", chain: chain(f.leaf(f.leafOf(root, "p384", names("other.localhost"))), f.leafOf(root, "p384", names("other.localhost"))), detail: "cannot sign this kind of certificate"},
		{name: "authority that may not sign", chain: under(root, "May Not", notSigning), detail: "unknown authority"},
		{name: "more authorities than the path may have", chain: append(under(short, "Too Many"), short), detail: "too many intermediates"},
		{name: "authority for other names", chain: under(root, "Elsewhere", elsewhere), detail: "not permitted"},
		{name: "authority for all but this name", chain: under(root, "Not Here", notHere), detail: "excluded"},
		{name: "the certificate of another device", chain: chain(f.leaf(root, uses(x509.ExtKeyUsageClientAuth), func(c *x509.Certificate) { c.Subject.CommonName = "bms-a1b2c3" })), detail: "usage"},
		{name: "for signing code", chain: chain(f.leaf(root, uses(x509.ExtKeyUsageCodeSigning))), detail: "usage"},
		{name: "authority for clients", chain: under(root, "For Clients", uses(x509.ExtKeyUsageClientAuth)), detail: "usage", mbedTLS: "it asks what a server's certificate is for, and not what an authority's is"},
		{name: "a critical word that nobody knows", chain: chain(f.leaf(root, unknown)), detail: "critical extension"},
		{name: "a critical word that nobody knows, between", chain: under(root, "Odd", unknown), detail: "critical extension"},

		{name: "TLS 1.0", chain: chain(f.leaf(root)), server: versions(tls.VersionTLS10, tls.VersionTLS10), detail: "version"},
		{name: "TLS 1.1", chain: chain(f.leaf(root)), server: versions(tls.VersionTLS11, tls.VersionTLS11), detail: "version"},
		{name: "RC4 alone", chain: chain(f.leafOf(rsaRoot, "rsa2048")), roots: chain(rsaRoot), server: suites(tls.TLS_RSA_WITH_RC4_128_SHA, tls.TLS_ECDHE_RSA_WITH_RC4_128_SHA), detail: "handshake failure"},
		{name: "3DES alone", chain: chain(f.leafOf(rsaRoot, "rsa2048")), roots: chain(rsaRoot), server: suites(tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA, tls.TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA), detail: "handshake failure"},
		{name: "no TLS at all", chain: chain(f.leaf(root)), plain: true, detail: "gave HTTP response"},
	}
}

func elsewhere(c *x509.Certificate) {
	c.PermittedDNSDomains, c.PermittedDNSDomainsCritical = []string{"example.com"}, true
}

func notHere(c *x509.Certificate) {
	c.ExcludedDNSDomains, c.PermittedDNSDomainsCritical = []string{"localhost"}, true
}
