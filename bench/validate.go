package bench

import (
	"bytes"
	"context"
	"crypto/sha256"
	"time"

	"bmsota/esp/appimage"
)

// validate measures the full validation of an image (header, segments, checksum, digest) beside one SHA-256 pass over the same
// bytes, both in this process.
func validate(ctx context.Context, b *Bench) error {
	image, err := appimage.Build(appimage.BuildOptions{Chip: appimage.ESP32, Project: project, Version: "1.0.0", Size: ImageSize})
	if err != nil {
		return err
	}
	r, target := bytes.NewReader(image), appimage.Target{Chip: appimage.ESP32, PartitionSize: ImageSize}
	f := Figure{Name: "full validation of an image of 1.25 MB", Unit: "µs of processor time each", Goal: 1.8, Peer: "SHA-256"}
	return b.Beside(ctx, f, b.again(func() error {
		_, err := appimage.Verify(r, target)
		return err
	}), b.again(func() error {
		sha256.Sum256(image)
		return nil
	}))
}

// again makes a turn of what this process does over and over: processor time of one.
func (b *Bench) again(do func() error) Turn {
	return func(ctx context.Context) (float64, error) {
		before, err := spent()
		if err != nil {
			return 0, err
		}
		n := 0
		for end := time.Now().Add(b.Duration); n == 0 || time.Now().Before(end) && ctx.Err() == nil; n++ {
			if err := do(); err != nil {
				return 0, err
			}
		}
		after, err := spent()
		return float64((after - before).Nanoseconds()) / 1000 / float64(n), err
	}
}
