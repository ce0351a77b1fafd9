package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"bmsota/api"
	"bmsota/deploy"
	"bmsota/protocol"

	"github.com/spf13/cobra"
)

// target is which devices a command is for.
type target struct {
	devices []string
	all     bool
}

func (t *target) flags(cmd *cobra.Command) {
	cmd.Flags().StringSliceVar(&t.devices, "device", nil, "device id; may be given several times")
	cmd.Flags().BoolVar(&t.all, "all", false, "every device that is connected")
}

func (o *order) registerWait(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&o.noWait, "no-wait", false, "send the command and leave")
}

func (t *target) check(cmd *cobra.Command) error {
	if t.all == (len(t.devices) > 0) {
		return usageFault(cmd, "say which devices: --device ID or --all")
	}
	for _, id := range t.devices {
		if err := protocol.CheckDeviceID(id); err != nil {
			return usageFault(cmd, "%w", err)
		}
	}
	return nil
}

func newUpdateCmd() *cobra.Command {
	c := order{action: protocol.ActionUpdate}
	cmd := &cobra.Command{
		Use:   "update",
		Short: "tell devices to install what they are offered, and watch them do it",
		Long: `Sends the update command over MQTT and shows every device until it is confirmed on the new image,
has refused it, or has gone back. A device that is offline learns the command when it next connects:
commands to a named device are kept by the broker.`,
		Example: `  bmsota update --all
  bmsota update --device bms-a1b2c3 --version 1.2.0
  bmsota update --device bms-a1b2c3 --force    # skips the version comparison only`,
		Args: cobra.NoArgs,
		RunE: c.run,
	}
	c.register(cmd, orderTimeout)
	c.registerWait(cmd)
	cmd.Flags().BoolVar(&c.force, "force", false, "skip the comparison of versions, and nothing else")
	cmd.Flags().StringVar(&c.version, "version", "", "the release wanted; devices that are offered another refuse")
	return cmd
}

func newRollbackCmd() *cobra.Command {
	c := order{action: protocol.ActionRollback}
	cmd := &cobra.Command{
		Use:   "rollback",
		Short: "tell devices to go back to the image in their other slot",
		Long: `Sends the rollback command over MQTT and shows every device until it runs the image of its other slot, or
has refused. With --version the command is kept by the broker for a named device that is offline.`,
		Example: `  bmsota rollback --device bms-a1b2c3
  bmsota rollback --device bms-a1b2c3 --version 1.1.0`,
		Args: cobra.NoArgs,
		RunE: c.run,
	}
	c.register(cmd, orderTimeout)
	c.registerWait(cmd)
	cmd.Flags().StringVar(&c.version, "version", "", "the version to go back to; the command is then kept for a device that is offline")
	return cmd
}

// orderTimeout is how long an update may take: the device's own deadlines come first.
const orderTimeout = time.Hour

// order is a command to devices and how long to watch for its end.
type order struct {
	access  access
	target  target
	action  protocol.Action
	force   bool
	version string
	timeout time.Duration
	noWait  bool
	asJSON  bool
	answer  time.Duration // how long to wait for anybody at all; 0 = as long as for the end
}

// register adds the flags of a command that waits up to timeout; 0 means without end.
func (o *order) register(cmd *cobra.Command, timeout time.Duration) {
	o.access.brokerFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&o.access.data, "data", defaultData(), "data folder of a server on this machine, for its broker and login")
	f.StringVar(&o.access.config, "config", "", "deployment settings to read the broker from, such as "+deploy.ConfigName)
	f.StringVar(&o.access.caFile, "ca-file", os.Getenv("BMSOTA_CA_FILE"), "certificates to trust for the broker, PEM (BMSOTA_CA_FILE)")
	f.DurationVar(&o.timeout, "timeout", timeout, "how long to wait; 0 = without end")
	f.BoolVar(&o.asJSON, "json", false, "print the verdicts as JSON at the end")
	o.target.flags(cmd)
}

func (o *order) run(cmd *cobra.Command, _ []string) error {
	if err := errors.Join(o.target.check(cmd), o.checkTimeout(cmd)); err != nil {
		return err
	}
	ctx, cancel := o.deadline(cmd.Context())
	defer cancel()
	link, err := o.access.link(ctx, cmd)
	if err != nil {
		return err
	}
	defer link.Close()
	track, err := o.give(ctx, cmd, link)
	if err != nil || o.noWait {
		return err
	}
	if o.asJSON {
		if err := printJSON(cmd, verdicts(track)); err != nil {
			return err
		}
	}
	return verdictFault(cmd, o.action, track)
}

// give sends the order over link and, unless nobody waits, watches until every device has a verdict.
func (o *order) give(ctx context.Context, cmd *cobra.Command, link *deploy.Link) (*deploy.Track, error) {
	id, err := deploy.NewCommandID()
	if err != nil {
		return nil, err
	}
	track := deploy.NewTrack(protocol.Command{Action: o.action, Force: o.force, ID: id, Version: o.version}, o.target.devices...)
	view := newWatchView(cmd, o.asJSON)
	// What the broker kept of each device comes first: which version it ran, and who is there at all.
	settle(ctx, link, track, view)
	if err := o.checkKnown(ctx, cmd, track); err != nil {
		return nil, err
	}
	if err := o.send(ctx, link, track.Command); err != nil {
		return nil, brokerFault(err)
	}
	if o.noWait {
		return track, printf(cmd, "sent %s (%s)\n", o.action, id)
	}
	o.sayOffline(cmd, track, view)
	follow(ctx, link, track, view, o.answer)
	view.end(track)
	return track, nil
}

func (o *order) checkTimeout(cmd *cobra.Command) error {
	if o.timeout < 0 {
		return usageFault(cmd, "--timeout of %s is less than nothing", o.timeout)
	}
	return nil
}

