package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"bmsota/esp/appimage"
)

// newImage makes an image with the command itself.
func newImage(t *testing.T, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "app.bin")
	mustRun(t, append([]string{"image", "new", "--chip", "esp32", "--project", "bms-monitor", "--version", "1.2.3", "-o", path}, args...)...)
	return path
}

func TestImageInfoJSONSaysWhatEsptoolSays(t *testing.T) {
	path := vector(t, "image/app-esp32-1.0.0.bin")
	text := mustRun(t, "image", "info", "--json", path)
	got := decodeJSON[map[string]any](t, text)
	sum := sha256.Sum256(readFile(t, path))
	// The facts are those of esptool's image-info on the same file.
	for key, want := range map[string]any{
		"valid": true, "error": "", "chip": "esp32", "chip_id": 0.0, "project": "ota-demo", "version": "1.0.0", "secure_version": 0.0,
		"file_size": 73808.0, "image_length": 73808.0, "file_length": 73808.0, "sha256": hex.EncodeToString(sum[:]), "hash_appended": true,
		"validation_hash": "d84c77bc48c983ff358462e811a4c215ee991e40e2f460575a56bec331cacfe7",
		"idf_version":     "v5.5", "build_date": "Jan  2 2026 12:34:56", "trial": "ok",
	} {
		if got[key] != want {
			t.Errorf("%s is %v, want %v", key, got[key], want)
		}
	}
	segments, err := json.Marshal(got["segments"])
	if err != nil {
		t.Fatal(err)
	}
	want := `[{"file_offset":32,"length":1280,"load_addr":1061158944},{"file_offset":1320,"length":288,"load_addr":1073414144},` +
		`{"file_offset":1616,"length":1024,"load_addr":1074266112},{"file_offset":2648,"length":62912,"load_addr":0},` +
		`{"file_offset":65568,"length":8192,"load_addr":1074593824}]`
	if string(segments) != want {
		t.Errorf("segments\n%s, want\n%s", segments, want)
	}
	if s, ok := got["signatures"].([]any); !ok || len(s) != 0 {
		t.Errorf("signatures are %v, want an empty list", got["signatures"])
	}
	o := command(t, readFile(t, path), "image", "info", "--json", "-")
	if o.code != exitDone || o.out != text {
		t.Errorf("standard input: exit %d, %q", o.code, o.errout)
	}
}

func TestImageInfoPrintsAReadableBlock(t *testing.T) {
	got := mustRun(t, "image", "info", vector(t, "signed/app-esp32-1.0.0.rsa.bin"))
	for _, want := range []string{"valid           yes", "esp32 (id 0)", "ota-demo", "Jan  2 2026 12:34:56\n", "ESP-IDF         v5.5\n", "v0.0 to v3.99", "4 MB, DIO",
		"0x40080000", "checksum 0xfa", "81920 bytes, sha256", "rsa3072, key digest", "0x3f400020"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in\n%s", want, got)
		}
	}
}

func TestImageInfoKnowsTheSignatures(t *testing.T) {
	for file, key := range map[string]string{"app-esp32-1.0.0.rsa": "rsa3072", "app-esp32c3-2.0.0.p256": "p256"} {
		path := vector(t, "signed/"+file+".bin")
		r := decodeJSON[imageReport](t, mustRun(t, "image", "info", "--json", path))
		digest := hex.EncodeToString(readFile(t, "testdata/keys/"+key+"-test.digest.bin"))
		if len(r.Signatures) != 1 || !strings.HasSuffix(r.Signatures[0].Scheme, key) || r.Signatures[0].KeyDigest != digest || !r.Signatures[0].Verifies {
			t.Errorf("%s: signatures %+v, want %s with %s", file, r.Signatures, key, digest)
		}
		if r.FileSize != 81920 || r.FileLength != 81920 || r.ImageLength != 73808 {
			t.Errorf("%s: lengths %d, %d, %d", file, r.FileSize, r.FileLength, r.ImageLength)
		}
	}
}

