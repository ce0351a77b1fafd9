package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"bmsota/protocol"
)

const (
	publishers = 1000
	// Statuses of one device in a turn: a server lets one say fifty at once and ten a second, and this is no measure of that.
	statusBurst = 45
	statusEach  = 100 * time.Millisecond // after which it may say one more
)

// ingest measures statuses at QoS 1 from many devices, each of which sends its next when the one before is acknowledged. Ours
// acknowledges what is in its database (SQLite, or the PostgreSQL that was asked for), synchronised to the disk; Mosquitto what it has passed on to one reader, and keeps nothing.
// After each turn of ours every device is looked up: a status that was acknowledged and is not there fails the run.
func ingest(ctx context.Context, b *Bench) error {
	var settings map[string]any
	into := ""
	if b.Database != "" {
		url, stop, err := b.database()
		if err != nil {
			return err
		}
		defer stop()
		settings, into = map[string]any{"database": map[string]any{"url": url}}, " into PostgreSQL"
	}
	s, err := b.serve(ctx, settings)
	if err != nil {
		return err
	}
	defer s.stop()
	devices, err := s.enroll(ctx, b.count(publishers))
	if err != nil {
		return err
	}
	m, err := b.startMosquitto(ctx, s, devices)
	if err != nil {
		return err
	}
	topics := protocol.Topics{Prefix: s.Access.MQTT.Prefix}
	uptime := int64(0) // the one number of a status that a device counts up for ever
	var acknowledged int
	turn := func(addr string, check func(ctx context.Context, last map[string]int64) error) Turn {
		var rested time.Time
		return func(ctx context.Context) (float64, error) {
			logins := append([]login(nil), devices...)
			for i := range logins {
				logins[i].addr = addr
			}
			c, err := come(ctx, logins)
			if err != nil {
				return 0, err
			}
			defer c.leave()
			if err := pause(ctx, time.Until(rested)); err != nil {
				return 0, err
			}
			begin := time.Now()
			n, last, err := c.report(logins, topics, uptime, begin.Add(b.Duration))
			took := time.Since(begin)
			if err != nil {
				return 0, err
			}
			rested = time.Now().Add(time.Duration(slices.Max(slices.Collect(maps.Values(last)))-uptime) * statusEach)
			uptime += statusBurst
			if check != nil {
				acknowledged += n
				err = check(ctx, last)
			}
			return float64(n) / took.Seconds(), err
		}
	}
	f := Figure{Name: fmt.Sprintf("statuses of %d devices%s, acknowledged", len(devices), into), Unit: "a second",
		Goal: 20_000, Own: true, AtLeast: true, Peer: "mosquitto"}
	var theirs Turn
	if m != nil {
		defer func() { m.stop() }()
		watcher, err := login{addr: m.plain, client: "bench-watcher", name: s.Access.MQTT.Username, password: s.Access.MQTT.Password}.open(ctx)
		if err != nil {
			return err
		}
		defer watcher.close()
		if err := watcher.subscribe(topics.StatusFilter(), 0); err != nil {
			return err
		}
		go func() { _, _ = io.Copy(io.Discard, watcher.in) }() // ends with the connection
		theirs = turn(m.plain, nil)
	}
	if err := b.Beside(ctx, f, turn(s.mqttPlain, s.rows), theirs); err != nil {
		return err
	}
	if b.wants(f.Name) {
		b.Add(Figure{Name: "of them looked for in the database, none lost", Unit: "statuses", Ours: float64(acknowledged), Rounds: b.Rounds + 1})
	}
	return nil
}

// report has each device say its status, again and again until end comes or it has said as many as it may, and returns how
// many were acknowledged, and the uptime in the last of each.
func (c crowd) report(logins []login, topics protocol.Topics, uptime int64, end time.Time) (int, map[string]int64, error) {
	var total atomic.Int64
	var mu sync.Mutex
	var failed error
	last := make(map[string]int64, len(c))
	var wg sync.WaitGroup
	for i, s := range c {
		wg.Go(func() {
			n, err := s.report(logins[i].name, topics, uptime, end)
			total.Add(n)
			mu.Lock()
			defer mu.Unlock()
			last[logins[i].name] = uptime + n
			failed = errors.Join(failed, err)
		})
	}
	wg.Wait()
	return int(total.Load()), last, failed
}

// report is one device.
func (s *session) report(id string, topics protocol.Topics, uptime int64, end time.Time) (n int64, err error) {
	var payload []byte
	topic := topics.Status(id)
	for n < statusBurst && time.Now().Before(end) {
		status := protocol.Status{DeviceID: id, CurrentVersion: "1.0.0", Phase: protocol.PhaseIdle, UptimeSec: uptime + n + 1,
			BootID: "bench", Seq: uint64(uptime + n + 1)}
		if payload, err = status.Append(payload[:0]); err != nil {
			return n, err
		}
		if err := s.publish(topic, uint16(n+1), payload); err != nil {
			return n, err
		}
		if err := s.acknowledged(uint16(n + 1)); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// rows looks every device up, and compares with the last status that was acknowledged.
func (s *Server) rows(ctx context.Context, last map[string]int64) error {
	devices, err := s.Client.Devices(ctx)
	if err != nil {
		return err
	}
	for _, d := range devices {
		want, ok := last[d.DeviceID]
		if ok && d.UptimeSec != want {
			return fmt.Errorf("a status was lost: %s was acknowledged up to %d, and the database is at %d", d.DeviceID, want, d.UptimeSec)
		}
		delete(last, d.DeviceID)
	}
	if len(last) > 0 {
		return fmt.Errorf("%d devices are not in the database", len(last))
	}
	return nil
}
