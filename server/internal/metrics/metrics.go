// Package metrics is the server in numbers, for Prometheus: what updates lead to and why, how fast downloads are, how
// little memory devices have left while they update, who runs what, and how broker and web side fare.
//
// It promises label values that are few, whatever devices say of themselves: reasons and phases are closed sets, routes
// are patterns, and of versions the first are named and the rest is "other". Counters begin at zero with the process.
//
// It registers nothing with the default registry. It knows no HTTP, MQTT or SQL of ours: package server tells it what
// happened (Folded, Ended, Request) and gives it functions to ask (Sources). The names are documented in
// docs/monitoring.md, and the alert rules beside it use them; a test holds both to this package.
package metrics

import (
	"context"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

const (
	// maxVersions is how many versions are named; a device may call itself anything.
	maxVersions = 20
	other       = "other"
	// askTimeout bounds the questions of one scrape.
	askTimeout = 5 * time.Second
)

// Broker is what the broker counts.
type Broker struct {
	Sessions, Waiting, Banned                                             int
	TurnedAway, Refused, Takeovers, Contested, Denied, Dropped, NotStored uint64
}

// Sources are what a scrape asks. Census and Log must be given.
type Sources struct {
	Census      func(ctx context.Context) (*fleet.Census, error)
	Rollouts    func(ctx context.Context) ([]fleet.RolloutView, error) // those that have not ended; nil = not asked
	Outbox      func(ctx context.Context) (fleet.Outbox, error)        // nil = not asked
	Broker      func() Broker                                          // nil = the broker is not ours
	Certificate func() time.Time
	StorageFree func() int64 // bytes; below 0 = unknown
	Ready       func(ctx context.Context) error
	Version     string
	Log         *slog.Logger
}

// Request is one answered HTTP request.
type Request struct {
	Route  string // a pattern, never a path
	Method string
	Status int
	Bytes  int64 // of the body that were sent
	Took   time.Duration
	Image  bool // firmware was asked for
	Cut    bool // the answer ended before its end
}

// Metrics counts. It is safe for concurrent use.
type Metrics struct {
	registry *prometheus.Registry
	versions named

	updates   *prometheus.CounterVec
	attempts  *prometheus.CounterVec
	rollbacks *prometheus.CounterVec
	duration  prometheus.Histogram
	heap      prometheus.Histogram
	block     prometheus.Histogram
	statuses  *prometheus.CounterVec
	downloads *prometheus.CounterVec
	sent      prometheus.Counter
	speed     prometheus.Histogram
	requests  *prometheus.CounterVec
	latency   *prometheus.HistogramVec
}

var _ fleet.Observer = (*Metrics)(nil)

// New makes the figures.
func New() *Metrics {
	kib := func(sizes ...float64) []float64 {
		for i := range sizes {
			sizes[i] *= 1024
		}
		return sizes
	}
	m := &Metrics{
		registry:  prometheus.NewRegistry(),
		updates:   counters("bmsota_updates_total", "Ended updates of devices, by how they ended.", "result"),
		attempts:  counters("bmsota_attempts_total", "Ended attempts of devices at an order, by how they ended and why.", "action", "result", "reason", "version"),
		rollbacks: counters("bmsota_rollbacks_total", "Rollbacks that devices have reported, ordered ones too, by cause.", "reason"),
		duration: histogram("bmsota_update_duration_seconds", "From the order of an update to its confirmed end.",
			30, 60, 120, 300, 600, 1800, 3600, 6*3600, 24*3600, 7*24*3600),
		heap: histogram("bmsota_update_min_free_heap_bytes", "Least free heap since boot, as devices report it during updates.",
			kib(8, 16, 24, 32, 48, 64, 96, 128, 192, 256)...),
		block: histogram("bmsota_update_largest_free_block_bytes", "Largest free block of heap, as devices report it during updates.",
			kib(4, 8, 12, 16, 24, 32, 48, 64, 96, 128)...),
		statuses:  counters("bmsota_statuses_total", "Statuses from devices, by what became of them: taken, duplicate, late or offline.", "result"),
		downloads: counters("bmsota_downloads_total", "Answers with firmware, whole or cut off before their end.", "result"),
		sent:      prometheus.NewCounter(prometheus.CounterOpts{Name: "bmsota_download_bytes_total", Help: "Bytes of firmware sent."}),
		speed: histogram("bmsota_download_speed_bytes_per_second", "Speed of answers with at least 64 KiB of firmware.",
			kib(1, 4, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384)...),
		requests: counters("bmsota_http_requests_total", "Answered HTTP requests.", "route", "method", "code"),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "bmsota_http_request_duration_seconds",
			Help: "Time to answer, by route; streams of events are left out.", Buckets: []float64{.001, .005, .02, .05, .1, .25, .5, 1, 2.5, 10, 60}}, []string{"route"}),
	}
	m.registry.MustRegister(m.updates, m.attempts, m.rollbacks, m.duration, m.heap, m.block, m.statuses, m.downloads, m.sent, m.speed, m.requests, m.latency,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	// A series that begins with its first event has no rate for it: those that alerts ask for begin at zero.
	for _, result := range []string{"complete", "cut"} {
		m.downloads.WithLabelValues(result)
	}
	for _, result := range []fleet.AttemptState{fleet.AttemptSucceeded, fleet.AttemptFailed, fleet.AttemptRolledBack, fleet.AttemptRefused, fleet.AttemptExpired} {
		m.updates.WithLabelValues(string(result))
	}
	for _, cause := range []protocol.Reason{protocol.ReasonCrash, protocol.ReasonWatchdog, protocol.ReasonBrownout, protocol.ReasonPowerLoss, protocol.ReasonNoNetwork,
		protocol.ReasonNoBroker, protocol.ReasonNoServer, protocol.ReasonBMSSilent, protocol.ReasonLowHeap, protocol.ReasonOperator, protocol.ReasonCorrupt, protocol.ReasonOther} {
		m.rollbacks.WithLabelValues(string(cause))
	}
	return m
}

