package otadata_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"testing"

	"bmsota/esp/otadata"
)

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func readJSON(t testing.TB, name string, v any) {
	t.Helper()
	if err := json.Unmarshal(readFile(t, name), v); err != nil {
		t.Fatal(err)
	}
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func parse(t testing.TB, s string) otadata.Record {
	t.Helper()
	r, err := otadata.ParseRecord(unhex(t, s))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestCRCIsTheROMsForEveryVector(t *testing.T) {
	var cases []struct {
		Seq   uint32
		CRC   string
		Entry string `json:"entry_undefined"`
	}
	readJSON(t, "otadata-crc.json", &cases)
	for _, c := range cases {
		if got := fmt.Sprintf("%08x", otadata.CRC(c.Seq)); got != c.CRC {
			t.Errorf("seq %d: CRC %s, want %s", c.Seq, got, c.CRC)
		}
		b := otadata.AppendRecord(nil, otadata.NewRecord(c.Seq, otadata.Undefined))
		if got := hex.EncodeToString(b); got != c.Entry {
			t.Errorf("seq %d: record %s, want %s", c.Seq, got, c.Entry)
		}
	}
	if len(cases) != 40 {
		t.Errorf("ran %d cases, want %d", len(cases), 40)
	}
}

func TestSelectAgreesWithTheBootloader(t *testing.T) {
	var v struct {
		Cases []struct {
			N0, N1, E0, E1 string
			V0, V1         bool
			Active         int
		}
	}
	readJSON(t, "otadata-select.json", &v)
	for _, c := range v.Cases {
		recs := [2]otadata.Record{parse(t, c.E0), parse(t, c.E1)}
		if got := [2]bool{recs[0].Usable(), recs[1].Usable()}; got != [2]bool{c.V0, c.V1} {
			t.Errorf("%s, %s: usable %v, want %v %v", c.N0, c.N1, got, c.V0, c.V1)
		}
		if got := otadata.Select(recs); got != c.Active {
			t.Errorf("%s, %s: active %d, want %d", c.N0, c.N1, got, c.Active)
		}
	}
	if len(v.Cases) != 303 {
		t.Errorf("ran %d cases, want 303", len(v.Cases))
	}
}

func TestPartitionImages(t *testing.T) {
	for _, c := range []struct {
		file   string
		seq    [2]uint32
		state  [2]string
		crcOK  [2]bool
		active int
	}{
		{"erased.bin", [2]uint32{otadata.SeqErased, otadata.SeqErased}, [2]string{"undefined", "undefined"}, [2]bool{}, -1},
		{"seq1_undefined.bin", [2]uint32{1, otadata.SeqErased}, [2]string{"undefined", "undefined"}, [2]bool{true, false}, 0},
		{"seq1_valid_seq2_badcrc.bin", [2]uint32{1, 2}, [2]string{"valid", ""}, [2]bool{true, false}, 0},
		{"seq1_valid_seq2_new.bin", [2]uint32{1, 2}, [2]string{"valid", "new"}, [2]bool{true, true}, 1},
		{"seq1_valid_seq2_pending.bin", [2]uint32{1, 2}, [2]string{"valid", "pending"}, [2]bool{true, true}, 1},
	} {
		b := readFile(t, c.file)
		recs, err := otadata.Parse(b)
		if err != nil {
			t.Fatalf("%s: %v", c.file, err)
		}
		for i, r := range recs {
			if r.Seq != c.seq[i] || r.CRCOK() != c.crcOK[i] || c.state[i] != "" && r.State.String() != c.state[i] {
				t.Errorf("%s: record %d is %+v", c.file, i, r)
			}
		}
		if got := otadata.Select(recs); got != c.active {
			t.Errorf("%s: active %d, want %d", c.file, got, c.active)
		}
		if !bytes.Equal(otadata.Append(nil, recs), b) {
			t.Errorf("%s: writing the two records gives other bytes", c.file)
		}
	}
}

func TestPredicates(t *testing.T) {
	bad := otadata.NewRecord(2, otadata.Valid)
	bad.CRC++
	for _, c := range []struct {
		name                           string
		rec                            otadata.Record
		crcOK, erased, invalid, usable bool
	}{
		{"erased", otadata.ErasedRecord(), false, true, true, false},
		{"zero bytes", otadata.Record{}, false, false, false, false},
		{"sequence 0 with its CRC", otadata.NewRecord(0, otadata.Undefined), true, false, false, true},
		{"erased number with its CRC", otadata.NewRecord(otadata.SeqErased, otadata.Valid), true, true, true, false},
		{"wrong CRC", bad, false, false, false, false},
		{"aborted", otadata.NewRecord(2, otadata.Aborted), true, false, true, false},
		{"invalid", otadata.NewRecord(2, otadata.Invalid), true, false, true, false},
		{"pending", otadata.NewRecord(2, otadata.PendingVerify), true, false, false, true},
		{"a state nobody named", otadata.NewRecord(2, 7), true, false, false, true},
	} {
		r := c.rec
		if r.CRCOK() != c.crcOK || r.Erased() != c.erased || r.Invalid() != c.invalid || r.Usable() != c.usable {
			t.Errorf("%s: crc %v erased %v invalid %v usable %v", c.name, r.CRCOK(), r.Erased(), r.Invalid(), r.Usable())
		}
	}
}

func TestStateNames(t *testing.T) {
	for s, want := range map[otadata.State]string{0: "new", 1: "pending", 2: "valid", 3: "invalid", 4: "aborted", 0xFFFFFFFF: "undefined"} {
		if s.String() != want || !s.Named() {
			t.Errorf("state %s is %q, named %v", s.Hex(), s, s.Named())
		}
		if back, err := otadata.ParseState(want); err != nil || back != s {
			t.Errorf("%q parses to %s, %v", want, back.Hex(), err)
		}
	}
	odd := otadata.State(7)
	if odd.String() != "undefined" || odd.Hex() != "0x00000007" || odd.Named() {
		t.Errorf("state 7 is %q %s", odd, odd.Hex())
	}
	if _, err := otadata.ParseState("Valid"); err == nil {
		t.Error("a state in capitals is accepted")
	}
}

func TestSlotIndexIsUnsigned(t *testing.T) {
	for _, c := range []struct {
		seq     uint32
		n, want int
	}{{1, 2, 0}, {2, 2, 1}, {3, 2, 0}, {0, 2, 1}, {0, 3, 0}, {0xFFFFFFFF, 3, 2}, {5, 1, 0}, {1, 0, -1}, {1, -1, -1}} {
		if got := otadata.SlotIndex(c.seq, c.n); got != c.want {
			t.Errorf("SlotIndex(%d, %d) = %d, want %d", c.seq, c.n, got, c.want)
		}
	}
}

func TestNextIsRewriteOTAData(t *testing.T) {
	rec := otadata.NewRecord
	blank := otadata.ErasedRecord()
	labelled := rec(2, otadata.Aborted)
	labelled.Label[3] = 'x'
	for _, c := range []struct {
		name    string
		recs    [2]otadata.Record
		slot, n int
		sector  int
		seq     uint32
		err     error
	}{
		{"blank, slot 0", [2]otadata.Record{blank, blank}, 0, 2, 0, 1, nil},
		{"blank, slot 1", [2]otadata.Record{blank, blank}, 1, 2, 0, 2, nil},
		{"one used, the other slot", [2]otadata.Record{rec(1, otadata.Valid), blank}, 1, 2, 1, 2, nil},
		{"the active slot again: equal number", [2]otadata.Record{rec(1, otadata.Valid), blank}, 0, 2, 1, 1, nil},
		{"second active", [2]otadata.Record{rec(1, otadata.Valid), rec(2, otadata.Valid)}, 0, 2, 0, 3, nil},
		{"three slots, one back", [2]otadata.Record{rec(3, otadata.Valid), rec(2, otadata.Valid)}, 1, 3, 1, 5, nil},
		{"active number 0", [2]otadata.Record{rec(0, otadata.Valid), blank}, 1, 2, 1, 0, nil},
		{"label of the replaced record stays", [2]otadata.Record{rec(1, otadata.Valid), labelled}, 1, 2, 1, 2, nil},
		{"last number", [2]otadata.Record{rec(0xFFFFFFFD, otadata.Valid), blank}, 1, 2, 1, 0xFFFFFFFE, nil},
		{"would be the erased pattern", [2]otadata.Record{rec(0xFFFFFFFE, otadata.Valid), blank}, 0, 2, 0, 0, otadata.ErrSeqExhausted},
		{"slot out of range", [2]otadata.Record{blank, blank}, 2, 2, 0, 0, otadata.ErrNoSuchSlot},
		{"no slots", [2]otadata.Record{blank, blank}, 0, 0, 0, 0, otadata.ErrNoSuchSlot},
		{"negative slot", [2]otadata.Record{blank, blank}, -1, 2, 0, 0, otadata.ErrNoSuchSlot},
	} {
		sector, got, err := otadata.Next(c.recs, c.slot, c.n, otadata.New)
		if !errors.Is(err, c.err) {
			t.Errorf("%s: error %v, want %v", c.name, err, c.err)
			continue
		}
		if err != nil {
			continue
		}
		if sector != c.sector || got.Seq != c.seq || !got.CRCOK() || got.State != otadata.New || got.Label != c.recs[sector].Label {
			t.Errorf("%s: sector %d, %+v", c.name, sector, got)
		}
		if otadata.SlotIndex(got.Seq, c.n) != c.slot {
			t.Errorf("%s: number %d means slot %d", c.name, got.Seq, otadata.SlotIndex(got.Seq, c.n))
		}
	}
}

func TestParseRefusesOtherLengths(t *testing.T) {
	for _, n := range []int{0, 31, 33, 64} {
		_, err := otadata.ParseRecord(make([]byte, n))
		if fe := (*otadata.FormatError)(nil); !errors.As(err, &fe) || fe.Field != "record" {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	if _, err := otadata.Parse(make([]byte, otadata.PartitionSize-1)); err == nil {
		t.Error("a short partition is accepted")
	}
}

func FuzzRecord(f *testing.F) {
	for _, name := range []string{"erased.bin", "seq1_valid_seq2_badcrc.bin", "seq1_valid_seq2_new.bin"} {
		b := readFile(f, name)
		f.Add(b[:32], b[4096:4096+32], 2, 1)
	}
	f.Add(make([]byte, 32), make([]byte, 32), 16, 3)
	f.Add(make([]byte, 5), make([]byte, 32), 0, -7)
	f.Fuzz(func(t *testing.T, a, b []byte, n, slot int) {
		ra, errA := otadata.ParseRecord(a)
		rb, errB := otadata.ParseRecord(b)
		if errA != nil || errB != nil {
			return
		}
		if !bytes.Equal(otadata.AppendRecord(nil, ra), a) {
			t.Fatalf("%x parses and is written as other bytes", a)
		}
		recs := [2]otadata.Record{ra, rb}
		active := otadata.Select(recs)
		if active >= 0 && !recs[active].Usable() {
			t.Fatalf("record %d is active but not usable", active)
		}
		sector, next, err := otadata.Next(recs, slot, n, otadata.New)
		if err != nil {
			return
		}
		if !next.Usable() || otadata.SlotIndex(next.Seq, n) != slot || sector == active {
			t.Fatalf("next for slot %d of %d is %+v in sector %d", slot, n, next, sector)
		}
		if active >= 0 && (next.Seq < recs[active].Seq || uint64(next.Seq) >= uint64(recs[active].Seq)+uint64(n)) {
			t.Fatalf("next number %d after %d with %d slots", next.Seq, recs[active].Seq, n)
		}
	})
}

func ExampleNext() {
	recs := [2]otadata.Record{otadata.NewRecord(1, otadata.Valid), otadata.ErasedRecord()}
	sector, rec, err := otadata.Next(recs, 1, 2, otadata.New)
	if err != nil {
		fmt.Println(err)
		return
	}
	recs[sector] = rec
	active := otadata.Select(recs)
	fmt.Printf("record %d: seq %d, %s, boots ota_%d\n", active, recs[active].Seq, recs[active].State, otadata.SlotIndex(recs[active].Seq, 2))
	// Output: record 1: seq 2, new, boots ota_1
}
