package device

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"regexp"
	"unicode/utf8"

	"bmsota/device/internal/bootloader"
	"bmsota/device/internal/norflash"
	"bmsota/device/internal/otaops"
	"bmsota/esp/appimage"
	"bmsota/esp/otadata"
	"bmsota/esp/parttable"
	"bmsota/esp/spiffs"
	"bmsota/protocol"
)

// BootOptions is how the bootloader was built, and the board it is on.
type BootOptions struct {
	Rollback     bool
	AntiRollback bool    // takes Rollback with it
	Efuse        *uint32 // secure version burnt in; nil: what the flash file keeps, 0 where it keeps none
}

// BootReport is one boot decision and what it did.
type BootReport struct {
	Selected     string    `json:"selected"`      // what the records ask for: "ota_0", "factory", "test" or "none"
	Booted       string    `json:"booted"`        // what started
	RecordsAfter [2]string `json:"records_after"` // the two boot records, 32 bytes each in hex
	EfuseAfter   uint32    `json:"efuse_after"`
	Operations   []string  `json:"operations"` // "erase:d000:1000", "write:d000:20": offset and length in hex
}

// Boot makes one boot decision over a flash file and applies it to the file.
func Boot(path string, o BootOptions) (report BootReport, err error) {
	b, err := Open(Config{Path: path})
	if err != nil {
		return BootReport{}, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	efuse := b.fuses.secure
	if o.Efuse != nil {
		efuse = *o.Efuse
	}
	res, err := bootloader.Boot(b.flash, bootloader.Config{Rollback: o.Rollback || o.AntiRollback, AntiRollback: o.AntiRollback,
		Efuse: &efuse, Chip: b.fuses.chip, ChipRevision: b.fuses.revision})
	if err != nil {
		return BootReport{}, fmt.Errorf("boot: %w", err)
	}
	if o.AntiRollback && o.Efuse == nil {
		b.fuses.secure = efuse
		if err := b.saveFuses(); err != nil {
			return BootReport{}, fmt.Errorf("boot: %w", err)
		}
	}
	report = BootReport{Selected: res.Selected, Booted: res.Booted, EfuseAfter: efuse, Operations: res.Operations}
	if report.Operations == nil {
		report.Operations = []string{}
	}
	for i, r := range res.Records {
		report.RecordsAfter[i] = hex.EncodeToString(otadata.AppendRecord(nil, r))
	}
	return report, nil
}

// Inspection is what stands in a flash.
type Inspection struct {
	FlashSize  int64                `json:"flash_size"`
	DeviceID   string               `json:"device_id"` // of the configuration, else of the MAC
	MAC        string               `json:"mac"`
	Chip       string               `json:"chip"`
	Efuse      uint32               `json:"efuse_secure_version"`
	Partitions []InspectedPartition `json:"partitions"`
	Active     int                  `json:"active_record"` // 0, 1 or -1
	Records    []InspectedRecord    `json:"records"`
	Images     []InspectedImage     `json:"images"`
	Files      []InspectedFile      `json:"files"`
	Anomalies  []string             `json:"anomalies"` // of the storage partition
}

// InspectedPartition is one row of the partition table.
type InspectedPartition struct {
	Name    string `json:"name"`
	Type    string `json:"type"`
	Subtype string `json:"subtype"`
	Offset  uint32 `json:"offset"`
	Size    uint32 `json:"size"`
}

// InspectedRecord is one boot record.
type InspectedRecord struct {
	Seq   uint32 `json:"seq"`
	State string `json:"state"`
	CRCOK bool   `json:"crc_ok"`
	Slot  string `json:"slot"` // that it names, empty where it names none
}

// InspectedImage is what an app partition holds.
type InspectedImage struct {
	Slot        string `json:"slot"`
	Valid       bool   `json:"valid"`
	Error       string `json:"error,omitempty"`
	Project     string `json:"project,omitempty"`
	Version     string `json:"version,omitempty"`
	Chip        string `json:"chip,omitempty"`
	Length      int64  `json:"length,omitempty"`      // bytes of the image file
	SHA256      string `json:"sha256,omitempty"`      // of the image file
	Trial       string `json:"trial,omitempty"`       // how a virtual board runs it
	Quarantined string `json:"quarantined,omitempty"` // digest of the image that failed here, from the tombstone
	Cause       string `json:"cause,omitempty"`       // why it failed
}

// InspectedFile is one file of the storage partition. Passwords and private keys in it are masked.
type InspectedFile struct {
	Name    string `json:"name"`
	Size    int64  `json:"size"`
	Content string `json:"content,omitempty"` // of small text files
	Error   string `json:"error,omitempty"`
}

// Inspect reads a flash file without changing it.
func Inspect(path string) (out Inspection, err error) {
	b, err := Open(Config{Path: path})
	if err != nil {
		return Inspection{}, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	table, err := readTable(b.flash)
	if err != nil {
		return Inspection{}, fmt.Errorf("inspect: %w", err)
	}
	out = Inspection{FlashSize: b.flash.Size(), DeviceID: b.ID(), MAC: fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", b.fuses.mac[0], b.fuses.mac[1],
		b.fuses.mac[2], b.fuses.mac[3], b.fuses.mac[4], b.fuses.mac[5]), Chip: b.fuses.chip.String(), Efuse: b.fuses.secure,
		Active: -1, Records: []InspectedRecord{}, Images: []InspectedImage{}, Files: []InspectedFile{}, Anomalies: []string{}}
	for _, p := range table {
		out.Partitions = append(out.Partitions, InspectedPartition{p.Name, p.TypeName(), p.SubtypeName(), p.Offset, p.Size})
	}
	if err := out.records(b.flash, table); err != nil {
		return Inspection{}, fmt.Errorf("inspect: %w", err)
	}
	for _, p := range table {
		if p.Type == parttable.TypeApp {
			out.Images = append(out.Images, inspectImage(b, p))
		}
	}
	out.files(b.flash, table)
	return out, nil
}

func (out *Inspection) records(f *norflash.Flash, table parttable.Table) error {
	p, ok := table.OTAData()
	if !ok {
		return nil
	}
	slots := table.Slots()
	var recs [2]otadata.Record
	for i := range recs {
		var raw [otadata.RecordSize]byte
		if _, err := f.ReadAt(raw[:], int64(p.Offset)+int64(i)*norflash.SectorSize); err != nil {
			return err
		}
		r, err := otadata.ParseRecord(raw[:])
		if err != nil {
			return err
		}
		recs[i] = r
		row := InspectedRecord{Seq: r.Seq, State: r.State.String(), CRCOK: r.CRCOK()}
		if r.Erased() {
			row.State = "erased"
		} else if r.CRCOK() && len(slots) > 0 {
			row.Slot = slots[otadata.SlotIndex(r.Seq, len(slots))].Name
		}
		out.Records = append(out.Records, row)
	}
	out.Active = otadata.Select(recs)
	return nil
}

func inspectImage(b *Board, p parttable.Partition) InspectedImage {
	row := InspectedImage{Slot: p.Name}
	part := io.NewSectionReader(b.flash, int64(p.Offset), int64(p.Size))
	img, err := appimage.Verify(part, appimage.Target{Chip: b.fuses.chip, Revision: b.fuses.revision, PartitionSize: int64(p.Size), FlashOffset: int64(p.Offset)})
	if err != nil {
		row.Error = err.Error()
		if table, err := readTable(b.flash); err == nil {
			row.tombstone(b.flash, table, p)
		}
		return row
	}
	row.Valid, row.Chip, row.Trial = true, img.Header.Chip.String(), string(appimage.TrialBehaviour(part, img))
	if img.Desc != nil {
		row.Project, row.Version = img.Desc.Project, img.Desc.Version
	}
	row.Length = appimage.FileLength(part, int64(p.Size), img)
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(part, 0, row.Length)); err == nil {
		row.SHA256 = hex.EncodeToString(sum.Sum(nil))
	}
	return row
}

