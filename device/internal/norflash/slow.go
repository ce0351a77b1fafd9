package norflash

import (
	"math/rand/v2"
	"time"
)

// Pace is how long the operations of a chip take. The zero Pace is a chip that takes no time.
//
// There is none for a block of 64 KiB, which a chip erases faster than its 16 sectors: what this chip does is a sector at a
// time, and firmware that erases as it goes asks for no more.
type Pace struct {
	Erase   Span          // a sector, as long as it is new
	Program Span          // a piece
	Wear    float64       // what each erase of a sector adds to its later ones, as a share of what they took new
	Stuck   int           // one erase in so many takes Worst; 0 is none
	Worst   time.Duration // the longest that an erase takes, of a worn sector too; 0 is no limit
}

// Span is a range of times, both ends within it.
type Span struct{ Least, Most time.Duration }

// pacer makes a chip take its time.
type pacer struct {
	Pace
	rand   *rand.Rand
	wait   func(time.Duration)
	erases map[int]int // of a sector, since Slow
}

// Slow makes operations take time from now on, each as the seed decides: wait is called once in each, after OnOp and before it
// takes effect. A clone takes no time. What was erased before is not counted as wear.
func (f *Flash) Slow(p Pace, seed uint64, wait func(time.Duration)) {
	f.pacer = &pacer{Pace: p, rand: rand.New(rand.NewPCG(seed, 0x736c6f77)), wait: wait, erases: map[int]int{}}
}

func (p *pacer) take(op Op) {
	if p == nil {
		return
	}
	if op.Kind == OpProgram {
		p.wait(p.Program.draw(p.rand))
		return
	}
	sector := int(op.Off / SectorSize)
	d := time.Duration(float64(p.Erase.draw(p.rand)) * (1 + p.Wear*float64(p.erases[sector])))
	p.erases[sector]++
	if p.Stuck > 0 && p.rand.IntN(p.Stuck) == 0 {
		d = p.Worst
	}
	if p.Worst > 0 {
		d = min(d, p.Worst)
	}
	p.wait(d)
}

func (s Span) draw(r *rand.Rand) time.Duration {
	return s.Least + time.Duration(r.Int64N(int64(max(s.Most-s.Least, 0))+1))
}
