package deploy_test

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"bmsota/deploy"
)

// keys lists the keys of a settings type, with those above them.
func keys(t reflect.Type, above string) (all []string) {
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if t.Field(i).Anonymous {
			all = append(all, keys(t.Field(i).Type, above)...)
			continue
		}
		if f := t.Field(i).Type; f.Kind() == reflect.Struct {
			all = append(all, keys(f, above+name+".")...)
			continue
		}
		all = append(all, above+name)
	}
	return all
}

func TestEveryKeyOfTheSettingsIsDocumented(t *testing.T) {
	text, err := os.ReadFile("../docs/deploying.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := make(map[string]bool)
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(line, "|")
		if len(cells) < 3 {
			continue
		}
		for _, m := range regexp.MustCompile("`([a-z]+\\.[a-z_.]+)`").FindAllStringSubmatch(cells[1], -1) {
			documented[m[1]] = true
		}
	}
	for _, key := range keys(reflect.TypeFor[deploy.Config](), "") {
		if !documented[key] {
			t.Errorf("docs/deploying.md does not describe %s", key)
		}
		delete(documented, key)
	}
	for key := range documented {
		t.Errorf("docs/deploying.md describes %s, which is no key", key)
	}
	example := regexp.MustCompile("(?s)```json\n(.*?)```").FindSubmatch(text)
	if example == nil {
		t.Fatal("no example")
	}
	path := filepath.Join(t.TempDir(), deploy.ConfigName)
	if err := os.WriteFile(path, example[1], 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := deploy.LoadConfig(path); err != nil || c.Kind() != deploy.KindSFTP || c.Server.SFTP.Path == "" || c.Prefix() != "bms/ota" {
		t.Errorf("the example: %+v, %v", c, err)
	}
}
