package server

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestManualNamesEveryKeyAndItsExampleLoads(t *testing.T) {
	b, err := os.ReadFile("../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	var walk func(prefix string, typ reflect.Type)
	walk = func(prefix string, typ reflect.Type) {
		for i := range typ.NumField() {
			f := typ.Field(i)
			name := f.Tag.Get("json")
			switch {
			case name == "-":
			case f.Type.Kind() == reflect.Struct:
				walk(prefix+name+".", f.Type)
			case !strings.Contains(text, "`"+prefix+name+"`"):
				t.Errorf("docs/configuration.md does not name %s%s", prefix, name)
			}
		}
	}
	walk("", reflect.TypeFor[Config]())

	_, example, ok := strings.Cut(text, "```json\n")
	if !ok {
		t.Fatal("no example")
	}
	example, _, _ = strings.Cut(example, "```")
	path := filepath.Join(t.TempDir(), "bmsota.json")
	if err := os.WriteFile(path, []byte(example), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := Load(path); err != nil || !c.Fleet.RequireSigned || c.TLS.ACME.Hosts[0] != "ota.example.net" {
		t.Errorf("example: %+v, %v", c, err)
	}
}
