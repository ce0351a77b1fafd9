package hosttest_test

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"flag"
	"os"
	"strings"
	"testing"
	"unicode/utf8"
)

var update = flag.Bool("update", false, "write testdata/vectors.jsonl anew")

const vectorFile = "../testdata/vectors.jsonl"

// vector is one line of the file: a question and its answer. The texts stand in Args, or in Base64 where one of them is no
// UTF-8.
type vector struct {
	Kind   string   `json:"kind"`
	Args   []string `json:"args,omitempty"`
	Base64 [][]byte `json:"base64,omitempty"`
	Want   string   `json:"want"`
}

func newVector(kind string, args []string, want string) vector {
	for _, a := range args {
		if !utf8.ValidString(a) {
			v := vector{Kind: kind, Want: want}
			for _, a := range args {
				v.Base64 = append(v.Base64, []byte(a))
			}
			return v
		}
	}
	return vector{Kind: kind, Args: args, Want: want}
}

func (v vector) texts() []string {
	texts := v.Args
	for _, b := range v.Base64 {
		texts = append(texts, string(b))
	}
	return texts
}

// least is how many vectors there have to be of each kind: fewer, and the file has lost some.
var least = map[string]int{
	"version": 300, "command": 250, "version_file": 150, "manifest": 150, "offer": 150, "ota_config": 100, "mqtt_config": 60, "status": 60,
	"refuse": 50, "gate": 50, "keys": 25, "expired": 15, "same": 10, "on_the_way": 20, "name": 30, "mac": 2, "digest": 4, "cosigned": 150, "builtin": 35,
}

func readVectors(t testing.TB) []vector {
	t.Helper()
	b, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	var all []vector
	count := make(map[string]int)
	for line := range bytes.Lines(b) {
		var v vector
		if err := json.Unmarshal(line, &v); err != nil {
			t.Fatal(err)
		}
		all = append(all, v)
		count[v.Kind]++
	}
	for kind, n := range least {
		if count[kind] < n {
			t.Errorf("%d vectors of kind %s, there were %d and more", count[kind], kind, n)
		}
	}
	if len(all) < 1000 {
		t.Errorf("%d vectors, there were 1,000 and more", len(all))
	}
	return all
}

func TestGoGivesTheAnswerOfEveryVector(t *testing.T) {
	if *update {
		writeVectors(t)
	}
	for i, v := range readVectors(t) {
		if got := askGo(t, v.Kind, v.texts()...); got != v.Want {
			t.Errorf("line %d: %s %q\ngot  %s\nwant %s", i+1, v.Kind, v.texts(), got, v.Want)
		}
	}
}

func eachVector(t *testing.T, p *c) {
	for i, v := range readVectors(t) {
		if got := p.ask(v.Kind, v.texts()...); got != v.Want {
			t.Errorf("line %d: %s %q\ngot  %s\nwant %s", i+1, v.Kind, v.texts(), got, v.Want)
		}
	}
}

// A file of vectors that are all refused, or all taken, would prove little.
func TestVectorsOfEachKindHaveSeveralAnswers(t *testing.T) {
	refused := make(map[string]int)
	count := make(map[string]int)
	for _, v := range readVectors(t) {
		count[v.Kind]++
		if strings.HasPrefix(v.Want, "refused") || strings.HasPrefix(v.Want, "bad") {
			refused[v.Kind]++
		}
	}
	for _, kind := range []string{"command", "version_file", "manifest", "offer", "ota_config", "mqtt_config", "keys", "cosigned", "builtin"} {
		if n := refused[kind]; n < count[kind]/10 || n > count[kind]*9/10 {
			t.Errorf("%s: %d of %d are refused", kind, n, count[kind])
		}
	}
}

func writeVectors(t *testing.T) {
	t.Helper()
	f, err := os.Create(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	w := bufio.NewWriter(f)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	for _, q := range questions() {
		if err := enc.Encode(newVector(q.kind, q.args, askGo(t, q.kind, q.args...))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// b64 is base64 as manifests have it.
func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
