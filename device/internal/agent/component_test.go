package agent

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"bmsota/device/internal/norflash"
	"bmsota/device/internal/otaops"
	"bmsota/esp/otadata"
	"bmsota/esp/parttable"
	"bmsota/firmware/host_test/hosttest"
	"bmsota/protocol"
)

func digestOf(b []byte) [32]byte { return sha256.Sum256(b) }

func newSection(f io.ReaderAt, p parttable.Partition) *io.SectionReader {
	return io.NewSectionReader(f, int64(p.Offset), int64(p.Size))
}

// component is a process that runs single operations of the ESP-IDF component's C code on a flash file.
type component struct {
	t    testing.TB
	file *os.File
	in   io.Writer
	out  *bufio.Reader
	have []byte // what the file holds, as far as this side knows
}

func startComponent(t testing.TB, plain bool) *component {
	t.Helper()
	c := &component{t: t}
	path := t.TempDir() + "/flash"
	var err error
	if c.file, err = os.Create(path); err != nil {
		t.Fatal(err)
	}
	if err := c.file.Truncate(1 << 20); err != nil { // the smallest chip
		t.Fatal(err)
	}
	c.have = make([]byte, used)
	cmd := exec.Command(hosttest.Build(t, "slots_tool", plain), path)
	if c.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd.Stderr = &log
	c.out = bufio.NewReader(out)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.in.(io.Closer).Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("slots_tool: %v\n%s", err, tail(log.String()))
		}
		c.file.Close()
	})
	return c
}

func tail(s string) string { return s[max(0, len(s)-3000):] }

// cut is a power failure in one operation; the zero value is none.
type cut struct {
	at   int
	how  string
	seed uint64
}

// did is what an operation of the component came to.
type did struct {
	err   string // "ESP_OK", ..., "power-cut"
	ops   int
	efuse uint32
	found map[string][]string
}

func (d did) get(key string) string { return strings.Join(d.found[key], " ") }

// do runs op on the state of l and returns what the flash holds after it.
func (c *component) do(l life, k cut, op string) (did, *norflash.Flash) {
	c.t.Helper()
	c.put(l.flash)
	if k.how == "" {
		k.how = "before"
	}
	flag := map[bool]int{true: 1}
	fmt.Fprintf(c.in, "running=%s reset=%s chip=%d rollback=%d anti=%d encrypted=%d efuse=%d weak=%d:%d cut=%d how=%s seed=%d %s\n", l.running.SubtypeName(), l.reset,
		l.chip, flag[l.rollback], flag[l.anti], flag[l.encrypted], l.efuse, l.weak.at, l.weak.bits, k.at, k.how, k.seed, op)
	line, err := c.out.ReadString('\n')
	if err != nil {
		c.t.Fatalf("%s: slots_tool ended: %v", op, err)
	}
	words := strings.Fields(line)
	d := did{err: words[0], found: map[string][]string{}}
	d.ops, _ = strconv.Atoi(words[1])
	secure, _ := strconv.Atoi(words[2])
	d.efuse = uint32(secure)
	for _, w := range words[3:] {
		key, value, _ := strings.Cut(w, "=")
		d.found[key] = append(d.found[key], value)
	}
	if _, err := c.file.ReadAt(c.have, 0); err != nil {
		c.t.Fatal(err)
	}
	return d, norflash.FromBytes(c.have)
}

// put writes what differs of f to the file.
func (c *component) put(f *norflash.Flash) {
	var sector [norflash.SectorSize]byte
	for at := int64(0); at < used; at += norflash.SectorSize {
		f.ReadAt(sector[:], at)
		if bytes.Equal(sector[:], c.have[at:at+norflash.SectorSize]) {
			continue
		}
		if _, err := c.file.WriteAt(sector[:], at); err != nil {
			c.t.Fatal(err)
		}
		copy(c.have[at:], sector[:])
	}
}

func equalFlash(a, b *norflash.Flash) string {
	var x, y [norflash.SectorSize]byte
	for at := int64(0); at < used; at += norflash.SectorSize {
		a.ReadAt(x[:], at)
		b.ReadAt(y[:], at)
		if x == y {
			continue
		}
		i := 0
		for x[i] == y[i] {
			i++
		}
		return fmt.Sprintf("at 0x%x: % x, want % x", at+int64(i), y[i:min(i+32, len(y))], x[i:min(i+32, len(x))])
	}
	return ""
}

