package norflash

import (
	"slices"
	"testing"
	"time"
)

// times are what erases of a sector, one after the other, and then programs of a page took.
func times(t *testing.T, f *Flash, p Pace, seed uint64, sector int64, erases int) (took []time.Duration) {
	t.Helper()
	f.Slow(p, seed, func(d time.Duration) { took = append(took, d) })
	for range erases {
		if err := f.Erase(sector*SectorSize, SectorSize); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Program(sector*SectorSize, make([]byte, 256)); err != nil {
		t.Fatal(err)
	}
	return took
}

func sum(d []time.Duration) (all time.Duration) {
	for _, one := range d {
		all += one
	}
	return all
}

// Each operation takes a time of its range, as the seed decides; a sector takes longer the more often it was erased, and no
// other sector does for it.
func TestSlowFlashIsTheSeedsAndGrowsWithWear(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	p := Pace{Erase: Span{40 * time.Millisecond, 60 * time.Millisecond}, Program: Span{100 * time.Microsecond, 200 * time.Microsecond}, Wear: 0.01, Worst: 90 * time.Millisecond}
	f := New(1 << 20)
	took := times(t, f, p, seed, 3, 200)
	if len(took) != 204 {
		t.Fatalf("%d times for 200 sectors and 4 pieces", len(took))
	}
	for i, d := range took[:200] {
		least, most := p.Erase.Least*time.Duration(100+i)/100, min(p.Worst, p.Erase.Most*time.Duration(100+i)/100)
		if d < min(least, p.Worst)-time.Microsecond || d > most+time.Microsecond {
			t.Errorf("erase %d took %v, want %v to %v", i, d, least, most)
		}
	}
	for _, d := range took[200:] {
		if d < p.Program.Least || d > p.Program.Most {
			t.Errorf("a piece took %v", d)
		}
	}
	if young, old := sum(took[:50]), sum(took[150:200]); old < young*5/4 {
		t.Errorf("50 erases took %v new and %v worn", young, old)
	}
	var other []time.Duration
	f.pacer.wait = func(d time.Duration) { other = append(other, d) }
	if err := f.Erase(4*SectorSize, SectorSize); err != nil || len(other) != 1 || other[0] > p.Erase.Most {
		t.Errorf("the sector beside it took %v: %v", other, err)
	}
	if again := times(t, New(1<<20), p, seed, 3, 200); !slices.Equal(again, took) {
		t.Error("the same seed takes other times")
	}
	if others := times(t, New(1<<20), p, seed+1, 3, 200); slices.Equal(others, took) {
		t.Error("another seed takes the same times")
	}
}

// Now and then an erase takes very long, and a clone takes no time.
func TestSlowFlashIsStuckNowAndThen(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	p := Pace{Erase: Span{time.Millisecond, 2 * time.Millisecond}, Stuck: 10, Worst: time.Minute}
	f := New(1 << 20)
	took := times(t, f, p, seed, 0, 2000)
	stuck := 0
	for _, d := range took[:2000] {
		switch {
		case d == p.Worst:
			stuck++
		case d > p.Erase.Most:
			t.Errorf("an erase took %v", d)
		}
	}
	if stuck < 100 || stuck > 300 { // 200 and seven standard deviations
		t.Errorf("%d of 2000 erases were stuck, want about 200", stuck)
	}
	if took[2000] != 0 {
		t.Errorf("a piece took %v", took[2000])
	}
	before := len(took)
	f.pacer.wait = func(time.Duration) { before++ }
	if err := f.Clone().Erase(0, SectorSize); err != nil || before != len(took) {
		t.Errorf("a clone took its time: %v", err)
	}
}
