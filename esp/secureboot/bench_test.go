package secureboot

import (
	"bytes"
	"testing"
)

func BenchmarkVerifyOnDevice(b *testing.B) {
	for _, v := range signedVectors {
		b.Run(v.name, func(b *testing.B) {
			file := vector(b, "signed", v.file)
			trusted := [][32]byte{digestOf(b, v.public(b))}
			r := bytes.NewReader(file)
			b.ReportAllocs()
			for b.Loop() {
				if err := VerifyOnDevice(r, v.imageLength, int64(len(file)), trusted, 1); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
