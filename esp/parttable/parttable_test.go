package parttable

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func app(name string, subtype uint8, offset uint32) Partition {
	return Partition{Name: name, Type: TypeApp, Subtype: subtype, Offset: offset, Size: 0x10000}
}

func mustBinary(t testing.TB, table Table, md5 bool) []byte {
	t.Helper()
	b, err := table.AppendBinary(nil, md5)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBootloaderAndAppCountSlotsDifferently(t *testing.T) {
	empty := app("ota_0", 0x10, 0x10000)
	empty.Size = 0
	for _, c := range []struct {
		name  string
		table Table
		app   string // names of Slots
		count int
		boot  string // names by number, - for none
	}{
		{"two slots", Default(), "ota_0 ota_1", 2, "ota_0 ota_1"},
		{"no slot", Table{app("factory", 0, 0x10000)}, "", 0, ""},
		{"gap: ota_2 counts but is out of reach", Table{app("a", 0x10, 0), app("c", 0x12, 0x20000)}, "a", 2, "a -"},
		{"first slot missing", Table{app("b", 0x11, 0)}, "", 1, "-"},
		{"duplicate: first for the app, last for the bootloader", Table{app("a", 0x10, 0), app("b", 0x10, 0x10000)}, "a", 2, "b -"},
		{"rows out of order", Table{app("b", 0x11, 0), app("a", 0x10, 0x10000)}, "a b", 2, "a b"},
		{"size zero", Table{empty}, "ota_0", 1, "-"},
		{"more rows than numbers", slices.Repeat(Table{app("a", 0x10, 0)}, 20), "a", 20, "a" + strings.Repeat(" -", 19)},
		{"data with the same number", Table{{Name: "d", Type: TypeData, Subtype: 0x10}}, "", 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var names []string
			for _, p := range c.table.Slots() {
				names = append(names, p.Name)
			}
			if got := strings.Join(names, " "); got != c.app {
				t.Errorf("app: got %q, want %q", got, c.app)
			}
			count, slot := c.table.BootSlots()
			names = nil
			for i := range count {
				p, ok := slot(i)
				if !ok {
					p.Name = "-"
				}
				names = append(names, p.Name)
			}
			if got := strings.Join(names, " "); got != c.boot || count != c.count {
				t.Errorf("bootloader: got %d %q, want %d %q", count, got, c.count, c.boot)
			}
			for _, i := range []int{-1, count, 1 << 40} {
				if p, ok := slot(i); ok {
					t.Errorf("slot %d of %d: %+v", i, count, p)
				}
			}
		})
	}
}

func TestLookups(t *testing.T) {
	table := append(Default(), app("f1", 0, 0x400000), app("f2", 0, 0x410000), app("t", SubtypeTest, 0x420000))
	for what, get := range map[string]func() (Partition, bool){
		"otadata": table.OTAData, "f2": table.Factory, "t": table.Test,
		"storage": func() (Partition, bool) { return table.Find("storage") },
	} {
		if p, ok := get(); !ok || p.Name != what {
			t.Errorf("%s: got %+v, %t", what, p, ok)
		}
	}
	var none Table
	for i, get := range []func() (Partition, bool){none.OTAData, none.Factory, none.Test, func() (Partition, bool) { return Default().Find("nothing") }} {
		if p, ok := get(); ok {
			t.Errorf("%d: found %+v", i, p)
		}
	}
}

func TestNamesAreKeywordsOrNumbers(t *testing.T) {
	for _, c := range []struct {
		typ, subtype uint8
		want         string
	}{
		{0, 0, "app factory"}, {0, 0x1F, "app ota_15"}, {0, 0x31, "app tee_1"}, {0, 0x21, "app 33"},
		{1, 0, "data ota"}, {1, 0x90, "data tee_ota"}, {1, 7, "data 7"},
		{2, 2, "bootloader recovery"}, {3, 1, "partition_table ota"}, {3, 2, "partition_table 2"},
		{0x40, 0, "64 0"}, {0xFE, 0xFF, "254 255"},
	} {
		p := Partition{Type: c.typ, Subtype: c.subtype}
		if got := p.TypeName() + " " + p.SubtypeName(); got != c.want {
			t.Errorf("%#x/%#x: got %q, want %q", c.typ, c.subtype, got, c.want)
		}
	}
}

