package device

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/device/internal/norflash"
	"bmsota/esp/parttable"
)

// Nothing on a board writes its settings; they are written over a cable, and the plug can be pulled. Whatever is then in the storage
// partition, the board boots its image, with the old settings, the new ones, or none, and says so (bad_config); it installs nothing
// that its old settings would not have it install; and with the settings written to the end it takes the next update.
func TestPowerCutWhileSettingsAreWrittenLeavesABoardThatRuns(t *testing.T) {
	key := newKey(t)
	running, next := image(t, "1.0.0"), image(t, "1.1.0")
	f := release(t, next, key)
	before, after := layout(running, trusting(t, key)), layout(running, trusting(t, key)+`,"timeout_ms":7000`)
	for _, l := range []*Layout{&before, &after} {
		l.Table = smallStorage(t)
	}
	start, err := before.build()
	if err != nil {
		t.Fatal(err)
	}
	wanted, err := after.build()
	if err != nil {
		t.Fatal(err)
	}
	storage := before.Table[len(before.Table)-1]
	stride := 7
	if long(t) {
		stride = 1
	}
	cuts, said := 0, map[string]int{}
	for at := 1; ; at += stride {
		flash := start.Clone()
		flash.CutAt(at, norflash.Torn(uint64(at)))
		err := rewrite(flash, wanted, storage)
		if err != nil && !errors.Is(err, norflash.ErrPowerCut) {
			t.Fatal(err)
		}
		flash.PowerOn()
		cut := err != nil
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, before, serve(t, f, next), func(c *Config) { c.Flash = &Flash{base: &lockedFlash{flash: flash}} })
			b.on()
			b.settle(2 * time.Minute)
			b.off()
			last := b.hub.last()
			word := string(last.Phase) + ":" + string(last.Reason)
			if len(b.boots) != 1 || !strings.HasPrefix(b.boots[0], "ota_0") {
				t.Errorf("cut in operation %d: boots %v", at, b.boots)
			}
			if len(b.hub.all()) == 0 {
				word = "nobody to tell" // the broker's settings are gone, too
			} else if last.ImageSHA256 != sha(running) {
				t.Errorf("cut in operation %d: runs %s", at, last.CurrentVersion)
			}
			said[word]++
			// The settings once more, to the end.
			if err := rewrite(b.flash(), wanted, storage); err != nil {
				t.Fatal(err)
			}
			b.on()
			b.settle(5 * time.Second)
			b.hub.order(update)
			b.settle(10 * time.Minute)
			b.off()
			if b.hub.last().ImageSHA256 != sha(next) {
				t.Errorf("cut in operation %d, settings written again: %s", at, b.hub.phases())
			}
		})
		if !cut {
			break
		}
		cuts++
	}
	t.Logf("%d cuts while settings were written; afterwards: %v", cuts, said)
	if cuts < 20 || said["idle:"] == cuts {
		t.Errorf("%d cuts that left %v: the settings were not hit", cuts, said)
	}
}

// smallStorage is the default table with a storage partition of 64 KiB.
func smallStorage(t *testing.T) parttable.Table {
	t.Helper()
	table := append(parttable.Table(nil), parttable.Default()...)
	table[len(table)-1].Size = 64 << 10
	return table
}

// rewrite writes a partition as esptool does: sector by sector, erased and programmed.
func rewrite(f, wanted *norflash.Flash, p parttable.Partition) error {
	var sector [norflash.SectorSize]byte
	for off := int64(p.Offset); off < int64(p.Offset)+int64(p.Size); off += norflash.SectorSize {
		if _, err := wanted.ReadAt(sector[:], off); err != nil {
			return err
		}
		if err := f.Erase(off, norflash.SectorSize); err != nil {
			return err
		}
		if err := f.Program(off, sector[:]); err != nil {
			return err
		}
	}
	return nil
}
