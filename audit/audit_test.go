package audit_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"bmsota/audit"
)

// chain makes a log of n rows in which no field is empty.
func chain(n int) []audit.Entry {
	head := audit.Genesis
	rows := make([]audit.Entry, n)
	for i := range rows {
		rows[i] = audit.Entry{
			At: time.Date(2026, 3, 1, 8, 0, i, 120_000_000, time.UTC), Who: "anna", Role: "admin", What: audit.AttemptEnd, About: fmt.Sprint("c/", i),
			Device: "bms-000001", Rollout: "r-1", Details: audit.Of("state", "succeeded", "message", `<ß> & "quoted" `+"\u2028"),
		}.Seal(head)
		head = rows[i].Head()
	}
	return rows
}

func export(rows []audit.Entry) []byte {
	var b bytes.Buffer
	for _, e := range rows {
		b.Write(append(e.Line(), '\n'))
	}
	return b.Bytes()
}

func verify(b []byte, heads ...audit.Head) (*audit.Chain, error) {
	c := &audit.Chain{Expect: heads}
	return c, c.Verify(bytes.NewReader(b))
}

func mustBreak(t *testing.T, b []byte, row int64, says string, heads ...audit.Head) {
	t.Helper()
	var broken *audit.Broken
	if _, err := verify(b, heads...); !errors.As(err, &broken) || broken.Seq != row || !strings.Contains(err.Error(), says) {
		t.Errorf("%v: want row %d and %q", err, row, says)
	}
}

func TestAWholeLogVerifiesAndSaysItsHead(t *testing.T) {
	rows := chain(9)
	c, err := verify(export(rows), rows[3].Head(), rows[8].Head())
	if err != nil || c.Rows != 9 || c.Head() != rows[8].Head() || !c.First.Equal(rows[0].At) || !c.Last.Equal(rows[8].At) {
		t.Errorf("%+v: %v", c, err)
	}
	if h, err := audit.ParseHead(c.Head().String()); err != nil || h != c.Head() {
		t.Errorf("head %v came back as %v: %v", c.Head(), h, err)
	}
	for _, text := range []string{"", "9", "0:" + rows[0].Hash, "9:" + rows[0].Hash[1:], "9:" + strings.ToUpper(rows[0].Hash), "x:" + rows[0].Hash} {
		if _, err := audit.ParseHead(text); err == nil {
			t.Errorf("%q was taken for a head", text)
		}
	}
	if c, err := verify(nil); err != nil || c.Rows != 0 {
		t.Errorf("an empty log: %v", err)
	}
}

// Every field by reflection, so that a new one that is not hashed fails here.
func TestAnAlteredFieldIsFoundAtItsRow(t *testing.T) {
	for i := range reflect.TypeFor[audit.Entry]().NumField() {
		name := reflect.TypeFor[audit.Entry]().Field(i).Name
		rows := chain(9)
		field := reflect.ValueOf(&rows[4]).Elem().Field(i)
		switch v := field.Addr().Interface().(type) {
		case *int64:
			*v += 2
		case *time.Time:
			*v = v.Add(time.Millisecond)
		case *audit.Details:
			(*v)[0].Value = "failed"
		default:
			field.SetString("x" + field.String()[1:])
		}
		t.Run(name, func(t *testing.T) { mustBreak(t, export(rows), 5, "row 5 (line 5)") })
	}
}

func TestEveryByteOfARowIsHeld(t *testing.T) {
	rows := chain(3)
	line := rows[1].Line()
	for i := range line {
		for _, flip := range []byte{1, 0x20} {
			bad := bytes.Clone(line)
			bad[i] ^= flip
			b := bytes.Join([][]byte{rows[0].Line(), bad, rows[2].Line(), nil}, []byte("\n"))
			var broken *audit.Broken
			if _, err := verify(b); !errors.As(err, &broken) || broken.Seq != 2 {
				t.Fatalf("byte %d of %q as %q: %v", i, line, bad[i], err)
			}
		}
	}
}

