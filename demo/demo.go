// Package demo is the five-minute tour: a whole server and a handful of virtual boards in one process, one update that
// goes well and one that does not. Everything in it is the real thing: TLS with an authority of its own, the MQTT
// broker, signed releases, flash images that boot by ESP-IDF's rules. Only the boards' clocks are not slowed down.
//
// It promises to say plainly when something did not go as it should: Run returns an error then, so that the demo is a
// test as well.
package demo

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"bmsota/api"
	"bmsota/deploy"
	"bmsota/device"
	"bmsota/esp/appimage"
	"bmsota/manifest"
	"bmsota/protocol"
	"bmsota/server"

	"golang.org/x/sync/errgroup"
)

// Config is what can be chosen.
type Config struct {
	Devices int    // boards to run
	Keep    bool   // go on running when the tour is over, until the context ends
	Dir     string // folder for the server's data; empty = a temporary one, removed at the end
	Log     *slog.Logger

	// Say prints a line to whoever watches.
	Say func(format string, args ...any)
	// Follow shows a command until every device has a verdict.
	Follow func(ctx context.Context, link *deploy.Link, track *deploy.Track)
	// Results prints the last table.
	Results func(rows []Result)
}

// Result is one line of the table at the end.
type Result struct {
	Device  string
	Version string         // that runs now
	Slot    string         // that it runs from
	Good    deploy.Verdict // of the good release
	Bad     deploy.Verdict // of the bad one
	Reason  protocol.Reason
}

// The story's releases.
const (
	project      = "esp32-bms-monitor"
	startVersion = "1.0.0"
	goodVersion  = "1.1.0"
	badVersion   = "1.2.0"
	imageSize    = 1 << 20
)

// linkSpeed is how fast a board takes bytes, per second: what an ESP32 manages over TLS on good Wi-Fi, so that there is a
// download to watch.
const linkSpeed = 400 << 10

// dialSlowly is the boards' network.
func dialSlowly(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return slowConn{conn}, nil
}

type slowConn struct{ net.Conn }

func (c slowConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p[:min(len(p), linkSpeed/50)])
	time.Sleep(time.Duration(n) * time.Second / linkSpeed)
	return n, err
}

// stepTimeout bounds each update of the tour.
const stepTimeout = 5 * time.Minute

// Run gives the tour.
func Run(ctx context.Context, cfg Config) (err error) {
	if cfg.Devices < 1 {
		return errors.New("the demo needs at least one device")
	}
	if cfg.Dir == "" {
		if cfg.Dir, err = os.MkdirTemp("", "bmsota-demo-"); err != nil {
			return fmt.Errorf("demo: %w", err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(cfg.Dir)) }()
	}
	// The server outlives the boards, so that they say goodbye to somebody.
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	serverCtx, stopServer := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServer()
	srv, err := openServer(serverCtx, cfg)
	if err != nil {
		return err
	}
	servers, boards := new(errgroup.Group), new(errgroup.Group)
	servers.Go(func() error {
		defer stop() // a server that ends by itself ends the tour
		return srv.Run(serverCtx)
	})
	tourErr := tour(ctx, cfg, srv, boards)
	if tourErr == nil && cfg.Keep {
		cfg.Say("\nstill running; stop it with Ctrl-C")
		<-ctx.Done()
	}
	stop()
	boardErr := boards.Wait()
	stopServer()
	return errors.Join(tourErr, boardErr, servers.Wait())
}

func openServer(ctx context.Context, cfg Config) (*server.Server, error) {
	c := server.Default()
	c.DataDir = filepath.Join(cfg.Dir, "server")
	c.Host, c.Version = "localhost", "demo"
	// Ports of the system's choice, on loopback: the demo disturbs nothing that runs on this machine.
	c.HTTPS.Listen, c.MQTT.TLSListen, c.MQTT.Listen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	srv, err := server.Open(ctx, c, cfg.Log)
	if err != nil {
		return nil, fmt.Errorf("start the server: %w", err)
	}
	return srv, nil
}

