package fleet_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"bmsota/audit"
	"bmsota/protocol"
	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"
)

// readLog is the whole log of a store.
func readLog(t testing.TB, s fleet.Store) []audit.Entry {
	t.Helper()
	var rows []audit.Entry
	err := s.View(context.WithoutCancel(t.Context()), func(tx fleet.Tx) (err error) {
		rows, err = tx.AuditPage(fleet.AuditQuery{Limit: 1 << 20})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

// auditLog is the whole log of a store, verified.
func auditLog(t testing.TB, s fleet.Store) []audit.Entry {
	t.Helper()
	rows := readLog(t, s)
	var c audit.Chain
	var b bytes.Buffer
	for _, e := range rows {
		b.Write(append(e.Line(), '\n'))
		if !slices.Contains(audit.Actions(), e.What) || e.Who == "" {
			t.Errorf("a row of no known action, or by nobody: %s", e.Line())
		}
	}
	if err := c.Verify(&b); err != nil {
		t.Errorf("the log is broken: %v", err)
	}
	return rows
}

// last are the latest rows of an action.
func last(t testing.TB, s fleet.Store, what audit.Action) audit.Entry {
	t.Helper()
	for _, e := range slices.Backward(auditLog(t, s)) {
		if e.What == what {
			return e
		}
	}
	t.Errorf("no row says %s", what)
	return audit.Entry{}
}

// fixture is a store with a row of everything, written past the log.
func fixture(t *testing.T) (fleet.Store, fleet.Release, fleet.Rollout) {
	t.Helper()
	s := store.NewMemory()
	r := fleet.Release{SHA256: "aa", Project: "bms", Chip: "esp32", Version: "1.0.0"}
	ro := fleet.Rollout{ID: "r-1", State: fleet.RolloutRunning, SHA256: "aa", Limits: []int{1, 2}}
	err := s.Update(t.Context(), func(tx fleet.Tx) error {
		other := r
		other.SHA256, other.Version = "aax", "2.0.0"
		return errors.Join(tx.PutRelease(r), tx.PutRelease(other), tx.PutDevice(fleet.Device{ID: "d1"}), tx.PutDevice(fleet.Device{ID: "d1x"}), tx.PutRollout(ro),
			tx.PutOperator(fleet.Operator{Name: "tool", TokenSHA256: "01"}), tx.PutAccount(fleet.Account{Name: "anna", Password: "p", Role: "admin"}),
			tx.PutAttempt(fleet.Attempt{ID: "c/d1", DeviceID: "d1", State: fleet.AttemptOpen}), tx.PutQuarantine(fleet.Quarantine{SHA256: "aa"}),
			tx.PutChannel(fleet.Channel{Project: "bms", Chip: "esp32", Name: "stable", SHA256: "aa"}),
			tx.PutKey(fleet.ProjectKey{Project: "bms", Kind: fleet.KeyRelease, Key: "pem"}), tx.PutSession(fleet.Session{SHA256: "s", Account: "anna"}),
			tx.PutWebhook(fleet.Webhook{ID: "w-1", URL: "https://a.test/", Events: []fleet.NoticeType{fleet.NoticeTest}, Secret: "x"}))
	})
	if err != nil {
		t.Fatal(err)
	}
	return s, r, ro
}

// everyField changes each field of row in turn, puts it, and asks whether the log has a row of it. silent are those that
// need none, each for a reason that is given.
func everyField[T any](t *testing.T, row func(fleet.Tx) (T, error), put func(fleet.Tx, T) error, silent map[string]string) {
	t.Helper()
	kind := reflect.TypeFor[T]()
	seen := make(map[string]bool)
	for i := range kind.NumField() {
		name := kind.Field(i).Name
		seen[name] = true
		s, _, _ := fixture(t)
		audited := fleet.Audited(s, anna, time.Now)
		err := audited.Update(t.Context(), func(tx fleet.Tx) error {
			v, err := row(tx)
			if err != nil {
				return err
			}
			change(t, reflect.ValueOf(&v).Elem().Field(i))
			return put(tx, v)
		})
		if errors.Is(err, fleet.ErrConflict) {
			if silent[name] == "" {
				t.Errorf("%s.%s cannot be changed, and the test does not know", kind.Name(), name)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%s.%s: %v", kind.Name(), name, err)
		}
		rows := auditLog(t, s)
		switch told := len(rows) > 0; {
		case !told && silent[name] == "":
			t.Errorf("a change of %s.%s has no row in the audit log: tell it in audited.Put%s, or say here why it needs none", kind.Name(), name, kind.Name())
		case told && silent[name] != "":
			t.Errorf("%s.%s is told of, though %s", kind.Name(), name, silent[name])
		case told && (rows[0].Who != anna.Name || rows[0].Role != string(anna.Role)):
			t.Errorf("%s.%s: by %s", kind.Name(), name, rows[0].Line())
		}
	}
	for name := range silent {
		if !seen[name] {
			t.Errorf("%s has no field %s", kind.Name(), name)
		}
	}
}

// change makes v another value.
func change(t *testing.T, v reflect.Value) {
	t.Helper()
	switch x := v.Addr().Interface().(type) {
	case *time.Time:
		*x = x.Add(1000 * time.Hour)
		return
	case *fleet.Labels:
		*x = fleet.Labels{"site": "north"}
		return
	case *protocol.Status:
		x.Message, x.Phase = "x", protocol.PhaseIdle
		return
	case *fleet.Doubts:
		x.List = []fleet.Suspicion{{Kind: fleet.SuspectLogin, Times: 1}}
		return
	case **fleet.Halt:
		*x = &fleet.Halt{Rule: "failed"}
		return
	case *fleet.AttemptState:
		*x = fleet.AttemptFailed
		return
	case *fleet.RolloutState:
		*x = fleet.RolloutPaused
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(v.String() + "x")
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.Int, reflect.Int64:
		v.SetInt(v.Int() + 1)
	case reflect.Uint32, reflect.Uint64:
		v.SetUint(v.Uint() + 1)
	case reflect.Slice:
		v.Set(reflect.Append(v, reflect.Zero(v.Type().Elem())))
	case reflect.Struct:
		change(t, v.Field(0))
	default:
		t.Fatalf("no other value for a %s", v.Type())
	}
}

func silentFor(why string, names ...string) map[string]string {
	m := make(map[string]string)
	for _, n := range names {
		m[n] = why
	}
	return m
}

func with(list ...map[string]string) map[string]string {
	all := make(map[string]string)
	for _, m := range list {
		maps.Copy(all, m)
	}
	return all
}

// A field that somebody adds to a row has to be told of, or to be named here.
func TestEveryChangeOfARowIsToldOrNamedHere(t *testing.T) {
	said := "statuses are not in the log"
	everyField(t, func(tx fleet.Tx) (fleet.Device, error) { return tx.Device("d1") }, fleet.Tx.PutDevice,
		with(silentFor(said, "ID", "Online", "FirstSeen", "LastSeen", "PhaseSince", "Status", "Version", "SHA256", "PreviousVersion", "Boot", "Seq", "OldBoots"),
			silentFor("it is in the certificate, whose fingerprint is said", "CertificateEnds")))
	fixed := "it is said when the attempt begins, and what its device says meanwhile when it ends"
	everyField(t, func(tx fleet.Tx) (fleet.Attempt, error) { return tx.Attempt("c/d1") }, fleet.Tx.PutAttempt,
		silentFor(fixed, "CommandID", "DeviceID", "RolloutID", "Action", "Force", "Version", "SHA256", "CreatedAt", "CreatedBy", "ExpiresAt", "Phase", "Reason", "Message", "UpdatedAt", "EndedAt"))
	everyField(t, func(tx fleet.Tx) (fleet.Release, error) { return tx.Release("aa") }, fleet.Tx.PutRelease,
		silentFor("it is the release, whose version is taken", "SHA256"))
	everyField(t, func(tx fleet.Tx) (fleet.Channel, error) { return tx.Channel("bms", "esp32", "stable") }, fleet.Tx.PutChannel,
		silentFor("the row has its own time and name", "SetAt", "SetBy"))
	everyField(t, func(tx fleet.Tx) (fleet.Rollout, error) { return tx.Rollout("r-1") }, fleet.Tx.PutRollout, silentFor("the store counts it, and holds the row by it", "Revision", "ID"))
	everyField(t, func(tx fleet.Tx) (fleet.Quarantine, error) { return tx.Quarantine("aa") }, fleet.Tx.PutQuarantine,
		silentFor("it comes with the others", "Since", "LiftedBy"))
	everyField(t, func(tx fleet.Tx) (fleet.Operator, error) { return tx.Operator("tool") }, fleet.Tx.PutOperator,
		with(silentFor("a token is one operator's", "Name"), silentFor("it comes with the secret", "CreatedAt")))
	everyField(t, func(tx fleet.Tx) (fleet.Account, error) { return tx.Account("anna") }, fleet.Tx.PutAccount,
		silentFor("it comes with the account or its password", "CreatedAt", "CreatedBy", "PasswordAt"))
	everyField(t, func(tx fleet.Tx) (fleet.Session, error) { return tx.Session("s") }, fleet.Tx.PutSession,
		silentFor("it is the session's use", "Account", "CreatedAt", "SeenAt", "ExpiresAt"))
	everyField(t, func(tx fleet.Tx) (fleet.Webhook, error) { return tx.Webhook("w-1") }, fleet.Tx.PutWebhook,
		with(silentFor("it comes with the webhook", "CreatedAt", "CreatedBy"),
			silentFor("how deliveries go is no act of anybody", "Seq", "Dropped", "SucceededAt", "FailedAt", "Failure", "Failures", "RetryAt")))
	everyField(t, func(tx fleet.Tx) (fleet.ProjectKey, error) {
		keys, err := tx.Keys("bms")
		return keys[0], err
	}, fleet.Tx.PutKey, silentFor("the row has its own", "AddedAt", "AddedBy"))
}

// A way to change rows that is new has to go through the log, or to be named here.
func TestEveryWayToChangeRowsGoesThroughTheLog(t *testing.T) {
	quiet := map[string]string{
		"DeleteSessionsOf":    "they end with what is told: an account, a password, a token",
		"DeleteSessionsUntil": "they have ended by time",
		"PutDelivery":         "what waits to be sent tells of what has its own row",
		"DeleteDelivery":      "likewise",
		"PutLease":            "which server plans changes nothing of what is done",
		"PutPeer":             "that a server is there is no act",
		"DeletePeer":          "likewise",
		"PutChange":           "it tells the other servers of rows that have been told of",
		"DeleteChanges":       "likewise",
		"PutHome":             "which broker has a device is no act",
		"PutOrder":            "how far an order is; that it was given is a row, and so is every attempt",
		"DeleteOrder":         "likewise; what takes its place, or a backup that is restored, is a row",
	}
	declared, updates := map[string]bool{}, []string{}
	files := token.NewFileSet()
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if !strings.HasSuffix(entry.Name(), ".go") || strings.HasSuffix(entry.Name(), "_test.go") {
			continue
		}
		file, err := parser.ParseFile(files, entry.Name(), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok && entry.Name() != "audit.go" {
				if sel, ok := call.Fun.(*ast.SelectorExpr); ok && sel.Sel.Name == "Update" {
					updates = append(updates, files.Position(call.Pos()).String())
				}
			}
			fn, ok := n.(*ast.FuncDecl)
			if !ok || fn.Recv == nil {
				return true
			}
			if star, ok := fn.Recv.List[0].Type.(*ast.StarExpr); ok {
				if of, ok := star.X.(*ast.Ident); ok && of.Name == "audited" { // that of a generic type is no identifier
					declared[fn.Name.Name] = true
				}
			}
			return true
		})
	}
	for _, at := range updates {
		t.Errorf("%s: a change that does not say who acts: use Fleet.update", at)
	}
	kind := reflect.TypeFor[fleet.Tx]()
	for i := range kind.NumMethod() {
		name := kind.Method(i).Name
		if changes := strings.HasPrefix(name, "Put") || strings.HasPrefix(name, "Delete"); changes && !declared[name] && quiet[name] == "" {
			t.Errorf("Tx.%s changes rows past the log: give audited a %s, or say here why it needs no row", name, name)
		}
		delete(quiet, name)
	}
	for name := range quiet {
		t.Errorf("Tx has no %s", name)
	}
}

func TestATransactionThatFailsLeavesNoRowAndNoGap(t *testing.T) {
	s, r, _ := fixture(t)
	audited := fleet.Audited(s, anna, time.Now)
	withdraw := func(after error) error {
		return audited.Update(t.Context(), func(tx fleet.Tx) error {
			r.Withdrawn = !r.Withdrawn
			return errors.Join(tx.PutRelease(r), tx.PutDevice(fleet.Device{ID: "new"}), after)
		})
	}
	for i := range 5 {
		if err := withdraw(errGone); !errors.Is(err, errGone) {
			t.Fatal(err)
		}
		func() {
			defer func() { _ = recover() }()
			_ = audited.Update(t.Context(), func(tx fleet.Tx) error {
				_ = tx.PutDevice(fleet.Device{ID: "panic"})
				panic("in the middle")
			})
		}()
		err := audited.Update(t.Context(), func(tx fleet.Tx) error { // a conflict that is swallowed
			_ = tx.PutAttempt(fleet.Attempt{ID: "x", DeviceID: "nobody", State: fleet.AttemptOpen})
			return nil
		})
		if !errors.Is(err, fleet.ErrConflict) {
			t.Errorf("%v", err)
		}
		if err := audited.Update(t.Context(), func(tx fleet.Tx) error { return tx.PutDevice(fleet.Device{ID: fmt.Sprint("e", i), TokenSHA256: "t"}) }); err != nil {
			t.Fatal(err)
		}
		if rows := auditLog(t, s); len(rows) != i+1 || rows[i].What != audit.DeviceEnroll {
			t.Fatalf("%d rows after %d changes", len(rows), i+1)
		}
	}
}

var errGone = errors.New("gone")
