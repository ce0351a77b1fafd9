package fleet

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"bmsota/manifest"
	"bmsota/protocol"
)

// Query is what a device or a person says of itself when asking for a release. Empty fields are unknown.
type Query struct {
	Device, Project, Chip, Channel string
	Nonce                          string // what the device asks with, where it wants a signed answer
	Path                           string // what it asks for then: it says which project and channel, and is signed with the rest
}

// Offer is a release and the version.json that announces it. File.URL is relative: the digest and ".bin".
type Offer struct {
	Release  Release
	File     protocol.VersionFile
	Sequence int64 // of the manifest; 0 = none
	// Signed is the answer to the device's nonce; empty where it sent none, or this fleet signs nothing.
	Signed string
}

// offerValid is how many seconds after its question a device may still take an answer: as long as the slowest network brings
// it, and no longer.
const offerValid = 600

// line is what releases succeed each other within.
type line struct{ project, chip string }

type versionKey struct{ project, chip, version string }

func keyOf(project, chip, version string) versionKey {
	return versionKey{project, chip, canonical(version)}
}

// canonical is a version without the leading v that is tolerated: devices take both spellings for the same.
func canonical(version string) string {
	if _, ok := protocol.ParseVersion(version); ok {
		return strings.TrimPrefix(version, "v")
	}
	return version
}

type channelKey struct{ project, chip, name string }

// catalog is every release and channel, arranged for reading. But for what it remembers of steps it never changes once
// it is made.
type catalog struct {
	bySHA     map[string]*Offer
	byVersion map[versionKey]*Offer
	lines     map[line][]*Offer // that may be offered, newest version first
	channels  map[channelKey]string
	names     map[string][]line // the lines that have a channel of this name, sorted

	quarantined map[string]bool // by digest

	mu    sync.Mutex
	steps map[stepKey]*Offer // guarded by mu; nil where there is no step
}

// stepKey is everything that decides a step: the devices of a fleet differ in little of it, and a step is a walk over
// all releases.
type stepKey struct {
	target, version, sha256 string
	slotSize                int64
	secureVersion           uint32
}

// maxSteps is how many steps are remembered, whatever devices say of themselves.
const maxSteps = 4096

// catalogCache keeps the catalog between changes, because every poll of every device reads it. Of changes by another server it
// is told (share.go).
type catalogCache struct {
	now atomic.Pointer[catalog]
	mu  sync.Mutex // held while loading, so that a load that began before a change cannot be kept after it
}

// forget makes the next reader load. It is called after the commit and before the caller is answered.
func (c *catalogCache) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now.Store(nil)
}

func (f *Fleet) catalogue(ctx context.Context) (*catalog, error) {
	if c := f.catalog.now.Load(); c != nil {
		return c, nil
	}
	f.catalog.mu.Lock()
	defer f.catalog.mu.Unlock()
	if c := f.catalog.now.Load(); c != nil {
		return c, nil
	}
	var releases []Release
	var channels []Channel
	var quarantines []Quarantine
	err := f.cfg.Store.View(ctx, func(tx Tx) (err error) {
		if releases, err = tx.Releases(); err != nil {
			return err
		}
		if channels, err = tx.Channels(); err != nil {
			return err
		}
		quarantines, err = tx.Quarantines()
		return err
	})
	if err != nil {
		return nil, err
	}
	c := newCatalog(releases, channels, quarantines)
	f.catalog.now.Store(c)
	return c, nil
}

func newCatalog(releases []Release, channels []Channel, quarantines []Quarantine) *catalog {
	c := &catalog{
		bySHA: make(map[string]*Offer, len(releases)), byVersion: make(map[versionKey]*Offer, len(releases)),
		lines: make(map[line][]*Offer), channels: make(map[channelKey]string), names: make(map[string][]line),
		steps: make(map[stepKey]*Offer), quarantined: make(map[string]bool),
	}
	for _, q := range quarantines {
		c.quarantined[q.SHA256] = q.Stands()
	}
	for _, r := range releases {
		o := &Offer{Release: r, File: versionFile(r), Sequence: sequenceOf(r)}
		c.bySHA[r.SHA256] = o
		c.byVersion[keyOf(r.Project, r.Chip, r.Version)] = o
		if c.offered(r) {
			l := line{r.Project, r.Chip}
			c.lines[l] = append(c.lines[l], o)
		}
	}
	for _, l := range c.lines {
		slices.SortStableFunc(l, func(a, b *Offer) int {
			switch {
			case protocol.Newer(a.Release.Version, b.Release.Version):
				return -1
			case protocol.Newer(b.Release.Version, a.Release.Version):
				return 1
			}
			return 0
		})
	}
	for _, ch := range channels {
		c.channels[channelKey{ch.Project, ch.Chip, ch.Name}] = ch.SHA256
		c.names[ch.Name] = append(c.names[ch.Name], line{ch.Project, ch.Chip})
	}
	return c
}