func tour(ctx context.Context, cfg Config, srv *server.Server, boards *errgroup.Group) error {
	access := srv.Access()
	client, err := api.NewClient(api.Options{BaseURL: access.Server, Token: access.Token, CAPEM: srv.CAPEM()})
	if err != nil {
		return err
	}
	if err := ready(ctx, client); err != nil {
		return err
	}
	cfg.Say("server   %s  (own certificate authority)", srv.URL())
	cfg.Say("broker   %s", brokerURL(access.MQTT))
	key, err := manifest.NewKey(rand.Reader)
	if err != nil {
		return err
	}
	link, err := deploy.Dial(ctx, deploy.Broker{Host: access.MQTT.Host, Port: access.MQTT.Port, TLS: access.MQTT.TLS, CAPEM: srv.CAPEM(),
		Username: access.MQTT.Username, Password: access.MQTT.Password, Prefix: access.MQTT.Prefix})
	if err != nil {
		return err
	}
	defer link.Close()
	ids, fleet, err := makeBoards(ctx, cfg, client, &key.PublicKey)
	if err != nil {
		return err
	}
	boards.Go(func() error { return errors.Join(fleet.Run(ctx), fleet.Close()) })
	if err := online(ctx, link, ids); err != nil {
		return err
	}
	cfg.Say("boards   %d, each with 4 MiB of flash, running %s\n", len(ids), startVersion)
	t := &teller{cfg: cfg, client: client, link: link, key: key, ids: ids}
	cfg.Say("publishing %s, signed, and updating everybody", goodVersion)
	good, err := t.update(ctx, goodVersion, appimage.BehaviourOK)
	if err != nil {
		return err
	}
	cfg.Say("\npublishing %s, which crashes as soon as it runs", badVersion)
	bad, err := t.update(ctx, badVersion, appimage.BehaviourCrash)
	if err != nil {
		return err
	}
	results := make([]Result, len(good))
	for i := range good {
		results[i] = Result{Device: good[i].Device, Version: bad[i].Status.CurrentVersion, Slot: bad[i].Status.Slot,
			Good: good[i].Verdict, Bad: bad[i].Verdict, Reason: bad[i].Reason}
	}
	cfg.Say("")
	cfg.Results(results)
	if cfg.Keep {
		data := filepath.Dir(srv.AccessFile())
		cfg.Say("\nserver   %s  (CA: %s)", srv.URL(), filepath.Join(data, "tls", "ca.pem"))
		cfg.Say("broker   %s  (login: user operator, password in %s)", brokerURL(access.MQTT), srv.AccessFile())
		cfg.Say("         the server's address is a dashboard in a browser: sign in as operator, with that same password")
		cfg.Say("\nIn another terminal:\n  export BMSOTA_DATA=%s\n  bmsota status", data)
	}
	return judge(results)
}

// judge is what makes the demo a test.
func judge(results []Result) error {
	for _, r := range results {
		if r.Good != deploy.Done {
			return fmt.Errorf("%s did not take the good release: %s", r.Device, r.Good)
		}
		if r.Version != goodVersion || r.Bad != deploy.Failed || r.Reason != protocol.ReasonCrash {
			return fmt.Errorf("%s runs %s after the bad release (%s %s), not %s", r.Device, r.Version, r.Bad, r.Reason, goodVersion)
		}
	}
	return nil
}

func brokerURL(m api.AccessMQTT) string {
	scheme := "mqtt"
	if m.TLS {
		scheme = "mqtts"
	}
	return fmt.Sprintf("%s://%s:%d", scheme, m.Host, m.Port)
}

