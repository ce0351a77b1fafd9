package otaops_test

import (
	"errors"
	"strings"
	"testing"

	"bmsota/device/internal/bootloader"
	"bmsota/device/internal/norflash"
	"bmsota/device/internal/otaops"
	"bmsota/esp/otadata"
)

var digest = [32]byte{1, 2, 3}

func TestTombstoneIsWrittenOnceAndAcknowledgedWithoutAnErase(t *testing.T) {
	f, o, slot := fixture(t, normal)
	must(t, f.Flash.Program(0x20000, image(t, "2.0.0", 8192)))
	read := func() otaops.Tombstone {
		t.Helper()
		ts, ok, err := o.ReadTombstone(slot)
		if !ok || err != nil {
			t.Fatalf("no tombstone: %v", err)
		}
		return ts
	}
	if _, ok, err := o.ReadTombstone(slot); ok || err != nil {
		t.Fatalf("an image reads as a tombstone: %v", err)
	}
	if err := o.AckTombstone(slot); !errors.Is(err, otaops.NotFound) {
		t.Errorf("acknowledged what is not there: %v", err)
	}
	must(t, o.WriteTombstone(slot, digest, "watchdog"))
	if got, want := read(), (otaops.Tombstone{SHA256: digest, Cause: "watchdog"}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := strings.Join(f.ops, ","); got != "erase:20000:1000,write:20000:4d" {
		t.Errorf("operations %s", got)
	}
	f.ops = nil
	must(t, o.WriteTombstone(slot, digest, "power loss"))
	must(t, o.WriteTombstone(slot, [32]byte{}, "power loss"))
	if len(f.ops) != 0 || read().Cause != "watchdog" {
		t.Errorf("a second tombstone did %v and says %q", f.ops, read().Cause)
	}
	must(t, o.AckTombstone(slot))
	must(t, o.AckTombstone(slot))
	if got := strings.Join(f.ops, ","); got != "write:2004c:1" || !read().Acked {
		t.Errorf("acknowledging did %s, tombstone %+v", got, read())
	}
	must(t, o.WriteTombstone(slot, digest, "crash"))
	if !read().Acked {
		t.Error("writing the same tombstone again forgot the acknowledgement")
	}
	must(t, o.WriteTombstone(slot, [32]byte{9}, "crash"))
	if got := read(); got.Acked || got.SHA256 != [32]byte{9} {
		t.Errorf("another image's tombstone is %+v", got)
	}
}

func TestTombstoneRefusals(t *testing.T) {
	f, o, slot := fixture(t, normal)
	for what, err := range map[string]error{
		"the running slot": o.WriteTombstone(o.Running(), digest, "crash"),
		"no cause":         o.WriteTombstone(slot, digest, ""),
		"a long cause":     o.WriteTombstone(slot, digest, strings.Repeat("x", 33)),
		"a line break":     o.WriteTombstone(slot, digest, "a\nb"),
		"a NUL":            o.WriteTombstone(slot, digest, "a\x00b"),
		"not ASCII":        o.WriteTombstone(slot, digest, "ä"),
		"a data partition": o.WriteTombstone(data, digest, "crash"),
		"ack of running":   o.AckTombstone(o.Running()),
	} {
		if err == nil {
			t.Errorf("%s is accepted", what)
		}
	}
	if len(f.ops) != 0 {
		t.Errorf("refusals did %v", f.ops)
	}
	must(t, o.WriteTombstone(slot, digest, strings.Repeat("x", 32)))
	if ts, ok, err := o.ReadTombstone(slot); !ok || err != nil || len(ts.Cause) != 32 {
		t.Errorf("the longest cause: %+v, %v", ts, err)
	}
}

// At every cut the slot is either the untouched image, which is tried again, or
// it cannot boot; what is torn is absent, and repeating completes it.
func TestTombstoneCanBeCutAnywhereAndRepeated(t *testing.T) {
	w := world{t, layouts["two"], 0, crashing}
	base := w.flash([2]otadata.Record{rec(1, otadata.Valid), rec(2, otadata.Aborted)})
	bury := func(o *otaops.Ops) error { return o.WriteTombstone(w.slot(1), digest, "no broker") }
	absent, present := 0, 0
	cuts := w.sweep(base, 200, bury, func(f *norflash.Flash, cut string) {
		ts, ok, err := w.ops(f).ReadTombstone(w.slot(1))
		must(t, err)
		if ok && ts != (otaops.Tombstone{SHA256: digest, Cause: "no broker"}) {
			t.Fatalf("%s: %+v", cut, ts)
		}
		if ok {
			present++
		} else {
			absent++
		}
		if !w.recovers(f.Clone()) {
			t.Fatalf("%s: does not come back", cut)
		}
		must(t, bury(w.ops(f)))
		if ts, ok, err := w.ops(f).ReadTombstone(w.slot(1)); !ok || err != nil || ts.Acked {
			t.Fatalf("%s: repeated: %+v %v %v", cut, ts, ok, err)
		}
	})
	if cuts != 3*202 || present == 0 || absent < 200 {
		t.Errorf("%d cuts: %d present, %d absent", cuts, present, absent)
	}

	must(t, bury(w.ops(base)))
	cuts = w.sweep(base, 50, func(o *otaops.Ops) error { return o.AckTombstone(w.slot(1)) }, func(f *norflash.Flash, cut string) {
		if _, ok, err := w.ops(f).ReadTombstone(w.slot(1)); !ok || err != nil {
			t.Fatalf("%s: acknowledging lost the tombstone", cut)
		}
		must(t, w.ops(f).AckTombstone(w.slot(1)))
		if ts, _, err := w.ops(f).ReadTombstone(w.slot(1)); err != nil || !ts.Acked {
			t.Fatalf("%s: %+v %v", cut, ts, err)
		}
	})
	if cuts != 52 {
		t.Errorf("%d cuts of the acknowledgement, want 52", cuts)
	}
}

// Once the failed slot has its tombstone, no single flipped bit of otadata
// keeps the board from the good one.
func TestNoFlippedBitOfOTADataSticksOnceTheTombstoneStands(t *testing.T) {
	for running := range 2 {
		for _, buried := range []bool{false, true} {
			w := world{t, layouts["two"], running, crashing}
			recs := [2]otadata.Record{rec(1, otadata.Valid), rec(2, otadata.Aborted)}
			if running == 1 {
				recs = [2]otadata.Record{rec(3, otadata.Aborted), rec(2, otadata.Valid)}
			}
			stuckAt, flips := 0, 0
			for bit := range 512 {
				raw := otadata.Append(nil, recs)
				raw[bit/256*otadata.SectorSize+bit%256/8] ^= 1 << (bit % 8)
				flipped, err := otadata.Parse(raw)
				must(t, err)
				f := w.flash(flipped)
				if buried {
					must(t, w.ops(f).WriteTombstone(w.slot(1-running), digest, "crash"))
				}
				flips++
				if !w.recovers(f) {
					stuckAt++
				}
			}
			t.Logf("running ota_%d, tombstone %v: %d of %d flips stick", running, buried, stuckAt, flips)
			if buried && stuckAt != 0 || !buried && stuckAt == 0 {
				t.Errorf("running ota_%d, tombstone %v: %d of %d flips stick", running, buried, stuckAt, flips)
			}
		}
	}
}

func FuzzTombstone(f *testing.F) {
	f.Add([]byte("bmstomb1"), []byte{0})
	f.Add(make([]byte, 80), []byte{0xE9})
	f.Fuzz(func(t *testing.T, content, over []byte) {
		flash := norflash.New(1 << 20)
		table := layouts["two"]
		must(t, flash.Program(0x20000, content[:min(len(content), 4096)]))
		o, err := otaops.New(flash, table, table[1], otaops.Config{})
		must(t, err)
		if _, _, err := o.ReadTombstone(table[2]); err != nil {
			t.Fatal(err)
		}
		must(t, o.WriteTombstone(table[2], digest, "crash"))
		before, ok, err := o.ReadTombstone(table[2])
		if !ok || err != nil || before.SHA256 != digest {
			t.Fatalf("%+v %v %v", before, ok, err)
		}
		// Whatever is programmed over its fields it never reads as another one.
		must(t, flash.Program(0x20000, over[:min(len(over), 76)]))
		if after, ok, err := o.ReadTombstone(table[2]); err != nil || ok && after != before {
			t.Fatalf("%+v became %+v, %v", before, after, err)
		}
	})
}

func BenchmarkBootAfterUpdate(b *testing.B) {
	w := world{b, layouts["two"], 0, damaged}
	f := w.flash([2]otadata.Record{rec(1, otadata.Valid), blank})
	for b.Loop() {
		if _, err := bootloader.Boot(f, bootloader.Config{Rollback: true}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkUpdate(b *testing.B) {
	w := world{b, layouts["two"], 0, damaged}
	base := w.flash([2]otadata.Record{rec(1, otadata.Valid), blank})
	b.SetBytes(int64(len(badImage)))
	for b.Loop() {
		if err := update(w.ops(base.Clone()), w.slot(1), otaops.SequentialWrites, (*otaops.Ops).Switch); err != nil {
			b.Fatal(err)
		}
	}
}
