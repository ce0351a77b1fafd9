package device

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"bmsota/device/internal/agent"
	"bmsota/device/internal/norflash"
	"bmsota/protocol"
)

const (
	// maxUnheard is how many times a board may be reset, one after the other, before it runs an image that looks for its
	// network.
	maxUnheard = 8
	// maxBoots is how many boots a board may take to come to rest.
	maxBoots = 16
)

// explorer cuts the power all through a story and looks at every flash that this leaves.
//
// It is a walk through a graph. A node is a content of the flash with the board switched off. From there the board lives,
// life after life, until it rests; that path has no choices but where the power fails, so every operation in it has one
// edge for each way in which it can be cut. Two things make the walk short. A content that was looked at is not looked at
// again. And a path is left where it comes to a reset that another path came to before: from there on they are the same.
type explorer struct {
	*story
	cuts    int                                          // at most in one run of the story
	ways    func(op norflash.Op, nth int) []norflash.Cut // in which the power fails in op, as the nth cut (from 1)
	bubble  func(life func())                            // runs a life: in virtual time, say
	limit   time.Duration                                // of a path; one that takes longer has no end
	timing  Timing                                       // of the board
	workers int
	passes  []func(i int, op norflash.Op) bool // which operations of the story are cut for the first time, turn by turn
	found   func(finding)                      // of each bad state; from any goroutine, one at a time
	step    func(figures)                      // after each state, likewise
	tell    func(string)                       // what a board does; nil: nobody listens

	mu       sync.Mutex
	contents map[sum]int   // that were looked at, and after how many cuts
	ends     map[place]end // of paths
	figures  figures
}

type sum = [32]byte

// place is where a path has come to: a content, and why the chip is reset, which firmware can see.
type place struct {
	content sum
	reset   ResetReason
}

// end is how a path ends from a place on.
type end struct {
	boots int // until the board rests
	cuts  int // after how many cuts the place was reached: fewer leave more to be cut behind it
}

// figures count what an explorer did.
type figures struct {
	operations int // of the story, undisturbed
	cut        int // of them, and in one way each: first cuts
	states     int // that power cuts left
	distinct   int // different contents among them
	escaped    int // set aside, see story.escaped
	bad        int
	boots      int // that a board took at most from a cut to rest
	paths      int // that were lived
}

// finding is a state that a board does not come back from.
type finding struct {
	what    string
	problem string
	flash   *norflash.Flash
}

// write is one operation of a path.
type write struct {
	op   norflash.Op
	data []byte // what the chip held there afterwards: programming that gives the same bits
}

func (w write) apply(f *norflash.Flash) error {
	if w.op.Kind == norflash.OpErase {
		return f.Erase(w.op.Off, w.op.Len)
	}
	return f.Program(w.op.Off, w.data)
}

// path is what a board did from a content on until it rested or came to a place that is known.
type path struct {
	begin   *norflash.Flash
	writes  []write
	last    *norflash.Flash   // the content at its end
	unheard []*norflash.Flash // contents at the moments when it looked for its network, where those are new
	boots   int
	problem string
}

// run explores the story. It returns early, with what there is, when ctx ends; the error is of the story itself, which
// goes wrong without any power cut.
func (x *explorer) run(ctx context.Context) error {
	x.clear()
	var whole path
	x.bubble(func() { whole = x.follow(x.start, 0, true) })
	return x.cutAll(ctx, whole)
}

// undisturbed follows the story without any power cut. What has no end then is not waited for as long as what was cut.
func (x *explorer) undisturbed() path {
	x.clear()
	limit := x.limit
	x.limit = min(limit, time.Minute)
	defer func() { x.limit = limit }()
	return x.follow(x.start, 0, true)
}

// clear forgets what is known.
func (x *explorer) clear() { x.contents, x.ends = map[sum]int{}, map[place]end{} }

// cutAll explores from a path of the story that no power cut disturbed.
func (x *explorer) cutAll(ctx context.Context, whole path) error {
	if whole.problem != "" {
		return errors.New(whole.problem)
	}
	x.figures.operations = len(whole.writes)
	jobs := make(chan job)
	var wg sync.WaitGroup
	for range x.workers {
		wg.Go(func() {
			for j := range jobs {
				x.look(ctx, j)
			}
		})
	}
	for _, pass := range x.passes {
		x.expand(ctx, whole, 1, "", pass, func(j job) {
			select {
			case jobs <- j:
			case <-ctx.Done():
			}
		})
	}
	close(jobs)
	wg.Wait()
	return nil
}

// job is a content to look at.
type job struct {
	flash *norflash.Flash
	cuts  int
	what  string
}

// everything is the pass that leaves nothing out.
func everything(int, norflash.Op) bool { return true }

