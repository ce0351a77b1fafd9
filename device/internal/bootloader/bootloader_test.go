package bootloader_test

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"bmsota/device/internal/bootloader"
	"bmsota/device/internal/norflash"
	"bmsota/esp/appimage"
	"bmsota/esp/otadata"
	"bmsota/esp/parttable"
)

const tableOffset = bootloader.DefaultPartitionTableOffset

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// board is a flash with a partition table and two records.
func board(t testing.TB, size int64, table parttable.Table, recs [2][]byte) *norflash.Flash {
	t.Helper()
	f := norflash.New(size)
	raw, err := table.AppendBinary(nil, true)
	must(t, err)
	must(t, f.Program(tableOffset, raw))
	if p, ok := table.OTAData(); ok {
		for i, rec := range recs {
			must(t, f.Program(int64(p.Offset)+int64(i)*otadata.SectorSize, rec))
		}
	}
	return f
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	must(t, err)
	return b
}

func record(seq uint32, st otadata.State) []byte {
	return otadata.AppendRecord(nil, otadata.NewRecord(seq, st))
}

var blank = otadata.AppendRecord(nil, otadata.ErasedRecord())

func readRecord(t testing.TB, f *norflash.Flash, off int64) string {
	t.Helper()
	b := make([]byte, otadata.RecordSize)
	_, err := f.ReadAt(b, off)
	must(t, err)
	return hex.EncodeToString(b)
}

func TestEveryDecisionOfTheReferenceIsReproduced(t *testing.T) {
	var v struct {
		Layouts map[string][][5]any
		Cases   []struct {
			Cfg, Layout, E0, E1 string
			Valid               []string
			Efuse               uint32
			Secver              map[string]uint32
			Selected            int
			Booted, Ops         string
			E0After             string `json:"e0_after"`
			E1After             string `json:"e1_after"`
			EfuseAfter          uint32 `json:"efuse_after"`
		}
	}
	raw, err := os.ReadFile("testdata/boot-flow.json")
	must(t, err)
	must(t, json.Unmarshal(raw, &v))
	tables := map[string]parttable.Table{}
	for name, rows := range v.Layouts {
		for _, r := range rows {
			num := func(i int) uint32 { return uint32(r[i].(float64)) }
			tables[name] = append(tables[name], parttable.Partition{Type: uint8(num(0)), Subtype: uint8(num(1)),
				Offset: num(2), Size: num(3), Name: r[4].(string)})
		}
	}
	names := map[int]string{-1: "factory", -2: "test", 0: "ota_0", 1: "ota_1", 2: "ota_2"}
	ran := map[string]int{}
	for n, c := range v.Cases {
		table := tables[c.Layout]
		f := board(t, 1<<20, table, [2][]byte{unhex(t, c.E0), unhex(t, c.E1)})
		for slot, version := range c.Secver {
			p, ok := table.Find(slot)
			if !ok {
				t.Fatalf("case %d: no %s", n, slot)
			}
			desc, err := appimage.AppendDesc(nil, &appimage.Desc{SecureVersion: version})
			must(t, err)
			must(t, f.Program(int64(p.Offset)+appimage.DescOffset, desc))
		}
		var ops []string
		f.OnOp(func(op norflash.Op) { ops = append(ops, op.Kind.String()) })
		efuse := c.Efuse
		res, err := bootloader.Boot(f, bootloader.Config{
			Rollback: c.Cfg == "rb", AntiRollback: c.Cfg == "arb", Efuse: &efuse,
			Verify: func(p parttable.Partition) error {
				if !slices.Contains(c.Valid, p.Name) {
					return errors.New("not an image")
				}
				return nil
			},
		})
		must(t, err)
		want := c.Booted
		if want == "reset" {
			want = "none"
		}
		off, _ := table.OTAData()
		e0, e1 := readRecord(t, f, int64(off.Offset)), readRecord(t, f, int64(off.Offset)+otadata.SectorSize)
		if res.Selected != names[c.Selected] || res.Booted != want || strings.Join(res.Operations, ",") != c.Ops ||
			e0 != c.E0After || e1 != c.E1After || efuse != c.EfuseAfter || res.Efuse != efuse {
			t.Errorf("case %d (%s %s %s %s valid %v efuse %d %v):\n got %s %s %v %s %s %d\nwant %s %s %s %s %s %d", n, c.Cfg, c.Layout, c.E0, c.E1, c.Valid, c.Efuse, c.Secver,
				res.Selected, res.Booted, res.Operations, e0, e1, efuse, names[c.Selected], want, c.Ops, c.E0After, c.E1After, c.EfuseAfter)
		}
		if len(ops) != len(res.Operations) {
			t.Errorf("case %d: the chip saw %d operations, the result names %d", n, len(ops), len(res.Operations))
		}
		if got := [2]string{hex.EncodeToString(otadata.AppendRecord(nil, res.Records[0])), hex.EncodeToString(otadata.AppendRecord(nil, res.Records[1]))}; got != [2]string{e0, e1} {
			t.Errorf("case %d: the result's records differ from the flash: %v", n, got)
		}
		ran[c.Cfg]++
	}
	if ran["plain"] != 269 || ran["rb"] != 279 || ran["arb"] != 56 || len(v.Cases) != 604 {
		t.Errorf("ran %v, want plain 269, rb 279, arb 56", ran)
	}
}