func TestRowsThatAreGoneOrMovedAreNamed(t *testing.T) {
	rows := chain(9)
	cut := func(from, to int) []audit.Entry { return append(append([]audit.Entry{}, rows[:from]...), rows[to:]...) }
	mustBreak(t, export(cut(4, 5)), 5, "is missing")
	mustBreak(t, export(cut(0, 1)), 1, "is missing")
	swapped := chain(9)
	swapped[2], swapped[3] = swapped[3], swapped[2]
	mustBreak(t, export(swapped), 3, "row 4 stands in its place")
	mustBreak(t, export(append(cut(5, 9), rows[4])), 6, "a second time")
	mustBreak(t, bytes.TrimSuffix(export(rows), []byte("\n")), 9, "cut off in the middle")
	mustBreak(t, []byte(strings.Repeat("x", audit.MaxLine+2)), 1, "is longer")
	mustBreak(t, []byte("{}\n"), 1, "")
	mustBreak(t, bytes.Replace(export(rows), []byte(`{"seq":3,`), []byte(`{"seq":3,"who":"carl",`), 1), 3, "not spelled")
	mustBreak(t, bytes.Replace(export(rows), []byte(`{"seq":3,`), []byte(`{"seq": 3,`), 1), 3, "not spelled")
	mustBreak(t, bytes.Replace(export(rows), []byte(`{"seq":3,`), []byte(`{"seq":3,"more":1,`), 1), 3, "is no row")
}

// Whoever rules the server can hash a changed row anew. The next row then does not follow; and where all behind it are
// hashed anew, too, or the tail is cut, only a head that was written down shows it.
func TestALogThatWasMadeAnewIsShownByAHead(t *testing.T) {
	rows := chain(9)
	written := rows[6].Head()
	forged := chain(9)
	forged[4].Who = "carl"
	forged[4] = forged[4].Seal(forged[3].Head())
	mustBreak(t, export(forged), 6, "does not follow row 5")
	for i := 5; i < 9; i++ {
		forged[i] = forged[i].Seal(forged[i-1].Head())
	}
	if _, err := verify(export(forged)); err != nil {
		t.Fatalf("the forged log is not whole in itself: %v", err)
	}
	mustBreak(t, export(forged), 7, "replaced", written)
	mustBreak(t, export(rows[:5]), 6, "its tail was cut off", written)
	if _, err := verify(export(rows[:7]), written); err != nil {
		t.Errorf("the log as it was then: %v", err)
	}
}

// A log that was pruned says so itself. One that was cut and does not, or says another row, is not whole.
func TestAPrunedLogVerifiesBecauseItSaysSo(t *testing.T) {
	says := func(rows []audit.Entry, what audit.Action, through string) []audit.Entry {
		return append(rows[:9:9], audit.Entry{At: rows[8].At, Who: "server", What: what, About: through}.Seal(rows[8].Head()))
	}
	rows := says(chain(9), audit.LogPrune, chain(9)[3].Head().String())
	c, err := verify(export(rows[4:]), rows[3].Head(), rows[4].Head(), rows[9].Head())
	if err != nil || c.Rows != 6 || c.Pruned != rows[3].Head() || c.Head() != rows[9].Head() {
		t.Errorf("%+v: %v", c, err)
	}
	if _, err := verify(export(rows)); err != nil {
		t.Errorf("an export that was made before: %v", err)
	}
	mustBreak(t, export(rows[3:]), 1, "begins with row 4") // not where it says
	mustBreak(t, export(rows[5:]), 1, "begins with row 6")
	mustBreak(t, export(rows[4:9]), 1, "no row of it says")
	mustBreak(t, export(says(chain(9), audit.AttemptEnd, chain(9)[3].Head().String())[4:]), 1, "no row of it says")
	mustBreak(t, export(says(chain(9), audit.LogPrune, "4:"+strings.Repeat("1", 64))[4:]), 1, "no row of it says")
	mustBreak(t, export(append(rows[4:6:6], rows[7:]...)), 7, "row 7 (line 3): is missing")
	altered := append([]audit.Entry{}, rows[4:]...)
	altered[1].Who = "carl"
	mustBreak(t, export(altered), 6, "was altered")
	mustBreak(t, export(rows[4:]), 3, "pruned since", rows[2].Head())
	mustBreak(t, export(rows[4:]), 4, "was replaced", audit.Head{Seq: 4, Hash: strings.Repeat("1", 64)})
	mustBreak(t, export(rows[4:]), 11, "tail was cut off", audit.Head{Seq: 12, Hash: rows[1].Hash})
	mustBreak(t, bytes.TrimSuffix(export(rows[4:]), []byte("\n")), 10, "cut off in the middle")
}

