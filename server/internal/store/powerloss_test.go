package store_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"bmsota/durable"
	"bmsota/durable/crashdisk"
	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"
)

// BMSOTA_CRASH=long lets the power go after every operation instead of at every sync; BMSOTA_CRASH_SEED repeats a run.
const (
	crashLength = "BMSOTA_CRASH"
	crashSeed   = "BMSOTA_CRASH_SEED"
)

// sweep is how the power goes over the life of a site.
type sweep struct {
	seed   uint64
	every  bool // after every operation, not only around those that make something durable
	rounds int  // of each kind of survival that chance decides
	first  bool // end at the first state that is wrong
}

func newSweep(t *testing.T) sweep {
	t.Helper()
	w := sweep{seed: 20261, rounds: 1}
	if os.Getenv(crashLength) == "long" {
		w.every, w.rounds, w.seed = true, 3, rand.Uint64()
	}
	if text := os.Getenv(crashSeed); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		w.seed = seed
	}
	return w
}

// tally is what a sweep has found.
type tally struct {
	moments, states, distinct, wrong int
	by                               map[crashdisk.Survival]int // wrong ones
}

func (y tally) String() string {
	return fmt.Sprintf("%d moments, %d states of the disk (%d of them different), %d wrong", y.moments, y.states, y.distinct, y.wrong)
}

// losePower rebuilds what the disk of s could hold at every moment, has the server's own code open it, and reports what
// is missing, half or broken there.
func (w sweep) losePower(t *testing.T, s *site, report func(format string, args ...any)) tally {
	t.Helper()
	ops := s.log.Ops()
	disk := crashdisk.NewReplay()
	y := tally{by: map[crashdisk.Survival]int{}}
	seen := map[string]bool{}
	for n := 0; n <= len(ops); n++ { // the power goes after n operations
		if n > 0 && (s.deaf == nil || !s.deaf(ops[n-1])) {
			if err := disk.Apply(ops[n-1]); err != nil {
				t.Fatal(err)
			}
		}
		if !w.every && n < len(ops) && !decides(ops[n].Kind) && (n == 0 || !decides(ops[n-1].Kind)) {
			continue
		}
		y.moments++
		for _, survival := range crashdisk.Survivals() {
			rounds := w.rounds
			if survival == crashdisk.Dropped || survival == crashdisk.Kept {
				rounds = 1
			}
			for round := range rounds {
				// Each state has a seed of its own, so that one can be made again without those before it.
				rng := rand.New(rand.NewPCG(w.seed, uint64(n)<<16|uint64(survival)<<8|uint64(round)))
				image := disk.Lose(survival, rng)
				y.states++
				owed := s.owed(n)
				key := fmt.Sprintf("%x %d", image.Sum(), owed.at)
				if seen[key] {
					continue
				}
				seen[key] = true
				y.distinct++
				err := revive(t, image, owed)
				if err == nil {
					continue
				}
				y.wrong++
				y.by[survival]++
				what := "the end"
				if n < len(ops) {
					what = fmt.Sprintf("%s %s", ops[n].Kind, ops[n].Name)
				}
				report("seed %d, %s, before operation %d (%s), what was not synced %s, round %d: %v", w.seed, owed.step, n, what, survival, round, err)
				if w.first {
					return y
				}
			}
		}
	}
	return y
}

// decides says that an operation makes something durable: the moments before and after it are those that differ most.
func decides(k crashdisk.Kind) bool {
	return k == crashdisk.Sync || k == crashdisk.SyncFolder || k == crashdisk.Rename || k == crashdisk.Remove || k == crashdisk.Truncate
}

// owed is what must be there, and what may.
type owed struct {
	at    int      // of the acknowledgements
	dumps []string // the database holds one of these: what was acknowledged last, or what was just being done
	blobs []string
	step  string
}

func (s *site) owed(ops int) owed {
	o := owed{step: "first start"}
	for _, a := range s.acks {
		switch {
		case a.ops <= ops && a.blob != "":
			o.blobs = append(o.blobs, a.blob)
		case a.ops <= ops:
			o.dumps = []string{a.dump}
		case a.blob == "":
			o.dumps, o.step = append(o.dumps, a.dump), a.step
			return o
		}
		if a.ops <= ops {
			o.at++
			o.step = a.step
		}
	}
	return o
}

