package appimage

import (
	"bytes"
	"crypto/sha256"
	"testing"
	"time"
)

const benchSize = 1 << 20

// BenchmarkVerify reports, beside its speed, how many times the SHA-256 of the
// same bytes it takes, measured in turns in the same run.
func BenchmarkVerify(b *testing.B) {
	file := mustBuild(b, BuildOptions{Chip: ESP32C3, Version: "1", Size: benchSize})
	r := bytes.NewReader(file)
	target := Target{Chip: ESP32C3, PartitionSize: benchSize}
	var verify, hash time.Duration
	b.SetBytes(benchSize)
	b.ReportAllocs()
	for b.Loop() {
		start := time.Now()
		if _, err := Verify(r, target); err != nil {
			b.Fatal(err)
		}
		verify += time.Since(start)
		b.StopTimer()
		start = time.Now()
		sha256.Sum256(file)
		hash += time.Since(start)
		b.StartTimer()
	}
	b.ReportMetric(float64(verify)/float64(hash), "x-sha256")
}

func BenchmarkParse(b *testing.B) {
	file := mustBuild(b, BuildOptions{Chip: ESP32C3, Version: "1", Size: benchSize})
	b.SetBytes(benchSize)
	for b.Loop() {
		if _, err := Parse(file); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSHA256(b *testing.B) {
	file := mustBuild(b, BuildOptions{Chip: ESP32C3, Version: "1", Size: benchSize})
	b.SetBytes(benchSize)
	for b.Loop() {
		sha256.Sum256(file)
	}
}
