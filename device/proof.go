package device

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"bmsota/device/internal/norflash"
	"bmsota/esp/appimage"
	"bmsota/esp/parttable"
	"bmsota/manifest"
)

// ErrNoProof is wrapped by what is wrong with what a proof is asked about: images or a table that no board can have.
var ErrNoProof = errors.New("nothing to prove")

// ProofConfig is a partition table and a pair of images. Zero fields beyond these three are the defaults.
type ProofConfig struct {
	Old, New  []byte
	Table     parttable.Table
	FlashSize int64 // bytes; 0: the smallest chip that the table fits, from 4 MiB on

	Every int    // of the operations on the image's bytes, cut one in so many; 0: 1, all of them. Those on metadata are all cut.
	Seed  uint64 // decides which those are, and the tears
	Cuts  int    // power cuts in one update, up to 3; 0: 1. From the second on, operations on metadata are cut.
	Jobs  int    // boards that run at once; 0: eight for each processor

	OnStory    func(ProofPlan)    // before each story
	OnProgress func(done, of int) // cuts of that story; at most every 100 ms
	OnFailure  func(ProofFailure) // a board that does not come back
}

// ProofPlan is what will be done to one story.
type ProofPlan struct {
	Story      string        `json:"story"`
	About      string        `json:"about"`
	Operations int           `json:"operations"` // of flash, undisturbed
	Cuts       int           `json:"cuts"`       // first cuts: an operation and a way to cut it
	Estimate   time.Duration `json:"-"`
}

// ProofFailure is a state that a board does not come back from.
type ProofFailure struct {
	Story   string `json:"story"`
	Cut     string `json:"cut"`
	Problem string `json:"problem"`
	Flash   []byte `json:"-"` // content of the chip when the power comes back
}

// StoryReport is what was found about one story.
type StoryReport struct {
	ProofPlan
	Done     int  `json:"cuts_done"`
	States   int  `json:"states"`               // that cuts left, later ones included
	Distinct int  `json:"distinct_states"`      // different contents among them
	Escaped  int  `json:"escaped_bootloader"`   // set aside: see the limits
	Bricks   int  `json:"bricks"`               // states without a way back
	Boots    int  `json:"worst_recovery_boots"` // from a cut until the board rests
	Complete bool `json:"complete"`             // false where time ran out
}

// Prove cuts the power all through what can happen to a board with this table and these images, and runs the board from
// every flash that this leaves until it rests. It needs no network and sleeps for nothing. With ctx ended it returns what
// there is; a deadline is shared out among the stories. An error is about the question (ErrNoProof) or a story that goes wrong without any power cut.
func Prove(ctx context.Context, cfg ProofConfig) ([]StoryReport, error) {
	p, err := newProof(cfg)
	if err != nil {
		return nil, err
	}
	var out []StoryReport
	for i, t := range p.stories {
		if ctx.Err() != nil { // who interrupts does not wait for what is not told any more
			out = append(out, StoryReport{ProofPlan: ProofPlan{Story: t.name, About: t.about}})
			continue
		}
		r, err := p.inTurn(ctx, i)
		if err != nil {
			return out, fmt.Errorf("%s: %w", p.stories[i].name, err)
		}
		out = append(out, r)
	}
	return out, nil
}

// inTurn proves the i-th story, in its share of the time that is left.
func (p *proof) inTurn(ctx context.Context, i int) (StoryReport, error) {
	if end, ok := ctx.Deadline(); ok {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, time.Until(end)/time.Duration(len(p.stories)-i))
		defer stop()
	}
	return p.prove(ctx, &p.stories[i])
}

// Replay runs a board of a story from this content of its flash, as Prove did, and tells what it does. It returns what is
// wrong in the end, empty where nothing is.
func Replay(cfg ProofConfig, story string, flash []byte, tell func(string)) (problem string, err error) {
	p, err := newProof(cfg)
	if err != nil {
		return "", err
	}
	if int64(len(flash)) != p.size {
		return "", fmt.Errorf("%w: the flash has %d bytes, a board with this table has %d", ErrNoProof, len(flash), p.size)
	}
	for i := range p.stories {
		if s := &p.stories[i]; s.name == story {
			x := p.explorer(s)
			x.clear()
			x.tell = tell
			return x.follow(norflash.FromBytes(flash), 0, false).problem, nil
		}
	}
	return "", fmt.Errorf("%w: there is no story %.32q", ErrNoProof, story)
}

// proof is a table and a pair of images with the stories about them.
type proof struct {
	cfg     ProofConfig
	table   parttable.Table // with a storage partition
	size    int64           // of the chip
	key     *ecdsa.PrivateKey
	stories []tale

	noKeysBack, noFloorBack bool // the old image has older keys, a lower security floor: no way back to it
}

