//go:build unix

package store_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"bmsota/audit"
	"bmsota/protocol"
	"bmsota/server/internal/fleet"
	"bmsota/server/pgtest"
)

// BMSOTA_EXPLAIN is how many devices the fleet of the next test has, where it is not the least that PostgreSQL plans as it would a
// large one.
const (
	explainDevices = "BMSOTA_EXPLAIN"
	explainUsual   = 20_000
)

// bigTable is a table that nothing that is asked often may read from end to end.
var bigTable = regexp.MustCompile(`Seq Scan on (devices|attempts|rollout_members|audit)\b.*`)

// TestListingsAreAnsweredFromIndexesOfPostgres fills a database with a large fleet in the middle of a rollout and asks all
// that pages, figures, the planner and the folding of statuses ask. PostgreSQL itself tells the plans by which it answered
// (auto_explain): none reads a large table whole. `make explain-postgres` makes a million of them; a few rows would be read
// whole with reason.
func TestListingsAreAnsweredFromIndexesOfPostgres(t *testing.T) {
	n := explainUsual
	if given := os.Getenv(explainDevices); given != "" {
		var err error
		if n, err = strconv.Atoi(given); err != nil || n < explainUsual {
			t.Fatalf("%s=%q is no number of at least %d", explainDevices, given, explainUsual)
		}
	}
	s, database := newPostgres(t)
	now := at(0)
	began := time.Now()
	if err := s.SQL(database, largeFleet(t, n, now)...); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d devices made in %s", n, time.Since(began).Round(time.Second))
	db := openPostgres(t, s.URL(database, pgtest.Superuser)+"&session_preload_libraries=auto_explain&auto_explain.log_min_duration=0&auto_explain.log_analyze=on&statement_timeout=120s")
	ask := func(name string, fn func(tx fleet.Tx) error) {
		t.Helper()
		seen, err := s.Log()
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		update(t, db, fn)
		took := time.Since(began)
		all, err := s.Log()
		if err != nil {
			t.Fatal(err)
		}
		plans := string(all[len(seen):])
		if !strings.Contains(plans, "Query Text:") {
			t.Fatalf("%s: no plan in the log", name)
		}
		t.Logf("%-34s %8.1f ms", name, float64(took.Microseconds())/1000)
		if found := bigTable.FindString(plans); found != "" {
			t.Errorf("%s: %s\n%.3000s", name, found, plans)
		}
	}
	for i, q := range queries(rand.New(rand.NewPCG(2, 2)), now) {
		q.Limit = 50
		ask(fmt.Sprintf("list %d: %s by %s", i, q.State, q.Sort), func(tx fleet.Tx) error { _, err := tx.DevicePage(q); return err })
		ask(fmt.Sprintf("count %d: %s", i, q.State), func(tx fleet.Tx) error { _, err := tx.DeviceCount(q); return err })
	}
	ask("home, metrics: tallies", func(tx fleet.Tx) error { _, err := tx.DeviceTallies(now); return err })
	ask("home: open attempts", func(tx fleet.Tx) error {
		_, e1 := tx.OpenTallies()
		_, e2 := tx.NewestOpen(20)
		return all(e1, e2)
	})
	ask("home: failures", func(tx fleet.Tx) error {
		_, e1 := tx.NewestFailed(now.Add(-fleet.FailedWithin), 20)
		_, e2 := tx.FailureTallies(now.Add(-fleet.FailedWithin))
		return all(e1, e2)
	})
	ask("release: its attempts", func(tx fleet.Tx) error { _, err := tx.ReleaseTally(strings.Repeat("b", 64)); return err })
	ask("fold a status", func(tx fleet.Tx) error {
		d, err := tx.Device("bms-0000500")
		_, e2 := tx.OpenAttemptsOf(d.ID)
		return all(err, e2, tx.PutDevice(d))
	})
	ask("device: its attempts", func(tx fleet.Tx) error { _, err := tx.AttemptsOf("bms-0000500", 20); return err })
	ask("retention: a batch of attempts", func(tx fleet.Tx) error {
		list, err := tx.EndedAttempts(fleet.EndedAttempt{EndedAt: now.Add(-time.Duration(n) * time.Millisecond)}, now, 1000)
		if err == nil && len(list) != 1000 {
			err = fmt.Errorf("%d attempts", len(list))
		}
		return err
	})
	ask("retention: a batch of the log", func(tx fleet.Tx) error {
		page, err := tx.AuditPage(fleet.AuditQuery{Limit: 1000})
		if err != nil {
			return err
		}
		head, err := tx.AuditHead()
		through := page[len(page)-1].Head()
		says := audit.Entry{At: now, Who: "server", What: audit.LogPrune, About: through.String()}.Seal(head)
		return all(err, tx.AppendAudit([]audit.Entry{says}), tx.PruneAudit(through))
	})
	ask("planner: counts", func(tx fleet.Tx) error {
		_, e1 := tx.RolloutsToTend()
		_, e2 := tx.MemberCounts("r")
		_, e3 := tx.CountAttempts("r", now.Add(-time.Minute))
		return all(e1, e2, e3)
	})
	ask("planner: counts of a wave", func(tx fleet.Tx) error { _, err := tx.MemberCountsBetween("r", 0, n/2); return err })
	ask("planner: candidates", func(tx fleet.Tx) error { _, err := tx.Candidates("r", 0, -1, n, 500, false); return err })
	ask("planner: away", func(tx fleet.Tx) error { _, err := tx.AwayMembers("r", n, now.Add(-time.Hour), 500); return err })
	ask("planner: tried and gone", func(tx fleet.Tx) error { _, err := tx.TriedAndGone("r"); return err })
	ask("planner: doubted", func(tx fleet.Tx) error { _, err := tx.Doubted("r"); return err })
	ask("planner: dark", func(tx fleet.Tx) error { _, err := tx.CountDark("r", now.Add(-time.Hour)); return err })
	ask("planner: rolled back", func(tx fleet.Tx) error { _, err := tx.RolledBack(strings.Repeat("b", 64)); return err })
	ask("members: a page", func(tx fleet.Tx) error {
		_, e1 := tx.Members("r", "", n/2, 50)
		_, e2 := tx.Members("r", fleet.MemberPending, 0, 50)
		return all(e1, e2)
	})
	for _, q := range []fleet.AuditQuery{{NewestFirst: true}, {After: int64(n / 2)}, {Device: "bms-0000500"}, {Who: "anna"}, {What: "rollout.", NewestFirst: true},
		{What: audit.Action("release.publish")}, {Since: now.Add(-time.Hour)}} {
		q.Limit = 100
		ask(fmt.Sprintf("audit: %+v", q)[:30], func(tx fleet.Tx) error { _, err := tx.AuditPage(q); return err })
	}
}

