package otaops

import (
	"errors"
	"fmt"

	"bmsota/esp/otadata"
	"bmsota/esp/parttable"
)

// SetBoot is esp_ota_set_boot_partition: after verifying p it makes it the one
// that boots next, in the sector that is not the active record's. Choosing the
// factory application erases both records. With AntiRollback an image below
// the eFuse's version costs p its whole content.
//
// A power cut inside it can leave a record with a good CRC and half a state,
// which boots without a trial; Switch does not have that moment.
func (o *Ops) SetBoot(p parttable.Partition) error { return o.setBoot(p, 0, o.writeOver) }

// Switch is SetBoot for firmware that wants to survive every power cut: the new
// record counts only once its last bytes, the CRC, are written, and no record
// of another slot can come back to life while its sector is erased. Only
// numbered slots can be switched to.
func (o *Ops) Switch(p parttable.Partition) error {
	if !p.IsOTA() {
		return fail("switch", InvalidArg, "%q is no numbered slot", p.Name)
	}
	// Not the sequence number 0, which ESP-IDF's arithmetic can arrive at over a
	// record that has it: with three slots it is computed for the last one and
	// means the first.
	return o.setBoot(p, 1, o.replaceRecord)
}

func (o *Ops) setBoot(p parttable.Partition, least uint32, write recordWriter) error {
	const op = "set boot partition"
	ok, reason, err := o.verify(p)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if !ok {
		return fail(op, ValidateFailed, "%s: %s", p.Name, reason)
	}
	if p.Type != parttable.TypeApp {
		return fail(op, InvalidArg, "%q is no application partition", p.Name)
	}
	if p.Subtype == parttable.SubtypeFactory {
		data, found := o.table.OTAData()
		if !found {
			return fail(op, NotFound, "no otadata partition")
		}
		if err := o.flash.Erase(int64(data.Offset), int64(data.Size)); err != nil {
			return fmt.Errorf("%s: erase otadata: %w", op, err)
		}
		return nil
	}
	if o.cfg.AntiRollback {
		if err := o.checkSecure(op, p); err != nil {
			return err
		}
	}
	data, recs, err := o.readRecords(op)
	if err != nil {
		return err
	}
	state := otadata.Undefined
	if o.cfg.Rollback {
		state = otadata.New
	}
	// The low bits only, as SUB_TYPE_ID takes them: the test partition counts as
	// ota_0 here.
	sector, rec, err := otadata.Next(recs, int(p.Subtype&0x0F), len(o.slots), state)
	if errors.Is(err, otadata.ErrNoSuchSlot) {
		return fail(op, InvalidArg, "%s: %v", p.Name, err)
	}
	if err != nil {
		return fail(op, SelectInfoInvalid, "%s: %v", p.Name, err)
	}
	if rec.Seq < least {
		if rec.Seq, err = otadata.SeqFor(int(p.Subtype&0x0F), len(o.slots), least); err != nil {
			return fail(op, SelectInfoInvalid, "%s: %v", p.Name, err)
		}
		rec.CRC = otadata.CRC(rec.Seq)
	}
	if err := write(data, sector, recs[sector], rec); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}

// checkSecure refuses a candidate below the eFuse's version, and destroys it.
func (o *Ops) checkSecure(op string, p parttable.Partition) error {
	version, found, err := o.secureVersion(p)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", op, err)
	case !found:
		return fail(op, NotFound, "%s has no description", p.Name)
	case version >= *o.cfg.Efuse:
		return nil
	case p == o.running:
		// ESP-IDF would erase the code it runs; such a board does not get here,
		// because its bootloader refuses the image.
		return fail(op, SmallSecVer, "%s has secure version %d, the board %d", p.Name, version, *o.cfg.Efuse)
	}
	if err := o.flash.Erase(int64(p.Offset), int64(p.Size)); err != nil {
		return fmt.Errorf("%s: erase %s: %w", op, p.Name, err)
	}
	return fail(op, SmallSecVer, "%s has secure version %d, the board %d", p.Name, version, *o.cfg.Efuse)
}

