package fleet_test

import (
	"os"
	"strings"
	"testing"

	"bmsota/server/internal/fleet"
)

// TestDocumentPrintsTheTableOfVerbs holds docs/rollouts.md against Means, which Plan acts by.
func TestDocumentPrintsTheTableOfVerbs(t *testing.T) {
	b, err := os.ReadFile("../../../docs/rollouts.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(b), "| where the device is |")
	if !found {
		t.Fatal("docs/rollouts.md has no table of what the verbs mean")
	}
	verbs := []fleet.Verb{fleet.VerbPause, fleet.VerbHalt, fleet.VerbAbort, fleet.VerbResume}
	want := ""
	for _, v := range verbs {
		want += " " + string(v) + " |"
	}
	want += "\n|---|---|---|---|---|\n"
	for _, stage := range fleet.Stages() {
		want += "| " + stage + " |"
		for _, v := range verbs {
			want += " " + string(fleet.Means(v, stage)) + " |"
		}
		want += "\n"
	}
	if got, _, _ := strings.Cut(table, "\n\n"); got+"\n" != want {
		t.Errorf("the table is\n%s\nwant\n%s", got, want)
	}
	for _, rule := range []string{"failed_pct", "failed", "rolled_back", "brownouts", "no_success", "quarantined", "withdrawn",
		fleet.CannotUnprotected, fleet.CannotRevoked, fleet.CannotNeverSeen, fleet.CannotUnknown} {
		if !strings.Contains(string(b), "`"+rule+"`") {
			t.Errorf("docs/rollouts.md does not say what %s is", rule)
		}
	}
}
