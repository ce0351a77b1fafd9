package store

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

// oneOf, manyOf and exec run a query that is not among the prepared ones: it is put together for its question, or asked
// too seldom to be kept.

func oneOf[T any](t *sqlTx, scan func(scanner) (T, error), text string, args ...any) (T, error) {
	return first(t, scan, t.tx.QueryRowContext(t.ctx, text, t.values(args)...))
}

func manyOf[T any](t *sqlTx, scan func(scanner) (T, error), text string, args ...any) ([]T, error) {
	rows, err := t.tx.QueryContext(t.ctx, text, t.values(args)...)
	if err != nil {
		return nil, t.fault(err)
	}
	return collect(t, rows, scan)
}

func (t *sqlTx) exec(text string, args ...any) error {
	_, err := t.change(text, args...)
	return err
}

// where is a condition under construction.
type where struct {
	all  []string
	args []any
}

// arg adds a value and is its placeholder.
func (w *where) arg(v any) string {
	w.args = append(w.args, v)
	return fmt.Sprintf("$%d", len(w.args))
}

// and adds a condition; each ? in it stands for the next of the values.
func (w *where) and(condition string, values ...any) {
	for _, v := range values {
		condition = strings.Replace(condition, "?", w.arg(v), 1)
	}
	w.all = append(w.all, condition)
}

func (w *where) String() string {
	if len(w.all) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(w.all, " AND ")
}

// updating and moving are the phases of an update, and those of them in which a device should be heard of.
var updating, moving = phaseList(func(p protocol.Phase) bool { return p.Updating() }),
	phaseList(func(p protocol.Phase) bool { return p.Updating() && p != protocol.PhaseWaiting })

func phaseList(in func(protocol.Phase) bool) string {
	var list []string
	for _, p := range protocol.Phases() {
		if in(p) {
			list = append(list, "'"+string(p)+"'")
		}
	}
	return "(" + strings.Join(list, ", ") + ")"
}

// badDevices are those whose latest ended attempt of consequence was a failure that ended after $since.
const badDevices = `SELECT b.device_id FROM attempts b WHERE b.state IN ('failed', 'rolled_back') AND b.ended_at >= ?
 AND NOT EXISTS (SELECT 1 FROM attempts s WHERE s.device_id = b.device_id AND s.created_at > b.created_at AND s.state = 'succeeded')`

// released is whether there is a release of the image that runs: by its digest, and by the version where a device says
// no digest.
const released = `(devices.sha256 <> '' AND EXISTS (SELECT 1 FROM releases r WHERE r.sha256 = devices.sha256)
 OR devices.sha256 = '' AND EXISTS (SELECT 1 FROM releases r WHERE r.project = devices.project AND r.chip = devices.chip AND r.version = devices.version))`

