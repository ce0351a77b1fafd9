// Package bmsota_test holds the architecture to its shape: which package may know which.
package bmsota_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// rule says what the packages below From may import from this module, and why. Test files are not held to it.
type rule struct {
	From  string   // package or, ending in /..., a folder of packages
	Allow []string // of this module; the same forms
	Std   bool     // nothing but the standard library beside Allow
	Why   string
}

var rules = []rule{
	{From: "esp/...", Allow: []string{"esp/..."}, Std: true,
		Why: "formats are bytes in, bytes out; they outlive every library we use"},
	{From: "strictjson", Allow: nil, Std: true,
		Why: "what an attacker sends is read here first"},
	{From: "audit", Allow: nil, Std: true,
		Why: "whoever doubts a server must be able to read the check in one sitting"},
	{From: "manifest", Allow: []string{"esp/appimage", "strictjson"},
		Why: "the trust root stays small enough to read in one sitting"},
	{From: "protocol", Allow: []string{"esp/appimage", "strictjson"},
		Why: "both halves import it, so it must drag nothing of either along"},
	{From: "durable", Allow: nil, Std: true,
		Why: "one way to replace a file, which knows nothing of what is in it"},
	{From: "keyfile", Allow: nil, Std: true,
		Why: "what opens a private key is read in one sitting"},
	{From: "api", Allow: []string{"protocol", "audit"},
		Why: "operator tools must not link the server"},
	{From: "device/internal/norflash", Allow: nil, Std: true,
		Why: "flash knows no meaning of what it holds"},
	{From: "device/internal/bootloader", Allow: []string{"esp/...", "device/internal/norflash"}, Std: true,
		Why: "bootloader and agent meet in flash bytes, as on the chip"},
	{From: "device/internal/otaops", Allow: []string{"esp/...", "device/internal/norflash"}, Std: true,
		Why: "it is esp_ota_ops.c, which knows no protocol"},
	{From: "device/internal/agent", Allow: []string{"esp/...", "device/internal/norflash", "device/internal/otaops", "protocol", "manifest"},
		Why: "the agent must not know how it will be booted"},
	{From: "device", Allow: []string{"esp/...", "device/...", "protocol", "manifest"},
		Why: "the two halves share protocol, manifest and esp, nothing else"},
	{From: "server/internal/fleet", Allow: []string{"audit", "protocol", "manifest", "esp/..."},
		Why: "decisions without SQL, HTTP or MQTT can be simulated"},
	{From: "server/internal/store", Allow: []string{"server/internal/fleet", "audit", "protocol", "durable"},
		Why: "store, broker and web meet in fleet only"},
	{From: "server/internal/store/beside", Allow: []string{"server/internal/store", "server/internal/fleet", "audit", "protocol"},
		Why: "it measures the store and is no part of it"},
	{From: "server/internal/broker", Allow: []string{"server/internal/fleet", "server/internal/workers", "audit", "protocol"},
		Why: "store, broker and web meet in fleet only"},
	{From: "server/internal/web", Allow: []string{"server/internal/fleet", "server/internal/workers", "audit", "protocol", "api"},
		Why: "store, broker and web meet in fleet only"},
	{From: "server/internal/workers", Allow: nil, Std: true,
		Why: "goroutines that broker and web have in common must bring nothing of one to the other"},
	{From: "server/internal/metrics", Allow: []string{"server/internal/fleet", "protocol"},
		Why: "figures are told what happened; they look at nothing themselves"},
	{From: "server/internal/notify", Allow: []string{"server/internal/fleet"},
		Why: "it carries what fleet has decided to tell, and looks at nothing itself"},
	{From: "server/internal/sso", Allow: nil,
		Why: "it says who somebody is, and knows nothing of what that may do"},
	{From: "server", Allow: []string{"server/...", "protocol", "manifest", "api", "esp/...", "durable"},
		Why: "the two halves share protocol, manifest and esp, nothing else"},
	{From: "server/pgtest", Allow: nil, Std: true,
		Why: "tests of the store, stories and measurements start it; it knows none of them"},
	{From: "demo", Allow: []string{"server", "device", "deploy", "api", "protocol", "manifest", "esp/appimage"},
		Why: "the tour uses the doors that everybody else uses"},
	{From: "bench", Allow: []string{"api", "deploy", "protocol", "manifest", "esp/appimage", "server/pgtest"},
		Why: "what is measured is the program as others meet it: nothing of the server is linked into what measures it"},
	{From: "deploy", Allow: []string{"api", "protocol", "manifest", "esp/...", "durable"},
		Why: "operator tools must not link the server"},
	{From: "provision", Allow: []string{"api", "protocol", "esp/...", "durable"},
		Why: "operator tools must not link the server, and what goes onto a chip must not depend on the virtual one"},
	{From: "lint", Allow: []string{"protocol", "esp/..."},
		Why: "it reads a folder that may be hostile: nothing that writes, calls or runs belongs beside it"},
}