// tale is a story with what is said about it.
type tale struct {
	story
	about string
	waits bool // its lives wait for a deadline
}

// trialSeconds is how long an image that nothing is heard of has in the story about it: each life of it waits so long.
const trialSeconds = 4

func newProof(cfg ProofConfig) (*proof, error) {
	cfg.Every, cfg.Cuts = max(cfg.Every, 1), min(max(cfg.Cuts, 1), 3)
	if cfg.Jobs <= 0 {
		cfg.Jobs = 8 * runtime.NumCPU()
	}
	key, err := manifest.NewKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	p := &proof{cfg: cfg, key: key}
	was, err := p.image("old", cfg.Old)
	if err != nil {
		return nil, err
	}
	is, err := p.image("new", cfg.New)
	if err != nil {
		return nil, err
	}
	if err := p.fits(was, is); err != nil {
		return nil, err
	}
	return p, p.tell(was, is)
}

func (p *proof) image(which string, b []byte) (*appimage.Image, error) {
	h, err := appimage.ParseHeader(b)
	if err == nil {
		_, err = appimage.Verify(bytes.NewReader(b), appimage.Target{Chip: h.Chip, Revision: h.MinRevision, PartitionSize: appimage.MaxPartitionSize})
	}
	if err != nil {
		return nil, fmt.Errorf("%w: the %s image is not valid: %w", ErrNoProof, which, err)
	}
	return appimage.Parse(b)
}

// fits refuses what no board could have, or update.
func (p *proof) fits(was, is *appimage.Image) error {
	no := func(format string, args ...any) error {
		return fmt.Errorf("%w: %w", ErrNoProof, fmt.Errorf(format, args...))
	}
	t := p.cfg.Table
	slots := t.Slots()
	places := len(slots)
	if _, ok := t.Factory(); ok {
		places++
	}
	if data, ok := t.OTAData(); !ok || data.Size < parttable.OTADataSize {
		return no("the table has no otadata partition of %d bytes, so nothing can be updated", parttable.OTADataSize)
	}
	if places < 2 || len(slots) == 0 {
		return no("the table has no second slot, so nothing can be updated")
	}
	home, _ := t.Blank()
	if int64(len(p.cfg.Old)) > int64(home.Size) {
		return no("the old image has %d bytes, partition %s has %d", len(p.cfg.Old), home.Name, home.Size)
	}
	for _, s := range slots {
		if s != home && int64(len(p.cfg.New)) > int64(s.Size) {
			return no("the new image has %d bytes, partition %s has %d (%d too many)", len(p.cfg.New), s.Name, s.Size, int64(len(p.cfg.New))-int64(s.Size))
		}
	}
	if was.Header.Chip != is.Header.Chip {
		return no("the old image is for %s, the new one for %s", was.Header.Chip, is.Header.Chip)
	}
	if bytes.Equal(p.cfg.Old, p.cfg.New) {
		return no("old and new are the same image")
	}
	if was.Desc != nil && is.Desc != nil && was.Desc.Project != is.Desc.Project {
		return no("the old image is of project %.32q, the new one of %.32q", was.Desc.Project, is.Desc.Project)
	}
	end := uint64(FlashSize)
	for _, row := range t {
		end = max(end, row.End())
	}
	for p.size = FlashSize; p.size < int64(end) && p.size < norflash.MaxSize; p.size *= 2 {
	}
	if p.cfg.FlashSize != 0 {
		p.size = p.cfg.FlashSize
	}
	if err := norflash.CheckChipSize(p.size); err != nil {
		return no("%w", err)
	}
	if int64(end) > p.size && end > FlashSize {
		return no("the table ends at 0x%x, the flash at 0x%x", end, p.size)
	}
	if err := p.addStorage(int64(end)); err != nil {
		return no("%w", err)
	}
	return p.takes(was, is)
}

// addStorage makes the storage partition a small one: every boot reads it and nothing writes it. A table that has none, for
// firmware that keeps its settings elsewhere, gets one behind its end.
func (p *proof) addStorage(end int64) error {
	const size = 64 << 10
	p.table = slices.Clone(p.cfg.Table)
	if _, ok := p.table.Storage(); !ok {
		p.table = append(p.table, parttable.Partition{Name: "proof-storage", Type: parttable.TypeData, Subtype: parttable.SubtypeSPIFFS,
			Offset: uint32(end), Size: size})
		for p.size < end+size {
			p.size *= 2
		}
	}
	for i := range p.table {
		if p.table[i].Type == parttable.TypeData && p.table[i].Subtype == parttable.SubtypeSPIFFS {
			p.table[i].Size = min(p.table[i].Size, size)
		}
	}
	return norflash.CheckChipSize(p.size)
}

