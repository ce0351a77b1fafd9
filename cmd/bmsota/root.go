package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// Exit codes. They are an interface: scripts and idf_ext.py branch on them.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitRefused     = 3
	exitDevice      = 4
	exitUnreachable = 5
)

// fault is an error with what to do about it and the exit code it means.
type fault struct {
	code int
	err  error
	hint string // one sentence, may be empty
}

func (f *fault) Error() string { return f.err.Error() }
func (f *fault) Unwrap() error { return f.err }

func usagef(format string, args ...any) error {
	return &fault{code: exitUsage, err: fmt.Errorf(format, args...)}
}

func refused(err error, hint string) error { return &fault{code: exitRefused, err: err, hint: hint} }

// run executes one command line and returns its exit code. Faults go to stderr as one sentence, and a hint where
// there is one.
func run(ctx context.Context, s streams, args []string) int {
	root := newRoot(s)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitDone
	}
	var f *fault
	if !errors.As(err, &f) {
		f = &fault{code: exitFailed, err: err}
	}
	fmt.Fprintf(s.err, "%s: %s\n", cmd.CommandPath(), sentence(err))
	if f.hint != "" {
		fmt.Fprintf(s.err, "%s: hint: %s\n", cmd.CommandPath(), f.hint)
	}
	return f.code
}

// sentence keeps a message to one line, whatever a library put in it.
func sentence(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

func newRoot(s streams) *cobra.Command {
	root := &cobra.Command{
		Use:   "bmsota",
		Short: "over-the-air updates for ESP32 battery monitors: server, operator's tool and virtual boards",
		Long: `bmsota updates the firmware of ESP32 battery monitors over the air.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused (verification, policy),
4 device failed or rolled back, 5 unreachable or timed out.`,
		Example: `  bmsota demo                      the five-minute tour
  bmsota serve                     the server
  bmsota publish build/app.bin     offer an image to the fleet
  bmsota update --all              tell every monitor to take it
  bmsota monitor                   watch them do it`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(s.in)
	root.SetOut(s.out)
	root.SetErr(s.err)
	root.CompletionOptions.HiddenDefaultCmd = false
	root.AddCommand(commands()...)
	usageErrors(root)
	return root
}

// usageErrors makes every command answer a wrong flag, argument or sub-command with exit code 2.
func usageErrors(cmd *cobra.Command) {
	cmd.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return &fault{code: exitUsage, err: err, hint: "see '" + c.CommandPath() + " --help'"}
	})
	check := cmd.Args
	if check == nil {
		check = cobra.ArbitraryArgs
	}
	cmd.Args = func(c *cobra.Command, args []string) error {
		if c.HasSubCommands() && len(args) > 0 {
			hint := "see '" + c.CommandPath() + " --help'"
			if near := c.SuggestionsFor(args[0]); len(near) > 0 {
				hint = "did you mean '" + c.CommandPath() + " " + near[0] + "'?"
			}
			return &fault{code: exitUsage, err: fmt.Errorf("unknown command %q", args[0]), hint: hint}
		}
		if err := check(c, args); err != nil {
			return &fault{code: exitUsage, err: err, hint: "see '" + c.CommandPath() + " --help'"}
		}
		return nil
	}
	for _, sub := range cmd.Commands() {
		usageErrors(sub)
	}
}

// group makes a command that only holds others.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	cmd.AddCommand(subs...)
	return cmd
}

// printJSON writes v indented. Lists that are empty print as [], not null: the caller passes a non-nil slice.
func printJSON(cmd *cobra.Command, v any) error {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("encode JSON: %w", err)
	}
	if _, err := cmd.OutOrStdout().Write(buf.Bytes()); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}
