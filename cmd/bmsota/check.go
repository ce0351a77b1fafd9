package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"bmsota/deploy"
	"bmsota/protocol"

	"github.com/spf13/cobra"
)

// checkTimeout is how long a check may take: a device tries to reach its server for 90 seconds.
const checkTimeout = 2 * time.Minute

func newCheckCmd() *cobra.Command {
	d := deployment{order: order{action: protocol.ActionCheck}}
	cmd := &cobra.Command{
		Use:   "check",
		Short: "ask devices what they are offered (idf.py ota_check)",
		Long: `Tells devices to look for an update and say what they found, without installing it (unless the
release says force_update). With none named it asks every connected device.

In a firmware project with an ` + deploy.ConfigName + `, or with --config, it first says what the server
there offers and whether the image that was built last is newer.`,
		Example: `  bmsota check
  bmsota check --device bms-a1b2c3`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			d.order.target.all = len(d.order.target.devices) == 0
			d.path = d.order.access.config
			if d.path == "" && !d.configured(cmd) {
				return d.order.run(cmd, args)
			}
			return d.check(cmd)
		},
	}
	d.order.register(cmd, checkTimeout)
	d.registerProject(cmd)
	return cmd
}

// configured says whether the project has settings that nothing more explicit stands before.
func (d *deployment) configured(cmd *cobra.Command) bool {
	for _, name := range []string{"data", "broker"} {
		if cmd.Flags().Changed(name) {
			return false
		}
	}
	for _, name := range []string{"BMSOTA_DATA", "BMSOTA_BROKER"} {
		if os.Getenv(name) != "" {
			return false
		}
	}
	_, err := os.Stat(filepath.Join(d.dir, deploy.ConfigName))
	return err == nil
}

// checked is what check prints with --json where there are deployment settings; without, it is the list of devices.
type checked struct {
	Server  *serverOffer `json:"server"` // null where the settings name none
	Build   *localBuild  `json:"build"`  // null where nothing was built
	Devices []verdict    `json:"devices"`
}

type serverOffer struct {
	Name    string `json:"name"`
	Version string `json:"version"` // empty = nothing yet
	SHA256  string `json:"sha256"`
}

type localBuild struct {
	Image   string `json:"image"`
	Version string `json:"version"`
	SHA256  string `json:"sha256"`
	Newer   bool   `json:"newer"` // than what the server offers
}

func (d *deployment) check(cmd *cobra.Command) error {
	o := &d.order
	if err := errors.Join(o.target.check(cmd), o.checkTimeout(cmd), d.load(d.dir)); err != nil {
		return err
	}
	o.access.config = d.path
	ctx, cancel := o.deadline(cmd.Context())
	defer cancel()
	var out checked
	if d.config.Server.BaseURL != "" || d.config.Kind() != deploy.KindServer {
		if err := d.compare(ctx, cmd, &out); err != nil {
			return err
		}
	}
	link, err := o.access.link(ctx, cmd)
	if err != nil {
		return err
	}
	defer link.Close()
	o.answer = d.config.Answer()
	track, err := o.give(ctx, cmd, link)
	if err != nil {
		return err
	}
	if o.asJSON {
		out.Devices = verdicts(track)
		if err := printJSON(cmd, out); err != nil {
			return err
		}
	}
	return verdictFault(cmd, o.action, track)
}

// compare tells what the server offers beside what was built.
func (d *deployment) compare(ctx context.Context, cmd *cobra.Command, out *checked) error {
	project, version, err := d.built(ctx)
	if err != nil && !errors.Is(err, deploy.ErrNoImage) {
		warn(cmd, "%s", plain(sentence(err)))
	}
	at, err := d.open(ctx, cmd)
	if err != nil {
		return err
	}
	defer at.Close() // nothing was written
	var name, chip string
	if project != nil {
		if chip = project.Parsed.Header.Chip.String(); project.Parsed.Desc != nil {
			name = project.Parsed.Desc.Project
		}
	}
	offer, err := at.Offered(ctx, name, chip)
	if err != nil {
		return placeFault(at, err, false)
	}
	out.Server = &serverOffer{at.String(), offer.Version, offer.SHA256}
	if project != nil {
		sum := deploy.Digest(project.Image)
		out.Build = &localBuild{project.ImagePath, version, sum, protocol.Newer(version, offer.Version)}
	}
	if d.order.asJSON {
		return nil
	}
	offers := "nothing yet"
	if offer.Version != "" {
		offers = plain(offer.Version)
	}
	if err := printf(cmd, "server   %s offers %s\n", plain(at.String()), offers); err != nil {
		return err
	}
	if out.Build == nil {
		return printf(cmd, "build    nothing built here\n")
	}
	return printf(cmd, "build    %s is %s: %s\n", shown(out.Build.Image), plain(out.Build.Version), out.Build.against(offer))
}

// built is the image that was built last and its version; nil where there is none or it is not fit to be published.
func (d *deployment) built(ctx context.Context) (*deploy.Project, string, error) {
	project, err := d.openProject()
	if err != nil {
		return nil, "", err
	}
	version, _, err := project.Version(ctx, "")
	if err != nil {
		return nil, "", err
	}
	return project, version, nil
}

// against says how a build stands to what is offered.
func (b *localBuild) against(o deploy.Offer) string {
	switch {
	case o.Version == "":
		return "not published yet"
	case b.SHA256 == o.SHA256:
		return "the same image"
	case b.Newer:
		return "newer, 'bmsota flash' publishes it"
	case b.Version == o.Version:
		return "the same version with other bytes"
	}
	return "not newer"
}
