package otaops_test

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"bmsota/device/internal/norflash"
	"bmsota/device/internal/otaops"
	"bmsota/esp/appimage"
	"bmsota/esp/otadata"
	"bmsota/esp/parttable"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	must(t, err)
	return b
}

// logged writes down accesses as the reference does: one line a call.
type logged struct {
	*norflash.Flash
	ops []string
}

func (l *logged) Program(off int64, p []byte) error {
	l.ops = append(l.ops, fmt.Sprintf("write:%x:%x", off, len(p)))
	return l.Flash.Program(off, p)
}

func (l *logged) Erase(off, n int64) error {
	l.ops = append(l.ops, fmt.Sprintf("erase:%x:%x", off, n))
	return l.Flash.Erase(off, n)
}

func app(name string, subtype uint8, off, size uint32) parttable.Partition {
	return parttable.Partition{Name: name, Type: parttable.TypeApp, Subtype: subtype, Offset: off, Size: size}
}

var data = parttable.Partition{Name: "otadata", Type: parttable.TypeData, Subtype: parttable.SubtypeOTAData, Offset: 0xd000, Size: 0x2000}

var layouts = map[string]parttable.Table{
	"two":   {data, app("ota_0", 0x10, 0x10000, 0x10000), app("ota_1", 0x11, 0x20000, 0x10000)},
	"fact":  {data, app("factory", 0x00, 0x10000, 0x10000), app("ota_0", 0x10, 0x20000, 0x10000), app("ota_1", 0x11, 0x30000, 0x10000)},
	"three": {data, app("ota_0", 0x10, 0x10000, 0x10000), app("ota_1", 0x11, 0x20000, 0x10000), app("ota_2", 0x12, 0x30000, 0x10000)},
}

func find(t testing.TB, table parttable.Table, name string) parttable.Partition {
	t.Helper()
	p, ok := table.Find(name)
	if !ok {
		t.Fatalf("no partition %q", name)
	}
	return p
}

// startsLikeAnImage is the reference's stand-in for verification.
func startsLikeAnImage(f *norflash.Flash) func(parttable.Partition) error {
	return func(p parttable.Partition) error {
		b := make([]byte, 1)
		if _, err := f.ReadAt(b, int64(p.Offset)); err != nil {
			return err
		}
		if b[0] != 0xE9 {
			return errors.New("not an image")
		}
		return nil
	}
}

func code(t testing.TB, err error) any {
	t.Helper()
	if err == nil {
		return float64(0)
	}
	var c otaops.Code
	if !errors.As(err, &c) {
		t.Fatalf("an error without a code: %v", err)
	}
	return float64(c)
}

func name(p parttable.Partition, ok bool) any {
	if !ok {
		return nil
	}
	return p.Name
}

