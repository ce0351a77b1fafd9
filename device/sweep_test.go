package device

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/device/internal/agent"
	"bmsota/device/internal/norflash"
	"bmsota/esp/appimage"
	"bmsota/esp/otadata"
	"bmsota/esp/parttable"
	"bmsota/protocol"
)

// long widens the sweeps: BMSOTA_POWERCUT=long, as make powercut sets it, tears every operation of every scenario in
// longTears ways, cuts every operation of the small image twice in all pairs, and takes an hour where the short ones take
// half a minute. Anything else in the variable fails the tests instead of being taken for short.
func long(t testing.TB) bool {
	t.Helper()
	switch v := os.Getenv("BMSOTA_POWERCUT"); v {
	case "":
		return false
	case "long":
		return true
	default:
		t.Fatalf("BMSOTA_POWERCUT=%s is not known: long, or nothing", v)
		return false
	}
}

// Tears tried of an operation: of one on records, tombstones and the head of a slot, and of any other.
const (
	metadataTears, dataTears = 24, 2
	longTears                = 200
	longDataTears            = 8
)

// trace is a whole update, operation by operation: the flash before each of them.
type trace struct {
	ops   []norflash.Op
	forks []*norflash.Flash // forks[i] is the flash before ops[i]; one more at the end
}

// of makes tr see the operations of f from now on.
func (tr *trace) of(f *norflash.Flash) {
	f.OnOp(func(op norflash.Op) {
		tr.ops = append(tr.ops, op)
		tr.forks = append(tr.forks, f.Clone())
	})
}

// cut is the flash after the power failed in operation i.
func (tr *trace) cut(i int, how norflash.Cut) *norflash.Flash {
	f, op := tr.forks[i].Clone(), tr.ops[i]
	f.CutAt(1, how)
	if op.Kind == norflash.OpErase {
		f.Erase(op.Off, op.Len)
	} else {
		// What the chip holds afterwards programs to the same bits as what was programmed.
		data := make([]byte, op.Len)
		tr.forks[i+1].ReadAt(data, op.Off)
		f.Program(op.Off, data)
	}
	f.PowerOn()
	return f
}

// sweep is one power-cut sweep.
type sweep struct {
	layout       Layout
	config       func(*Config) // of every board; may be nil
	order        string        // retained
	server       func() *server
	old          []byte
	next         []byte
	final        []byte // what the board must run in the end
	mutant       agent.Mutant
	metadataOnly bool
	holes        bool // the image crashes before it can see its record, so what has escaped is not tried
	tears        int  // of an operation on metadata; 0: metadataTears
	trouble      func(string)
}

// record runs the order to its end and keeps every state of the flash. It starts from a new board unless from is given.
func (sw *sweep) record(t *testing.T, from *norflash.Flash) *trace {
	tr := &trace{}
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, sw.layout, sw.server(), func(c *Config) {
			c.mutant = sw.mutant
			if from != nil {
				c.Flash = &Flash{base: &lockedFlash{flash: from}}
			}
			if sw.config != nil {
				sw.config(c)
			}
		})
		b.hub.retain(sw.order)
		tr.of(b.flash())
		b.on()
		b.settle(15 * time.Minute)
		b.off()
		tr.forks = append(tr.forks, b.flash().Clone())
	})
	return tr
}