// takes refuses a new image that a board with the old one does not install, and notes whether it goes back to the old one.
func (p *proof) takes(was, is *appimage.Image) error {
	before, err := manifest.Builtin(bytes.NewReader(p.cfg.Old), was)
	if err != nil {
		return fmt.Errorf("%w: the old image: %w", ErrNoProof, err)
	}
	after, err := manifest.Builtin(bytes.NewReader(p.cfg.New), is)
	if err != nil {
		return fmt.Errorf("%w: the new image: %w", ErrNoProof, err)
	}
	if after.Sequence < before.Sequence {
		return fmt.Errorf("%w: the old image carries set %d of trusted keys, the new one set %d: boards refuse it", ErrNoProof, before.Sequence, after.Sequence)
	}
	var floor, secure uint32
	if was.Desc != nil {
		floor = was.Desc.SecureVersion
	}
	if is.Desc != nil {
		secure = is.Desc.SecureVersion
	}
	if secure < floor {
		return fmt.Errorf("%w: the old image has secure version %d, the new one %d: boards refuse it", ErrNoProof, floor, secure)
	}
	p.noKeysBack, p.noFloorBack = after.Sequence > before.Sequence, secure > floor
	return nil
}

func (p *proof) explorer(t *tale) *explorer {
	jobs := p.cfg.Jobs
	if t.waits {
		jobs *= 4 // they sleep
	}
	const turns = 16
	turn := func(n int) func(int, norflash.Op) bool {
		return func(i int, op norflash.Op) bool {
			if n < 0 || t.metadata(op) {
				return n < 0 && t.metadata(op)
			}
			k := i + int(p.cfg.Seed%uint64(p.cfg.Every))
			return !t.metadataOnly && k%p.cfg.Every == 0 && k/p.cfg.Every%turns == n
		}
	}
	passes := []func(int, norflash.Op) bool{turn(-1)}
	for n := range turns {
		passes = append(passes, turn(n*5%turns))
	}
	return &explorer{story: &t.story, cuts: p.cfg.Cuts, limit: 10 * time.Minute, workers: jobs, passes: passes,
		bubble: func(life func()) { life() },
		timing: Timing{Boot: time.Nanosecond, Crash: time.Nanosecond, Watchdog: time.Nanosecond, Frame: time.Millisecond},
		ways: func(op norflash.Op, nth int) []norflash.Cut {
			switch {
			case t.metadata(op) && nth == 1:
				return tears(op, p.cfg.Seed, 10)
			case t.metadata(op):
				return tears(op, p.cfg.Seed, 1)
			case nth == 1:
				return tears(op, p.cfg.Seed, 1)
			}
			return nil
		}}
}

// prove explores one story.
func (p *proof) prove(ctx context.Context, t *tale) (StoryReport, error) {
	x := p.explorer(t)
	began := time.Now()
	whole := x.undisturbed()
	took := time.Since(began)
	if t.waits {
		took -= trialSeconds * time.Second // during which other boards run
	}
	plan := ProofPlan{Story: t.name, About: t.about, Operations: len(whole.writes)}
	for i, w := range whole.writes {
		for _, pass := range x.passes {
			if pass(i, w.op) {
				plan.Cuts += len(x.ways(w.op, 1))
			}
		}
	}
	plan.Estimate = time.Duration(plan.Cuts) * took / time.Duration(2*runtime.NumCPU())
	if p.cfg.OnStory != nil {
		p.cfg.OnStory(plan)
	}
	if p.cfg.OnProgress != nil {
		var last time.Time
		x.step = func(f figures) {
			if now := time.Now(); now.Sub(last) > 100*time.Millisecond {
				last = now
				p.cfg.OnProgress(f.cut, plan.Cuts)
			}
		}
	}
	x.found = func(f finding) {
		if p.cfg.OnFailure == nil {
			return
		}
		content := make([]byte, f.flash.Size())
		if _, err := f.flash.ReadAt(content, 0); err == nil {
			p.cfg.OnFailure(ProofFailure{Story: t.name, Cut: f.what, Problem: f.problem, Flash: content})
		}
	}
	if err := x.cutAll(ctx, whole); err != nil {
		return StoryReport{}, err
	}
	f := x.figures
	return StoryReport{ProofPlan: plan, Done: f.cut, States: f.states, Distinct: f.distinct, Escaped: f.escaped, Bricks: f.bad, Boots: f.boots,
		Complete: ctx.Err() == nil}, nil
}
