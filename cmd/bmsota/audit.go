package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"bmsota/api"
	"bmsota/audit"
	"bmsota/durable"

	"github.com/spf13/cobra"
)

func newAuditCmd() *cobra.Command {
	return group("audit", "who did what: list, export and verify the server's log", newAuditListCmd(), newAuditExportCmd(), newAuditVerifyCmd())
}

// followEvery is how often a followed log is asked for.
const followEvery = time.Second

func newAuditListCmd() *cobra.Command {
	var a access
	var q api.AuditQuery
	var since, until string
	var asJSON, follow bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "list what was done, newest last",
		Long: `Lists rows of the audit log, the latest of those that are asked for. --what takes an action such as rollout.halt, or a
group such as "rollout."; --since and --until take a day, a time (2026-03-01T08:00:00Z), or how long ago (2h). With --follow
it goes on listing what is done, until it is stopped. With --json each row is a line as it is exported and hashed.`,
		Example: `  bmsota audit list --what login.failed --since 24h
  bmsota audit list --device bms-a1b2c3
  bmsota audit list --rollout r-1a2b3c4d --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			now := time.Now()
			for name, t := range map[string]struct {
				text string
				to   *time.Time
			}{"--since": {since, &q.Since}, "--until": {until, &q.Until}} {
				var err error
				if *t.to, err = readWhen(t.text, now); err != nil {
					return usageFault(cmd, "%s: %w", name, err)
				}
			}
			if q.Limit < 1 || q.Limit > 1000 {
				return usageFault(cmd, "--limit: %d is not within 1 to 1000", q.Limit)
			}
			client, err := a.client(cmd)
			if err != nil {
				return err
			}
			return listAudit(cmd, client, q, follow, asJSON)
		},
	}
	a.serverFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&q.What, "what", "", "this action, or with a dot at its end this group of actions")
	f.StringVar(&q.Who, "who", "", "by this account, token or device, or by the server")
	f.StringVar(&q.Device, "device", "", "about this device")
	f.StringVar(&q.Rollout, "rollout", "", "about this rollout")
	f.StringVar(&since, "since", "", "not before this time")
	f.StringVar(&until, "until", "", "before this time")
	f.IntVar(&q.Limit, "limit", 100, "at most so many rows")
	f.BoolVarP(&follow, "follow", "f", false, "go on with what is done from now on")
	f.BoolVar(&asJSON, "json", false, "print JSON, one row a line")
	return cmd
}

// readWhen reads a time, a day in UTC, or a duration before now. Nothing is no time.
func readWhen(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	for _, form := range []string{time.RFC3339, time.DateOnly} {
		if at, err := time.Parse(form, text); err == nil {
			return at, nil
		}
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return time.Time{}, fmt.Errorf("%q is no day, no time such as 2026-03-01T08:00:00Z, and no duration such as 2h", text)
	}
	return now.Add(-d), nil
}

func listAudit(cmd *cobra.Command, client *api.Client, q api.AuditQuery, follow, asJSON bool) error {
	q.NewestFirst = true
	p, err := client.Audit(cmd.Context(), q)
	if err != nil {
		return serverFault(err)
	}
	rows := make([]audit.Entry, 0, len(p.Entries))
	for i := len(p.Entries) - 1; i >= 0; i-- {
		rows = append(rows, p.Entries[i])
	}
	if len(rows) == 0 && !follow && !asJSON {
		return printf(cmd, "nothing of the kind has been done\n")
	}
	q.NewestFirst = false
	for {
		for _, e := range rows {
			text := auditLine(e)
			if asJSON {
				text = string(e.Line())
			}
			if err := printf(cmd, "%s\n", text); err != nil {
				return err
			}
			q.After = e.Seq
		}
		if !follow {
			return nil
		}
		if len(rows) == 0 || len(rows) < q.Limit {
			select {
			case <-cmd.Context().Done():
				return nil
			case <-time.After(followEvery):
			}
		}
		if p, err = client.Audit(cmd.Context(), q); err != nil {
			if cmd.Context().Err() != nil {
				return nil
			}
			return serverFault(err)
		}
		rows = p.Entries
	}
}

// auditLine is a row for people.
func auditLine(e audit.Entry) string {
	parts := []string{fmt.Sprintf("%6d  %s  %-18s %-10s", e.Seq, e.At.Format(time.RFC3339), e.What, plain(e.Who))}
	for _, p := range [][2]string{{"device", e.Device}, {"rollout", e.Rollout}, {"about", aboutText(e)}} {
		if p[1] != "" && p[1] != e.Who {
			parts = append(parts, p[0]+"="+plain(p[1]))
		}
	}
	for _, d := range e.Details {
		value := d.Value
		if d.Key == "sha256" {
			value = value[:min(12, len(value))]
		}
		if strings.ContainsAny(value, ` "`) {
			value = `"` + strings.ReplaceAll(value, `"`, "'") + `"`
		}
		parts = append(parts, plain(d.Key)+"="+plain(value))
	}
	return strings.Join(parts, "  ")
}

// aboutText is what a row is about, where nothing else of it says so.
func aboutText(e audit.Entry) string {
	switch e.What {
	case audit.AttemptBegin, audit.AttemptEnd:
		return "" // the command and the device
	}
	if len(e.About) == 64 {
		return e.About[:12]
	}
	return e.About
}

