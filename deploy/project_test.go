package deploy_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"bmsota/deploy"
	"bmsota/esp/appimage"
	"bmsota/esp/parttable"
)

// project makes a folder with these files.
func project(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const table = "otadata,data,ota,0x10000,0x2000\nota_0,app,ota_0,0x20000,%\nota_1,app,ota_1,,1M\n"

func slots(first string) string { return strings.Replace(table, "%", first, 1) }

func TestProjectFindsWhatESPIDFLeaves(t *testing.T) {
	app := string(image(t, "1.2.0"))
	built, err := parttable.Default().AppendBinary(nil, true)
	if err != nil {
		t.Fatal(err)
	}
	bootloader, err := appimage.Build(appimage.BuildOptions{Chip: appimage.ESP32, Version: "1.0.0", NoHash: true, Size: 4096})
	if err != nil {
		t.Fatal(err)
	}
	// The same bit twice leaves the checksum as it is: an image that is whole and has no description of an application.
	bootloader[appimage.DescOffset] ^= 1
	bootloader[appimage.DescOffset+appimage.DescSize-1] ^= 1
	if img, err := appimage.Parse(bootloader); err != nil || img.Desc != nil {
		t.Fatalf("no bootloader: %+v, %v", img, err)
	}
	for _, c := range []struct {
		name        string
		files       map[string]string
		firmware    string // below the folder
		image, chip string
		slot        uint32 // bytes of the smallest
		from        string // where the slot is from
		fault       error
		faultText   string
		warnings    int
	}{
		{name: "what the build names", files: map[string]string{"build/project_description.json": `{"app_bin":"app.bin","target":"esp32"}`, "build/app.bin": app,
			"build/other.bin": app, "build/partition_table/partition-table.bin": string(built), "partitions.csv": slots("256K")},
			image: "build/app.bin", chip: "esp32", slot: 1536 << 10, from: "build/partition_table/partition-table.bin"},
		{name: "what the settings name", files: map[string]string{"build/project_description.json": `{"app_bin":"app.bin"}`, "out/mine.bin": app, "sdkconfig": "CONFIG_IDF_TARGET=\"esp32\"\n", "partitions.csv": slots("256K")},
			firmware: "out/mine.bin", image: "out/mine.bin", chip: "esp32", slot: 256 << 10, from: "partitions.csv"},
		{name: "a build folder of another name", files: map[string]string{"build-a/project_description.json": `{"target":"esp32"}`, "build-a/app.bin": app,
			"build-a/partition_table/partition-table.bin": string(built), "build/project_description.json": `{"target":"esp32c3"}`},
			firmware: "build-a/app.bin", image: "build-a/app.bin", chip: "esp32", slot: 1536 << 10, from: "build-a/partition_table/partition-table.bin"},
		{name: "a path from another machine", files: map[string]string{"build/project_description.json": `{"app_bin":"/ci/job/build/app.bin","target":"esp32"}`, "build/app.bin": app},
			image: "build/app.bin", chip: "esp32", warnings: 1},
		{name: "the only application", files: map[string]string{"build/app.bin": app, "build/storage.bin": "\xff\xff", "build/ota_data_initial.bin": "\xff", "build/bootloader.bin": string(bootloader), "build/app.elf": app},
			image: "build/app.bin", warnings: 2},
		{name: "the table that sdkconfig names", files: map[string]string{"build/app.bin": app, "partitions.csv": slots("256K"), "tables/mine.csv": slots("512K"),
			"sdkconfig": "CONFIG_IDF_TARGET=\"esp32\"\nCONFIG_PARTITION_TABLE_CUSTOM=y\nCONFIG_PARTITION_TABLE_CUSTOM_FILENAME=\"tables/mine.csv\"\n"},
			image: "build/app.bin", chip: "esp32", slot: 512 << 10, from: "tables/mine.csv"},
		{name: "a table that begins elsewhere", files: map[string]string{"build/app.bin": app, "partitions.csv": "otadata,data,ota,,0x2000\nota_0,app,ota_0,,1M\n",
			"sdkconfig": "CONFIG_IDF_TARGET=\"esp32\"\nCONFIG_PARTITION_TABLE_OFFSET=0x10000\n"}, image: "build/app.bin", chip: "esp32", slot: 1 << 20, from: "partitions.csv"},

		{name: "nothing", fault: deploy.ErrNoImage, faultText: "no application image"},
		{name: "several", files: map[string]string{"build/a.bin": app, "build/b.bin": app}, fault: deploy.ErrNoImage, faultText: "several (a.bin, b.bin)"},
		{name: "named and missing", firmware: "build/x.bin", fault: deploy.ErrNoImage, faultText: "there is no file"},
		{name: "named and broken", files: map[string]string{"build/x.bin": app[:5000]}, firmware: "build/x.bin", fault: deploy.ErrImage, faultText: "x.bin"},
		{name: "no slot", files: map[string]string{"build/app.bin": app, "partitions.csv": "factory,app,factory,0x10000,1M\n"}, fault: deploy.ErrImage, faultText: "no OTA slot"},
		{name: "another chip", files: map[string]string{"build/app.bin": app, "sdkconfig": "CONFIG_IDF_TARGET=\"esp32s3\"\n"}, fault: deploy.ErrImage, faultText: "for esp32, the project is for esp32s3"},
		{name: "too big", files: map[string]string{"build/app.bin": app, "partitions.csv": slots("4K")}, fault: deploy.ErrImage, faultText: "8192 bytes do not fit slot ota_0, which has 4096"},
		{name: "broken table", files: map[string]string{"build/app.bin": app, "partitions.csv": "nonsense\n"}, faultText: "partitions.csv"},
		{name: "broken sdkconfig", files: map[string]string{"build/app.bin": app, "sdkconfig": "<<<<<<<\n"}, faultText: "line 1"},
		{name: "broken description", files: map[string]string{"build/app.bin": app, "build/project_description.json": "["}, faultText: "project_description.json"},
	} {
		dir := project(t, c.files)
		firmware := ""
		if c.firmware != "" {
			firmware = filepath.Join(dir, c.firmware)
		}
		p, err := deploy.OpenProject(dir, filepath.Join(dir, deploy.BuildFolder), firmware)
		var warnings []string
		if err == nil {
			warnings, err = p.Check()
		}
		if c.faultText != "" {
			if err == nil || c.fault != nil && !errors.Is(err, c.fault) || !strings.Contains(err.Error(), c.faultText) {
				t.Errorf("%s: %v, want %v: %s", c.name, err, c.fault, c.faultText)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		at := func(path string) string {
			if path == "" {
				return ""
			}
			rel, err := filepath.Rel(dir, path)
			if err != nil {
				t.Fatal(err)
			}
			return filepath.ToSlash(rel)
		}
		if at(p.ImagePath) != c.image || p.Chip != c.chip || p.Slot.Size != c.slot || at(p.SlotFrom) != c.from || len(warnings) != c.warnings {
			t.Errorf("%s: image %s, chip %q, slot of %d from %q, warnings %q", c.name, at(p.ImagePath), p.Chip, p.Slot.Size, at(p.SlotFrom), warnings)
		}
		if free, ok := p.Room(); ok != (c.slot > 0) || ok && free != int64(c.slot)-int64(len(app)) {
			t.Errorf("%s: %d bytes left, %v", c.name, free, ok)
		}
	}
}

func TestVersionComesFromWhoKnowsIt(t *testing.T) {
	git := func(dir string, args ...string) {
		t.Helper()
		args = append([]string{"-C", dir, "-c", "user.name=a", "-c", "user.email=a@b"}, args...)
		if b, err := exec.Command("git", args...).CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, b)
		}
	}
	t.Setenv("GIT_CEILING_DIRECTORIES", os.TempDir()) // of no repository that the test runs in
	for _, c := range []struct {
		name, own, given, tag string
		want, from            string
	}{
		{"given", "1.0.0", "2.0.0", "v3.0.0", "2.0.0", "--version"},
		{"the image's", "1.0.0", "", "v3.0.0", "1.0.0", "the image's own description"},
		{"ESP-IDF's default", "1", "", "v3.0.0", "v3.0.0", "git describe"},
		{"Arduino's", "esp-idf: v4.4.6", "", "3.1.0", "3.1.0", "git describe"},
		{"no tag", "1", "", "", "", "is no SemVer"},
		{"a tag that is none", "1", "", "release-3", "", "is no SemVer"},
		{"no repository", "1", "", "-", "", "git cannot tell"},
		{"the image's is none", "3f2a91c-dirty", "", "v3.0.0", "", "is no SemVer"},
		{"given and none", "1.0.0", "nightly", "", "", "is no SemVer"},
	} {
		dir := project(t, map[string]string{"build/app.bin": string(image(t, c.own))})
		if c.tag != "-" {
			git(dir, "init", "-q")
			git(dir, "commit", "-q", "--allow-empty", "-m", "first")
			if c.tag != "" {
				git(dir, "tag", c.tag)
			}
		}
		p, err := deploy.OpenProject(dir, filepath.Join(dir, deploy.BuildFolder), "")
		if err != nil {
			t.Fatal(err)
		}
		version, from, err := p.Version(t.Context(), c.given)
		if c.want == "" {
			if !errors.Is(err, deploy.ErrVersion) || !strings.Contains(err.Error(), c.from) {
				t.Errorf("%s: %q, %v, want %s", c.name, version, err, c.from)
			}
			continue
		}
		if err != nil || version != c.want || from != c.from {
			t.Errorf("%s: %q from %s, %v, want %q from %s", c.name, version, from, err, c.want, c.from)
		}
	}
}