// onlyIn names libraries that one package alone may import, so that it can be replaced there.
// One that ends in /... stands for the packages below it too.
var onlyIn = []struct{ Library, Package, Why string }{
	{"github.com/coreos/go-oidc/v3", "server/internal/sso", "what a stranger's token says is read in one place"},
	{"github.com/mochi-mqtt/server/v2", "server/internal/broker", "quiet since 2025-03: must be replaceable in one place"},
	{"modernc.org/sqlite", "server/internal/store", "two minutes to build from cold: out of everything that can do without"},
	{"github.com/jackc/pgx/v5", "server/internal/store/...", "SQL, and the errors of a database, are the store's business"},
	{"github.com/pressly/goose/v3", "server/internal/store", "migrations belong to the store"},
	{"github.com/prometheus/client_golang", "server/internal/metrics", "one package decides what is counted, and with which labels"},
	{"github.com/minio/minio-go/v7", "server/internal/store", "how bytes get into a bucket and back is the store's business"},
	{"golang.org/x/crypto/argon2", "server/internal/fleet", "one place decides what a password costs"},
	{"github.com/spf13/cobra", "cmd/bmsota", "flags are read in one place"},
	{"github.com/pkg/sftp", "deploy", "how a machine is reached, and proves itself, is one package's business"},
	{"golang.org/x/crypto/ssh", "deploy", "how a machine is reached, and proves itself, is one package's business"},
	{"github.com/danielgtaylor/huma/v2", "server/internal/web", "only its schemas are used: the routing stays ours, and one package knows"},
	{"github.com/go-jose/go-jose/v4", "manifest", "one place decides what a signature is"},
}

const module = "bmsota"

type listed struct {
	ImportPath string
	Imports    []string
	Standard   bool
}

func TestPackagesImportOnlyWhatTheirPlaceAllows(t *testing.T) {
	packages := list(t)
	matched := make(map[string]bool)
	for _, p := range packages {
		name := strings.TrimPrefix(p.ImportPath, module+"/")
		r := ruleFor(name)
		if r == nil {
			continue
		}
		matched[r.From] = true
		for _, dep := range p.Imports {
			inner, ours := strings.CutPrefix(dep, module+"/")
			switch {
			case ours && !slices.ContainsFunc(r.Allow, func(pattern string) bool { return match(pattern, inner) }):
				t.Errorf("%s imports %s: %s", name, inner, r.Why)
			case !ours && r.Std && strings.Contains(strings.Split(dep, "/")[0], "."):
				t.Errorf("%s imports %s: %s", name, dep, r.Why)
			}
		}
	}
	for _, r := range rules {
		if !matched[r.From] {
			t.Errorf("the rule for %s matches no package: it guards nothing", r.From)
		}
	}
}

func TestLibrariesStayInTheirPackage(t *testing.T) {
	packages := list(t)
	for _, o := range onlyIn {
		used := false
		for _, p := range packages {
			name := strings.TrimPrefix(p.ImportPath, module+"/")
			for _, dep := range p.Imports {
				if dep != o.Library && !strings.HasPrefix(dep, o.Library+"/") {
					continue
				}
				used = true
				if !match(o.Package, name) {
					t.Errorf("%s imports %s, only %s may: %s", name, dep, o.Package, o.Why)
				}
			}
		}
		if !used {
			t.Errorf("nothing imports %s: drop the rule and the requirement", o.Library)
		}
	}
}

// ruleFor finds the most exact rule.
func ruleFor(name string) *rule {
	var best *rule
	for i := range rules {
		r := &rules[i]
		if match(r.From, name) && (best == nil || len(r.From) > len(best.From)) {
			best = r
		}
	}
	return best
}

func match(pattern, name string) bool {
	if folder, ok := strings.CutSuffix(pattern, "/..."); ok {
		return name == folder || strings.HasPrefix(name, folder+"/")
	}
	return pattern == name
}

func list(t *testing.T) []listed {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,Standard", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []listed
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}