// rest switches the board on with the order still retained and lets it run to rest. It returns what is wrong.
func (sw *sweep) rest(f *norflash.Flash) (problem string) {
	b := &bench{hub: newHub(), server: sw.server()}
	b.hub.retain(sw.order)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	atRest := make(chan struct{}, 1)
	cfg := Config{Flash: &Flash{base: &lockedFlash{flash: f}}, Seed: 7, Transport: b.server, newLink: b.hub.link, strict: true, mutant: sw.mutant}
	var board *Board
	if sw.config != nil {
		sw.config(&cfg)
	}
	boots := 0
	cfg.OnBoot = func(p string, _ ResetReason) {
		boots++
		if boots > 12 && problem == "" {
			problem = "does not come to rest"
			cancel()
		}
		if bad := sw.judge(board.flash, p); bad != "" && problem == "" {
			problem = bad
			cancel()
		}
	}
	cfg.OnStatus = func(s protocol.Status) {
		// Every story ends with the retained order found fulfilled or refused.
		if s.Reason == protocol.ReasonUpToDate || s.Reason == protocol.ReasonQuarantined {
			select {
			case atRest <- struct{}{}:
			default:
			}
		}
	}
	var err error
	if board, err = Open(cfg); err != nil {
		return err.Error()
	}
	done := make(chan error, 1)
	go func() { done <- board.Run(ctx) }()
	select {
	case <-atRest:
	case <-time.After(2 * time.Hour):
		if problem = "no end: " + b.hub.phases(); len(problem) > 600 {
			problem = problem[:300] + " ... " + problem[len(problem)-300:]
		}
	case err := <-done:
		if problem == "" {
			problem = fmt.Sprint("stopped: ", err)
		}
		return problem
	}
	time.Sleep(time.Second)
	cancel()
	if err := <-done; err != nil && problem == "" {
		problem = err.Error()
	}
	if problem == "" {
		if last := b.hub.last(); last.ImageSHA256 != sha(sw.final) {
			problem = fmt.Sprintf("runs %s in the end: %s", last.CurrentVersion, b.hub.phases())
		}
	}
	if problem == "" && board.flash.Ops() > 0 {
		problem = sw.zombies(board.flash)
	}
	return problem
}

// judge looks at what boots: one of the two images, whole.
func (sw *sweep) judge(f *norflash.Flash, booted string) string {
	p, ok := sw.layout.Table.Find(booted)
	if !ok {
		return "boots " + booted
	}
	if !slotHolds(f, p, sw.old) && !slotHolds(f, p, sw.next) {
		return booted + " boots, and holds neither image"
	}
	return ""
}

// zombies finds slots that boot without being one that a record vouches for: invariant I2.
func (sw *sweep) zombies(f *norflash.Flash) string {
	recs := sw.records(f)
	slots := sw.layout.Table.Slots()
	for i, p := range slots {
		_, err := appimage.Verify(io.NewSectionReader(f, int64(p.Offset), int64(p.Size)), appimage.Target{Chip: appimage.ESP32, PartitionSize: int64(p.Size), FlashOffset: int64(p.Offset)})
		if err == nil && !recs[0].Names(i, len(slots)) && !recs[1].Names(i, len(slots)) {
			return p.Name + " boots and no record vouches for it"
		}
	}
	return ""
}

func (sw *sweep) records(f *norflash.Flash) [2]otadata.Record {
	data, _ := sw.layout.Table.OTAData()
	raw := make([]byte, data.Size)
	f.ReadAt(raw, int64(data.Offset))
	recs, err := otadata.Parse(raw)
	if err != nil {
		panic(err)
	}
	return recs
}

func slotHolds(f *norflash.Flash, p parttable.Partition, img []byte) bool {
	b := make([]byte, len(img))
	f.ReadAt(b, int64(p.Offset))
	return bytes.Equal(b, img)
}

// newBeforeBytes finds the first moment in which a record asks for a slot that does not hold the release.
func newBeforeBytes(tr *trace, next []byte) string {
	table := parttable.Default()
	data, _ := table.OTAData()
	for i, f := range tr.forks {
		if i > 0 && tr.ops[i-1].Off >= int64(data.Offset)+int64(data.Size) {
			continue
		}
		raw := make([]byte, data.Size)
		f.ReadAt(raw, int64(data.Offset))
		recs, _ := otadata.Parse(raw)
		for _, r := range recs {
			if r.Usable() && r.State == otadata.New && !slotHolds(f, table.Slots()[otadata.SlotIndex(r.Seq, 2)], next) {
				return fmt.Sprintf("after operation %d a record asks for bytes that are not there", i)
			}
		}
	}
	return ""
}