// rows cuts a binary table into rows, to be put together anew.
func rows(b []byte) [][]byte { return slices.Collect(slices.Chunk(b, RowSize)) }

func TestBinaryReadersAgreeWhereTheirOriginalsDo(t *testing.T) {
	table := Table{app("ota_0", 0x10, 0x10000), app("ota_1", 0x11, 0x20000)}
	full := rows(mustBinary(t, table, true)) // two rows, MD5, end
	end := full[3]
	join := func(rows ...[]byte) []byte { return bytes.Join(rows, nil) }
	edit := func(row []byte, at int, with ...byte) []byte {
		row = slices.Clone(row)
		copy(row[at:], with)
		return row
	}
	withMD5 := func(rows ...[]byte) []byte { return appendMD5(join(rows...), join(rows...)) }

	for _, c := range []struct {
		name         string
		in           []byte
		binary, boot string // the field at fault, or the names read
	}{
		{"as written", join(full...), "ota_0 ota_1", "ota_0 ota_1"},
		{"no MD5 row", join(full[0], full[1], end), "ota_0 ota_1", "ota_0 ota_1"},
		{"wrong MD5", join(full[0], full[1], edit(full[2], 31, full[2][31]+1), end), "!md5", "!md5"},
		{"row changed under the MD5", join(edit(full[0], 4, 1), full[1], full[2], end), "!md5", "!md5"},
		{"two MD5 rows", join(full[0], full[1], full[2], full[2], end), "!md5", "!md5"},
		// The bootloader walks over the MD5 row and stops one row too early.
		{"row behind the MD5 row", join(withMD5(full[0]), full[1], end), "!magic", "ota_0"},
		{"no end", join(full[0], full[1], full[2]), "!end", "!length"},
		{"no end in 96 rows", bytes.Repeat(full[0], 97), "!length", "!end"},
		{"95 rows and the end", join(bytes.Repeat(full[0], 95), end), strings.TrimSpace(strings.Repeat("ota_0 ", 95)), strings.TrimSpace(strings.Repeat("ota_0 ", 95))},
		{"96 rows and the end", join(bytes.Repeat(full[0], 96), end), "!length", "!end"},
		{"half a row", join(full[0], end[:16]), "!length", "!length"},
		{"nothing", nil, "!end", "!length"},
		{"erased", bytes.Repeat([]byte{0xFF}, BinarySize), "", "!magic"},
		{"only the MD5 row", join(withMD5(), end), "", ""},
		{"foreign magic", join(full[0], edit(full[1], 0, 'P', 'K'), end), "!magic", "!magic"},
		// Four bytes of FF end the table for the bootloader; the generator wants a whole row.
		{"end with something behind it", join(full[0], full[1], edit(end, 8, 0)), "!magic", "ota_0 ota_1"},
		{"label without an end", join(edit(full[0], 12, []byte("0123456789abcdef")...), end), "0123456789abcdef", "0123456789abcdef"},
		{"label that is not UTF-8", join(edit(full[0], 12, 0xC3, 0), end), "!label", "\xc3"},
		{"to the last byte of the chip", join(edit(full[0], 4, 0, 0, 0x3F, 0, 0, 0, 1, 0), end), "ota_0", "ota_0"},
		{"one byte past the chip", join(edit(full[0], 4, 0, 0, 0x3F, 0, 1, 0, 1, 0), end), "ota_0", "!offset"},
		{"starts past the chip", join(edit(full[0], 4, 1, 0, 0x40, 0, 0, 0, 0, 0), end), "ota_0", "!offset"},
		{"wraps past 4 GiB", join(edit(full[0], 4, 0, 0, 1, 0, 0xFF, 0xFF, 0xFF, 0xFF), end), "ota_0", "!offset"},
	} {
		t.Run(c.name, func(t *testing.T) {
			names := func(table Table, err error) string {
				var fault *FormatError
				if errors.As(err, &fault) {
					return "!" + fault.Field
				}
				if err != nil {
					t.Fatalf("untyped error %v", err)
				}
				var names []string
				for _, p := range table {
					names = append(names, p.Name)
				}
				return strings.Join(names, " ")
			}
			if got := names(ParseBinary(c.in)); got != c.binary {
				t.Errorf("ParseBinary: got %q, want %q", got, c.binary)
			}
			if got := names(ParseFlash(c.in, 4<<20)); got != c.boot {
				t.Errorf("ParseFlash: got %q, want %q", got, c.boot)
			}
		})
	}
	if _, err := ParseFlash(join(full...), -1); err == nil {
		t.Error("a chip of negative size holds a partition")
	}
}