func TestImageThatIsNotValidIsStillDescribed(t *testing.T) {
	good := readFile(t, vector(t, "image/app-esp32-1.0.0.bin"))
	mutate := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(good)) }
	for _, c := range []struct {
		name    string
		file    []byte
		says    string
		project string
		chip    string
	}{
		{"data flipped", mutate(func(b []byte) []byte { b[40000] ^= 1; return b }), "checksum", "ota-demo", "esp32"},
		{"hash flipped", mutate(func(b []byte) []byte { b[len(b)-1] ^= 1; return b }), "appended hash", "ota-demo", "esp32"},
		{"truncated", good[:50000], "the image ends here", "ota-demo", "esp32"},
		{"header only", good[:24], "the image ends here", "", "esp32"},
		{"half a header", good[:10], "the image ends here", "", ""},
		{"empty", nil, "the image ends here", "", ""},
		{"wrong magic", mutate(func(b []byte) []byte { b[0] = 0xEA; return b }), "magic", "", ""},
		{"terminal codes", mutate(func(b []byte) []byte { copy(b[80:], "\x1b[2J"); return b }), "checksum", "\x1b[2Jdemo", "esp32"},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := []string{"image", "info", "--json", "-"}
			o := command(t, c.file, args...)
			checkFault(t, o, exitRefused, c.says, args)
			r := decodeJSON[imageReport](t, o.out)
			if r.Valid || !strings.Contains(r.Error, c.says) || r.Project != c.project || r.Chip != c.chip || (r.ChipID == nil) != (c.chip == "") {
				t.Errorf("report %+v", r)
			}
			if r.FileSize != int64(len(c.file)) || r.Segments == nil || r.Signatures == nil {
				t.Errorf("report %+v", r)
			}
			for _, args := range [][]string{{"image", "info", "-"}, {"image", "verify", "-"}} {
				o = command(t, c.file, args...)
				checkFault(t, o, exitRefused, c.says, args)
				if strings.Contains(o.out, "\x1b") {
					t.Errorf("%q printed %q", args, o.out)
				}
			}
		})
	}
	big, err := os.Create(filepath.Join(t.TempDir(), "big.bin"))
	if err != nil {
		t.Fatal(err)
	}
	defer big.Close()
	if err := big.Truncate(17 << 20); err != nil {
		t.Fatal(err)
	}
	o := mustFail(t, exitRefused, "17825792 bytes, but", "image", "info", "--json", big.Name())
	if r := decodeJSON[imageReport](t, o.out); r.Valid || r.FileSize != 17<<20 {
		t.Errorf("report %+v", r)
	}
}

func TestBytesAfterTheImageAreAWarning(t *testing.T) {
	good := readFile(t, vector(t, "image/app-esp32-1.0.0.bin"))
	signed := readFile(t, vector(t, "signed/app-esp32-1.0.0.rsa.bin"))
	twice := filepath.Join(t.TempDir(), "s.bin")
	for _, c := range []struct {
		name       string
		file       []byte
		says       string
		signatures int
	}{
		{"padding", append(bytes.Clone(good), 0xFF), "1 bytes after the image", 0},
		{"slot from flash", append(bytes.Clone(good), make([]byte, 100000)...), "100000 bytes after the image", 0},
		{"signed slot from flash", append(bytes.Clone(signed), make([]byte, 5000)...), "5000 bytes after the image", 1},
		{"signature elsewhere", slices.Concat(signed[:77824], make([]byte, 4096), signed[77824:]), "a device looks for it at 0x13000", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := command(t, c.file, "image", "info", "--json", "-")
			r := decodeJSON[imageReport](t, o.out)
			if o.code != exitDone || !r.Valid || len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], c.says) || len(r.Signatures) != c.signatures {
				t.Errorf("exit %d, %+v", o.code, r)
			}
			if strings.Count(o.errout, "\n") != 1 || !strings.Contains(o.errout, "bmsota image info: warning: standard input: ") {
				t.Errorf("stderr %q", o.errout)
			}
			path := writeFile(t, twice, c.file)
			if c.name != "padding" {
				mustFail(t, exitRefused, "", "image", "sign", "--append", "--key", "testdata/keys/p256-test.pem", "-o", path, path)
			}
			if c.signatures > 0 {
				mustFail(t, exitRefused, "where a device looks for it", "image", "verify", "--key", "testdata/keys/rsa3072-test.pub.pem", path)
			}
			if got := readFile(t, path); !bytes.Equal(got, c.file) {
				t.Error("a refused command changed the file")
			}
		})
	}
}

