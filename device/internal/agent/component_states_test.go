package agent

import (
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"testing"

	"bmsota/device/internal/norflash"
	"bmsota/device/internal/otaops"
	"bmsota/esp/appimage"
	"bmsota/esp/otadata"
	"bmsota/esp/parttable"
	"bmsota/manifest"
	"bmsota/protocol"
)

// life is a flash and the board around it at the moment that firmware starts.
type life struct {
	flash          *norflash.Flash
	table          parttable.Table
	running        parttable.Partition
	reset          ResetReason
	rollback, anti bool
	encrypted      bool // flash encryption; only the component knows it
	efuse          uint32
	chip           appimage.ChipID
	weak           weakByte
}

// weakByte has bits that are neither 1 nor 0; the zero value is none.
type weakByte struct {
	at   int64 // in flash
	bits byte
}

func (l life) config(efuse *uint32) Config {
	return Config{Flash: l.flash, Table: l.table, Running: l.running, Reset: l.reset, Seed: 1,
		Battery: func() (protocol.Battery, bool) { return protocol.Battery{}, false },
		Ops:     otaops.Config{Rollback: l.rollback, AntiRollback: l.anti, Efuse: efuse, Chip: l.chip}}
}

func (l life) with(f *norflash.Flash) life {
	l.flash = f
	return l
}

// used is as much of the flash as any layout needs, in bytes.
const used = 0x60000

// layouts are the tables that states are made for, the likely ones several times.
func layouts() []parttable.Table {
	app := func(name string, subtype uint8, n uint32) parttable.Partition {
		return parttable.Partition{Name: name, Type: parttable.TypeApp, Subtype: subtype, Offset: 0x20000 + n*0x10000, Size: 0x10000}
	}
	data := parttable.Partition{Name: "otadata", Type: parttable.TypeData, Subtype: parttable.SubtypeOTAData, Offset: 0x10000, Size: 0x2000}
	two := parttable.Table{data, app("ota_0", 0x10, 0), app("ota_1", 0x11, 1)}
	three := parttable.Table{data, app("ota_0", 0x10, 0), app("ota_1", 0x11, 1), app("ota_2", 0x12, 2)}
	factory := parttable.Table{data, app("factory", 0, 0), app("ota_0", 0x10, 1), app("ota_1", 0x11, 2)}
	return []parttable.Table{two, two, two, two, three, three, factory, factory,
		{data, app("ota_0", 0x10, 0), app("ota_2", 0x12, 2)},                       // a gap
		{data, app("ota_0", 0x10, 0)},                                              // alone
		{data, app("factory", 0, 0), app("test", 0x20, 1)},                         // no slots
		{app("ota_0", 0x10, 0), app("ota_1", 0x11, 1)},                             // no records
		{data, app("ota_1", 0x11, 1), app("ota_0", 0x10, 0), app("test", 0x20, 3)}, // out of order
	}
}

// images are what slots hold: two plain, one without a name of its own, one of a higher secure version, three that carry a
// set of trusted keys or one that cannot be read, one that is signed.
func images(t testing.TB) [][]byte {
	t.Helper()
	var all [][]byte
	unreadable := keySet(t, 1)
	unreadable[8] = 2
	for _, opt := range []appimage.BuildOptions{{Version: "1.0.0"}, {Version: "v1.1.0"}, {Version: "1"}, {Version: "2.0.0", SecureVersion: 2}, {Version: "1.2.0", SecureVersion: 1},
		{Version: "1.0.0", Extra: keySet(t, 1)}, {Version: "1.1.0", Extra: keySet(t, 2)}, {Version: "1.1.0", Extra: unreadable}} {
		opt.Chip, opt.Project = appimage.ESP32, "monitor"
		b, err := appimage.Build(opt)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b)
	}
	signed := append([]byte(nil), all[0]...)
	for len(signed)%norflash.SectorSize != 0 {
		signed = append(signed, 0xFF)
	}
	block := make([]byte, norflash.SectorSize)
	block[0] = 0xE7
	binary.LittleEndian.PutUint32(block[1196:], crc32.ChecksumIEEE(block[:1196]))
	return append(all, append(signed, block...))
}

