package agent

import (
	"encoding/hex"
	"errors"
	"strconv"
	"testing"

	"bmsota/device/internal/norflash"
	"bmsota/esp/appimage"
)

// Images of every chip, each with a few bytes changed: the host port's esp_image_verify decides as the bootloader of the
// virtual board, and ota_slots_verify tells the same of them as the Go agent.
func TestComponentVerifiesAsTheBootloaderDoes(t *testing.T) {
	c, m := startComponent(t, false), newStates(t, 2)
	table := layouts()[0]
	slot := table[1]
	good := 0
	for n := range 4000 {
		chip := pick(m, appimage.Chips()...)
		img := m.images[len(m.images)-1] // signed
		if n%8 > 0 {
			var err error
			if img, err = appimage.Build(appimage.BuildOptions{Chip: chip, Project: "monitor\xe9", Version: "1.0." + strconv.Itoa(n),
				Size: int64(m.IntN(200)) * 16 * int64(m.IntN(2)), NoHash: n%3 == 0}); err != nil {
				continue // a size below the smallest
			}
		} else {
			chip = appimage.ESP32
		}
		l := life{flash: norflash.New(used), table: table, running: slot, reset: PowerOn, chip: chip}
		m.table(t, l)
		m.program(t, l, int64(slot.Offset), m.changed(img))
		target := appimage.Target{Chip: chip, PartitionSize: int64(slot.Size), FlashOffset: int64(slot.Offset)}
		part := newSection(l.flash, slot)
		image, verr := appimage.Verify(part, target)
		want := map[string]string{}
		if verr == nil {
			good++
			length := appimage.FileLength(part, part.Size(), image)
			b := make([]byte, length)
			part.ReadAt(b, 0)
			sum := digestOf(b)
			want = map[string]string{"image": strconv.FormatInt(image.Length, 10), "file": strconv.FormatInt(length, 10), "chip": strconv.Itoa(int(image.Header.Chip)),
				"sha256": hex.EncodeToString(sum[:]), "desc": "0", "secure": "0", "version": "", "project": ""}
			if d := image.Desc; d != nil {
				want["desc"], want["secure"], want["version"], want["project"] = "1", strconv.FormatUint(uint64(d.SecureVersion), 10), printable(d.Version), printable(d.Project)
			}
		}
		d, _ := c.do(l, cut{}, "verify "+slot.Name)
		if (d.err == "ESP_OK") != (verr == nil) {
			t.Fatalf("image %d for %s: %s, the Go bootloader: %v", n, chip, d.err, verr)
		}
		for key, value := range want {
			if d.get(key) != value {
				t.Fatalf("image %d for %s: %s is %q, want %q", n, chip, key, d.get(key), value)
			}
		}
		if ve, ok := errors.AsType[*appimage.VerifyError](verr); ok && ve.Err != nil {
			t.Fatal(verr)
		}
	}
	if good < 500 || good > 3500 {
		t.Errorf("%d of the images verify", good)
	}
}

// changed is img with nothing, or a few bytes, changed: of the header, the first segment's header, the description, the end.
func (m *stateMaker) changed(img []byte) []byte {
	img = append([]byte(nil), img...)
	for range m.IntN(3) {
		at := pick(m, m.IntN(24), m.IntN(40), 32+m.IntN(256), len(img)-1-m.IntN(48), 208+m.IntN(5), m.IntN(len(img)))
		img[at] = pick(m, byte(0), 0xFF, byte(m.IntN(256)), img[at]^1<<m.IntN(8))
	}
	return img
}
