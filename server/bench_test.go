package server

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"bmsota/protocol"
)

func BenchmarkPublish(b *testing.B) {
	s, _ := run(b, testConfig(b))
	c := operatorClient(b, s)
	key := newKey(b)
	i := 0
	b.SetBytes(1 << 20)
	for b.Loop() {
		b.StopTimer()
		i++
		r := makeRelease(b, key, fmt.Sprintf("1.0.%d", i), 1<<20)
		b.StartTimer()
		publish(b, c, r)
	}
}

func BenchmarkDownload(b *testing.B) {
	s, _ := run(b, testConfig(b))
	r := makeRelease(b, newKey(b), "1.0.0", 1536<<10)
	publish(b, operatorClient(b, s), r)
	b.SetBytes(int64(len(r.image)))
	b.RunParallel(func(pb *testing.PB) {
		hc := httpClient(b, s.CAPEM())
		for pb.Next() {
			resp, err := hc.Get(s.URL() + "/firmware/firmware.bin")
			if err != nil {
				b.Fatal(err)
			}
			if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != int64(len(r.image)) {
				b.Fatal(n, err)
			}
			resp.Body.Close()
		}
	})
}

func BenchmarkVersionFile(b *testing.B) {
	s, _ := run(b, testConfig(b))
	publish(b, operatorClient(b, s), makeRelease(b, newKey(b), "1.0.0", 1536<<10))
	b.RunParallel(func(pb *testing.PB) {
		hc := httpClient(b, s.CAPEM())
		for pb.Next() {
			resp, err := hc.Get(s.URL() + "/firmware/version.json?device=bms-1")
			if err != nil {
				b.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, resp.Body); err != nil {
				b.Fatal(err)
			}
			resp.Body.Close()
		}
	})
}

// BenchmarkStatusesEndToEnd is one status at QoS 1 of one of 300 connected devices, each of which sends its next when the
// one before is acknowledged: through the broker into SQLite, durable. None may be lost: at the end the row of every
// device must be at the last one it sent. A device may send 50 in a burst, so more than 15,000 would measure the limit.
func BenchmarkStatusesEndToEnd(b *testing.B) {
	for _, tls := range []bool{false, true} {
		b.Run(fmt.Sprintf("tls=%v", tls), func(b *testing.B) { statusesEndToEnd(b, tls) })
	}
}

func statusesEndToEnd(b *testing.B, tls bool) {
	const devices = 300
	s, _ := run(b, testConfig(b))
	clients, tokens := make([]paho.Client, devices), make([]string, devices)
	operator := operatorClient(b, s)
	name := func(i int) string { return fmt.Sprintf("bms-%06d", i) }
	for i := range tokens { // all before the first connects: a new token ends the session that was there
		out, err := operator.Enroll(b.Context(), name(i))
		if err != nil {
			b.Fatal(err)
		}
		tokens[i] = out.Token
	}
	for i, token := range tokens {
		_, mc := deviceFiles(b, s, name(i), token)
		if mc.TLS = tls; !tls {
			mc.BrokerPort = portOf(s.mqttPlain)
		}
		var err error
		if clients[i], err = mqttClient(b, mc, name(i)); err != nil {
			b.Fatal(err)
		}
	}
	sent := make([]uint64, devices)
	var left atomic.Int64
	left.Store(int64(b.N))
	b.ResetTimer()
	var wg sync.WaitGroup
	for i, c := range clients {
		wg.Go(func() {
			id := name(i)
			for left.Add(-1) >= 0 {
				sent[i]++
				status := protocol.Status{DeviceID: id, CurrentVersion: "1.0.0", Phase: protocol.PhaseIdle, BootID: "b", Seq: sent[i]}
				payload, err := status.Append(nil)
				if err != nil {
					b.Error(err)
					return
				}
				token := c.Publish(protocol.Topics{}.Status(id), 1, true, payload)
				if !token.WaitTimeout(time.Minute) || token.Error() != nil {
					b.Errorf("%s: status %d was not acknowledged: %v", id, sent[i], token.Error())
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "statuses/s")
	for i, n := range sent {
		if d, err := s.fleet.Device(b.Context(), name(i)); err != nil || d.Seq != n {
			b.Errorf("%s sent %d, its row is at %d (%v)", name(i), n, d.Seq, err)
		}
	}
}
