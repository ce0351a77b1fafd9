package fleet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"bmsota/protocol"
)

// foldGroup is how many statuses one transaction takes, foldQueue how many wait. A synchronous commit costs the same
// for one and for hundreds, and nobody is answered before it; a full queue blocks the callers, which is what slows the
// devices down.
const (
	foldGroup = 500
	foldQueue = 2 * foldGroup
)

// ErrStopped is the answer of Fold while Run is not running: the status was not stored.
var ErrStopped = errors.New("fleet is not running")

// fold is one change of one device that waits for the committer.
type fold struct {
	device string
	status protocol.Status
	online *bool      // set for a connect or disconnect, which carry no status
	done   chan error // capacity 1, so that the committer never waits for a caller that has gone; nil when nobody waits
}

// result is what a fold led to, for the log and the loop, once it is committed.
type result struct {
	effects Effects
	ended   *Attempt // by this fold
	before  protocol.Phase
	notices []Notice
	waiting bool // the device has just connected, and an attempt waits for it
	err     error
}

// Fold takes a status that device has published, as its topic and login prove; shared says that it came on the topic
// of firmware that does not name itself. It returns nil after the commit, so that an acknowledgement sent then means
// that the status is durable. A status that cannot be read, or that names another device, is ErrInvalid and changes
// nothing; ErrStopped says that Run is not running.
func (f *Fleet) Fold(ctx context.Context, device string, shared bool, payload []byte) error {
	if shared && !f.cfg.AcceptSeedStatus {
		return fmt.Errorf("%w: statuses on the shared topic are not accepted", ErrDenied)
	}
	if err := protocol.CheckDeviceID(device); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	s, err := protocol.ParseStatus(payload)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if s.DeviceID != "" && s.DeviceID != device {
		return fmt.Errorf("%w: %q sent a status of %q", ErrDenied, device, s.DeviceID)
	}
	return f.submit(ctx, &fold{device: device, status: s})
}

// hand gives fo to the committer, in the order of the calls. What nobody waits for is committed when this has returned nil, also
// where Run ends; ErrStopped says that it was not taken.
func (f *Fleet) hand(ctx context.Context, fo *fold) error {
	select {
	case <-f.running:
	default:
		return ErrStopped
	}
	f.handing.RLock()
	defer f.handing.RUnlock()
	select {
	case <-f.stopped:
		return ErrStopped
	default:
	}
	select {
	case f.folds <- fo:
		return nil
	case <-f.stopped:
		return ErrStopped
	case <-ctx.Done():
		return ctx.Err()
	}
}

// submit hands fo to the committer and waits for its commit.
func (f *Fleet) submit(ctx context.Context, fo *fold) error {
	fo.done = make(chan error, 1)
	if err := f.hand(ctx, fo); err != nil {
		return err
	}
	select {
	case err := <-fo.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-f.stopped:
		// The committer answers its last group before it closes stopped.
		select {
		case err := <-fo.done:
			return err
		default:
			return ErrStopped
		}
	}
}

// runCommitter takes folds in groups until ctx ends. A group that was begun is finished.
func (f *Fleet) runCommitter(ctx context.Context) {
	close(f.running)
	group := make([]*fold, 0, foldGroup)
	for ctx.Err() == nil { // asked first: select would choose at random while folds wait
		select {
		case <-ctx.Done():
		case fo := <-f.folds:
			group = f.gather(ctx, append(group[:0], fo))
			f.commitGroup(context.WithoutCancel(ctx), group)
		}
	}
	close(f.stopped)
	f.empty(context.WithoutCancel(ctx))
	close(f.emptied)
}

// gather adds to a group of one what waits, and what comes within presenceWait while no caller waits for any of it.
func (f *Fleet) gather(ctx context.Context, group []*fold) []*fold {
	var enough <-chan time.Time
	awaited := group[0].done != nil
	for len(group) < foldGroup {
		select {
		case fo := <-f.folds:
			group, awaited = append(group, fo), awaited || fo.done != nil
			continue
		default:
		}
		if awaited {
			break
		}
		if enough == nil {
			timer := time.NewTimer(presenceWait)
			defer timer.Stop()
			enough = timer.C
		}
		select {
		case fo := <-f.folds:
			group, awaited = append(group, fo), fo.done != nil
		case <-enough:
			return group
		case <-ctx.Done():
			return group
		}
	}
	return group
}

