package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"bmsota/device/internal/otaops"
	"bmsota/esp/appimage"
	"bmsota/esp/otadata"
	"bmsota/esp/parttable"
	"bmsota/protocol"
)

// self is what the firmware finds out about itself from flash.
type self struct {
	id      string
	image   *appimage.Image
	digest  string // of the image file that runs, lower-case hex
	sum     [32]byte
	version string
	project string
	floor   uint32 // no release below it
	target  parttable.Partition
	trial   bool

	noTarget error // why the board cannot be updated: target is zero then

	rolledBack *rollback // a failure that was not told yet
	buried     []string  // digests that are not installed again
	held       string    // digest that an operator left: only an order given now brings it back
	manual     bool      // the trial of a rollback that an operator ordered
	leaving    int       // the record of the running slot with an operator's rollback noted and not done; -1 for none
	restart    bool      // it is done now: the other slot boots
}

// rollback is a story to tell: the image in slot failed, or was left.
type rollback struct {
	digest string
	cause  protocol.Reason
	slot   parttable.Partition // with a tombstone, or
	record int                 // with a note behind this record
	noted  bool
	acked  bool
}

// boot derives everything from flash, and puts right what a failed update left. An error means that the power failed
// or the flash cannot be read.
func (a *agent) boot() error {
	ops, err := otaops.New(a.env.Flash, a.env.Table, a.env.Running, a.env.Ops)
	if err != nil {
		return err
	}
	a.ops = ops
	if a.cfg, err = readSettings(a.env.Flash, a.env.Table); err != nil {
		return err
	}
	if err := a.know(); err != nil {
		return err
	}
	if err := a.repair(); err != nil {
		return err
	}
	a.connectors()
	a.mutantWeb()
	return nil
}

// know fills in what the running image and the configuration say.
func (a *agent) know() error {
	s := &a.self
	s.leaving = -1
	img, err := a.verify(a.env.Running)
	if err != nil {
		return fmt.Errorf("running image: %w", err)
	}
	s.image = img
	if !a.without(MutantSettingsKeys) {
		a.cfg.believeImage(a.section(a.env.Running), img, a.env.Keys)
	}
	if a.without(MutantOneSigner) {
		a.cfg.trust.Threshold = 1
	}
	if s.sum, err = a.digest(a.env.Running, img); err != nil {
		return err
	}
	s.digest = hex.EncodeToString(s.sum[:])
	s.version = a.cfg.ota.CurrentVersion
	if img.Desc != nil {
		if v := img.Desc.Version; !protocol.GenericVersion(v) || s.version == "" {
			s.version = printable(v)
		}
		s.project, s.floor = printable(img.Desc.Project), img.Desc.SecureVersion
	}
	if a.env.Ops.AntiRollback && a.env.Ops.Efuse != nil {
		s.floor = *a.env.Ops.Efuse
	}
	if a.without(MutantNoFloor) {
		s.floor = 0
	}
	if s.target, s.noTarget = a.otherSlot(); s.noTarget != nil {
		s.target = parttable.Partition{}
	}
	s.id = a.cfg.ota.DeviceID
	if s.id == "" {
		s.id = protocol.DeviceID(a.env.MAC)
	}
	return nil
}

// otherSlot is the slot that an update goes to, if the partition table allows any.
func (a *agent) otherSlot() (parttable.Partition, error) {
	slot, ok := a.ops.NextUpdate()
	if !ok || slot == a.env.Running {
		return slot, errors.New("the partition table has no slot beside the running one")
	}
	if !slices.Contains(a.env.Table.Slots(), slot) {
		return slot, fmt.Errorf("the partition table has a gap before %s, so nothing can boot it", slot.Name)
	}
	if _, err := a.ops.Records(); errors.Is(err, otaops.NotFound) {
		return slot, errors.New("the partition table has no otadata partition, so no other slot can be selected")
	}
	return slot, nil
}

// printable keeps a text from an image fit for a status.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}

// section is the part of flash that a partition is.
func (a *agent) section(p parttable.Partition) *io.SectionReader {
	return io.NewSectionReader(a.env.Flash, int64(p.Offset), int64(p.Size))
}

func (a *agent) verify(p parttable.Partition) (*appimage.Image, error) {
	return appimage.Verify(a.section(p), appimage.Target{
		Chip: a.env.Ops.Chip, Revision: a.env.Ops.ChipRevision, PartitionSize: int64(p.Size), FlashOffset: int64(p.Offset)})
}

