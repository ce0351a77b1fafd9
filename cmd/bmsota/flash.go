package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"bmsota/api"
	"bmsota/deploy"
	"bmsota/protocol"

	"github.com/spf13/cobra"
)

// deployment is a firmware project and the settings it is deployed with, as flash and check have them.
type deployment struct {
	order   order
	dir     string // the project's folder
	build   string // where it was built; empty: in its folder build
	version string // published instead of the image's own
	settings
}

// settings is a deployment configuration and the file it is from.
type settings struct {
	config deploy.Config
	path   string
}

func newFlashCmd() *cobra.Command {
	d := deployment{order: order{action: protocol.ActionUpdate}}
	var noUpdate bool
	var keys []string
	var signer string
	cmd := &cobra.Command{
		Use:   "flash",
		Short: "from a firmware project to the devices: check, upload, update, watch (idf.py ota_flash)",
		Long: `Takes the image that was built last in a firmware project, checks it against the project (chip, and
the smallest OTA slot of its partition table) and against what the server offers (the version must be
newer), uploads it, tells the devices to update, and shows each until it is confirmed on the new image
or has gone back.

Where everything is comes from ` + deploy.ConfigName + `: see 'bmsota config' and docs/deploying.md.`,
		Example: `  bmsota flash                            # all devices that are connected
  bmsota flash --device bms-a1b2c3        # that one
  bmsota flash --version 1.4.0 --no-update    # publish only`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			signing, err := signingKeys(cmd, keys, signer)
			if err != nil {
				return err
			}
			return d.flash(cmd, signing, noUpdate)
		},
	}
	f := cmd.Flags()
	d.registerPlaces(cmd)
	f.StringVar(&d.version, "version", "", "publish under this version instead of the image's own")
	f.BoolVar(&d.order.force, "force", false, "skip the comparison of versions, here and on the devices, and nothing else")
	f.StringArrayVar(&keys, "key", nil, "release key that signs, in place of those of the settings; given again, a further key that signs too")
	f.StringVar(&signer, "signer", "", signerUsage)
	f.BoolVar(&noUpdate, "no-update", false, "publish, and tell no device")
	f.StringSliceVar(&d.order.target.devices, "device", nil, "device id; may be given several times (default: all that are connected)")
	f.DurationVar(&d.order.timeout, "timeout", orderTimeout, "how long to wait for the devices; 0 = without end")
	f.BoolVar(&d.order.asJSON, "json", false, "print what was done as JSON at the end")
	return cmd
}

func (d *deployment) registerPlaces(cmd *cobra.Command) {
	f := cmd.Flags()
	d.registerProject(cmd)
	f.StringVar(&d.path, "config", "", "deployment settings (default: "+deploy.ConfigName+" in the project)")
}

// registerProject adds the flags that say where the firmware project is. idf.py tells its build folder by the variable.
func (d *deployment) registerProject(cmd *cobra.Command) {
	cmd.Flags().StringVar(&d.dir, "project", ".", "folder of the firmware project")
	cmd.Flags().StringVar(&d.build, "build", os.Getenv("BMSOTA_BUILD_DIR"), "folder it was built in (BMSOTA_BUILD_DIR; default build in the project)")
}

// openProject looks at the project as it was built last.
func (d *deployment) openProject() (*deploy.Project, error) {
	build := d.build
	if build == "" {
		build = filepath.Join(d.dir, deploy.BuildFolder)
	}
	return deploy.OpenProject(d.dir, build, d.config.Build.FirmwarePath)
}

// load reads the settings.
func (s *settings) load(dir string) (err error) {
	if s.path == "" {
		s.path = filepath.Join(dir, deploy.ConfigName)
	}
	s.config, err = deploy.LoadConfig(s.path)
	if errors.Is(err, syscall.ENOTDIR) {
		return usagef("%s cannot be there: a part of the path is a file", shown(s.path))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return failure("'bmsota config' makes one", "there are no deployment settings %s", shown(s.path))
	}
	if err != nil {
		return configFault(s.path, err, "docs/deploying.md describes every key; 'bmsota config' makes a new file")
	}
	return nil
}

// flashed is what flash prints with --json.
type flashed struct {
	Image    string    `json:"image"` // path
	Project  string    `json:"project"`
	Chip     string    `json:"chip"`
	Version  string    `json:"version"`
	Size     int64     `json:"size"` // bytes
	SHA256   string    `json:"sha256"`
	Signed   bool      `json:"signed"`
	SlotFree *int64    `json:"slot_free"` // bytes left in the smallest slot; null where the project has no partition table
	Server   string    `json:"server"`
	Uploaded bool      `json:"uploaded"` // false: it was there already
	Devices  []verdict `json:"devices"`
}

