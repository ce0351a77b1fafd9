//go:build unix

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"bmsota/api"
)

// longRollouts says whether the long run is wanted: 1,000 boards updated to the last, 200 kills.
func longRollouts() bool { return os.Getenv("BMSOTA_ROLLOUTS") == "long" }

// rolloutFigures are variables of every story.
func rolloutFigures() (boards, kills string) {
	if longRollouts() {
		return "1000", "200"
	}
	return "200", "20"
}

func longReplicas() bool { return os.Getenv("BMSOTA_REPLICAS") == "long" }

// replicaFigures are too: of the stories about several servers.
func replicaFigures() (boards, kills string) {
	if longReplicas() {
		return "60", "60"
	}
	return "12", "2"
}

// asked runs a command that prints JSON.
func asked(ts *testscript.TestScript, ctx context.Context, v any, args ...string) error {
	stdout, stderr, err := output(ts, ctx, args)
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, stderr)
	}
	if err := json.Unmarshal([]byte(stdout), v); err != nil {
		return fmt.Errorf("%s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// shown is what rollout show --json prints.
type shown struct {
	api.Rollout
	MemberList []api.Member `json:"member_list"`
}

// cmdUntouched holds a halted rollout against its first wave: untouched ROLLOUT VERSION. No device outside the wave was
// started or runs anything but VERSION, and none inside it has more than one attempt.
func cmdUntouched(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg, "untouched")
	if len(args) != 2 {
		ts.Fatalf("usage: untouched ROLLOUT VERSION")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	var r shown
	ts.Check(asked(ts, ctx, &r, "bmsota", "rollout", "show", args[0], "--json"))
	var devices []api.Device
	ts.Check(asked(ts, ctx, &devices, "bmsota", "devices", "list", "--json"))
	byID := make(map[string]api.Device, len(devices))
	for _, d := range devices {
		byID[d.DeviceID] = d
	}
	inside, outside := 0, 0
	for _, m := range r.MemberList {
		d := byID[m.DeviceID]
		if m.Rank < r.Waves[0].Limit {
			inside++
			if m.Tries > 1 {
				ts.Fatalf("%s had %d tries", m.DeviceID, m.Tries)
			}
			continue
		}
		outside++
		if m.Tries != 0 || m.State != "pending" || d.CurrentVersion != args[1] || string(d.Phase) != "idle" {
			ts.Fatalf("%s is not of the first wave and was touched: %+v %+v", m.DeviceID, m, d)
		}
	}
	if inside != r.Waves[0].Limit || outside != r.Members-inside || outside == 0 {
		ts.Fatalf("%d devices in the first wave and %d outside, of %d", inside, outside, r.Members)
	}
	if r.Figures.Open != 0 || r.Figures.Failures() == 0 || r.Wave != 1 {
		ts.Fatalf("figures %+v in wave %d", r.Figures, r.Wave)
	}
	ts.Logf("%d of %d devices were touched, %d of them harmed", inside, r.Members, r.Figures.Failures())
}

// cmdKillRollouts kills the server (process NAME, started by the story) at N random moments of running rollouts:
// killrollouts N NAME KEY LOG. As long as kills are left it publishes a next version and rolls it out to every device.
// After each restart no result that was known is lost; at the end of each rollout every device has succeeded, and LOG,
// what the boards said line by line, shows that each installed each version once.
func cmdKillRollouts(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg, "killrollouts")
	if len(args) != 4 {
		ts.Fatalf("usage: killrollouts N NAME KEY LOG")
	}
	killDuring(ts, args[0], args[2], args[3], func(*rand.Rand) {
		ts.Check(running(ts, args[1]).end(syscall.SIGKILL))
		cmdServer(ts, false, args[1:2])
	})
}

// cmdKillReplicas does so with servers on one database: killreplicas N KEY LOG NAME… Each is a process that the story has
// started, with $WORK/NAME as its data folder. The one that is killed comes back while the next rollout is looked at by way of
// another. In the long form one in four is stopped instead, for longer than a lease, and goes on where it was.
func cmdKillReplicas(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg, "killreplicas")
	if len(args) < 5 {
		ts.Fatalf("usage: killreplicas N KEY LOG NAME NAME…")
	}
	names := args[3:]
	killDuring(ts, args[0], args[1], args[2], func(random *rand.Rand) {
		at := random.IntN(len(names))
		victim, other := names[at], names[(at+1)%len(names)]
		p := running(ts, victim)
		ts.Setenv("BMSOTA_DATA", ts.MkAbs(other))
		if longReplicas() && random.IntN(4) == 0 {
			ts.Check(p.signal(syscall.SIGSTOP))
			time.Sleep(15 * time.Second) // longer than a lease and a beat
			ts.Check(p.signal(syscall.SIGCONT))
			ts.Logf("stopped %s", victim)
			waitHealthy(ts, ts.MkAbs(victim))
			return
		}
		ts.Check(p.end(syscall.SIGKILL))
		ts.Check(begin(ts, victim, p.cmd.Args...))
		ts.Logf("killed %s", victim)
		waitHealthy(ts, ts.MkAbs(victim))
	})
}

// waitHealthy waits until the server of a data folder answers.
func waitHealthy(ts *testscript.TestScript, data string) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	before := ts.Getenv("BMSOTA_DATA")
	ts.Setenv("BMSOTA_DATA", data)
	defer ts.Setenv("BMSOTA_DATA", before)
	for {
		_, stderr, err := output(ts, ctx, []string{"bmsota", "releases", "list", "--json"})
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			ts.Fatalf("%s: %v\n%s", data, err, stderr)
		}
		time.Sleep(askEvery)
	}
}

