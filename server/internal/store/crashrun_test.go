package store_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"

	"bmsota/durable"
	"bmsota/durable/crashdisk"
	"bmsota/protocol"
	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"
)

// acknowledged is a moment at which somebody was told that something is kept.
type acknowledged struct {
	ops  int    // how many operations had happened on the disk
	dump string // every row of the database
	blob string // the digest of a firmware file that is kept; then dump is empty
	step string // what the server was doing
}

// site is a server's storage on a disk that is written down, with the fleet on top: the store and the blobs that the
// server has, which note what they acknowledge.
type site struct {
	t      testing.TB
	dir    string
	log    *crashdisk.Log
	db     *store.DB
	folder *store.Folder

	// Of mutants, which leave out what keeps the promise; zero in the server that is tested.
	change func(*store.DB) error             // after every open
	files  func(durable.Files) durable.Files // between the firmware folder and the disk
	deaf   func(crashdisk.Op) bool           // what does not reach the disk
	late   bool                              // firmware files are written after the next row

	will func(dump string) // told what a commit is about to keep; may be nil
	did  func(dump string) // told what is acknowledged; may be nil

	mu     sync.Mutex   // an update and its note are one
	after  func() error // the write that late has put off; guarded by mu, as the next
	putOff map[string][]byte
	acks   []acknowledged
	step   string
}

// newSite is a site in dir whose disk is written down from now on.
func newSite(t testing.TB, dir string) *site {
	t.Helper()
	s := &site{t: t, dir: dir, log: &crashdisk.Log{}, putOff: make(map[string][]byte)}
	watch(t, dir, s.log)
	return s
}

// open opens the storage as the server does.
func (s *site) open() {
	s.t.Helper()
	var err error
	if s.db, err = store.OpenSQLite(s.t.Context(), filepath.Join(s.dir, "bmsota.db")); err != nil {
		s.t.Fatal(err)
	}
	if s.change != nil {
		if err := s.change(s.db); err != nil {
			s.t.Fatal(err)
		}
	}
	if len(s.acks) == 0 { // what OpenFolder does at a first start, by durable.MkdirAll, which has a test of its own
		s.log.Do(crashdisk.Op{Kind: crashdisk.Mkdir, Name: "firmware"}, func() error { return nil })
		s.log.Do(crashdisk.Op{Kind: crashdisk.SyncFolder, Name: "."}, func() error { return nil })
	}
	if s.folder, err = store.OpenFolder(filepath.Join(s.dir, "firmware")); err != nil {
		s.t.Fatal(err)
	}
	s.folder.SetFiles(func(real durable.Files) durable.Files {
		real = crashdisk.Files{Log: s.log, Real: real, Under: "firmware"}
		if s.files != nil {
			real = s.files(real)
		}
		return real
	})
	s.note()
}

func (s *site) close() {
	s.t.Helper()
	if err := errors.Join(s.db.Close(), s.folder.Close()); err != nil {
		s.t.Fatal(err)
	}
}

// note writes down that everything the database holds now is owed.
func (s *site) note() {
	dump, err := s.db.Dump(context.WithoutCancel(s.t.Context()))
	if err != nil {
		s.t.Error(err)
	}
	s.acks = append(s.acks, acknowledged{ops: s.log.Len(), dump: dump, step: s.step})
	if s.did != nil {
		s.did(dump)
	}
}

// noting is the store of a site.
type noting struct {
	fleet.Store
	s *site
}

func (n noting) Update(ctx context.Context, fn func(fleet.Tx) error) error {
	n.s.mu.Lock()
	defer n.s.mu.Unlock()
	err := n.Store.Update(ctx, func(tx fleet.Tx) error {
		if err := fn(tx); err != nil || n.s.will == nil {
			return err
		}
		dump, err := store.DumpTx(ctx, tx)
		n.s.will(dump)
		return err
	})
	if err != nil {
		return err
	}
	n.s.note()
	if after := n.s.after; after != nil {
		n.s.after = nil
		return after()
	}
	return nil
}

// keeping is the blobs of a site.
type keeping struct {
	fleet.Blobs
	s *site
}