// flash signs with the keys of the settings where none are given.
func (d *deployment) flash(cmd *cobra.Command, signing []deploy.SigningKey, noUpdate bool) error {
	o := &d.order
	o.target.all = len(o.target.devices) == 0
	if err := errors.Join(o.target.check(cmd), o.checkTimeout(cmd), d.load(d.dir)); err != nil {
		return err
	}
	if len(signing) > 0 {
		first := signing[0]
		d.config.Signing = deploy.SigningConfig{SigningKey: first, Cosigners: signing[1:]}
	}
	project, p, err := d.prepare(cmd)
	if err != nil {
		return err
	}
	if !noUpdate {
		// A broker that is not there is found before anything has changed.
		link, err := d.link(cmd.Context(), cmd)
		if err != nil {
			return err
		}
		link.Close()
	}
	out := flashed{Image: project.ImagePath, Project: p.Manifest.Project, Chip: p.Manifest.Chip, Version: p.Manifest.Version,
		Size: p.Manifest.Size, SHA256: p.Manifest.SHA256, Signed: p.JWS != "", Devices: []verdict{}}
	if free, ok := project.Room(); ok {
		out.SlotFree = &free
	}
	if err := d.upload(cmd, p, &out); err != nil {
		return err
	}
	var track *deploy.Track
	if !noUpdate {
		if cmd.Context().Err() != nil {
			return failure("'bmsota update' tells them", "interrupted: %s offers %s, and no device was told", plain(out.Server), out.Version)
		}
		if track, err = d.update(cmd, p.Manifest.Version); err != nil {
			return err
		}
		out.Devices = verdicts(track)
	}
	if o.asJSON {
		if err := printJSON(cmd, out); err != nil {
			return err
		}
	}
	if track == nil {
		return nil
	}
	return verdictFault(cmd, o.action, track)
}

// prepare checks the image against the project, and makes a release of it.
func (d *deployment) prepare(cmd *cobra.Command) (*deploy.Project, *deploy.Prepared, error) {
	project, err := d.openProject()
	if err != nil {
		return nil, nil, projectFault(err)
	}
	warnings, err := project.Check()
	if err != nil {
		return nil, nil, projectFault(err)
	}
	version, from, err := project.Version(cmd.Context(), d.version)
	if err != nil {
		return nil, nil, projectFault(err)
	}
	r := deploy.Release{Image: project.Image, Version: version, SignedAt: time.Now(), BuildDate: buildDate(project.Image)}
	if r.Keys, err = readSigners(cmd, d.config.Signing.Keys()); err != nil {
		return nil, nil, err
	}
	p, err := deploy.Prepare(r)
	if err != nil {
		return nil, nil, prepareFault(project.ImagePath, err)
	}
	for _, w := range merge(warnings, p.Warnings) {
		warn(cmd, "%s", plain(w))
	}
	if d.order.asJSON {
		return project, p, nil
	}
	m := p.Manifest
	if err := printf(cmd, "image    %s: %s %s for %s, %d bytes (version from %s)\n", shown(project.ImagePath), plain(cmp.Or(m.Project, "-")), m.Version, m.Chip, m.Size, from); err != nil {
		return nil, nil, err
	}
	if free, ok := project.Room(); ok {
		err = printf(cmd, "slot     %s has %d bytes: %d left\n", plain(project.Slot.Name), project.Slot.Size, free)
	}
	return project, p, err
}

func projectFault(err error) error {
	switch {
	case errors.Is(err, context.Canceled):
		return failure("", "interrupted before anything was sent")
	case errors.Is(err, deploy.ErrVersion):
		return refused(err, "set PROJECT_VER where the image is built, or tag the commit ('git tag v1.4.0'), or give --version 1.4.0")
	case errors.Is(err, deploy.ErrImage):
		return refused(err, "see 'bmsota image info' and 'bmsota partition show' for what the files hold")
	case errors.Is(err, deploy.ErrNoImage):
		return failure("build it first ('idf.py build'), or name the image in the settings as build.firmware_path", "%w", err)
	}
	return err
}

// upload puts the release where devices find it.
func (d *deployment) upload(cmd *cobra.Command, p *deploy.Prepared, out *flashed) error {
	at, err := d.open(cmd.Context(), cmd)
	if err != nil {
		return err
	}
	defer at.Close() // what matters has been acknowledged before
	uploaded, warnings, err := deploy.Deliver(cmd.Context(), at, p, d.order.force, uploadProgress(cmd, d.order.asJSON))
	if err != nil {
		newScreen(cmd.ErrOrStderr()).clear()
		return placeFault(at, err, p.JWS == "")
	}
	for _, w := range warnings {
		warn(cmd, "%s", plain(w))
	}
	out.Server, out.Uploaded = at.String(), uploaded
	if d.order.asJSON {
		return nil
	}
	if uploaded {
		return printf(cmd, "server   %s offers it now\n", plain(at.String()))
	}
	return printf(cmd, "server   %s offers it already: nothing to upload\n", plain(at.String()))
}