// digest is the SHA-256 of the file that img was published as.
func (a *agent) digest(p parttable.Partition, img *appimage.Image) (sum [32]byte, err error) {
	r := a.section(p)
	return hashOf(io.NewSectionReader(r, 0, appimage.FileLength(r, r.Size(), img)))
}

func hashOf(r io.Reader) (sum [32]byte, err error) {
	h := sha256.New()
	var buf [16 << 10]byte
	if _, err := io.CopyBuffer(h, onlyReader{r}, buf[:]); err != nil {
		return sum, fmt.Errorf("read slot: %w", err)
	}
	h.Sum(sum[:0])
	return sum, nil
}

// onlyReader hides WriterTo, which would allocate a buffer of its own.
type onlyReader struct{ io.Reader }

// repair settles what the last life left in flash. Only a power cut is returned; another error of the flash is
// logged, because a board that cannot write a tombstone still has a battery to watch.
func (a *agent) repair() error {
	steps := []func() error{a.steadyRecords, a.fallenBack, a.failedSlots, a.finishRollback, a.unprovenSlots, a.readGraves}
	for _, step := range steps {
		if err := step(); gone(err) {
			return err
		} else if err != nil {
			a.log.Error("boot state not settled", "err", err)
		}
	}
	return nil
}

// slots lists the slots that do not run.
func (a *agent) otherSlots() []parttable.Partition {
	var others []parttable.Partition
	for _, p := range a.env.Table.Slots() {
		if p != a.env.Running {
			others = append(others, p)
		}
	}
	return others
}

// steadyRecords settles records that read now so and now so, before anything is decided on them.
func (a *agent) steadyRecords() error {
	unsteady, err := a.ops.Unsteady()
	if err != nil {
		return notFound(err)
	}
	if unsteady == [2]bool{} || a.without(MutantUnsteadyRecords) {
		return nil
	}
	recs, err := a.ops.Records()
	if err != nil {
		return err
	}
	for i, r := range recs {
		// Before the other record goes: for a moment none would count, and the failed image could be what boots.
		if slot, ok := a.slotOf(r); ok && !unsteady[i] && slot != a.env.Running {
			if err := a.failedSlot(i, r, slot); gone(err) {
				return err
			} else if err != nil {
				a.log.Error("failed image not buried", "slot", slot.Name, "err", err)
			}
		}
	}
	changed, err := a.ops.SteadyRecords()
	if changed {
		a.log.Warn("boot records that read differently written anew", "slot", a.env.Running.Name)
	}
	return err
}

// fallenBack mends the records after the bootloader passed over a damaged slot without a word: they still name that
// slot, and an update begun now would overwrite the record of the slot that runs.
func (a *agent) fallenBack() error {
	asked, ok, err := a.ops.BootPartition()
	if err != nil {
		return err
	}
	if ok && asked != a.env.Running && asked.IsOTA() {
		// The tombstone before the records: the records are what tells of it, and mending them is what forgets.
		if _, err := a.verify(asked); err != nil && !gone(err) {
			if err := a.ops.WriteTombstone(asked, [32]byte{}, string(protocol.ReasonCorrupt)); err != nil {
				return err
			}
		}
	}
	changed, err := a.ops.RepairRecords()
	if changed {
		a.log.Warn("boot records mended", "slot", a.env.Running.Name)
	}
	return err
}

// failedSlots buries every image that was given up or aborted: its slot is made unbootable BEFORE anything is told.
// As long as the image is there, a few flipped bits in the records, which no checksum covers, boot it again for ever
// on a board without a factory image.
func (a *agent) failedSlots() error {
	recs, err := a.ops.Records()
	if err != nil {
		return notFound(err)
	}
	// The running slot's own record first: what it says decides about the other.
	for _, own := range []bool{true, false} {
		for i, r := range recs {
			slot, ok := a.slotOf(r)
			if !ok || (slot == a.env.Running) != own {
				continue
			}
			if err := a.failedSlot(i, r, slot); err != nil {
				return err
			}
		}
	}
	return nil
}

// slotOf is the slot that a record means, usable or not; false where it means none.
func (a *agent) slotOf(r otadata.Record) (parttable.Partition, bool) {
	slots := a.env.Table.Slots()
	i := otadata.SlotIndex(r.Seq, len(slots))
	if i < 0 || r.Erased() || !r.CRCOK() {
		return parttable.Partition{}, false
	}
	return slots[i], true
}

