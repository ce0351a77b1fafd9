package bench

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"bmsota/protocol"
)

// What the figures are meant for.
const (
	idleDevices    = 5000
	listeners      = 10_000
	devicesAtOnce  = 18_000
	idleSettle     = 3 * time.Second // for what a login leaves to be done after it
	loginsUnderway = 64              // at once: below what either broker holds back
	spareFiles     = 200             // of a process, beside its connections
)

// mqtt measures the broker inside our server beside Mosquitto with the same names, passwords, rights and certificate. Ours
// looks a login up in the database and notes there who is online; Mosquitto has its passwords in memory.
func mqtt(ctx context.Context, b *Bench) error {
	s, err := b.serve(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { s.stop() }()
	idle, all, most := b.count(idleDevices), b.count(listeners), b.count(devicesAtOnce)
	note := ""
	if room := int(files()) - spareFiles; most > room {
		most, note = max(room, 1), fmt.Sprintf("open files are limited to %d here", files())
		idle, all = min(idle, most), min(all, most)
	}
	needed := b.Clients
	for name, n := range map[string]int{memoryPlain: idle, memoryTLS: idle, toAll: all, atOnce: most} {
		if b.wants(name) {
			needed = max(needed, n)
		}
	}
	devices, err := s.enroll(ctx, needed)
	if err != nil {
		return err
	}
	m, err := b.startMosquitto(ctx, s, devices)
	if err != nil {
		return err
	}
	if m != nil {
		defer func() { m.stop() }()
	}
	ours := s.broker()
	secure, err := versionOf(s.CAPEM, tls.VersionTLS12)
	if err != nil {
		return err
	}
	at := func(side *brokerSide, n int, conf *tls.Config) []login {
		logins := append([]login(nil), devices[:min(n, len(devices))]...) // fewer for a figure that nobody asked for
		for i := range logins {
			if logins[i].addr, logins[i].tls = side.plain, conf; conf != nil {
				logins[i].addr = side.secure
			}
		}
		return logins
	}
	// twice makes a turn for each side; none for a Mosquitto that is not there.
	twice := func(f Figure, turn func(side *brokerSide) Turn) error {
		f.Peer = "mosquitto"
		if m == nil {
			return b.Beside(ctx, f, turn(ours), nil)
		}
		return b.Beside(ctx, f, turn(ours), turn(m))
	}
	err = twice(Figure{Name: memoryPlain, Unit: "KiB", Goal: 12, Own: true}, func(side *brokerSide) Turn {
		return side.memoryOf(at(side, idle, nil))
	})
	if err != nil {
		return err
	}
	err = twice(Figure{Name: memoryTLS, Unit: "KiB", Goal: 28, Own: true}, func(side *brokerSide) Turn {
		return side.memoryOf(at(side, idle, secure))
	})
	if err != nil {
		return err
	}
	err = twice(Figure{Name: "login over a new TLS 1.2 connection", Unit: "µs of processor time each", Goal: 0.85}, func(side *brokerSide) Turn {
		return func(ctx context.Context) (float64, error) { // the process may be another by now
			return Cost(side.Process, func(ctx context.Context) (int, error) {
				return comeAndGo(ctx, at(side, b.Clients, secure), b.Duration)
			})(ctx)
		}
	})
	if err != nil {
		return err
	}
	operator := login{client: "bench-operator", name: s.Access.MQTT.Username, password: s.Access.MQTT.Password}
	topics := protocol.Topics{Prefix: s.Access.MQTT.Prefix}
	err = twice(Figure{Name: toAll, Unit: "ms to the last of them", Goal: 0.75}, func(side *brokerSide) Turn {
		by := operator
		by.addr = side.plain
		return tellAll(at(side, all, nil), by, topics)
	})
	if err != nil || !b.wants(atOnce) {
		return err
	}
	return b.hold(ctx, ours, at(ours, most, secure), note)
}

// Names of figures that need many devices.
const (
	memoryPlain = "memory of an idle device, plain"
	memoryTLS   = "memory of an idle device, TLS"
	toAll       = "a message at QoS 1 to all devices"
	atOnce      = "devices at once over TLS"
)

// broker is the server's own, with the memory and the time of all of the server.
func (s *Server) broker() *brokerSide {
	side := &brokerSide{Process: s.Process, plain: s.mqttPlain, secure: s.mqttTLS}
	side.again = func(ctx context.Context) error {
		err := s.again(ctx)
		side.Process = s.Process
		return err
	}
	return side
}

// enroll makes n devices with a login each.
func (s *Server) enroll(ctx context.Context, n int) ([]login, error) {
	devices := make([]login, n)
	return devices, eachOf(n, func(i int) error {
		id := fmt.Sprintf("bms-%06d", i)
		answer, err := s.Client.Enroll(ctx, id)
		devices[i] = login{client: id, name: id, password: answer.Token}
		return err
	})
}

// eachOf calls do for 0 to n-1, a few at once, and returns the first error.
func eachOf(n int, do func(i int) error) error {
	var next atomic.Int64
	var first error
	var once sync.Once
	var wg sync.WaitGroup
	for range min(n, loginsUnderway) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if err := do(i); err != nil {
					once.Do(func() { first = err })
					next.Store(int64(n))
				}
			}
		})
	}
	wg.Wait()
	return first
}

