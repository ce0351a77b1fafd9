// Package fleet decides: which release a device is offered, what a status says about an attempt, who may log in.
//
// It promises that what it acknowledges is durable (bytes first, row second, words last), that every exported change
// is one Store.Update, that a device is said to run a version only when that device reported it outside a trial, and
// that every attempt ends: by the device's word, by its silence, or by its expiry.
//
// It refuses images that ESP-IDF would refuse, manifests that do not describe the bytes or are not signed by the
// project's key, other bytes under a published version, and commands that are not commands.
//
// It knows no SQL, no HTTP and no MQTT: Store, Blobs and Commander (ports.go) are what it needs of them. What a status
// means is Apply, a pure function; phases and reasons are those of package protocol.
package fleet

import (
	"crypto"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// Config is what a Fleet needs. Store, Blobs and Log must be given.
type Config struct {
	Store Store
	Blobs Blobs
	Log   *slog.Logger
	// Now gives the time of rows; nil means time.Now. Loops use real timers.
	Now func() time.Time
	// Silence is how long an updating device may say nothing before its attempt has failed; 0 means 30 minutes.
	Silence time.Duration
	// Expiry is the life of an update command that sets none; 0 means 7 days.
	Expiry time.Duration
	// KeepAttempts is for how long attempts are kept after their end, KeepAudit for how long rows of the audit log are; 0 = for
	// good. What is needed is kept in any case (EndedAttempt).
	KeepAttempts, KeepAudit time.Duration
	// AllowUnsigned lets releases without a manifest in.
	AllowUnsigned bool
	// DefaultProject is taken for requests that name none where several projects exist.
	DefaultProject string
	// AcceptSeedStatus lets statuses on the shared topic in; the device is then the MQTT login.
	AcceptSeedStatus bool
	// ForeignSessions says that devices are connected to a broker that is not of this process: a start finds them as
	// they were left, and their statuses and wills say what has changed.
	ForeignSessions bool
	// Issue signs certificates for devices; nil = this server gives none.
	Issue Issuer
	// OfferKey signs the answers to devices that ask for that (ECDSA P-256); nil = none are signed.
	OfferKey crypto.Signer
	// Share is what several fleets on Store agree by; nil = this is the only one.
	Share *Share
	// Observer is told what was committed; nil = nobody.
	Observer Observer
}

// Fleet is the state of the server. All methods are safe for concurrent use.
type Fleet struct {
	cfg Config

	folds   chan *fold    // callers of Fold to the committer of Run
	running chan struct{} // closed when the committer takes folds
	stopped chan struct{} // closed when it takes no more
	handing sync.RWMutex  // read-locked while something is put into folds
	emptied chan struct{} // closed after stopped, when nothing is left in folds
	started atomic.Bool   // Run may be called once

	heardSince atomic.Pointer[time.Time] // since when statuses are taken; nil before Run

	catalog    catalogCache
	askers     *memory[asker]
	logins     *memory[tokenSum]
	kept       *keptRows // nil: others write the rows, too
	census     censusCache
	guard      *guard // of logins
	ledger     *ledger
	knocks     knocks
	watchers   watchers
	publishing sync.Mutex    // held by Publish: an image is in memory whole, one at a time
	wake       chan struct{} // capacity 1: dirty is not empty, or drops is not
	planning   chan struct{} // capacity 1: a rollout wants a look
	noticed    chan struct{} // capacity 1: there may be notices to deliver
	zones      zones
	share      *share // nil: nobody else is on the store

	mu       sync.Mutex
	dirty    map[string]struct{}  // devices whose attempts changed; guarded by mu
	drops    map[string]struct{}  // devices and operators whose sessions must end; guarded by mu
	ending   map[string]time.Time // operators who logged in to MQTT with a token that ends then; guarded by mu
	contests map[string]Contest   // by device; guarded by mu
	accused  map[string]struct{}  // devices whose contest is not in their rows yet; guarded by mu
	sessions map[string]int       // MQTT sessions of devices in this process; guarded by mu
}

// New makes a Fleet. It starts nothing: Run does.
func New(cfg Config) (*Fleet, error) {
	if cfg.Store == nil || cfg.Blobs == nil || cfg.Log == nil {
		return nil, errors.New("fleet: a store, blobs and a log are needed")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Silence == 0 {
		cfg.Silence = 30 * time.Minute
	}
	if cfg.Expiry == 0 {
		cfg.Expiry = 7 * 24 * time.Hour
	}
	if cfg.Silence < 0 || cfg.Expiry < 0 || cfg.KeepAttempts < 0 || cfg.KeepAudit < 0 {
		return nil, errors.New("fleet: silence, expiry and what is kept cannot be negative")
	}
	books := &ledger{Store: cfg.Store, now: cfg.Now, askers: newMemory[asker](maxAskers), logins: newMemory[tokenSum](maxLogins)}
	var others *share
	if cfg.Share != nil {
		if cfg.Share.Place == "" {
			return nil, errors.New("fleet: a server that shares its store has a place")
		}
		others = &share{Share: cfg.Share, foreign: make(map[string]struct{})}
		if cfg.Share.Name != "" {
			books.place = cfg.Share.Place
		}
	}
	if others == nil {
		books.kept = newKeptRows()
	}
	cfg.Store = books // so that what forgets to say who acts is in the audit log all the same
	return &Fleet{
		cfg:     cfg,
		ledger:  books,
		askers:  books.askers,
		logins:  books.logins,
		kept:    books.kept,
		share:   others,
		folds:   make(chan *fold, foldQueue),
		running: make(chan struct{}),
		stopped: make(chan struct{}),
		emptied: make(chan struct{}),
		wake:    make(chan struct{}, 1),

		planning: make(chan struct{}, 1),
		noticed:  make(chan struct{}, 1),

		dirty: make(map[string]struct{}),
		drops: make(map[string]struct{}),

		ending:   make(map[string]time.Time),
		contests: make(map[string]Contest),
		accused:  make(map[string]struct{}),

		sessions: make(map[string]int),
		guard:    newGuard(),
	}, nil
}
