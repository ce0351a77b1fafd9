// Package server is the one door to the server half of bmsota: a configuration in, a running server out. It opens what
// has to be opened (data folder, database, certificates, ports), wires fleet, broker and web, and ends them in order.
//
// It promises that a server with nothing configured works: it makes its own data folder, certificate authority and
// operator account, and says what a device needs to know (Banner). A second start finds all of it again: authority,
// operator token, devices and releases are the same. Two servers never share a data folder.
//
// It refuses a configuration with keys it does not know, ports that are taken, and clocks that cannot be right, each
// with a sentence that says what to do.
//
// Secrets stay in the data folder, in files of the server's account only: tls/ca.key, tls/devices-ca.key, tls/server.key,
// operator.json.
// What can be configured is written at the fields of Config.
package server

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"bmsota/api"
	"bmsota/protocol"
	"bmsota/server/internal/broker"
	"bmsota/server/internal/fleet"
	"bmsota/server/internal/metrics"
	"bmsota/server/internal/notify"
	"bmsota/server/internal/web"
)

const (
	shutdown = 15 * time.Second // for ending everything
	webGrace = 5 * time.Second  // of that, for downloads under way; a device resumes what is cut
)

// messageBroker is a broker of either kind.
type messageBroker interface {
	fleet.Messenger
	Run(ctx context.Context) error
}

// Server is an opened server: its files are open and its ports are taken, nothing runs yet. Run runs it and gives all
// of it back; Close gives it back unrun.
type Server struct {
	cfg     Config
	log     *slog.Logger
	started time.Time

	opened    []io.Closer // closed last to first
	closeOnce sync.Once
	closeErr  error

	certs   *certificates
	offers  *offerKey
	signOn  *signOn             // nil: nobody signs in by a provider
	bucket  *bucket             // nil where firmware is in a folder
	devices *deviceCertificates // nil where devices have none
	store   database
	fleet   *fleet.Fleet
	broker  messageBroker
	up      func() bool // whether the broker can carry commands

	host string   // by which devices reach this machine
	mqtt api.MQTT // as devices reach the broker

	https, plain       net.Listener // web side; nil = off
	mqttTLS, mqttPlain net.Listener // embedded broker; nil = off
	metricsPlain       net.Listener // figures without a login; nil = off
	debug              net.Listener // profiles; nil = off

	metrics *metrics.Metrics
	scrapes http.Handler

	access     api.Access
	firstStart bool

	ready readiness
}

// Open checks cfg and opens a server. It starts nothing; ports are taken, so that connections wait until Run. The
// error is a sentence for whoever started the program.
func Open(ctx context.Context, cfg Config, log *slog.Logger) (_ *Server, err error) {
	cfg = cfg.withDefaults()
	if err := cfg.Check(); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if cfg.DataDir, err = filepath.Abs(cfg.DataDir); err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	s := &Server{cfg: cfg, log: log, started: time.Now(), metrics: metrics.New()}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	// The lock first: nothing in the folder is touched while another server uses it.
	lock, err := openFolder(cfg.DataDir, log)
	if err != nil {
		return nil, err
	}
	s.keep(lock)
	// Then what may be refused from outside, while nothing else is written.
	if err := inspectDatabase(ctx, cfg); err != nil {
		return nil, err
	}
	if err := s.openBucket(ctx); err != nil {
		return nil, err
	}
	if err := s.listenAll(ctx); err != nil {
		return nil, err
	}
	names := machineNames(append([]string{cfg.Host, hostOfURL(cfg.PublicURL), boundHost(s.https), boundHost(s.mqttTLS)}, cfg.TLS.Names...)...)
	if s.certs, err = openCertificates(cfg.TLS, filepath.Join(cfg.DataDir, tlsName), names, time.Now, log); err != nil {
		return nil, err
	}
	if s.offers, err = openOfferKey(cfg.Fleet.OfferKeyFile, filepath.Join(cfg.DataDir, tlsName), rand.Reader, log); err != nil {
		return nil, err
	}
	if cfg.certifiesDevices() {
		if s.devices, err = openDeviceCertificates(filepath.Join(cfg.DataDir, tlsName), time.Now, log); err != nil {
			return nil, err
		}
	}
	s.host = s.ownHost()
	if err := s.openFleet(ctx); err != nil {
		return nil, err
	}
	if err := s.openBroker(); err != nil {
		return nil, err
	}
	if s.signOn, err = s.openSignOn(); err != nil {
		return nil, err
	}
	s.scrapes = s.metricsHandler()
	return s, s.openAccess(ctx)
}

func (s *Server) keep(c io.Closer) { s.opened = append(s.opened, c) }

// Close gives back what Open took. It is safe to call more than once, and after Run.
func (s *Server) Close() error {
	s.closeOnce.Do(func() {
		var errs []error
		for i := len(s.opened) - 1; i >= 0; i-- {
			if err := s.opened[i].Close(); err != nil && !errors.Is(err, net.ErrClosed) {
				errs = append(errs, err)
			}
		}
		s.closeErr = errors.Join(errs...)
	})
	return s.closeErr
}