func (row *InspectedImage) tombstone(f *norflash.Flash, table parttable.Table, p parttable.Partition) {
	ops, err := otaops.New(f, table, p, otaops.Config{})
	if err != nil {
		return
	}
	if t, ok, err := ops.ReadTombstone(p); err == nil && ok {
		row.Quarantined, row.Cause = hex.EncodeToString(t.SHA256[:]), t.Cause
		row.Error = "a failed image was made unbootable here"
	}
}

var secret = regexp.MustCompile(`("(?:password|client_key_pem)"\s*:\s*")[^"]*|(?m)^(\s*(?:password|client_key_pem)\s*=).*$`)

// storage reads the partition that the board mounts as /spiffs.
func storage(f *norflash.Flash, table parttable.Table) (*spiffs.FS, error) {
	for _, p := range table {
		if p.Type != parttable.TypeData || p.Subtype != parttable.SubtypeSPIFFS {
			continue
		}
		image := make([]byte, p.Size) // the table was checked against the flash
		if _, err := f.ReadAt(image, int64(p.Offset)); err != nil {
			return nil, err
		}
		return spiffs.Read(image)
	}
	return nil, errNoStorage
}

var errNoStorage = errors.New("the table has no storage partition")

func (out *Inspection) files(f *norflash.Flash, table parttable.Table) {
	fs, err := storage(f, table)
	if errors.Is(err, errNoStorage) {
		return
	}
	if err != nil {
		out.Anomalies = append(out.Anomalies, err.Error())
		return
	}
	out.Anomalies = append(out.Anomalies, fs.Anomalies()...)
	for _, info := range fs.Files() {
		row := InspectedFile{Name: info.Name, Size: info.Size}
		data, err := fs.ReadFile(info.Name)
		switch {
		case err != nil:
			row.Error = err.Error()
		case len(data) <= protocol.MaxConfig && utf8.Valid(data):
			row.Content = secret.ReplaceAllString(string(data), "${1}${2}***")
		}
		if c, err := protocol.ParseOTAConfig(data); info.Name == protocol.OTAConfigFile && err == nil && c.DeviceID != "" {
			out.DeviceID = c.DeviceID
		}
		out.Files = append(out.Files, row)
	}
}
