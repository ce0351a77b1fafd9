package parttable

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"
)

func at(offset uint32) *uint32 { return &offset }

// The messages of the rules that cases.json has no run for, in the generator's words.
func TestCSVRulesBeyondTheReferenceRuns(t *testing.T) {
	for _, c := range []struct {
		name, csv string
		opt       CSVOptions
		want      string // all lines of the refusal, joined by |; empty for none
	}{
		{"type empty", "a,,nvs,,24K", CSVOptions{}, "Error at line 1: Field 'type' can't be left empty.|" + subtypesHint},
		{"app without subtype", "# c\n\na,app,,,64K", CSVOptions{}, "Error at line 3: App partition cannot have an empty subtype|" + subtypesHint},
		{"unknown type", "a,apk,,,64K", CSVOptions{}, "Error at line 1: Value 'ap' is not valid. Known keywords: bootloader, partition_table, app, data|" + subtypesHint},
		{"custom type wants a number", "a,0x40,nvs,,64K", CSVOptions{}, "Error at line 1: Invalid field value nvs|" + subtypesHint},
		{"secure boot v1 size", "a,app,ota_0,,68K", CSVOptions{Secure: SecureV1}, "Partition a invalid: Size 0x11000 is not aligned to 0x10000"},
		{"secure boot v2 size", "a,app,ota_0,,68K", CSVOptions{Secure: SecureV2}, ""},
		{"otadata readonly", "a,data,ota,,8K,readonly", CSVOptions{}, "Partition a invalid: 'a' partition of type 1 and subtype 0 is always read-write and cannot be read-only"},
		{"small nvs readonly", "a,data,nvs,,4K,readonly", CSVOptions{}, ""},
		{"otadata size", "a,data,ota,,4K", CSVOptions{}, "a,data,ota,0x9000,4K,|otadata partition must have size = 0x2000"},
		{"tee otadata size", "a,data,tee_ota,,4K", CSVOptions{}, "a,data,tee_ota,0x9000,4K,|TEE otadata partition must have size = 0x2000"},
		{"names compared whole", "abcdefghijklmnopq,data,nvs,,24K\nabcdefghijklmnopr,data,nvs,,24K", CSVOptions{}, ""},
		{"three of a name", "b,data,fat,,4K\na,data,fat,,1M\nb,data,fat,,6144", CSVOptions{},
			"A list of partitions that have the same name:|b,data,fat,0x9000,4K,|b,data,fat,0x10a000,6K,|Partition names must be unique"},
		{"table elsewhere", "a,data,nvs,0x9000,24K", CSVOptions{Offset: 0x10000},
			"CSV Error at line 1: Partitions overlap. Partition sets offset 0x9000. But partition table occupies the whole sector 0x10000. Use a free offset 0x11000 or higher."},
		{"end address before the start", "a,0x40,1,0x9000,-0x8000", CSVOptions{}, "Partition a invalid: size -4096 does not fit in the table: 0 to 4294967295"},
		{"more than 64 bits", "a,data,fat,,99999999999999999999", CSVOptions{}, "Error at line 1: Field value 99999999999999999999 is too large|" + subtypesHint},
		{"suffix on suffix", "a,data,fat,,1" + strings.Repeat("m", 100), CSVOptions{}, "Error at line 1: Field value 1 is too large|" + subtypesHint},
		{"zero stays zero", "a,data,fat,,0" + strings.Repeat("m", 100), CSVOptions{}, ""},
		{"past 4 GiB", "a,data,fat,0xFFFFF000,8K\nb,data,fat,,4K", CSVOptions{}, "Partition b invalid: offset 4294971392 does not fit in the table: 0 to 4294967295"},
		{"label cut within a character", "üüüüüüüxü,data,fat,,4K", CSVOptions{}, "Partition üüüüüüüxü invalid: cut to 16 bytes, the label ends within a character"},
		{"bootloader below the table", "b,bootloader,primary,junk,junk\na,data,nvs,,24K", CSVOptions{PrimaryBootloaderOffset: at(0x1000)}, ""},
		{"recovery bootloader", "b,bootloader,recovery,,", CSVOptions{PrimaryBootloaderOffset: at(0x1000)}, "Error at line 1: " + string(noRecoveryOffset) + "|" + subtypesHint},
		{"second bootloader", "b,bootloader,ota,,", CSVOptions{PrimaryBootloaderOffset: at(0)}, ""},
		{"the table itself", "p,partition_table,primary,,\na,data,nvs,,24K", CSVOptions{}, ""},
		{"not UTF-8", "\xff", CSVOptions{}, "the text is not UTF-8"},
		{"94 rows", rowsOf(94), CSVOptions{MD5: true}, ""},
		{"95 rows without MD5", rowsOf(95), CSVOptions{}, ""},
		{"96 rows without MD5", rowsOf(96), CSVOptions{}, "Binary partition table length (3072) longer than max"},
		{"too much text", strings.Repeat("#", MaxCSVSize+1), CSVOptions{}, "1048577 bytes of CSV are more than the 1048576 a table can need"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ParseCSV([]byte(c.csv), c.opt)
			got := ""
			var refusal *CSVError
			if errors.As(err, &refusal) {
				got = strings.Join(refusal.Lines(), "|")
			} else if err != nil {
				t.Fatalf("untyped error %v", err)
			}
			if got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestOverlapIsFoundInBinaryTables(t *testing.T) {
	for _, c := range []struct {
		table Table
		want  string
	}{
		{Table{app("b", 0x11, 0x20000), app("a", 0x10, 0x10000), {Name: "d", Type: TypeData, Offset: 0x2F000, Size: 0x2000}}, "Partition at 0x2f000 overlaps 0x20000-0x2ffff"},
		{Table{{Name: "d", Type: TypeData, Subtype: 0x81, Offset: 0x8000, Size: 0x1000}}, "Partition offset 0x8000 is below 0x9000"},
		{Table{{Name: "d", Type: TypeBootloader, Offset: 0x1000, Size: 0x7000}}, ""},
	} {
		_, err := c.table.Check(CSVOptions{})
		if got := ""; err == nil && c.want != got || err != nil && err.Error() != c.want {
			t.Errorf("got %v, want %q", err, c.want)
		}
	}
}

func TestNumbersAreReadAsPythonReadsThem(t *testing.T) {
	for s, want := range map[string]int64{
		"0": 0, "00": 0, "0_0": 0, "10": 10, "1_000": 1000, "0x_10": 16, "0X1f": 31, "0o17": 15, "0B11": 3, "-5": -5, "+5": 5, " 7\t": 7,
		"4k": 4096, "4K": 4096, "1M": 1 << 20, "2 k": 2048, "1km": 1 << 30, "-1k": -1024,
	} {
		if got, err := parseInt(s, nil); err != nil || got != want {
			t.Errorf("%q: got %d, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "01", "0_1", "08", "1__0", "_1", "1_", "0x", "0x1g", "1.5", "1e3", "--1", "+-1", "- 1", "1 0", "k", "0o8", "0b2", "0x1p4", "inf"} {
		if got, err := parseInt(s, nil); err == nil {
			t.Errorf("%q: got %d", s, got)
		}
	}
}

func TestVariablesComeFromTheCallerOnly(t *testing.T) {
	t.Setenv("SIZE", "4K")
	lookup := func(name string) (string, bool) {
		v, ok := map[string]string{"SIZE": "8K", "A B": "fat", "SELF": "$SELF", "ROW": "a,data,fat,"}[name]
		return v, ok
	}
	for _, c := range []struct {
		line   string
		lookup func(string) (string, bool)
		want   string // the row written back, or the error
	}{
		{"a,data,fat,,$SIZE", nil, "Error at line 1: Invalid field value $SIZE"},
		{"a,data,fat,,$SIZE", lookup, "a,data,fat,0x9000,8K,"},
		{"a,data,${A B},,${SIZE}", lookup, "a,data,fat,0x9000,8K,"},
		{"a$SELF,data,fat,,4K", lookup, "a$SELF,data,fat,0x9000,4K,"},
		{"$ROW,${SIZE}", lookup, "a,data,fat,0x9000,8K,"},
		{"a$,data,fat,,4K", lookup, "a$,data,fat,0x9000,4K,"},
		{"a${SIZE,data,fat,,4K", lookup, "a${SIZE,data,fat,0x9000,4K,"},
		{"$OTHER,data,fat,,4K", nil, "unknown variable 'OTHER'"},
		{"# $OTHER", nil, ""},
		{"$OTHER", nil, "unknown variable 'OTHER'"},
	} {
		table, err := ParseCSV([]byte(c.line), CSVOptions{Lookup: c.lookup})
		got := strings.TrimSuffix(strings.TrimPrefix(string(table.AppendCSV(nil)), string(Table{}.AppendCSV(nil))), "\n")
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%q: got %q, want %q", c.line, got, c.want)
		}
	}
}

func TestTextIsReadByItsByteOrderMark(t *testing.T) {
	const text = "ü𝄞,data,nvs,,24K\n"
	var u16, u32 []byte
	for _, u := range utf16.Encode([]rune("\uFEFF" + text)) {
		u16 = binary.LittleEndian.AppendUint16(u16, u)
	}
	for _, r := range "\uFEFF" + text {
		u32 = binary.LittleEndian.AppendUint32(u32, uint32(r))
	}
	swap := func(b []byte, n int) []byte {
		b = slices.Clone(b)
		for c := range slices.Chunk(b, n) {
			slices.Reverse(c)
		}
		return b
	}
	for name, in := range map[string][]byte{
		"no mark": []byte(text), "UTF-8": []byte("\uFEFF" + text),
		"UTF-16LE": u16, "UTF-16BE": swap(u16, 2), "UTF-32LE": u32, "UTF-32BE": swap(u32, 4),
	} {
		table, err := ParseCSV(in, CSVOptions{})
		if err != nil || len(table) != 1 || table[0].Name != "ü𝄞" {
			t.Errorf("%s: %+v, %v", name, table, err)
		}
	}
	for name, in := range map[string]string{
		"odd UTF-16": "\xff\xfea", "half a pair": "\xff\xfe\x34\xd8", "broken pair": "\xff\xfe\x34\xd8a\x00", "low first": "\xff\xfe\x1e\xdd\x1e\xdd",
		"cut UTF-32": "\xff\xfe\x00\x00a", "past Unicode": "\x00\x00\xfe\xff\x00\x11\x00\x00", "surrogate": "\x00\x00\xfe\xff\x00\x00\xd8\x00",
	} {
		if table, err := ParseCSV([]byte(in), CSVOptions{}); err == nil {
			t.Errorf("%s: %+v", name, table)
		}
	}
}

func TestLinesEndWherePythonEndsThem(t *testing.T) {
	got := splitLines("a\r\nb\rc\n\nd\ve\ff\x1cg\u0085h\u2028i\u2029")
	if want := []string{"a", "b", "c", "", "d", "e", "f", "g", "h", "i"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := splitLines(""); len(got) != 0 {
		t.Errorf("got %q", got)
	}
}

func TestWhatTheGeneratorDoesSilentlyIsTold(t *testing.T) {
	for _, c := range []struct {
		csv, name, want string // the label in the table, the warnings
	}{
		{"nvs,data,nvs,,24K", "nvs", ""},
		{"abcdefghijklmnopq,data,nvs,,24K", "abcdefghijklmnop", `line 1: the label "abcdefghijklmnopq" does not fit in 16 bytes without NUL; the table holds "abcdefghijklmnop"`},
		{"data,app,ota_0,,64K", "data", "line 1: Partition has name 'data' which is a partition type, but does not match this partition's type (0x0). Mistake in partition table?"},
		{"nvs,data,fat,,24K", "nvs", "line 1: Partition has name 'nvs' which is a partition subtype, but this partition has non-matching type 0x1 and subtype 0x81. Mistake in partition table?"},
		{"factory,0x40,0,,24K", "factory", "line 1: Partition has name 'factory' which is a partition subtype, but this partition has non-matching type 0x40 and subtype 0x0. Mistake in partition table?"},
	} {
		d, err := DecodeCSV([]byte(c.csv), CSVOptions{})
		if err != nil {
			t.Errorf("%q: %v", c.csv, err)
			continue
		}
		var got []string
		for _, w := range d.Warnings {
			got = append(got, w.String())
		}
		if s := strings.Join(got, "|"); s != c.want || d.Table[0].Name != c.name {
			t.Errorf("%q: label %q, warnings %q; want %q, %q", c.csv, d.Table[0].Name, s, c.name, c.want)
		}
	}
}

func FuzzCSV(f *testing.F) {
	for _, c := range readCases(f) {
		f.Add(c.CSV, uint8(0))
	}
	f.Add(string(readVector(f, "partitions.csv")), uint8(3))
	f.Add("\t$X,data,nvs,,24K", uint8(0))
	f.Add("b,bootloader,primary,,\np,partition_table,primary,,\na${X},0x40,1,,-1M,encrypted", uint8(7))
	f.Fuzz(func(t *testing.T, text string, bits uint8) {
		opt := CSVOptions{MD5: bits&1 != 0}
		if bits&2 != 0 {
			opt.FlashSize = 4 << 20
		}
		if bits&4 != 0 {
			opt.PrimaryBootloaderOffset, opt.RecoveryBootloaderOffset = at(0x1000), at(0x3F0000)
		}
		d, err := DecodeCSV([]byte(text), opt)
		if err != nil {
			var refusal *CSVError
			if !errors.As(err, &refusal) || refusal.Message == "" {
				t.Fatalf("untyped or empty error %v", err)
			}
			return
		}
		bin, err := d.Table.AppendBinary(nil, opt.MD5)
		if err != nil {
			t.Fatal(err)
		}
		back, err := DecodeBinary(bin)
		if err != nil || !slices.Equal(back.Table, d.Table) || back.HasMD5 != opt.MD5 {
			t.Fatalf("through binary: got %+v, %v; want %+v", back, err, d)
		}
		for _, w := range d.Warnings {
			if strings.Contains(w.Message, "does not fit") {
				return // cut labels may be alike, or end in a blank
			}
		}
		if slices.ContainsFunc(d.Table, func(p Partition) bool { return strings.HasPrefix(p.Name, "$") }) {
			return // a blank before it kept it from being a variable; written back there is none
		}
		again, err := ParseCSV(back.Table.AppendCSV(nil), opt)
		if err != nil || !slices.Equal(again, d.Table) {
			t.Fatalf("through CSV: got %+v, %v; want %+v", again, err, d.Table)
		}
	})
}

func BenchmarkParseCSV(b *testing.B) {
	in := readVector(b, "partitions.csv")
	for b.Loop() {
		if _, err := ParseCSV(in, CSVOptions{MD5: true}); err != nil {
			b.Fatal(err)
		}
	}
}