func (s *Server) listenAll(ctx context.Context) error {
	for _, l := range []struct {
		to        *net.Listener
		key, addr string
	}{
		{&s.https, "https.listen", s.cfg.HTTPS.Listen},
		{&s.plain, "https.plain_listen", s.cfg.HTTPS.PlainListen},
		{&s.mqttTLS, "mqtt.tls_listen", s.cfg.MQTT.TLSListen},
		{&s.mqttPlain, "mqtt.listen", s.cfg.MQTT.Listen},
		{&s.metricsPlain, "metrics.listen", s.cfg.Metrics.Listen},
		{&s.debug, "debug.listen", s.cfg.Debug.Listen},
	} {
		if s.cfg.MQTT.External.URL != "" && (l.to == &s.mqttTLS || l.to == &s.mqttPlain) {
			continue
		}
		listener, err := listen(ctx, l.key, l.addr, s.log)
		if err != nil {
			return err
		}
		if listener != nil {
			*l.to = listener
			s.keep(listener)
		}
	}
	return nil
}

func (s *Server) openFleet(ctx context.Context) error {
	db, err := openDatabase(ctx, s.cfg, s.log)
	if err != nil {
		return err
	}
	s.keep(db)
	s.store = db
	blobs, err := s.openBlobs(ctx)
	if err != nil {
		return err
	}
	var issue fleet.Issuer
	if s.devices != nil {
		issue = s.devices.issue
	}
	share, err := s.join(ctx, db)
	if err != nil {
		return err
	}
	s.fleet, err = fleet.New(fleet.Config{
		Share: share,
		Store: db, Blobs: blobs, Log: s.log,
		Silence: time.Duration(s.cfg.Fleet.Silence), Expiry: time.Duration(s.cfg.Fleet.Expiry),
		KeepAttempts: time.Duration(s.cfg.Retention.Attempts), KeepAudit: time.Duration(s.cfg.Retention.Audit),
		AllowUnsigned: !s.cfg.Fleet.RequireSigned, DefaultProject: s.cfg.Fleet.DefaultProject,
		AcceptSeedStatus: s.cfg.Fleet.AcceptSeedStatus, ForeignSessions: s.cfg.MQTT.External.URL != "",
		Observer: s.metrics, Issue: issue, OfferKey: s.offers.key,
	})
	return err
}

func (s *Server) openBroker() error {
	topics := protocol.Topics{Prefix: s.cfg.MQTT.Prefix}
	if s.cfg.MQTT.External.URL != "" {
		return s.openExternal(topics)
	}
	embedded, err := broker.NewEmbedded(broker.Config{
		Handler: s.fleet, Topics: topics, AcceptSeedStatus: s.cfg.Fleet.AcceptSeedStatus,
		Secure: s.mqttTLS, TLS: s.certs.config(false, s.devices), Plain: s.mqttPlain, PlainAnywhere: s.cfg.MQTT.PlainAnywhere,
		Log: s.log, TurnedAway: s.fleet.TurnedAway,
	})
	if err != nil {
		return err
	}
	running := &atomic.Bool{}
	s.broker, s.up = flagged{embedded, running}, running.Load
	s.mqtt = api.MQTT{Host: s.host, Port: portOf(s.mqttTLS), TLS: true, Prefix: s.cfg.MQTT.Prefix, CAPEM: string(s.certs.caPEM)}
	if s.mqttTLS == nil {
		s.mqtt.Port, s.mqtt.TLS, s.mqtt.CAPEM = portOf(s.mqttPlain), false, ""
	}
	return nil
}

// flagged says while its broker runs.
type flagged struct {
	*broker.Embedded
	running *atomic.Bool
}

func (f flagged) Run(ctx context.Context) error {
	f.running.Store(true)
	defer f.running.Store(false)
	return f.Embedded.Run(ctx)
}

func (s *Server) openExternal(topics protocol.Topics) error {
	ext := s.cfg.MQTT.External
	u, err := url.Parse(ext.URL)
	if err != nil {
		return fmt.Errorf("mqtt.external.url: %w", err)
	}
	secure := u.Scheme != "mqtt" && u.Scheme != "tcp"
	s.mqtt = api.MQTT{Host: u.Hostname(), Port: 1883, TLS: secure, Prefix: s.cfg.MQTT.Prefix, External: true}
	if secure {
		s.mqtt.Port = 8883
	}
	if p := u.Port(); p != "" {
		if s.mqtt.Port, err = strconv.Atoi(p); err != nil {
			return fmt.Errorf("mqtt.external.url: %w", err)
		}
	}
	u.Host = net.JoinHostPort(u.Hostname(), strconv.Itoa(s.mqtt.Port))
	var conf *tls.Config
	if secure {
		conf = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: u.Hostname()}
		if ext.CAFile != "" {
			pem, err := readPEM(ext.CAFile)
			if err != nil {
				return fmt.Errorf("mqtt.external.ca_file: %w", err)
			}
			s.mqtt.CAPEM = string(pem)
			conf.RootCAs = x509.NewCertPool()
			conf.RootCAs.AppendCertsFromPEM(pem)
		}
	}
	sent := s.fleet.Sent
	if s.cfg.Replicas.Name == "" {
		sent = nil
	}
	external, err := broker.NewExternal(broker.ExternalConfig{
		Handler: s.fleet, Topics: topics, URL: u.String(), TLS: conf,
		Username: ext.Username, Password: ext.Password, ClientID: s.cfg.clientID(), Group: s.cfg.shareGroup(), Sent: sent,
		TestUsername: ext.TestUsername, TestPassword: ext.TestPassword, Log: s.log,
	})
	if err != nil {
		return err
	}
	s.broker, s.up = external, external.Connected
	return nil
}