func (k keeping) Put(ctx context.Context, sha256 string, size int64, r io.Reader) error {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	if k.s.late {
		b, err := io.ReadAll(r)
		k.s.putOff[sha256] = b
		k.s.after = func() error {
			delete(k.s.putOff, sha256)
			return k.Blobs.Put(ctx, sha256, size, bytes.NewReader(b))
		}
		return err
	}
	if err := k.Blobs.Put(ctx, sha256, size, r); err != nil {
		return err
	}
	k.s.acks = append(k.s.acks, acknowledged{ops: k.s.log.Len(), blob: sha256, step: k.s.step})
	return nil
}

// inMemory is a firmware file that is not written yet.
type inMemory struct{ *bytes.Reader }

func (inMemory) Close() error { return nil }

func (k keeping) Open(ctx context.Context, sha256 string) (fleet.Blob, error) {
	k.s.mu.Lock()
	b, ok := k.s.putOff[sha256]
	k.s.mu.Unlock()
	if ok {
		return inMemory{bytes.NewReader(b)}, nil
	}
	return k.Blobs.Open(ctx, sha256)
}

func (k keeping) Reread(ctx context.Context, sha256 string) (fleet.Blob, error) {
	return k.Open(ctx, sha256)
}

// serve opens the storage and runs a fleet over it until stop is called.
func (s *site) serve() (f *fleet.Fleet, b *boards, stop func()) {
	s.t.Helper()
	s.open()
	f, err := fleet.New(fleet.Config{Store: noting{s.db, s}, Blobs: keeping{s.folder, s}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(s.t.Context())
	done := make(chan error, 1)
	b = &boards{t: s.t, fleet: f, retained: map[string]protocol.Command{}, heard: map[string]uint64{}, did: map[string]string{}}
	go func() { done <- f.Run(ctx, b) }()
	synctest.Wait()
	return f, b, func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Error(err)
		}
		s.close()
	}
}

// monitors are the ids of a site's boards.
var monitors = [...]string{"d1", "d2", "d3", "d4"}

// boards are devices that do what they are told, through the fleet's own door.
type boards struct {
	t     testing.TB
	fleet *fleet.Fleet
	bad   string // a board whose updates are undone

	mu       sync.Mutex
	retained map[string]protocol.Command // guarded by mu
	heard    map[string]uint64           // statuses so far; guarded by mu
	did      map[string]string           // command taken up last; guarded by mu
}

func (b *boards) Send(_ context.Context, device string, cmd protocol.Command) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.retained[device] = cmd
	return nil
}

func (b *boards) Clear(_ context.Context, device string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.retained, device)
	return nil
}

func (b *boards) Drop(context.Context, string) error { return nil }

// say is tell that must go well.
func (b *boards) say(device string, phase protocol.Phase, version, command string, reason protocol.Reason) {
	b.t.Helper()
	if err := b.tell(device, phase, version, command, reason); err != nil {
		b.t.Fatal(err)
	}
}

// tell folds a status of a board.
func (b *boards) tell(device string, phase protocol.Phase, version, command string, reason protocol.Reason) error {
	b.heard[device]++
	s := protocol.Status{BootID: "b", Seq: b.heard[device], Phase: phase, Reason: reason, CurrentVersion: version, CommandID: command,
		Project: "bms", Chip: "esp32c3", RollbackProtected: true, SlotSize: 1536 << 10, Battery: &protocol.Battery{SOCPct: 80}}
	text, err := s.Append(nil)
	if err != nil {
		return err
	}
	err = b.fleet.Fold(b.t.Context(), device, false, text)
	synctest.Wait()
	return err
}

// work has every board take up what is retained for it, to its end.
func (b *boards) work(version string) {
	b.t.Helper()
	for _, id := range monitors {
		b.mu.Lock()
		cmd, ok := b.retained[id]
		b.mu.Unlock()
		if !ok || cmd.Action != protocol.ActionUpdate || b.did[id] == cmd.ID {
			continue
		}
		b.did[id] = cmd.ID
		b.say(id, protocol.PhaseChecking, "1.0.0", cmd.ID, protocol.ReasonNone)
		b.say(id, protocol.PhaseDownloading, "1.0.0", cmd.ID, protocol.ReasonNone)
		if id == b.bad {
			b.say(id, protocol.PhaseRolledBack, "1.0.0", cmd.ID, protocol.ReasonCrash)
			continue
		}
		b.say(id, protocol.PhaseConfirmed, version, cmd.ID, protocol.ReasonNone)
	}
}