func newAuditExportCmd() *cobra.Command {
	var a access
	var out string
	cmd := &cobra.Command{
		Use:   "export",
		Short: "write the whole log as JSON, one row a line",
		Long: `Writes the whole audit log of the server, one row a line, to a file or to standard output. The file is there when all of it
is: check it with 'bmsota audit verify FILE', here or wherever it is kept.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.client(cmd)
			if err != nil {
				return err
			}
			log, err := client.ExportAudit(cmd.Context())
			if err != nil {
				return serverFault(err)
			}
			defer log.Close()
			if out == standardStream {
				if _, err := io.Copy(cmd.OutOrStdout(), log); err != nil {
					return serverFault(err)
				}
				return nil
			}
			staged, err := durable.Stage(out, log, 0o600) // it says who signed in from where
			if err == nil {
				err = staged.Commit()
			}
			switch {
			case errors.Is(err, api.ErrUnreachable), errors.Is(err, api.ErrTimeout):
				return serverFault(err)
			case err != nil:
				return unwritable(out, err)
			}
			return printf(cmd, "wrote %s: check it with 'bmsota audit verify %s'\n", shown(out), shown(out))
		},
	}
	a.serverFlags(cmd)
	cmd.Flags().StringVarP(&out, "out", "o", standardStream, "file to write; - for standard output")
	return cmd
}

// auditVerdict is what verify prints with --json.
type auditVerdict struct {
	Valid  bool      `json:"valid"`
	Rows   int64     `json:"rows"` // that are as they were written, from the first on
	First  time.Time `json:"first,omitzero"`
	Last   time.Time `json:"last,omitzero"`
	Head   string    `json:"head,omitempty"`   // of the last of them
	Pruned int64     `json:"pruned,omitempty"` // rows before the first, which the log says are gone
	Row    int64     `json:"row,omitempty"`    // the first that is not
	Error  string    `json:"error,omitempty"`
}

func newAuditVerifyCmd() *cobra.Command {
	var a access
	var heads []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify [FILE]",
		Short: "check that no row of the log was altered, left out or moved",
		Long: `Checks the hash of every row of the server's audit log, or of an exported file: offline, without a server, - for standard
input. It prints the head, N:HASH. Write it down where the server cannot reach it: given as --head at a later check, it
shows whether the rows up to N are still those of today, and whether the end of the log was cut off. Without one, a log that
was made anew as a whole looks right.

Exit code 3 names the first row that is altered, missing or out of its place.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			chain := &audit.Chain{}
			for _, text := range heads {
				h, err := audit.ParseHead(text)
				if err != nil {
					return usageFault(cmd, "--head: %w", err)
				}
				chain.Expect = append(chain.Expect, h)
			}
			log, what, err := openAudit(cmd, &a, args)
			if err != nil {
				return err
			}
			defer log.Close()
			return judgeAudit(cmd, chain, chain.Verify(log), what, asJSON)
		},
	}
	a.serverFlags(cmd)
	cmd.Flags().StringArrayVar(&heads, "head", nil, "N:HASH of an earlier check; may be given several times")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// openAudit opens a file, standard input, or the server's log.
func openAudit(cmd *cobra.Command, a *access, args []string) (log io.ReadCloser, what string, err error) {
	switch {
	case len(args) == 0:
		client, err := a.client(cmd)
		if err != nil {
			return nil, "", err
		}
		log, err = client.ExportAudit(cmd.Context())
		return log, "the server's log", serverFault(err)
	case args[0] == standardStream:
		return io.NopCloser(cmd.InOrStdin()), "standard input", nil
	}
	kind := inputKind{what: "an exported audit log"}
	f, err := os.Open(args[0])
	if err != nil {
		return nil, "", kind.unreadable(args[0], err)
	}
	return f, shown(args[0]), nil
}

func judgeAudit(cmd *cobra.Command, c *audit.Chain, err error, what string, asJSON bool) error {
	v := auditVerdict{Valid: err == nil, Rows: c.Rows, First: c.First, Last: c.Last, Pruned: c.Pruned.Seq}
	if c.Rows > 0 {
		v.Head = c.Head().String()
	}
	var broken *audit.Broken
	switch {
	case errors.As(err, &broken):
		v.Row, v.Error = broken.Seq, broken.Error()
	case errors.Is(err, api.ErrUnreachable), errors.Is(err, api.ErrTimeout):
		return serverFault(err)
	case err != nil:
		return failure("", "%s: %w", what, cause(err))
	}
	if asJSON {
		if err := printJSON(cmd, v); err != nil {
			return err
		}
	}
	if broken != nil {
		hint := "keep this log and every earlier export: the rows before it are as they were written, what stands behind it proves nothing"
		return refused(errors.New(what+": "+plain(broken.Error())), hint)
	}
	switch {
	case asJSON:
		return nil
	case c.Rows == 0:
		return printf(cmd, "%s holds no rows\n", what)
	}
	if c.Pruned.Seq > 0 {
		what += " from row " + strconv.FormatInt(c.Pruned.Seq+1, 10) + " on, behind what it says was pruned,"
	}
	return printf(cmd, "%s is whole: %s from %s to %s\nhead %s\n", what, count(int(c.Rows), "row"), c.First.Format(time.RFC3339), c.Last.Format(time.RFC3339), v.Head)
}
