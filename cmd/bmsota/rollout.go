package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"bmsota/api"

	"github.com/spf13/cobra"
)

func newRolloutCmd() *cobra.Command {
	return group("rollout", "deliver a release in waves that stop themselves", newRolloutCreateCmd(), newRolloutListCmd(), newRolloutShowCmd(),
		newRolloutTurnCmd("pause", "start no more devices until resumed"),
		newRolloutTurnCmd("resume", "go on after a pause, or after a halt: failures so far count no more"),
		newRolloutTurnCmd("abort", "end a rollout for good"), newRolloutSkipCmd(), newRolloutRehearseCmd())
}

// rolloutFlags are those of create and rehearse: which release, to whom, how.
type rolloutFlags struct {
	access     access
	line       releaseLine
	devices    []string
	labels     []string
	waves      []string
	maxFailed  string
	minTemp    float64
	maxTemp    float64
	rolledBack int
	brownouts  int
	policy     api.Policy
	jitter, retryAfter, silence,
	deadline, lasts time.Duration
}

func (r *rolloutFlags) register(cmd *cobra.Command) {
	r.access.serverFlags(cmd)
	f, p := cmd.Flags(), &r.policy
	r.line.flags(cmd)
	f.BoolVar(&p.Selector.All, "all", false, "every device that can take it")
	f.StringArrayVar(&r.devices, "device", nil, "this device; may be repeated")
	f.StringArrayVar(&r.labels, "label", nil, "devices with this label, key=value; may be repeated")
	f.StringVar(&p.Selector.Versions, "running", "", "devices that run a version of this range, such as \">=1.2.0 <2.0.0\"")
	f.StringVar(&p.Selector.Channel, "channel", "", "devices of this channel")
	f.StringSliceVar(&r.waves, "waves", nil, "how many devices each wave may have touched, and its soak: 10:30m,25%:2h,100% (default 1%:30m,10%:30m,100%)")
	f.StringVar(&r.maxFailed, "max-failed", "", "halt when more devices than this fail: a number, or percent of the wave (default 5%)")
	f.IntVar(&r.rolledBack, "max-rolled-back", 0, "halt when more devices than this roll back (default no limit of its own)")
	f.IntVar(&r.brownouts, "max-brownouts", 0, "halt when more trials than this end for want of supply (default no limit)")
	f.Float64Var(&p.NeedPct, "need", 0, "percent of a wave that must succeed before members that are away are left behind (default 90)")
	f.Float64Var(&p.Gate.MinSOCPct, "min-soc", 0, "start no device whose battery reports less, percent")
	f.BoolVar(&p.Gate.NotWhileCharging, "not-while-charging", false, "start no device whose battery reports that it charges")
	f.Float64Var(&p.Gate.MaxCurrentA, "max-current", 0, "start no device whose pack gives or takes more, ampere (default any)")
	f.Float64Var(&r.minTemp, "min-temp", 0, "start no device whose coldest cell is below, °C (default any)")
	f.Float64Var(&r.maxTemp, "max-temp", 0, "start no device whose warmest cell is above, °C (default any)")
	f.StringVar(&p.Window, "window", "", "start within this time of day, HH:MM-HH:MM of the device (label timezone, else UTC)")
	f.BoolVar(&p.OverrideGates, "override-gates", false, "start whatever gate and window say; it is recorded")
	f.IntVar(&p.Concurrency, "concurrency", 0, "devices that update at once (default 50)")
	f.IntVar(&p.PerMinute, "per-minute", 0, "starts within a minute (default any)")
	f.DurationVar(&r.jitter, "jitter", 0, "spread the starts of a wave over this time")
	f.StringVar(&p.Spread, "spread", "", "label: devices that share a value of it never update at once")
	f.IntVar(&p.Priority, "priority", 0, "the higher goes first where two rollouts want one device")
	f.IntVar(&p.Retries, "retries", 0, "further tries for a device whose update failed")
	f.DurationVar(&r.retryAfter, "retry-after", 0, "time before the next try (default 10m)")
	f.DurationVar(&r.silence, "silence", 0, "a device that says nothing for so long has failed (default the server's, 30m)")
	f.DurationVar(&r.deadline, "deadline", 0, "time for one device (default 24h)")
	f.DurationVar(&r.lasts, "lasts", 0, "time for the whole rollout (default 720h)")
	f.BoolVar(&p.Force, "force", false, "skip the comparison of versions")
	f.BoolVar(&p.AllowUnprotected, "allow-unprotected", false, "take devices that cannot undo a bad image")
	f.StringVar(&p.Seed, "seed", "", "orders the devices: the same seed has the same devices in the first wave")
	f.StringVar(&p.Description, "description", "", "for people")
}