func TestImageVerifyHoldsChipSizeAndKeyAgainstTheImage(t *testing.T) {
	plainImage := vector(t, "image/app-esp32-1.0.0.bin")
	rsa, p256 := vector(t, "signed/app-esp32-1.0.0.rsa.bin"), vector(t, "signed/app-esp32c3-2.0.0.p256.bin")
	flipped := readFile(t, rsa)
	flipped[77824+900] ^= 1
	torn := writeFile(t, filepath.Join(t.TempDir(), "torn.bin"), flipped)
	const rsaPub, ecPub = "testdata/keys/rsa3072-test.pub.pem", "testdata/keys/p256-test.pub.pem"
	for _, c := range []struct {
		code int
		says string
		args []string
	}{
		{exitDone, "", []string{plainImage}},
		{exitDone, "", []string{"--chip", "ESP32", "--partition-size", "1536K", plainImage}},
		{exitDone, "", []string{"--partition-size", "73808", plainImage}},
		{exitDone, "", []string{"--key", rsaPub, rsa}},
		{exitDone, "", []string{"--key", "testdata/keys/rsa3072-test.pem", rsa}},
		{exitDone, "", []string{"--key", ecPub, "--chip", "esp32c3", "--partition-size", "80K", p256}},
		{exitDone, "", []string{rsa}},
		{exitRefused, "the image is for esp32, the board is esp32c3", []string{"--chip", "esp32c3", plainImage}},
		{exitRefused, "partition", []string{"--partition-size", "73807", plainImage}},
		{exitRefused, "partition", []string{"--partition-size", "4K", plainImage}},
		{exitRefused, "partition", []string{"--partition-size", "76K", rsa}},
		{exitRefused, "signature sector", []string{"--key", rsaPub, "--partition-size", "76K", rsa}},
		{exitRefused, "not signed", []string{"--key", rsaPub, plainImage}},
		{exitRefused, "does not verify", []string{"--key", ecPub, rsa}},
		{exitRefused, "does not verify", []string{"--key", rsaPub, p256}},
		{exitRefused, "", []string{"--key", rsaPub, torn}},
		{exitUsage, "--chip", []string{"--chip", "esp9000", plainImage}},
		{exitUsage, "--partition-size", []string{"--partition-size", "0", plainImage}},
		{exitUsage, "--partition-size", []string{"--partition-size", "32M", plainImage}},
		{exitFailed, "there is no file", []string{"--key", "testdata/none.pem", plainImage}},
		{exitFailed, "there is no file", []string{"--key", "", plainImage}},
	} {
		args := append([]string{"image", "verify"}, c.args...)
		if c.code == exitDone {
			if out := mustRun(t, args...); !strings.Contains(out, "verifies: ota-demo") {
				t.Errorf("%q: %q", args, out)
			}
			if r := decodeJSON[imageReport](t, mustRun(t, append(args, "--json")...)); !r.Valid {
				t.Errorf("%q: %+v", args, r)
			}
			continue
		}
		mustFail(t, c.code, c.says, args...)
		if o := mustFail(t, c.code, c.says, append(args, "--json")...); c.code == exitRefused {
			if r := decodeJSON[imageReport](t, o.out); r.Valid || !strings.Contains(r.Error, c.says) {
				t.Errorf("%q: %+v", args, r)
			}
		}
	}
}