// Run runs the server until ctx ends, or until a part of it cannot go on, which is the error. It ends in the order web,
// broker, fleet, store: who brings work ends before who makes it durable. Run may be called once.
func (s *Server) Run(ctx context.Context) error {
	err := runStages(ctx, shutdown, []stage{
		{"certificates", s.certs.watch},
		{"bucket", s.watchBucket},
		{"fleet", func(ctx context.Context) error { return s.fleet.Run(ctx, s.broker) }},
		{"webhooks", notify.New(notify.Config{Queue: s.fleet, Log: s.log, Version: s.cfg.Version, AllowLoopback: s.cfg.Webhooks.AllowLoopback}).Run},
		{"broker", s.broker.Run},
		{"web", s.runWeb},
		{"metrics", s.runMetrics},
		{"debug", s.runDebug},
		{"supervisor", s.runSupervised}, // last: what it says is up is up
	})
	return errors.Join(err, s.Close())
}

// Reload looks at the certificate's files now, and not at the next of the looks that are taken anyway. One that cannot serve
// is logged, and the old one stays.
func (s *Server) Reload() { s.certs.look() }

func (s *Server) runWeb(ctx context.Context) error {
	config := web.Config{
		Fleet: s.fleet, Log: s.log, Version: s.cfg.Version, Info: s.info, Ready: s.checkReady, CacheBytes: s.cfg.HTTPS.CacheBytes,
		Messenger: s.broker, PublicURL: s.cfg.PublicURL, HTTPSOnly: s.httpsOnly(), Closing: ctx.Done(), Observe: s.observe, Metrics: s.scrapes,
		ImageURL: s.imageURL(),
	}
	proxies, err := s.cfg.HTTPS.proxies()
	if err != nil {
		return err
	}
	config.TrustedProxies = proxies
	if s.signOn != nil {
		defer s.signOn.Close()
		config.SSO = s.signOn
	}
	handler := web.New(config)
	srv := web.NewServer(handler, s.log)
	group, groupCtx := errgroup.WithContext(ctx)
	serve := func(l net.Listener, secure *tls.Config) {
		group.Go(func() error {
			if err := srv.Serve(l, secure); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
	}
	places := newPlaces(s.cfg.HTTPS.MaxConnections)
	srv.ConnState = places.state
	if s.https != nil {
		var asked *deviceCertificates
		if s.cfg.HTTPS.ClientCertificates {
			asked = s.devices
		}
		serve(newBoundedListener(s.https, places), s.certs.config(true, asked))
	}
	if s.plain != nil {
		serve(newBoundedListener(s.plain, places), nil)
	}
	group.Go(func() error {
		<-groupCtx.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), webGrace)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			return srv.Close()
		}
		return nil
	})
	return group.Wait()
}

// httpsOnly says whether browsers are to come by HTTPS alone: where the address is one that somebody has set up for that,
// behind a proxy or with a certificate of a public authority or his own. A server with the local authority often shares its
// name with other programs (a NAS), whose plain pages a browser would then no longer open.
func (s *Server) httpsOnly() bool {
	return strings.HasPrefix(s.cfg.PublicURL, "https://") || s.https != nil && (s.cfg.TLS.CertFile != "" || len(s.cfg.TLS.ACME.Hosts) > 0)
}

func (s *Server) info(ctx context.Context) (api.ServerInfo, error) {
	info := api.ServerInfo{
		Version: s.cfg.Version, StartedAt: s.started.UTC(), URL: s.URL(), Addresses: []string{}, CAPEM: string(s.certs.caPEM), MirrorURL: s.cfg.MirrorURL,
		OfferKeyPEM: s.offers.public,
		MQTT:        s.mqtt, CertificateExpires: s.certs.expires().UTC(), StorageFreeBytes: diskFree(s.cfg.DataDir), Ready: true,
	}
	for _, l := range []net.Listener{s.https, s.plain, s.mqttTLS, s.mqttPlain} {
		if l != nil {
			info.Addresses = append(info.Addresses, l.Addr().String())
		}
	}
	if tested, ok := s.broker.(interface{ Doubts() []string }); ok {
		info.BrokerDoubts = tested.Doubts()
	}
	if s.bucket != nil {
		info.FirmwareDoubts = s.bucket.Doubts()
	}
	if err := s.checkReady(ctx); err != nil {
		info.Ready, info.NotReady = false, err.Error()
	}
	return info, nil
}