// selecting is the condition of q. It says what fleet.DeviceQuery.Matches says.
func selecting(q fleet.DeviceQuery) *where {
	w := &where{}
	for _, c := range []struct{ column, want string }{
		{"phase", string(q.Phase)}, {"reason", string(q.Reason)}, {"version", q.Version}, {"sha256", q.SHA256}, {"project", q.Project}, {"chip", q.Chip},
	} {
		if c.want != "" {
			w.and(c.column+" = ?", c.want)
		}
	}
	switch q.Channel {
	case "":
	case fleet.DefaultChannel:
		w.and("channel IN ('', ?)", q.Channel) // of a device that was put into none
	default:
		w.and("channel = ?", q.Channel)
	}
	if q.Text != "" {
		escaped := strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`).Replace(strings.ToLower(q.Text))
		w.and(`lower(id) LIKE ? ESCAPE '\'`, "%"+escaped+"%")
	}
	switch q.State {
	case fleet.StateAny:
		return w
	case fleet.StateRevoked:
		w.and("revoked = ?", true)
		return w
	}
	switch q.State {
	case fleet.StateSuspect:
		w.and("suspect = 1 AND +revoked = 0") // from the partial index
		return w
	case fleet.StateUpdating, fleet.StateWaiting, fleet.StateStuck, fleet.StateFailed:
		// In words that no index is chosen by: these are found by their phase.
		w.and("+revoked = 0")
	default:
		w.and("revoked = ?", false)
	}
	switch q.State {
	case fleet.StateOnline:
		w.and("online = ?", true)
	case fleet.StateOffline:
		w.and("online = ?", false)
	case fleet.StateAway:
		since := millis(q.Now.Add(-fleet.AwayAfter))
		w.and("online = ? AND last_seen < ? AND enrolled_at < ?", false, since, since)
	case fleet.StateUpdating:
		w.and("phase IN " + updating)
	case fleet.StateWaiting:
		w.and("phase = ?", string(protocol.PhaseWaiting))
	case fleet.StateStuck:
		w.and("phase IN "+moving+" AND last_seen < ?", millis(q.Now.Add(-fleet.StuckAfter)))
	case fleet.StateFailed:
		w.and("id IN (SELECT f.id FROM devices f WHERE f.phase IN ('failed', 'rolled_back') UNION ALL "+badDevices+")", millis(q.Now.Add(-fleet.FailedWithin)))
	case fleet.StateUnprotected:
		w.and("phase <> '' AND protected = 0")
	case fleet.StateUnreleased:
		w.and("version <> '' AND NOT " + released)
	default:
		w.and("1 = 0")
	}
	return w
}

// pageQuery finds the ids of a page, from an index that holds everything a query asks for. PostgreSQL knows what there is how
// much of, and chooses; it is not advised.
func pageQuery(q fleet.DeviceQuery, advised bool) (text string, args []any) {
	w := selecting(q)
	id := "id"
	if advised && !q.Plain() {
		// No column, so that the ids are not walked in order with a look at every row: the index with the facts is read
		// instead, and the best of it kept.
		id = "id || ''"
	}
	columns, first := []string{id}, any(nil)
	switch q.Sort {
	case fleet.SortSeen:
		columns = []string{"last_seen", id}
		if q.After != nil {
			first = millis(q.After.Seen)
		}
	case fleet.SortVersion:
		columns = []string{"version", id}
		if q.After != nil {
			first = q.After.Version
		}
	}
	direction, than := "", ">"
	if q.Desc != q.Back {
		direction, than = " DESC", "<"
	}
	if q.After != nil {
		if len(columns) == 2 {
			w.and("("+columns[0]+", "+columns[1]+") "+than+" (?, ?)", first, q.After.ID)
		} else {
			w.and(columns[0]+" "+than+" ?", q.After.ID)
		}
	}
	text = `SELECT id FROM devices` + w.String() + ` ORDER BY ` + strings.Join(columns, direction+", ") + direction + ` LIMIT ` + w.arg(int64(q.Limit))
	return text, w.args
}

// DevicePage reads only the rows of the page.
func (t *sqlTx) DevicePage(q fleet.DeviceQuery) ([]fleet.Device, error) {
	text, args := pageQuery(q, t.advised)
	ids, err := manyOf(t, func(s scanner) (id string, err error) { return id, s.Scan(&id) }, text, args...)
	if err != nil {
		return nil, err
	}
	if q.Back {
		slices.Reverse(ids)
	}
	page := make([]fleet.Device, 0, len(ids))
	for _, id := range ids {
		d, err := t.Device(id)
		if err != nil {
			return nil, err
		}
		page = append(page, d)
	}
	return page, nil
}

func (t *sqlTx) DeviceCount(q fleet.DeviceQuery) (int, error) {
	w := selecting(q)
	return oneOf(t, scanCount, `SELECT COUNT(*) FROM devices`+w.String(), w.args...)
}