// verdict is what the Go agent came to in the same life.
type verdict struct {
	ok    bool
	efuse uint32
	found map[string]string
	forks []*norflash.Flash // the flash before each operation, and at the end
}

// goAgent runs op as the Go agent does.
func goAgent(t testing.TB, l life, op string) verdict {
	t.Helper()
	v := verdict{efuse: l.efuse, found: map[string]string{}}
	f := l.flash.Clone()
	a := newAgent(l.with(f).config(&v.efuse))
	var err error
	if a.ops, err = otaops.New(f, l.table, l.running, a.env.Ops); err != nil {
		t.Fatal(err)
	}
	if err := a.know(); err != nil {
		t.Fatal(err)
	}
	a.connectors()
	f.OnOp(func(norflash.Op) { v.forks = append(v.forks, f.Clone()) })
	v.ok = operate(t, a, op, v.found)
	v.forks = append(v.forks, f.Clone())
	return v
}

func operate(t testing.TB, a *agent, op string, found map[string]string) bool {
	t.Helper()
	words := append(strings.Fields(op), "", "")
	slot, _ := a.env.Table.Find(words[1])
	number, _ := strconv.ParseInt(words[1], 10, 64)
	switch words[0] {
	case "settle", "told":
		if err := a.repair(); err != nil {
			t.Fatal(err)
		}
		story(a, found)
		if rb := a.self.rolledBack; words[0] == "told" && rb != nil && rb.noted {
			return a.mark(rb.record, noteTold) == nil
		} else if words[0] == "told" && rb != nil {
			return a.ops.AckTombstone(rb.slot) == nil
		}
		return true
	case "switch":
		return a.switchTo(slot) == nil
	case "confirm":
		return a.confirm() == nil
	case "give_up":
		stays, err := a.giveUp(protocol.Reason(words[1]))
		return err == nil && stays == ""
	case "begin":
		_, err := newDownload(a, offer{}, a.self.target).open(0)
		return err == nil
	case "go_back":
		p, reason, err := a.goBack(strings.Trim(words[1], "-"))
		if err == nil || reason == protocol.ReasonFlash {
			found["slot"] = p.Name
		} else {
			found["refused"] = string(reason)
		}
		return err == nil
	case "unboot":
		return slot != a.env.Running && a.unboot(slot) == nil
	case "blank":
		return a.self.noTarget == nil && a.blank(int64(a.self.target.Offset)+number) == nil
	case "write":
		u, err := a.ops.Resume(a.self.target, true, number)
		if err == nil {
			n, _ := strconv.Atoi(words[2])
			_, err = u.Write(bytes.Repeat([]byte{0xE9}, n))
		}
		return err == nil
	}
	t.Fatalf("unknown operation %q", op)
	return false
}

// story is what a boot found out, in the words of slots_tool.
func story(a *agent, found map[string]string) {
	flag := map[bool]string{true: "1", false: "0"}
	s := &a.self
	found["trial"], found["manual"], found["restart"], found["leaving"] = flag[s.trial], flag[s.manual], flag[s.restart], strconv.Itoa(s.leaving)
	if rb := s.rolledBack; rb != nil {
		found["told"], found["failed"] = string(rb.cause), rb.digest
		if rb.digest == "" {
			found["failed"] = strings.Repeat("0", 64)
		}
		if rb.noted {
			found["record"] = strconv.Itoa(rb.record)
		} else {
			found["slot"] = rb.slot.Name
		}
	}
	if len(s.buried) > 0 {
		found["buried"] = strings.Join(s.buried, " ")
	}
	if s.held != "" {
		found["held"] = s.held
	}
}

// compare runs op on both sides. It returns the Go side and whether both did the same.
func compare(t testing.TB, c *component, l life, op string) (verdict, bool) {
	t.Helper()
	want := goAgent(t, l, op)
	d, got := c.do(l, cut{}, op)
	bad := equalFlash(want.forks[len(want.forks)-1], got)
	switch {
	case bad != "":
	case (d.err == "ESP_OK") != want.ok:
		bad = fmt.Sprintf("%s, the Go agent: ok %v", d.err, want.ok)
	case d.ops != len(want.forks)-1:
		bad = fmt.Sprintf("%d operations, want %d", d.ops, len(want.forks)-1)
	case d.efuse != want.efuse:
		bad = fmt.Sprintf("secure version %d, want %d", d.efuse, want.efuse)
	}
	keys := map[string]bool{}
	for key := range d.found {
		keys[key] = true
	}
	for key := range want.found {
		keys[key] = true
	}
	for key := range keys {
		if bad == "" && d.get(key) != want.found[key] {
			bad = fmt.Sprintf("found %s %q, want %q", key, d.get(key), want.found[key])
		}
	}
	if bad != "" {
		t.Errorf("%s, running %s, reset %s, rollback %v %v, table %v: %s\nrecords %s", op, l.running.Name, l.reset, l.rollback, l.anti, names(l.table), bad, records(l))
	}
	return want, bad == ""
}

