package main

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"bmsota/deploy"
)

func makeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestSettingsAreKeptOutOfGit(t *testing.T) {
	const name = deploy.ConfigName
	for _, c := range []struct {
		what, repository, before, want string
	}{
		{"no repository", "", "", ""},
		{"no file", ".git/HEAD", "", "/" + name + "\n"},
		{"a file", ".git/HEAD", "build/\n", "build/\n/" + name + "\n"},
		{"a file without an end", ".git/HEAD", "build/", "build/\n/" + name + "\n"},
		{"there already", ".git/HEAD", name + "\n", name + "\n"},
		{"there already, anchored", ".git/HEAD", "/" + name + "\r\n", "/" + name + "\r\n"},
		{"a worktree", ".git", "", "/" + name + "\n"},
		{"a repository further up", "../.git/HEAD", "", "/" + name + "\n"},
	} {
		dir := filepath.Join(t.TempDir(), "project")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if c.repository != "" {
			makeFile(t, filepath.Join(dir, c.repository), "")
		}
		ignore := filepath.Join(dir, ".gitignore")
		if c.before != "" {
			makeFile(t, ignore, c.before)
		}
		file := filepath.Join(dir, name)
		key := filepath.Join(dir, "release.pem")
		makeFile(t, key, "")
		mustRun(t, "config", "--config", file, "--kind", "dir", "--dir", filepath.Join(dir, "www"), "--broker", "mqtt://127.0.0.1", "--key", key)
		got, err := os.ReadFile(ignore)
		if c.want == "" && err == nil || string(got) != c.want {
			t.Errorf("%s: .gitignore is %q, %v, want %q", c.what, got, err, c.want)
		}
		if info, err := os.Stat(file); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", c.what, info, err)
		}
	}
}

func TestSettingsFromFlagsFilesAndEnvironment(t *testing.T) {
	dir := t.TempDir()
	makeFile(t, filepath.Join(dir, "secret"), "geheim\n")
	makeFile(t, filepath.Join(dir, "a", "other"), "")
	t.Setenv("BMSOTA_PASSWORD", "for the broker")
	t.Chdir(dir)
	key := filepath.Join(t.TempDir(), "release.pem")
	makeFile(t, key, "")
	out := mustRun(t, "config", "--config", "a/b.json", "--kind", "sftp", "--server", "http://nas.local", "--username", "ota", "--password-file", "secret",
		"--ssh-path", "/var/www/firmware", "--ssh-port", "2222", "--ssh-key", "id", "--known-hosts", "~/.ssh/hosts",
		"--broker", "mqtts://nas.local", "--broker-username", "me", "--image", "build/x.bin", "--key", key, "--json")
	if strings.Contains(out, "geheim") || strings.Contains(out, "for the broker") {
		t.Errorf("a secret is printed: %s", out)
	}
	c, err := deploy.LoadConfig("a/b.json")
	if err != nil {
		t.Fatal(err)
	}
	if s := c.Server; s.Kind != deploy.KindSFTP || s.Password != "geheim" || s.SFTP.Port != 2222 || s.SFTP.KeyFile != "id" || !*s.VerifySSL {
		t.Errorf("server: %+v", s)
	}
	if m := c.MQTT; m.Broker != "nas.local" || m.Port != 8883 || !m.TLS || m.Username != "me" || m.Password != "for the broker" || m.CommandTopic != "bms/ota/command" || m.Timeout != 30 {
		t.Errorf("mqtt: %+v", m)
	}
	if c.Build.FirmwarePath != filepath.Join("build", "x.bin") || c.Signing.KeyFile != key {
		t.Errorf("build %+v, signing %+v", c.Build, c.Signing)
	}
	mustFail(t, exitUsage, "is there already", "config", "--config", "a/b.json", "--kind", "dir")
}