var twoSlots = parttable.Table{
	{Name: "otadata", Type: parttable.TypeData, Subtype: parttable.SubtypeOTAData, Offset: 0x10000, Size: 0x2000},
	{Name: "ota_0", Type: parttable.TypeApp, Subtype: parttable.SubtypeOTA0, Offset: 0x20000, Size: 0x180000},
	{Name: "ota_1", Type: parttable.TypeApp, Subtype: parttable.SubtypeOTA0 + 1, Offset: 0x1A0000, Size: 0x180000},
}

func image(t testing.TB, opt appimage.BuildOptions) []byte {
	t.Helper()
	b, err := appimage.Build(opt)
	must(t, err)
	return b
}

func TestRealImagesBootFallBackAndAreRolledBack(t *testing.T) {
	f := board(t, 4<<20, twoSlots, [2][]byte{record(1, otadata.Valid), record(2, otadata.New)})
	must(t, f.Program(0x20000, image(t, appimage.BuildOptions{Project: "p", Version: "1.0.0", Size: 64 << 10})))
	must(t, f.Program(0x1A0000, image(t, appimage.BuildOptions{Project: "p", Version: "2.0.0", Size: 64 << 10})))
	boot := func(f *norflash.Flash) bootloader.Result {
		res, err := bootloader.Boot(f, bootloader.Config{Rollback: true})
		must(t, err)
		return res
	}
	damaged := f.Clone()
	must(t, damaged.Program(0x1A0000+0x300, []byte{0, 0}))

	first := boot(f)
	if first.Booted != "ota_1" || first.Image == nil || first.Image.Desc.Version != "2.0.0" || first.Partition.Name != "ota_1" || first.Records[1].State != otadata.PendingVerify {
		t.Errorf("first boot: %+v", first)
	}
	if second := boot(f); second.Booted != "ota_0" || second.Image.Desc.Version != "1.0.0" || second.Records[1].State != otadata.Aborted {
		t.Errorf("a boot that was not confirmed: %+v", second)
	}
	// The record of a damaged slot goes on trial although its image never runs.
	if fell := boot(damaged); fell.Selected != "ota_1" || fell.Booted != "ota_0" || fell.Records[1].State != otadata.PendingVerify {
		t.Errorf("damaged slot: %+v", fell)
	}
	other := f.Clone()
	if res, err := bootloader.Boot(other, bootloader.Config{Rollback: true, Chip: mustChip(t, "esp32c3")}); err != nil || res.Booted != "none" || res.Image != nil || res.Partition.Size != 0 {
		t.Errorf("images of another chip: %+v, %v", res, err)
	}
}

func mustChip(t testing.TB, name string) appimage.ChipID {
	t.Helper()
	c, err := appimage.ParseChip(name)
	must(t, err)
	return c
}

func TestSecureVersionOfRealImages(t *testing.T) {
	f := board(t, 4<<20, twoSlots, [2][]byte{record(1, otadata.Valid), record(2, otadata.Valid)})
	must(t, f.Program(0x20000, image(t, appimage.BuildOptions{Version: "1.0.0", SecureVersion: 1})))
	must(t, f.Program(0x1A0000, image(t, appimage.BuildOptions{Version: "2.0.0", SecureVersion: 5})))
	for _, c := range []struct {
		efuse  uint32
		bits   int
		booted string
		after  uint32
	}{
		{0, 0, "ota_1", 5},
		{0, 4, "ota_1", 0}, // the field cannot hold 5
		{6, 0, "none", 6},
		{5, 0, "ota_1", 5},
	} {
		efuse := c.efuse
		res, err := bootloader.Boot(f.Clone(), bootloader.Config{AntiRollback: true, Efuse: &efuse, EfuseBits: c.bits})
		must(t, err)
		if res.Booted != c.booted || efuse != c.after {
			t.Errorf("efuse %d, %d bits: booted %s, efuse %d; want %s, %d", c.efuse, c.bits, res.Booted, efuse, c.booted, c.after)
		}
	}
	if _, err := bootloader.Boot(f, bootloader.Config{AntiRollback: true}); err == nil {
		t.Error("anti-rollback without an eFuse value is accepted")
	}
}

