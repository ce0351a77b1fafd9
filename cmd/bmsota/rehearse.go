package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"bmsota/api"

	"github.com/spf13/cobra"
)

func newRolloutRehearseCmd() *cobra.Command {
	var r rolloutFlags
	var asJSON bool
	var mix, mixSeed string
	var update time.Duration
	cmd := &cobra.Command{
		Use:   "rehearse VERSION",
		Short: "try a policy on a copy of your fleet: how far a bad build gets, how long a good one takes",
		Long: `Runs this very policy, by the planner that real rollouts run by, over a copy of the server's fleet in virtual time. Once
with a build that does to devices what --mix says: good, crash, silent, brownout, fail, flaky, refuse, dark (silent
after success), mute (never takes the command up). And once with a good one. Nothing is changed.`,
		Example: `  bmsota rollout rehearse 1.2.0 --all --waves 1%:30m,10%:1h,100% --mix good=0.9,crash=0.05,silent=0.05`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := r.request(cmd, args[0])
			if err != nil {
				return err
			}
			shares, err := parseMix(mix)
			if err != nil {
				return usageFault(cmd, "--mix: %w", err)
			}
			if update < time.Second {
				return usageFault(cmd, "--update of %v is less than a second", update)
			}
			client, err := r.access.client(cmd)
			if err != nil {
				return err
			}
			out, err := client.Rehearse(cmd.Context(), api.RehearsalRequest{RolloutRequest: req, Mix: shares, MixSeed: mixSeed, UpdateS: int64(update / time.Second)})
			if err != nil {
				return serverFault(notFoundHint(err, "see 'bmsota releases list'"))
			}
			if asJSON {
				return printJSON(cmd, out)
			}
			return printf(cmd, "%s", rehearsalText(out, mix))
		},
	}
	r.register(cmd)
	f := cmd.Flags()
	f.StringVar(&mix, "mix", "good=0.9,crash=0.05,silent=0.05", "what the bad build does to devices, in shares")
	f.StringVar(&mixSeed, "mix-seed", "1", "decides which device meets which fate")
	f.DurationVar(&update, "update", 3*time.Minute, "what an update takes, about")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// parseMix reads "good=0.9,crash=0.1".
func parseMix(text string) (map[string]float64, error) {
	shares, sum := make(map[string]float64), 0.0
	for part := range strings.SplitSeq(text, ",") {
		name, share, ok := strings.Cut(strings.TrimSpace(part), "=")
		n, err := strconv.ParseFloat(share, 64)
		if !ok || err != nil || !(n >= 0 && n <= 1e6) || name == "" {
			return nil, fmt.Errorf("%q is not a share such as crash=0.05", part)
		}
		if _, twice := shares[name]; twice {
			return nil, fmt.Errorf("%s stands in it twice", name)
		}
		shares[name] = n
		sum += n
	}
	if sum > 1+1e-9 { // ten tenths are a little more than one
		return nil, fmt.Errorf("the shares add up to %.4g, the most is 1", sum)
	}
	return shares, nil
}

func rehearsalText(out api.Rehearsal, mix string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "rehearsed on %s\n", count(out.Members, "device"))
	if out.Away > 0 {
		fmt.Fprintf(&b, "  %d of them were not heard of for a day and stay away\n", out.Away)
	}
	took := func(s int64) string { return (time.Duration(s) * time.Second).String() }
	fmt.Fprintf(&b, "a bad build (%s)\n", mix)
	if bad := out.Bad; bad.Halt != nil && bad.State == "halted" {
		fmt.Fprintf(&b, "  is halted after %s in wave %d: %s\n  by then %s were started, %d of them harmed\n", took(bad.TookS), bad.Wave, plain(bad.Halt.Text),
			count(bad.Touched, "device"), bad.Harmed)
	} else {
		fmt.Fprintf(&b, "  is NOT halted by this policy: %s were started, %d of them harmed, it ended %s\n", count(bad.Touched, "device"), bad.Harmed, bad.State)
	}
	good := out.Good
	fmt.Fprintf(&b, "a good build\n  reaches %d of %s in %s", good.Figures.Succeeded, count(out.Members, "device"), took(good.TookS))
	if good.Halt != nil {
		fmt.Fprintf(&b, ", and is halted: %s", plain(good.Halt.Text))
	}
	b.WriteByte('\n')
	return b.String()
}
