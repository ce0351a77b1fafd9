package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
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

// sentence makes one line of a message, without what libraries say about themselves.
func sentence(err error) string {
	text := err.Error()
	if op, ok := errors.AsType[*net.OpError](err); ok {
		// The address is in the message already, the system call helps nobody.
		why := op.Err.Error()
		if dns, ok := errors.AsType[*net.DNSError](op.Err); ok {
			why = fmt.Sprintf("no address for the name %q: %s", dns.Name, dns.Err)
		} else if call, ok := errors.AsType[*os.SyscallError](op.Err); ok {
			why = call.Err.Error()
		}
		text = strings.Replace(text, op.Error(), why, 1)
	}
	for _, noise := range []string{"network Error : ", "tls: failed to verify certificate: ", "x509: "} {
		text = strings.Replace(text, noise, "", 1)
	}
	return strings.Join(strings.Fields(text), " ")
}

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
		RunE:          showHelp,
	}
	root.SetIn(s.in)
	root.SetOut(s.out)
	root.SetErr(s.err)
	root.CompletionOptions.HiddenDefaultCmd = false
	root.AddGroup(groups()...)
	root.SetHelpCommandGroupID("tool")
	root.SetCompletionCommandGroupID("tool")
	root.AddCommand(commands()...)
	completions(root)
	// Before usageErrors, so that what cobra adds by itself answers wrong use like the rest.
	root.InitDefaultHelpCmd()
	if help, _, err := root.Find([]string{"help"}); err == nil {
		help.Args = knownTopic
		help.Short = "help about any command"
	}
	root.InitDefaultCompletionCmd()
	if completion, _, err := root.Find([]string{"completion"}); err == nil {
		completion.Short = "make the completion script of a shell"
	}
	usageErrors(root)
	return root
}

// knownTopic lets only names of commands through to help.
func knownTopic(help *cobra.Command, args []string) error {
	if _, rest, err := help.Root().Find(args); err != nil || len(rest) > 0 {
		return fmt.Errorf("no help on %q", strings.Join(args, " "))
	}
	return nil
}

// usageErrors makes every command answer a wrong flag, argument or sub-command with exit code 2.
func usageErrors(cmd *cobra.Command) {
	cmd.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return &fault{code: exitUsage, err: flagError(err), hint: "see '" + c.CommandPath() + " --help'"}
	})
	cmd.SuggestionsMinimumDistance = 2
	if cmd.HasSubCommands() && !cmd.Runnable() {
		cmd.RunE = showHelp // cobra looks at the arguments of runnable commands only
	}
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
		if err := check(c, args); err != nil && c.Name() == "help" {
			return &fault{code: exitUsage, err: err, hint: "see '" + c.Root().Name() + " --help'"}
		} else if err != nil {
			return usageFault(c, "wrong number of arguments (%d): the use is %s", len(args), strings.TrimSuffix(c.UseLine(), " [flags]"))
		}
		return nil
	}
	for _, sub := range cmd.Commands() {
		usageErrors(sub)
	}
}

// flagError says a flag's wrong value without the words of package strconv or time.
func flagError(err error) error {
	var value interface{ Unwrap() error }
	where, _, found := strings.Cut(err.Error(), " flag: ")
	if !found || !errors.As(err, &value) {
		return err
	}
	why := value.Unwrap().Error()
	var number *strconv.NumError
	switch {
	case errors.As(err, &number) && errors.Is(err, strconv.ErrRange):
		why = "out of range"
	case errors.As(err, &number) && number.Func == "ParseBool":
		why = "neither true nor false"
	case errors.As(err, &number):
		why = "not a number"
	case strings.HasPrefix(why, "time: "):
		why = "not a duration such as 90s, 5m or 1h30m"
	}
	return fmt.Errorf("%s: %s", where, why)
}

// group makes a command that only holds others.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, DisableFlagsInUseLine: true, RunE: showHelp}
	cmd.AddCommand(subs...)
	return cmd
}

func showHelp(c *cobra.Command, _ []string) error { return c.Help() }

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
