package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"bmsota/esp/parttable"
)

func TestPartitionConvertGivesTheGeneratorsBytes(t *testing.T) {
	dir := t.TempDir()
	bin, nomd5, csv := filepath.Join(dir, "t.bin"), filepath.Join(dir, "n.bin"), filepath.Join(dir, "t.csv")
	mustRun(t, "partition", "convert", "testdata/partition/partitions.csv", bin)
	mustRun(t, "partition", "convert", "--no-md5", "testdata/partition/partitions.csv", nomd5)
	if !bytes.Equal(readFile(t, bin), readFile(t, "testdata/partition/partitions.bin")) {
		t.Error("partitions.bin differs")
	}
	if !bytes.Equal(readFile(t, nomd5), readFile(t, "testdata/partition/partitions-nomd5.bin")) {
		t.Error("partitions-nomd5.bin differs")
	}
	mustRun(t, "partition", "convert", bin, csv)
	again := filepath.Join(dir, "again.bin")
	mustRun(t, "partition", "convert", csv, again)
	if !bytes.Equal(readFile(t, again), readFile(t, bin)) {
		t.Errorf("binary to CSV and back changed the table; CSV:\n%s", readFile(t, csv))
	}
	if got := mustRun(t, "partition", "convert", bin, "-"); got != string(readFile(t, csv)) {
		t.Errorf("standard output got %q", got)
	}
}

func TestPartitionShowJSONHasTheFixedKeys(t *testing.T) {
	for _, file := range []string{"partitions.csv", "partitions.bin", "partitions-nomd5.bin"} {
		text := mustRun(t, "partition", "show", "--json", "testdata/partition/"+file)
		rows := decodeJSON[[]map[string]any](t, text)
		if len(rows) != 6 {
			t.Fatalf("%s: %d rows, want 6", file, len(rows))
		}
		got, err := json.Marshal(rows[3])
		if err != nil {
			t.Fatal(err)
		}
		want := `{"encrypted":false,"name":"ota_0","offset":131072,"readonly":false,"size":1572864,"subtype":"ota_0","type":"app"}`
		if string(got) != want {
			t.Errorf("%s: row 3 is %s, want %s", file, got, want)
		}
	}
}

func TestPartitionShowPrintsAReadableTable(t *testing.T) {
	got := mustRun(t, "partition", "show", "testdata/partition/partitions.csv")
	for _, want := range []string{"NAME ", "ota_1 ", "0x1a0000", "1536K", "0x320000"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in\n%s", want, got)
		}
	}
	if strings.Contains(got, " \n") {
		t.Errorf("blanks at line ends in %q", got)
	}
}

