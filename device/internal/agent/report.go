package agent

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"bmsota/protocol"
)

const (
	maxQueued     = 16                     // statuses that wait for the broker
	answerEvery   = time.Second            // at most one refusal of a command per this time
	progressEvery = 500 * time.Millisecond // at most one status about progress per this time
	progressTime  = 2 * time.Second        // at least one per this time
	progressStep  = 5                      // percent: or after this much
	repeatFirst   = 5 * time.Second        // until a status is said again that the broker did not take,
	repeatLimit   = 2 * time.Minute        // and at most, when it is lost again and again
)

// reporter turns what the board does into statuses. It holds the phase, and holds every change of it against the
// protocol's table. Its methods may be called from any goroutine.
type reporter struct {
	link     Link
	qos      byte
	log      *slog.Logger
	onStatus func(protocol.Status)
	onAcked  func(protocol.Phase) // called from the publishing goroutine
	battery  func() (protocol.Battery, bool)
	heap     *heap
	assert   bool // a step that the table does not allow panics

	mu       sync.Mutex
	cur      protocol.Status // what would be said now, without the times
	booted   time.Time
	seq      uint64
	up       bool
	queue    []protocol.Status
	wake     chan struct{}
	busy     bool // one status is on its way
	lastSaid time.Time
	lastPct  int
	asked    time.Time
	answered time.Time
	unsaid   int              // refusals that were only counted
	early    *protocol.Status // the answer to a command that was quicker than the news of the session it came over
}

// phase changes the phase and says so. message is for people; empty takes the reason's sentence or the phase's name.
//
// The limit on statuses is one on progress and answers. Changes of phase are always said: the table allows an update
// about eight of them, and a server that misses one would take a working board for a silent one.
func (r *reporter) phase(p protocol.Phase, reason protocol.Reason, message string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.step(p, reason, message)
}

// order is phase for the first step that an order makes: its id, and that step, in one. A status between the two, as the
// opening of a session says one, would put the name of the order to how the one before it ended.
func (r *reporter) order(id string, p protocol.Phase, reason protocol.Reason, message string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cur.CommandID, r.cur.AvailableVersion, r.cur.FailedSHA256 = id, "", ""
	r.step(p, reason, message)
}

// step changes the phase. The caller holds mu.
func (r *reporter) step(p protocol.Phase, reason protocol.Reason, message string) {
	if !protocol.May(r.cur.Phase, p, true) {
		if r.assert {
			panic(fmt.Sprintf("agent: phase %s after %s", p, r.cur.Phase))
		}
		r.log.Error("phase out of order", "from", r.cur.Phase, "phase", p)
	}
	r.cur.Phase, r.cur.Reason = p, reason
	r.cur.Status, _ = p.Code()
	r.cur.Message = sentence(message, reason, p)
	switch p {
	case protocol.PhaseDownloading, protocol.PhaseVerifying, protocol.PhaseSwitching, protocol.PhaseRebooting:
	case protocol.PhaseConfirmed:
		r.cur.ProgressPct, r.cur.RollbackPending = 100, false
	default:
		r.cur.ProgressPct, r.cur.BytesDone, r.cur.BytesTotal, r.cur.Retries = 0, 0, 0, 0
	}
	r.enqueue(r.stamp(r.cur))
}

func sentence(message string, reason protocol.Reason, p protocol.Phase) string {
	switch {
	case message != "":
		return message[:min(len(message), 300)]
	case reason != protocol.ReasonNone:
		return reason.Text()
	}
	return p.Text()
}

// set changes facts that go along with every later status.
func (r *reporter) set(change func(*protocol.Status)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.cur)
}

// current is the phase now.
func (r *reporter) current() protocol.Phase {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cur.Phase
}

// progress counts bytes of a download, and says so every few percent or seconds.
func (r *reporter) progress(done, total int64, retries int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cur.BytesDone, r.cur.BytesTotal, r.cur.Retries = done, total, retries
	if total > 0 {
		r.cur.ProgressPct = int(min(100, done*100/total))
	}
	since := time.Since(r.lastSaid)
	if since < progressEvery || since < progressTime && abs(r.cur.ProgressPct-r.lastPct) < progressStep {
		return
	}
	r.enqueue(r.stamp(r.cur))
}

// pulse says the progress of a download in time also where no bytes come: on a line where one sector takes longer, and
// while the server is away. It ends when the function it returns is called.
func (r *reporter) pulse() (stop func()) {
	var wg sync.WaitGroup
	done := make(chan struct{})
	wg.Go(func() {
		tick := time.NewTicker(progressEvery)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				r.overdue()
			}
		}
	})
	return func() {
		close(done)
		wg.Wait()
	}
}

func (r *reporter) overdue() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(r.lastSaid) >= progressTime {
		r.enqueue(r.stamp(r.cur))
	}
}

func abs(n int) int { return max(n, -n) }

// answer refuses a command: the phase stays, the reason is the command's and not the board's. Beyond one a second
// refusals are only counted, and the count goes with the next.
func (r *reporter) answer(id string, reason protocol.Reason, message string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.answered.IsZero() && time.Since(r.answered) < answerEvery {
		r.unsaid++
		return
	}
	r.answered = time.Now()
	s := r.cur
	s.Reason, s.Message = reason, sentence(message, reason, s.Phase)
	if r.unsaid > 0 {
		s.Message += fmt.Sprintf(" (%d more commands refused)", r.unsaid)
		r.unsaid = 0
	}
	r.reply(s, id)
}