// killDuring is what both do; kill kills a server and has it come back.
func killDuring(ts *testscript.TestScript, times, key, log string, kill func(*rand.Rand)) {
	n, err := strconv.Atoi(times)
	ts.Check(err)
	ts.Logf("seed %d: repeat with -seed=%d", newSeed(), newSeed())
	random := rand.New(rand.NewPCG(newSeed(), 17))
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(n+20)*patience)
	defer cancel()
	must := func(args ...string) {
		if _, stderr, err := output(ts, ctx, args); err != nil {
			ts.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, stderr)
		}
	}
	kills := 0
	var versions []string
	var members int
	for kills < n {
		version := fmt.Sprintf("2.%d.0", len(versions))
		versions = append(versions, version)
		must("bmsota", "image", "new", "--chip", "esp32", "--project", "bms", "--version", version, "--size", "40K", "-o", "next.bin")
		must("bmsota", "publish", "next.bin", "--key", key, "--channel", "next")
		var r api.Rollout
		ts.Check(asked(ts, ctx, &r, "bmsota", "rollout", "create", version, "--all", "--waves", "10%,50%:1s,100%", "--max-failed", "0",
			"--concurrency", "15", "--retries", "9", "--retry-after", "1s", "--json"))
		members = r.Members
		for r.State == "running" && kills < n {
			time.Sleep(time.Duration(random.Int64N(int64(2500 * time.Millisecond))))
			before := r
			ts.Check(asked(ts, ctx, &before, "bmsota", "rollout", "show", r.ID, "--json"))
			if before.State != "running" {
				r = before
				break
			}
			kills++
			kill(random)
			ts.Check(asked(ts, ctx, &r, "bmsota", "rollout", "show", r.ID, "--json"))
			if r.Figures.Succeeded < before.Figures.Succeeded || r.Wave < before.Wave || len(r.Events) < len(before.Events) {
				ts.Fatalf("kill %d: before it %+v in wave %d, after it %+v in wave %d", kills, before.Figures, before.Wave, r.Figures, r.Wave)
			}
		}
		var end shown
		for end.State != "done" {
			ts.Check(asked(ts, ctx, &end, "bmsota", "rollout", "show", r.ID, "--json"))
			if end.State != "done" && end.State != "running" {
				ts.Fatalf("the rollout of %s is %s: %+v", version, end.State, end.Halt)
			}
			time.Sleep(askEvery)
		}
		if end.Figures != (api.Figures{Succeeded: members}) {
			ts.Fatalf("the rollout of %s ended with %+v", version, end.Figures)
		}
		for _, m := range end.MemberList {
			ts.Check(checkAttempts(ts, ctx, m, end.ID))
		}
	}
	ts.Check(installedOnce(ts.ReadFile(log), versions, members))
	ts.Logf("%d kills in %d rollouts to %d devices", kills, len(versions), members)
}

// checkAttempts wants the rows of a member's attempts: as many as were begun, one of them succeeded, and the last.
func checkAttempts(ts *testscript.TestScript, ctx context.Context, m api.Member, rollout string) error {
	var d api.DeviceDetail
	if err := asked(ts, ctx, &d, "bmsota", "devices", "show", m.DeviceID, "--json"); err != nil {
		return err
	}
	n, succeeded := 0, 0
	for _, a := range d.Attempts {
		if a.RolloutID != rollout {
			continue
		}
		if n++; a.State == "succeeded" {
			succeeded++
			if n != 1 {
				return fmt.Errorf("%s: an attempt was begun after %s had succeeded", m.DeviceID, a.ID)
			}
		} else if a.State != "failed" || a.Reason == "silent" {
			return fmt.Errorf("%s: attempt %s is %s for %q", m.DeviceID, a.ID, a.State, a.Reason)
		}
	}
	if succeeded != 1 || n != m.Tries {
		return fmt.Errorf("%s: %d attempts, %d succeeded, %d tries", m.DeviceID, n, succeeded, m.Tries)
	}
	return nil
}

// installedOnce counts, in what boards said, the boots into each version on trial.
func installedOnce(log string, versions []string, boards int) error {
	type install struct{ device, version string }
	boots := make(map[install]map[string]bool)
	said := make(map[string][]string) // by device
	for line := range strings.Lines(log) {
		var s struct {
			DeviceID string `json:"device_id"`
			Boot     string `json:"boot_id"`
			Phase    string `json:"phase"`
			Version  string `json:"current_version"`
		}
		if json.Unmarshal([]byte(line), &s) != nil {
			continue
		}
		said[s.DeviceID] = append(said[s.DeviceID], s.Boot+" "+s.Version+" "+s.Phase)
		if s.Phase != "trial" {
			continue
		}
		key := install{s.DeviceID, s.Version}
		if boots[key] == nil {
			boots[key] = make(map[string]bool)
		}
		boots[key][s.Boot] = true
	}
	for key, seen := range boots {
		if len(seen) != 1 {
			return fmt.Errorf("%s tried %s in %d boots", key.device, key.version, len(seen))
		}
	}
	for device, words := range said {
		for _, version := range versions {
			if boots[install{device, version}] == nil {
				return fmt.Errorf("%s never said that it tried %s: %q", device, version, slices.Compact(words))
			}
		}
	}
	if len(said) != boards {
		return fmt.Errorf("%d devices spoke, want %d", len(said), boards)
	}
	return nil
}
