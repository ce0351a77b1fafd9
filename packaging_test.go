package bmsota_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"bmsota/server"

	"go.yaml.in/yaml/v3"
)

// trackedFiles are the files of the project, without what git ignores.
func trackedFiles(t *testing.T) []string {
	return strings.Split(strings.TrimSuffix(string(run(t, ".", nil, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")), "\x00"), "\x00")
}

// copyTracked puts them into dir.
func copyTracked(t *testing.T, dir string) {
	t.Helper()
	for _, file := range trackedFiles(t) {
		from, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue // deleted, and not committed yet
		}
		to := filepath.Join(dir, file)
		if err = errors.Join(err, os.MkdirAll(filepath.Dir(to), 0o700)); err == nil {
			err = os.WriteFile(to, from, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// instruction is one line of a Dockerfile.
type instruction struct{ name, rest string }

func dockerfile(t *testing.T, path string) (stages [][]instruction) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(strings.ReplaceAll(string(text), "\\\n", " ")) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		name, rest, _ := strings.Cut(line, " ")
		if name == "FROM" {
			stages = append(stages, nil)
		}
		if len(stages) == 0 {
			t.Fatalf("%s: %s stands before FROM", path, name)
		}
		last := len(stages) - 1
		stages[last] = append(stages[last], instruction{name, strings.TrimSpace(rest)})
	}
	return stages
}

func find(stage []instruction, name string) (found []string) {
	for _, i := range stage {
		if i.name == name {
			found = append(found, i.rest)
		}
	}
	return found
}

// TestDockerfileBuildsWhatItCopies runs the build of docs/servers/Dockerfile in a copy of the tracked files, and holds what it
// makes against what the second stage takes and starts. Nobody starts a container here.
func TestDockerfileBuildsWhatItCopies(t *testing.T) {
	stages := dockerfile(t, "docs/servers/Dockerfile")
	if len(stages) != 2 {
		t.Fatalf("%d stages, want two", len(stages))
	}
	build, final := stages[0], stages[1]
	src, out := t.TempDir(), t.TempDir()
	copyTracked(t, src)
	for _, c := range find(build, "COPY") {
		words := strings.Fields(c)
		for _, from := range words[:len(words)-1] {
			if _, err := os.Stat(filepath.Join(src, from)); err != nil {
				t.Errorf("COPY %s: %v", c, err)
			}
		}
	}
	goVersion := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(string(run(t, ".", nil, "cat", "go.mod")))
	if from := find(build, "FROM"); len(goVersion) != 2 || from[0] != "golang:"+goVersion[1]+" AS build" {
		t.Errorf("FROM %q, go.mod says %q", from, goVersion)
	}
	for _, c := range find(build, "RUN") {
		run(t, src, nil, "sh", "-c", strings.ReplaceAll(c, "/out/", out+"/"))
	}
	for _, c := range find(final, "COPY") {
		words := strings.Fields(c)
		made, ok := strings.CutPrefix(words[len(words)-2], "/out/")
		if _, err := os.Stat(filepath.Join(out, made)); !ok || err != nil {
			t.Errorf("COPY %s: the build does not make it (%v)", c, err)
		}
	}
	if user := find(final, "USER"); len(user) != 1 || !regexp.MustCompile(`^[1-9]\d*:[1-9]\d*$`).MatchString(user[0]) {
		t.Errorf("USER %q: want an account in numbers that is not root", user)
	}
	for _, name := range []string{"ENTRYPOINT", "CMD", "HEALTHCHECK", "VOLUME"} {
		if got := find(final, name); len(got) != 1 || !strings.HasSuffix(got[0], `"]`) {
			t.Errorf("%s %q: want one, as a list, for there is no shell", name, got)
		}
	}
	if version := run(t, out, nil, "./bmsota", "version"); !bytes.HasPrefix(version, []byte("bmsota ")) {
		t.Errorf("what was built says %q", version)
	}
	if linked, err := exec.Command("ldd", filepath.Join(out, "bmsota")).CombinedOutput(); err == nil {
		t.Errorf("the binary is not static: %s", linked)
	}
}

// TestComposeFileNamesWhatThereIs: the file is YAML of the form that is meant, and what it names is there.
func TestComposeFileNamesWhatThereIs(t *testing.T) {
	const folder = "docs/servers"
	text, err := os.ReadFile(filepath.Join(folder, "compose.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	type service struct {
		Build   struct{ Context, Dockerfile string }
		Command []string
		Ports   []string
		Volumes []string
		Restart string

		ReadOnly    bool     `yaml:"read_only"`
		Tmpfs       []string `yaml:"tmpfs"`
		CapDrop     []string `yaml:"cap_drop"`
		SecurityOpt []string `yaml:"security_opt"`
		Ulimits     map[string]int
	}
	var file struct {
		Services map[string]service
		Volumes  map[string]struct{}
	}
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(&file); err != nil {
		t.Fatal(err)
	}
	s, ok := file.Services["bmsota"]
	if !ok || len(file.Services) != 1 {
		t.Fatalf("services %v", file.Services)
	}
	context := filepath.Join(folder, s.Build.Context)
	if _, err := os.Stat(filepath.Join(context, s.Build.Dockerfile)); err != nil {
		t.Error(err)
	}
	final := dockerfile(t, filepath.Join(context, s.Build.Dockerfile))[1]
	exposed := strings.Fields(strings.Join(find(final, "EXPOSE"), " "))
	for _, p := range s.Ports {
		if _, inside, _ := strings.Cut(p, ":"); !slices.Contains(exposed, inside) {
			t.Errorf("port %s is none of those exposed, %v", p, exposed)
		}
	}
	inside := map[string]bool{}
	for _, v := range s.Volumes {
		parts := strings.Split(v, ":")
		inside[parts[1]] = true
		if _, named := file.Volumes[parts[0]]; named {
			continue
		}
		if _, err := os.Stat(filepath.Join(folder, parts[0])); err != nil {
			t.Errorf("volume %s: %v", v, err)
		}
	}
	if !inside["/var/lib/bmsota"] || !inside[s.Command[len(s.Command)-1]] {
		t.Errorf("volumes %v hold neither the data nor the configuration of %v", s.Volumes, s.Command)
	}
	if !s.ReadOnly || !slices.Contains(s.CapDrop, "ALL") || !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
		t.Errorf("the container is open: %+v", s)
	}
}

// TestComposeVariantsNameWhatThereIs: what is added to compose.yaml names files, volumes, services and secrets that are there, and
// the configuration it hands in is one that the server takes: every secret is where a key of that looks for it.
func TestComposeVariantsNameWhatThereIs(t *testing.T) {
	const folder = "docs/servers"
	type service struct {
		Image       string
		Command     []string
		Volumes     []string
		Secrets     []string
		Restart     string
		Environment map[string]string
		DependsOn   map[string]struct{ Condition string } `yaml:"depends_on"`
		Healthcheck *struct {
			Test     []string
			Interval string
		}
	}
	for name, hand := range map[string]func(server.Config) string{
		"postgres": func(c server.Config) string { return c.Database.PasswordFile },
		"bucket":   func(c server.Config) string { return c.Firmware.Bucket.SecretKeyFile },
	} {
		var file struct {
			Services map[string]service
			Volumes  map[string]struct{}
			Secrets  map[string]struct{ File string }
		}
		text, err := os.ReadFile(filepath.Join(folder, "compose."+name+".yaml"))
		if err != nil {
			t.Fatal(err)
		}
		d := yaml.NewDecoder(bytes.NewReader(text))
		d.KnownFields(true)
		if err := d.Decode(&file); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for who, s := range file.Services {
			for _, v := range s.Volumes {
				from, _, _ := strings.Cut(v, ":")
				_, named := file.Volumes[from]
				if _, err := os.Stat(filepath.Join(folder, from)); err != nil && !named {
					t.Errorf("%s: volume %s: %v", name, v, err)
				}
			}
			for _, secret := range s.Secrets {
				if file.Secrets[secret].File == "" || !strings.Contains(string(text), folder+"/"+secret) {
					t.Errorf("%s: secret %s of %s is not said how to make", name, secret, who)
				}
			}
			for on, how := range s.DependsOn {
				if other, ok := file.Services[on]; !ok || how.Condition != "service_healthy" || other.Healthcheck == nil {
					t.Errorf("%s: %s waits for %s to be %s", name, who, on, how.Condition)
				}
			}
			if path := s.Environment["POSTGRES_PASSWORD_FILE"]; who == "db" && (len(s.Secrets) != 1 || path != "/run/secrets/"+s.Secrets[0]) {
				t.Errorf("%s: the password of the database is in %s, its secrets are %v", name, path, s.Secrets)
			}
		}
		s := file.Services["bmsota"]
		if len(s.Command) != 3 || s.Command[0] != "serve" || s.Command[1] != "--config" || len(s.Volumes) != 1 || len(s.Secrets) != 1 {
			t.Fatalf("%s: %+v", name, s)
		}
		config, at, _ := strings.Cut(strings.TrimSuffix(s.Volumes[0], ":ro"), ":")
		c, err := server.Load(filepath.Join(folder, config))
		if err != nil {
			t.Fatal(err)
		}
		if at != s.Command[2] || hand(c) != "/run/secrets/"+s.Secrets[0] || c.DataDir != "/var/lib/bmsota" {
			t.Errorf("%s: %s is mounted for %v, and looks for its secret in %s", name, s.Volumes[0], s.Command, hand(c))
		}
		if u, err := url.Parse(c.Database.URL); name == "postgres" {
			db := file.Services[u.Hostname()].Environment
			if err != nil || db["POSTGRES_USER"] != u.User.Username() || "/"+db["POSTGRES_DB"] != u.Path {
				t.Errorf("%s is not the database that is made: %v (%v)", c.Database.URL, db, err)
			}
		}
	}
}

// systems are what the Makefile builds a release for.
func systems(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("Makefile")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^SYSTEMS := (.+)$`).FindStringSubmatch(string(text))
	if m == nil {
		t.Fatal("the Makefile has no SYSTEMS")
	}
	return strings.Fields(m[1])
}

// TestEverySystemHasEveryPackage: without cgo, each system of a release has a file for every package that the binary links.
// It asks the build's own lists, which takes a second, and makes the binary of the system that differs most; BMSOTA_DIST=long makes and
// counts them all.
func TestEverySystemHasEveryPackage(t *testing.T) {
	all := systems(t)
	for _, want := range []string{"linux/amd64", "linux/arm64", "linux/arm", "darwin/amd64", "darwin/arm64", "windows/amd64"} {
		if !slices.Contains(all, want) {
			t.Errorf("%s is not built", want)
		}
	}
	for _, system := range all {
		goos, goarch, _ := strings.Cut(system, "/")
		env := []string{"CGO_ENABLED=0", "GOOS=" + goos, "GOARCH=" + goarch}
		out := string(run(t, ".", env, "go", "list", "-e", "-deps", "-f", "{{with .Error}}{{.}}{{end}}{{if .CgoFiles}}{{.ImportPath}} needs cgo{{end}}", "./cmd/bmsota"))
		if out = strings.TrimSpace(out); out != "" {
			t.Errorf("%s: %s", system, out)
		}
	}
	if os.Getenv("BMSOTA_DIST") != "long" {
		run(t, ".", []string{"CGO_ENABLED=0", "GOOS=windows", "GOARCH=amd64"}, "go", "build", "-o", filepath.Join(t.TempDir(), "bmsota.exe"), "./cmd/bmsota")
		return
	}
	dir := t.TempDir()
	run(t, ".", nil, "make", "dist", "DIST="+dir)
	sums := strings.Fields(string(run(t, dir, nil, "cat", "SHA256SUMS")))
	if len(sums) != 2*len(all) {
		t.Fatalf("%d sums for %d systems", len(sums)/2, len(all))
	}
	for i := 0; i < len(sums); i += 2 {
		b, err := os.ReadFile(filepath.Join(dir, sums[i+1]))
		if err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != sums[i] {
			t.Errorf("%s has another sum", sums[i+1])
		}
		kind := map[string]string{"linux": "\x7fELF", "darwin": "\xcf\xfa\xed\xfe", "windows": "MZ"}[strings.Split(sums[i+1], "-")[1]]
		if kind == "" || !bytes.HasPrefix(b, []byte(kind)) {
			t.Errorf("%s begins with % x", sums[i+1], b[:4])
		}
	}
}
