package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"time"

	"bmsota/bench"
	"bmsota/server"

	"github.com/spf13/cobra"
)

// Bounds of a run, so that no typing error keeps a machine busy for a day.
const (
	maxBenchRounds  = 101
	maxBenchTurn    = time.Minute
	maxBenchClients = 1000
	maxBenchCount   = 100_000
)

func newBenchCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "measure this server on this machine, beside the programs it could be replaced with",
		Long: `Starts this program's own server with a fresh data folder, and beside it the peer that is named in the table,
where it is installed (nginx, Mosquitto, PostgreSQL): on loopback, one load for both, in rounds that alternate. A figure is the
median of what ours took to what the peer took in each round, in processor time unless it says otherwise, so that
a busy machine bends it little. Nothing is left behind. The exit code is 0 whether a goal is met or not.`,
		Example: `  bmsota bench all
  bmsota bench https --rounds 9 --duration 5s
  bmsota bench https --only version.json --json
  bmsota bench mqtt --only memory --count 1000
  bmsota bench store --only PostgreSQL
  bmsota bench ingest --database start`,
		DisableFlagsInUseLine: true,
		RunE:                  showHelp,
	}
	cmd.AddCommand(newBenchSuiteCmd("all", "everything below, one after the other"))
	for _, name := range bench.Names() {
		cmd.AddCommand(newBenchSuiteCmd(name, bench.About(name), name))
	}
	cmd.AddCommand(&cobra.Command{Use: "bare-server", Hidden: true, Args: cobra.ExactArgs(4), RunE: func(cmd *cobra.Command, args []string) error {
		return bench.Bare(cmd.Context(), args[0], args[1], args[2], args[3])
	}})
	return cmd
}

func newBenchSuiteCmd(use, short string, suites ...string) *cobra.Command {
	var o bench.Options
	var asJSON bool
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			switch {
			case o.Rounds < 1 || o.Rounds > maxBenchRounds:
				return usageFault(cmd, "--rounds of %d is not within 1 to %d", o.Rounds, maxBenchRounds)
			case o.Duration < 10*time.Millisecond || o.Duration > maxBenchTurn:
				return usageFault(cmd, "--duration of %s is not within 10ms to %s", o.Duration, plainDuration(maxBenchTurn))
			case o.Clients < 1 || o.Clients > maxBenchClients:
				return usageFault(cmd, "--clients of %d is not within 1 to %d", o.Clients, maxBenchClients)
			case o.Count < 0 || o.Count > maxBenchCount:
				return usageFault(cmd, "--count of %d is not within 0 to %d", o.Count, maxBenchCount)
			}
			if o.Binary == "" {
				if o.Binary, err = os.Executable(); err != nil {
					return failure("give it with --binary", "find this program's own file: %w", err)
				}
			}
			o.Say = func(format string, args ...any) { fmt.Fprintf(cmd.ErrOrStderr(), format+"\n", args...) }
			o.SQLiteRows, o.PostgresRows = sqliteRows, postgresRows
			report, err := bench.Run(cmd.Context(), o, suites...)
			if err != nil && cmd.Context().Err() != nil {
				return failure("", "stopped before it was over; nothing is left running")
			}
			if err != nil {
				return err
			}
			report.Version = readBuildInfo().Version
			if asJSON {
				return printJSON(cmd, report)
			}
			return showBench(cmd, report)
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.Rounds, "rounds", 5, "rounds of each figure, of which the median counts")
	f.DurationVar(&o.Duration, "duration", 3*time.Second, "how long one turn of a round lasts")
	f.IntVar(&o.Clients, "clients", 50, "clients at once")
	f.IntVar(&o.Count, "count", 0, "sessions or boards, where a figure holds many (default as many as it is meant for)")
	f.StringVar(&o.Only, "only", "", "of the figures, those whose name has this in it")
	f.StringVar(&o.Binary, "binary", "", "the bmsota whose server is measured (default this one)")
	f.StringVar(&o.Database, "database", "", "where ingest has its rows: the postgres:// URL of an empty database, or "+bench.StartDatabase+" for a PostgreSQL that is started for the run (default SQLite)")
	f.StringVar(&o.Other, "beside", "", "another bmsota to stand beside it in place of nginx")
	f.BoolVar(&o.Bare, "bare", false, "measure Go's net/http and crypto/tls alone in place of this server, beside nginx")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// sqliteRows and postgresRows lend the measurement of the store what it measures.
func sqliteRows(ctx context.Context, dir string) (bench.Rows, error) {
	p, err := server.SQLiteBeside(ctx, dir)
	return besides(p, err)
}

func postgresRows(ctx context.Context, ours, bare string) (bench.Rows, error) {
	p, err := server.PostgresBeside(ctx, ours, bare)
	return besides(p, err)
}

func besides(p *server.Beside, err error) (bench.Rows, error) {
	if err != nil {
		return bench.Rows{}, err
	}
	rows := bench.Rows{Close: p.Close}
	for _, w := range p.List {
		rows.List = append(rows.List, bench.RowWork{Name: w.Name, Peer: w.Peer, Note: w.Note, Ours: w.Ours, Theirs: w.Raw})
	}
	return rows, nil
}

// showBench prints the table, the peers, and what is to be said about single figures.
func showBench(cmd *cobra.Command, r bench.Report) error {
	err := table(cmd, "SUITE\tFIGURE\tOURS\tPEER\tRATIO\tGOAL\tVERDICT", len(r.Figures), func(i int) string {
		f := r.Figures[i]
		peer, ratio, goal := "-", "-", "-"
		if f.Peer != "" {
			peer, ratio = fmt.Sprintf("%s %s", f.Peer, amount(f.Theirs)), fmt.Sprintf("%.2f", f.Ratio)
		}
		if f.Goal != 0 {
			goal = "≤ " + amount(f.Goal)
			if f.AtLeast {
				goal = "≥ " + amount(f.Goal)
			}
			if f.Own {
				goal += " of ours"
			}
		}
		return fmt.Sprintf("%s\t%s\t%s %s\t%s\t%s\t%s\t%s", f.Suite, f.Name, amount(f.Ours), f.Unit, peer, ratio, goal, f.Verdict)
	})
	if err != nil {
		return err
	}
	for _, f := range r.Figures {
		if f.Note != "" {
			if err := printf(cmd, "%s: %s\n", f.Name, f.Note); err != nil {
				return err
			}
		}
	}
	for _, p := range r.Peers {
		says := p.Version
		if p.Missing {
			says = "not on this machine: its figures are ours alone"
		}
		if err := printf(cmd, "%s: %s\n", p.Name, plain(says)); err != nil {
			return err
		}
	}
	return printf(cmd, "%s on %s, %s; load average %s before, %s after\n", runtime.Version(), runtime.GOARCH, count(r.Processors, "processor"), r.LoadBefore, r.LoadAfter)
}

// amount is a number with as many digits as say something.
func amount(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
