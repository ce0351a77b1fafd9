package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"bmsota/server/internal/broker"
	"bmsota/server/internal/fleet"
	"bmsota/server/internal/metrics"
	"bmsota/server/internal/web"
)

// metricsHandler answers scrapes with what this server is asked for.
func (s *Server) metricsHandler() http.Handler {
	sources := metrics.Sources{
		Census:      func(ctx context.Context) (*fleet.Census, error) { return s.fleet.Census(ctx, fleet.CensusFresh) },
		Rollouts:    s.fleet.OpenRolloutsByWave,
		Outbox:      s.fleet.Outbox,
		Certificate: s.certs.expires, StorageFree: func() int64 { return diskFree(s.cfg.DataDir) },
		Ready: s.checkReady, Version: s.cfg.Version, Log: s.log,
	}
	if embedded, ok := s.broker.(interface{ Stats() broker.Stats }); ok {
		sources.Broker = func() metrics.Broker {
			b := embedded.Stats()
			return metrics.Broker{Sessions: b.Sessions, Waiting: b.Waiting, TurnedAway: b.TurnedAway, Refused: b.Refused, Takeovers: b.Takeovers,
				Contested: b.Contested, Banned: b.Banned, Denied: b.Denied, Dropped: b.StatusesDropped, NotStored: b.StatusesUnstored}
		}
	}
	return s.metrics.Handler(sources)
}

// observe is what the web side tells of its answers.
func (s *Server) observe(served web.Served) { s.metrics.Request(metrics.Request(served)) }

// MetricsAddr is where /metrics is served without a login; empty when that is off.
func (s *Server) MetricsAddr() string { return addrOf(s.metricsPlain) }

// runMetrics serves the figures on their own address, where there is one.
func (s *Server) runMetrics(ctx context.Context) error {
	if s.metricsPlain == nil {
		<-ctx.Done()
		return nil
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", s.scrapes)
	return s.serveNear(ctx, s.metricsPlain, mux, 30*time.Second)
}

// runDebug serves the profiles of this process, where that is asked for.
func (s *Server) runDebug(ctx context.Context) error {
	if s.debug == nil {
		<-ctx.Done()
		return nil
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	return s.serveNear(ctx, s.debug, mux, 10*time.Minute)
}

// DebugAddr is where profiles are served; empty when that is off.
func (s *Server) DebugAddr() string { return addrOf(s.debug) }

// serveNear serves this machine, plainly, until ctx ends. What is cut off then is asked again.
func (s *Server) serveNear(ctx context.Context, l net.Listener, handler http.Handler, longest time.Duration) error {
	srv := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: longest,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	places := newPlaces(16)
	srv.ConnState = places.state
	if err := srv.Serve(newBoundedListener(l, places)); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