func TestUnknownFlagsAndLostLabelBytesAreTold(t *testing.T) {
	p := app("a", 0x10, 0x10000)
	p.Encrypted, p.ReadOnly, p.OtherFlags = true, true, 0x80000004
	b := mustBinary(t, Table{p}, true)
	d, err := DecodeBinary(b)
	if err != nil || len(d.Table) != 1 || d.Table[0] != p {
		t.Fatalf("got %+v, %v", d, err)
	}
	if len(d.Warnings) != 1 || !strings.Contains(d.Warnings[0].String(), "0x80000004") {
		t.Errorf("warnings %v", d.Warnings)
	}
	if again := mustBinary(t, d.Table, true); !bytes.Equal(again, b) {
		t.Error("flags were lost")
	}

	b = mustBinary(t, Table{app("a", 0x10, 0x10000)}, false)
	b[12+5] = 'x'
	if d, err = DecodeBinary(b); err != nil || d.Table[0].Name != "a" || len(d.Warnings) != 1 {
		t.Errorf("got %+v, %v", d, err)
	}
}

func TestAppendBinaryRefusesWhatDoesNotFit(t *testing.T) {
	for _, c := range []struct {
		rows int
		md5  bool
		ok   bool
	}{{MaxRowsMD5, true, true}, {MaxRowsMD5 + 1, true, false}, {MaxRows, false, true}, {MaxRows + 1, false, false}, {0, true, true}} {
		b, err := make(Table, c.rows).AppendBinary([]byte("kept"), c.md5)
		if (err == nil) != c.ok || c.ok && len(b) != 4+BinarySize || !c.ok && string(b) != "kept" {
			t.Errorf("%+v: %d bytes, %v", c, len(b), err)
		}
	}
	for name, ok := range map[string]bool{"0123456789abcdef": true, "0123456789abcdefg": false, "a\x00b": false, "": true} {
		if _, err := (Table{{Name: name}}).AppendBinary(nil, true); (err == nil) != ok {
			t.Errorf("label %q: %v", name, err)
		}
	}
	if MaxRowsMD5 != 94 || MaxRows != 95 {
		t.Errorf("limits are %d and %d", MaxRowsMD5, MaxRows)
	}
}

func TestIsBinaryTellsTheFormsApart(t *testing.T) {
	bin, text := readVector(t, "partitions.bin"), readVector(t, "partitions.csv")
	for _, c := range []struct {
		in   []byte
		want bool
	}{
		{bin, true}, {mustBinary(t, nil, true), true}, {mustBinary(t, nil, false), true},
		{text, false}, {nil, false}, {append([]byte{0xFF, 0xFE}, bytes.Repeat([]byte{'a', 0}, 20)...), false},
	} {
		if got := IsBinary(c.in); got != c.want {
			t.Errorf("%.8x: got %t", c.in, got)
		}
	}
}