// revive opens what the power has left with the server's own code.
func revive(t *testing.T, image crashdisk.Image, o owed) (err error) {
	t.Helper()
	dir, err := os.MkdirTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := image.WriteTo(dir); err != nil {
		t.Fatal(err)
	}
	for name, b := range image { // also those that nobody was told of: a name stands for its bytes
		if sha, named := strings.CutSuffix(path.Base(name), ".bin"); named && digest(b) != sha {
			return fmt.Errorf("%s holds other bytes", name)
		}
	}
	watch(t, dir, nil)
	ctx := t.Context()
	db, err := store.OpenSQLite(ctx, filepath.Join(dir, "bmsota.db"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	folder, err := store.OpenFolder(filepath.Join(dir, "firmware"))
	if err != nil {
		return err
	}
	defer folder.Close()
	if wrong, err := db.Check(ctx); err != nil || len(wrong) > 0 {
		return fmt.Errorf("the database is damaged: %v %w", wrong, err)
	}
	dump, err := db.Dump(ctx)
	if err != nil {
		return err
	}
	if !slices.Contains(o.dumps, dump) {
		return fmt.Errorf("the database holds neither what was acknowledged nor what came next: %s", difference(o.dumps[0], dump))
	}
	for _, sha := range o.blobs {
		if err := whole(t.Context(), folder, sha); err != nil {
			return err
		}
	}
	return releasesAreWhole(ctx, db, folder)
}

// releasesAreWhole says whether the bytes of every release are there.
func releasesAreWhole(ctx context.Context, db *store.DB, folder *store.Folder) error {
	return db.View(ctx, func(tx fleet.Tx) error {
		releases, err := tx.Releases()
		for _, r := range releases {
			err = errors.Join(err, whole(ctx, folder, r.SHA256))
		}
		return err
	})
}

// whole says whether a firmware file is there with its bytes.
func whole(ctx context.Context, folder *store.Folder, sha string) error {
	blob, err := folder.Open(ctx, sha)
	if err != nil {
		return err
	}
	defer blob.Close()
	b, err := io.ReadAll(blob)
	if err == nil && digest(b) != sha {
		err = errors.New("other bytes")
	}
	if err != nil {
		return fmt.Errorf("firmware %.12s…: %w", sha, err)
	}
	return nil
}

// difference is the first lines that two dumps do not share.
func difference(want, got string) string {
	a, b := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range a {
		if i >= len(b) || a[i] != b[i] {
			return fmt.Sprintf("acknowledged %.200q, there %.200q", a[i:min(i+1, len(a))], b[min(i, len(b)):min(i+1, len(b))])
		}
	}
	return "there is more"
}

// TestPowerLossAtEverySyncLosesNothingAcknowledged is the promise of the package. At every operation of a server's life
// that makes something durable (with BMSOTA_CRASH=long: at every operation) the power goes, and what was not synced is
// lost, kept, torn or reordered.
func TestPowerLossAtEverySyncLosesNothingAcknowledged(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*site)
	}{
		{"", nil},
		// What a busy server does every thousand pages: fold the log into the database, and begin it again from the front.
		{"with the log folded in often", pragma("wal_autocheckpoint", "16")},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newSweep(t)
			s := live(t, w.seed, c.change)
			y := w.losePower(t, s, t.Errorf)
			t.Logf("seed %d: %d operations, %d acknowledgements, %s", w.seed, s.log.Len(), len(s.acks), y)
		})
	}
}

func pragma(name, value string) func(*site) {
	return func(s *site) { s.change = func(db *store.DB) error { return db.Set(name, value) } }
}

// TestEveryGuardOfTheStorageIsNeeded switches off what keeps the promise, one guard at a time: every one of these servers
// loses what it has acknowledged, or worse.
func TestEveryGuardOfTheStorageIsNeeded(t *testing.T) {
	deaf := func(kind crashdisk.Kind, name string) func(*site) {
		return func(s *site) { s.deaf = func(op crashdisk.Op) bool { return op.Kind == kind && op.Name == name } }
	}
	forget := func(what crashdisk.Forgets) func(*site) {
		return func(s *site) {
			s.files = func(real durable.Files) durable.Files { return crashdisk.Forgetful(real, what) }
		}
	}
	const renamedFirst = "firmware renamed before its fsync"
	for _, c := range []struct {
		name   string
		mutate func(*site)
	}{
		{"synchronous=NORMAL", pragma("synchronous", "NORMAL")},
		{"synchronous=OFF", pragma("synchronous", "OFF")},
		{"no fsync of the log", deaf(crashdisk.Sync, "bmsota.db-wal")},
		{"no fsync of the database", deaf(crashdisk.Sync, "bmsota.db")},
		{"no fsync of the data folder", deaf(crashdisk.SyncFolder, ".")},
		{"no fsync of a firmware folder", forget(crashdisk.FolderSync)},
		{"no fsync of the firmware file", forget(crashdisk.FileSync)},
		{renamedFirst, forget(crashdisk.SyncBeforeRename)},
		{"row before file", func(s *site) { s.late = true }},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newSweep(t)
			w.first, w.every = true, false
			if c.name == renamedFirst {
				w.rounds = 6 // its window is one operation, which must not be missed by chance
			}
			first := ""
			y := w.losePower(t, live(t, w.seed, c.mutate), func(format string, args ...any) { first = fmt.Sprintf(format, args...) })
			t.Logf("%s; the first: %s", y, first)
			if y.wrong == 0 {
				t.Error("nobody notices that it is missing")
			}
		})
	}
}

// TestTheSameSeedIsTheSameLife: what a failure prints makes it again. (The salts of SQLite's log are its own.)
func TestTheSameSeedIsTheSameLife(t *testing.T) {
	life := func(t *testing.T, seed uint64) (list []string) {
		for _, op := range live(t, seed, nil).log.Ops() {
			list = append(list, fmt.Sprintf("%s %s %s %d %d", op.Kind, op.Name, op.To, op.Offset, len(op.Data)))
		}
		return list
	}
	var lives [3][]string
	for i, seed := range []uint64{1, 1, 2} {
		t.Run(fmt.Sprint(i), func(t *testing.T) { lives[i] = life(t, seed) })
	}
	for i := range min(len(lives[0]), len(lives[1])) {
		if lives[0][i] != lives[1][i] {
			t.Fatalf("operation %d is %q and %q", i, lives[0][i], lives[1][i])
		}
	}
	if len(lives[0]) != len(lives[1]) || slices.Equal(lives[0], lives[2]) {
		t.Errorf("%d and %d operations; another seed gives another life: %v", len(lives[0]), len(lives[1]), !slices.Equal(lives[0], lives[2]))
	}
}