func (a *agent) failedSlot(i int, r otadata.Record, slot parttable.Partition) error {
	n, noted, err := a.readNote(i)
	if err != nil {
		return err
	}
	switch {
	case slot == a.env.Running:
		// A state that ESP-IDF has no name for is a record whose erase the power cut short: the bootloader takes it
		// for one that needs no trial, but this image has passed none.
		if a.env.Ops.Rollback && (r.State == otadata.PendingVerify || !r.State.Named()) {
			a.self.trial = true
		}
		if noted && !n.void {
			a.self.leaving = i
		}
	case r.State == otadata.Invalid || r.State == otadata.Aborted:
		return a.bury(i, r, slot, n, noted)
	case noted && n.cause == protocol.ReasonOperator && !n.void:
		a.self.held, a.self.manual = digestText(n.digest), true
		if !n.told {
			a.self.rolledBack = &rollback{digest: a.self.held, cause: n.cause, record: i, noted: true}
		}
	}
	return nil
}

// finishRollback settles a note that the running image left about itself. Either the image that it went back to
// failed, and then the note says nothing any more. Or the power failed before the other slot was switched to: the order
// was taken, so it is carried out now. Leaving it would cost the other image, whose record the switch may have
// silenced already.
func (a *agent) finishRollback() error {
	if a.self.leaving < 0 {
		return nil
	}
	for _, slot := range a.otherSlots() {
		// The one that verifies is the one that was meant: goBack saw to it that there is no other.
		if _, err := a.verify(slot); gone(err) {
			return err
		} else if err != nil || a.self.trial {
			continue
		}
		if err := a.switchTo(slot); err == nil || gone(err) {
			a.self.restart = err == nil
			return err
		}
	}
	return a.mark(a.self.leaving, noteVoid)
}

func (a *agent) bury(i int, r otadata.Record, slot parttable.Partition, n note, noted bool) error {
	if _, ok, err := a.ops.ReadTombstone(slot); err != nil || ok {
		return err
	}
	img, err := a.verify(slot)
	switch {
	case gone(err):
		return err
	case err != nil && !noted:
		// Nothing that could boot, and nothing known: the record alone tells that it was tried.
		n = note{cause: protocol.ReasonCorrupt}
	case !noted && a.self.leaving >= 0 && a.causeOf(r.State) == protocol.ReasonPowerLoss:
		return nil // an operator's rollback, proven before, and only the power failed: finishRollback tries again
	case !noted:
		n = note{cause: a.causeOf(r.State)}
		if n.digest, err = a.digest(slot, img); err != nil {
			return err
		}
		// The digest is known only as long as the image is there. So it is written down before the erase, and a
		// power cut between erase and tombstone loses nothing.
		if err := a.writeNote(i, n); gone(err) {
			return err
		} else if err != nil {
			a.log.Warn("note of a failed slot not written", "slot", slot.Name, "err", err)
		}
	}
	if a.without(MutantKeepFailedSlot) {
		a.self.rolledBack = &rollback{digest: digestText(n.digest), cause: n.cause, slot: slot}
		a.self.buried = append(a.self.buried, digestText(n.digest))
		return nil
	}
	return a.ops.WriteTombstone(slot, n.digest, string(n.cause))
}

// causeOf reads the cause of a failed trial from how the chip was reset, where the firmware on trial left no note.
func (a *agent) causeOf(st otadata.State) protocol.Reason {
	switch {
	case st == otadata.Invalid:
		return protocol.ReasonOther // it gave itself up, and the power failed before it could say why
	case a.env.Reset == PowerOn:
		return protocol.ReasonPowerLoss
	case a.env.Reset == Watchdog:
		return protocol.ReasonWatchdog
	case a.env.Reset == Brownout:
		return protocol.ReasonBrownout
	}
	return protocol.ReasonCrash
}