// keySet is a set of one trusted key as it stands in an image.
func keySet(t testing.TB, sequence uint32) []byte {
	t.Helper()
	key, err := manifest.NewKey(rand.NewChaCha8([32]byte{byte(sequence)}))
	if err != nil {
		t.Fatal(err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	b := manifest.AppendRoom(nil)
	b[9], b[10] = 1, 1
	binary.LittleEndian.PutUint32(b[12:], sequence)
	copy(b[16:], point[1:])
	return b
}

// stateMaker makes states of a flash that a board may wake up to, the odd ones more often than life does.
type stateMaker struct {
	*rand.Rand
	images  [][]byte
	layouts []parttable.Table
}

func pick[T any](m *stateMaker, from ...T) T { return from[m.IntN(len(from))] }

// next is a state in which some application partition can run.
func (m *stateMaker) next(t testing.TB) life {
	for {
		l := life{flash: norflash.New(used), table: pick(m, m.layouts...), reset: pick(m, PowerOn, Software, Panic, Watchdog, Brownout)}
		l.rollback, l.anti = m.IntN(8) > 0, m.IntN(8) == 0
		l.rollback = l.rollback || l.anti
		if l.anti {
			l.efuse = uint32(m.IntN(3))
		}
		m.table(t, l)
		var able []parttable.Partition
		for _, p := range l.table {
			if p.Type == parttable.TypeApp && m.slot(t, l, p) {
				able = append(able, p)
			}
		}
		if len(able) == 0 {
			continue
		}
		if data, ok := l.table.OTAData(); ok {
			for i := range 2 {
				m.record(t, l, int64(data.Offset)+int64(i)*otadata.SectorSize)
			}
		}
		l.running = pick(m, able...)
		return l
	}
}

func (m *stateMaker) program(t testing.TB, l life, off int64, b []byte) {
	t.Helper()
	if err := l.flash.Program(off, b); err != nil {
		t.Fatal(err)
	}
}

func (m *stateMaker) table(t testing.TB, l life) {
	t.Helper()
	raw, err := l.table.AppendBinary(nil, true)
	if err != nil {
		t.Fatal(err)
	}
	m.program(t, l, parttable.Offset, raw)
}

// slot fills an application partition, and says whether its image is whole.
func (m *stateMaker) slot(t testing.TB, l life, p parttable.Partition) bool {
	at := int64(p.Offset)
	img := pick(m, m.images...)
	switch m.IntN(8) {
	case 0: // erased
		return false
	case 1: // a tombstone, told or not
		tomb := otaops.Tombstone{SHA256: m.digest(), Cause: string(m.reason())}
		if tomb.Cause == "" {
			tomb.Cause = "of another time"
		}
		b := append([]byte("bmstomb1"), tomb.SHA256[:]...)
		b = append(append(b, tomb.Cause...), make([]byte, 32-len(tomb.Cause))...)
		b = binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
		m.program(t, l, at, m.damaged(append(b, pick[byte](m, 0xFF, 0, 0x7F))))
		return false
	case 2: // damaged in one bit
		img = append([]byte(nil), img...)
		img[m.IntN(300)] ^= 1 << m.IntN(8)
		m.program(t, l, at, img)
		_, err := appimage.Verify(newSection(l.flash, p), appimage.Target{Chip: appimage.ESP32, PartitionSize: int64(p.Size), FlashOffset: at})
		return err == nil
	case 3: // cut short
		m.program(t, l, at, img[:m.IntN(len(img)-16)])
		return false
	}
	m.program(t, l, at, img)
	return true
}

// damaged is b, in one of sixteen cases with a bit flipped.
func (m *stateMaker) damaged(b []byte) []byte {
	if m.IntN(16) == 0 {
		b[m.IntN(len(b))] ^= 1 << m.IntN(8)
	}
	return b
}

func (m *stateMaker) digest() (sum [32]byte) {
	switch m.IntN(4) {
	case 0:
	default:
		sum = digestOf(pick(m, m.images...))
	}
	return sum
}

func (m *stateMaker) reason() protocol.Reason {
	return pick(m, protocol.ReasonOperator, protocol.ReasonOperator, protocol.ReasonCrash, protocol.ReasonPowerLoss, protocol.ReasonCorrupt,
		protocol.ReasonBMSSilent, protocol.ReasonWatchdog, protocol.ReasonOther, "no such reason", protocol.ReasonNone)
}

// record writes one of the two sectors of otadata: a record and a note, both possibly absent or damaged.
func (m *stateMaker) record(t testing.TB, l life, at int64) {
	if m.IntN(8) == 0 {
		return
	}
	seq := pick[uint32](m, 1, 2, 1, 2, 3, 4, 5, 6, 0, 7, otadata.SeqErased, otadata.SeqErased-1, otadata.SeqErased-2, otadata.SeqErased-3)
	r := otadata.NewRecord(seq, pick[otadata.State](m, otadata.Valid, otadata.Valid, otadata.New, otadata.PendingVerify, otadata.PendingVerify,
		otadata.Invalid, otadata.Aborted, otadata.Undefined, 6, 0x80000002))
	switch m.IntN(10) {
	case 0:
		r.CRC ^= 1 << m.IntN(32)
	case 1:
		r.CRC = 0
	case 2:
		r.Label = [20]byte{1, 2, 3}
	}
	m.program(t, l, at, otadata.AppendRecord(nil, r))
	if m.IntN(2) == 0 {
		return
	}
	b := append(appendNote(nil, note{digest: m.digest(), cause: m.reason()}), pick[byte](m, 0xFF, 0xFF, 0, 0xFE), pick[byte](m, 0xFF, 0xFF, 0))
	m.program(t, l, at+noteOffset, m.damaged(b))
}