func TestWhatARowSaysIsBoundedAndText(t *testing.T) {
	long := strings.Repeat("ß\x00", 4000)
	e := audit.Entry{Who: long, About: "\xff" + long, What: audit.LoginOK}
	for i := range 100 {
		e.Details = append(e.Details, audit.Detail{Key: fmt.Sprint(i, long), Value: "\xff\x01" + long})
	}
	e = e.Seal(audit.Genesis)
	line := e.Line()
	if len(line) > audit.MaxLine {
		t.Errorf("a line of %d bytes", len(line))
	}
	c, err := verify(append(line, '\n'))
	if err != nil || c.Rows != 1 {
		t.Errorf("it does not verify: %v", err)
	}
}

func FuzzNext(f *testing.F) {
	for _, e := range chain(2) {
		f.Add(e.Line())
	}
	f.Add([]byte(`{"seq":1,"details":{"a":"b","a":1}}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		var c audit.Chain
		if err := c.Next(line); err != nil {
			return
		}
		var e audit.Entry
		if err := json.Unmarshal(line, &e); err != nil || !bytes.Equal(e.Line(), line) || e.Hash != e.Sum() {
			t.Errorf("taken: %q (%v)", line, err)
		}
	})
}

// The definition, said again without this package: what docs/audit.md promises to whoever writes a check of his own.
func TestTheHashIsTheOneThatIsDocumented(t *testing.T) {
	prev := strings.Repeat("0", 64)
	for _, line := range bytes.Split(bytes.TrimSpace(export(chain(3))), []byte("\n")) {
		at := bytes.LastIndex(line, []byte(`,"hash":"`))
		sum := sha256.Sum256(append(bytes.Clone(line[:at]), '}'))
		if got := hex.EncodeToString(sum[:]); !bytes.HasSuffix(line, []byte(`,"prev":"`+prev+`","hash":"`+got+`"}`)) {
			t.Fatalf("hash %s of %s", got, line)
		} else {
			prev = got
		}
	}
}

// The script in docs/audit.md is run as it stands there.
func TestTheScriptInTheDocumentVerifies(t *testing.T) {
	doc, err := os.ReadFile("../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("(?s)```python\n(.*?)```").FindSubmatch(doc)
	if m == nil {
		t.Fatal("docs/audit.md has no script in Python")
	}
	if lines := bytes.Count(m[1], []byte("\n")); lines > 14 {
		t.Errorf("it has %d lines", lines)
	}
	good, bad := export(chain(9)), export(chain(9))
	bad[bytes.LastIndex(bad, []byte("anna"))] = 'b'
	gone := export(append(chain(9)[:4], chain(9)[5:]...))
	rows := append(chain(9), audit.Entry{What: audit.LogPrune, About: chain(9)[3].Head().String()}.Seal(chain(9)[8].Head()))
	for name, c := range map[string]struct {
		log  []byte
		want string
	}{"good": {good, "9:" + chain(9)[8].Hash}, "bad": {bad, "row 9"}, "gone": {gone, "row 5"},
		"pruned": {export(rows[4:]), "10:" + rows[9].Hash}, "cut": {export(rows[4:9]), "begins with row 5"}} {
		path := filepath.Join(t.TempDir(), "log.jsonl")
		if err := os.WriteFile(path, c.log, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("python3", "-c", string(m[1]), path).CombinedOutput()
		if !strings.Contains(string(out), c.want) || (err == nil) != (name == "good" || name == "pruned") {
			t.Errorf("%s: %v: %s", name, err, out)
		}
	}
	for _, action := range audit.Actions() {
		if !bytes.Contains(doc, []byte("`"+string(action)+"`")) {
			t.Errorf("docs/audit.md does not say what %s is", action)
		}
	}
}
