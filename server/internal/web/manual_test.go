package web

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"bmsota/server/internal/fleet"
)

// docs/api.md names every code with its status, every role and every event, and its examples are what the document of
// the API says.
func TestManualOfTheAPISaysWhatIsServed(t *testing.T) {
	b, err := os.ReadFile("../../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for code := range meanings {
		row := regexp.MustCompile(fmt.Sprintf("(?m)^\\| [^|]*`%s`[^|]* \\| %d \\|", code, statusOf(code)))
		if !row.MatchString(text) {
			t.Errorf("no row says that %s is %d", code, statusOf(code))
		}
	}
	for _, e := range append(fleet.NoticeTypes(), fleet.NoticeTest) {
		if !strings.Contains(text, "\n| `"+string(e)+"` | ") {
			t.Errorf("no row for the event %s", e)
		}
	}
	srv, _, _ := realFleet(t, 0)
	schemas := schemasOf(t, closed(served(t, srv)).(map[string]any))
	examples := regexp.MustCompile("(?s)```json\n(.*?)```").FindAllStringSubmatch(text, -1)
	if len(examples) != 2 {
		t.Fatalf("%d examples", len(examples))
	}
	for i, name := range []string{"Problem", "WebhookEvent"} {
		if err := schemas.check([]byte(examples[i][1]), "components", "schemas", name); err != nil {
			t.Errorf("example of a %s: %v", name, err)
		}
	}
	for _, figure := range []string{fmt.Sprint("100 where you do not say and ", fleet.MaxPage, " at most"), "20\nwebhooks", "1,000 events", "72 hours"} {
		if !strings.Contains(text, figure) {
			t.Errorf("it does not say %q", figure)
		}
	}
}