// empty commits what was handed over before stopped was closed and nobody waits for. Who waits has been told that it is not stored.
func (f *Fleet) empty(ctx context.Context) {
	var left []*fold
	f.handing.Lock() // until whoever is handing over has done so, or has seen that stopped is closed
	for len(f.folds) > 0 {
		if fo := <-f.folds; fo.done == nil {
			left = append(left, fo)
		}
	}
	f.handing.Unlock()
	for group := range slices.Chunk(left, foldGroup) {
		f.commitGroup(ctx, group)
	}
}

// commitGroup commits group and answers every caller. When the group fails each fold is tried alone, so that one row
// that cannot be read does not silence the devices that happen to report beside it.
func (f *Fleet) commitGroup(ctx context.Context, group []*fold) {
	results := f.commit(ctx, group)
	if len(group) > 1 && results[0].err != nil && errors.Is(results[0].err, errGroup) {
		for i, fo := range group {
			results[i] = f.commit(ctx, []*fold{fo})[0]
		}
	}
	var unnoted int
	var unnotedBy error
	for i, fo := range group {
		switch err := results[i].err; {
		case fo.done != nil:
			fo.done <- err
		case err != nil:
			unnoted, unnotedBy = unnoted+1, err
		}
	}
	if unnoted > 0 {
		f.cfg.Log.Warn("who came and left is not recorded", "times", unnoted, "err", unnotedBy)
	}
}

// errGroup marks an error of the transaction, which every fold in it shares.
var errGroup = errors.New("commit of statuses")

// commit applies group in one transaction and then, because rows come before words, wakes the loop.
func (f *Fleet) commit(ctx context.Context, group []*fold) []result {
	results := make([]result, len(group))
	now := time.UnixMilli(f.cfg.Now().UnixMilli()).UTC() // as a row keeps it
	var rows rowsOf
	committing := f.kept.begin()
	err := f.update(ctx, theServer, func(tx Tx) (err error) {
		clear(results) // this may be the second run
		if rows, err = f.loadRows(tx, group, now); err != nil {
			return err
		}
		for i, fo := range group {
			if results[i], err = f.foldInto(tx, rows.of[fo.device], fo, now); err != nil {
				return err
			}
		}
		if err := rows.put(as(tx, eachDevice, "")); err != nil { // their own words
			return err
		}
		f.kept.put(committing)
		var notices []Notice
		for _, r := range results {
			notices = append(notices, r.notices...)
		}
		return f.queue(tx, now, notices...)
	})
	if err != nil {
		f.kept.end(committing, rowsOf{})
		err = fmt.Errorf("%w: %w", errGroup, err)
		for i := range results {
			results[i] = result{err: err}
		}
		return results
	}
	f.kept.end(committing, rows)
	f.announce(group, results)
	for i, fo := range group {
		if len(results[i].notices) > 0 {
			f.ring()
		}
		e := results[i].effects
		if e.Unlawful != "" && f.late() == 0 { // else it is the order in which servers have stored it
			f.cfg.Log.Warn("unlawful step", "device", fo.device, "phase", e.Unlawful)
		}
		if e.Ended || results[i].waiting {
			f.touch(fo.device)
		}
	}
	return results
}

// foldInto applies one fold to the row of its device. err is a fault of the store.
func (f *Fleet) foldInto(tx Tx, r *row, fo *fold, now time.Time) (_ result, err error) {
	if r.device.Revoked && (fo.online == nil || *fo.online) {
		return result{err: fmt.Errorf("%w: device %q is revoked", ErrDenied, fo.device)}, nil
	}
	if fo.online != nil {
		if *fo.online {
			r.device.LastSeen = now
		}
		if moved, err := f.moveHome(tx, fo.device, *fo.online); err != nil || moved {
			return result{}, err
		}
		r.device.Online, r.deviceChanged = *fo.online, true
		return result{waiting: *fo.online && len(r.open) > 0}, nil
	}
	// The last will of a connection that a newer one has replaced.
	if fo.status.Phase == protocol.PhaseOffline {
		elsewhere, err := f.elsewhere(tx, fo.device)
		if err != nil {
			return result{}, err
		}
		if elsewhere || f.live(fo.device) {
			return result{effects: Effects{Dropped: "offline"}}, nil
		}
	}
	was := r.device
	r.spoke = true
	i := r.pick(fo.status.CommandID)
	var a *Attempt
	if i >= 0 {
		a = &r.open[i]
	}
	var e Effects
	var next *Attempt
	before := r.device.Status.Phase
	examined, doubtful := examine(r.device, fo.status, now, f.late())
	stray, err := examineImage(tx, &examined, a, fo.status, now)
	if err != nil {
		return result{}, err
	}
	r.device, r.deviceChanged = examined, r.deviceChanged || doubtful || stray
	r.device, next, e = Apply(r.device, a, fo.status, now)
	r.deviceChanged = r.deviceChanged || e.Device
	r.whole = r.whole || !reported(&was, &r.device)
	if e.Attempt {
		r.open[i] = *next
		if r.attemptChanged == nil {
			r.attemptChanged = make(map[int]bool)
		}
		r.attemptChanged[i] = true
	}
	res := result{effects: e, before: before}
	if e.Ended {
		res.ended = next
	}
	res.notices = cameBack(fo.device, fo.status, before, res, a != nil)
	return res, nil
}