// update gives the order and watches.
func (d *deployment) update(cmd *cobra.Command, version string) (*deploy.Track, error) {
	ctx, cancel := d.order.deadline(cmd.Context())
	defer cancel()
	link, err := d.link(ctx, cmd)
	if err != nil {
		return nil, err
	}
	defer link.Close()
	d.order.version, d.order.answer = version, d.config.Answer()
	return d.order.give(ctx, cmd, link)
}

// access is what the settings say, and the secrets that the environment holds instead.
func (s *settings) access() *access {
	a := &access{token: os.Getenv("BMSOTA_TOKEN"), password: os.Getenv("BMSOTA_PASSWORD")}
	a.fromConfig(s.config)
	return a
}

func (s *settings) link(ctx context.Context, cmd *cobra.Command) (*deploy.Link, error) {
	a := s.access()
	if a.broker == "" {
		return nil, &fault{code: exitUsage, err: fmt.Errorf("%s names no broker", shown(s.path)), hint: "set mqtt.broker, or publish only with --no-update"}
	}
	ctx, cancel := context.WithTimeout(ctx, s.config.Answer())
	defer cancel()
	link, err := a.dial(ctx, cmd)
	if err != nil && cmd.Context().Err() != nil {
		return nil, failure("", "interrupted")
	}
	return link, err
}

// open reaches the place that releases go to.
func (s *settings) open(ctx context.Context, cmd *cobra.Command) (deploy.Place, error) {
	c := s.config
	switch c.Kind() {
	case deploy.KindDir:
		return deploy.OpenFolder(c.Server.Dir), nil
	case deploy.KindSFTP:
		home, err := os.UserHomeDir()
		if err != nil {
			return nil, failure("set HOME", "where ssh keeps its files is not known: %w", err)
		}
		at, err := deploy.OpenSFTP(ctx, c, deploy.SSH{Password: c.Server.Password, KeyFile: c.Server.SFTP.KeyFile,
			KnownHosts: c.Server.SFTP.KnownHosts, Agent: os.Getenv("SSH_AUTH_SOCK"), Home: home, Ask: asker(ctx, cmd)})
		if err != nil {
			return nil, placeFault(nil, err, false)
		}
		return at, nil
	}
	if c.Server.BaseURL == "" {
		return nil, &fault{code: exitUsage, err: fmt.Errorf("%s names no server", shown(s.path)), hint: "set server.base_url, or server.kind to sftp or dir"}
	}
	if v := c.Server.VerifySSL; v != nil && !*v {
		warn(cmd, "server.verify_ssl is false, and the certificate is verified all the same: the token goes over this connection. Trust the server's with server.ca_file")
	}
	client, err := s.access().newClient(cmd)
	if err != nil {
		return nil, err
	}
	return deploy.OpenServer(client, c.Server.BaseURL), nil
}

// placeFault turns what went wrong on the way to a place into its exit code and hint. at is nil where it was not reached.
func placeFault(at deploy.Place, err error, unsigned bool) error {
	var host *deploy.HostKeyError
	var answer *api.Error
	var left *deploy.LeftoverError
	switch {
	case errors.Is(err, context.Canceled) && errors.As(err, &left):
		return failure("remove that file when the machine is there again", "interrupted: nothing has changed on %s, but %s is left there", plain(at.String()), plain(left.Path))
	case errors.Is(err, context.Canceled) && at == nil:
		return failure("", "interrupted before anything was sent")
	case errors.Is(err, context.Canceled):
		return failure("", "interrupted: nothing has changed on %s", plain(at.String()))
	case errors.As(err, &host) && (host.Line > 0 || host.Revoked):
		return refused(err, "ask whoever runs the machine; only when its key is known to be new: "+host.Command)
	case errors.As(err, &host):
		return refused(err, "compare that fingerprint with the machine's own (there: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), then: "+host.Command)
	case errors.Is(err, deploy.ErrMachineLogin):
		return refused(err, "check server.username, the key (server.sftp.key_file, or ssh-add -l) and server.password")
	case errors.Is(err, deploy.ErrMachineUnreachable):
		return &fault{code: exitUnreachable, err: err, hint: "does the machine run, and are host and port right?"}
	case errors.Is(err, deploy.ErrNotNewer):
		return refused(err, "build it as a newer version, or give one with --version; --force skips this check for sftp and dir")
	case errors.Is(err, deploy.ErrOffer):
		return refused(err, "--force replaces it")
	case errors.Is(err, deploy.ErrNoReplace):
		return refused(err, "use OpenSSH's SFTP server, or server.kind dir or bmsota")
	case errors.Is(err, fs.ErrPermission):
		return failure("may that user write there?", "%w", err)
	case errors.As(err, &answer), errors.Is(err, api.ErrUnreachable), errors.Is(err, api.ErrTimeout), errors.Is(err, api.ErrUntrusted):
		fail := publishFault(err, unsigned)
		if f, ok := errors.AsType[*fault](fail); ok {
			f.hint = strings.Replace(f.hint, "--ca-file", "server.ca_file", 1)
			f.hint = strings.Replace(f.hint, "--key;", "signing.key_file;", 1)
		}
		return fail
	}
	return err
}