func names(table parttable.Table) (all []string) {
	for _, p := range table {
		all = append(all, p.Name)
	}
	return all
}

func records(l life) string {
	data, ok := l.table.OTAData()
	if !ok {
		return "none"
	}
	var b [2][140]byte
	for i := range b {
		l.flash.ReadAt(b[i][:], int64(data.Offset)+int64(i)*otadata.SectorSize)
	}
	return hex.EncodeToString(b[0][:]) + "\n        " + hex.EncodeToString(b[1][:])
}

// orders are the operations tried on each state.
func orders(l life) []string {
	all := []string{"settle", "told", "confirm", "give_up bms_silent", "give_up crash", "begin", "blank 4096", "write 0 100", "write 4096 4500", "write 61440 5000", "write 8192 100"}
	for _, version := range []string{"-", "v1.0.0", "9.9.9"} {
		all = append(all, fmt.Sprintf("go_back %s %d", version, l.efuse)) // the floor where there is anti-rollback
	}
	for _, p := range l.table.Slots() {
		all = append(all, "switch "+p.Name)
		if p != l.running {
			all = append(all, "unboot "+p.Name)
		}
	}
	return all
}

// seedOf is printed where a test fails: BMSOTA_SEED runs it again.
func seedOf(t testing.TB) uint64 {
	seed := uint64(20260801)
	if s := os.Getenv("BMSOTA_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed %d", seed)
	return seed
}

func newStates(t testing.TB, stream uint64) *stateMaker {
	return &stateMaker{Rand: rand.New(rand.NewPCG(seedOf(t), stream)), images: images(t), layouts: layouts()}
}

// The component's C code and the Go agent, from the same flash: the same bytes afterwards, in as many operations, and the
// same findings.
func TestComponentLeavesTheSameFlash(t *testing.T) {
	c, m := startComponent(t, false), newStates(t, 1)
	for n := range 2000 {
		l := m.next(t)
		for _, op := range orders(l) {
			compare(t, c, l, op)
		}
		if t.Failed() {
			t.Fatalf("state %d", n)
		}
	}
}

// The same over the records of the vectors that ESP-IDF's own code made for otaops.
func TestComponentLeavesTheSameFlashInTheReferenceStates(t *testing.T) {
	var v struct {
		Cases []struct {
			Cfg, Layout, E0, E1, Running string
			Valid                        []string
			Efuse                        uint32
		}
	}
	raw, err := os.ReadFile("../otaops/testdata/ota-ops.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	c, m := startComponent(t, false), newStates(t, 5)
	tables := map[string]parttable.Table{"two": m.layouts[0], "three": m.layouts[4], "fact": m.layouts[6]}
	seen := map[string]bool{}
	for _, vc := range v.Cases {
		state := fmt.Sprint(vc)
		if seen[state] || !slices.Contains(vc.Valid, vc.Running) {
			continue // without its image nothing runs
		}
		seen[state] = true
		l := life{flash: norflash.New(used), table: tables[vc.Layout], reset: pick(m, PowerOn, Panic), rollback: vc.Cfg != "plain", anti: vc.Cfg == "arb", efuse: vc.Efuse}
		l.running, _ = l.table.Find(vc.Running)
		m.table(t, l)
		for i, name := range vc.Valid {
			p, _ := l.table.Find(name)
			m.program(t, l, int64(p.Offset), m.images[(i+len(seen))%len(m.images)])
		}
		data, _ := l.table.OTAData()
		for i, text := range []string{vc.E0, vc.E1} {
			record, err := hex.DecodeString(text)
			if err != nil {
				t.Fatal(err)
			}
			m.program(t, l, int64(data.Offset)+int64(i)*otadata.SectorSize, record)
		}
		for _, op := range orders(l) {
			compare(t, c, l, op)
		}
		if t.Failed() {
			t.Fatal(state)
		}
	}
	if len(seen) < 300 {
		t.Errorf("only %d states", len(seen))
	}
}
