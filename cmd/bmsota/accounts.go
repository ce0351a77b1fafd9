package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"bmsota/api"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

const rolesHelp = "viewer sees everything; operator also publishes, commands and enrolls; admin also decides who else may"

func newAccountsCmd() *cobra.Command {
	return group("accounts", "people who sign in to the dashboard (admin)", newAccountsListCmd(), newAccountsAddCmd(), newAccountsPasswordCmd(), newAccountsRemoveCmd())
}

func newAccountsListCmd() *cobra.Command {
	return newListCmd("list accounts", "no accounts yet; see 'bmsota accounts add'", "NAME\tROLE\tMADE\tBY\tPASSWORD SET",
		(*api.Client).Accounts, func(a api.Account) string {
			return fmt.Sprintf("%s\t%s\t%s\t%s\t%s", a.Name, a.Role, ago(a.CreatedAt), a.CreatedBy, ago(a.PasswordAt))
		})
}

func newAccountsAddCmd() *cobra.Command {
	var a access
	var role, file string
	var noPassword bool
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "make an account; the password is asked for",
		Long:  "Makes an account for the dashboard. Roles: " + rolesHelp + ".",
		Example: `  bmsota accounts add anna --role admin
  bmsota accounts add wall-display --role viewer --password-file - < password.txt`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.client(cmd)
			if err != nil {
				return err
			}
			in := api.AddAccountRequest{Name: args[0], Role: role, NoPassword: noPassword}
			if !noPassword {
				if in.Password, err = newPassword(cmd, file); err != nil {
					return err
				}
			}
			if err := client.AddAccount(cmd.Context(), in); err != nil {
				return serverFault(err)
			}
			return printf(cmd, "added: %s, %s\n", args[0], role)
		},
	}
	a.serverFlags(cmd)
	cmd.Flags().StringVar(&role, "role", "viewer", "viewer, operator or admin")
	cmd.Flags().StringVar(&file, "password-file", "", "file with the password, - for standard input")
	cmd.Flags().BoolVar(&noPassword, "no-password", false, "no password opens it: for somebody who signs in by a provider (oidc in the server's configuration)")
	cmd.MarkFlagsMutuallyExclusive("password-file", "no-password")
	return cmd
}

func newAccountsPasswordCmd() *cobra.Command {
	var a access
	var file string
	cmd := &cobra.Command{
		Use:   "password NAME",
		Short: "give an account a new password and end its sessions",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.client(cmd)
			if err != nil {
				return err
			}
			password, err := newPassword(cmd, file)
			if err != nil {
				return err
			}
			if err := client.SetPassword(cmd.Context(), args[0], password); err != nil {
				return serverFault(notFoundHint(err, "see 'bmsota accounts list'"))
			}
			return printf(cmd, "new password set, and the sessions of %s have ended\n", args[0])
		},
	}
	a.serverFlags(cmd)
	cmd.Flags().StringVar(&file, "password-file", "", "file with the password, - for standard input")
	return cmd
}

func newAccountsRemoveCmd() *cobra.Command {
	return newRemoveCmd("account and end its sessions", "see 'bmsota accounts list'", (*api.Client).RemoveAccount)
}

// newPassword reads a password from a file, or asks for it twice.
func newPassword(cmd *cobra.Command, file string) (string, error) {
	if file != "" {
		b, err := passwordInput.read(cmd, file)
		return strings.TrimRight(string(b), "\r\n"), err
	}
	in, ok := cmd.InOrStdin().(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return "", &fault{code: exitUsage, err: errors.New("no terminal to ask for the password"), hint: "give --password-file FILE, or - for standard input"}
	}
	var typed [2][]byte
	for i, question := range []string{"Password: ", "Again: "} {
		fmt.Fprint(cmd.ErrOrStderr(), question)
		var err error
		typed[i], err = term.ReadPassword(int(in.Fd()))
		fmt.Fprintln(cmd.ErrOrStderr())
		if err != nil {
			return "", failure("give --password-file", "read the password: %w", err)
		}
	}
	if !bytes.Equal(typed[0], typed[1]) {
		return "", usagef("the two passwords differ")
	}
	return string(typed[0]), nil
}

func newTokensCmd() *cobra.Command {
	return group("tokens", "tokens by which programs log in (admin)", newTokensListCmd(), newTokensAddCmd(), newTokensRemoveCmd())
}

func newTokensListCmd() *cobra.Command {
	return newListCmd("list tokens", "no tokens", "NAME\tROLE\tMADE\tENDS", (*api.Client).Tokens, func(t api.Token) string {
		ends := "never"
		if !t.ExpiresAt.IsZero() {
			ends = t.ExpiresAt.Format(time.RFC3339)
		}
		return fmt.Sprintf("%s\t%s\t%s\t%s", t.Name, t.Role, ago(t.CreatedAt), ends)
	})
}

func newTokensAddCmd() *cobra.Command {
	var a access
	var role, expires string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "make a token and print it, this once",
		Long:  "Makes a token for BMSOTA_TOKEN, for the API or for Prometheus. Roles: " + rolesHelp + ".",
		Example: `  bmsota tokens add ci --role operator --expires 90d
  bmsota tokens add prometheus`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := api.AddTokenRequest{Name: args[0], Role: role}
			if expires != "" {
				d, err := parseDays(expires)
				if err != nil {
					return usageFault(cmd, "--expires: %w", err)
				}
				in.ExpiresAt = time.Now().Add(d).UTC().Truncate(time.Second)
			}
			client, err := a.client(cmd)
			if err != nil {
				return err
			}
			out, err := client.AddToken(cmd.Context(), in)
			if err != nil {
				return serverFault(err)
			}
			if asJSON {
				return printJSON(cmd, out)
			}
			return printf(cmd, "%s\n", out.Token)
		},
	}
	a.serverFlags(cmd)
	cmd.Flags().StringVar(&role, "role", "viewer", "viewer, operator or admin")
	cmd.Flags().StringVar(&expires, "expires", "", "how long it is good, such as 90d or 12h; without it until it is removed")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// parseDays reads 90d, or a duration such as 12h.
func parseDays(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil && n > 0 {
			return time.Duration(n) * 24 * time.Hour, nil
		}
	} else if d, err := time.ParseDuration(s); err == nil && d > 0 {
		return d, nil
	}
	return 0, fmt.Errorf("%q is not a time such as 12h or 90d", s)
}

func newTokensRemoveCmd() *cobra.Command {
	return newRemoveCmd("token; it stops working at once", "see 'bmsota tokens list'", (*api.Client).RemoveToken)
}