// row is a device and its open attempts within one transaction.
type row struct {
	device         Device
	deviceChanged  bool
	whole          bool      // more of it than a report changes, or it is new
	spoke          bool      // by a status
	open           []Attempt // oldest first; may end in here
	attemptChanged map[int]bool
}

// rowsOf are the rows of the devices of one group.
type rowsOf struct {
	of  map[string]*row
	ids []string // each once, in the order of the group
}

// loadRows reads what a group is about, as far as it is not kept, all of it with two questions: one for each device would cost more
// than the rest.
func (f *Fleet) loadRows(tx Tx, group []*fold, now time.Time) (rowsOf, error) {
	rows := rowsOf{make(map[string]*row, len(group)), make([]string, 0, len(group))}
	unread := make([]string, 0, len(group))
	for _, fo := range group {
		if rows.of[fo.device] != nil {
			continue
		}
		r := f.kept.take(fo.device)
		if r == nil {
			r = &row{device: Device{ID: fo.device, FirstSeen: now}, whole: true}
			unread = append(unread, fo.device)
		} else {
			recalled(tx, r.device, r.open)
		}
		rows.of[fo.device] = r
		rows.ids = append(rows.ids, fo.device)
	}
	if len(unread) == 0 {
		return rows, nil
	}
	devices, err := tx.DevicesIn(unread)
	if err != nil {
		return rows, err
	}
	for i := range devices {
		r := rows.of[devices[i].ID]
		r.device, r.whole = devices[i], false
	}
	open, err := tx.OpenAttemptsIn(unread)
	for _, a := range open {
		r := rows.of[a.DeviceID]
		r.open = append(r.open, a)
	}
	return rows, err
}

// pick is the index of the open attempt that a status with this command id is about: the one it names, else the
// newest. -1 when none is open.
func (r *row) pick(command string) int {
	newest := -1
	for i, a := range r.open {
		if a.State != AttemptOpen {
			continue
		}
		if command != "" && a.CommandID == command {
			return i
		}
		newest = i
	}
	return newest
}

// put writes what has changed: devices before their attempts, which refer to them.
func (rows rowsOf) put(tx Tx) error {
	reports := make([]Device, 0, len(rows.ids))
	var devices []Device
	var attempts []Attempt
	for _, id := range rows.ids {
		r := rows.of[id]
		switch {
		case r.deviceChanged && r.whole:
			devices = append(devices, r.device)
		case r.deviceChanged:
			reports = append(reports, r.device)
		}
		for i := range r.open {
			if r.attemptChanged[i] {
				attempts = append(attempts, r.open[i])
			}
		}
	}
	if err := tx.PutDevices(devices); err != nil {
		return err
	}
	if err := tx.PutReports(reports); err != nil {
		return err
	}
	return tx.PutAttempts(attempts)
}

// reported says that from was to is no more than what Tx.PutReports writes.
func reported(was, is *Device) bool {
	a, b := &was.Status, &is.Status
	return a.Phase == b.Phase && a.Project == b.Project && a.Chip == b.Chip && a.Reason == b.Reason &&
		a.RollbackProtected == b.RollbackProtected && a.Signed == b.Signed &&
		was.ID == is.ID && was.TokenSHA256 == is.TokenSHA256 && was.CertificateSHA256 == is.CertificateSHA256 &&
		was.CertificateEnds.Equal(is.CertificateEnds) && was.EnrolledAt.Equal(is.EnrolledAt) && was.Revoked == is.Revoked &&
		was.Channel == is.Channel && maps.Equal(was.Labels, is.Labels) && was.FirstSeen.Equal(is.FirstSeen) && was.PhaseSince.Equal(is.PhaseSince) &&
		was.Version == is.Version && was.SHA256 == is.SHA256 && was.PreviousVersion == is.PreviousVersion && was.Boot == is.Boot &&
		slices.Equal(was.OldBoots, is.OldBoots) && was.Doubts.Zero() && is.Doubts.Zero()
}