func TestImageWithABrokenSignatureIsSoundButUnsigned(t *testing.T) {
	b := readFile(t, vector(t, "signed/app-esp32-1.0.0.rsa.bin"))
	b[77824+900] ^= 1
	o := command(t, b, "image", "verify", "-")
	if o.code != exitDone || !strings.Contains(o.errout, "8112 bytes after the image are no part of it and no signature") {
		t.Errorf("exit %d, stderr %q", o.code, o.errout)
	}
}

func TestImageNewMakesWhatItWasTold(t *testing.T) {
	for _, chip := range appimage.Chips() {
		for _, trial := range []string{"ok", "crash", "hang", "unhealthy"} {
			path := newImage(t, "--chip", chip.String(), "--trial", trial, "--secure-version", "7", "--size", "64K")
			r := decodeJSON[imageReport](t, mustRun(t, "image", "info", "--json", path))
			if !r.Valid || r.Chip != chip.String() || r.Trial != trial || r.SecureVersion != 7 || r.FileSize != 64<<10 ||
				r.Project != "bms-monitor" || r.Version != "1.2.3" {
				t.Errorf("%s, %s: %+v", chip, trial, r)
			}
		}
	}
	if a, b := readFile(t, newImage(t)), readFile(t, newImage(t)); !bytes.Equal(a, b) {
		t.Error("the same flags gave different bytes")
	}
	o := command(t, nil, "image", "new", "--chip", "esp32", "--project", "bms-monitor", "--version", "1.2.3", "-o", "-")
	if o.code != exitDone || o.out != string(readFile(t, newImage(t))) {
		t.Errorf("standard output: exit %d, %q", o.code, o.errout)
	}
}

func TestImageNewRefusesBadFlags(t *testing.T) {
	out := filepath.Join(t.TempDir(), "app.bin")
	base := func(replace, value string) []string {
		args := []string{"image", "new"}
		for _, flag := range [][2]string{{"--chip", "esp32"}, {"--project", "p"}, {"--version", "1.0.0"}, {"-o", out}} {
			if flag[0] != replace {
				args = append(args, flag[0], flag[1])
			} else if value != "" {
				args = append(args, replace, value)
			}
		}
		if !slices.Contains([]string{"--chip", "--project", "--version", "-o"}, replace) {
			args = append(args, replace, value)
		}
		return args
	}
	for _, c := range []struct{ flag, value, says string }{
		{"--chip", "", "--chip must be given"}, {"--project", "", "--project must be given"}, {"--version", "", "--version must be given"},
		{"-o", "", "--output must be given"}, {"--chip", "esp9000", "--chip"}, {"--trial", "maybe", "--trial"},
		{"--project", strings.Repeat("p", 32), "at most 31 bytes"}, {"--version", strings.Repeat("1", 32), "at most 31 bytes"},
		{"--size", "100", "image"}, {"--size", "65537", "image"}, {"--size", "17M", "image"}, {"--size", "0", "--size 0"},
		{"--size", "-1", "not a size"}, {"--secure-version", "-1", "invalid argument"}, {"--secure-version", "4294967296", "invalid argument"},
	} {
		mustFail(t, exitUsage, c.says, base(c.flag, c.value)...)
		if _, err := os.Lstat(out); err == nil {
			t.Fatalf("%s %s: a file was written", c.flag, c.value)
		}
	}
}

