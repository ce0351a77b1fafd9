package fleet

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"bmsota/audit"
)

// AuditTx is the part of Tx that keeps the audit log, to which nothing is done but appending, and pruning what it says is pruned.
type AuditTx interface {
	AuditHead() (audit.Head, error) // audit.Genesis before the first row
	// AppendAudit adds rows behind the head. Rows that do not follow it in number and hash are ErrConflict.
	AppendAudit([]audit.Entry) error
	AuditPage(AuditQuery) ([]audit.Entry, error)
	// PruneAudit removes the rows up to one. The newest audit.LogPrune of the log must name it, or one behind it; else it
	// is ErrConflict.
	PruneAudit(through audit.Head) error
}

// AuditQuery chooses rows of the audit log. What is left zero does not choose.
type AuditQuery struct {
	After, Before        int64        // rows with a number above, below
	Who, Device, Rollout string       // exactly
	What                 audit.Action // exactly, or a group: "rollout."
	Since, Until         time.Time    // not before, before
	NewestFirst          bool
	Limit                int
}

// Matches says whether the query chooses a row. It is what the stores' queries mean.
func (q AuditQuery) Matches(e audit.Entry) bool {
	group, isGroup := strings.CutSuffix(string(q.What), ".")
	return (q.After == 0 || e.Seq > q.After) && (q.Before == 0 || e.Seq < q.Before) &&
		(q.Who == "" || e.Who == q.Who) && (q.Device == "" || e.Device == q.Device) && (q.Rollout == "" || e.Rollout == q.Rollout) &&
		(q.What == "" || e.What == q.What || isGroup && strings.HasPrefix(string(e.What), group+".")) &&
		(q.Since.IsZero() || !e.At.Before(q.Since)) && (q.Until.IsZero() || e.At.Before(q.Until))
}

// maxAuditPage is how many rows one reading gives at most.
const maxAuditPage = 1000

// Audit reads rows of the log, oldest first unless q says otherwise; limit 0 means 100. Whoever was turned away until
// now is in it, unless the disk is full. Errors: ErrDenied, ErrInvalid (no such action), ErrStorage.
func (f *Fleet) Audit(ctx context.Context, by Identity, q AuditQuery) ([]audit.Entry, error) {
	if err := f.may(by, RightAudit); err != nil {
		return nil, err
	}
	known := func(a audit.Action) bool {
		return a == q.What || strings.HasSuffix(string(q.What), ".") && strings.HasPrefix(string(a), string(q.What))
	}
	if q.What != "" && !slices.ContainsFunc(audit.Actions(), known) {
		return nil, invalid("there is no action %.40q: give one such as rollout.halt, or a group such as \"rollout.\"", string(q.What))
	}
	if q.Limit <= 0 {
		q.Limit = 100
	}
	q.Limit = min(q.Limit, maxAuditPage)
	switch err := f.writeKnocks(ctx); {
	case errors.Is(err, ErrStorage): // a full disk keeps nobody from reading what is there, and they are not forgotten
		f.cfg.Log.Warn("audit log", "err", err)
	case err != nil:
		return nil, err
	}
	var list []audit.Entry
	err := f.cfg.Store.View(ctx, func(tx Tx) (err error) {
		list, err = tx.AuditPage(q)
		return err
	})
	return list, err
}

// RoleServer is the role of what the server does by itself.
const RoleServer Role = "server"

// theServer does what no operator and no device has asked for.
var theServer = Identity{Name: "server", Role: RoleServer}

// eachDevice is every device for itself, in a group of their statuses: a row names the device it is about.
var eachDevice = Identity{Role: RoleDevice}

// ledger is a Store that writes the audit log: every Update sees its changes through audited, which knows what each Put
// and Delete has changed. So no verb has to remember its row, and none can forget it. What a verb must say is who acts.
type ledger struct {
	Store
	now    func() time.Time
	askers *memory[asker]    // from which a device is struck out when a row of it is put; nil = there are none
	logins *memory[tokenSum] // from which it is struck out when its login changes; likewise
	kept   *keptRows         // from which it is struck out as from askers; nil = there are none
	place  string            // of this server, where others are told what changes; empty = nobody is
}

