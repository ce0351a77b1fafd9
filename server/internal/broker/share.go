package broker

import (
	"context"
	"crypto/sha256"
	"fmt"
	"sync/atomic"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"golang.org/x/sync/errgroup"

	"bmsota/protocol"
)

const (
	keepAlive = 30 * time.Second
	// keepAliveShared is shorter: a broker gives a member of a group its part until it misses it, which is after one and a half.
	keepAliveShared = 10 * time.Second
	// lookTwice is how long after a look a second one follows, for what the broker has given to a server that it had not missed.
	lookTwice = 2 * keepAliveShared
	// lookQuiet is how long no retained status has come when all have.
	lookQuiet = 3 * time.Second
)

func (x *External) keepAlive() time.Duration {
	if x.cfg.Group != "" {
		return keepAliveShared
	}
	return keepAlive
}

// LookAgain has the retained statuses looked at: the last word of every device, also where it was given to a server of the group
// that died with it. It returns at once.
func (x *External) LookAgain() {
	select {
	case x.look <- struct{}{}:
	default:
	}
}

// lookWhenAsked looks, and a while later once more, whenever it is asked to, until ctx ends.
func (x *External) lookWhenAsked(ctx context.Context) {
	var second <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-x.look:
			second = time.After(lookTwice)
		case <-second:
			second = nil
		}
		if err := x.lookAtRetained(ctx); err != nil && ctx.Err() == nil {
			x.log.Warn("look at the last statuses", "err", err)
			if !pause(ctx, time.Second) {
				return
			}
			x.LookAgain()
		}
	}
}

// lookAtRetained brings the retained statuses of all devices to the Handler. One that it has already changes nothing: statuses
// have numbers.
func (x *External) lookAtRetained(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var group errgroup.Group
	var open atomic.Int64 // messages that are not stored yet
	var queues [shards]chan paho.Message
	for i := range shards {
		queues[i] = make(chan paho.Message, 1) // full, it stops reading
		group.Go(func() error {
			for {
				select {
				case msg := <-queues[i]:
					if !x.slept() {
						x.handle(ctx, msg)
					}
					open.Add(-1)
				case <-ctx.Done():
					return nil
				}
			}
		})
	}
	came := make(chan struct{}, 1)
	take := func(_ paho.Client, msg paho.Message) {
		defer msg.Ack() // the session ends with this look, and nothing is kept for it
		if !msg.Retained() {
			return // it goes to the group too
		}
		open.Add(1)
		_, device := x.cfg.Topics.Parse(msg.Topic())
		sum := sha256.Sum256([]byte(device))
		select {
		case queues[sum[0]%shards] <- msg:
		case <-ctx.Done():
		}
		select {
		case came <- struct{}{}:
		default:
		}
	}
	client, lost, err := x.connect(ctx, "-look", true, take)
	if err == nil {
		err = x.await(ctx, client.Subscribe(x.cfg.Topics.StatusFilter(), 1, take))
		for quiet := false; err == nil && !quiet; {
			select {
			case <-came:
			case <-time.After(lookQuiet):
				quiet = open.Load() == 0
			case <-lost:
				err = fmt.Errorf("connection to %s was lost", x.cfg.URL)
			case <-ctx.Done():
				err = ctx.Err()
			}
		}
		client.Disconnect(250)
	}
	cancel()
	_ = group.Wait() // they return nil
	return err
}

// sleptFor is how long a process of a group may have stood still and still store what it was given before. What it was given
// may be of a boot that is over since, and the device has spoken to others; its last word is retained.
const sleptFor = keepAliveShared / 2

func (x *External) wakeUp() {
	now := time.Now()
	x.awake.Store(&now)
}

// slept says whether this process has stood still for too long.
func (x *External) slept() bool {
	at := x.awake.Load()
	return x.cfg.Group != "" && at != nil && time.Since(*at) > sleptFor && !x.sleepless
}

// watchSleep returns when ctx ends or the process has stood still: the session is then to end, and nothing of it is stored.
func (x *External) watchSleep(ctx context.Context) {
	tick := time.NewTicker(sleptFor / 10)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if x.slept() {
			x.log.Warn("this process stood still: what it was given before is left to the retained statuses")
			return
		}
		x.wakeUp()
	}
}

// sentByAnother says whether a command is one that another server of the group has published.
func (x *External) sentByAnother(ctx context.Context, device string, payload []byte) (bool, error) {
	if x.cfg.Sent == nil {
		return false, nil
	}
	cmd, err := protocol.ParseCommand(payload)
	if err != nil {
		return false, nil // the Handler says what is wrong with it
	}
	call, cancel := context.WithTimeout(ctx, x.cfg.Timeout)
	defer cancel()
	return x.cfg.Sent(call, device, cmd)
}