// life is what happens at a site: first start, releases, statuses, a channel, an order, a rollout that is done and one that
// is paused, resumed and halted, and a restart in the middle. It runs in a bubble of virtual time.
func (s *site) life() {
	t, ctx := s.t, s.t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", s.step, err)
		}
	}
	begin := func(step string) {
		synctest.Wait() // what the server does by itself about the step before is done: one order in every life
		s.mu.Lock()     // but for who has come, which it notes a moment later
		defer s.mu.Unlock()
		s.step = step
	}

	begin("first start")
	f, b, stop := s.serve()
	time.Sleep(300 * time.Millisecond) // never at the moment at which the server looks at its rollouts
	for _, v := range []string{"1.0.0", "2.0.0"} {
		begin("publish " + v)
		must(publishBy(ctx, f, s.dir, v, 40<<10))
	}
	begin("fold")
	for _, id := range monitors {
		b.say(id, protocol.PhaseIdle, "1.0.0", "", protocol.ReasonNone)
		must(f.Connected(ctx, id))
	}
	begin("channel")
	_, err := f.SetChannel(ctx, root, "bms", "esp32c3", "beta", "2.0.0")
	must(err)
	begin("start")
	_, err = f.Order(ctx, root, "d1", false, []byte(`{"action":"update","version":"2.0.0"}`))
	must(err)
	time.Sleep(time.Minute) // a connected board is given time to answer before it is asked again
	b.work("2.0.0")
	begin("restart")
	stop()
	heard := b.heard
	f, b, stop = s.serve()
	time.Sleep(300 * time.Millisecond)
	b.heard = heard
	for _, id := range monitors {
		must(f.Connected(ctx, id))
	}
	rollout := func(version string, bad string) {
		b.bad = bad
		begin("rollout create")
		r, err := f.CreateRollout(ctx, root, fleet.RolloutRequest{Version: version, Policy: fleet.Policy{
			Selector: fleet.Selector{IDs: []string{"d2", "d3", "d4"}}, Waves: []fleet.Wave{{Count: 1, Soak: time.Second}, {Count: 3}}, Concurrency: 3}})
		must(err)
		begin("advance")
		for i := range 60 {
			time.Sleep(2 * time.Second)
			b.work(version)
			if i == 1 && bad != "" {
				begin("pause")
				_, err = f.Pause(ctx, root, r.ID)
				must(err)
				begin("resume")
				_, err = f.Resume(ctx, root, r.ID)
				must(err)
				begin("halt")
			}
			v, err := f.Rollout(ctx, r.ID)
			must(err)
			if v.State != fleet.RolloutRunning {
				if want := map[bool]fleet.RolloutState{true: fleet.RolloutDone, false: fleet.RolloutHalted}[bad == ""]; v.State != want {
					t.Fatalf("the rollout is %s, want %s: %+v", v.State, want, v.Events)
				}
				return
			}
		}
		t.Fatal("the rollout does not end")
	}
	rollout("2.0.0", "")
	begin("publish 3.0.0")
	must(publishBy(ctx, f, s.dir, "3.0.0", 40<<10))
	rollout("3.0.0", "d3")
	begin("stop")
	stop()
	s.step = "" // nobody writes any more
}

// live is the life of a site on a new disk, that of a mutant where mutate says so. With the same seed it is the same life.
func live(t *testing.T, seed uint64, mutate func(*site)) *site {
	t.Helper()
	cryptotest.SetGlobalRandom(t, seed)
	s := newSite(t, newDir(t))
	if mutate != nil {
		mutate(s)
	}
	synctest.Test(t, func(t *testing.T) {
		s.t = t
		s.life()
	})
	s.t = t
	return s
}