func TestSecureVersionBits(t *testing.T) {
	for name, want := range map[string]int{"esp32": 32, "esp32c2": 4, "esp32c5": 9, "esp32c3": 16, "esp32s3": 16} {
		if got := bootloader.SecureVersionBits(mustChip(t, name)); got != want {
			t.Errorf("%s: %d bits, want %d", name, got, want)
		}
	}
}

func TestOddTables(t *testing.T) {
	valid := func(parttable.Partition) error { return nil }
	factory := parttable.Partition{Name: "factory", Type: parttable.TypeApp, Subtype: parttable.SubtypeFactory, Offset: 0x20000, Size: 0x10000}
	slot := func(n uint8) parttable.Partition {
		return parttable.Partition{Name: "app", Type: parttable.TypeApp, Subtype: parttable.SubtypeOTA0 + n, Offset: 0x20000, Size: 0x10000}
	}
	data := func(size uint32) parttable.Partition {
		return parttable.Partition{Name: "otadata", Type: parttable.TypeData, Offset: 0x10000, Size: size}
	}
	for _, c := range []struct {
		name             string
		table            parttable.Table
		selected, booted string
		ops              int
	}{
		{"no otadata", parttable.Table{slot(0)}, "factory", "ota_0", 0},
		{"otadata too small", parttable.Table{data(0x1000), slot(0)}, "none", "none", 0},
		{"otadata too large", parttable.Table{data(0x4000), slot(0)}, "ota_0", "ota_0", 2},
		{"factory only", parttable.Table{data(0x2000), factory}, "factory", "factory", 0},
		{"no app at all", parttable.Table{data(0x2000)}, "ota_0", "none", 0},
		{"sixteenth slot alone", parttable.Table{data(0x2000), slot(15)}, "ota_0", "none", 0},
	} {
		for _, arb := range []bool{false, true} {
			var efuse uint32
			f := board(t, 1<<20, c.table, [2][]byte{blank, blank})
			desc, err := appimage.AppendDesc(nil, &appimage.Desc{})
			must(t, err)
			must(t, f.Program(0x20000+appimage.DescOffset, desc))
			res, err := bootloader.Boot(f, bootloader.Config{AntiRollback: arb, Efuse: &efuse, Verify: valid})
			selected := c.selected
			if arb && selected == "ota_0" {
				selected = "factory" // anti-rollback starts its walk there
			}
			if err != nil || res.Selected != selected || res.Booted != c.booted || len(res.Operations) != c.ops {
				t.Errorf("%s, anti-rollback %v: %+v, %v", c.name, arb, res, err)
			}
		}
	}
}

func TestUnreadableTableIsAnError(t *testing.T) {
	empty := norflash.New(1 << 20)
	if _, err := bootloader.Boot(empty, bootloader.Config{}); err == nil || !strings.Contains(err.Error(), "partition table at 0x8000") {
		t.Errorf("erased flash: %v", err)
	}
	if _, err := bootloader.Boot(empty, bootloader.Config{PartitionTableOffset: 1 << 20}); err == nil {
		t.Error("a table behind the end of the chip is accepted")
	}
	beyond := slices.Clone(twoSlots)
	if _, err := bootloader.Boot(board(t, 1<<20, beyond, [2][]byte{blank, blank}), bootloader.Config{}); err == nil {
		t.Error("a partition behind the end of the chip is accepted")
	}
}

// A cut in the bootloader's own writes is an error of that boot; the next one
// ends where the real one would: the confirmed image.
func TestPowerCutInTheDecisionIsAnErrorAndTheNextBootDecidesAgain(t *testing.T) {
	states := []otadata.State{otadata.New, otadata.PendingVerify, otadata.Valid}
	cuts := 0
	for _, st := range states {
		base := board(t, 4<<20, twoSlots, [2][]byte{record(1, otadata.Valid), record(2, st)})
		cfg := bootloader.Config{Rollback: true, Verify: func(p parttable.Partition) error { return nil }}
		whole := base.Clone()
		if _, err := bootloader.Boot(whole, cfg); err != nil {
			t.Fatal(err)
		}
		for n := 1; n <= whole.Ops(); n++ {
			for _, how := range []norflash.Cut{norflash.Before, norflash.Torn(uint64(n)), norflash.Torn(uint64(n) + 100), norflash.After} {
				f := base.Clone()
				f.CutAt(n, how)
				if _, err := bootloader.Boot(f, cfg); !errors.Is(err, norflash.ErrPowerCut) {
					t.Fatalf("%s, cut %d: %v", st, n, err)
				}
				f.PowerOn()
				res, err := bootloader.Boot(f, cfg)
				if err != nil || res.Booted == "none" {
					t.Errorf("%s, cut %d: %+v, %v", st, n, res, err)
				}
				cuts++
			}
		}
	}
	if cuts != 16 {
		t.Errorf("ran %d cuts, want 16", cuts)
	}
	f := board(t, 4<<20, twoSlots, [2][]byte{record(1, otadata.Valid), blank})
	f.CutAt(1, norflash.Before)
	_ = f.Erase(0, 4096)
	if _, err := bootloader.Boot(f, bootloader.Config{}); !errors.Is(err, norflash.ErrPowerCut) {
		t.Errorf("a boot without power: %v", err)
	}
}