// expand cuts the operations of a path and hands on what is left, where it is new.
func (x *explorer) expand(ctx context.Context, p path, nth int, before string, pass func(int, norflash.Op) bool, try func(job)) {
	f := p.begin.Clone()
	for i, w := range p.writes {
		if ctx.Err() != nil {
			return
		}
		if pass(i, w.op) {
			for _, way := range x.ways(w.op, nth) {
				cut := f.Clone()
				cut.CutAt(1, way)
				if err := w.apply(cut); !errors.Is(err, norflash.ErrPowerCut) {
					panic(fmt.Sprint("device: a power cut that does not come: ", err))
				}
				cut.PowerOn()
				if x.take(w.op, f, cut, nth) {
					try(job{cut, nth, fmt.Sprintf("%spower cut %v in operation %d (%v at 0x%x)", before, way, i+1, w.op.Kind, w.op.Off)})
				}
			}
		}
		if err := w.apply(f); err != nil {
			panic(fmt.Sprint("device: an operation that went well goes wrong: ", err))
		}
	}
}

// take counts a state, and says whether it has to be looked at.
func (x *explorer) take(op norflash.Op, before, cut *norflash.Flash, cuts int) bool {
	if x.holes && x.escaped(op, before, cut) {
		x.mu.Lock()
		x.figures.escaped++
		x.mu.Unlock()
		return false
	}
	content := cut.Sum()
	x.mu.Lock()
	defer x.mu.Unlock()
	x.figures.states++
	if cuts == 1 {
		x.figures.cut++
	}
	return x.isNew(content, cuts)
}

// isNew says whether a content has to be looked at, and remembers it. The caller holds mu.
func (x *explorer) isNew(content sum, cuts int) bool {
	cuts = min(cuts, x.cuts)
	seen, ok := x.contents[content]
	if ok && seen <= cuts {
		return false
	}
	x.contents[content] = cuts
	if !ok {
		x.figures.distinct++
	}
	return true
}

// look follows a content, and what the power can still do on the way.
func (x *explorer) look(ctx context.Context, j job) {
	if ctx.Err() != nil {
		return
	}
	var p path
	x.bubble(func() { p = x.follow(j.flash, j.cuts, j.cuts < x.cuts) })
	x.mu.Lock()
	x.figures.paths++
	if p.problem == "" {
		x.figures.boots = max(x.figures.boots, p.boots)
	} else {
		x.figures.bad++
		if x.found != nil {
			x.found(finding{j.what, p.problem, j.flash})
		}
	}
	if x.step != nil {
		x.step(x.figures)
	}
	x.mu.Unlock()
	if j.cuts < x.cuts {
		x.expand(ctx, p, j.cuts+1, j.what+", then ", everything, func(j job) { x.look(ctx, j) })
	}
	for _, f := range p.unheard {
		x.look(ctx, job{f, j.cuts, j.what + ", then power lost as it looks for its network"})
	}
}