// say repeats the current status, because somebody asked.
func (r *reporter) say(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.asked.IsZero() && time.Since(r.asked) < progressEvery {
		return
	}
	r.asked = time.Now()
	r.reply(r.cur, id)
}

// reply enqueues s as the answer to the command of that id. The caller holds mu.
func (r *reporter) reply(s protocol.Status, id string) {
	if id != "" {
		s.CommandID = id
	}
	if !r.up {
		r.early = &s
	}
	r.enqueue(r.stamp(s))
}

// connected forgets what was to be said before the session and says what holds now, and after it the answer to a retained
// command that was there before the subscription to it was known to stand.
func (r *reporter) connected() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.up = true
	r.queue = r.queue[:0]
	r.enqueue(r.stamp(r.cur))
	if r.early != nil {
		r.enqueue(r.stamp(*r.early))
		r.early = nil
	}
}

func (r *reporter) disconnected() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.up = false
	r.queue, r.early = r.queue[:0], nil
}

// stamp fills in what changes from one status to the next. The caller holds mu.
func (r *reporter) stamp(s protocol.Status) protocol.Status {
	now := time.Now()
	r.seq++
	r.lastSaid, r.lastPct = now, s.ProgressPct
	s.Seq = r.seq
	s.TimestampUS = now.UnixMicro()
	s.UptimeSec = int64(now.Sub(r.booted) / time.Second)
	s.FreeHeap, s.MinFreeHeap, s.LargestFreeBlock = r.heap.read()
	s.Battery = nil
	if b, ok := r.battery(); ok {
		s.Battery = &b
	}
	return s
}

// enqueue hands a status on. Without a session it is dropped: connected says what holds then, and a retained topic
// keeps one status only. A full queue drops its oldest.
func (r *reporter) enqueue(s protocol.Status) {
	if r.onStatus != nil {
		r.onStatus(s)
	}
	r.log.Debug("status", "phase", s.Phase, "reason", s.Reason, "progress", s.ProgressPct)
	if !r.up {
		return
	}
	if len(r.queue) == maxQueued {
		r.queue = append(r.queue[:0], r.queue[1:]...)
	}
	r.queue = append(r.queue, s)
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// run publishes what is queued, in order, until ctx ends.
func (r *reporter) run(ctx context.Context) {
	lost := 0 // statuses one after the other
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		}
		for {
			s, ok := r.take()
			if !ok {
				break
			}
			err := r.publish(ctx, s)
			r.mu.Lock()
			r.busy = false
			r.mu.Unlock()
			if err != nil {
				r.log.Warn("status not published", "phase", s.Phase, "err", err)
				lost++
				time.AfterFunc(min(repeatFirst<<min(lost-1, 10), repeatLimit), func() { r.repeat(ctx, s.Seq) })
			} else {
				lost = 0
			}
		}
	}
}

// repeat says again what the broker did not take, where nothing was said since and the session still stands: what waits
// for the broker's word, a rollback's report or a trial, must not wait for the next session.
func (r *reporter) repeat(ctx context.Context, seq uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ctx.Err() == nil && r.up && r.seq == seq {
		r.enqueue(r.stamp(r.cur))
	}
}

func (r *reporter) take() (protocol.Status, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.queue) == 0 {
		return protocol.Status{}, false
	}
	s := r.queue[0]
	r.queue = append(r.queue[:0], r.queue[1:]...)
	r.busy = true
	return s, true
}

func (r *reporter) publish(ctx context.Context, s protocol.Status) error {
	payload, err := s.Append(nil)
	if err != nil {
		return err
	}
	qos := r.qos
	if s.Phase != protocol.PhaseDownloading {
		// What a server acts on must arrive; progress is only for show.
		qos = max(qos, 1)
	}
	if err := r.link.Publish(ctx, payload, qos); err != nil {
		return err
	}
	if qos > 0 {
		r.onAcked(s.Phase)
	}
	return nil
}

// flush waits, for limit at most, until everything said has reached the broker.
func (r *reporter) flush(ctx context.Context, limit time.Duration) {
	const step = 20 * time.Millisecond
	for waited := time.Duration(0); waited < limit; waited += step {
		r.mu.Lock()
		idle := !r.up || len(r.queue) == 0 && !r.busy
		r.mu.Unlock()
		if idle || !sleep(ctx, step) {
			return
		}
	}
}

// heap models the memory of the board, so that the numbers in a status move as on a real one.
type heap struct {
	mu      sync.Mutex
	rand    *rand.Rand
	held    int64
	minimum int64
}

// What things cost, in bytes, on an ESP32 after ESP-IDF's examples.
const (
	heapAtBoot   = 196 << 10
	heapMQTT     = 14 << 10
	heapTLS      = 42 << 10
	heapDownload = 12 << 10
)

// use takes n bytes and returns the function that gives them back.
func (h *heap) use(n int64) (release func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.held += n
	h.minimum = min(h.minimum, heapAtBoot-h.held)
	return sync.OnceFunc(func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.held -= n
	})
}

func (h *heap) read() (free, minimum, largest int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	free = heapAtBoot - h.held - h.rand.Int64N(1<<10)
	h.minimum = min(h.minimum, free)
	return free, h.minimum, free * 5 / 8
}

// bootID names one boot of a board: later boots have other ids even where the random numbers are seeded alike.
func bootID(now time.Time, r *rand.Rand) string {
	return strconv.FormatInt(now.UnixNano(), 36) + "-" + strconv.FormatUint(r.Uint64()>>44, 36)
}
