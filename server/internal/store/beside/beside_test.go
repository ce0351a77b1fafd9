package beside

import (
	"database/sql"
	"path/filepath"
	"testing"
)

// TestBothSidesEndWithTheSameRows: else the ratio compares two things.
func TestBothSidesEndWithTheSameRows(t *testing.T) {
	dir := t.TempDir()
	p, err := SQLite(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for range 2 {
		for _, side := range []func() (float64, error){
			func() (float64, error) { return p.List[0].Ours(t.Context()) },
			func() (float64, error) { return p.List[0].Raw(t.Context()) },
		} {
			if _, err := side(); err != nil {
				t.Fatal(err)
			}
		}
	}
	db, err := sql.Open("sqlite", file(filepath.Join(dir, "ours.db"), "query_only(1)"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	if _, err := db.ExecContext(t.Context(), "ATTACH ? AS bare", filepath.Join(dir, "bare.db")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"devices", "attempts", "audit"} {
		var n, others int
		if err := db.QueryRowContext(t.Context(), "SELECT (SELECT COUNT(*) FROM main."+name+"), (SELECT COUNT(*) FROM (SELECT * FROM main."+name+" EXCEPT SELECT * FROM bare."+name+
			")) + (SELECT COUNT(*) FROM (SELECT * FROM bare."+name+" EXCEPT SELECT * FROM main."+name+"))").Scan(&n, &others); err != nil {
			t.Fatal(err)
		}
		if n == 0 || others != 0 {
			t.Errorf("%s: %d rows, of which %d stand on one side alone", name, n, others)
		}
	}
}