// unprovenSlots makes images unbootable that no record vouches for: a download that was complete when the power went,
// or a trial whose record was lost half way. Nobody has seen them run, and without records the bootloader takes the
// lowest slot that verifies. An update that comes back for such an image fetches one block again.
func (a *agent) unprovenSlots() error {
	recs, err := a.ops.Records()
	if err != nil {
		return notFound(err)
	}
	slots := a.env.Table.Slots()
	for i, slot := range slots {
		if slot == a.env.Running || !a.env.Running.IsOTA() || a.self.trial || a.self.restart || a.without(MutantKeepFailedSlot) {
			continue
		}
		if recs[0].Names(i, len(slots)) || recs[1].Names(i, len(slots)) {
			continue
		}
		if _, ok, err := a.ops.ReadTombstone(slot); err != nil || ok {
			continue
		}
		if _, err := a.verify(slot); err == nil {
			a.log.Warn("image that no record vouches for is made unbootable", "slot", slot.Name)
			if err := a.unboot(slot); err != nil {
				return err
			}
		} else if gone(err) {
			return err
		}
	}
	return nil
}

// unboot erases the first sector of a slot that does not run.
func (a *agent) unboot(slot parttable.Partition) error {
	if slot == a.env.Running {
		panic("agent: the running slot is not to be erased")
	}
	if err := a.env.Flash.Erase(int64(slot.Offset), otadata.SectorSize); err != nil {
		return fmt.Errorf("erase first sector of %s: %w", slot.Name, err)
	}
	return nil
}

// readGraves reads the tombstones: what is not installed again, and what is not told yet.
func (a *agent) readGraves() error {
	for _, slot := range a.otherSlots() {
		t, ok, err := a.ops.ReadTombstone(slot)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		cause := protocol.Reason(t.Cause).Known()
		if cause != protocol.ReasonPowerLoss && cause != protocol.ReasonCorrupt && t.SHA256 != [32]byte{} {
			// Power loss and a damaged slot are no fault of the image: it may be tried again.
			a.self.buried = append(a.self.buried, digestText(t.SHA256))
		}
		if !t.Acked {
			a.self.rolledBack = &rollback{digest: digestText(t.SHA256), cause: cause, slot: slot}
		}
	}
	return nil
}

// notFound is err unless it only says that there is no otadata partition.
func notFound(err error) error {
	if errors.Is(err, otaops.NotFound) {
		return nil
	}
	return err
}

// connectors makes what the firmware talks through: link, reporter, web.
func (a *agent) connectors() {
	first := protocol.PhaseIdle
	switch {
	case a.self.rolledBack != nil:
		first = protocol.PhaseRolledBack
	case a.self.trial:
		first = protocol.PhaseTrial
	}
	now := time.Now()
	cur := protocol.Status{
		Phase: first, CurrentVersion: a.self.version, RollbackPending: a.self.trial,
		DeviceID: a.self.id, Protocol: protocol.Version, BootID: bootID(now, a.rand),
		Slot: a.env.Running.Name, SlotSize: int64(a.self.target.Size), Chip: a.env.Ops.Chip.String(), Project: a.self.project,
		SecureVersion: a.self.floor, ImageSHA256: a.self.digest, RollbackProtected: a.env.Ops.Rollback,
		Signed: len(a.cfg.trust.Keys) > 0, ResetReason: string(a.env.Reset),
	}
	a.rep = &reporter{
		qos: byte(a.cfg.mqtt.QoS), log: a.log, onStatus: a.env.OnStatus, battery: a.env.Battery, heap: a.heap,
		assert: a.env.Strict, cur: cur, booted: now, wake: make(chan struct{}, 1), lastPct: -1,
	}
	if a.cfg.haveOTA {
		var err error
		if a.web, err = newWeb(a.cfg, &a.env, a.heap); err != nil {
			a.cfg.problem = errors.Join(a.cfg.problem, err)
		}
	}
	if !a.cfg.haveMQ {
		return
	}
	// The broker keeps the will of this session to its end, when a trial is long over as a rule.
	will := cur
	will.Phase, will.Message, will.ProgressPct, will.RollbackPending = protocol.PhaseOffline, "connection lost", 0, false
	payload, err := will.Append(nil)
	if err != nil {
		a.log.Error("last will", "err", err)
	}
	a.link = a.env.NewLink(LinkConfig{
		DeviceID: a.self.id, Topics: protocol.Topics{Prefix: a.cfg.ota.TopicPrefix}, MQTT: a.cfg.mqtt, Identity: a.cfg.identity, Repeat: !a.cfg.ota.OwnTopicOnly, Roots: a.env.Roots, Trust: a.env.Trust,
		Will: payload, Dial: a.env.Dial, Rand: newRand(a.env.Seed, 3), MaxPause: a.env.longest(maxPause), Log: a.log,
	})
	a.rep.link = a.link
}