func TestImageSignMakesWhatEspsecureMakes(t *testing.T) {
	plainImage := vector(t, "image/app-esp32-1.0.0.bin")
	reference := readFile(t, vector(t, "signed/app-esp32-1.0.0.rsa.bin"))
	out := filepath.Join(t.TempDir(), "signed.bin")
	w := decodeJSON[written](t, mustRun(t, "image", "sign", "--json", "--key", "testdata/keys/rsa3072-test.pem", "-o", out, plainImage))
	got := readFile(t, out)
	if sum := sha256.Sum256(got); w.File != out || w.Size != len(got) || w.SHA256 != hex.EncodeToString(sum[:]) {
		t.Errorf("reported %+v", w)
	}
	// Everything but the salted signature (384 bytes at 812) and the block's CRC is determined.
	const block = 77824
	if len(got) != len(reference) || !bytes.Equal(got[:block+812], reference[:block+812]) || !bytes.Equal(got[block+1200:], reference[block+1200:]) {
		t.Error("differs from espsecure's file outside the signature")
	}
	mustRun(t, "image", "verify", "--key", "testdata/keys/rsa3072-test.pub.pem", out)
}

func TestImageSignAppendsUpToThreeAndNeverSignsASignature(t *testing.T) {
	path := newImage(t, "--chip", "esp32s3")
	dir := filepath.Dir(path)
	sign := func(key string, more ...string) []string {
		return append(append([]string{"image", "sign", "--key", key, "-o", path}, more...), path)
	}
	var keys []string
	for i := range 4 {
		keys = append(keys, filepath.Join(dir, fmt.Sprintf("k%d.pem", i)))
		mustRun(t, "keys", "new", "-o", keys[i])
	}
	mustRun(t, sign(keys[0], "--append")...)
	one := readFile(t, path)
	mustFail(t, exitRefused, "signed already", sign(keys[1])...)
	if !bytes.Equal(readFile(t, path), one) {
		t.Error("a refused command changed the file")
	}
	mustRun(t, sign(keys[1], "--append")...)
	mustRun(t, sign(keys[2], "--append")...)
	three := readFile(t, path)
	mustFail(t, exitRefused, "full", sign(keys[3], "--append")...)
	if !bytes.Equal(readFile(t, path), three) || len(three) != len(one) {
		t.Error("a refused command changed the file")
	}
	for _, key := range keys[:3] {
		mustRun(t, "image", "verify", "--key", strings.TrimSuffix(key, ".pem")+".pub.pem", path)
	}
	mustFail(t, exitRefused, "does not verify", "image", "verify", "--key", keys[3], path)
	r := decodeJSON[imageReport](t, mustRun(t, "image", "info", "--json", path))
	if len(r.Signatures) != 3 || r.FileLength != r.FileSize {
		t.Errorf("report %+v", r)
	}
	esp32 := newImage(t)
	mustRun(t, "image", "sign", "--key", keys[0], "-o", esp32, esp32)
	o := command(t, nil, "image", "sign", "--append", "--key", keys[1], "-o", esp32, esp32)
	if o.code != exitDone || !strings.Contains(o.errout, "esp32 looks at the first signature only") {
		t.Errorf("exit %d, stderr %q", o.code, o.errout)
	}
}

func TestImageSignRefusesWhatNoDeviceWouldTake(t *testing.T) {
	path := newImage(t)
	out := filepath.Join(t.TempDir(), "out.bin")
	mustFail(t, exitUsage, "--key must be given", "image", "sign", "-o", out, path)
	mustFail(t, exitUsage, "--output must be given", "image", "sign", "--key", "testdata/keys/p256-test.pem", path)
	mustFail(t, exitUsage, "--key, --output must be given", "image", "sign", path)
	broken := readFile(t, path)
	broken[len(broken)/2] ^= 1
	bad := writeFile(t, filepath.Join(t.TempDir(), "bad.bin"), broken)
	mustFail(t, exitRefused, "not a valid image", "image", "sign", "--key", "testdata/keys/p256-test.pem", "-o", out, bad)
	full := newImage(t, "--size", "16M")
	mustFail(t, exitRefused, "no partition has more than", "image", "sign", "--key", "testdata/keys/p256-test.pem", "-o", out, full)
	if _, err := os.Lstat(out); err == nil {
		t.Error("an output was written")
	}
}
