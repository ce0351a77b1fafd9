package idfproject_test

import (
	"bytes"
	"errors"
	"maps"
	"reflect"
	"strings"
	"testing"

	"bmsota/esp/idfproject"
)

func TestSDKConfigAsKconfigWritesIt(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       idfproject.SDKConfig
	}{
		{"nothing", "", idfproject.SDKConfig{}},
		{"header and sections", "#\n# Automatically generated file. DO NOT EDIT.\n#\n\n# end of Boot ROM\n# default:\nCONFIG_A=y\n", idfproject.SDKConfig{"CONFIG_A": "y"}},
		{"off is not missing", "# CONFIG_A is not set\n", idfproject.SDKConfig{"CONFIG_A": "n"}},
		{"texts", `CONFIG_A="x"` + "\n" + `CONFIG_B=""` + "\n" + `CONFIG_C="a \"b\" \\ = # c"` + "\n", idfproject.SDKConfig{"CONFIG_A": "x", "CONFIG_B": "", "CONFIG_C": `a "b" \ = # c`}},
		{"empty value", "CONFIG_A=\n", idfproject.SDKConfig{"CONFIG_A": ""}},
		{"the last one counts", "CONFIG_A=1\n# CONFIG_A is not set\nCONFIG_A=2", idfproject.SDKConfig{"CONFIG_A": "2"}},
		{"Windows", "\xef\xbb\xbfCONFIG_A=1\r\n# CONFIG_B is not set\r\n", idfproject.SDKConfig{"CONFIG_A": "1", "CONFIG_B": "n"}},
		{"remarks of people", "# what is not set\n#CONFIG_A=y\n# CONFIG_A B is not set\n", idfproject.SDKConfig{}},
	} {
		got, err := idfproject.ParseSDKConfig([]byte(c.text))
		if err != nil || !maps.Equal(got, c.want) {
			t.Errorf("%s: %v, %v, want %v", c.name, got, err, c.want)
		}
	}
}