// sequenceOf is what the manifest of r says; it was verified when r was published.
func sequenceOf(r Release) int64 {
	m, err := manifest.Unverified(r.Manifest)
	if err != nil {
		return 0
	}
	return m.Sequence
}

func versionFile(r Release) protocol.VersionFile {
	f := protocol.VersionFile{
		Version: r.Version, Description: r.Description, MinVersion: r.MinVersion, ForceUpdate: r.ForceUpdate,
		Project: r.Project, Chip: r.Chip, Size: r.Size, SHA256: r.SHA256, URL: r.SHA256 + ".bin",
		SecureVersion: r.SecureVersion, Manifest: r.Manifest, Cosignatures: r.Cosignatures,
	}
	if !r.BuildDate.IsZero() {
		f.BuildDate = r.BuildDate.UTC().Format(time.RFC3339)
	}
	return f
}

// Offer is the release for whoever asks: the one that an open update of the device names, else the one its channel
// points at. A device that runs something older than that release's MinVersion is offered the newest release it can
// take on the way there, so a must-pass-through version needs no care; when there is none it is offered the release
// itself, and says why it refuses. A release that is withdrawn or quarantined is offered to nobody.
//
// Project and chip come from the query, then from the device's last status, then from being the only ones. ErrNotFound
// says that there is nothing to offer, ErrInvalid that the question must name a project or chip, ErrDenied that the
// device is revoked.
func (f *Fleet) Offer(ctx context.Context, q Query) (Offer, error) {
	if q.Device == "" {
		cat, err := f.catalogue(ctx)
		if err != nil {
			return Offer{}, err
		}
		return cat.offer(q, asker{}, f.cfg.DefaultProject)
	}
	if err := protocol.CheckDeviceID(q.Device); err != nil {
		return Offer{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if q.Nonce != "" {
		if err := manifest.CheckNonce(q.Nonce); err != nil {
			return Offer{}, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	// Before the catalogue: what an attempt is about may be a moment old, and of another server.
	who, err := f.asker(ctx, q.Device)
	if err != nil {
		return Offer{}, err
	}
	cat, err := f.catalogue(ctx)
	if err != nil {
		return Offer{}, err
	}
	if who.revoked {
		return Offer{}, fmt.Errorf("%w: device %q is revoked", ErrDenied, q.Device)
	}
	o, err := cat.offer(q, who, f.cfg.DefaultProject)
	if err != nil || q.Nonce == "" || f.cfg.OfferKey == nil {
		return o, err
	}
	// Whether it is newer than what the device runs or not: that there is nothing new is what a device must be able to believe.
	o.Signed, err = manifest.SignOffer(manifest.NewOffer(q.Device, q.Nonce, q.Path, o.Release.SHA256, o.Release.Version, o.Sequence, offerValid), f.cfg.OfferKey)
	return o, err
}

func (c *catalog) offer(q Query, who asker, defaultProject string) (Offer, error) {
	q.Channel = first(first(q.Channel, who.channel), DefaultChannel)
	q.Project = first(q.Project, who.project)
	q.Chip = first(q.Chip, who.chip)
	l, err := c.find(q, defaultProject)
	if err != nil {
		return Offer{}, err
	}
	target := c.bySHA[c.channels[channelKey{l.project, l.chip, q.Channel}]]
	if who.assigned != "" {
		if o := c.byVersion[keyOf(l.project, l.chip, who.assigned)]; o != nil {
			target = o
		}
	}
	if target == nil || !c.offered(target.Release) {
		return Offer{}, fmt.Errorf("%w: no release of %s in channel %q", ErrNotFound, l, q.Channel)
	}
	if who.version == "" || !protocol.Older(who.version, target.Release.MinVersion) {
		return *target, nil
	}
	if step := c.step(l, target, who); step != nil {
		return *step, nil
	}
	return *target, nil
}

// offered says whether anybody may be offered r.
func (c *catalog) offered(r Release) bool { return !r.Withdrawn && !c.quarantined[r.SHA256] }

// step is the newest release that who asks can take and that is not above target; nil when there is none.
func (c *catalog) step(l line, target *Offer, who asker) *Offer {
	key := stepKey{target.Release.SHA256, who.version, who.sha256, who.slotSize, who.secureVersion}
	c.mu.Lock()
	step, known := c.steps[key]
	c.mu.Unlock()
	if known {
		return step
	}
	step = c.findStep(l, target, key) // unlocked: a device with an odd story holds nobody up
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.steps) >= maxSteps {
		clear(c.steps)
	}
	c.steps[key] = step
	return step
}

func (c *catalog) findStep(l line, target *Offer, k stepKey) *Offer {
	me := protocol.Device{
		Chip: l.chip, Project: l.project, Version: k.version, ImageSHA256: k.sha256, SlotSize: k.slotSize, SecureVersion: k.secureVersion,
	}
	for _, o := range c.lines[l] {
		if o == target || protocol.Newer(o.Release.Version, target.Release.Version) {
			continue
		}
		if protocol.Refuse(me, releaseFacts(o.Release), false) == nil {
			return o
		}
	}
	return nil
}

func releaseFacts(r Release) protocol.Release {
	return protocol.Release{Chip: r.Chip, Project: r.Project, Version: r.Version, SHA256: r.SHA256, Size: r.Size,
		SecureVersion: r.SecureVersion, MinVersion: r.MinVersion}
}

// find says which line of releases is meant.
func (c *catalog) find(q Query, defaultProject string) (line, error) {
	if q.Project != "" && q.Chip != "" {
		return line{q.Project, q.Chip}, nil
	}
	var fits []line
	for _, l := range c.names[q.Channel] {
		if (q.Project == "" || l.project == q.Project) && (q.Chip == "" || l.chip == q.Chip) {
			fits = append(fits, l)
		}
	}
	if q.Project == "" && len(fits) > 1 && defaultProject != "" {
		fits = slices.DeleteFunc(fits, func(l line) bool { return l.project != defaultProject })
	}
	switch len(fits) {
	case 0:
		return line{}, fmt.Errorf("%w: no release in channel %q", ErrNotFound, q.Channel)
	case 1:
		return fits[0], nil
	}
	projects, chips := make([]string, len(fits)), make([]string, len(fits))
	for i, l := range fits {
		projects[i], chips[i] = l.project, l.chip
	}
	slices.Sort(projects)
	slices.Sort(chips)
	if projects = slices.Compact(projects); len(projects) > 1 {
		return line{}, fmt.Errorf("%w: channel %q has several projects: name one of %s", ErrInvalid, q.Channel, strings.Join(projects, ", "))
	}
	return line{}, fmt.Errorf("%w: project %q has releases for several chips: name one of %s", ErrInvalid, projects[0], strings.Join(slices.Compact(chips), ", "))
}

func (l line) String() string {
	return fmt.Sprintf("project %q for %s", l.project, first(l.chip, "any chip"))
}

// first is the first text that is not empty.
func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// Firmware opens the bytes of a release; ErrNotFound for bytes that no release stands for. A withdrawn release can
// still be read: a download that has begun is not cut off.
func (f *Fleet) Firmware(ctx context.Context, sha256 string) (Blob, error) {
	cat, err := f.catalogue(ctx)
	if err != nil {
		return nil, err
	}
	if cat.bySHA[sha256] == nil && f.shared() {
		if cat, err = f.catalogueNow(ctx); err != nil {
			return nil, err
		}
	}
	if cat.bySHA[sha256] == nil {
		return nil, fmt.Errorf("firmware %.64q: %w", sha256, ErrNotFound)
	}
	return f.cfg.Blobs.Open(ctx, sha256)
}

// Releases are all releases, newest first.
func (f *Fleet) Releases(ctx context.Context) ([]Release, error) {
	var list []Release
	err := f.cfg.Store.View(ctx, func(tx Tx) (err error) {
		list, err = tx.Releases()
		return err
	})
	return list, err
}

// Channels are all channels, by project, chip and name.
func (f *Fleet) Channels(ctx context.Context) ([]Channel, error) {
	var list []Channel
	err := f.cfg.Store.View(ctx, func(tx Tx) (err error) {
		list, err = tx.Channels()
		return err
	})
	return list, err
}

// Release is one release.
func (f *Fleet) Release(ctx context.Context, sha256 string) (Release, error) {
	var r Release
	err := f.cfg.Store.View(ctx, func(tx Tx) (err error) {
		if r, err = tx.Release(sha256); err != nil {
			return fmt.Errorf("release %.64q: %w", sha256, err)
		}
		return nil
	})
	return r, err
}
