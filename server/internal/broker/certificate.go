package broker

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/mochi-mqtt/server/v2/packets"

	"bmsota/audit"
	"bmsota/server/internal/fleet"
)

// certificate is what a peer has shown of itself in the handshake.
type certificate struct{ name, sha256 string }

// shown is the peer's certificate where its chain was verified; of a session that was resumed, too.
func shown(s tls.ConnectionState) *certificate {
	if len(s.VerifiedChains) == 0 {
		return nil
	}
	leaf := s.VerifiedChains[0][0]
	sum := sha256.Sum256(leaf.Raw)
	return &certificate{name: leaf.Subject.CommonName, sha256: hex.EncodeToString(sum[:])}
}

// byCertificate is the login of a peer that has shown a certificate. It alone counts: a password that comes with it is not
// looked at, and a user name must be the device's.
func (e *Embedded) byCertificate(cert *certificate, con packets.ConnectParams) (fleet.Identity, error) {
	if name := string(con.Username); name != "" && name != cert.name {
		return fleet.Identity{}, fmt.Errorf("%w: the certificate is for %.64q", fleet.ErrDenied, cert.name)
	}
	ctx, cancel := e.call()
	defer cancel()
	return e.cfg.Handler.AuthenticateCertificate(ctx, cert.name, cert.sha256)
}

// noteCertificate makes a handshake that failed over the peer's certificate visible: there is no session to refuse.
func (e *Embedded) noteCertificate(c *conn, err error) {
	if bad, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		e.count.refused.Add(1)
		e.noteErr("mqtt certificate refused", bad, "peer", c.source)
		e.knock(c, audit.LoginFailed, "", "certificate of another authority, out of time, or not for devices")
	}
}