// crew judges states, each content once, on all processors.
type crew struct {
	sw   *sweep
	jobs chan state
	wg   sync.WaitGroup
	seen map[[32]byte]bool

	states   int // tried, and of those how many differ
	distinct int
	holes    int // not tried: see escaped

	mu  sync.Mutex
	bad int
}

type state struct {
	what string
	f    *norflash.Flash
}

func (sw *sweep) crew(t *testing.T) *crew {
	c := &crew{sw: sw, jobs: make(chan state, 64), seen: map[[32]byte]bool{}}
	for range runtime.GOMAXPROCS(0) {
		c.wg.Go(func() {
			for j := range c.jobs {
				synctest.Test(t, func(t *testing.T) {
					if problem := sw.rest(j.f); problem != "" {
						c.mu.Lock()
						defer c.mu.Unlock()
						if c.bad++; c.bad <= 5 && sw.trouble != nil {
							sw.trouble(j.what + ": " + problem)
						}
					}
				})
			}
		})
	}
	return c
}

// try judges a state, and says whether it was new.
func (c *crew) try(what string, f *norflash.Flash) bool {
	c.states++
	sum := c.sw.content(f)
	if c.seen[sum] {
		return false
	}
	c.seen[sum] = true
	c.distinct++
	c.jobs <- state{what, f}
	return true
}

func (c *crew) finish() {
	close(c.jobs)
	c.wg.Wait()
}

// metadata says whether everything hangs on the operation: on records, eFuses, tombstones and what a slot begins with.
func (sw *sweep) metadata(op norflash.Op) bool {
	if op.Off < 0x9000 {
		return true
	}
	for _, p := range sw.layout.Table {
		start := int64(p.Offset)
		switch {
		case op.Off < start || op.Off >= int64(p.End()):
		case p.Type == parttable.TypeApp:
			return op.Off < start+0x80
		default:
			return true
		}
	}
	return false
}

// cuts calls try with every state that a power cut in operation i can leave, as far as tears go.
func (tr *trace) cuts(i, tears int, try func(what string, f *norflash.Flash)) {
	at := fmt.Sprintf("operation %d (%v at 0x%x)", i+1, tr.ops[i].Kind, tr.ops[i].Off)
	try("cut before "+at, tr.cut(i, norflash.Before))
	for seed := range uint64(tears) {
		try(fmt.Sprintf("cut torn by %d in %s", seed, at), tr.cut(i, norflash.Torn(seed)))
	}
	try("cut after "+at, tr.cut(i, norflash.After))
}

// run cuts every operation of tr in every way.
func (sw *sweep) run(t *testing.T, tr *trace) *crew {
	c := sw.crew(t)
	onMetadata, onData := cmp.Or(sw.tears, metadataTears), dataTears
	if long(t) {
		onMetadata, onData = max(onMetadata, longTears), longDataTears
	}
	for i, op := range tr.ops {
		metadata := sw.metadata(op)
		tears := onData
		if metadata {
			tears = onMetadata
		} else if sw.metadataOnly {
			continue
		}
		tr.cuts(i, tears, func(what string, f *norflash.Flash) {
			if sw.holes && sw.escaped(tr, i, f) {
				c.holes++
				return
			}
			c.try(what, f)
		})
	}
	c.finish()
	return c
}

// escaped says whether f is what ESP-IDF's bootloader alone is to blame for: it rewrote the record of a trial, the power
// failed in that, and what is left has a right CRC and a state that boots without a trial.
func (sw *sweep) escaped(tr *trace, i int, f *norflash.Flash) bool {
	data, _ := sw.layout.Table.OTAData()
	op := tr.ops[i]
	sector := (op.Off - int64(data.Offset)) / norflash.SectorSize
	if sector != 0 && sector != 1 {
		return false
	}
	before, after := sw.records(tr.forks[i])[sector], sw.records(f)[sector]
	// The bootloader erases a record that counts and programs all of it at once; the application does neither.
	trial := before.Usable() && (before.State == otadata.New || before.State == otadata.PendingVerify)
	bootloader := op.Kind == norflash.OpErase && trial || op.Kind == norflash.OpProgram && op.Len == otadata.RecordSize
	return bootloader && after.Usable() && (after.State == otadata.Undefined || !after.State.Named())
}

