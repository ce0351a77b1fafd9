package simulation

import (
	"math/rand/v2"
	"os"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"bmsota/device"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// footprint is what is left when nothing is under way.
func footprint() (heap uint64, goroutines int) {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc, runtime.NumGoroutine()
}

// TestChurnLeavesNothingBehind: boards that lose their connection, are reset and switched off and on all day long cost the
// server, and each other, no more in the evening than in the morning. BMSOTA_SYSTEM=long takes the whole day.
func TestChurnLeavesNothingBehind(t *testing.T) {
	boards, day := 50, 3*time.Hour
	if os.Getenv("BMSOTA_SYSTEM") == "long" {
		boards, day = 200, 24*time.Hour
	}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, boards, func(_ int, c *device.Config) {
			// What this test remembers of the boards would grow.
			c.OnStatus, c.OnBoot = nil, nil
			c.Timing.Frame = time.Minute
		})
		for _, b := range w.boards {
			time.Sleep(1_700 * time.Millisecond)
			b.on()
		}
		random := rand.New(rand.NewPCG(1, 0xc4))
		events := 0
		churn := func(lasts time.Duration) {
			for end := time.Now().Add(lasts); time.Now().Before(end); {
				settle(time.Duration(random.Int64N(int64(10 * time.Minute / time.Duration(boards)))))
				b := w.boards[random.IntN(boards)]
				events++
				switch random.IntN(3) {
				case 0:
					w.net.cut(b.number)
				case 1:
					b.Reset(device.Brownout)
				case 2:
					if b.cancel != nil {
						b.off()
					} else {
						b.on()
					}
				}
			}
			for _, b := range w.boards {
				b.on()
			}
			settle(20 * time.Minute)
			for _, b := range w.boards {
				if !w.device(b).Online {
					t.Errorf("%s does not come back", b.id)
				}
			}
		}
		churn(time.Hour) // what is made once is made
		heap, goroutines := footprint()
		events = 0
		churn(day)
		heapAfter, goroutinesAfter := footprint()
		t.Logf("%d boards, %v, %d events: heap %d KiB and then %d KiB, goroutines %d and then %d", boards, day, events, heap>>10, heapAfter>>10, goroutines, goroutinesAfter)
		if heapAfter > heap+heap/4+2<<20 {
			t.Errorf("heap was %d bytes and is %d", heap, heapAfter)
		}
		if goroutinesAfter > goroutines+10 {
			t.Errorf("%d goroutines and then %d", goroutines, goroutinesAfter)
		}
		w.close()
	})
}
