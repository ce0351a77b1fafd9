package workers

import (
	"runtime"
	"testing"
	"testing/synctest"
	"time"
)

// Work goes to who has worked, rest ends who has not, and end ends all, those included that are at work.
func TestWorkersStayAndGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before := runtime.NumGoroutine()
		release := make(chan struct{})
		worked := 0
		p := &Pool[int]{Turn: func(n int) {
			if <-release; n < 0 {
				worked++
			}
		}}
		alive := func() int {
			synctest.Wait()
			return runtime.NumGoroutine() - before
		}
		for range 5 {
			p.Give(0)
		}
		if n := alive(); n != 5 {
			t.Errorf("%d goroutines for five turns at once", n)
		}
		close(release)
		synctest.Wait()
		for range 100 {
			p.Give(-1)
			synctest.Wait()
		}
		if n := alive(); n != 5 || worked != 100 {
			t.Errorf("%d goroutines after %d turns, one after the other", n, worked)
		}
		p.Rest()
		p.Give(-1)
		synctest.Wait()
		p.Rest() // four have had nothing to do since
		if n := alive(); n != 1 {
			t.Errorf("%d workers stay that have nothing to do", n)
		}
		p.Rest()
		p.Rest()
		if n := alive(); n != 0 {
			t.Errorf("%d workers stay that have nothing to do at all", n)
		}
		slow := make(chan struct{})
		p = &Pool[int]{Turn: func(int) { <-slow }}
		p.Give(0)
		p.End()
		if n := alive(); n != 1 {
			t.Errorf("%d workers, one at work", n)
		}
		close(slow)
		if n := alive(); n != 0 {
			t.Errorf("%d workers after the end", n)
		}
		p.Give(0) // whoever comes late is served all the same
		if n := alive(); n != 0 {
			t.Errorf("%d workers after the end", n)
		}
		time.Sleep(time.Second)
	})
}