// Update is an Update by the server itself.
func (l *ledger) Update(ctx context.Context, fn func(Tx) error) error {
	return l.update(ctx, theServer, fn)
}

func (l *ledger) update(ctx context.Context, by Identity, fn func(Tx) error) (err error) {
	asked, logins, refused := l.askers.begin(), l.logins.begin(), false
	defer func() {
		doubt, now := err != nil && !refused, l.now()
		asked.end(doubt, now)
		logins.end(doubt, now)
	}()
	return l.Store.Update(ctx, func(tx Tx) error {
		book := &book{now: l.now(), devices: make(map[string]deviceThen), attempts: make(map[string]AttemptState), asked: asked, logins: logins, kept: l.kept}
		if l.place != "" {
			book.change = newChanged()
		}
		err := fn(&audited{Tx: tx, book: book, by: by})
		if err == nil {
			err = book.write(tx)
		}
		if err == nil {
			err = book.change.write(tx, l.place)
		}
		refused = err != nil // and nothing is committed
		return err
	})
}

// byServer is an Update by the server while no Fleet is there.
func byServer(ctx context.Context, s Store, now time.Time, fn func(Tx) error) error {
	l := ledger{Store: s, now: func() time.Time { return now }}
	return l.Update(ctx, fn)
}

// update changes the state as somebody. It is the way of every verb.
func (f *Fleet) update(ctx context.Context, by Identity, fn func(Tx) error) error {
	return f.ledger.update(ctx, by, fn)
}

// book holds the rows of one transaction until its end, and what its changes are compared with.
type book struct {
	now      time.Time
	entries  []audit.Entry
	devices  map[string]deviceThen   // as they were before; those that were read
	attempts map[string]AttemptState // likewise; empty for none
	pruned   audit.Head              // to be removed up to it, once the log says so
	asked    *change[asker]          // what is struck out of what is remembered
	logins   *change[tokenSum]       // likewise
	kept     *keptRows               // likewise, of what the committer does; nil = nothing
	change   *changed                // for the other servers; nil where there are none
	leftOut  string                  // the member that an operator leaves out, for the PutRollout that follows
}

// write appends the rows. All of them are hashed here, behind the head as this transaction sees it.
func (b *book) write(tx Tx) error {
	if len(b.entries) == 0 {
		return nil
	}
	head, err := tx.AuditHead()
	if err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	for i, e := range b.entries {
		b.entries[i] = e.Seal(head)
		head = b.entries[i].Head()
	}
	if err := tx.AppendAudit(b.entries); err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	if b.pruned.Seq > 0 {
		if err := tx.PruneAudit(b.pruned); err != nil {
			return fmt.Errorf("audit log: %w", err)
		}
	}
	return nil
}

// audited is a transaction that notes what is changed through it.
type audited struct {
	Tx
	book *book
	by   Identity
	from string // address of who acts, where it is known
	via  string // the way in, for a login; empty = ViaWeb
}

// as is tx with another one acting.
func as(tx Tx, by Identity, from string) Tx {
	t, ok := tx.(*audited)
	if !ok {
		return tx
	}
	return &audited{Tx: t.Tx, book: t.book, by: by, from: from}
}

// note adds a row for what no Put shows, such as a command that leaves none.
func note(tx Tx, e audit.Entry) {
	if t, ok := tx.(*audited); ok {
		t.add(e)
	}
}

func (t *audited) add(e audit.Entry) {
	e.At = t.book.now
	if e.Who == "" {
		e.Who, e.Role = t.by.Name, string(t.by.Role)
		if t.by == eachDevice {
			e.Who = e.Device
		}
	}
	t.book.entries = append(t.book.entries, e)
}

// before is a row as it was, and whether there was one.
func before[T any](v T, err error) (T, bool, error) {
	if errors.Is(err, ErrNotFound) {
		return v, false, nil
	}
	return v, err == nil, err
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return ""
}