func TestEveryCallOfTheReferenceIsReproduced(t *testing.T) {
	var v struct {
		Cases []struct {
			Cfg, Layout, E0, E1 string
			Valid               []string
			Running, Op, Arg    string
			Efuse               uint32
			Secver              map[string]uint32
			Ret                 any
			State               *uint32
			Ops                 string
			E0After             string `json:"e0_after"`
			E1After             string `json:"e1_after"`
			EfuseAfter          uint32 `json:"efuse_after"`
		}
	}
	raw, err := os.ReadFile("testdata/ota-ops.json")
	must(t, err)
	must(t, json.Unmarshal(raw, &v))
	ran := map[string]int{}
	for n, c := range v.Cases {
		table := layouts[c.Layout]
		f := &logged{Flash: norflash.New(1 << 20)}
		must(t, f.Flash.Program(0xd000, unhex(t, c.E0)))
		must(t, f.Flash.Program(0xe000, unhex(t, c.E1)))
		for _, slot := range c.Valid {
			must(t, f.Flash.Program(int64(find(t, table, slot).Offset), []byte{0xE9}))
		}
		for _, p := range table {
			if p.Type == parttable.TypeApp {
				desc, err := appimage.AppendDesc(nil, &appimage.Desc{SecureVersion: c.Secver[p.Name]})
				must(t, err)
				must(t, f.Flash.Program(int64(p.Offset)+appimage.DescOffset, desc))
			}
		}
		efuse := c.Efuse
		o, err := otaops.New(f, table, find(t, table, c.Running), otaops.Config{
			Rollback: c.Cfg == "rb", AntiRollback: c.Cfg == "arb", Efuse: &efuse, Verify: startsLikeAnImage(f.Flash)})
		must(t, err)
		var arg parttable.Partition
		if c.Arg != "" {
			arg = find(t, table, c.Arg)
		}
		begin := func(size uint32) any {
			_, err := o.Begin(arg, size)
			return code(t, err)
		}
		var got any
		var state *uint32
		switch c.Op {
		case "set_boot":
			got = code(t, o.SetBoot(arg))
		case "mark_valid":
			got = code(t, o.MarkValid())
		case "mark_invalid":
			got = code(t, o.MarkInvalid())
		case "erase_last":
			got = code(t, o.EraseLastBootApp())
		case "rollback_possible":
			got, err = o.CheckRollbackPossible()
		case "get_boot":
			p, ok, e := o.BootPartition()
			got, err = name(p, ok), e
		case "next_update":
			got = name(o.NextUpdate())
		case "last_invalid":
			p, ok, e := o.LastInvalid()
			got, err = name(p, ok), e
		case "get_state":
			st, e := o.StatePartition(arg)
			got = code(t, e)
			if e == nil {
				state = (*uint32)(&st)
			}
		case "begin_size":
			got = begin(0x1234)
		case "begin_seq":
			got = begin(otaops.SequentialWrites)
		case "begin_unknown":
			got = begin(otaops.SizeUnknown)
		default:
			t.Fatalf("case %d: unknown call %q", n, c.Op)
		}
		must(t, err)
		var after [2]string
		for i := range after {
			b := make([]byte, otadata.RecordSize)
			_, err := f.ReadAt(b, 0xd000+int64(i)*otadata.SectorSize)
			must(t, err)
			after[i] = hex.EncodeToString(b)
		}
		if got != c.Ret || strings.Join(f.ops, ",") != c.Ops || after != [2]string{c.E0After, c.E1After} || efuse != c.EfuseAfter ||
			(state == nil) != (c.State == nil) || state != nil && *state != *c.State {
			t.Errorf("case %d: %s %s %s(%s) running %s, %s %s valid %v efuse %d %v:\n got %v %v %v %d\nwant %v %v %s %s %d", n, c.Cfg, c.Layout, c.Op, c.Arg, c.Running,
				c.E0, c.E1, c.Valid, c.Efuse, c.Secver, got, f.ops, after, efuse, c.Ret, c.Ops, c.E0After, c.E1After, c.EfuseAfter)
		}
		ran[c.Op]++
	}
	want := map[string]int{"set_boot": 284, "rollback_possible": 211, "get_state": 172, "mark_valid": 142, "begin_size": 131, "begin_seq": 121,
		"get_boot": 119, "erase_last": 117, "last_invalid": 109, "mark_invalid": 107, "next_update": 6, "begin_unknown": 1}
	if len(v.Cases) != 1520 || fmt.Sprint(ran) != fmt.Sprint(want) {
		t.Errorf("ran %d cases, %v; want 1520, %v", len(v.Cases), ran, want)
	}
}

// fixture is the "two" layout with real images: ota_0 runs.
func fixture(t testing.TB, recs [2]otadata.Record) (*logged, *otaops.Ops, parttable.Partition) {
	t.Helper()
	f := &logged{Flash: norflash.New(1 << 20)}
	must(t, f.Flash.Program(0xd000, otadata.Append(nil, recs)))
	must(t, f.Flash.Program(0x10000, image(t, "1.0.0", 8192)))
	o, err := otaops.New(f, layouts["two"], find(t, layouts["two"], "ota_0"), otaops.Config{Rollback: true})
	must(t, err)
	return f, o, find(t, layouts["two"], "ota_1")
}

func image(t testing.TB, version string, size int64) []byte {
	t.Helper()
	b, err := appimage.Build(appimage.BuildOptions{Project: "p", Version: version, Size: size})
	must(t, err)
	return b
}