// follow switches a board on with the order retained, and lets it live until it rests or comes to a place that is known.
func (x *explorer) follow(f *norflash.Flash, cuts int, record bool) (p path) {
	p.begin = f
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var (
		board    *Board
		trail    []place
		known    *end
		running  string
		unheard  int
		mu       sync.Mutex // of what statuses tell
		last     protocol.Status
		answered bool // in this life
		phases   []string
	)
	rested := make(chan struct{}, 1)
	fail := func(problem string) {
		if p.problem == "" {
			p.problem = problem
		}
		cancel()
	}
	cfg := Config{Flash: &Flash{base: &lockedFlash{flash: f}}, Seed: 7, Timing: x.timing, Transport: x.server, strict: true}
	if x.config != nil {
		x.config(&cfg)
	}
	cfg.newLink = func(agent.LinkConfig) agent.Link {
		// What the firmware had to settle is settled, and it has not spoken to anybody.
		unheard = 0
		if content := board.flash.Sum(); len(trail) > 0 && content != trail[len(trail)-1].content {
			x.mu.Lock()
			x.figures.states++
			fresh := x.isNew(content, cuts)
			x.mu.Unlock()
			if fresh {
				p.unheard = append(p.unheard, board.flash.Clone())
			}
		}
		return session{[]byte(x.order)}
	}
	cfg.atReset = func(reset ResetReason) bool {
		at := place{board.flash.Sum(), reset}
		if len(trail) > 0 {
			x.mu.Lock()
			e, ok := x.ends[at]
			x.mu.Unlock()
			if ok && e.cuts <= min(cuts, x.cuts) {
				known = &e
				return false
			}
		}
		trail = append(trail, at)
		return true
	}
	cfg.OnBoot = func(booted string, why ResetReason) {
		if x.tell != nil {
			x.tell(fmt.Sprintf("boots %s after %s", booted, why))
		}
		mu.Lock()
		answered = false
		mu.Unlock()
		running = booted
		p.boots++
		unheard++
		switch bad := x.judge(board.flash, booted); {
		case bad != "":
			fail(bad)
		case unheard > maxUnheard:
			fail(fmt.Sprintf("no image that lives after %d resets", maxUnheard))
		case p.boots > maxBoots:
			fail("does not come to rest")
		}
	}
	cfg.OnStatus = func(s protocol.Status) {
		mu.Lock()
		defer mu.Unlock()
		last = s
		if word := string(s.Phase) + ":" + string(s.Reason); len(phases) == 0 || phases[len(phases)-1] != word {
			phases = append(phases, word)
			if x.tell != nil {
				x.tell(fmt.Sprintf("says %s %s: %s", s.Phase, s.CurrentVersion, s.Message))
			}
		}
		answered = answered || x.answered(s)
		// A trial may be told of an order that it fulfils, and has still to end.
		if answered && !s.RollbackPending && (s.Phase == protocol.PhaseIdle || s.Phase == protocol.PhaseRefused) {
			select {
			case rested <- struct{}{}:
			default:
			}
		}
	}
	var err error
	if board, err = Open(cfg); err != nil {
		p.problem = err.Error()
		return p
	}
	defer board.Close()
	if record {
		recorder(&p, board.flash)
	}
	done := make(chan error, 1)
	go func() { done <- board.Run(ctx) }()
	limit := time.NewTimer(x.limit)
	defer limit.Stop()
	select {
	case <-rested:
		cancel()
		err = <-done
	case err = <-done:
	case <-limit.C:
		cancel()
		err = <-done
		if p.problem == "" {
			p.problem = "no end: " + fmt.Sprint(phases[max(0, len(phases)-30):])
		}
	}
	mu.Lock()
	defer mu.Unlock()
	board.flash.OnOp(nil)
	p.close(board.flash)
	switch {
	case p.problem != "":
	case err != nil:
		p.problem = "stopped: " + err.Error()
	case known != nil:
		p.boots += known.boots
	case last.ImageSHA256 != sha(x.final):
		p.problem = fmt.Sprintf("runs %s in the end: %v", last.CurrentVersion, phases[max(0, len(phases)-30):])
	default:
		p.problem = x.verdict(board.flash, running)
	}
	if p.problem == "" {
		x.remember(trail, p.boots, cuts)
	}
	return p
}

// verdict looks at a board that rests.
func (x *explorer) verdict(f *norflash.Flash, running string) string {
	if bad := x.zombies(f); bad != "" {
		return bad
	}
	if bad := x.doubled(f); bad != "" {
		return bad
	}
	return x.orphaned(f, running)
}

// remember notes how the paths from the places of a trail end.
func (x *explorer) remember(trail []place, boots, cuts int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for i, at := range trail {
		if e, ok := x.ends[at]; !ok || e.cuts > cuts {
			x.ends[at] = end{boots - i, min(cuts, x.cuts)}
		}
	}
}

// recorder makes p see every operation of f.
func recorder(p *path, f *norflash.Flash) {
	f.OnOp(func(op norflash.Op) {
		p.close(f)
		p.writes = append(p.writes, write{op: op})
	})
}

// close reads back what the latest operation left.
func (p *path) close(f *norflash.Flash) {
	p.last = f
	if n := len(p.writes); n > 0 && p.writes[n-1].data == nil && p.writes[n-1].op.Kind == norflash.OpProgram {
		w := &p.writes[n-1]
		w.data = make([]byte, w.op.Len)
		if _, err := f.ReadAt(w.data, w.op.Off); err != nil {
			panic("device: what was just written cannot be read: " + err.Error())
		}
	}
}

// tears is every way to cut an operation: before it, after it, and in the middle cleanly, at random and, for an erase, on a
// chip that clears a sector first. Random ones come with so many seeds, from the given one on.
func tears(op norflash.Op, from uint64, seeds int) []norflash.Cut {
	ways := []norflash.Cut{norflash.Before, norflash.After}
	for _, n := range []int{1, 4, 16, int(op.Len) / 2, int(op.Len) - 1} {
		if n > 0 && n < int(op.Len) {
			ways = append(ways, norflash.Part(n))
		}
	}
	for seed := from; seed < from+uint64(seeds); seed++ {
		ways = append(ways, norflash.Bits(seed), norflash.Torn(seed))
		if op.Kind == norflash.OpErase {
			ways = append(ways, norflash.Zeros(seed))
		}
	}
	return slices.Clip(ways)
}