func TestSettingsFromAServersOwnFile(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	access, err := json.Marshal(map[string]any{"server": "https://nas:8443", "token": "t0ken", "ca_file": filepath.Join(dir, "bmsota-data", "tls", "ca.pem"),
		"mqtt": map[string]any{"host": "nas", "port": 8883, "tls": true, "username": "operator", "password": "pass", "prefix": "home/ota"}})
	if err != nil {
		t.Fatal(err)
	}
	makeFile(t, filepath.Join("bmsota-data", "operator.json"), string(access))
	if o := command(t, nil, "config"); o.code != exitDone || !strings.Contains(o.errout, "warning: no release key") {
		t.Errorf("exit %d, stderr %q", o.code, o.errout)
	}
	c, err := deploy.LoadConfig(deploy.ConfigName)
	if err != nil {
		t.Fatal(err)
	}
	if c.Kind() != deploy.KindServer || c.Server.BaseURL != "https://nas:8443" || c.Server.Password != "t0ken" || c.Prefix() != "home/ota" || c.MQTT.StatusTopic != "home/ota/status" || c.MQTT.Port != 8883 || !c.MQTT.TLS {
		t.Errorf("%+v", c)
	}
	if err := os.Remove(deploy.ConfigName); err != nil {
		t.Fatal(err)
	}
	// Asked for another kind, the server's file is not of use.
	mustFail(t, exitUsage, "--dir, --broker must be given", "config", "--kind", "dir")
	makeFile(t, filepath.Join("bmsota-data", "operator.json"), "{")
	mustFail(t, exitUsage, "operator.json", "config")
	mustFail(t, exitFailed, "there is no file", "config", "--data", "elsewhere")
}

// A release key that is not there is said when the settings are made, and each time they are looked at.
func TestAMissingReleaseKeyIsSaid(t *testing.T) {
	t.Chdir(t.TempDir())
	makeFile(t, filepath.Join("www", "x"), "")
	for _, args := range [][]string{{"--kind", "dir", "--dir", "www", "--broker", "mqtt://127.0.0.1:1", "--key", "gone.pem"}, {"--timeout", "1s"}} {
		if o := command(t, nil, append([]string{"config"}, args...)...); !strings.Contains(o.errout, "warning: the release key gone.pem cannot be read") {
			t.Errorf("%q: stderr %q", args, o.errout)
		}
	}
	makeFile(t, "gone.pem", "")
	if o := command(t, nil, "config", "--timeout", "1s"); strings.Contains(o.errout, "release key") {
		t.Errorf("a key that is there: stderr %q", o.errout)
	}
}

// A person is asked for the release key, and the one beside the settings is proposed.
func TestTheReleaseKeyIsAskedFor(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, c := range []struct{ answer, given, file, want string }{
		{"\n", "", "", ""},
		{"none\n", "", "release.pem", ""},
		{"\n", "", "release.pem", "release.pem"},
		{"keys/mine.pem\n", "", "release.pem", "keys/mine.pem"},
		{"keys/mine.pem\n", "given.pem", "release.pem", "given.pem"},
	} {
		if c.file != "" {
			makeFile(t, c.file, "")
		}
		conf := configurer{settings: settings{path: deploy.ConfigName}}
		conf.config.Signing.KeyFile = c.given
		cmd := newConfigCmd()
		cmd.SetContext(t.Context())
		cmd.SetErr(io.Discard)
		if err := conf.askKey(cmd, bufio.NewReader(strings.NewReader(c.answer))); err != nil {
			t.Fatal(err)
		}
		if got := conf.config.Signing.KeyFile; got != c.want {
			t.Errorf("answer %q, given %q, file %q: key %q, want %q", c.answer, c.given, c.file, got, c.want)
		}
	}
}

// Without a terminal nothing waits for an answer: what is missing is named, and nothing is made.
func TestSettingsAreNotAskedForWithoutATerminal(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, c := range []struct {
		says string
		args []string
	}{
		{"--kind must be given", nil},
		{"--server, --broker must be given", []string{"--kind", "bmsota"}},
		{"--ssh-host, --username, --ssh-path, --broker must be given", []string{"--kind", "sftp"}},
		{"--username, --ssh-path, --broker must be given", []string{"--kind", "sftp", "--server", "http://nas"}},
		{"--broker must be given", []string{"--kind", "dir", "--dir", "www"}},
		{"is not bmsota, sftp or dir", []string{"--kind", "ftp", "--broker", "mqtt://nas"}},
		{"is not an http(s) address", []string{"--kind", "bmsota", "--server", "nas", "--broker", "mqtt://nas"}},
		{"is not mqtt://host:port", []string{"--kind", "dir", "--dir", "www", "--broker", "nas"}},
		{"is not a number from 1 to 65535", []string{"--kind", "dir", "--dir", "www", "--broker", "mqtt://nas:70000"}},
	} {
		mustFail(t, exitUsage, c.says, append([]string{"config"}, c.args...)...)
		if entries, err := os.ReadDir("."); err != nil || len(entries) != 0 {
			t.Errorf("%q: left %v, %v", c.args, entries, err)
		}
	}
}
