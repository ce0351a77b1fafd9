package broker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
)

// selfTest finds out, once the broker can be reached, whether it keeps devices apart, and remembers what speaks against it.
// It logs in as who must not be let in, and as a device where the configuration names one, and tries to speak for another
// device and to hear what is said to it; the server's own login looks on. The other device is made up, so no real one hears
// of it, and nothing is retained.
func (x *External) selfTest(ctx context.Context) {
	for delay := time.Second; ; delay = min(2*delay, maxInterval) {
		doubts, err := x.tryIntruders(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			for _, d := range doubts {
				x.log.Error("the mqtt broker does not keep devices apart", "err", d)
			}
			if len(doubts) == 0 {
				x.log.Info("the mqtt broker was tried and keeps strangers out", "device_login_tried", x.cfg.TestUsername != "")
			}
			x.mu.Lock()
			x.doubts = doubts
			x.mu.Unlock()
			close(x.tested)
			return
		}
		if !pause(ctx, delay) {
			return
		}
	}
}

// Doubts are what the self-test has found against the broker, each a sentence; none before it has run.
func (x *External) Doubts() []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Clone(x.doubts)
}

// intruder is a login that must not speak for another device.
type intruder struct{ who, username, password string }

func (x *External) tryIntruders(ctx context.Context) ([]string, error) {
	heard := make(chan struct{}, 1)
	observer, err := x.visit(ctx, "-test", x.cfg.Username, x.cfg.Password, heard)
	if err != nil {
		return nil, err
	}
	defer observer.Disconnect(250)
	if err := x.allowed(ctx, observer.Subscribe(x.cfg.Topics.Status(x.madeUp), 1, nil)); err != nil {
		return nil, fmt.Errorf("subscribe: %w", err)
	}
	list := []intruder{{who: "anybody without a login"}, {"anybody with a wrong password", x.madeUp, rand.Text()}}
	if x.cfg.TestUsername != "" {
		list = append(list, intruder{"a device", x.cfg.TestUsername, x.cfg.TestPassword})
	}
	var doubts []string
	for _, i := range list {
		found, err := x.tryIntruder(ctx, i, observer, heard)
		if err != nil {
			return nil, err
		}
		doubts = append(doubts, found...)
	}
	return doubts, nil
}

// tryIntruder says what one login can do that it must not. An error is a fault of the test itself.
func (x *External) tryIntruder(ctx context.Context, i intruder, observer paho.Client, heard chan struct{}) (doubts []string, err error) {
	overheard := make(chan struct{}, 1)
	client, err := x.visit(ctx, "-intruder", i.username, i.password, overheard)
	device := i.username != "" && i.username == x.cfg.TestUsername
	if err != nil {
		if device {
			return nil, fmt.Errorf("the device login of the test is refused: %w", err)
		}
		return nil, ctx.Err() // kept out, as it should be
	}
	defer client.Disconnect(250)
	if !device {
		doubts = append(doubts, i.who+" is let in")
	}
	// A broker may refuse by an answer, by silence or by ending the session: what counts is what arrives.
	_ = x.await(ctx, client.Subscribe(x.cfg.Topics.Command(x.madeUp), 1, nil))
	_ = x.await(ctx, client.Publish(x.cfg.Topics.Status(x.madeUp), 1, false, "self-test"))
	if err := x.await(ctx, observer.Publish(x.cfg.Topics.Command(x.madeUp), 1, false, "self-test")); err != nil {
		return nil, fmt.Errorf("publish: %w", err)
	}
	end := time.NewTimer(x.hearing)
	defer end.Stop()
	for {
		select {
		case <-heard:
			doubts = append(doubts, i.who+" can speak for any device")
		case <-overheard:
			doubts = append(doubts, i.who+" can hear the commands of any device")
		case <-end.C:
			return doubts, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// visit logs in for the test. What arrives is told once.
func (x *External) visit(ctx context.Context, suffix, username, password string, arrived chan<- struct{}) (paho.Client, error) {
	tell := func(paho.Client, paho.Message) {
		select {
		case arrived <- struct{}{}:
		default:
		}
	}
	client, _, err := x.login(ctx, x.cfg.ClientID+suffix, username, password, true, tell)
	return client, err
}

// allowed waits for an answer to a subscription, and is an error when it is no.
func (x *External) allowed(ctx context.Context, token paho.Token) error {
	if err := x.await(ctx, token); err != nil {
		return err
	}
	if t, ok := token.(*paho.SubscribeToken); ok {
		for _, code := range t.Result() {
			if code > 2 {
				return errors.New("the broker refuses")
			}
		}
	}
	return nil
}

// madeUpPrefix is what the ids begin with that no device has. Another server's are none of ours, and no device's either.
const madeUpPrefix = "bmsota-test-"

// newMadeUp is an id that no device has.
func newMadeUp() string { return madeUpPrefix + rand.Text()[:8] }
