package parttable

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func readVector(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// referenceCase is one run of gen_esp32part.py: what it was given, how it ended, what it printed.
type referenceCase struct {
	Name        string
	CSV         string
	Args        []string
	RC          int
	StderrLast  string `json:"stderr_last"`
	StderrFirst string `json:"stderr_first"`
	EntriesHex  string `json:"entries_hex"`
	Len         int
}

func readCases(t testing.TB) []referenceCase {
	t.Helper()
	var cases []referenceCase
	if err := json.Unmarshal(readVector(t, "cases.json"), &cases); err != nil {
		t.Fatal(err)
	}
	if len(cases) < 30 {
		t.Fatalf("only %d cases", len(cases))
	}
	for i := range cases {
		if cases[i].Name == "many_95" {
			cases[i].CSV = rowsOf(95)
		}
	}
	return cases
}

func rowsOf(n int) string {
	var s strings.Builder
	for i := range n {
		fmt.Fprintf(&s, "p%d,0x40,1,,0x1000\n", i)
	}
	return s.String()
}

func (c referenceCase) options(t *testing.T) CSVOptions {
	t.Helper()
	opt := CSVOptions{MD5: true}
	for i := 0; i < len(c.Args); i += 2 {
		if c.Args[i] != "--flash-size" || i+1 >= len(c.Args) {
			t.Fatalf("argument %q is not known to this test", c.Args[i])
		}
		mb, err := strconv.Atoi(strings.TrimSuffix(c.Args[i+1], "MB"))
		if err != nil {
			t.Fatal(err)
		}
		opt.FlashSize = int64(mb) << 20
	}
	return opt
}

func TestCSVEndsAsTheGeneratorDoes(t *testing.T) {
	for _, c := range readCases(t) {
		t.Run(c.Name, func(t *testing.T) {
			table, err := ParseCSV([]byte(c.CSV), c.options(t))
			if c.RC == 0 {
				if err != nil {
					t.Fatalf("refused: %v", err)
				}
				bin, err := table.AppendBinary(nil, true)
				if err != nil {
					t.Fatal(err)
				}
				entries := strings.TrimRight(hex.EncodeToString(bin), "f")
				if want := strings.TrimRight(c.EntriesHex, "f"); entries != want || len(bin) != c.Len {
					t.Errorf("got  %s (%d bytes)\nwant %s (%d bytes)", entries, len(bin), want, c.Len)
				}
				return
			}
			var refusal *CSVError
			if !errors.As(err, &refusal) {
				t.Fatalf("got table %v, error %v; want a refusal", table, err)
			}
			if c.RC == 1 {
				// The generator dies of a Python exception here; there is no text to agree with.
				if !strings.HasPrefix(c.StderrFirst, "Traceback") {
					t.Fatalf("unexpected reference output %q", c.StderrFirst)
				}
				return
			}
			lines := refusal.Lines()
			if lines[0] != c.StderrFirst || lines[len(lines)-1] != c.StderrLast {
				t.Errorf("got  %q\nwant first %q\n     last  %q", lines, c.StderrFirst, c.StderrLast)
			}
		})
	}
}

func TestDefaultIsTheVectorInEveryForm(t *testing.T) {
	bin, text, noMD5 := readVector(t, "partitions.bin"), readVector(t, "partitions.csv"), readVector(t, "partitions-nomd5.bin")

	fromCSV, err := DecodeCSV(text, CSVOptions{MD5: true, FlashSize: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	fromBin, err := DecodeBinary(bin)
	if err != nil {
		t.Fatal(err)
	}
	fromFlash, err := ParseFlash(bin, 4<<20)
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("%+v", Default())
	for from, got := range map[string]Table{"csv": fromCSV.Table, "binary": fromBin.Table, "flash": fromFlash} {
		if s := fmt.Sprintf("%+v", got); s != want {
			t.Errorf("%s: got %s, want %s", from, s, want)
		}
	}
	if len(fromCSV.Warnings)+len(fromBin.Warnings) != 0 || !fromBin.HasMD5 {
		t.Errorf("csv warnings %v, binary warnings %v, md5 %t", fromCSV.Warnings, fromBin.Warnings, fromBin.HasMD5)
	}
	for _, c := range []struct {
		md5  bool
		want []byte
	}{{true, bin}, {false, noMD5}} {
		got, err := Default().AppendBinary([]byte("before"), c.md5)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, append([]byte("before"), c.want...)) {
			t.Errorf("md5 %t: bytes differ from the vector", c.md5)
		}
	}
	if got, want := string(Default().AppendCSV([]byte("# kept\n"))), "# kept\n"+string(readVector(t, "roundtrip.csv")); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if d, err := DecodeBinary(noMD5); err != nil || d.HasMD5 || len(d.Table) != 6 {
		t.Errorf("without MD5: %+v, %v", d, err)
	}
}
