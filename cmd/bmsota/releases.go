package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"bmsota/api"

	"github.com/spf13/cobra"
)

func newReleasesCmd() *cobra.Command {
	return group("releases", "list, show and withdraw what is published, lift quarantines", newReleasesListCmd(), newReleasesShowCmd(), newReleasesWithdrawCmd(), newReleasesLiftCmd())
}

func newReleasesListCmd() *cobra.Command {
	return newListCmd("list releases, newest first", "no releases yet; see 'bmsota publish'",
		"PROJECT\tCHIP\tVERSION\tCHANNELS\tSIZE\tSIGNED\tPUBLISHED\tSHA256", (*api.Client).Releases, func(r api.Release) string {
			channels := strings.Join(r.Channels, ",")
			if r.Withdrawn {
				channels = "(withdrawn)"
			} else if r.Quarantined != "" {
				channels = "(quarantined)"
			}
			return fmt.Sprintf("%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s", plain(r.Project), r.Chip, r.Version, channels, r.Size, yesNo(r.Signed), ago(r.PublishedAt), r.SHA256[:min(12, len(r.SHA256))])
		})
}

func newReleasesShowCmd() *cobra.Command {
	var a access
	var l releaseLine
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show VERSION|SHA256",
		Short: "show one release",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.client(cmd)
			if err != nil {
				return err
			}
			found, err := l.find(cmd, client, args[0])
			if err != nil {
				return err
			}
			r, err := client.Release(cmd.Context(), found.SHA256)
			if err != nil {
				return serverFault(err)
			}
			if asJSON {
				return printJSON(cmd, r)
			}
			return printf(cmd, "%s %s for %s\n  sha256       %s\n  size         %d bytes\n  channels     %s\n  signed       %s\n  min version  %s\n  security     %d\n  force update %s\n  published    %s by %s\n  withdrawn    %s\n  quarantined  %s\n  description  %s\n",
				plain(r.Project), r.Version, r.Chip, r.SHA256, r.Size, orDash(strings.Join(r.Channels, ", ")), yesNo(r.Signed), orDash(r.MinVersion),
				r.SecureVersion, yesNo(r.ForceUpdate), r.PublishedAt.Format(time.RFC3339), r.PublishedBy, yesNo(r.Withdrawn), orDash(plain(r.Quarantined)), orDash(plain(r.Description)))
		},
	}
	a.serverFlags(cmd)
	l.flags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newReleasesLiftCmd() *cobra.Command {
	return releaseCmd("lift", "lift the quarantine of a release that a halted rollout has brought upon it", "offered again", (*api.Client).LiftQuarantine)
}

func newReleasesWithdrawCmd() *cobra.Command {
	return releaseCmd("withdraw", "offer a release to nobody any more; its bytes stay", "withdrawn", (*api.Client).Withdraw)
}

// releaseCmd is a command that does one thing to one release, and says in a word that it is done.
func releaseCmd(name, short, done string, do func(c *api.Client, ctx context.Context, sha256 string) error) *cobra.Command {
	var a access
	var l releaseLine
	cmd := &cobra.Command{
		Use:   name + " VERSION|SHA256",
		Short: short,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.client(cmd)
			if err != nil {
				return err
			}
			r, err := l.find(cmd, client, args[0])
			if err != nil {
				return err
			}
			if err := do(client, cmd.Context(), r.SHA256); err != nil {
				return serverFault(err)
			}
			return printf(cmd, "%s: %s %s for %s\n", done, plain(r.Project), r.Version, r.Chip)
		},
	}
	a.serverFlags(cmd)
	l.flags(cmd)
	return cmd
}

// releaseLine narrows a version down to one project and chip, where several have it.
type releaseLine struct{ project, chip string }

func (l *releaseLine) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&l.project, "project", "", "where several projects have that version")
	cmd.Flags().StringVar(&l.chip, "chip", "", "where several chips have that version")
}

// find finds the one release that a version or the beginning of a digest names.
func (l *releaseLine) find(cmd *cobra.Command, client *api.Client, name string) (api.Release, error) {
	releases, err := client.Releases(cmd.Context())
	if err != nil {
		return api.Release{}, serverFault(err)
	}
	found := l.matching(releases, name)
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return api.Release{}, failure("see 'bmsota releases list'", "no release %q", name)
	}
	return api.Release{}, usagef("%d releases are called %q: name --project and --chip, or give the beginning of the sha256", len(found), name)
}

func (l *releaseLine) matching(releases []api.Release, name string) (found []api.Release) {
	for _, r := range releases {
		named := r.Version == name || len(name) >= 8 && strings.HasPrefix(r.SHA256, name)
		if named && (l.project == "" || r.Project == l.project) && (l.chip == "" || r.Chip == l.chip) {
			found = append(found, r)
		}
	}
	return found
}

func newChannelCmd() *cobra.Command {
	return group("channel", "point channels at releases", newChannelSetCmd(), newChannelListCmd())
}

func newChannelSetCmd() *cobra.Command {
	var a access
	var l releaseLine
	cmd := &cobra.Command{
		Use:     "set CHANNEL VERSION",
		Short:   "point a channel at a published version",
		Example: "  bmsota channel set stable 1.2.0",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.client(cmd)
			if err != nil {
				return err
			}
			r, err := l.find(cmd, client, args[1])
			if err != nil {
				return err
			}
			c, err := client.SetChannel(cmd.Context(), api.SetChannelRequest{Project: r.Project, Chip: r.Chip, Channel: args[0], Version: r.Version})
			if err != nil {
				return serverFault(err)
			}
			return printf(cmd, "%s of %s for %s is now %s\n", c.Channel, plain(c.Project), c.Chip, c.Version)
		},
	}
	a.serverFlags(cmd)
	l.flags(cmd)
	return cmd
}

func newChannelListCmd() *cobra.Command {
	return newListCmd("list channels", "no channels yet; publishing makes the first", "PROJECT\tCHIP\tCHANNEL\tVERSION\tSET",
		(*api.Client).Channels, func(c api.Channel) string {
			return fmt.Sprintf("%s\t%s\t%s\t%s\t%s", plain(c.Project), c.Chip, c.Channel, c.Version, ago(c.SetAt))
		})
}