// MarkValid is esp_ota_mark_app_valid_cancel_rollback: it confirms the active
// record, whichever slot that names, and then raises the eFuse's version to the
// running application's. It fails with Fail where no record is active.
func (o *Ops) MarkValid() error {
	const op = "mark valid"
	data, recs, err := o.readRecords(op)
	if err != nil {
		return err
	}
	active := otadata.Select(recs)
	if active < 0 || len(o.slots) == 0 {
		return fail(op, Fail, "no active record")
	}
	if recs[active].State == otadata.Valid {
		return nil
	}
	rec := recs[active]
	rec.State = otadata.Valid
	if err := o.writeOver(data, active, recs[active], rec); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if !o.cfg.AntiRollback {
		return nil
	}
	// Only now: a cut between the two must not leave a board whose one image is
	// below its floor.
	return o.raiseEfuse(op)
}

// raiseEfuse is esp_efuse_update_secure_version.
func (o *Ops) raiseEfuse(op string) error {
	version, found, err := o.secureVersion(o.running)
	width := o.cfg.EfuseBits
	if width == 0 {
		width = 32
	}
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", op, err)
	case !found:
		return fail(op, NotFound, "%s has no description", o.running.Name)
	case uint64(version) > uint64(width):
		return fail(op, InvalidArg, "secure version %d does not fit %d eFuse bits", version, width)
	case version < *o.cfg.Efuse:
		return fail(op, Fail, "secure version %d is below the board's %d", version, *o.cfg.Efuse)
	}
	*o.cfg.Efuse = version
	return nil
}

// MarkInvalid is esp_ota_mark_app_invalid_rollback without the restart: it
// gives the active record up, if there is something to go back to.
//
// A power cut inside its erase can leave a record with a good CRC and a state
// that is no longer on trial; GiveUp does not have that moment.
func (o *Ops) MarkInvalid() error { return o.markInvalid(o.writeOver) }

// GiveUp is MarkInvalid for firmware that wants to survive every power cut: the
// active record stops counting in a single operation, before it is rewritten.
func (o *Ops) GiveUp() error { return o.markInvalid(o.replaceRecord) }

func (o *Ops) markInvalid(write recordWriter) error {
	const op = "mark invalid"
	data, recs, err := o.readRecords(op)
	if err != nil {
		return err
	}
	active := otadata.Select(recs)
	if active < 0 || len(o.slots) == 0 {
		return fail(op, Fail, "no active record")
	}
	possible, err := o.CheckRollbackPossible()
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if !possible {
		return fail(op, RollbackFailed, "nothing to go back to")
	}
	rec := recs[active]
	rec.State = otadata.Invalid
	if err := write(data, active, recs[active], rec); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}

