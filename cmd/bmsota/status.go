package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"bmsota/api"
	"bmsota/deploy"
	"bmsota/protocol"

	"github.com/spf13/cobra"
)

func newStatusCmd() *cobra.Command {
	c := order{action: protocol.ActionStatus}
	cmd := &cobra.Command{
		Use:   "status",
		Short: "ask devices for their status and print it",
		Long: `Asks the devices (all when none is named) and prints one line each: what the broker kept for those
that do not answer. Exit code 5 when a named device was never heard of.`,
		Example: `  bmsota status
  bmsota status --device bms-a1b2c3 --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c.target.all = len(c.target.devices) == 0
			if err := errors.Join(c.target.check(cmd), c.checkTimeout(cmd)); err != nil {
				return err
			}
			return c.status(cmd)
		},
	}
	c.register(cmd, 3*time.Second)
	cmd.Flags().Lookup("timeout").Usage = "how long to wait for answers; 0 = print what the broker kept"
	cmd.Flags().Lookup("json").Usage = "print JSON"
	return cmd
}

// status asks, waits for the answers that come, and prints the rows.
func (o *order) status(cmd *cobra.Command) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), o.timeout+10*time.Second)
	defer cancel()
	link, err := o.access.link(ctx, cmd)
	if err != nil {
		return err
	}
	defer link.Close()
	id, err := deploy.NewCommandID()
	if err != nil {
		return err
	}
	track := deploy.NewTrack(protocol.Command{Action: o.action, ID: id}, o.target.devices...)
	seen := make(map[string]time.Time)
	offline := make(map[string]deploy.Report)
	collect := func(until time.Duration, done func() bool) {
		timer := time.NewTimer(until)
		defer timer.Stop()
		for !done() {
			select {
			case r := <-link.Statuses():
				row := track.Apply(r)
				if r.Err == nil && r.Status.Phase == protocol.PhaseOffline && (row != nil || o.target.all) {
					offline[r.Device] = r
				} else if row != nil {
					delete(offline, r.Device)
				}
				if !r.Retained {
					seen[r.Device] = time.Now()
				} else if r.Status.TimestampUS > 0 { // a last will has no time
					seen[r.Device] = time.UnixMicro(r.Status.TimestampUS)
				}
			case <-timer.C:
				return
			case <-ctx.Done():
				return
			}
		}
	}
	collect(settleTime, func() bool { return false })
	if err := o.send(ctx, link, track.Command); err != nil {
		return brokerFault(err)
	}
	collect(o.timeout, track.Ended)
	rows := withKept(track.Rows(), offline)
	if err := printStatus(cmd, rows, seen, o.asJSON); err != nil {
		return err
	}
	for _, r := range rows {
		if len(o.target.devices) > 0 && r.Status.Phase == "" && !r.Online {
			return &fault{code: exitUnreachable, err: fmt.Errorf("%s was never heard of on this broker", r.Device),
				hint: "see 'bmsota status' for who is connected"}
		}
	}
	return nil
}

// withKept adds what the broker kept of devices that are away: it says more than nothing.
func withKept(rows []deploy.Row, offline map[string]deploy.Report) []deploy.Row {
	followed := make(map[string]bool)
	for i, row := range rows {
		followed[row.Device] = true
		if r, ok := offline[row.Device]; ok && !row.Online {
			rows[i].Status = r.Status
		}
	}
	for id, r := range offline {
		if !followed[id] {
			rows = append(rows, deploy.Row{Device: id, Status: r.Status})
		}
	}
	slices.SortFunc(rows, func(a, b deploy.Row) int { return strings.Compare(a.Device, b.Device) })
	return rows
}

func printStatus(cmd *cobra.Command, rows []deploy.Row, seen map[string]time.Time, asJSON bool) error {
	if asJSON {
		list := []api.Device{}
		for _, r := range rows {
			s := r.Status
			d := api.Device{DeviceID: r.Device, CurrentVersion: s.CurrentVersion, AvailableVersion: s.AvailableVersion, Phase: s.Phase,
				Status: s.Status, ProgressPct: s.ProgressPct, Reason: s.Reason, Online: r.Online, Message: s.Message,
				Chip: s.Chip, Project: s.Project, Slot: s.Slot, SlotSize: s.SlotSize, ImageSHA256: s.ImageSHA256,
				RollbackPending: s.RollbackPending, RollbackProtected: s.RollbackProtected, SignedOnly: s.Signed, Battery: s.Battery,
				FreeHeap: s.FreeHeap, UptimeSec: s.UptimeSec, ResetReason: s.ResetReason, SecureVersion: s.SecureVersion}
			if at, ok := seen[r.Device]; ok {
				at = at.UTC()
				d.LastSeen = &at
			}
			list = append(list, d)
		}
		return printJSON(cmd, list)
	}
	if len(rows) == 0 {
		return printf(cmd, "no device is connected\n")
	}
	return table(cmd, "DEVICE\tONLINE\tVERSION\tAVAILABLE\tPHASE\tPROGRESS\tREASON\tMESSAGE", len(rows), func(i int) string {
		r := rows[i]
		s := r.Status
		return fmt.Sprintf("%s\t%s\t%s\t%s\t%s\t%d %%\t%s\t%s", r.Device, yesNo(r.Online), orDash(plain(s.CurrentVersion)), orDash(plain(s.AvailableVersion)),
			orDash(string(s.Phase)), s.ProgressPct, orDash(string(s.Reason)), plain(s.Message))
	})
}

func newMonitorCmd() *cobra.Command {
	c := order{}
	cmd := &cobra.Command{
		Use:   "monitor",
		Short: "watch the devices live, until interrupted",
		Long: `Shows every device (or those named) as it speaks: rows with progress bars on a terminal, a line for
each change elsewhere, one JSON object a line with --json. Ends with Ctrl-C or after --timeout.`,
		Example: `  bmsota monitor
  bmsota monitor --device bms-a1b2c3 --json --timeout 1h`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.monitor(cmd) },
	}
	c.register(cmd, 0)
	cmd.Flags().Lookup("json").Usage = "print statuses as JSON, one a line"
	return cmd
}

func (o *order) monitor(cmd *cobra.Command) error {
	if err := o.checkTimeout(cmd); err != nil {
		return err
	}
	for _, id := range o.target.devices {
		if err := protocol.CheckDeviceID(id); err != nil {
			return usageFault(cmd, "%w", err)
		}
	}
	ctx, cancel := o.deadline(cmd.Context())
	defer cancel()
	link, err := o.access.link(ctx, cmd)
	if err != nil {
		return err
	}
	defer link.Close()
	// A track whose command nobody answers never judges: it only keeps the rows.
	track := deploy.NewTrack(protocol.Command{Action: protocol.ActionCheck, ID: "-"}, o.target.devices...)
	view := newWatchView(cmd, o.asJSON)
	for {
		select {
		case r := <-link.Statuses():
			row := track.Apply(r)
			if row == nil {
				continue
			}
			row.Started = true
			if o.asJSON {
				if err := monitorJSON(cmd, r); err != nil {
					return err
				}
				continue
			}
			view.report(row, track)
		case <-ctx.Done():
			view.end(track)
			return nil
		}
	}
}

func monitorJSON(cmd *cobra.Command, r deploy.Report) error {
	b, err := r.Status.Append(nil)
	if err != nil {
		return err
	}
	return printf(cmd, "%s\n", b)
}
