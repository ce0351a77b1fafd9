package main

import (
	"strings"
	"testing"
	"time"

	"bmsota/api"
)

func TestMixIsReadAsItIsWritten(t *testing.T) {
	if mix, err := parseMix("good=0.9, crash=0.1"); err != nil || mix["good"] != 0.9 || mix["crash"] != 0.1 {
		t.Errorf("mix %v (%v)", mix, err)
	}
	for _, text := range []string{"", "good", "=1", "good=x", "good=-1", "good=NaN", "good=1,good=1", "good=2", "good=0.9,crash=0.2", "good=1,,"} {
		if mix, err := parseMix(text); err == nil {
			t.Errorf("mix %q is taken for %v", text, mix)
		}
	}
}

func TestWrongUseOfRolloutsIsSaid(t *testing.T) {
	for _, c := range []struct {
		says string
		args []string
	}{
		{"wrong number of arguments (0)", []string{"rollout", "create"}},
		{`--label "x" is not key=value`, []string{"rollout", "create", "1.0.0", "--label", "x"}},
		{`wave "x" is not`, []string{"rollout", "create", "1.0.0", "--all", "--waves", "x"}},
		{`--max-failed "5.5" is neither`, []string{"rollout", "create", "1.0.0", "--all", "--max-failed", "5.5"}},
		{"--jitter of 1ms is not a number of seconds", []string{"rollout", "create", "1.0.0", "--all", "--jitter", "1ms"}},
		{"wrong number of arguments (1)", []string{"rollout", "skip", "r-1"}},
		{"--mix: ", []string{"rollout", "rehearse", "1.0.0", "--all", "--mix", "x"}},
		{"--update of 0s is less", []string{"rollout", "rehearse", "1.0.0", "--all", "--update", "0s"}},
		{`"x" is neither key=value nor key-`, []string{"devices", "label", "bms-1", "x"}},
		{"is none of [good crash hang", []string{"device", "fleet", "--image", "x", "--mix", "odd=1"}},
		{"--max-pause cannot be less", []string{"device", "fleet", "--image", "x", "--max-pause", "-1s"}},
	} {
		mustFail(t, exitUsage, c.says, c.args...)
	}
}

func TestRolloutIsShownAtAGlance(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	r := api.Rollout{ID: "r-1", Version: "1.1.0", Project: "bms", Chip: "esp32", State: "running", Members: 100, Wave: 2,
		Waves: []api.WaveLimit{{Limit: 10, SoakS: 60}, {Limit: 50, SoakS: 600}, {Limit: 100}}, SoakSince: at,
		Figures: api.Figures{Pending: 50, Succeeded: 47, RolledBack: 1, Silent: 1, Skipped: 1}}
	got := strings.Join(rolloutLines(r, at.Add(time.Minute)), "\n")
	for _, want := range []string{"r-1  1.1.0 of bms for esp32: running", "wave 1  [████████████████████]", "11 to 50  soaks for another 9m0s",
		"wave 3  [░░░░░░░░░░░░░░░░░░░░]", "100 devices: 47 succeeded, 50 waiting, 1 rolled back, 1 silent, 1 skipped"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	r.Waves[1].Figures, r.Waves[1].Held = &api.Figures{Succeeded: 30, Pending: 10}, map[string]int{"offline": 3, "charging": 7}
	r.Waits, r.WaitsMore = []api.RolloutWait{{DeviceID: "bms-1", HoldText: "blocked: not connected", Since: time.Now().Add(-3 * time.Hour)}, {DeviceID: "bms-2", HoldText: "blocked: charging"}}, 8
	got = strings.Join(rolloutLines(r, at.Add(time.Minute)), "\n")
	for _, want := range []string{"11 to 50  30 succeeded, 10 waiting (7 charging, 3 offline)  soaks for another 9m0s", "wave 2  [███████████████░░░░░]",
		"\n  waits for bms-1: blocked: not connected, last heard of 3h ago\n  waits for bms-2: blocked: charging\n  and for 8 more\n  to go on without one: bmsota rollout skip r-1 DEVICE\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	r.State, r.Halt = "halted", &api.Halt{Text: "why\x1b[31m"}
	if got := strings.Join(rolloutLines(r, at), "\n"); !strings.Contains(got, "halted because why") || strings.Contains(got, "\x1b") {
		t.Errorf("halted:\n%q", got)
	}
	if err := rolloutVerdict(r); err == nil {
		t.Error("a halted rollout ends with 0")
	}
}