func counters(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
}

func histogram(name, help string, buckets ...float64) prometheus.Histogram {
	return prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
}

// Folded implements fleet.Observer.
func (m *Metrics) Folded(s protocol.Status, before protocol.Phase, e fleet.Effects) {
	result := e.Dropped
	if result == "" {
		result = "taken"
	}
	m.statuses.WithLabelValues(result).Inc()
	if e.Dropped != "" {
		return
	}
	if s.Phase == protocol.PhaseRolledBack && before != protocol.PhaseRolledBack {
		m.rollbacks.WithLabelValues(reason(s.Reason)).Inc()
	}
	if s.Phase.Updating() {
		if s.MinFreeHeap > 0 {
			m.heap.Observe(float64(s.MinFreeHeap))
		}
		if s.LargestFreeBlock > 0 {
			m.block.Observe(float64(s.LargestFreeBlock))
		}
	}
}

// Ended implements fleet.Observer.
func (m *Metrics) Ended(a fleet.Attempt) {
	version := "offered"
	if a.Version != "" {
		version = m.versions.name(a.Version)
	}
	m.attempts.WithLabelValues(string(a.Action), string(a.State), reason(a.Reason), version).Inc()
	if a.Action != protocol.ActionUpdate {
		return
	}
	m.updates.WithLabelValues(string(a.State)).Inc()
	if a.State == fleet.AttemptSucceeded {
		m.duration.Observe(a.EndedAt.Sub(a.CreatedAt).Seconds())
	}
}

// reason is a word of the closed set.
func reason(r protocol.Reason) string {
	if r == protocol.ReasonNone {
		return "none"
	}
	return string(r.Known())
}

// Request counts one answer.
func (m *Metrics) Request(r Request) {
	m.requests.WithLabelValues(r.Route, method(r.Method), class(r.Status)).Inc()
	if r.Route != "/events" {
		m.latency.WithLabelValues(r.Route).Observe(r.Took.Seconds())
	}
	if !r.Image || r.Status/100 != 2 {
		return
	}
	result := "complete"
	if r.Cut {
		result = "cut"
	}
	m.downloads.WithLabelValues(result).Inc()
	m.sent.Add(float64(r.Bytes))
	if r.Bytes >= 64<<10 && r.Took > 0 {
		m.speed.Observe(float64(r.Bytes) / r.Took.Seconds())
	}
}

func method(s string) string {
	switch s {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete:
		return s
	}
	return other
}

// class is a status without its last digits where nobody asks for them.
func class(status int) string {
	switch {
	case status >= 500:
		return "5xx"
	case status == http.StatusUnauthorized:
		return "401"
	case status == http.StatusForbidden:
		return "403"
	case status == http.StatusNotFound:
		return "404"
	case status == http.StatusTooManyRequests:
		return "429"
	case status >= 400:
		return "4xx"
	case status >= 300:
		return "3xx"
	}
	return "2xx"
}

// named lets the first maxVersions names through.
type named struct {
	mu    sync.Mutex
	known []string // guarded by mu
}

func (n *named) name(s string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if slices.Contains(n.known, s) {
		return s
	}
	if len(n.known) >= maxVersions {
		return other
	}
	n.known = append(n.known, s)
	return s
}

// Handler answers scrapes, two at once. It may be called once: it registers what s is asked for.
func (m *Metrics) Handler(s Sources) http.Handler {
	m.registry.MustRegister(&asked{s})
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 2, Timeout: 2 * askTimeout,
		ErrorLog: slog.NewLogLogger(s.Log.Handler(), slog.LevelError)})
}