func TestSDKConfigRefusals(t *testing.T) {
	for name, text := range map[string]string{
		"a merge not finished": "CONFIG_A=y\n<<<<<<< HEAD\n",
		"another file":         "{\"a\": 1}\n",
		"a name of others":     "A=y\n",
		"an empty name":        "CONFIG_=y\n",
		"a blank in the name":  "CONFIG_A B=y\n",
		"no end of the text":   "CONFIG_A=\"x\n",
		"behind the text":      "CONFIG_A=\"x\"y\n",
		"half an escape":       "CONFIG_A=\"x\\\n",
	} {
		if c, err := idfproject.ParseSDKConfig([]byte(text)); !errors.Is(err, idfproject.ErrSyntax) {
			t.Errorf("%s: %v, %v", name, c, err)
		}
	}
	if _, err := idfproject.ParseSDKConfig(bytes.Repeat([]byte("\n"), idfproject.MaxSDKConfig+1)); !errors.Is(err, idfproject.ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
}

func TestNumbersOfSDKConfig(t *testing.T) {
	c := idfproject.SDKConfig{"CONFIG_D": "115200", "CONFIG_H": "0X8000", "CONFIG_M": "-1", "CONFIG_T": "esp32", "CONFIG_L": "0xffffffffffffffffff", "CONFIG_E": ""}
	for name, want := range map[string]int64{"CONFIG_D": 115200, "CONFIG_H": 0x8000, "CONFIG_M": -1} {
		if got, ok := c.Int(name); !ok || got != want {
			t.Errorf("%s: %d, %v, want %d", name, got, ok, want)
		}
	}
	for _, name := range []string{"CONFIG_T", "CONFIG_L", "CONFIG_E", "CONFIG_MISSING"} {
		if got, ok := c.Int(name); ok {
			t.Errorf("%s: %d", name, got)
		}
	}
}

func TestDescriptionOfAnyVersionIsRead(t *testing.T) {
	got, err := idfproject.ParseDescription([]byte(`{"version": "1.1", "project_name": "esp32-bms-monitor", "project_version": "1.4.0",
		"project_path": "/p", "build_dir": "/p/build", "config_file": "/p/sdkconfig", "app_bin": "esp32-bms-monitor.bin", "target": "esp32",
		"rev": "0", "build_components": ["main", ""], "build_component_info": {"main": {"sources": ["a.c"]}}}`))
	want := idfproject.Description{ProjectName: "esp32-bms-monitor", ProjectVersion: "1.4.0", ProjectPath: "/p", BuildDir: "/p/build",
		ConfigFile: "/p/sdkconfig", AppBin: "esp32-bms-monitor.bin", Target: "esp32"}
	if err != nil || got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	if got, err := idfproject.ParseDescription([]byte(`{}`)); err != nil || got != (idfproject.Description{}) {
		t.Errorf("empty: %+v, %v", got, err)
	}
}

func TestFlasherArgs(t *testing.T) {
	got, err := idfproject.ParseFlasherArgs([]byte(`{"write_flash_args": ["--flash_mode", "dio", "--flash_size", "4MB"],
		"flash_settings": {"flash_mode": "dio", "flash_size": "4MB", "flash_freq": "40m"},
		"flash_files": {"0x1000": "bootloader/bootloader.bin", "0x20000": "bms.bin", "0x8000": "partition_table/partition-table.bin"},
		"app": {"offset": "0x20000", "file": "bms.bin", "encrypted": "false"},
		"extra_esptool_args": {"after": "hard_reset", "before": "default_reset", "stub": true, "chip": "esp32"}}`))
	want := idfproject.FlasherArgs{Chip: "esp32", WriteFlashArgs: []string{"--flash_mode", "dio", "--flash_size", "4MB"},
		Settings: idfproject.FlashSettings{Mode: "dio", Size: "4MB", Freq: "40m"},
		Files:    []idfproject.FlashFile{{0x1000, "bootloader/bootloader.bin"}, {0x8000, "partition_table/partition-table.bin"}, {0x20000, "bms.bin"}}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	for name, text := range map[string]string{
		"33 bits":               `{"flash_files": {"0x100000000": "a"}}`,
		"no number":             `{"flash_files": {"app": "a"}}`,
		"negative":              `{"flash_files": {"-1": "a"}}`,
		"one offset, two files": `{"flash_files": {"0x8000": "a", "32768": "b"}}`,
		"a file that is none":   `{"flash_files": {"0x8000": 7}}`,
		"no object":             `[]`,
		"null":                  `null`,
		"half":                  `{"flash_files": {`,
		"something behind":      `{} {}`,
	} {
		if a, err := idfproject.ParseFlasherArgs([]byte(text)); !errors.Is(err, idfproject.ErrSyntax) {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
	}
	if _, err := idfproject.ParseFlasherArgs(bytes.Repeat([]byte(" "), idfproject.MaxFlasherArgs+1)); !errors.Is(err, idfproject.ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
}

// FuzzProject holds every reader to its bounds: no panic, and what is accepted keeps the promises of its type.
func FuzzProject(f *testing.F) {
	for _, s := range []string{"", "CONFIG_A=y\n# CONFIG_B is not set\n", "CONFIG_A=\"a\\\"\"\n", `{"app_bin": "a.bin"}`,
		`{"flash_files": {"0x8000": "a", "0x0": "b"}}`, "null"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := idfproject.ParseSDKConfig(b); err == nil {
			for name := range c {
				if len(name) < 8 || !strings.HasPrefix(name, "CONFIG_") || strings.ContainsAny(name, " =\n") {
					t.Errorf("name %q", name)
				}
			}
		}
		if d, err := idfproject.ParseDescription(b); err != nil && d != (idfproject.Description{}) {
			t.Errorf("%+v beside %v", d, err)
		}
		a, err := idfproject.ParseFlasherArgs(b)
		for i := range a.Files {
			if err != nil || i > 0 && a.Files[i].Offset <= a.Files[i-1].Offset {
				t.Errorf("files %+v, %v", a.Files, err)
			}
		}
	})
}