// request turns the flags into what the server is asked.
func (r *rolloutFlags) request(cmd *cobra.Command, version string) (api.RolloutRequest, error) {
	p := r.policy
	p.Selector.IDs = r.devices
	if !p.Selector.All && len(r.devices) == 0 && len(r.labels) == 0 && p.Selector.Versions == "" && p.Selector.Channel == "" {
		return api.RolloutRequest{}, usageFault(cmd, "this names no device: give --all, or any of --device, --label, --running and --channel")
	}
	for _, text := range r.labels {
		key, value, ok := strings.Cut(text, "=")
		if !ok || key == "" || value == "" {
			return api.RolloutRequest{}, usageFault(cmd, "--label %q is not key=value", text)
		}
		if p.Selector.Labels == nil {
			p.Selector.Labels = make(map[string]string)
		}
		p.Selector.Labels[key] = value
	}
	for _, text := range r.waves {
		w, err := api.ParseWave(text)
		if err != nil {
			return api.RolloutRequest{}, usageFault(cmd, "%w", err)
		}
		p.Waves = append(p.Waves, w)
	}
	if r.maxFailed != "" {
		n, pct, err := api.ParseLimit(r.maxFailed)
		if err != nil {
			return api.RolloutRequest{}, usageFault(cmd, "--max-failed %w", err)
		}
		if pct {
			p.Stop.FailedPct = &n
		} else {
			count := int(n)
			p.Stop.Failed = &count
		}
	}
	if cmd.Flags().Changed("min-temp") {
		p.Gate.MinTempC = &r.minTemp
	}
	if cmd.Flags().Changed("max-temp") {
		p.Gate.MaxTempC = &r.maxTemp
	}
	if cmd.Flags().Changed("max-rolled-back") {
		p.Stop.RolledBack = &r.rolledBack
	}
	if cmd.Flags().Changed("max-brownouts") {
		p.Stop.Brownouts = &r.brownouts
	}
	if p.Stop.Failed == nil && p.Stop.FailedPct == nil && (p.Stop.RolledBack != nil || p.Stop.Brownouts != nil) {
		usual := 5.0 // a limit of another kind does not take this one away
		p.Stop.FailedPct = &usual
	}
	for _, d := range []struct {
		name string
		from time.Duration
		to   *int64
	}{{"jitter", r.jitter, &p.JitterS}, {"retry-after", r.retryAfter, &p.RetryAfterS}, {"silence", r.silence, &p.SilenceS},
		{"deadline", r.deadline, &p.DeadlineS}, {"lasts", r.lasts, &p.LastsS}} {
		if d.from < 0 || d.from%time.Second != 0 {
			return api.RolloutRequest{}, usageFault(cmd, "--%s of %v is not a number of seconds", d.name, d.from)
		}
		*d.to = int64(d.from / time.Second)
	}
	return api.RolloutRequest{Version: version, Project: r.line.project, Chip: r.line.chip, Policy: p}, nil
}

func newRolloutCreateCmd() *cobra.Command {
	var r rolloutFlags
	var dryRun, asJSON bool
	var expect int
	var key string
	cmd := &cobra.Command{
		Use:   "create VERSION",
		Short: "deliver a published version in waves",
		Long: `Chooses the devices, once, and begins with the first wave. The next wave begins when the one before has stood for its
soak; a rule that is broken halts the rollout by itself. docs/rollouts.md says what each rule means.

With --dry-run nothing begins: it says who would be in it, how many, and who cannot and why.`,
		Example: `  bmsota rollout create 1.2.0 --all --dry-run
  bmsota rollout create 1.2.0 --label site=north --waves 5:1h,25%:4h,100% --max-failed 2%
  bmsota rollout create 1.2.0 --running "<1.2.0" --window 02:00-04:30 --not-while-charging --spread bank`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := r.request(cmd, args[0])
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("expect") {
				req.Expect = &expect
			}
			client, err := r.access.client(cmd)
			if err != nil {
				return err
			}
			if dryRun {
				d, err := client.DryRunRollout(cmd.Context(), req)
				if err != nil {
					return serverFault(notFoundHint(err, "see 'bmsota releases list'"))
				}
				if asJSON {
					return printJSON(cmd, d)
				}
				return showDraft(cmd, d)
			}
			made, err := client.CreateRollout(cmd.Context(), req, key)
			if err != nil {
				return serverFault(notFoundHint(err, "see 'bmsota releases list'"))
			}
			if asJSON {
				return printJSON(cmd, made)
			}
			return printf(cmd, "%s: %s to %s in %s; watch it with 'bmsota rollout show %s --watch'\n", made.ID, made.Version,
				count(made.Members, "device"), wavesText(made.Waves), made.ID)
		},
	}
	r.register(cmd)
	f := cmd.Flags()
	f.BoolVar(&dryRun, "dry-run", false, "say what would be done, and do nothing")
	f.IntVar(&expect, "expect", 0, "refuse when another number of devices would be in it")
	f.StringVar(&key, "key", "", "the same request with the same key makes one rollout, however often it is sent")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func count(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}

