package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"bmsota/api"

	"github.com/spf13/cobra"
)

// newListCmd makes a command that prints what fetch returns: as a table, as JSON, or none where there is nothing.
func newListCmd[T any](short, none, heading string, fetch func(*api.Client, context.Context) ([]T, error), row func(T) string) *cobra.Command {
	var a access
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: short,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.client(cmd)
			if err != nil {
				return err
			}
			rows, err := fetch(client, cmd.Context())
			if err != nil {
				return serverFault(err)
			}
			if asJSON {
				return printJSON(cmd, emptyNotNull(rows))
			}
			if len(rows) == 0 {
				return printf(cmd, "%s\n", none)
			}
			return table(cmd, heading, len(rows), func(i int) string { return row(rows[i]) })
		},
	}
	a.serverFlags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// table prints rows under a heading, in columns.
func table(cmd *cobra.Command, heading string, n int, row func(i int) string) error {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, heading)
	for i := range n {
		fmt.Fprintln(w, row(i))
	}
	if err := w.Flush(); err != nil {
		return failure("", "write table: %w", err)
	}
	return printf(cmd, "%s", trimLines(b.String()))
}

func emptyNotNull[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// ago says how long since t, in the largest unit.
func ago(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	d := time.Since(t)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds ago", max(0, int(d.Seconds())))
	case d < time.Hour:
		return fmt.Sprintf("%dm ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh ago", int(d.Hours()))
	}
	return fmt.Sprintf("%dd ago", int(d.Hours()/24))
}

// newRemoveCmd makes a command that deletes what has a name.
func newRemoveCmd(what, hint string, remove func(*api.Client, context.Context, string) error) *cobra.Command {
	var a access
	cmd := &cobra.Command{
		Use:   "remove NAME",
		Short: "delete the " + what,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.client(cmd)
			if err != nil {
				return err
			}
			if err := remove(client, cmd.Context(), args[0]); err != nil {
				return serverFault(notFoundHint(err, hint))
			}
			return printf(cmd, "removed: %s\n", args[0])
		},
	}
	a.serverFlags(cmd)
	return cmd
}