type failingReads struct {
	*norflash.Flash
	from int64
}

func (f failingReads) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.from {
		return 0, errors.New("bus error")
	}
	return f.Flash.ReadAt(p, off)
}

func TestReadErrorIsNotABadImage(t *testing.T) {
	f := board(t, 4<<20, twoSlots, [2][]byte{record(1, otadata.Valid), blank})
	must(t, f.Program(0x20000, image(t, appimage.BuildOptions{Size: 64 << 10})))
	if res, err := bootloader.Boot(failingReads{f, 0x28000}, bootloader.Config{}); err == nil {
		t.Errorf("a slot that cannot be read: %+v", res)
	}
}

func FuzzDecisionNeverPanicsOnRecords(f *testing.F) {
	f.Add(record(1, otadata.Valid), record(2, otadata.New), uint8(3), uint8(1))
	f.Add(blank, record(0, otadata.Undefined), uint8(2), uint8(2))
	f.Add(record(0xFFFFFFFF, 0), record(0xFFFFFFFE, 1), uint8(0), uint8(0))
	boards := map[int]*norflash.Flash{}
	for n := range 4 {
		table := parttable.Table{{Name: "otadata", Type: parttable.TypeData, Offset: 0x10000, Size: 0x2000}}
		for i := range n {
			table = append(table, parttable.Partition{Name: indexed[i], Type: parttable.TypeApp, Subtype: parttable.SubtypeOTA0 + uint8(i), Offset: uint32(0x20000 + i*0x10000), Size: 0x10000})
		}
		boards[n] = board(f, 1<<20, table, [2][]byte{blank, blank})
	}
	f.Fuzz(func(t *testing.T, e0, e1 []byte, verifies, mode uint8) {
		if len(e0) != 32 || len(e1) != 32 {
			return
		}
		n := int(verifies>>4) % 4
		flash := boards[n].Clone()
		must(t, flash.Program(0x10000, e0))
		must(t, flash.Program(0x11000, e1))
		var efuse uint32
		anyValid := false
		cfg := bootloader.Config{Rollback: mode&1 != 0, AntiRollback: mode&2 != 0, Efuse: &efuse,
			Verify: func(p parttable.Partition) error {
				if verifies>>(p.Subtype&0x0F)&1 == 0 {
					return errors.New("not an image")
				}
				return nil
			}}
		for i := range n {
			anyValid = anyValid || verifies>>i&1 != 0
		}
		res, err := bootloader.Boot(flash, cfg)
		must(t, err)
		if !cfg.AntiRollback && (res.Booted != "none") != anyValid {
			t.Fatalf("%d slots, verifying %b: booted %s", n, verifies&0x0F, res.Booted)
		}
		if len(res.Operations) > 8 {
			t.Fatalf("%d operations in one boot", len(res.Operations))
		}
	})
}

var indexed = []string{"ota_0", "ota_1", "ota_2", "ota_3"}

func BenchmarkBoot(b *testing.B) {
	f := board(b, 4<<20, twoSlots, [2][]byte{record(1, otadata.Valid), blank})
	const size = 1536 << 10
	must(b, f.Program(0x20000, image(b, appimage.BuildOptions{Project: "p", Version: "1.0.0", Size: size})))
	b.SetBytes(size)
	for b.Loop() {
		if res, err := bootloader.Boot(f, bootloader.Config{Rollback: true}); err != nil || res.Booted != "ota_0" {
			b.Fatal(res, err)
		}
	}
}

func BenchmarkDecisionOnly(b *testing.B) {
	f := board(b, 4<<20, twoSlots, [2][]byte{record(1, otadata.Valid), blank})
	cfg := bootloader.Config{Rollback: true, Verify: func(parttable.Partition) error { return nil }}
	for b.Loop() {
		if res, err := bootloader.Boot(f, cfg); err != nil || res.Booted != "ota_0" {
			b.Fatal(res, err)
		}
	}
}