var (
	rec    = otadata.NewRecord
	blank  = otadata.ErasedRecord()
	normal = [2]otadata.Record{rec(1, otadata.Valid), blank}
)

func TestSequentialUpdateErasesOneSectorAhead(t *testing.T) {
	f, o, slot := fixture(t, normal)
	must(t, f.Flash.Program(0x20000, make([]byte, 0x4000)))
	img := image(t, "2.0.0", 12288)
	u, err := o.Begin(slot, otaops.SequentialWrites)
	must(t, err)
	for _, n := range []int{1024, 3072, 1, 8191} {
		_, err := u.Write(img[:n])
		must(t, err)
		img = img[n:]
	}
	must(t, u.End())
	must(t, o.SetBoot(slot))
	want := "erase:20000:1000,write:20000:400,write:20400:c00,erase:21000:1000,write:21000:1,erase:22000:1000,write:21001:1fff,erase:e000:1000,write:e000:20"
	if got := strings.Join(f.ops, ","); got != want {
		t.Errorf("operations\n got %s\nwant %s", got, want)
	}
	if u.Written() != 12288 {
		t.Errorf("%d bytes written", u.Written())
	}
	recs, err := o.Records()
	must(t, err)
	if recs[0] != rec(1, otadata.Valid) || recs[1] != rec(2, otadata.New) {
		t.Errorf("records %+v", recs)
	}
}

func TestResumeGoesOnWhereTheSlotHoldsTheImage(t *testing.T) {
	f, o, slot := fixture(t, normal)
	img := image(t, "2.0.0", 12288)
	must(t, f.Flash.Program(0x20000, img[:4096]))
	must(t, f.Flash.Program(0x21000, make([]byte, 4096)))
	u, err := o.Resume(slot, true, 4096)
	must(t, err)
	if len(f.ops) != 0 {
		t.Errorf("resume did %v", f.ops)
	}
	_, err = u.Write(img[4096:])
	must(t, err)
	must(t, u.End())
	for _, off := range []int64{-1, 0x10001} {
		if _, err := o.Resume(slot, true, off); !errors.Is(err, otaops.InvalidArg) {
			t.Errorf("resume at %d: %v", off, err)
		}
	}
}

func TestRefusals(t *testing.T) {
	f, o, slot := fixture(t, normal)
	open := func(size uint32) *otaops.Update {
		u, err := o.Begin(slot, size)
		must(t, err)
		return u
	}
	write := func(u *otaops.Update, b []byte) error { _, err := u.Write(b); return err }
	ended := open(otaops.SequentialWrites)
	_ = ended.End()
	begin := func(p parttable.Partition, size uint32) error { _, err := o.Begin(p, size); return err }
	full := open(otaops.SizeUnknown)
	must(t, write(full, append([]byte{0xE9}, make([]byte, 0xFFFF)...)))
	for _, c := range []struct {
		what string
		err  error
		want otaops.Code
	}{
		{"a partition of another table", begin(app("x", 0x11, 0x30000, 0x1000), 0), otaops.NotFound},
		{"no partition", begin(parttable.Partition{}, 0), otaops.NotFound},
		{"the running slot", begin(o.Running(), 0), otaops.PartitionConflict},
		{"more than the slot", begin(slot, 0x10001), otaops.InvalidSize},
		{"write that is no image", write(open(otaops.SequentialWrites), []byte{0x7F}), otaops.ValidateFailed},
		{"write past the slot, lazily", write(open(otaops.SequentialWrites), append([]byte{0xE9}, make([]byte, 0x10000)...)), otaops.InvalidSize},
		{"write past the slot", write(full, []byte{1}), otaops.InvalidSize},
		{"write after end", write(ended, []byte{0xE9}), otaops.InvalidArg},
		{"end twice", ended.End(), otaops.NotFound},
		{"abort after end", ended.Abort(), otaops.NotFound},
		{"end with nothing written", open(otaops.SequentialWrites).End(), otaops.InvalidArg},
		{"end of a damaged image", full.End(), otaops.ValidateFailed},
		{"boot of a damaged image", o.SetBoot(slot), otaops.ValidateFailed},
		{"switch to factory", o.Switch(app("factory", 0, 0x10000, 0x1000)), otaops.InvalidArg},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", c.what, c.err, c.want)
		}
	}
	if err := write(open(otaops.SequentialWrites), nil); err != nil {
		t.Errorf("an empty write: %v", err)
	}
	if err := open(otaops.SequentialWrites).Abort(); err != nil {
		t.Errorf("abort: %v", err)
	}
	if _, err := otaops.New(f, layouts["two"], data, otaops.Config{}); err == nil {
		t.Error("an application that runs from otadata is accepted")
	}
	if _, err := otaops.New(f, layouts["two"], slot, otaops.Config{AntiRollback: true}); err == nil {
		t.Error("anti-rollback without an eFuse value is accepted")
	}
}