// checkKnown asks a server on this machine about named devices that are away, so that nobody waits an hour for a
// misspelt one. A server that does not answer is no reason to stop: the command goes through the broker.
func (o *order) checkKnown(ctx context.Context, cmd *cobra.Command, track *deploy.Track) error {
	if len(o.target.devices) == 0 || o.access.server == "" || o.access.config != "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	client, err := o.access.client(cmd)
	if err != nil {
		return err
	}
	for _, r := range track.Rows() {
		if r.Online {
			continue
		}
		var e *api.Error
		if _, err := client.Device(ctx, r.Device); errors.As(err, &e) && e.Code == api.CodeNotFound {
			return failure("see 'bmsota devices list'", "the server knows no device %q", r.Device)
		}
	}
	return nil
}

// sayOffline tells which of the named devices are not there, before a wait that may be long.
func (o *order) sayOffline(cmd *cobra.Command, track *deploy.Track, view *watchView) {
	var ids []string
	for _, r := range track.Rows() {
		if !r.Online {
			ids = append(ids, r.Device)
		}
	}
	if len(o.target.devices) == 0 || len(ids) == 0 {
		return
	}
	view.screen.clear()
	what := "waiting for it"
	if o.timeout > 0 {
		what = fmt.Sprintf("waiting up to %s", plainDuration(o.timeout))
	}
	if deploy.Kept(track.Command) {
		what += "; Ctrl-C ends the wait, the broker keeps the command"
	}
	warn(cmd, "not connected: %s (%s)", strings.Join(ids, ", "), what)
}

// plainDuration is d without the zero units that time.Duration prints: 1h instead of 1h0m0s.
func plainDuration(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// deadline bounds ctx by --timeout.
func (o *order) deadline(ctx context.Context) (context.Context, context.CancelFunc) {
	if o.timeout <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, o.timeout)
}

// send gives the command to every target; what fails for one device keeps none of the others from it.
func (o *order) send(ctx context.Context, link *deploy.Link, cmd protocol.Command) error {
	if o.target.all {
		return link.Send(ctx, "", cmd)
	}
	var err error
	for _, device := range o.target.devices {
		err = errors.Join(err, link.Send(ctx, device, cmd))
	}
	return err
}

// settleTime is how long a broker gets to send what it retained before the command goes out.
const settleTime = 300 * time.Millisecond

func settle(ctx context.Context, link *deploy.Link, track *deploy.Track, view *watchView) {
	quiet := time.NewTimer(settleTime)
	defer quiet.Stop()
	for {
		select {
		case r := <-link.Statuses():
			view.report(track.Apply(r), track)
		case <-quiet.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// follow applies reports until every device has a verdict or time is up. Where nobody has answered within the time answer
// it ends as well; 0 waits as long as ctx lasts.
func follow(ctx context.Context, link *deploy.Link, track *deploy.Track, view *watchView, answer time.Duration) {
	var silence <-chan time.Time
	if answer > 0 {
		timer := time.NewTimer(answer)
		defer timer.Stop()
		silence = timer.C
	}
	for !track.Ended() {
		select {
		case r := <-link.Statuses():
			view.report(track.Apply(r), track)
		case <-silence:
			if !track.Answered() {
				track.Expire()
				return
			}
		case <-ctx.Done():
			track.Expire()
			return
		}
	}
}

// verdict is one line of --json.
type verdict struct {
	DeviceID string          `json:"device_id"`
	From     string          `json:"from_version"`
	Version  string          `json:"current_version"`
	Phase    protocol.Phase  `json:"phase"`
	Verdict  deploy.Verdict  `json:"verdict"`
	Reason   protocol.Reason `json:"reason"`
	Message  string          `json:"message"`
}

func verdicts(track *deploy.Track) []verdict {
	list := []verdict{}
	for _, r := range track.Rows() {
		list = append(list, verdict{r.Device, r.From, r.Status.CurrentVersion, r.Status.Phase, r.Verdict, r.Reason, r.Status.Message})
	}
	return list
}

// verdictFault makes one exit code of many verdicts: a device that failed outweighs one that cannot be reached, and
// that one a refusal.
func verdictFault(cmd *cobra.Command, action protocol.Action, track *deploy.Track) error {
	count := make(map[deploy.Verdict]int)
	for _, r := range track.Rows() {
		count[r.Verdict]++
	}
	n := len(track.Rows())
	switch {
	case n == 0:
		return &fault{code: exitUnreachable, err: errors.New("no device answered"), hint: "see 'bmsota status' for who is connected"}
	case count[deploy.Failed] > 0:
		return &fault{code: exitDevice, err: fmt.Errorf("%s failed on %d of %d devices", action, count[deploy.Failed], n)}
	case cmd.Context().Err() != nil:
		return &fault{code: exitFailed, err: errors.New("interrupted; the devices go on by themselves"), hint: "see 'bmsota monitor'"}
	case count[deploy.Silent] > 0:
		return &fault{code: exitUnreachable, err: fmt.Errorf("%d of %d devices have not finished in time", count[deploy.Silent], n)}
	case count[deploy.Waiting] > 0:
		return &fault{code: exitUnreachable, err: fmt.Errorf("%d of %d devices are offline or waiting", count[deploy.Waiting], n),
			hint: waitingHint(track.Command)}
	case count[deploy.Refused] > 0:
		return &fault{code: exitRefused, err: fmt.Errorf("%s refused by %d of %d devices", action, count[deploy.Refused], n)}
	}
	return nil
}

func waitingHint(c protocol.Command) string {
	if deploy.Kept(c) {
		return "the broker keeps the command for a named device; it acts when it can"
	}
	return "try again when they are connected: see 'bmsota status'"
}