// crowd is sessions that are open.
type crowd []*session

// come opens a session for each login.
func come(ctx context.Context, logins []login) (crowd, error) {
	c := make(crowd, len(logins))
	err := eachOf(len(logins), func(i int) (err error) {
		c[i], err = logins[i].open(ctx)
		return err
	})
	if err != nil {
		c.leave()
	}
	return c, err
}

func (c crowd) leave() {
	for _, s := range c {
		if s != nil {
			s.close()
		}
	}
}

// memoryOf is what each of the sessions takes of a process that has just begun: what it holds with all of them, less what
// it held without, in KiB. What a collector of garbage has not given back counts, because the machine has not got it.
func (side *brokerSide) memoryOf(logins []login) Turn {
	return func(ctx context.Context) (float64, error) {
		if err := side.again(ctx); err != nil {
			return 0, err
		}
		if err := pause(ctx, idleSettle); err != nil {
			return 0, err
		}
		before, err := side.Memory()
		if err != nil {
			return 0, err
		}
		c, err := come(ctx, logins)
		if err != nil {
			return 0, err
		}
		defer c.leave()
		if err := pause(ctx, idleSettle); err != nil {
			return 0, err
		}
		after, err := side.Memory()
		return float64(after-before) / 1024 / float64(len(logins)), err
	}
}

// comeAndGo has each of the devices log in, and leave, until d has passed, and returns how many logins there were.
func comeAndGo(ctx context.Context, logins []login, d time.Duration) (int, error) {
	var total atomic.Int64
	var wg sync.WaitGroup
	failed := make(chan error, len(logins))
	end := time.Now().Add(d)
	for _, l := range logins {
		wg.Go(func() {
			for time.Now().Before(end) {
				s, err := l.open(ctx)
				if err != nil {
					failed <- err
					return
				}
				s.close()
				total.Add(1)
			}
		})
	}
	wg.Wait()
	select {
	case err := <-failed:
		return 0, err
	default:
		return int(total.Load()), nil
	}
}

// tellAll is how long a message of an operator takes until the last of the devices has it, in milliseconds on the wall.
// Devices and broker share the machine, and on both sides it is the same.
func tellAll(logins []login, operator login, topics protocol.Topics) Turn {
	return func(ctx context.Context) (float64, error) {
		c, err := come(ctx, logins)
		if err != nil {
			return 0, err
		}
		defer c.leave()
		if err := eachOf(len(c), func(i int) error { return c[i].subscribe(topics.CommandAll(), 1) }); err != nil {
			return 0, err
		}
		payload, err := protocol.Command{Action: protocol.ActionStatus, ID: "bench"}.Append(nil)
		if err != nil {
			return 0, err
		}
		by, err := operator.open(ctx)
		if err != nil {
			return 0, err
		}
		defer by.close()
		var wg sync.WaitGroup
		lost := make(chan error, len(c))
		for _, s := range c {
			wg.Go(func() {
				if _, err := s.take(); err != nil {
					lost <- err
				}
			})
		}
		begin := time.Now()
		if err := by.publish(topics.CommandAll(), 1, payload); err != nil {
			return 0, err
		}
		wg.Wait()
		took := time.Since(begin)
		select {
		case err := <-lost:
			return 0, fmt.Errorf("the message did not reach all: %w", err)
		default:
			return float64(took.Microseconds()) / 1000, by.acknowledged(1)
		}
	}
}

// hold adds the figure of as many devices as a server is to hold, each of which must answer at the end.
func (b *Bench) hold(ctx context.Context, side *brokerSide, logins []login, note string) error {
	b.Say("%s: %d %s", b.suite, len(logins), atOnce)
	if err := side.again(ctx); err != nil {
		return err
	}
	c, err := come(ctx, logins)
	if err != nil {
		return err
	}
	defer c.leave()
	if err := pause(ctx, idleSettle); err != nil {
		return err
	}
	err = eachOf(len(c), func(i int) error {
		_, err := c[i].ask(0xc0, nil, 13) // PINGREQ, PINGRESP
		return err
	})
	if err != nil {
		return fmt.Errorf("a device was not held: %w", err)
	}
	memory, err := side.Memory()
	if err != nil {
		return err
	}
	f := Figure{Name: atOnce, Unit: "devices that answer", Ours: float64(len(c)), Own: true, AtLeast: true, Rounds: 1, Note: note}
	if b.Count == 0 {
		f.Goal = devicesAtOnce
	}
	b.Add(f)
	b.Add(Figure{Name: "memory of the server with them", Unit: "MiB", Ours: float64(memory) / (1 << 20), Rounds: 1})
	return nil
}

// pause waits.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return errors.Join(errors.New("stopped"), ctx.Err())
	case <-time.After(d):
		return nil
	}
}
