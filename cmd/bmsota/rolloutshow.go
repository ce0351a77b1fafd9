package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"bmsota/api"

	"github.com/spf13/cobra"
)

func newRolloutListCmd() *cobra.Command {
	return newListCmd("list rollouts, newest first", "no rollouts yet; see 'bmsota rollout create'",
		"ROLLOUT\tVERSION\tSTATE\tWAVE\tSUCCEEDED\tOPEN\tFAILED\tDEVICES\tCREATED\tBY", (*api.Client).Rollouts, func(r api.Rollout) string {
			return fmt.Sprintf("%s\t%s\t%s\t%d of %d\t%d\t%d\t%d\t%d\t%s\t%s", r.ID, r.Version, r.State, r.Wave, len(r.Waves), r.Figures.Succeeded,
				r.Figures.Open, r.Figures.Failures(), r.Members, ago(r.CreatedAt), r.CreatedBy)
		})
}

// watchEvery is how often a watched rollout is asked for.
const watchEvery = time.Second

func newRolloutShowCmd() *cobra.Command {
	var a access
	var asJSON, watch bool
	var state string
	cmd := &cobra.Command{
		Use:   "show ROLLOUT",
		Short: "show a rollout: its waves, its figures, why it is halted, who is held back and why",
		Long: `Shows a rollout, with the devices that are not simply waiting for their wave or through with it. With --watch it goes on
until the rollout is done, halted or aborted; exit code 4 when it is not done then.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.client(cmd)
			if err != nil {
				return err
			}
			if watch {
				return watchRollout(cmd, client, args[0], asJSON)
			}
			r, err := client.Rollout(cmd.Context(), args[0])
			if err != nil {
				return serverFault(notFoundHint(err, rolloutHint))
			}
			members, err := membersOf(cmd.Context(), client, r, state, asJSON)
			if err != nil {
				return serverFault(err)
			}
			if asJSON {
				return printJSON(cmd, struct {
					api.Rollout
					MemberList []api.Member `json:"member_list"`
				}{r, members})
			}
			lines := rolloutLines(r, time.Now())
			for _, e := range r.Events {
				lines = append(lines, fmt.Sprintf("  %s  %s%s", e.At.Format(time.RFC3339), plain(e.Text), by(e.By)))
			}
			lines = append(lines, memberLines(members)...)
			return printf(cmd, "%s\n", strings.Join(lines, "\n"))
		},
	}
	a.serverFlags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on showing it until it is over")
	cmd.Flags().StringVar(&state, "state", "", "list the devices in this state: pending, open, succeeded, failed, rolled_back, brownout, silent, skipped")
	return cmd
}

func by(name string) string {
	if name == "" {
		return ""
	}
	return " (" + name + ")"
}

// membersOf are the members worth a line: those in state, or where it is empty those that run, failed or are held
// back. For programs they are all of them.
func membersOf(ctx context.Context, client *api.Client, r api.Rollout, state string, all bool) ([]api.Member, error) {
	const page = 1000
	members := []api.Member{}
	for after := -1; ; {
		p, err := client.RolloutMembers(ctx, r.ID, state, after, page)
		if err != nil {
			return nil, err
		}
		for _, m := range p.Members {
			usual := m.State == "succeeded" || m.State == "pending" && (m.Hold == "" || m.Hold == "wave" || m.Hold == "turn")
			if all || state != "" || !usual {
				members = append(members, m)
			}
			if !all && state == "" && m.Hold == "wave" {
				return members, nil // from here on all do
			}
		}
		if p.Next < 0 || !all && len(members) > membersListed {
			return members, nil
		}
		after = p.Next
	}
}

func memberLines(members []api.Member) []string {
	var lines []string
	for i, m := range members {
		if i == membersListed {
			return append(lines, "  … and more; --json lists all, --state those in one state")
		}
		why := m.HoldText
		if why != "" && m.Message != "" {
			why += " (" + m.Message + ")"
		} else if why == "" {
			why = strings.TrimSpace(string(m.Reason) + " " + m.Message)
		}
		if m.State == "open" {
			why = string(m.Phase)
		}
		lines = append(lines, fmt.Sprintf("  %s  wave %d  %s  %s", m.DeviceID, m.Wave, m.State, plain(why)))
	}
	return lines
}

// rolloutLines is a rollout at a glance.
func rolloutLines(r api.Rollout, now time.Time) []string {
	lines := []string{fmt.Sprintf("%s  %s of %s for %s: %s", r.ID, r.Version, plain(r.Project), r.Chip, r.State)}
	if r.Halt != nil && r.State == "halted" {
		lines = append(lines, "  halted because "+plain(r.Halt.Text))
	}
	begun := r.Members - r.Figures.Pending
	for i, w := range r.Waves {
		from := 0
		if i > 0 {
			from = r.Waves[i-1].Limit
		}
		text, done := "", begun-from
		if w.Figures != nil {
			text, done = "  "+figuresText(*w.Figures)+heldText(w.Held), w.Limit-from-w.Figures.Pending
		}
		if i+1 == r.Wave && r.State == "running" && !r.SoakSince.IsZero() {
			text += "  soaks"
			if left := time.Duration(w.SoakS)*time.Second - now.Sub(r.SoakSince); left > 0 {
				text += " for another " + left.Round(time.Second).String()
			}
		}
		lines = append(lines, fmt.Sprintf("  wave %d  %s %5d to %d%s", i+1, bar(int64(min(max(done, 0), w.Limit-from)), int64(w.Limit-from)), from+1, w.Limit, text))
	}
	return append(append(lines, waitLines(r)...), fmt.Sprintf("  %s: %s", count(r.Members, "device"), figuresText(r.Figures)))
}

// figuresText says the figures that are not zero.
func figuresText(f api.Figures) string {
	parts := []string{}
	for _, c := range []struct {
		n    int
		what string
	}{{f.Succeeded, "succeeded"}, {f.Open, "under way"}, {f.Pending, "waiting"}, {f.RolledBack, "rolled back"}, {f.Silent, "silent"},
		{f.Failed, "failed"}, {f.Dark, "not heard of since"}, {f.Brownouts, "lost supply"}, {f.Skipped, "skipped"}, {f.Suspect, "set aside"}} {
		if c.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", c.n, c.what))
		}
	}
	return strings.Join(parts, ", ")
}

// heldText says what holds waiting members of a wave back that has begun: " (2 offline, 1 charging)".
func heldText(held map[string]int) string {
	var parts []string
	for _, hold := range slices.Sorted(maps.Keys(held)) {
		if hold != "wave" && hold != "turn" {
			parts = append(parts, fmt.Sprintf("%d %s", held[hold], plain(hold)))
		}
	}
	if parts == nil {
		return ""
	}
	return " (" + strings.Join(parts, ", ") + ")"
}

// waitLines say whom a rollout waits for in which nothing is under way, and how to go on without them.
func waitLines(r api.Rollout) (lines []string) {
	for _, w := range r.Waits {
		since := ""
		if !w.Since.IsZero() {
			since = ", last heard of " + ago(w.Since)
		}
		lines = append(lines, fmt.Sprintf("  waits for %s: %s%s", w.DeviceID, plain(w.HoldText), since))
	}
	if r.WaitsMore > 0 {
		lines = append(lines, fmt.Sprintf("  and for %d more", r.WaitsMore))
	}
	if lines != nil {
		lines = append(lines, "  to go on without one: bmsota rollout skip "+r.ID+" DEVICE")
	}
	return lines
}

// watchRollout shows a rollout until it is over: a block in place on a terminal, a line for each change elsewhere.
func watchRollout(cmd *cobra.Command, client *api.Client, id string, asJSON bool) error {
	s := newScreen(cmd.OutOrStdout())
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	said, events := "", 0
	for {
		r, err := client.Rollout(cmd.Context(), id)
		if err != nil {
			if cmd.Context().Err() != nil {
				return nil
			}
			return serverFault(notFoundHint(err, rolloutHint))
		}
		over := r.State == "done" || r.State == "aborted" || r.State == "halted"
		lines := rolloutLines(r, time.Now())
		figures := lines[len(lines)-1]
		switch {
		case asJSON && (figures != said || over):
			b, err := json.Marshal(r)
			if err != nil {
				return fmt.Errorf("encode JSON: %w", err)
			}
			if err := printf(cmd, "%s\n", b); err != nil {
				return err
			}
		case asJSON:
		case s.live && over:
			s.finish(lines)
		case s.live:
			s.draw(lines)
		default:
			for ; events < len(r.Events); events++ {
				if err := printf(cmd, "%s  %s%s\n", r.ID, plain(r.Events[events].Text), by(r.Events[events].By)); err != nil {
					return err
				}
			}
			if figures != said {
				if err := printf(cmd, "%s  wave %d of %d, %s\n", r.ID, r.Wave, len(r.Waves), strings.TrimSpace(figures)); err != nil {
					return err
				}
			}
		}
		said = figures
		if over {
			return rolloutVerdict(r)
		}
		select {
		case <-cmd.Context().Done():
			return nil
		case <-tick.C:
		}
	}
}

func rolloutVerdict(r api.Rollout) error {
	switch r.State {
	case "done":
		return nil
	case "halted":
		return &fault{code: exitDevice, err: fmt.Errorf("%s is halted: %s", r.ID, plain(r.Halt.Text)), hint: "see 'bmsota rollout show " + r.ID + "'"}
	}
	return &fault{code: exitDevice, err: fmt.Errorf("%s is %s", r.ID, r.State)}
}
