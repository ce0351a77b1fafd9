package provision_test

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"bmsota/api"
	"bmsota/esp/parttable"
	"bmsota/esp/spiffs"
	"bmsota/protocol"
	"bmsota/provision"
)

// fleet is a server in memory: a device has at most one token, every enrolment makes a new one.
type fleet struct {
	tokens   map[string]string
	revoked  map[string]bool
	lastSeen map[string]time.Time
	enrolled time.Time
	calls    []string
	made     int
	// fault comes instead of an answer, before or after the token is made.
	fault func(call, id string) (err error, after bool)
}

func newFleet() *fleet {
	return &fleet{tokens: make(map[string]string), revoked: make(map[string]bool), lastSeen: make(map[string]time.Time), enrolled: time.Unix(1000, 0)}
}

func (f *fleet) failing(call, id string) (error, bool) {
	if f.fault == nil {
		return nil, false
	}
	return f.fault(call, id)
}

func (f *fleet) Device(_ context.Context, id string) (api.DeviceDetail, error) {
	f.calls = append(f.calls, "device "+id)
	if err, _ := f.failing("device", id); err != nil {
		return api.DeviceDetail{}, err
	}
	if f.tokens[id] == "" {
		return api.DeviceDetail{}, &api.Error{Status: 404, Code: api.CodeNotFound}
	}
	d := api.Device{DeviceID: id, Enrolled: true, EnrolledAt: f.enrolled, Revoked: f.revoked[id]}
	if seen, ok := f.lastSeen[id]; ok {
		d.LastSeen = &seen
	}
	return api.DeviceDetail{Device: d}, nil
}

func (f *fleet) Enroll(_ context.Context, id string) (api.EnrollResponse, error) {
	f.calls = append(f.calls, "enroll "+id)
	err, after := f.failing("enroll", id)
	if err != nil && !after {
		return api.EnrollResponse{}, err
	}
	f.made++
	f.tokens[id] = fmt.Sprintf("token-%d", f.made)
	return api.EnrollResponse{DeviceID: id, Token: f.tokens[id]}, err
}

func (f *fleet) EnrollCertificate(ctx context.Context, id, request string) (api.EnrollResponse, error) {
	if block, _ := pem.Decode([]byte(request)); block == nil || block.Type != "CERTIFICATE REQUEST" {
		return api.EnrollResponse{}, &api.Error{Status: 400, Code: api.CodeInvalid}
	}
	out, err := f.Enroll(ctx, id)
	return api.EnrollResponse{DeviceID: id, Certificate: "certificate for " + out.Token}, err
}

