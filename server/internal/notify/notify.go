// Package notify tells receivers outside what has happened: it sends the notices that wait in the queues of package
// fleet to their webhooks, by HTTP and signed as Standard Webhooks says (standardwebhooks.com).
//
// It promises that a notice is sent until its receiver answers with a 2xx or fleet gives it up, that a webhook gets its
// notices in order, and that a receiver which is slow or dead delays no other one. What is sent twice, because an answer
// was lost or this process ended before it was written down, carries the same webhook-id.
//
// It refuses to follow redirects, to read more of an answer than it needs, to wait for one longer than Timeout, and to
// connect to an address behind which the machine itself or its cloud answers (dial.go).
package notify

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"bmsota/server/internal/fleet"
)

// Timeout is how long one try may take, from the name of the receiver to the end of its answer.
const Timeout = 10 * time.Second

const (
	maxAnswer = 64 << 10        // bytes of an answer that are read, so that its connection can be used again
	maxHeader = 16 << 10        // bytes of its header
	pause     = 5 * time.Second // after a fault of the store
)

// Queue is what a Notifier needs of a *fleet.Fleet.
type Queue interface {
	Deliverable(ctx context.Context) ([]fleet.Due, error)
	Delivered(ctx context.Context, d fleet.Delivery) error
	NotDelivered(ctx context.Context, d fleet.Delivery, why string) error
	Noticed() <-chan struct{}
}

var _ Queue = (*fleet.Fleet)(nil)

// Config is what a Notifier needs. Queue and Log must be given.
type Config struct {
	Queue Queue
	Log   *slog.Logger
	// Version is bmsota's own, for the User-Agent.
	Version string
	// AllowLoopback lets webhooks reach this machine.
	AllowLoopback bool
	// Transport makes the requests; nil = over the network, with the addresses of dial.go refused.
	Transport http.RoundTripper
}

// Notifier sends notices.
type Notifier struct {
	cfg    Config
	client *http.Client
}

// New makes a Notifier. It starts nothing.
func New(cfg Config) *Notifier {
	if cfg.Transport == nil {
		cfg.Transport = &http.Transport{
			DialContext:            dialer(cfg.AllowLoopback).DialContext, // and no proxy, which would hide where a name leads
			TLSHandshakeTimeout:    Timeout,
			MaxResponseHeaderBytes: maxHeader,
			MaxIdleConnsPerHost:    1,
			IdleConnTimeout:        30 * time.Second,
		}
	}
	return &Notifier{cfg: cfg, client: &http.Client{
		Transport:     cfg.Transport,
		Timeout:       Timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Run sends what waits until ctx ends, and returns nil then. A webhook is tried by one goroutine at a time, so there are
// never more of them than webhooks.
func (n *Notifier) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer n.client.CloseIdleConnections()
	busy := make(map[string]bool)
	ended := make(chan string)
	for ctx.Err() == nil {
		due, err := n.cfg.Queue.Deliverable(ctx)
		wait := time.Hour
		if err != nil {
			if ctx.Err() == nil {
				n.cfg.Log.Error("read notices", "err", err)
			}
			wait = pause
		}
		now := time.Now()
		for _, d := range due {
			switch id := d.Webhook.ID; {
			case busy[id]:
			case d.Webhook.RetryAt.After(now):
				wait = min(wait, d.Webhook.RetryAt.Sub(now))
			default:
				busy[id] = true
				wg.Go(func() {
					n.deliver(ctx, d)
					select {
					case ended <- id:
					case <-ctx.Done():
					}
				})
			}
		}
		timer := time.NewTimer(wait)
		select {
		case id := <-ended:
			delete(busy, id)
		case <-n.cfg.Queue.Noticed():
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
	return nil
}

// deliver tries once and writes down what came of it.
func (n *Notifier) deliver(ctx context.Context, d fleet.Due) {
	err := n.send(ctx, d)
	if ctx.Err() != nil && err != nil {
		return // ended by us: it says nothing about the receiver
	}
	// The receiver has it: that is written down although the server is being stopped, or it would get it again.
	keep, cancel := context.WithTimeout(context.WithoutCancel(ctx), pause)
	defer cancel()
	if err == nil {
		err = n.cfg.Queue.Delivered(keep, d.Delivery)
	} else {
		n.cfg.Log.Debug("webhook failed", "webhook", d.Webhook.ID, "failures", d.Webhook.Failures+1, "err", err)
		err = n.cfg.Queue.NotDelivered(keep, d.Delivery, err.Error())
	}
	if err != nil {
		n.cfg.Log.Error("write down what came of a notice", "webhook", d.Webhook.ID, "err", err)
		select { // or a store that is down would have the receiver called without a pause
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// send makes one request. The error says nothing of the address but its host: a path may hold a secret.
func (n *Notifier) send(ctx context.Context, d fleet.Due) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.Webhook.URL, strings.NewReader(d.Delivery.Body))
	if err != nil {
		return errors.New("the address cannot be read")
	}
	stamp := strconv.FormatInt(time.Now().Unix(), 10)
	signature, err := sign(string(d.Webhook.Secret), d.Delivery.ID, stamp, d.Delivery.Body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "bmsota/"+n.cfg.Version)
	req.Header.Set("Webhook-Id", d.Delivery.ID)
	req.Header.Set("Webhook-Timestamp", stamp)
	req.Header.Set("Webhook-Signature", signature)
	resp, err := n.client.Do(req)
	if err != nil {
		var inner *url.Error
		if errors.As(err, &inner) {
			err = inner.Err
		}
		var dial *net.OpError
		if errors.As(err, &dial) && dial.Op == "dial" {
			err = dial.Err // the address is said already
		}
		return fmt.Errorf("%s: %w", req.URL.Host, err)
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, maxAnswer)
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s answered %d", req.URL.Host, resp.StatusCode)
	}
	return nil
}

// sign is the value of webhook-signature: HMAC-SHA256 over id, time and body, so that neither can be replaced.
func sign(secret, id, stamp, body string) (string, error) {
	_, encoded, _ := strings.Cut(secret, "_")
	key, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil || len(key) == 0 {
		return "", errors.New("the secret of the webhook cannot be read: remove the webhook and add it again")
	}
	mac := hmac.New(sha256.New, key)
	_, _ = io.WriteString(mac, id+"."+stamp+"."+body) // never fails (hash.Hash)
	return "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)), nil
}
