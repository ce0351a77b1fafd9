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
		type answer struct {
			text []byte
			err  error
		}
		got := make(chan answer, 1)
		go func() {
			text, err := term.ReadPassword(int(f.Fd()))
			got <- answer{text, err}
		}()
		select {
		case a := <-got:
			return string(a.text), a.err
		case <-ctx.Done():
			// The read goes on until the process ends; the terminal must show again what is typed.
			return "", errors.Join(ctx.Err(), term.Restore(int(f.Fd()), old))
		}
	}
}

// question asks a person for a line; an empty answer means what is proposed.
func question(cmd *cobra.Command, lines *bufio.Reader, text, proposed string) (string, error) {
	if proposed != "" {
		text += " [" + proposed + "]"
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s: ", text)
	line, err := lines.ReadString('\n')
	if err != nil && (err != io.EOF || line == "") {
		return "", failure("", "no answer: %w", err)
	}
	if line = strings.TrimSpace(line); line == "" {
		return proposed, nil
	}
	return line, nil
}
