package device

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/esp/appimage"
	"bmsota/protocol"
)

// dated is a certificate of its own authority, valid between two moments.
func dated(t *testing.T, from, to time.Time, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotBefore: from, NotAfter: to,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// TestCertificatesThatDoNotFitAreToldApartFromAServerThatIsAway: expired, not valid yet (which is what every certificate is
// to a board that thinks it is 1970), for another name; and a name that does not resolve.
func TestCertificatesThatDoNotFitAreToldApartFromAServerThatIsAway(t *testing.T) {
	for _, c := range []struct {
		name     string
		from, to time.Duration // from now
		host     string
		want     string
	}{
		{"valid", -time.Hour, time.Hour, "fw.example", "idle:update_available"},
		{"expired", -2 * time.Hour, -time.Hour, "fw.example", "failed:tls_failed"},
		{"not valid yet", 24 * time.Hour, 48 * time.Hour, "fw.example", "failed:tls_failed"},
		{"another name", -time.Hour, time.Hour, "other.example", "failed:tls_failed"},
		{"no such name", -time.Hour, time.Hour, "", "failed:server_unreachable"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				next := image(t, "1.1.0")
				s := serve(t, release(t, next, nil), next)
				cert := dated(t, time.Now().Add(c.from), time.Now().Add(c.to), c.host)
				roots := x509.NewCertPool()
				roots.AddCert(cert.Leaf)
				offer, stop := front(s, &tls.Config{Certificates: []tls.Certificate{cert}})
				nw := &network{listeners: map[string]func(net.Conn){"fw.example:443": offer}}
				b := newBench(t, layout(image(t, "1.0.0"), ""), s, func(cfg *Config) {
					cfg.Transport, cfg.Dial, cfg.Roots = nil, nw.dial, roots
				})
				if c.host == "" {
					delete(nw.listeners, "fw.example:443")
				}
				b.on()
				b.settle(5 * time.Second)
				b.hub.order(`{"action":"check"}`)
				b.settle(5 * time.Minute)
				if last := b.hub.last(); string(last.Phase)+":"+string(last.Reason) != c.want {
					t.Errorf("ends as %s:%s %s, want %s", last.Phase, last.Reason, last.Message, c.want)
				}
				b.off()
				stop()
				synctest.Wait()
			})
		})
	}
}

// TestRedirectsAreNotFollowed, neither to a version file nor to an image.
func TestRedirectsAreNotFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		next := image(t, "1.1.0")
		b := stand(t, next, "", release(t, next, nil))
		b.server.set(func(s *server) {
			s.respond = func(r *http.Request, _ []byte) *http.Response {
				return reply(r, http.StatusFound, http.Header{"Location": {"https://elsewhere.example/x.bin"}}, strings.NewReader(""), 0)
			}
		})
		b.hub.order(update)
		b.settle(2 * time.Minute)
		if last := b.hub.last(); last.Reason != protocol.ReasonHTTPStatus || !strings.Contains(last.Message, "redirect") {
			t.Errorf("ends as %s:%s %s", last.Phase, last.Reason, last.Message)
		}
		for _, r := range b.server.requests {
			if r.URL.Host != "fw.example" {
				t.Errorf("asked %s", r.URL)
			}
		}
		b.off()
	})
}

// TestOrdersWaitForTheReportOfARollback: the order of a live operator is taken up when the report is through, not lost.
func TestOrdersWaitForTheReportOfARollback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		good := image(t, "1.2.0")
		bad := image(t, "1.1.0", trial(appimage.BehaviourCrash))
		b := stand(t, bad, "", release(t, bad, nil))
		b.board.cfg.OnBoot = func(string, ResetReason) { b.hub.drop() }
		b.hub.order(update)
		b.settle(2 * time.Minute)
		body, _ := release(t, good, nil).Append(nil)
		b.server.set(func(s *server) { s.version, s.files[sha(good)+".bin"] = body, good })
		before := b.flash().Ops()
		b.hub.order(`{"action":"update","id":"late"}`)
		b.settle(time.Minute)
		if n := b.flash().Ops() - before; n != 0 {
			t.Errorf("%d operations before the rollback was told: the tombstone that tells it is in that slot", n)
		}
		b.board.cfg.OnBoot = nil
		b.hub.up()
		b.settle(10 * time.Minute)
		b.off()
		b.wantRunning(good)
		if !strings.Contains(b.hub.phases(), "rolled_back:crash") {
			t.Errorf("the rollback was never told: %s", b.hub.phases())
		}
	})
}

// TestBoardWithoutRollbackKeepsWhatItInstalls: there is no trial, nothing is said to be confirmed, and the board says that
// nothing protects it. An image that is not healthy stays.
func TestBoardWithoutRollbackKeepsWhatItInstalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		next := image(t, "1.1.0", trial(appimage.BehaviourUnhealthy))
		b := stand(t, next, "", release(t, next, nil), func(c *Config) { c.NoRollback = true })
		b.hub.order(update)
		b.settle(time.Hour)
		last := b.hub.last()
		if last.CurrentVersion != "1.1.0" || last.RollbackProtected || last.RollbackPending || strings.Contains(b.hub.phases(), "confirmed") || strings.Contains(b.hub.phases(), "trial") {
			t.Errorf("runs %s, protected %v: %s", last.CurrentVersion, last.RollbackProtected, b.hub.phases())
		}
		// An operator can still go back.
		b.hub.order(`{"action":"rollback"}`)
		b.settle(time.Minute)
		b.off()
		if last := b.hub.last(); last.CurrentVersion != "1.0.0" {
			t.Errorf("after a rollback it runs %s: %s", last.CurrentVersion, b.hub.phases())
		}
	})
}
