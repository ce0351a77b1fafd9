package hosttest_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"bmsota/protocol"
)

const (
	stackBudget = 6 << 10
	heapBudget  = 8 << 10 // of mbedTLS, for the curve; nothing else takes any
)

// memory is what the program of memory.c says of one run.
type memory struct {
	program                     string
	accepted, starved, requests int
	stack, heap, left           int
}

// run does it once, with the texts as its files; the fail-th request for memory gets nothing.
func (m *memory) run(t *testing.T, name string, fail int, texts ...string) {
	t.Helper()
	args := []string{name, strconv.Itoa(fail)}
	for i, text := range texts {
		path := filepath.Join(t.TempDir(), strconv.Itoa(i))
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, path)
	}
	out, err := exec.Command(m.program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	if _, err := fmt.Sscanf(string(out), name+" accepted=%d starved=%d requests=%d stack=%d heap=%d left=%d", &m.accepted, &m.starved, &m.requests, &m.stack, &m.heap, &m.left); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// The budget is for a host of 64 bits, where pointers take twice what they take on a chip and printf more.
func TestMemoryStaysWithinItsBudget(t *testing.T) {
	m := &memory{program: build(t, "memory")}
	one := fixedKey(1)
	size := 16 << 20
	largest := strings.Replace(goodPayload(), `"size":196625`, fmt.Sprintf(`"size":%d`, size), 1)
	before, after, _ := strings.Cut(largest, `"blocks":"`)
	_, after, _ = strings.Cut(after, `"`)
	largest = before + `"blocks":"` + b64(make([]byte, size/65536*32)) + `"` + after
	for _, c := range []struct {
		name  string
		input []string
		heap  int
	}{
		{"command", []string{`{"action":"update","x":` + strings.Repeat("[", 32) + strings.Repeat("]", 32) + `}`}, 0},
		{"version_file", []string{`{"version":"1.0.0","description":"` + strings.Repeat("d", 2000) + `","manifest":"` + strings.Repeat("m", protocol.MaxVersionFile-3000) + `"}`}, 0},
		{"ota_config", []string{`{"server_url":"https://h/x","health":{"min_heap":1},"gate":{"min_soc_pct":30,"max_current_a":5,"min_temp_c":0,"max_temp_c":45,"window":"22:00-06:00"}}`}, 0},
		{"mqtt_config", []string{"broker=mqtt://h\n" + strings.Repeat("#\n", 5000)}, 0},
		{"status", []string{strings.Repeat("m", 512)}, 0},
		{"keys", []string{pemOf(one)}, heapBudget},
		{"manifest", []string{sign(one, goodHeader, goodPayload()), pemOf(one)}, heapBudget},
		{"manifest", []string{sign(one, goodHeader, largest), pemOf(one)}, heapBudget},
	} {
		m.run(t, c.name, 0, c.input...)
		t.Logf("%s: %d bytes of stack, %d of heap", c.name, m.stack, m.heap)
		if m.accepted != 1 || m.stack > stackBudget || m.heap > c.heap || m.left != 0 {
			t.Errorf("budget of %s is %d and %d: %+v", c.name, stackBudget, c.heap, m)
		}
	}
}

// A device that has no memory left says so. It takes no manifest for one that somebody else signed, and none for good.
func TestManifestWithoutMemoryIsNeitherGoodNorForged(t *testing.T) {
	m := &memory{program: build(t, "memory")}
	text, keys := sign(fixedKey(1), goodHeader, goodPayload()), pemOf(fixedKey(1))
	m.run(t, "manifest", 0, text, keys)
	if m.accepted != 1 || m.requests == 0 {
		t.Fatalf("with memory: %+v", m)
	}
	// Most requests are the numbers of one multiplication on the curve; what is before it differs from one to the next.
	step := 1
	for fail, last := 1, m.requests; fail <= last; fail += step {
		if m.run(t, "manifest", fail, text, keys); m.starved != 1 || m.left != 0 {
			t.Errorf("without the memory of request %d: %+v", fail, m)
		}
		if fail == 100 {
			step = 101
		}
	}
}