// wavesText is "3 waves (1, 10, 100)".
func wavesText(waves []api.WaveLimit) string {
	limits := make([]string, len(waves))
	for i, w := range waves {
		limits[i] = strconv.Itoa(w.Limit)
	}
	return fmt.Sprintf("%s (%s)", count(len(waves), "wave"), strings.Join(limits, ", "))
}

// membersListed is how many rows of a kind a person is shown.
const membersListed = 20

func showDraft(cmd *cobra.Command, d api.RolloutDraft) error {
	r := d.Rollout
	var b strings.Builder
	fmt.Fprintf(&b, "%s would go to %s", r.Version, count(r.Members, "device"))
	if r.Members > 0 {
		fmt.Fprintf(&b, " in %s", wavesText(r.Waves))
	}
	b.WriteByte('\n')
	if r.Members == 0 && len(d.Cannot) == 0 {
		b.WriteString("  no device of its project and chip is one of those that are asked for\n")
	}
	if d.UpToDate > 0 {
		fmt.Fprintf(&b, "  running it already: %d\n", d.UpToDate)
	}
	if d.Through > 0 {
		fmt.Fprintf(&b, "  installing another release first, because theirs is too old for this one: %d\n", d.Through)
	}
	if r.Members > 0 {
		first := make([]string, 0, membersListed)
		for _, m := range d.Members {
			if m.Wave == 1 && len(first) < membersListed {
				first = append(first, m.DeviceID)
			}
		}
		more := ""
		if r.Waves[0].Limit > len(first) {
			more = fmt.Sprintf(" and %d more", r.Waves[0].Limit-len(first))
		}
		fmt.Fprintf(&b, "  first wave: %s%s\n", strings.Join(first, " "), more)
	}
	for _, h := range d.Held {
		fmt.Fprintf(&b, "  would wait now, %s: %d\n", h.Text, h.Count)
	}
	if len(d.Cannot) > 0 {
		fmt.Fprintf(&b, "%s cannot:\n", count(len(d.Cannot), "device"))
		for i, c := range d.Cannot {
			if i == membersListed {
				fmt.Fprintf(&b, "  … and %d more; --json lists them\n", len(d.Cannot)-i)
				break
			}
			fmt.Fprintf(&b, "  %s  %s: %s\n", c.DeviceID, c.Reason, plain(c.Detail))
		}
	}
	return printf(cmd, "%s", b.String())
}

func newRolloutTurnCmd(verb, short string) *cobra.Command {
	var a access
	var asJSON bool
	cmd := &cobra.Command{
		Use:   verb + " ROLLOUT",
		Short: short,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.client(cmd)
			if err != nil {
				return err
			}
			r, err := client.TurnRollout(cmd.Context(), args[0], verb)
			if err != nil {
				if e, ok := errors.AsType[*api.Error](err); ok && e.Code == api.CodeRefused && verb == "resume" {
					return &fault{code: exitRefused, err: plainAnswer(err, e), hint: "see 'bmsota releases lift'"}
				}
				return serverFault(notFoundHint(err, rolloutHint))
			}
			if asJSON {
				return printJSON(cmd, r)
			}
			return printf(cmd, "%s is %s\n", r.ID, r.State)
		},
	}
	a.serverFlags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newRolloutSkipCmd() *cobra.Command {
	var a access
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "skip ROLLOUT DEVICE",
		Short: "leave a device out that a rollout waits for",
		Long: `Leaves a device out that has not been started, or waits for another try. No wave waits for it any more; an update that is
under way cannot be left out. It is recorded with your name.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.client(cmd)
			if err != nil {
				return err
			}
			r, err := client.SkipMember(cmd.Context(), args[0], args[1])
			if err != nil {
				return serverFault(notFoundHint(err, "see 'bmsota rollout list', and 'bmsota rollout show ROLLOUT' for whom it waits for"))
			}
			if asJSON {
				return printJSON(cmd, r)
			}
			return printf(cmd, "%s goes on without %s\n", r.ID, plain(args[1]))
		},
	}
	a.serverFlags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

const rolloutHint = "see 'bmsota rollout list'"
