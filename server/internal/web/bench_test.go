package web

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
)

func BenchmarkVersionFile(b *testing.B) {
	f := newFake()
	f.add("bms", "1.0.0", testImage(1, 1_500_000))
	h := New(Config{Fleet: f, Log: quiet()})
	req := httptest.NewRequest("GET", "/firmware/version.json?device=bms-1", nil)
	b.ReportAllocs()
	for b.Loop() {
		h.ServeHTTP(httptest.NewRecorder(), req)
	}
}

func BenchmarkVersionFileOverLoopback(b *testing.B) {
	f := newFake()
	f.add("bms", "1.0.0", testImage(1, 1_500_000))
	benchGet(b, f, "/firmware/version.json?device=bms-1", 0)
}

func BenchmarkFirmwareOverLoopback(b *testing.B) {
	f := newFake()
	image := testImage(1, 1_500_000)
	f.add("bms", "1.0.0", image)
	benchGet(b, f, "/firmware/firmware.bin", int64(len(image)))
}

func benchGet(b *testing.B, f Fleet, path string, size int64) {
	secure := httptest.NewTLSServer(nil) // for its certificate
	defer secure.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	s := NewServer(New(Config{Fleet: f, Log: quiet()}), quiet())
	defer s.Close()
	go func() { _ = s.Serve(l, secure.TLS) }() // ends with Close
	b.SetBytes(size)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		client := &http.Client{Transport: secure.Client().Transport.(*http.Transport).Clone()}
		defer client.CloseIdleConnections()
		buf := make([]byte, 64<<10)
		for pb.Next() {
			resp, err := client.Get("https://" + l.Addr().String() + path)
			if err != nil {
				b.Fatal(err)
			}
			n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, buf)
			resp.Body.Close()
			if err != nil || size > 0 && n != size {
				b.Fatalf("%d bytes, %v", n, err)
			}
		}
	})
}