func TestUsedUpSequenceNumbersAreAnError(t *testing.T) {
	_, o, slot := fixture(t, [2]otadata.Record{rec(0xFFFFFFFD, otadata.Valid), blank})
	must(t, o.SetBoot(o.Running()))
	f, o, slot2 := fixture(t, [2]otadata.Record{blank, rec(0xFFFFFFFE, otadata.Valid)})
	must(t, f.Flash.Program(0x20000, image(t, "2.0.0", 8192)))
	if err := o.SetBoot(o.Running()); !errors.Is(err, otaops.SelectInfoInvalid) {
		t.Errorf("%s and %s: %v", slot.Name, slot2.Name, err)
	}
}

func TestWithoutOTADataCallsFailCleanly(t *testing.T) {
	table := layouts["two"][1:]
	f := norflash.New(1 << 20)
	o, err := otaops.New(f, table, table[0], otaops.Config{Rollback: true, Verify: func(parttable.Partition) error { return nil }})
	must(t, err)
	for what, err := range map[string]error{"set boot": o.SetBoot(table[1]), "mark valid": o.MarkValid(), "mark invalid": o.MarkInvalid(), "erase last": o.EraseLastBootApp()} {
		if !errors.Is(err, otaops.NotFound) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if p, ok, err := o.BootPartition(); ok || err != nil {
		t.Errorf("boot partition %v, %v", p, err)
	}
	if ok, err := o.CheckRollbackPossible(); ok || err != nil {
		t.Errorf("rollback possible %v, %v", ok, err)
	}
	if _, err := o.Begin(table[1], 0); err != nil {
		t.Errorf("begin: %v", err)
	}
}

// stuck is a chip whose programs do nothing and say nothing.
type stuck struct{ *norflash.Flash }

func (s stuck) Program(int64, []byte) error { return nil }

func TestARecordThatDidNotTakeIsAnError(t *testing.T) {
	f, _, slot := fixture(t, [2]otadata.Record{rec(1, otadata.Valid), rec(2, otadata.Valid)})
	for what, call := range map[string]func(o *otaops.Ops) error{
		"mark valid": func(o *otaops.Ops) error { return o.SetBoot(o.Running()) },
		"switch":     func(o *otaops.Ops) error { return o.Switch(o.Running()) },
		"repair":     func(o *otaops.Ops) error { _, err := o.RepairRecords(); return err },
		"tombstone":  func(o *otaops.Ops) error { return o.WriteTombstone(slot, [32]byte{1}, "crash") },
	} {
		o, err := otaops.New(stuck{f.Clone()}, layouts["two"], find(t, layouts["two"], "ota_0"), otaops.Config{Rollback: true})
		must(t, err)
		if err := call(o); err == nil || !strings.Contains(err.Error(), "reads back differently") {
			t.Errorf("%s on a stuck chip: %v", what, err)
		}
	}
}

func TestPowerCutIsNotACode(t *testing.T) {
	f, o, slot := fixture(t, normal)
	f.CutAt(1, norflash.Before)
	_, err := o.Begin(slot, 4096)
	var c otaops.Code
	if !errors.Is(err, norflash.ErrPowerCut) || errors.As(err, &c) {
		t.Errorf("begin without power: %v", err)
	}
	if err := o.SetBoot(o.Running()); !errors.Is(err, norflash.ErrPowerCut) {
		t.Errorf("verification without power: %v", err)
	}
}
