package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"bmsota/deploy"
	"bmsota/protocol"

	"github.com/spf13/cobra"
)

// watchView shows a track: redrawn rows on a terminal, a line for each change elsewhere.
type watchView struct {
	cmd    *cobra.Command
	screen *screen
	quiet  bool
	shown  map[string]string // last line printed of a device
	judged map[string]bool   // devices whose verdict was printed: what they say after it is another story
}

func newWatchView(cmd *cobra.Command, quiet bool) *watchView {
	return &watchView{cmd: cmd, screen: newScreen(cmd.OutOrStdout()), quiet: quiet, shown: make(map[string]string), judged: make(map[string]bool)}
}

func (v *watchView) report(row *deploy.Row, track *deploy.Track) {
	switch {
	case v.quiet || row == nil:
	case v.screen.live:
		v.screen.draw(v.lines(track))
	case row.Started || row.Verdict != deploy.Pending:
		v.line(*row)
	}
}

func (v *watchView) lines(track *deploy.Track) []string {
	rows := track.Rows()
	// Those still under way first: they are what one watches, and a terminal has only so many lines.
	slices.SortStableFunc(rows, func(a, b deploy.Row) int { return rank(a) - rank(b) })
	lines := make([]string, len(rows))
	for i, r := range rows {
		lines[i] = rowLine(r)
	}
	return lines
}

func rank(r deploy.Row) int {
	if r.Verdict == deploy.Pending && r.Started {
		return 0
	}
	return 1
}

// line prints a row that has changed in more than its percentage; a download gets a line every quarter.
func (v *watchView) line(r deploy.Row) {
	if r.Verdict != deploy.Pending {
		if v.judged[r.Device] {
			return
		}
		v.judged[r.Device] = true
	}
	key := fmt.Sprint(r.Status.Phase, r.Reason, r.Verdict, r.Online, r.Status.ProgressPct/25)
	if v.shown[r.Device] == key {
		return
	}
	v.shown[r.Device] = key
	// A full pipe or a closed one ends the command elsewhere.
	_, _ = fmt.Fprintln(v.cmd.OutOrStdout(), rowLine(r))
}

func (v *watchView) end(track *deploy.Track) {
	if v.quiet {
		return
	}
	if v.screen.live {
		v.screen.finish(v.lines(track))
		return
	}
	for _, r := range track.Rows() {
		v.line(r)
	}
}

// rowLine is one device in one line.
func rowLine(r deploy.Row) string {
	s := r.Status
	versions := orDash(plain(s.CurrentVersion))
	if r.From != "" && r.From != s.CurrentVersion {
		versions = plain(r.From) + " → " + versions
	} else if s.AvailableVersion != "" && s.AvailableVersion != s.CurrentVersion && s.Phase.Updating() {
		versions += " → " + plain(s.AvailableVersion)
	}
	phase := string(s.Phase)
	if !r.Online {
		phase = "offline"
		if r.Started && r.Verdict == deploy.Pending {
			phase = "restarting"
		}
	}
	line := fmt.Sprintf("%-14s %-18s %-12s", cmp.Or(r.Device, "(no id)"), versions, phase)
	if s.Phase == protocol.PhaseDownloading && r.Online {
		line += fmt.Sprintf(" %s %3d %%", bar(s.BytesDone, s.BytesTotal), s.ProgressPct)
		if s.BytesTotal > 0 {
			line += " " + sizes(s.BytesDone, s.BytesTotal)
		}
	} else if s.Message != "" && s.Message != phase && r.Online {
		line += " " + plain(s.Message)
	}
	if r.Verdict == deploy.Silent || r.Verdict == deploy.Waiting {
		line += " (" + string(r.Verdict) + ")"
	}
	return strings.TrimRight(line, " ")
}
