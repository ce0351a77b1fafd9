//go:build unix

package store_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"bmsota/audit"
	"bmsota/protocol"
	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"
	"bmsota/server/pgtest"
)

// pgSite is a fleet over a database whose line can be cut, beside a second store that sees what is there.
type pgSite struct {
	t      *testing.T
	dir    string
	wire   *wire
	server *pgtest.Server
	db     *store.Postgres
	beside *store.Postgres
	fleet  *fleet.Fleet

	published, told, rollouts int
	rollout                   fleet.Rollout
}

func newPGSite(t *testing.T) *pgSite {
	t.Helper()
	server, database := newPostgres(t)
	s := &pgSite{t: t, dir: newDir(t), server: server}
	var url string
	s.wire, url = newWire(t, server, database)
	s.db, s.beside = openPostgres(t, url), openPostgres(t, server.URL(database, pgtest.Superuser))
	folder, err := store.OpenFolder(filepath.Join(s.dir, "firmware"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { folder.Close() })
	if s.fleet, err = fleet.New(fleet.Config{Store: s.db, Blobs: folder, Log: slog.New(slog.DiscardHandler)}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.fleet.Run(ctx, nobody{}) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	return s
}

func (s *pgSite) publish() error {
	s.published++
	return publishBy(s.t.Context(), s.fleet, s.dir, fmt.Sprintf("1.0.%d", s.published), 40<<10)
}

func (s *pgSite) tell(id string) error {
	s.told++
	b, err := protocol.Status{BootID: "b", Seq: uint64(s.told), Phase: protocol.PhaseIdle, CurrentVersion: "1.0.0", Project: "bms", Chip: "esp32c3",
		RollbackProtected: true, SlotSize: 1536 << 10}.Append(nil)
	if err != nil {
		return err
	}
	for { // until Run is there
		if err := s.fleet.Fold(s.t.Context(), id, false, b); !errors.Is(err, fleet.ErrStopped) {
			return err
		}
	}
}

func (s *pgSite) create() (err error) {
	s.rollouts++
	s.rollout, err = s.fleet.CreateRollout(s.t.Context(), root, fleet.RolloutRequest{Version: "1.0.1", Key: fmt.Sprint(s.rollouts),
		Policy: fleet.Policy{Selector: fleet.Selector{IDs: []string{"d1", "d2"}}, Waves: []fleet.Wave{{Count: 1}}}})
	return err
}

// log is the audit log as another server reads it, verified, without what the fleet does by itself.
func (s *pgSite) log() (list []audit.Entry) {
	s.t.Helper()
	head := audit.Genesis
	for {
		var page []audit.Entry
		if err := s.beside.View(s.t.Context(), func(tx fleet.Tx) (err error) {
			page, err = tx.AuditPage(fleet.AuditQuery{After: head.Seq, Limit: 1000})
			return err
		}); err != nil {
			s.t.Fatal(err)
		}
		if len(page) == 0 {
			return list
		}
		for _, e := range page {
			if e.Seq != head.Seq+1 || e.Prev != head.Hash || e.Hash != e.Sum() {
				s.t.Fatalf("row %d of the audit log does not follow", e.Seq)
			}
			head = e.Head()
			if e.Who == root.Name {
				list = append(list, e)
			}
		}
	}
}

// logged is how many rows of a kind the audit log has.
func (s *pgSite) logged(what audit.Action) func() int {
	return func() (n int) {
		for _, e := range s.log() {
			if e.What == what {
				n++
			}
		}
		return n
	}
}

// heard is the number of the last status of a device.
func (s *pgSite) heard(id string) func() int {
	return func() (n int) {
		if err := s.beside.View(s.t.Context(), func(tx fleet.Tx) error {
			d, err := tx.Device(id)
			n = int(d.Seq)
			return err
		}); err != nil {
			s.t.Fatal(err)
		}
		return n
	}
}

// cases are the requests whose line is cut; each is a new request at every call.
func (s *pgSite) cases() []pgCase {
	return []pgCase{
		{"publish", s.publish, s.logged("release.publish")},
		{"start", func() error {
			_, err := s.fleet.Order(s.t.Context(), root, "d1", false, []byte(`{"action":"update","version":"1.0.1"}`))
			return err
		}, s.logged("attempt.begin")},
		{"rollout create", s.create, s.logged("rollout.create")},
		{"halt and go on", func() error {
			_, err := s.fleet.Pause(s.t.Context(), root, s.rollout.ID)
			if err == nil {
				s.wire.cut()
				_, err = s.fleet.Resume(s.t.Context(), root, s.rollout.ID)
			}
			return err
		}, s.logged("rollout.pause")},
		{"fold", func() error { return s.tell("d2") }, s.heard("d2")},
	}
}

type pgCase struct {
	name string
	do   func() error
	done func() int // how often it is there; one more after each
}

// TestConnectionCutAtEveryMessage cuts the line to PostgreSQL at every message of every kind of request in turn, behind each
// that goes to the server and before each answer, that to COMMIT among them. What is answered with yes is there once; what
// fails has left nothing, and works when it is asked again. BMSOTA_CRASH=long takes every message, else every COMMIT, all that
// is copied, and every fifth of the rest. The two members of a rollout are copied.
func TestConnectionCutAtEveryMessage(t *testing.T) {
	wrong := cutEverywhere(t, newPGSite(t), t.Logf)
	for _, text := range wrong {
		t.Error(text)
	}
}

// TestOperationNumbersAreNeeded: without looking for the number, a COMMIT whose answer was lost is done twice.
func TestOperationNumbersAreNeeded(t *testing.T) {
	s := newPGSite(t)
	s.db.Forgetful()
	if wrong := cutEverywhere(t, s, func(string, ...any) {}); len(wrong) == 0 {
		t.Error("nothing went wrong: the sweep is blind")
	} else {
		t.Logf("%d wrong, as it should be; the first: %s", len(wrong), wrong[0])
	}
}

func cutEverywhere(t *testing.T, s *pgSite, logf func(string, ...any)) (wrong []string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.publish())
	must(s.publish())
	must(s.tell("d1"))
	must(s.tell("d2"))
	must(s.create())
	step := 5
	if os.Getenv(crashLength) == "long" {
		step = 1
	}
	for _, c := range s.cases() {
		for _, only := range []string{"commit", copyData, ""} {
			cuts, failed := 0, 0
			for n := 0; ; n++ {
				before := c.done()
				s.wire.arm(n, only)
				err := c.do()
				at := s.wire.cut()
				got := c.done() - before
				what := fmt.Sprintf("%s, cut at message %d (%s)", c.name, n, at)
				switch {
				case err == nil && got != 1:
					wrong = append(wrong, fmt.Sprintf("%s: answered with yes, and it is there %d times", what, got))
				case err != nil && got != 0:
					wrong = append(wrong, fmt.Sprintf("%s: refused with %v, and it is there %d times", what, err, got))
				case err != nil && !errors.Is(err, fleet.ErrStorage):
					wrong = append(wrong, fmt.Sprintf("%s: %v, want ErrStorage", what, err))
				}
				if err != nil {
					failed++
					if err := c.do(); err != nil {
						wrong = append(wrong, fmt.Sprintf("%s, and asked again: %v", what, err))
					}
				}
				if at == "" {
					break
				}
				cuts++
				if only == "" {
					n += step - 1
				}
			}
			logf("%s: %d cuts, %d refused; statement %q", c.name, cuts, failed, only)
			if only == copyData && cuts == 0 && c.name == "rollout create" {
				wrong = append(wrong, c.name+": nothing was copied: no line was cut at rows")
			}
		}
	}
	return wrong
}