// was is what a value was, where it has changed.
func was(old, now string) string {
	if old == now {
		return ""
	}
	return old
}

func (t *audited) PutRelease(r Release) error {
	old, there, err := before(t.Release(r.SHA256))
	if err != nil {
		return err
	}
	said := audit.Of("project", r.Project, "chip", r.Chip, "version", r.Version)
	switch {
	case !there:
		t.add(audit.Entry{What: audit.ReleasePublish, About: r.SHA256, Details: append(said, audit.Of("min_version", r.MinVersion,
			"force_update", yes(r.ForceUpdate), "size", fmt.Sprint(r.Size), "unsigned", yes(r.Manifest == ""))...)})
	case r.Withdrawn && !old.Withdrawn:
		t.add(audit.Entry{What: audit.ReleaseWithdraw, About: r.SHA256, Details: said})
	case !sameRelease(old, r):
		t.add(audit.Entry{What: audit.ReleaseChange, About: r.SHA256, Details: said})
	}
	inform(t, func(c *changed) { c.Catalog = true })
	return t.Tx.PutRelease(r)
}

// sameRelease compares rows; times in the milliseconds that stores keep.
func sameRelease(a, b Release) bool {
	for _, r := range []*Release{&a, &b} {
		r.BuildDate, r.PublishedAt = r.BuildDate.UTC().Truncate(time.Millisecond), r.PublishedAt.UTC().Truncate(time.Millisecond)
	}
	return a == b
}

func (t *audited) PutChannel(c Channel) error {
	old, there, err := before(t.Channel(c.Project, c.Chip, c.Name))
	if err != nil {
		return err
	}
	if !there || old.SHA256 != c.SHA256 {
		details := audit.Of("project", c.Project, "chip", c.Chip, "channel", c.Name)
		for _, end := range [][2]string{{"version", c.SHA256}, {"was", old.SHA256}} {
			if r, ok, err := before(t.Release(end[1])); err != nil {
				return err
			} else if ok {
				details = append(details, audit.Of(end[0], r.Version)...)
			}
		}
		t.add(audit.Entry{What: audit.ChannelSet, About: c.SHA256, Details: details})
	}
	inform(t, func(told *changed) { told.Catalog = true })
	return t.Tx.PutChannel(c)
}

func (t *audited) PutKey(k ProjectKey) error {
	keys, err := t.Keys(k.Project)
	if err != nil {
		return err
	}
	at := slices.IndexFunc(keys, func(o ProjectKey) bool { return o.Kind == k.Kind && o.Sequence == k.Sequence && o.Key == k.Key })
	details := audit.Of("project", k.Project, "kind", string(k.Kind), "set", fmt.Sprint(k.Sequence), "from_version", k.FromVersion, "retired", yes(k.Retired))
	switch {
	case at < 0:
		t.add(audit.Entry{What: audit.KeyAdd, About: fingerprint(k.Key), Details: append(details, audit.Of("threshold", fmt.Sprint(k.Threshold))...)})
	case keys[at].Retired != k.Retired || keys[at].Threshold != k.Threshold || keys[at].FromVersion != k.FromVersion:
		t.add(audit.Entry{What: audit.KeyChange, About: fingerprint(k.Key), Details: append(details, audit.Of("threshold", fmt.Sprint(k.Threshold))...)})
	}
	return t.Tx.PutKey(k)
}

// fingerprint names a key as 'bmsota keys' does: by the SHA-256 of its DER. The key of images is a digest already.
func fingerprint(text string) string {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return text
	}
	sum := sha256.Sum256(block.Bytes)
	return hex.EncodeToString(sum[:])
}

// deviceThen is what the log tells of a device, as it was.
type deviceThen struct {
	there, revoked bool
	token, channel string
	certificate    string
	enrolled       time.Time
	labels         Labels
	suspect        []Suspicion // that stand
}

