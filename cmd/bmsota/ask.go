package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// terminal is where a person can be asked; nil when standard input is none, as in CI.
func terminal(cmd *cobra.Command) *os.File {
	f, ok := cmd.InOrStdin().(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return nil
	}
	return f
}

// asker asks a person for a secret, which is not shown while typed. nil when nobody is there.
func asker(ctx context.Context, cmd *cobra.Command) func(prompt string) (string, error) {
	f := terminal(cmd)
	if f == nil {
		return nil
	}
	return func(prompt string) (string, error) {
		fmt.Fprint(cmd.ErrOrStderr(), prompt)
		defer fmt.Fprintln(cmd.ErrOrStderr())
		old, err := term.GetState(int(f.Fd()))
		if err != nil {
			return "", fmt.Errorf("terminal: %w", err)
		}
		answer := make(chan []byte, 1)
		err = untilDone(ctx, func() error {
			b, err := term.ReadPassword(int(f.Fd()))
			answer <- b
			return err
		})
		if ctx.Err() != nil {
			// The terminal must show again what is typed.
			return "", errors.Join(ctx.Err(), term.Restore(int(f.Fd()), old))
		}
		return string(<-answer), err
	}
}

// untilDone waits for read, or for the end of ctx: a read of the keyboard cannot be interrupted, so it is left behind, and
// ends with the process.
func untilDone(ctx context.Context, read func() error) error {
	done := make(chan error, 1)
	go func() { done <- read() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// question asks a person for a line; an empty answer means what is proposed.
func question(cmd *cobra.Command, lines *bufio.Reader, text, proposed string) (string, error) {
	if proposed != "" {
		text += " [" + proposed + "]"
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s: ", text)
	answer := make(chan string, 1)
	err := untilDone(cmd.Context(), func() error {
		line, err := lines.ReadString('\n')
		answer <- line
		if err == io.EOF && line != "" {
			return nil
		}
		return err
	})
	if err != nil {
		return "", failure("", "no answer: %w", err)
	}
	if line := strings.TrimSpace(<-answer); line != "" {
		return line, nil
	}
	return proposed, nil
}
