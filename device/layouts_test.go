package device

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/esp/appimage"
	"bmsota/esp/parttable"
	"bmsota/protocol"
)

// tableOf is a partition table from CSV, with the storage partition small.
func tableOf(t testing.TB, rows string) parttable.Table {
	t.Helper()
	table, err := parttable.ParseCSV([]byte(rows), parttable.CSVOptions{MD5: true})
	if err != nil {
		t.Fatal(err)
	}
	return table
}

const (
	factoryTable = "nvs,data,nvs,0x9000,0x4000\notadata,data,ota,0xd000,0x2000\nfactory,app,factory,0x10000,1M\n" +
		"ota_0,app,ota_0,0x110000,1M\nota_1,app,ota_1,0x210000,1M\nstorage,data,spiffs,0x310000,64K\n"
	threeSlots = "otadata,data,ota,0xd000,0x2000\nota_0,app,ota_0,0x10000,1M\nota_1,app,ota_1,0x110000,1M\n" +
		"ota_2,app,ota_2,0x210000,1M\nstorage,data,spiffs,0x310000,64K\n"
	factoryAndOne = "otadata,data,ota,0xd000,0x2000\nfactory,app,factory,0x10000,1M\nota_0,app,ota_0,0x110000,1M\nstorage,data,spiffs,0x310000,64K\n"
	oneSlot       = "otadata,data,ota,0xd000,0x2000\nota_0,app,ota_0,0x10000,1M\nstorage,data,spiffs,0x310000,64K\n"
	factoryOnly   = "factory,app,factory,0x10000,1M\nstorage,data,spiffs,0x310000,64K\n"
	noRecords     = "ota_0,app,ota_0,0x10000,1M\nota_1,app,ota_1,0x110000,1M\nstorage,data,spiffs,0x310000,64K\n"
	noStorage     = "nvs,data,nvs,0x9000,0x4000\notadata,data,ota,0xd000,0x2000\nota_0,app,ota_0,0x10000,1M\nota_1,app,ota_1,0x110000,1M\nfiles,data,0x83,0x210000,0x1f0000\n"
	encrypted     = "otadata,data,ota,0xd000,0x2000,encrypted\nota_0,app,ota_0,0x10000,1M,encrypted\nota_1,app,ota_1,0x110000,1M,encrypted\nstorage,data,spiffs,0x310000,64K\n"
)

func on(table string) func(*testing.T, *Layout) {
	return func(t *testing.T, l *Layout) { l.Table = tableOf(t, table) }
}

// offer puts a release on the server and orders it.
func (b *bench) offer(img []byte, order string) {
	b.t.Helper()
	body, err := release(b.t, img, nil).Append(nil)
	if err != nil {
		b.t.Fatal(err)
	}
	b.server.set(func(s *server) { s.version, s.files[sha(img)+".bin"] = body, img })
	b.hub.order(order)
	b.settle(10 * time.Minute)
}

// TestEveryLayoutUpdatesRollsBackAndUpdatesAgain: good, crashing, unhealthy, good, an operator's rollback, good.
func TestEveryLayoutUpdatesRollsBackAndUpdatesAgain(t *testing.T) {
	for name, change := range map[string]func(*testing.T, *Layout){
		"factory": on(factoryTable), "three slots": on(threeSlots), "factory and one slot": on(factoryAndOne), "encrypted": on(encrypted),
		"8 MiB":  func(_ *testing.T, l *Layout) { l.Size = 8 << 20 },
		"16 MiB": func(_ *testing.T, l *Layout) { l.Size = 16 << 20 },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := layout(image(t, "1.0.0"), "")
				change(t, &l)
				b := newBench(t, l, &server{files: map[string][]byte{}})
				b.on()
				b.settle(5 * time.Second)
				step := func(version string, want string, change ...func(*appimage.BuildOptions)) {
					t.Helper()
					b.offer(image(t, version, change...), update)
					if last := b.hub.last(); last.CurrentVersion != want || last.RollbackPending || last.Phase != protocol.PhaseIdle {
						t.Errorf("after %s the board is %s and runs %s, want %s: %s %v", version, last.Phase, last.CurrentVersion, want, b.hub.phases(), b.boots)
					}
				}
				single := name == "factory and one slot"
				step("1.1.0", "1.1.0")
				if single {
					// Only from the factory application can the one slot be written.
					if b.hub.order(update); b.hub.last().CurrentVersion != "1.1.0" {
						t.Error("left its slot")
					}
					b.offer(image(t, "1.2.0"), update)
					if last := b.hub.last(); last.Phase != protocol.PhaseFailed || last.CurrentVersion != "1.1.0" {
						t.Errorf("without a second slot it ends as %s:%s", last.Phase, last.Reason)
					}
					b.off()
					return
				}
				step("1.2.0", "1.1.0", trial(appimage.BehaviourCrash))
				step("1.3.0", "1.1.0", trial(appimage.BehaviourUnhealthy))
				step("1.4.0", "1.4.0")
				b.hub.order(`{"action":"rollback"}`)
				b.settle(5 * time.Minute)
				if last := b.hub.last(); last.CurrentVersion != "1.1.0" || last.RollbackPending {
					t.Errorf("after a rollback it runs %s: %s", last.CurrentVersion, b.hub.phases())
				}
				step("1.5.0", "1.5.0")
				step("1.6.0", "1.6.0")
				step("1.7.0", "1.6.0", trial(appimage.BehaviourHang))
				b.off()
			})
		})
	}
}