func thenOf(d Device) deviceThen {
	return deviceThen{there: true, revoked: d.Revoked, token: d.TokenSHA256, certificate: d.CertificateSHA256, channel: d.Channel, enrolled: d.EnrolledAt.UTC().Truncate(time.Millisecond), labels: d.Labels, suspect: d.Suspicions()}
}

// Device remembers the row for the PutDevice that follows in most transactions.
func (t *audited) Device(id string) (Device, error) {
	d, err := t.Tx.Device(id)
	if _, known := t.book.devices[id]; !known && err == nil {
		t.book.devices[id] = thenOf(d)
	} else if !known && errors.Is(err, ErrNotFound) {
		t.book.devices[id] = deviceThen{}
	}
	return d, err
}

// Devices remembers likewise: at a start every device that was online is put.
func (t *audited) Devices() ([]Device, error) {
	list, err := t.Tx.Devices()
	for _, d := range list {
		if _, known := t.book.devices[d.ID]; !known {
			t.book.devices[d.ID] = thenOf(d)
		}
	}
	return list, err
}

func (t *audited) PutDevice(d Device) error {
	if err := t.tellDevice(d); err != nil {
		return err
	}
	return t.Tx.PutDevice(d)
}

// tellDevice notes what a put of d changes.
func (t *audited) tellDevice(d Device) error {
	old, known := t.book.devices[d.ID]
	if !known {
		if _, _, err := before(t.Device(d.ID)); err != nil {
			return err
		}
		old = t.book.devices[d.ID]
	}
	now := thenOf(d)
	inform(t, func(c *changed) {
		c.devices[d.ID] = struct{}{}
		// Whoever had a login that no longer is one.
		if old.token+old.certificate != "" && (now.token != old.token || now.certificate != old.certificate) || now.revoked && !old.revoked {
			c.Logins = append(c.Logins, d.ID)
		}
	})
	tell := func(what audit.Action, details audit.Details) {
		t.add(audit.Entry{What: what, Device: d.ID, Details: details})
	}
	if now.token != old.token || now.certificate != old.certificate || !now.enrolled.Equal(old.enrolled) || old.revoked && !now.revoked {
		tell(audit.DeviceEnroll, audit.Of("again", yes(old.token+old.certificate != ""), "was_revoked", yes(old.revoked), "certificate", now.certificate))
	} else if !old.there {
		tell(audit.DeviceSeen, nil)
	}
	if now.revoked && !old.revoked {
		tell(audit.DeviceRevoke, nil)
	}
	if channelName(now.channel) != channelName(old.channel) {
		tell(audit.DeviceChannel, audit.Of("channel", channelName(now.channel), "was", channelName(old.channel)))
	}
	if details := relabelled(old.labels, now.labels); details != nil {
		tell(audit.DeviceLabel, details)
	}
	if text := suspicionText(now.suspect); text != suspicionText(old.suspect) {
		what, who := audit.DeviceSuspect, t.by
		if len(now.suspect) == 0 {
			what = audit.DeviceClear
		}
		if who.Role == RoleDevice {
			who = theServer // it is not the device that says so
		}
		details := audit.Of("suspected", text, "was", suspicionText(old.suspect))
		for _, s := range now.suspect {
			details = append(details, audit.Of(string(s.Kind), s.Evidence)...)
		}
		t.add(audit.Entry{What: what, Device: d.ID, Who: who.Name, Role: string(who.Role), Details: details})
	}
	t.book.devices[d.ID] = now
	t.book.asked.strike(d.ID)
	if now.token != old.token || now.revoked != old.revoked {
		t.book.logins.strike(d.ID)
	}
	t.book.kept.strike(d.ID)
	return nil
}

func channelName(name string) string {
	if name == "" {
		return DefaultChannel
	}
	return name
}

