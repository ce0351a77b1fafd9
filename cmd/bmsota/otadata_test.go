package main

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"bmsota/esp/otadata"
)

func TestOTADataShowJSONOfEveryVector(t *testing.T) {
	type want struct {
		active int
		states [2]string
		seqs   [2]uint32
		crc    [2]bool
	}
	const erased = otadata.SeqErased
	for file, w := range map[string]want{
		"erased":                 {-1, [2]string{"erased", "erased"}, [2]uint32{erased, erased}, [2]bool{}},
		"seq1_undefined":         {0, [2]string{"undefined", "erased"}, [2]uint32{1, erased}, [2]bool{true, false}},
		"seq1_valid_seq2_new":    {1, [2]string{"valid", "new"}, [2]uint32{1, 2}, [2]bool{true, true}},
		"seq1_valid_seq2_badcrc": {0, [2]string{"valid", "valid"}, [2]uint32{1, 2}, [2]bool{true, false}},
	} {
		r := decodeJSON[otadataReport](t, mustRun(t, "otadata", "show", "--json", "testdata/otadata/"+file+".bin"))
		if r.Active != w.active || len(r.Records) != 2 {
			t.Errorf("%s: active %d of %d records, want %d of 2", file, r.Active, len(r.Records), w.active)
			continue
		}
		for i, rec := range r.Records {
			if rec.State != w.states[i] || rec.Seq != w.seqs[i] || rec.CRCOK != w.crc[i] {
				t.Errorf("%s: record %d is %+v, want %s %d %v", file, i, rec, w.states[i], w.seqs[i], w.crc[i])
			}
		}
	}
	text := mustRun(t, "otadata", "show", "testdata/otadata/seq1_valid_seq2_new.bin")
	if !strings.Contains(text, "ota_1") || !strings.Contains(text, "active") {
		t.Errorf("text is %q", text)
	}
	if text := mustRun(t, "otadata", "show", "testdata/otadata/erased.bin"); !strings.Contains(text, "no record is usable") {
		t.Errorf("text is %q", text)
	}
}

func TestOTADataSetMakesTheSlotActiveAndLeavesTheOtherSectorAlone(t *testing.T) {
	for _, file := range []string{"erased", "seq1_undefined", "seq1_valid_seq2_new", "seq1_valid_seq2_badcrc"} {
		for _, slots := range []int{2, 3, 16} {
			for slot := range slots {
				before := readFile(t, "testdata/otadata/"+file+".bin")
				before[100], before[otadata.SectorSize+100] = 0xAA, 0xBB
				recs, err := otadata.Parse(before)
				if err != nil {
					t.Fatal(err)
				}
				path := writeFile(t, filepath.Join(t.TempDir(), "o.bin"), before)
				sector, want, err := otadata.Next(recs, slot, slots, otadata.New)
				if err != nil {
					t.Fatal(err)
				}
				o := command(t, nil, "otadata", "set", "--json", "--slot", fmt.Sprint(slot), "--slots", fmt.Sprint(slots), path)
				after := readFile(t, path)
				if o.code != exitDone || len(after) != otadata.PartitionSize {
					t.Fatalf("%s, slot %d of %d: exit %d, %d bytes: %s", file, slot, slots, o.code, len(after), o.errout)
				}
				if other := 1 - sector; !bytes.Equal(after[other*otadata.SectorSize:][:otadata.SectorSize], before[other*otadata.SectorSize:][:otadata.SectorSize]) {
					t.Errorf("%s, slot %d of %d: the other sector changed", file, slot, slots)
				}
				got := after[sector*otadata.SectorSize:][:otadata.SectorSize]
				erased := bytes.Repeat([]byte{0xFF}, otadata.SectorSize-otadata.RecordSize)
				if !bytes.Equal(got, append(otadata.AppendRecord(nil, want), erased...)) {
					t.Errorf("%s, slot %d of %d: the sector is not the record and erased flash", file, slot, slots)
				}
				if r := decodeJSON[otadataReport](t, o.out); r.Slot != slot {
					t.Errorf("%s, slot %d of %d: slot %d boots", file, slot, slots, r.Slot)
				}
			}
		}
	}
}

func TestOTADataSetAgainSaysThatTheOldRecordStaysActive(t *testing.T) {
	path := writeFile(t, filepath.Join(t.TempDir(), "o.bin"), readFile(t, "testdata/otadata/seq1_undefined.bin"))
	o := command(t, nil, "otadata", "set", "--slot", "0", path)
	if o.code != exitDone || !strings.Contains(o.errout, "warning: record 0 stays active") {
		t.Errorf("exit %d, stderr %q", o.code, o.errout)
	}
}

func TestOTADataSetStates(t *testing.T) {
	for _, state := range []string{"new", "pending", "valid", "invalid", "aborted", "undefined"} {
		path := filepath.Join(t.TempDir(), "o.bin")
		o := decodeJSON[otadataReport](t, mustRun(t, "otadata", "set", "--create", "--json", "--slot", "1", "--state", state, path))
		usable := state != "invalid" && state != "aborted"
		if o.Records[0].State != state || !o.Records[0].CRCOK || (o.Active == 0) != usable {
			t.Errorf("%s: %+v", state, o)
		}
	}
}

func TestOTADataRefusesWhatItCannotDo(t *testing.T) {
	dir := t.TempDir()
	path := writeFile(t, filepath.Join(dir, "o.bin"), readFile(t, "testdata/otadata/erased.bin"))
	full := otadata.Append(nil, [2]otadata.Record{otadata.NewRecord(otadata.SeqErased-1, otadata.Valid), otadata.ErasedRecord()})
	last := writeFile(t, filepath.Join(dir, "last.bin"), full)
	flash := writeFile(t, filepath.Join(dir, "flash.bin"), make([]byte, 4<<20))
	short := writeFile(t, filepath.Join(dir, "short.bin"), make([]byte, 8191))
	none := filepath.Join(dir, "none.bin")
	before := listing(t, dir)
	for _, c := range []struct {
		code int
		says string
		args []string
	}{
		{exitUsage, "--slot must be given", []string{"set", path}},
		{exitUsage, "--slot 2 does not exist", []string{"set", "--slot", "2", path}},
		{exitUsage, "--slot -1 does not exist", []string{"set", "--slot", "-1", path}},
		{exitUsage, "--slots must be", []string{"set", "--slot", "0", "--slots", "17", path}},
		{exitUsage, "--slots must be", []string{"show", "--slots", "0", path}},
		{exitUsage, "unknown record state", []string{"set", "--slot", "0", "--state", "good", path}},
		{exitUsage, "invalid argument", []string{"set", "--slot", "x", path}},
		{exitUsage, "cannot change standard input", []string{"set", "--slot", "0", "-"}},
		{exitRefused, "sequence numbers are used up", []string{"set", "--slot", "0", last}},
		{exitRefused, "4194304 bytes, but an otadata partition has at most 8192", []string{"show", flash}},
		{exitRefused, "4194304 bytes, but an otadata partition has at most 8192", []string{"set", "--slot", "0", flash}},
		{exitRefused, "8191 bytes", []string{"show", short}},
		{exitFailed, "there is no file", []string{"set", "--slot", "0", none}},
	} {
		mustFail(t, c.code, c.says, append([]string{"otadata"}, c.args...)...)
	}
	if !bytes.Equal(readFile(t, path), readFile(t, "testdata/otadata/erased.bin")) || !bytes.Equal(readFile(t, last), full) {
		t.Error("a refused command changed the file")
	}
	if after := listing(t, dir); len(after) != len(before) {
		t.Errorf("the folder holds %q, before %q", after, before)
	}
}