func TestPartitionTablesThatBreakTheRulesAreRefused(t *testing.T) {
	binary := func(table parttable.Table) []byte {
		b, err := table.AppendBinary(nil, true)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	good := binary(parttable.Default())
	flip := bytes.Clone(good)
	flip[4] ^= 1
	overlap := binary(parttable.Table{
		{Name: "a", Type: parttable.TypeData, Subtype: parttable.SubtypeNVS, Offset: 0x9000, Size: 0x6000},
		{Name: "b", Type: parttable.TypeData, Subtype: parttable.SubtypeNVS, Offset: 0xa000, Size: 0x6000},
	})
	for _, c := range []struct {
		name  string
		input []byte
		args  []string
		code  int
		says  string
	}{
		{"overlap in csv", []byte("a,data,nvs,0x9000,0x6000\nb,data,phy,0xa000,0x1000"), nil, exitRefused, "CSV Error at line 2: Partitions overlap"},
		{"no size", []byte("a,data,nvs,0x9000,,"), nil, exitRefused, "Error at line 1: Size field can't be empty"},
		{"unknown subtype", []byte("a,data,foo,0x9000,0x6000"), nil, exitRefused, "'foo' is not valid"},
		{"no rows", []byte("# nothing\n"), nil, exitRefused, "no partitions"},
		{"erased flash", bytes.Repeat([]byte{0xFF}, 3072), nil, exitRefused, "no partitions"},
		{"wrong md5", flip, nil, exitRefused, "md5"},
		{"truncated", good[:40], nil, exitRefused, "standard input"},
		{"flash image", append(bytes.Repeat([]byte{0xFF}, 0x8000), good...), nil, exitRefused, "a binary partition table has 3072"},
		{"overlap in binary", overlap, nil, exitRefused, "overlaps"},
		{"flash too small", good, []string{"--flash-size", "2MB"}, exitRefused, "does not fit"},
		{"table elsewhere", good, []string{"--offset", "0x10000"}, exitRefused, "is below"},
		{"offset between sectors", good, []string{"--offset", "0x8001"}, exitUsage, "not the address of a flash sector"},
		{"offset beyond flash", good, []string{"--offset", "4096M"}, exitUsage, "not the address of a flash sector"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, verb := range [][]string{{"convert", "-", "-"}, {"show", "-"}} {
				args := append(append([]string{"partition", verb[0]}, c.args...), verb[1:]...)
				o := command(t, c.input, args...)
				checkFault(t, o, c.code, c.says, args)
				if verb[0] == "convert" && o.out != "" {
					t.Errorf("a refused conversion wrote %q", o.out)
				}
			}
		})
	}
	// What can be read is shown all the same.
	o := command(t, overlap, "partition", "show", "--json", "-")
	if rows := decodeJSON[[]partitionRow](t, o.out); o.code != exitRefused || len(rows) != 2 {
		t.Errorf("exit %d and %d rows, want 3 and 2", o.code, len(rows))
	}
	o = command(t, []byte("#\n"), "partition", "show", "--json", "-")
	if strings.TrimSpace(o.out) != "[]" {
		t.Errorf("an empty table is %q, want []", o.out)
	}
}

func TestPartitionWarningsGoToStandardErrorOnly(t *testing.T) {
	o := command(t, []byte("a_label_that_is_too_long,data,nvs,0x9000,0x6000"), "partition", "show", "--json", "-")
	if o.code != exitDone || !strings.Contains(o.errout, "warning: ") {
		t.Fatalf("exit %d, stderr %q", o.code, o.errout)
	}
	if rows := decodeJSON[[]partitionRow](t, o.out); len(rows) != 1 || rows[0].Name != "a_label_that_is_" {
		t.Errorf("rows %+v", rows)
	}
}

func TestPartitionBootloaderRowsTakeTheirPlaceFromTheFlag(t *testing.T) {
	csv := []byte("b,bootloader,primary,,\na,data,nvs,0x9000,0x6000\n")
	args := []string{"partition", "show", "--json", "-"}
	checkFault(t, command(t, csv, args...), exitRefused, "--primary-bootloader-offset", args)
	o := command(t, csv, append(args, "--primary-bootloader-offset", "0x1000")...)
	if o.code != exitDone {
		t.Fatalf("exit %d: %s", o.code, o.errout)
	}
	if rows := decodeJSON[[]partitionRow](t, o.out); rows[0].Offset != 0x1000 || rows[0].Type != "bootloader" {
		t.Errorf("rows %+v", rows)
	}
}

func TestPartitionTableThatFillsItsSectorIsRead(t *testing.T) {
	sector := append(readFile(t, "testdata/partition/partitions.bin"), bytes.Repeat([]byte{0xFF}, 0x400)...)
	if o := command(t, sector, "partition", "show", "-"); o.code != exitDone {
		t.Errorf("exit %d: %s", o.code, o.errout)
	}
	var csv strings.Builder
	for i := range parttable.MaxRowsMD5 + 1 {
		fmt.Fprintf(&csv, "p%d,data,nvs,,0x3000\n", i)
	}
	args := []string{"partition", "convert", "-", "-"}
	checkFault(t, command(t, []byte(csv.String()), args...), exitRefused, "", args)
}
