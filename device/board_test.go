package device

import (
	"testing"
	"testing/synctest"
	"time"

	"bmsota/esp/appimage"
)

const (
	goodUpdate = "idle checking downloading verifying switching rebooting trial confirmed idle"
	failedOnce = "idle checking downloading verifying switching rebooting "
)

func TestGoodUpdateIsConfirmedAndStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := newKey(t)
		old, next := image(t, "1.0.0"), image(t, "1.1.0")
		b := newBench(t, layout(old, trusting(t, key)), serve(t, release(t, next, key), next))
		b.on()
		b.settle(5 * time.Second)
		b.hub.order(`{"action":"update"}`)
		b.settle(time.Minute)
		b.wantPhases(goodUpdate)
		b.wantRunning(next)
		if err := b.off(); err != nil {
			t.Fatal(err)
		}
		b.on()
		b.settle(time.Minute)
		b.wantRunning(next)
		b.off()
	})
}

func TestBadImagesAreUndoneWithTheirCause(t *testing.T) {
	for _, c := range []struct {
		trial appimage.Behaviour
		want  string
	}{
		{appimage.BehaviourCrash, failedOnce + "rolled_back:crash idle"},
		{appimage.BehaviourHang, failedOnce + "rolled_back:watchdog idle"},
		{appimage.BehaviourUnhealthy, failedOnce + "trial rebooting:bms_silent rolled_back:bms_silent idle"},
	} {
		t.Run(string(c.trial), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				old, next := image(t, "1.0.0"), image(t, "1.1.0", trial(c.trial))
				b := newBench(t, layout(old, ""), serve(t, release(t, next, nil), next))
				b.on()
				b.settle(5 * time.Second)
				b.hub.order(`{"action":"update","id":"a1"}`)
				b.settle(10 * time.Minute)
				b.wantPhases(c.want)
				b.wantRunning(old)
				for _, s := range b.hub.all() {
					if s.Phase == "rolled_back" && s.FailedSHA256 != sha(next) {
						t.Errorf("failed image is named %q, want %q", s.FailedSHA256, sha(next))
					}
				}
				// It is quarantined, force or not, and told once.
				b.hub.order(`{"action":"update","force":true}`)
				b.settle(time.Minute)
				b.wantPhases(c.want + " checking refused:quarantined")
				b.off()
				b.on()
				b.settle(time.Minute)
				b.wantRunning(old)
				b.off()
			})
		})
	}
}