// TestCrashingImageIsUndoneAfterAFallBackToFactory: the bootloader passed over a damaged slot whose record is still
// VALID. That record must not vouch for the next image in the slot.
func TestCrashingImageIsUndoneAfterAFallBackToFactory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := layout(image(t, "1.0.0"), "")
		l.Table = tableOf(t, factoryTable)
		b := newBench(t, l, &server{files: map[string][]byte{}})
		b.on()
		b.settle(5 * time.Second)
		b.offer(image(t, "1.1.0"), update)
		b.off()
		if b.hub.last().CurrentVersion != "1.1.0" {
			t.Fatalf("runs %s", b.hub.last().CurrentVersion)
		}
		put(t, b.flash(), 0x110000+30<<10, []byte{1, 2, 3})
		b.on()
		b.settle(10 * time.Second)
		if last := b.hub.last(); last.CurrentVersion != "1.0.0" || last.Slot != "factory" {
			t.Fatalf("runs %s from %s", last.CurrentVersion, last.Slot)
		}
		if !strings.Contains(b.hub.phases(), "rolled_back:image_corrupt") {
			t.Errorf("says nothing of the damaged slot: %s", b.hub.phases())
		}
		b.offer(image(t, "1.2.0", trial(appimage.BehaviourCrash)), update)
		if last := b.hub.last(); last.CurrentVersion != "1.0.0" || last.Phase != protocol.PhaseIdle {
			t.Errorf("is %s, runs %s: %s %v", last.Phase, last.CurrentVersion, b.hub.phases(), b.boots[:min(len(b.boots), 12)])
		}
		b.off()
	})
}

// TestBoardWithoutASecondSlotSaysSoAtOnce and writes nothing.
func TestBoardWithoutASecondSlotSaysSoAtOnce(t *testing.T) {
	for name, rows := range map[string]string{"one slot": oneSlot, "factory only": factoryOnly, "no otadata": noRecords} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				next := image(t, "1.1.0")
				l := layout(image(t, "1.0.0"), `,"gate":{"min_soc_pct":50}`)
				l.Table = tableOf(t, rows)
				b := newBench(t, l, serve(t, release(t, next, nil), next))
				b.board.Sensors().Set(protocol.Battery{SOCPct: 10})
				b.on()
				b.settle(5 * time.Second)
				if last := b.hub.last(); last.SlotSize != 0 {
					t.Errorf("says that an update may have %d bytes", last.SlotSize)
				}
				before := b.flash().Ops()
				b.hub.order(update)
				b.settle(time.Minute)
				last := b.hub.last()
				if last.Phase != protocol.PhaseFailed || !strings.Contains(last.Message, "slot") && !strings.Contains(last.Message, "otadata") {
					t.Errorf("ends as %s:%s %q", last.Phase, last.Reason, last.Message)
				}
				if n := b.flash().Ops() - before; n != 0 || b.server.log(".bin") != 0 {
					t.Errorf("%d flash operations, %d downloads", n, b.server.log(".bin"))
				}
				b.hub.order(`{"action":"rollback"}`)
				b.settle(time.Minute)
				if last := b.hub.last(); last.Reason != protocol.ReasonNoRollback {
					t.Errorf("a rollback is answered %s:%s", last.Phase, last.Reason)
				}
				b.hub.order(`{"action":"check"}`)
				b.settle(time.Minute)
				if last := b.hub.last(); last.AvailableVersion != "1.1.0" || last.Phase != protocol.PhaseIdle {
					t.Errorf("a check is answered %s:%s", last.Phase, last.Reason)
				}
				b.off()
			})
		})
	}
}

func TestBoardWithoutStorageRunsAndSaysNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := layout(image(t, "1.0.0"), "")
		l.Table, l.OTAConfig, l.MQTTConfig = parttable.Default()[:5], nil, nil
		var said []protocol.Status
		b := newBench(t, l, &server{}, func(c *Config) { c.OnStatus = func(s protocol.Status) { said = append(said, s) } })
		b.on()
		b.settle(time.Hour)
		b.off()
		if len(said) != 1 || said[0].Reason != protocol.ReasonBadConfig || len(b.boots) != 1 {
			t.Errorf("said %+v, boots %v", said, b.boots)
		}
	})
}

func TestEveryChipUpdates(t *testing.T) {
	for _, chip := range appimage.Chips() {
		t.Run(chip.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				of := func(o *appimage.BuildOptions) { o.Chip = chip }
				key := newKey(t)
				next := image(t, "1.1.0", of, quarterMiB)
				b := newBench(t, layout(image(t, "1.0.0", of), trusting(t, key)), serve(t, release(t, next, key), next))
				updated(b, 5*time.Minute)
				b.wantRunning(next)
				if got := b.hub.last().Chip; got != chip.String() {
					t.Errorf("says it is an %s", got)
				}
			})
		})
	}
}