func (t *sqlTx) DeviceTallies(now time.Time) ([]fleet.DeviceTally, error) {
	w := &where{}
	text := `SELECT project, chip, version, sha256, phase, reason, COUNT(*), SUM(online),
 SUM(CASE WHEN phase IN ` + moving + ` AND last_seen < ` + w.arg(millis(now.Add(-fleet.StuckAfter))) + ` THEN 1 ELSE 0 END),
 SUM(CASE WHEN phase <> '' AND protected = 0 THEN 1 ELSE 0 END),
 SUM(CASE WHEN online = ` + w.arg(false) + ` AND last_seen < ` + w.arg(millis(now.Add(-fleet.AwayAfter))) +
		` AND enrolled_at < ` + w.arg(millis(now.Add(-fleet.AwayAfter))) + ` THEN 1 ELSE 0 END)
FROM devices WHERE revoked = ` + w.arg(false) + ` GROUP BY project, chip, version, sha256, phase, reason
ORDER BY project, chip, version, sha256, phase, reason`
	list, err := manyOf(t, func(s scanner) (d fleet.DeviceTally, err error) {
		err = s.Scan(&d.Project, &d.Chip, &d.Version, &d.SHA256, &d.Phase, &d.Reason, &d.Count, &d.Online, &d.Stuck, &d.Unprotected, &d.Away)
		return d, err
	}, text, w.args...)
	if err != nil {
		return nil, err
	}
	releases, err := t.Releases()
	if err != nil {
		return nil, err
	}
	return markReleased(list, releases), nil
}

// markReleased says of which images there is a release.
func markReleased(list []fleet.DeviceTally, releases []fleet.Release) []fleet.DeviceTally {
	known := make(map[[3]string]bool, 2*len(releases))
	for _, r := range releases {
		known[[3]string{r.SHA256}] = true
		known[[3]string{r.Project, r.Chip, r.Version}] = true
	}
	for i, d := range list {
		key := [3]string{d.SHA256}
		if d.SHA256 == "" {
			key = [3]string{d.Project, d.Chip, d.Version}
		}
		list[i].Released = known[key]
	}
	return list
}

func (t *sqlTx) OpenTallies() ([]fleet.AttemptTally, error) {
	return manyOf(t, func(s scanner) (a fleet.AttemptTally, err error) {
		err = s.Scan(&a.Action, &a.Version, &a.Phase, &a.Count)
		return a, err
	}, `SELECT action, version, phase, COUNT(*) FROM attempts WHERE state = 'open' GROUP BY action, version, phase ORDER BY action, version, phase`)
}

func (t *sqlTx) NewestOpen(limit int) ([]fleet.Attempt, error) {
	return manyOf(t, scanAttempt, `SELECT `+attemptColumns+` FROM attempts WHERE state = 'open' ORDER BY created_at DESC, id DESC LIMIT $1`, int64(limit))
}

func (t *sqlTx) NewestFailed(since time.Time, limit int) ([]fleet.Attempt, error) {
	return manyOf(t, scanAttempt, `SELECT `+attemptColumns+` FROM attempts WHERE state IN ('failed', 'rolled_back') AND ended_at >= $1
 ORDER BY ended_at DESC, id DESC LIMIT $2`, millis(since), int64(limit))
}

func (t *sqlTx) FailureTallies(since time.Time) ([]fleet.FailureTally, error) {
	return manyOf(t, func(s scanner) (f fleet.FailureTally, err error) {
		err = s.Scan(&f.Action, &f.Version, &f.SHA256, &f.State, &f.Reason, &f.Count)
		return f, err
	}, `SELECT action, version, sha256, state, reason, COUNT(*) FROM attempts WHERE state IN ('failed', 'rolled_back') AND ended_at >= $1
 GROUP BY action, version, sha256, state, reason ORDER BY COUNT(*) DESC, action, version, sha256, state, reason`, millis(since))
}

func (t *sqlTx) ReleaseTally(sha256 string) (map[fleet.AttemptState]int, error) {
	type line struct {
		state fleet.AttemptState
		n     int
	}
	lines, err := manyOf(t, func(s scanner) (l line, err error) { return l, s.Scan(&l.state, &l.n) },
		`SELECT state, COUNT(*) FROM attempts WHERE sha256 = $1 GROUP BY state ORDER BY state`, sha256)
	tally := make(map[fleet.AttemptState]int, len(lines))
	for _, l := range lines {
		tally[l.state] = l.n
	}
	return tally, err
}