// content is the digest of what may differ in a sweep: eFuses, records and slots, not the storage.
func (sw *sweep) content(f *norflash.Flash) [32]byte {
	h := sha256.New()
	var b [norflash.SectorSize]byte
	add := func(off, length int64) {
		for end := off + length; off < end; off += norflash.SectorSize {
			f.ReadAt(b[:], off)
			h.Write(b[:])
		}
	}
	add(fuseOffset, norflash.SectorSize)
	data, _ := sw.layout.Table.OTAData()
	add(int64(data.Offset), int64(data.Size))
	for _, p := range sw.layout.Table.Slots() {
		add(int64(p.Offset), int64(max(len(sw.old), len(sw.next)))+2*norflash.SectorSize)
	}
	return [32]byte(h.Sum(nil))
}

func sweepOf(t *testing.T, next []byte, final func(old, next []byte) []byte, mutant agent.Mutant) (*sweep, *trace) {
	t.Helper()
	return sweepBy(t, newKey(t), next, final, mutant)
}

func sweepBy(t *testing.T, key *ecdsa.PrivateKey, next []byte, final func(old, next []byte) []byte, mutant agent.Mutant) (*sweep, *trace) {
	t.Helper()
	old := image(t, "1.0.0")
	f := release(t, next, key)
	l := layout(old, trusting(t, key))
	l.Table = parttable.Default()
	l.Table[5].Size = 64 << 10 // every boot reads the storage partition; the sweep boots ten thousand times
	sw := &sweep{order: `{"action":"update"}`, layout: l, old: old, next: next, final: final(old, next), mutant: mutant,
		server: func() *server { return serve(t, f, next) }, trouble: func(s string) { t.Error(s) }}
	return sw, sw.record(t, nil)
}

func toNew(_, next []byte) []byte { return next }
func toOld(old, _ []byte) []byte  { return old }

// TestPowerCutSweep cuts the power before, in and after every flash operation of a whole update. Each time a verified
// image boots, and the retained order brings the board where the undisturbed one is.
func TestPowerCutSweep(t *testing.T) {
	sw, tr := sweepOf(t, image(t, "1.1.0"), toNew, agent.MutantNone)
	if s := newBeforeBytes(tr, sw.next); s != "" {
		t.Error(s)
	}
	sw.report(t, tr)
	if len(tr.ops) < 1000 {
		t.Errorf("only %d operations were recorded", len(tr.ops))
	}
}

// report runs a sweep and says in one line what it did.
func (sw *sweep) report(t *testing.T, tr *trace) {
	t.Helper()
	began := time.Now()
	c := sw.run(t, tr)
	holes := ""
	if sw.holes {
		holes = fmt.Sprintf(", %d escape ESP-IDF's bootloader", c.holes)
	}
	t.Logf("power cuts: %s: %d operations, %d states (%d distinct), %d bad%s, %v", t.Name(), len(tr.ops), c.states, c.distinct, c.bad, holes, time.Since(began).Round(time.Millisecond))
	if c.holes > c.states/50 {
		t.Errorf("%d states escape the bootloader, that is more than ever", c.holes)
	}
}

// TestPowerCutSweepOfAFailedTrial does the same to updates that are undone: the board ends on the old image, the
// failed one is quarantined and no longer bootable.
//
// What stays open is ESP-IDF's: where the bootloader itself rewrites the record of a trial (NEW to PENDING, PENDING to
// ABORTED), an erase or a program that is cut short can leave a right CRC and a state that is no trial. An image that
// runs is then put on trial by the agent; one that crashes at once is undone by nobody. Of 800 torn forms of those four
// operations 26 leave such a state; they are counted apart.
func TestPowerCutSweepOfAFailedTrial(t *testing.T) {
	for _, b := range []appimage.Behaviour{appimage.BehaviourUnhealthy, appimage.BehaviourCrash} {
		t.Run(string(b), func(t *testing.T) {
			sw, tr := sweepOf(t, image(t, "1.1.0", trial(b)), toOld, agent.MutantNone)
			sw.metadataOnly = true // the bytes of the image are TestPowerCutSweep's
			sw.holes = b == appimage.BehaviourCrash
			sw.report(t, tr)
		})
	}
}

