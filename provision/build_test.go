package provision_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"bmsota/device"
	"bmsota/esp/appimage"
	"bmsota/esp/parttable"
	"bmsota/esp/spiffs"
	"bmsota/protocol"
	"bmsota/provision"
)

// project is a build folder in the making: files by their path, and the offsets that flasher_args.json gives them.
type project struct {
	chip, size string
	files      map[string][]byte
	offsets    map[string]string
	encrypted  string
}

// goodBuild is what idf.py build leaves for the original layout.
func goodBuild(t *testing.T) *project {
	t.Helper()
	return &project{chip: "esp32", size: "4MB",
		files: map[string][]byte{
			"bootloader/bootloader.bin":           bytes.Repeat([]byte("boot"), 6000),
			"partition_table/partition-table.bin": tableOf(t, parttable.Default()),
			"ota_data_initial.bin":                bytes.Repeat([]byte{0xFF}, 0x2000),
			"monitor.bin":                         appOf(t, appimage.ESP32, 200<<10),
		},
		offsets: map[string]string{"bootloader/bootloader.bin": "0x1000", "partition_table/partition-table.bin": "0x8000",
			"ota_data_initial.bin": "0x10000", "monitor.bin": "0x20000"},
	}
}

func tableOf(t *testing.T, table parttable.Table) []byte {
	t.Helper()
	b, err := table.AppendBinary(nil, true)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func appOf(t *testing.T, chip appimage.ChipID, size int64) []byte {
	t.Helper()
	b, err := appimage.Build(appimage.BuildOptions{Chip: chip, Project: "monitor", Version: "1.0.0", Size: size})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// write makes the folder, flasher_args.json in the form of ESP-IDF's template.
func (p *project) write(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	var lines, entries []string
	for name, data := range p.files {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for name, offset := range p.offsets {
		lines = append(lines, `        "`+offset+`" : "`+name+`"`)
		encrypted := "false"
		if name == p.encrypted {
			encrypted = "true"
		}
		entries = append(entries, `    "`+strings.NewReplacer("/", "-", ".bin", "").Replace(name)+`" : { "offset" : "`+offset+`", "file" : "`+name+"\",\n \"encrypted\" : \""+encrypted+`" }`)
	}
	text := `{
    "write_flash_args" : [ "--flash_mode", "dio",
                           "--flash_size", "` + p.size + `",
                           "--flash_freq", "40m" ],
    "flash_settings" : {
        "flash_mode": "dio",
        "flash_size": "` + p.size + `",
        "flash_freq": "40m"
    },
    "flash_files" : {
` + strings.Join(lines, ",\n") + `
    },
` + strings.Join(entries, ",\n") + `,
    "extra_esptool_args" : {
        "after"  : "hard_reset",
        "before" : "default_reset",
        "stub"   : true,
        "chip"   : "` + p.chip + `"
    }
}
`
	if err := os.WriteFile(filepath.Join(dir, "flasher_args.json"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func configs() (protocol.OTAConfig, protocol.MQTTConfig) {
	return protocol.OTAConfig{ServerURL: "https://nas.local/firmware/firmware.bin", DeviceID: "bms-1"},
		protocol.MQTTConfig{BrokerHost: "nas.local", Username: "bms-1", Password: "TOKEN", QoS: 1}
}

func TestTheFlashHoldsTheBuildAndBoots(t *testing.T) {
	p := goodBuild(t)
	wifi := spiffs.File{Name: "/wifi_config.txt", Data: []byte("ssid=x")}
	r, err := provision.FromBuild(p.write(t), []spiffs.File{wifi})
	if err != nil {
		t.Fatal(err)
	}
	storage, flash, err := r.Make(configs())
	if err != nil {
		t.Fatal(err)
	}
	if r.Chip != "esp32" || len(flash) != 4<<20 || r.FlashSize() != 4<<20 || len(storage) != 0xC0000 || r.Storage.Offset != 0x320000 {
		t.Errorf("chip %s, flash %d, storage %d at 0x%x", r.Chip, len(flash), len(storage), r.Storage.Offset)
	}
	want := bytes.Repeat([]byte{0xFF}, 4<<20)
	copy(want[0x1000:], p.files["bootloader/bootloader.bin"])
	copy(want[0x8000:], p.files["partition_table/partition-table.bin"])
	copy(want[0x20000:], p.files["monitor.bin"])
	copy(want[0x320000:], storage)
	if !bytes.Equal(flash, want) {
		t.Errorf("the flash differs from its parts at 0x%x", firstDifference(flash, want))
	}
	path := filepath.Join(t.TempDir(), "flash.bin")
	if err := os.WriteFile(path, flash, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := device.Boot(path, device.BootOptions{Rollback: true}); err != nil || got.Booted != "ota_0" {
		t.Errorf("boots %+v, %v", got, err)
	}
	in, err := device.Inspect(path)
	if err != nil || in.DeviceID != "bms-1" || len(in.Files) != 3 || len(in.Anomalies) != 0 {
		t.Errorf("the board has %+v, %v", in, err)
	}
}

func firstDifference(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return len(a)
}

func TestBoardsOfOneRecipeDifferInTheirStorageOnly(t *testing.T) {
	r, err := provision.FromBuild(goodBuild(t).write(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	ota, mqtt := configs()
	_, flash, err := r.Make(ota, mqtt)
	first := slices.Clone(flash)
	mqtt.Password = "ANOTHER"
	ota.DeviceID = "bms-2"
	storage, second, err2 := r.Make(ota, mqtt)
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(second, []byte("TOKEN")) || !bytes.Contains(storage, []byte("ANOTHER")) {
		t.Error("the second board has the token of the first, or not its own")
	}
	copy(first[0x320000:], storage)
	if !bytes.Equal(first, second) {
		t.Errorf("they differ at 0x%x too", firstDifference(first, second))
	}
}

func TestFilesThatTheBuildPutsIntoTheStorageStay(t *testing.T) {
	p := goodBuild(t)
	image, err := spiffs.Build(0xC0000, []spiffs.File{{Name: "/wifi_config.txt", Data: []byte("of the build")}, {Name: "/pack.txt", Data: []byte("old")},
		{Name: "/ota_config.txt", Data: []byte("{}")}})
	if err != nil {
		t.Fatal(err)
	}
	p.files["storage.bin"], p.offsets["storage.bin"] = image, "0x320000"
	r, err := provision.FromBuild(p.write(t), []spiffs.File{{Name: "/pack.txt", Data: []byte("given")}})
	if err != nil {
		t.Fatal(err)
	}
	storage, _, err := r.Make(configs())
	if err != nil {
		t.Fatal(err)
	}
	fsys, err := spiffs.Read(storage)
	if err != nil || len(fsys.Files()) != 4 {
		t.Fatalf("%v, %v", fsys.Files(), err)
	}
	for name, want := range map[string]string{"/wifi_config.txt": "of the build", "/pack.txt": "given"} {
		if got, err := fsys.ReadFile(name); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, want)
		}
	}
	if got, _ := fsys.ReadFile("/ota_config.txt"); !strings.Contains(string(got), "nas.local") {
		t.Errorf("ota_config.txt is the build's: %s", got)
	}
}

// The offsets are the build's, the sizes are the chip's.
func TestOtherChipsAndSizes(t *testing.T) {
	for _, c := range []struct {
		chip       appimage.ChipID
		boot, size string
		bytes      int64
	}{
		{appimage.ESP32C3, "0x0", "4MB", 4 << 20}, {appimage.ESP32S3, "0x0", "16MB", 16 << 20}, {appimage.ESP32C5, "0x2000", "8MB", 8 << 20},
		{appimage.ESP32, "0x1000", "detect", 4 << 20}, {appimage.ESP32, "0x1000", "keep", 4 << 20}, {appimage.ESP32, "4096", "32MB", 32 << 20},
	} {
		p := goodBuild(t)
		p.chip, p.size = c.chip.String(), c.size
		p.files["monitor.bin"] = appOf(t, c.chip, 100<<10)
		p.offsets["bootloader/bootloader.bin"] = c.boot
		r, err := provision.FromBuild(p.write(t), nil)
		if err != nil {
			t.Errorf("%s %s: %v", c.chip, c.size, err)
			continue
		}
		_, flash, err := r.Make(configs())
		if err != nil || int64(len(flash)) != c.bytes || !bytes.HasPrefix(flash[c.chip.BootloaderOffset():], []byte("bootboot")) {
			t.Errorf("%s %s: %d bytes, %v", c.chip, c.size, len(flash), err)
			continue
		}
		path := filepath.Join(t.TempDir(), "flash.bin")
		if err := os.WriteFile(path, flash, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := device.Boot(path, device.BootOptions{}); err != nil || got.Booted != "ota_0" {
			t.Errorf("%s %s: boots %+v, %v", c.chip, c.size, got, err)
		}
	}
}

func TestABuildThatWouldNotBootIsRefused(t *testing.T) {
	for _, c := range []struct {
		name, says string
		spoil      func(*project)
	}{
		{"an image for another chip", "monitor.bin is for esp32c3, the build for esp32", func(p *project) { p.files["monitor.bin"] = appOf(t, appimage.ESP32C3, 0) }},
		{"an image with one bit turned", "monitor.bin is not a valid image", func(p *project) { p.files["monitor.bin"][5000] ^= 1 }},
		{"half an image", "monitor.bin is not a valid image", func(p *project) { p.files["monitor.bin"] = p.files["monitor.bin"][:5000] }},
		{"no image", "monitor.bin: ", func(p *project) { p.files["monitor.bin"] = nil }},
		{"an image too large", "monitor.bin has 1638400 bytes, partition ota_0 has 1572864 (65536 too many)", func(p *project) { p.files["monitor.bin"] = appOf(t, appimage.ESP32, 1600<<10) }},
		{"an image in the second slot", "no application for ota_0 at 0x20000", func(p *project) { p.offsets["monitor.bin"] = "0x1a0000" }},
		{"a chip nobody knows", "unknown chip", func(p *project) { p.chip = "esp8266" }},
		{"the bootloader of another chip", "no bootloader at 0x1000, where the esp32 looks for it", func(p *project) { p.offsets["bootloader/bootloader.bin"] = "0x0" }},
		{"a bootloader for another chip", "bootloader/bootloader.bin is for esp32s3", func(p *project) { p.files["bootloader/bootloader.bin"] = appOf(t, appimage.ESP32S3, 0) }},
		{"an empty bootloader", "bootloader/bootloader.bin is empty", func(p *project) { p.files["bootloader/bootloader.bin"] = nil }},
		{"a bootloader over the table", "starts at 0x8000", func(p *project) { p.files["bootloader/bootloader.bin"] = make([]byte, 0x7001) }},
		{"no table", "lists no partition table", func(p *project) { delete(p.offsets, "partition_table/partition-table.bin") }},
		{"two tables", "a second partition table", func(p *project) {
			p.files["other.bin"], p.offsets["other.bin"] = p.files["partition_table/partition-table.bin"], "0x9000"
		}},
		{"a broken table", "partition-table.bin: partition table: md5", func(p *project) { p.files["partition_table/partition-table.bin"][8] ^= 1 }},
		{"a table for a larger flash", "past the flash chip's 0x200000", func(p *project) { p.size = "2MB" }},
		{"a table with an overlap", "overlaps", func(p *project) {
			table := parttable.Default()
			table[5].Offset -= 0x10000
			p.files["partition_table/partition-table.bin"] = tableOf(t, table)
		}},
		{"a table without storage", "no storage", func(p *project) {
			p.files["partition_table/partition-table.bin"] = tableOf(t, parttable.Default()[:5])
		}},
		{"an encrypted storage", "partition storage is encrypted", func(p *project) {
			table := parttable.Default()
			table[5].Encrypted = true
			p.files["partition_table/partition-table.bin"] = tableOf(t, table)
		}},
		{"flash encryption", "monitor.bin is written encrypted", func(p *project) { p.encrypted = "monitor.bin" }},
		{"a flash nobody makes", `a flash of "3MB" cannot be merged`, func(p *project) { p.size = "3MB" }},
		{"a flash too large for a merged file", `a flash of "64MB" cannot be merged`, func(p *project) { p.size = "64MB" }},
		{"a file behind the flash", "the flash at 0x400000", func(p *project) { p.offsets["ota_data_initial.bin"] = "0x3ff000" }},
		{"a file where nothing is", "where the partition table has nothing", func(p *project) { p.offsets["ota_data_initial.bin"] = "0x3e0000" }},
		{"a file longer than its partition", "partition phy_init ends after 4096", func(p *project) {
			p.files["phy.bin"], p.offsets["phy.bin"] = make([]byte, 4097), "0xf000"
			delete(p.offsets, "ota_data_initial.bin")
		}},
		{"a storage image of another form", "storage.bin: spiffs", func(p *project) {
			p.files["storage.bin"], p.offsets["storage.bin"] = make([]byte, 0xC0000), "0x320000"
		}},
		{"flasher_args.json of another form", "flasher_args.json", func(p *project) { p.offsets["monitor.bin"] = "app" }},
	} {
		p := goodBuild(t)
		c.spoil(p)
		r, err := provision.FromBuild(p.write(t), nil)
		if r != nil || err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", c.name, err, c.says)
		}
	}
	if _, err := provision.FromBuild(t.TempDir(), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no build: %v", err)
	}
	p := goodBuild(t)
	delete(p.files, "monitor.bin")
	if _, err := provision.FromBuild(p.write(t), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("half a build: %v", err)
	}
}

func TestWhatTheRunMakesIsNotTakenFromFiles(t *testing.T) {
	for _, name := range []string{protocol.OTAConfigFile, protocol.MQTTConfigFile} {
		if _, err := provision.FromTable(parttable.Default(), []spiffs.File{{Name: name}}); err == nil || !strings.Contains(err.Error(), "made for each device") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