// largeFleet are the statements that make n devices in the middle of a rollout.
func largeFleet(t *testing.T, n int, now time.Time) []string {
	t.Helper()
	status := device("d").Status
	status.Phase, status.Project, status.Chip = protocol.PhaseIdle, "bms", "esp32"
	body, err := json.Marshal(status)
	if err != nil {
		t.Fatal(err)
	}
	ms := now.UnixMilli()
	old, young := strings.Repeat("a", 64), strings.Repeat("b", 64)
	rollout, err := json.Marshal(fleet.Rollout{ID: "r", State: fleet.RolloutRunning, Revision: 1})
	if err != nil {
		t.Fatal(err)
	}
	return []string{
		"SET session_replication_role = replica", // no triggers and no look at what is referred to: it is all made here
		fmt.Sprintf(`INSERT INTO devices SELECT 'bms-' || lpad(i::text, 7, '0'), md5(i::text), %d, CASE WHEN i %% 1000 = 1 THEN 1 ELSE 0 END, '', CASE WHEN i %% 33 = 0 THEN 0 ELSE 1 END,
 %d, %d - (i::bigint * 7919 %% 86400000), %d, CASE WHEN i %% 200 = 0 THEN 'failed' WHEN i %% 100 = 3 THEN 'downloading' ELSE 'idle' END,
 CASE WHEN i %% 2 = 0 THEN '1.0.0' ELSE '1.0.1' END, CASE WHEN i %% 2 = 0 THEN '%s' ELSE '%s' END, '0.9.0', 'b', i, '["b0"]', '%s', '', 'bms', 'esp32', '', 1, '', 0, '',
 CASE WHEN i %% 5000 = 7 THEN 1 ELSE 0 END FROM generate_series(0, %d) i`, ms-1e10, ms-1e10, ms, ms, old, young, strings.ReplaceAll(string(body), "'", "''"), n-1),
		fmt.Sprintf(`INSERT INTO attempts SELECT 'a' || i, 'c' || i, 'bms-' || lpad((i %% %d)::text, 7, '0'), 'update', 0, '1.0.1', '%s', %d - i, 'anna', 0,
 CASE WHEN i %% 100 = 3 THEN 'open' WHEN i %% 300 = 5 THEN 'rolled_back' WHEN i %% 200 = 0 THEN 'failed' ELSE 'succeeded' END, 'downloading', '', '', 0, %d - i, 'r' FROM generate_series(0, %d) i`,
			n, young, ms, ms, 2*n-1),
		`INSERT INTO releases SELECT repeat(chr(97 + i), 64), 'bms', 'esp32', '1.0.' || i, '', '', 0, 1, 0, 0, '', '', i, 'anna', 0 FROM generate_series(0, 5) i`,
		fmt.Sprintf(`INSERT INTO rollouts VALUES ('r', 1, 'running', 0, %d, '', '%s')`, ms, strings.ReplaceAll(string(rollout), "'", "''")),
		fmt.Sprintf(`INSERT INTO rollout_members SELECT 'r', 'bms-' || lpad(i::text, 7, '0'), i, CASE WHEN i %% 100 = 3 THEN 'open' WHEN i < %d THEN 'succeeded' ELSE 'pending' END,
 CASE WHEN i < %d OR i %% 100 = 3 OR i %% 1000 = 0 THEN 1 ELSE 0 END, CASE WHEN i %% 1000 = 0 THEN 1 ELSE 0 END, '', 0, '', '', 0 FROM generate_series(0, %d) i`, n/2, n/2, n-1),
		`INSERT INTO rollout_sums SELECT rollout_id, state, COUNT(*) FROM rollout_members GROUP BY rollout_id, state`,
		fmt.Sprintf(`INSERT INTO audit SELECT i, %d - (%d - i), CASE WHEN i %% 1000 = 0 THEN 'anna' ELSE 'server' END, 'server', CASE WHEN i %% 1000 = 0 THEN 'rollout.halt' ELSE 'attempt.begin' END, '',
 'bms-' || lpad((i %% %d)::text, 7, '0'), '', '', '', md5(i::text) FROM generate_series(1, %d) i`, ms, n, n, n),
		"RESET session_replication_role",
		"VACUUM ANALYZE",
	}
}
