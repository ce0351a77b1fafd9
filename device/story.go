package device

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"slices"

	"bmsota/device/internal/norflash"
	"bmsota/esp/appimage"
	"bmsota/esp/otadata"
	"bmsota/esp/parttable"
	"bmsota/protocol"
)

// story is one thing that happens to a board: from what is in flash, by an order that the broker retains, to an image that
// runs in the end. Whatever the power does meanwhile, it ends the same.
type story struct {
	name   string
	start  *norflash.Flash
	table  parttable.Table
	fuses  fuses
	order  string // retained
	server http.RoundTripper
	images [][]byte // what may start: these, whole, and nothing else
	final  []byte   // what runs in the end
	config func(*Config)

	metadataOnly bool              // the bytes of the image are another story's
	holes        bool              // the new image crashes at once: what ESP-IDF's bootloader lets escape is set aside, see escaped
	refusals     []protocol.Reason // that the order may end in, beside quarantined
}

// answered says whether a status answers the order: it was found fulfilled, or refused.
func (s *story) answered(st protocol.Status) bool {
	return st.Reason == protocol.ReasonUpToDate || st.Reason == protocol.ReasonQuarantined || slices.Contains(s.refusals, st.Reason)
}

// judge looks at what boots: one of the images, whole.
func (s *story) judge(f *norflash.Flash, booted string) string {
	p, ok := s.table.Find(booted)
	if !ok {
		return "boots " + booted
	}
	for _, img := range s.images {
		if slotHolds(f, p, img) {
			return ""
		}
	}
	return booted + " boots, and holds none of the images"
}

// zombies finds slots that boot without being one that a record vouches for.
func (s *story) zombies(f *norflash.Flash) string {
	recs := s.records(f)
	slots := s.table.Slots()
	for i, p := range slots {
		_, err := s.verify(f, p)
		if err == nil && !recs[0].Names(i, len(slots)) && !recs[1].Names(i, len(slots)) {
			return p.Name + " boots and no record vouches for it"
		}
	}
	return ""
}

// verify is the bootloader's look at a slot.
func (s *story) verify(f *norflash.Flash, p parttable.Partition) (*appimage.Image, error) {
	return appimage.Verify(section(f, p), appimage.Target{Chip: s.fuses.chip, Revision: s.fuses.revision, PartitionSize: int64(p.Size), FlashOffset: int64(p.Offset)})
}

func section(f *norflash.Flash, p parttable.Partition) *io.SectionReader {
	return io.NewSectionReader(f, int64(p.Offset), int64(p.Size))
}

// orphaned says that the slot that runs has no record of its own to boot by: the next update would leave it none.
func (s *story) orphaned(f *norflash.Flash, running string) string {
	p, ok := s.table.Find(running)
	if !ok || !p.IsOTA() {
		return ""
	}
	recs, slots := s.records(f), s.table.Slots()
	for _, r := range recs {
		if i := otadata.SlotIndex(r.Seq, len(slots)); r.Usable() && i >= 0 && slots[i] == p {
			return ""
		}
	}
	return running + " runs and has no record"
}

// doubled says that both boot records name one slot of several: no record is left for the image to fall back to.
func (s *story) doubled(f *norflash.Flash) string {
	recs, slots := s.records(f), s.table.Slots()
	one := otadata.SlotIndex(recs[0].Seq, len(slots))
	if len(slots) > 1 && recs[0].Usable() && recs[1].Usable() && one == otadata.SlotIndex(recs[1].Seq, len(slots)) {
		return fmt.Sprintf("both boot records name slot %d", one)
	}
	return ""
}

func (s *story) records(f *norflash.Flash) [2]otadata.Record {
	none := [2]otadata.Record{otadata.ErasedRecord(), otadata.ErasedRecord()}
	data, ok := s.table.OTAData()
	if !ok {
		return none
	}
	raw := make([]byte, data.Size)
	if _, err := f.ReadAt(raw, int64(data.Offset)); err != nil {
		return none
	}
	recs, err := otadata.Parse(raw)
	if err != nil {
		return none
	}
	return recs
}

// metadata says whether everything hangs on the operation: on records, eFuses, tombstones and what a slot begins with.
func (s *story) metadata(op norflash.Op) bool {
	if op.Off < parttable.Offset+parttable.SectorSize {
		return true
	}
	for _, p := range s.table {
		start := int64(p.Offset)
		switch {
		case op.Off < start || op.Off >= int64(p.End()):
		case p.Type == parttable.TypeApp:
			return op.Off < start+0x80
		default:
			return true
		}
	}
	return false
}

// escaped says whether after is what ESP-IDF's bootloader alone is to blame for: it rewrote the record of a trial, the
// power failed in that, and what is left has a right CRC and a state that boots without a trial. No application can close
// that: see docs/adr/0010.
func (s *story) escaped(op norflash.Op, before, after *norflash.Flash) bool {
	data, _ := s.table.OTAData()
	sector := (op.Off - int64(data.Offset)) / norflash.SectorSize
	if sector != 0 && sector != 1 {
		return false
	}
	was, is := s.records(before)[sector], s.records(after)[sector]
	// The bootloader erases a record that counts and programs all of it at once; the application does neither.
	trial := was.Usable() && (was.State == otadata.New || was.State == otadata.PendingVerify)
	bootloader := op.Kind == norflash.OpErase && trial || op.Kind == norflash.OpProgram && op.Len == otadata.RecordSize
	return bootloader && is.Usable() && (is.State == otadata.Undefined || !is.State.Named())
}

func slotHolds(f *norflash.Flash, p parttable.Partition, img []byte) bool {
	var have [norflash.SectorSize]byte
	for at := 0; at < len(img); at += len(have) {
		n := min(len(have), len(img)-at)
		if _, err := f.ReadAt(have[:n], int64(p.Offset)+int64(at)); err != nil || !bytes.Equal(have[:n], img[at:at+n]) {
			return false
		}
	}
	return true
}