// TestPowerCutSweepOfARollback cuts the power all through an operator's rollback, given as a retained order by version.
func TestPowerCutSweepOfARollback(t *testing.T) {
	sw, tr := sweepOf(t, image(t, "1.1.0"), toOld, agent.MutantNone)
	updated := tr.forks[len(tr.forks)-1]
	sw.order = `{"action":"rollback","version":"1.0.0"}`
	tr = sw.record(t, updated)
	if len(tr.ops) < 8 {
		t.Errorf("only %d operations were recorded", len(tr.ops))
	}
	sw.report(t, tr)
}

// TestPowerCutSweepOfTheUpdateAfterARollback: the slot holds a tombstone, its record is aborted, and another release
// comes.
func TestPowerCutSweepOfTheUpdateAfterARollback(t *testing.T) {
	key := newKey(t)
	_, tr := sweepBy(t, key, image(t, "1.0.9", trial(appimage.BehaviourCrash)), toOld, agent.MutantNone)
	undone := tr.forks[len(tr.forks)-1]
	sw, _ := sweepBy(t, key, image(t, "1.1.0"), toNew, agent.MutantNone)
	sw.metadataOnly = true
	tr = sw.record(t, undone)
	if len(tr.ops) < 1000 {
		t.Errorf("only %d operations were recorded", len(tr.ops))
	}
	sw.report(t, tr)
}

// TestPowerCutSweepOfMendingRecords: the slot that the records ask for is damaged, and the board that fell back mends
// them. The damaged image is neither the old nor the new one, and never boots.
func TestPowerCutSweepOfMendingRecords(t *testing.T) {
	sw, tr := sweepOf(t, image(t, "1.1.0"), toNew, agent.MutantNone)
	damaged := tr.forks[len(tr.forks)-1].Clone()
	put(t, damaged, 0x1A0000+30<<10, []byte{1, 2, 3})
	sw.metadataOnly = true
	sw.report(t, sw.record(t, damaged))
}

// TestResetsAtEveryStepOfAnUpdate resets the board, in every way there is, at its n-th status.
func TestResetsAtEveryStepOfAnUpdate(t *testing.T) {
	key := newKey(t)
	old, next := image(t, "1.0.0"), image(t, "1.1.0")
	f := release(t, next, key)
	for _, why := range []ResetReason{PowerOn, Software, Panic, Watchdog, Brownout} {
		for n := 1; n <= 16; n++ {
			synctest.Test(t, func(t *testing.T) {
				var b *bench
				seen := 0
				b = newBench(t, layout(old, trusting(t, key)), serve(t, f, next), func(c *Config) {
					c.OnStatus = func(protocol.Status) {
						if seen++; seen == n {
							b.board.Reset(why)
						}
					}
				})
				b.hub.retain(`{"action":"update"}`)
				b.on()
				b.settle(20 * time.Minute)
				b.off()
				last := b.hub.last()
				blamed := false // a crash in the trial is the image's fault, and that is for good
				for _, s := range b.hub.all() {
					blamed = blamed || s.Phase == protocol.PhaseRolledBack && s.Reason != protocol.ReasonPowerLoss
				}
				want := "1.1.0"
				if blamed {
					want = "1.0.0"
				}
				if last.CurrentVersion != want || last.RollbackPending {
					t.Errorf("%s at status %d: runs %s, want %s: %s", why, n, last.CurrentVersion, want, b.hub.phases())
				}
			})
		}
	}
}