// CheckRollbackPossible is esp_ota_check_rollback_is_possible: whether the
// record that is not active leads to an image that would boot, or else a
// factory application would. It does not ask whether that is another slot than
// the running one.
func (o *Ops) CheckRollbackPossible() (bool, error) {
	const op = "check rollback"
	_, recs, err := o.readRecords(op)
	if errors.Is(err, NotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	active := otadata.Select(recs)
	if active < 0 || len(o.slots) == 0 {
		return false, nil
	}
	p, found := o.table.Factory()
	if other := recs[1-active]; other.Usable() {
		p, found = o.slotOf(other)
	} else if o.cfg.AntiRollback {
		return false, nil
	}
	if !found {
		return false, nil
	}
	ok, _, err := o.verify(p)
	if err != nil || !ok {
		return false, wrap(op, err)
	}
	if o.cfg.AntiRollback {
		version, described, err := o.secureVersion(p)
		return described && version >= *o.cfg.Efuse, wrap(op, err)
	}
	return true, nil
}

func wrap(op string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", op, err)
}

// BootPartition is esp_ota_get_boot_partition: what the records ask for, not
// what the bootloader may fall back to. Without usable records it is the
// factory application, else the lowest slot, else the test application. It is
// false where the table has none of them or no otadata.
func (o *Ops) BootPartition() (parttable.Partition, bool, error) {
	_, recs, err := o.readRecords("boot partition")
	if errors.Is(err, NotFound) {
		return parttable.Partition{}, false, nil
	}
	if err != nil {
		return parttable.Partition{}, false, err
	}
	if active := otadata.Select(recs); active >= 0 && len(o.slots) > 0 {
		p, ok := o.slotOf(recs[active])
		return p, ok, nil
	}
	if p, ok := o.table.Factory(); ok {
		return p, true, nil
	}
	if numbered := o.numbered(); len(numbered) > 0 {
		return numbered[0], true, nil
	}
	p, ok := o.table.Test()
	return p, ok, nil
}

// numbered are the slots that exist, gaps allowed, by number. Of duplicates the
// first row counts.
func (o *Ops) numbered() []parttable.Partition {
	var out []parttable.Partition
	for i := range uint8(parttable.MaxSlots) {
		for _, p := range o.table {
			if p.Type == parttable.TypeApp && p.Subtype == parttable.SubtypeOTA0+i {
				out = append(out, p)
				break
			}
		}
	}
	return out
}

// NextUpdate is esp_ota_get_next_update_partition of the running partition: the
// slot after it, round and round; the first one from factory or test. With a
// single slot it can be the running one.
func (o *Ops) NextUpdate() (parttable.Partition, bool) {
	numbered := o.numbered()
	if len(numbered) == 0 {
		return parttable.Partition{}, false
	}
	for i, p := range numbered {
		if p == o.running {
			return numbered[(i+1)%len(numbered)], true
		}
	}
	return numbered[0], true
}

// StatePartition is esp_ota_get_state_partition: the state of the first record
// with a good CRC that means p. NotSupported where p is no numbered slot,
// NotFound where no record means it.
func (o *Ops) StatePartition(p parttable.Partition) (otadata.State, error) {
	const op = "state of partition"
	if !p.IsOTA() || !o.inTable(p) {
		return 0, fail(op, NotSupported, "%q is no numbered slot", p.Name)
	}
	_, recs, err := o.readRecords(op)
	if err != nil {
		return 0, err
	}
	for _, r := range recs {
		if q, ok := o.slotOf(r); ok && q == p && r.CRCOK() {
			return r.State, nil
		}
	}
	return 0, fail(op, NotFound, "no record means %s", p.Name)
}

// LastInvalid is esp_ota_get_last_invalid_partition: the slot of the record
// that was given up or aborted (of two, the one with the smaller sequence
// number), as long as its image still verifies.
func (o *Ops) LastInvalid() (parttable.Partition, bool, error) {
	const op = "last invalid partition"
	_, recs, err := o.readRecords(op)
	if errors.Is(err, NotFound) {
		return parttable.Partition{}, false, nil
	}
	if err != nil {
		return parttable.Partition{}, false, err
	}
	var failed [2]bool
	for i, r := range recs {
		failed[i] = !r.Erased() && r.CRCOK() && (r.State == otadata.Invalid || r.State == otadata.Aborted)
	}
	i := otadata.SelectAmong(recs, failed, false)
	if i < 0 {
		return parttable.Partition{}, false, nil
	}
	p, found := o.slotOf(recs[i])
	if !found {
		return parttable.Partition{}, false, nil
	}
	ok, _, err := o.verify(p)
	if err != nil || !ok {
		return parttable.Partition{}, false, wrap(op, err)
	}
	return p, true, nil
}

// EraseLastBootApp is esp_ota_erase_last_boot_app_partition: it erases the slot
// of the record that is not active, and then that record. Fail where there is
// no such slot or it is the running one.
func (o *Ops) EraseLastBootApp() error {
	const op = "erase last boot app"
	data, recs, err := o.readRecords(op)
	if err != nil {
		return err
	}
	sector, p, ok := o.lastBoot(recs)
	if !ok {
		return fail(op, Fail, "no other slot was booted before")
	}
	if err := o.flash.Erase(int64(p.Offset), int64(p.Size)); err != nil {
		return fmt.Errorf("%s: erase %s: %w", op, p.Name, err)
	}
	if err := o.flash.Erase(recordOffset(data, sector), otadata.SectorSize); err != nil {
		return fmt.Errorf("%s: erase record %d: %w", op, sector, err)
	}
	return nil
}

// lastBoot is the record that is not active and its slot, if that is another
// one than the running.
func (o *Ops) lastBoot(recs [2]otadata.Record) (sector int, p parttable.Partition, ok bool) {
	active := otadata.Select(recs)
	if active < 0 {
		return 0, p, false
	}
	sector = 1 - active
	if recs[sector].Erased() || !recs[sector].CRCOK() {
		return 0, p, false
	}
	p, ok = o.slotOf(recs[sector])
	return sector, p, ok && p != o.running
}