func FuzzBinary(f *testing.F) {
	f.Add(readVector(f, "partitions.bin"))
	f.Add(readVector(f, "partitions-nomd5.bin"))
	f.Add(readVector(f, "partitions.bin")[:256])
	f.Add(mustBinary(f, Table{{Name: "x", OtherFlags: 8}}, true)[:96])
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, table := range parseBoth(in) {
			if len(table) > BinarySize/RowSize {
				t.Fatalf("%d rows", len(table))
			}
			table.Slots()
			table.AppendCSV(nil)
			_, _ = table.Check(CSVOptions{FlashSize: 4 << 20})
		}
		d, err := DecodeBinary(in)
		if err != nil {
			return
		}
		out, err := d.Table.AppendBinary(nil, d.HasMD5)
		if len(d.Table) == MaxRows && d.HasMD5 {
			if err == nil {
				t.Fatal("95 rows and the MD5 row were written")
			}
			return
		}
		if err != nil {
			t.Fatalf("cannot write what was read: %v", err)
		}
		again, err := DecodeBinary(out)
		if err != nil || !slices.Equal(again.Table, d.Table) || again.HasMD5 != d.HasMD5 {
			t.Fatalf("read back %+v, %v; want %+v", again, err, d)
		}
		for _, w := range d.Warnings {
			if !strings.Contains(w.Message, "unknown flags") {
				return // bytes without a meaning were dropped, and that was said
			}
		}
		used := len(d.Table) * RowSize
		if d.HasMD5 {
			used += RowSize
		}
		if !bytes.Equal(out[:used], in[:used]) || !isFilled(out[used:]) || len(out) != BinarySize {
			t.Fatalf("got\n%x\nwant\n%x and FF", out, in[:used])
		}
	})
}

func parseBoth(in []byte) []Table {
	var tables []Table
	if table, err := ParseBinary(in); err == nil {
		tables = append(tables, table)
	}
	if table, err := ParseFlash(in, 16<<20); err == nil {
		tables = append(tables, table)
	}
	return tables
}

func Example() {
	table, err := ParseCSV([]byte("nvs,data,nvs,,24K\notadata,data,ota,,8K\nota_0,app,ota_0,,1M\nota_1,app,ota_1,,1M\n"), CSVOptions{MD5: true, FlashSize: 4 << 20})
	if err != nil {
		fmt.Println(err)
		return
	}
	bin, err := table.AppendBinary(nil, true)
	fmt.Println(len(bin), err)
	fmt.Print(string(table.AppendCSV(nil)))
	// Output:
	// 3072 <nil>
	// # ESP-IDF Partition Table
	// # Name, Type, SubType, Offset, Size, Flags
	// nvs,data,nvs,0x9000,24K,
	// otadata,data,ota,0xf000,8K,
	// ota_0,app,ota_0,0x20000,1M,
	// ota_1,app,ota_1,0x120000,1M,
}

func TestDefaultPassesItsOwnRules(t *testing.T) {
	warnings, err := Default().Check(CSVOptions{FlashSize: 4 << 20, MD5: true, Secure: SecureV1})
	if err != nil || len(warnings) > 0 {
		t.Errorf("%v, %v", warnings, err)
	}
	if _, err := Default().Check(CSVOptions{FlashSize: 2 << 20}); err == nil {
		t.Error("fits in 2 MiB")
	}
	if a, b := Default(), Default(); !reflect.DeepEqual(a, b) || &a[0] == &b[0] {
		t.Error("callers share one table")
	}
}

func BenchmarkParseBinary(b *testing.B) {
	in := readVector(b, "partitions.bin")
	for b.Loop() {
		if _, err := ParseBinary(in); err != nil {
			b.Fatal(err)
		}
	}
}

func TestWhatABoardWithoutRecordsStarts(t *testing.T) {
	factory := Partition{Name: "factory", Type: TypeApp, Subtype: SubtypeFactory, Offset: 0x400000, Size: 0x100000}
	for name, c := range map[string]struct {
		table Table
		want  string
	}{
		"the first slot":                  {Default(), "ota_0"},
		"the factory application":         {append(Default(), factory), "factory"},
		"nothing without either":          {Default()[4:], ""},
		"the first by number, not by row": {Table{Default()[4], Default()[3]}, "ota_0"},
	} {
		if p, ok := c.table.Blank(); p.Name != c.want || ok != (c.want != "") {
			t.Errorf("%s: %q, %v", name, p.Name, ok)
		}
	}
	if p, ok := Default().Storage(); !ok || p.Name != "storage" {
		t.Errorf("storage is %q, %v", p.Name, ok)
	}
	if p, ok := Default()[:5].Storage(); ok {
		t.Errorf("storage of a table without one is %q", p.Name)
	}
}
