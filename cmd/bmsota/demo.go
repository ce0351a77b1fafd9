package main

import (
	"context"
	"fmt"
	"log/slog"

	"bmsota/demo"
	"bmsota/deploy"

	"github.com/spf13/cobra"
)

func newDemoCmd() *cobra.Command {
	var devices int
	var keep, verbose bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "the five-minute tour: server, boards, a good update, a bad one that rolls back",
		Long: `Starts a server and virtual boards in this process, on loopback and in a temporary folder. Publishes
a good release and updates every board, then one that crashes, and shows every board back on the good
one. Nothing is left behind. The exit code is 0 only when all of it went as it should.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if devices < 1 || devices > 10_000 {
				return usageFault(cmd, "--devices of %d is not within 1 to 10000", devices)
			}
			log := slog.New(slog.DiscardHandler)
			if verbose {
				log = newLog(cmd, true)
			}
			err := demo.Run(cmd.Context(), demo.Config{Devices: devices, Keep: keep, Log: log,
				Say: func(format string, args ...any) {
					// A closed pipe ends the demo through its signal, not here.
					_, _ = fmt.Fprintf(cmd.OutOrStdout(), format+"\n", args...)
				},
				Follow: func(ctx context.Context, link *deploy.Link, track *deploy.Track) {
					view := newWatchView(cmd, false)
					follow(ctx, link, track, view, 0)
					view.end(track)
				},
				Results: func(rows []demo.Result) { showResults(cmd, rows) },
			})
			if err != nil && cmd.Context().Err() != nil {
				return failure("", "stopped before the tour was over; nothing is left running")
			}
			return err
		},
	}
	cmd.Flags().IntVar(&devices, "devices", 3, "how many boards")
	cmd.Flags().BoolVar(&keep, "keep", false, "leave it running afterwards and print the addresses")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "show the logs of server and boards")
	return cmd
}

// showResults prints the table; more than a screenful of boards that agree is said in one line.
func showResults(cmd *cobra.Command, rows []demo.Result) {
	const most = 20
	err := table(cmd, "DEVICE\tRUNS\tSLOT\tGOOD RELEASE\tBAD RELEASE\tREASON", min(len(rows), most), func(i int) string {
		r := rows[i]
		bad := string(r.Bad)
		if r.Bad == deploy.Failed {
			bad = "rolled back"
		}
		return fmt.Sprintf("%s\t%s\t%s\t%s\t%s\t%s", r.Device, r.Version, r.Slot, r.Good, bad, r.Reason)
	})
	if err == nil && len(rows) > most {
		_ = printf(cmd, "… and %d more\n", len(rows)-most)
	}
}