// ready waits until the server does its work.
func ready(ctx context.Context, client *api.Client) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		err := client.Ready(ctx)
		if err == nil || ctx.Err() != nil {
			return err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// makeBoards enrolls the boards and makes their flash.
func makeBoards(ctx context.Context, cfg Config, client *api.Client, key *ecdsa.PublicKey) ([]string, *device.Fleet, error) {
	info, err := client.Server(ctx)
	if err != nil {
		return nil, nil, err
	}
	trusted, err := manifest.EncodePublicKey(key)
	if err != nil {
		return nil, nil, err
	}
	image, err := newImage(startVersion, appimage.BehaviourOK)
	if err != nil {
		return nil, nil, err
	}
	var ids []string
	var eachErr error
	fleet, err := device.NewFleet(device.FleetConfig{
		Layout: device.Layout{Image: image}, Board: device.Config{Seed: 1, Log: cfg.Log, Dial: dialSlowly}, Count: cfg.Devices,
		Spread: time.Duration(cfg.Devices) * 5 * time.Millisecond,
		Each: func(_ int, l *device.Layout, _ *device.Config) {
			if eachErr != nil {
				return
			}
			id := protocol.DeviceID(l.MAC)
			ids = append(ids, id)
			eachErr = configure(ctx, client, info, id, string(trusted), l)
		},
	})
	if err := errors.Join(eachErr, err); err != nil {
		return nil, nil, fmt.Errorf("make the boards: %w", err)
	}
	return ids, fleet, nil
}

func configure(ctx context.Context, client *api.Client, info api.ServerInfo, id, trusted string, l *device.Layout) error {
	out, err := client.Enroll(ctx, id)
	if err != nil {
		return err
	}
	ota, mqtt, err := info.DeviceFiles(id, api.Login{Token: out.Token}, trusted)
	if err != nil {
		return err
	}
	ota.Health.DeadlineS = 60
	if l.OTAConfig, err = ota.Append(nil); err != nil {
		return err
	}
	l.MQTTConfig, err = mqtt.Append(nil)
	return err
}

func newImage(version string, trial appimage.Behaviour) ([]byte, error) {
	b, err := appimage.Build(appimage.BuildOptions{Chip: appimage.ESP32, Project: project, Version: version, Size: imageSize, Trial: trial})
	if err != nil {
		return nil, fmt.Errorf("build image %s: %w", version, err)
	}
	return b, nil
}

// online waits until every board has spoken.
func online(ctx context.Context, link *deploy.Link, ids []string) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	missing := make(map[string]bool, len(ids))
	for _, id := range ids {
		missing[id] = true
	}
	for len(missing) > 0 {
		select {
		case r := <-link.Statuses():
			if r.Status.Phase != protocol.PhaseOffline {
				delete(missing, r.Device)
			}
		case <-ctx.Done():
			return fmt.Errorf("%d boards did not come online: %w", len(missing), ctx.Err())
		}
	}
	return nil
}

// teller publishes and updates.
type teller struct {
	cfg    Config
	client *api.Client
	link   *deploy.Link
	key    *ecdsa.PrivateKey
	ids    []string
}

// update publishes a release, orders it and follows every board to its verdict.
func (t *teller) update(ctx context.Context, version string, trial appimage.Behaviour) ([]deploy.Row, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	image, err := newImage(version, trial)
	if err != nil {
		return nil, err
	}
	p, err := deploy.Prepare(deploy.Release{Image: image, Keys: []crypto.Signer{t.key}})
	if err != nil {
		return nil, err
	}
	if _, err := deploy.Publish(ctx, t.client, p, "", nil); err != nil {
		return nil, fmt.Errorf("publish %s: %w", version, err)
	}
	id, err := deploy.NewCommandID()
	if err != nil {
		return nil, err
	}
	track := deploy.NewTrack(protocol.Command{Action: protocol.ActionUpdate, ID: id}, t.ids...)
	if err := t.link.Send(ctx, "", track.Command); err != nil {
		return nil, err
	}
	t.cfg.Follow(ctx, t.link, track)
	if ctx.Err() != nil {
		return nil, fmt.Errorf("update to %s: %w", version, context.Cause(ctx))
	}
	return track.Rows(), nil
}