// newRun makes a run over a small flash of 1 MiB: the mechanism does not depend on the size.
func newRun(t *testing.T, f *fleet) *provision.Run {
	t.Helper()
	table := parttable.Table{
		{Name: "otadata", Type: parttable.TypeData, Subtype: parttable.SubtypeOTAData, Offset: 0x10000, Size: parttable.OTADataSize},
		{Name: "ota_0", Type: parttable.TypeApp, Subtype: parttable.SubtypeOTA0, Offset: 0x20000, Size: 0x20000},
		{Name: "ota_1", Type: parttable.TypeApp, Subtype: parttable.SubtypeOTA0 + 1, Offset: 0x40000, Size: 0x20000},
		{Name: "storage", Type: parttable.TypeData, Subtype: parttable.SubtypeSPIFFS, Offset: 0x60000, Size: 0x8000},
	}
	p := goodBuild(t)
	p.size = "1MB"
	p.files["monitor.bin"] = appOf(t, 0, 0)
	p.files["partition_table/partition-table.bin"] = tableOf(t, table)
	recipe, err := provision.FromBuild(p.write(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	return &provision.Run{Server: f, Info: api.ServerInfo{URL: "https://nas.local:8443", MQTT: api.MQTT{Host: "nas.local", Port: 8883, TLS: true, Prefix: protocol.DefaultPrefix}},
		Recipe: recipe, Dir: filepath.Join(t.TempDir(), "boards")}
}

func devices(ids ...string) []provision.Device {
	var list []provision.Device
	for _, id := range ids {
		list = append(list, provision.Device{ID: id})
	}
	return list
}

// do runs and gives the states by device, in order.
func do(t *testing.T, r *provision.Run, ids ...string) (string, error) {
	t.Helper()
	var states []string
	err := r.All(t.Context(), devices(ids...), func(res provision.Result) {
		states = append(states, string(res.State))
		if (res.Err != nil) != (res.State == provision.Refused || res.State == provision.Failed) {
			t.Errorf("%s is %s with error %v", res.Device.ID, res.State, res.Err)
		}
	})
	return strings.Join(states, " "), err
}

// loginOf is the storage image of a device, and how it logs in by that.
func loginOf(t *testing.T, r *provision.Run, id string) ([]byte, protocol.MQTTConfig) {
	t.Helper()
	storage, err := os.ReadFile(filepath.Join(r.Folder(id), provision.StorageFile))
	if err != nil {
		t.Fatal(err)
	}
	fsys, err := spiffs.Read(storage)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := fsys.ReadFile(protocol.MQTTConfigFile)
	if err != nil {
		t.Fatal(err)
	}
	c, err := protocol.ParseMQTTConfig(raw)
	if err != nil {
		t.Fatalf("%s: %v", id, err)
	}
	return storage, c
}

// checkBoard holds the files of a device against the token that the server takes.
func checkBoard(t *testing.T, r *provision.Run, f *fleet, id string) {
	t.Helper()
	storage, c := loginOf(t, r, id)
	if c.Password != f.tokens[id] || c.Username != id {
		t.Errorf("%s has %q, %q, the server takes %q", id, c.Username, c.Password, f.tokens[id])
	}
	flash, err := os.ReadFile(filepath.Join(r.Folder(id), provision.FlashFile))
	if err != nil || !bytes.Contains(flash, storage) {
		t.Errorf("%s: the flash has another storage, %v", id, err)
	}
	if names, err := filepath.Glob(filepath.Join(r.Dir, ".*")); err != nil || len(names) != 0 {
		t.Errorf("something is left: %v, %v", names, err)
	}
}

// With certificates every device has a key of its own, and no password anywhere.
func TestACertificateInPlaceOfATokenHasItsOwnKey(t *testing.T) {
	f := newFleet()
	r := newRun(t, f)
	r.Certificate = true
	states, err := do(t, r, "a", strings.Repeat("x", protocol.MaxDeviceID))
	if err != nil || states != "provisioned provisioned" {
		t.Fatalf("%s, %v", states, err)
	}
	keys := make(map[string]bool)
	for _, id := range []string{"a", strings.Repeat("x", protocol.MaxDeviceID)} {
		_, c := loginOf(t, r, id)
		if c.Password != "" || c.ClientCertPEM != "certificate for "+f.tokens[id] || keys[c.ClientKeyPEM] || len(c.ClientKeyPEM) < 200 {
			t.Errorf("%s: %+v", id, c)
		}
		keys[c.ClientKeyPEM] = true
	}
}

func TestEachDeviceGetsItsOwnFiles(t *testing.T) {
	f := newFleet()
	r := newRun(t, f)
	states, err := do(t, r, "a", "b")
	if err != nil || states != "provisioned provisioned" {
		t.Fatalf("%s, %v", states, err)
	}
	if want := []string{"device a", "enroll a", "device b", "enroll b"}; !slices.Equal(f.calls, want) {
		t.Errorf("the server was asked %v, want %v", f.calls, want)
	}
	checkBoard(t, r, f, "a")
	checkBoard(t, r, f, "b")
	for path, perm := range map[string]os.FileMode{r.Dir: 0o700, r.Folder("a"): 0o700,
		filepath.Join(r.Folder("a"), provision.StorageFile): 0o600, filepath.Join(r.Folder("a"), provision.FlashFile): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != perm {
			t.Errorf("%s: %v, %v, want %v", path, info.Mode(), err, perm)
		}
	}
	if got, want := r.WriteFlash("a").V4, "esptool.py --chip esp32 write_flash 0x0 "+filepath.Join(r.Folder("a"), "flash.bin"); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got, want := r.WriteStorage("a").V5, "esptool --chip esp32 write-flash 0x60000 "+filepath.Join(r.Folder("a"), "storage.bin"); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestACommandLineIsOneForAShell(t *testing.T) {
	r := newRun(t, newFleet())
	for dir, want := range map[string]string{"boards": "boards/a/flash.bin", "my boards": "'my boards/a/flash.bin'", "it's; $(x)": `'it'\''s; $(x)/a/flash.bin'`, "ü": "'ü/a/flash.bin'"} {
		r.Dir = dir
		if got := r.WriteFlash("a").V4; got != "esptool.py --chip esp32 write_flash 0x0 "+filepath.FromSlash(want) {
			t.Errorf("%s: %s", dir, got)
		}
	}
}

func TestATokenIsTakenOnlyWhenAsked(t *testing.T) {
	f := newFleet()
	r := newRun(t, f)
	f.tokens["field"], f.tokens["locked"] = "in-use", "old"
	f.revoked["locked"] = true
	states, err := do(t, r, "field", "new", "locked")
	if err != nil || states != "refused provisioned provisioned" || f.tokens["field"] != "in-use" {
		t.Fatalf("%s, %v, %v", states, err, f.tokens)
	}
	if _, err := os.Stat(r.Folder("field")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a refused device has a folder: %v", err)
	}
	checkBoard(t, r, f, "new")
	before := maps.Clone(f.tokens)
	// Not in a list, what is done already is refused like any other.
	if states, err := do(t, r, "new"); err != nil || states != "refused" || f.tokens["new"] != before["new"] {
		t.Errorf("%s, %v, %v", states, err, f.tokens)
	}
	r.Replace = true
	if states, err := do(t, r, "field", "new"); err != nil || states != "provisioned provisioned" {
		t.Fatalf("%s, %v", states, err)
	}
	for _, id := range []string{"field", "new"} {
		checkBoard(t, r, f, id)
		if f.tokens[id] == before[id] {
			t.Errorf("%s has its old token", id)
		}
	}
}

func TestARunGoesOnWhereItStopped(t *testing.T) {
	f := newFleet()
	r := newRun(t, f)
	r.Resume = true
	down := fmt.Errorf("ask nas.local: %w", api.ErrUnreachable)
	f.fault = func(call, id string) (error, bool) {
		if id == "b" && call == "device" {
			return down, false
		}
		return nil, false
	}
	if states, err := do(t, r, "a", "b", "c", "d"); !errors.Is(err, api.ErrUnreachable) || states != "provisioned failed left left" {
		t.Fatalf("%s, %v", states, err)
	}
	f.fault = nil
	f.calls = nil
	if states, err := do(t, r, "a", "b", "c", "d"); err != nil || states != "kept provisioned provisioned provisioned" {
		t.Fatalf("%s, %v", states, err)
	}
	if slices.ContainsFunc(f.calls, func(c string) bool { return strings.HasSuffix(c, " a") }) {
		t.Errorf("a device that was done was asked about: %v", f.calls)
	}
	for _, id := range []string{"a", "b", "c", "d"} {
		checkBoard(t, r, f, id)
	}
	if f.made != 4 {
		t.Errorf("%d tokens for 4 devices", f.made)
	}
}

// TestAnInterruptedEnrolmentIsTakenUp: whichever step a run dies in, the next one ends with files that carry the token the
// server takes, and needs no --replace for it.
func TestAnInterruptedEnrolmentIsTakenUp(t *testing.T) {
	die := errors.New("the line broke")
	for _, c := range []struct {
		name  string
		fault func(call, id string) (error, bool)
		spoil func(t *testing.T, r *provision.Run)
	}{
		{"before the token", func(call, _ string) (error, bool) { return map[string]error{"enroll": die}[call], false }, nil},
		{"after the token, before the answer", func(call, _ string) (error, bool) { return map[string]error{"enroll": die}[call], true }, nil},
		{"before the files", nil, func(t *testing.T, r *provision.Run) { blockFile(t, r, provision.StorageFile) }},
		{"between the files", nil, func(t *testing.T, r *provision.Run) { blockFile(t, r, provision.FlashFile) }},
	} {
		f := newFleet()
		f.fault = c.fault
		r := newRun(t, f)
		if c.spoil != nil {
			c.spoil(t, r)
		}
		if states, err := do(t, r, "a"); err == nil || states != "failed" {
			t.Errorf("%s: %s, %v", c.name, states, err)
		}
		f.fault = nil
		for _, name := range []string{provision.StorageFile, provision.FlashFile} {
			path := filepath.Join(r.Folder("a"), name)
			if info, err := os.Stat(path); err == nil && info.IsDir() {
				if err := os.RemoveAll(path); err != nil {
					t.Fatal(err)
				}
			}
		}
		if states, err := do(t, r, "a"); err != nil || states != "provisioned" {
			t.Errorf("%s: the next run: %s, %v", c.name, states, err)
			continue
		}
		checkBoard(t, r, f, "a")
	}
}

// blockFile lets the write of a file fail: a folder that is not empty cannot be replaced. The device is not held for done,
// because a mark of an earlier run is there.
func blockFile(t *testing.T, r *provision.Run, name string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Join(r.Folder("a"), name, "in the way"), 0o700),
		os.WriteFile(filepath.Join(r.Dir, ".a.part"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
}

// The mark lets a run take a token away that no board has. A board that has spoken since has it.
func TestAMarkDoesNotLockOutABoardThatSpeaks(t *testing.T) {
	for _, c := range []struct {
		seen  time.Duration // after the enrolment; 0 is never
		state string
	}{{0, "provisioned"}, {-time.Second, "provisioned"}, {time.Second, "refused"}} {
		f := newFleet()
		r := newRun(t, f)
		f.tokens["a"] = "lost"
		if c.seen != 0 {
			f.lastSeen["a"] = f.enrolled.Add(c.seen)
		}
		if err := errors.Join(os.MkdirAll(r.Dir, 0o700), os.WriteFile(filepath.Join(r.Dir, ".a.part"), nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		if states, err := do(t, r, "a"); err != nil || states != c.state || (f.tokens["a"] == "lost") != (c.state == "refused") {
			t.Errorf("seen %v: %s, %v, %v", c.seen, states, err, f.tokens)
		}
	}
}

func TestWhatConcernsOneDeviceStopsNoOther(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
		stop bool
	}{
		{&api.Error{Status: 409, Code: api.CodeConflict}, "refused provisioned", false},
		{&api.Error{Status: 400, Code: api.CodeInvalid}, "refused provisioned", false},
		{&api.Error{Status: 500, Code: api.CodeInternal}, "failed provisioned", false},
		{&api.Error{Status: 401, Code: api.CodeUnauthorized}, "failed left", true},
		{&api.Error{Status: 507, Code: api.CodeStorageFull}, "failed left", true},
		{api.ErrTimeout, "failed left", true},
		{context.Canceled, "failed left", true},
	} {
		for _, call := range []string{"device", "enroll"} {
			f := newFleet()
			r := newRun(t, f)
			f.fault = func(asked, id string) (error, bool) {
				if id == "a" && asked == call {
					return c.err, false
				}
				return nil, false
			}
			if states, err := do(t, r, "a", "b"); states != c.want || (err != nil) != c.stop || c.stop && !errors.Is(err, c.err) {
				t.Errorf("%v to %s: %s, %v, want %s", c.err, call, states, err, c.want)
			}
			// A server that said no has given no token: nothing of the device is left.
			e, answered := errors.AsType[*api.Error](c.err)
			if _, err := os.Stat(filepath.Join(r.Dir, ".a.part")); answered && e.Status < 500 && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%v to %s: the mark is left: %v", c.err, call, err)
			}
		}
	}
}

func TestAFolderOfAnotherRunIsNotTakenForDone(t *testing.T) {
	f := newFleet()
	r := newRun(t, f)
	r.Resume = true
	if states, err := do(t, r, "a"); err != nil || states != "provisioned" {
		t.Fatalf("%s, %v", states, err)
	}
	if err := os.Remove(filepath.Join(r.Folder("a"), provision.FlashFile)); err != nil {
		t.Fatal(err)
	}
	if states, err := do(t, r, "a"); err != nil || states != "refused" {
		t.Errorf("without its flash: %s, %v", states, err)
	}
	if f.made != 1 {
		t.Errorf("%d tokens", f.made)
	}
}

func TestFilesThatDoNotFitAreFoundBeforeAnyEnrolment(t *testing.T) {
	f := newFleet()
	r := newRun(t, f)
	if err := r.Check(); err != nil {
		t.Fatal(err)
	}
	r.TrustedKey = strings.Repeat("k", 15<<10)
	r.Info.CAPEM = strings.Repeat("c", 15<<10)
	recipe, err := provision.FromTable(parttable.Table{{Name: "storage", Type: parttable.TypeData, Subtype: parttable.SubtypeSPIFFS, Offset: 0x60000, Size: 0x2000}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Recipe = recipe
	if err := r.Check(); err == nil {
		t.Error("30 KiB fit into 8")
	}
	r.Info.URL = ""
	if err := r.Check(); err == nil {
		t.Error("a server without an address has devices")
	}
	if len(f.calls) != 0 || f.made != 0 {
		t.Errorf("the server was asked: %v", f.calls)
	}
}
