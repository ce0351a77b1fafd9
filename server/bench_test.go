package server

import (
	"fmt"
	"io"
	"testing"
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