// relabelled are the labels that differ.
func relabelled(old, now Labels) audit.Details {
	var keys []string
	for key, value := range now {
		if have, ok := old[key]; !ok || have != value {
			keys = append(keys, key)
		}
	}
	for key := range old {
		if _, ok := now[key]; !ok {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	var details audit.Details
	for _, key := range keys {
		value, ok := now[key]
		if !ok {
			value = "(removed)"
		}
		details = append(details, audit.Detail{Key: key, Value: value})
	}
	return details
}

// Attempt remembers that there is none as well.
func (t *audited) Attempt(id string) (Attempt, error) {
	a, err := t.Tx.Attempt(id)
	if err == nil {
		t.remember(a)
	} else if _, known := t.book.attempts[id]; !known && errors.Is(err, ErrNotFound) {
		t.book.attempts[id] = ""
	}
	return a, err
}

func (t *audited) OpenAttempts() ([]Attempt, error) {
	list, err := t.Tx.OpenAttempts()
	t.remember(list...)
	return list, err
}

func (t *audited) OpenAttemptsOf(device string) ([]Attempt, error) {
	list, err := t.Tx.OpenAttemptsOf(device)
	t.remember(list...)
	return list, err
}

// remember keeps how attempts stand, for the PutAttempt that follows in most transactions.
func (t *audited) remember(list ...Attempt) {
	for _, a := range list {
		if _, known := t.book.attempts[a.ID]; !known {
			t.book.attempts[a.ID] = a.State
		}
	}
}

func (t *audited) PutAttempt(a Attempt) error {
	if err := t.tellAttempt(a); err != nil {
		return err
	}
	return t.Tx.PutAttempt(a)
}

// tellAttempt notes what a put of a changes.
func (t *audited) tellAttempt(a Attempt) error {
	old, known := t.book.attempts[a.ID]
	if !known {
		if _, _, err := before(t.Attempt(a.ID)); err != nil {
			return err
		}
		old = t.book.attempts[a.ID]
	}
	version := a.Version
	if version == "" && a.SHA256 != "" && (old == "" || a.State != old) { // whatever was offered: which is known by now
		r, _, err := before(t.Release(a.SHA256))
		if err != nil {
			return err
		}
		version = r.Version
	}
	inform(t, func(c *changed) {
		if old != a.State {
			c.attempts[a.DeviceID] = struct{}{}
		} else {
			c.devices[a.DeviceID] = struct{}{}
		}
	})
	said := audit.Of("command", a.CommandID, "action", string(a.Action), "version", version, "sha256", a.SHA256, "force", yes(a.Force))
	tell := func(what audit.Action, details ...audit.Detail) {
		t.add(audit.Entry{What: what, About: a.ID, Device: a.DeviceID, Rollout: a.RolloutID, Details: append(said[:len(said):len(said)], details...)})
	}
	if old == "" || old != AttemptOpen && a.State == AttemptOpen {
		tell(audit.AttemptBegin)
	}
	if a.State != AttemptOpen && a.State != old {
		message := a.Message
		if a.State == AttemptSucceeded {
			message = ""
		}
		tell(audit.AttemptEnd, audit.Of("state", string(a.State), "phase", string(a.Phase), "reason", string(a.Reason), "message", message)...)
	}
	t.book.attempts[a.ID] = a.State
	t.book.asked.strike(a.DeviceID)
	t.book.kept.strike(a.DeviceID)
	return nil
}

func (t *audited) PutQuarantine(q Quarantine) error {
	old, there, err := before(t.Quarantine(q.SHA256))
	if err != nil {
		return err
	}
	there = there && old.Stands()
	inform(t, func(c *changed) { c.Catalog, c.Lifted = true, append(c.Lifted, q.SHA256) })
	switch {
	case q.Stands() && (!there || old.Why != q.Why || old.RolloutID != q.RolloutID):
		t.add(audit.Entry{What: audit.QuarantineSet, About: q.SHA256, Rollout: q.RolloutID, Details: audit.Of("why", q.Why)})
	case !q.Stands() && there:
		t.add(audit.Entry{What: audit.QuarantineLift, About: q.SHA256, Rollout: q.RolloutID})
	}
	return t.Tx.PutQuarantine(q)
}
