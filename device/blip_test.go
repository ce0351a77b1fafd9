package device

import (
	"crypto/tls"
	"crypto/x509"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/esp/appimage"
	"bmsota/protocol"
)

// TestServerThatIsAwayForAMomentFailsNoOrder: neither a check nor an update.
func TestServerThatIsAwayForAMomentFailsNoOrder(t *testing.T) {
	for order, want := range map[string]string{`{"action":"check"}`: "1.0.0", update: "1.1.0"} {
		for _, away := range []time.Duration{time.Second, 20 * time.Second, 45 * time.Second} {
			synctest.Test(t, func(t *testing.T) {
				next := image(t, "1.1.0")
				b := stand(t, next, "", release(t, next, nil))
				b.server.set(func(s *server) { s.down = true })
				b.hub.order(order)
				b.settle(away)
				b.server.set(func(s *server) { s.down = false })
				b.settle(5 * time.Minute)
				b.off()
				last := b.hub.last()
				if last.Phase != protocol.PhaseIdle || last.CurrentVersion != want || strings.Contains(b.hub.phases(), "failed") || want == "1.0.0" && last.AvailableVersion != "1.1.0" {
					t.Errorf("%s with the server away for %v: %s", order, away, b.hub.phases())
				}
			})
		}
	}
}

// TestServerThatStaysAwayIsSaidWhileItIsAndFailsInTheEnd: the wait is bounded, and nobody has to guess what for.
func TestServerThatStaysAwayIsSaidWhileItIsAndFailsInTheEnd(t *testing.T) {
	for _, c := range []struct {
		order string
		limit time.Duration
		err   error
		want  protocol.Reason
	}{
		{`{"action":"check"}`, 2 * time.Minute, errLine, protocol.ReasonUnreachable},
		{update, 31 * time.Minute, errLine, protocol.ReasonUnreachable},
		// A certificate does not become right by waiting as a line does: that is told while somebody still looks.
		{update, 3 * time.Minute, &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}, protocol.ReasonTLS},
	} {
		synctest.Test(t, func(t *testing.T) {
			next := image(t, "1.1.0")
			b := stand(t, next, "", release(t, next, nil))
			b.server.set(func(s *server) { s.down, s.downErr = true, c.err })
			b.hub.order(c.order)
			b.settle(15 * time.Second)
			if last := b.hub.last(); last.Phase != protocol.PhaseChecking || !strings.Contains(last.Message, c.err.Error()) {
				t.Errorf("%s: after 15 s it says %s: %s", c.order, last.Phase, last.Message)
			}
			b.settle(c.limit)
			if last := b.hub.last(); last.Phase != protocol.PhaseFailed || last.Reason != c.want {
				t.Errorf("%s: ends as %s:%s, want failed:%s", c.order, last.Phase, last.Reason, c.want)
			}
			b.off()
		})
	}
}

// TestReportThatTheBrokerDidNotTakeIsSaidAgain in the same session: an answer that is late for one status must not
// leave a rollback untold, and the board deaf to orders, until the next reconnect.
func TestReportThatTheBrokerDidNotTakeIsSaidAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		next := image(t, "1.1.0", trial(appimage.BehaviourCrash))
		b := stand(t, next, "", release(t, next, nil))
		b.board.cfg.OnBoot = func(string, ResetReason) {
			b.hub.mu.Lock()
			defer b.hub.mu.Unlock()
			b.hub.acks = false
		}
		b.hub.order(update)
		b.settle(3 * time.Minute)
		b.board.cfg.OnBoot = nil
		b.hub.mu.Lock()
		b.hub.acks = true
		b.hub.mu.Unlock()
		b.settle(2 * time.Minute)
		if !strings.HasSuffix(b.hub.phases(), "rolled_back:crash idle") {
			t.Errorf("said %s", b.hub.phases())
		}
		good := image(t, "1.2.0")
		b.offer(good, update)
		b.wantRunning(good)
		b.off()
	})
}

// TestTrialOutlivesABrokerThatAnswersLate: one lost PUBACK is no broken image.
func TestTrialOutlivesABrokerThatAnswersLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		next := image(t, "1.1.0")
		b := stand(t, next, "", release(t, next, nil))
		b.board.cfg.OnBoot = func(string, ResetReason) {
			b.hub.mu.Lock()
			defer b.hub.mu.Unlock()
			b.hub.acks = false
		}
		b.hub.order(update)
		b.settle(time.Minute)
		b.hub.mu.Lock()
		b.hub.acks = true
		b.hub.mu.Unlock()
		b.settle(10 * time.Minute)
		b.off()
		b.wantRunning(next)
	})
}
