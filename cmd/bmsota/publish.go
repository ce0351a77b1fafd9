package main

import (
	"errors"
	"fmt"
	"time"

	"bmsota/deploy"
	"bmsota/esp/appimage"
	"bmsota/protocol"

	"github.com/spf13/cobra"
)

func newPublishCmd() *cobra.Command {
	var (
		a                                                         access
		version, channel, description, minVersion, signer, folder string
		keys                                                      []string
		force, anyVersion, asJSON                                 bool
	)
	cmd := &cobra.Command{
		Use:   "publish IMAGE",
		Short: "verify, sign and offer an image to the fleet",
		Long: `Verifies IMAGE as a device would, signs a manifest of it with the key (which stays on this
machine), uploads both and points the channel at the new release. Nobody is updated by this: see
'bmsota update' for that, unless --force-update is given.

With --folder the release goes into a folder that any web server can serve, instead of to a server.`,
		Example: `  bmsota publish build/esp32-bms-monitor.bin --key release.pem
  bmsota publish app.bin --key release.pem --channel beta --description "faster cell balancing"
  bmsota publish app.bin --key release.pem --folder /var/www/firmware`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := imageKind.read(cmd, args[0])
			if err != nil {
				return err
			}
			if err := checkVersions(cmd, version, minVersion, anyVersion); err != nil {
				return err
			}
			r := deploy.Release{Image: b, Version: version, MinVersion: minVersion, Description: description,
				ForceUpdate: force, SignedAt: time.Now(), BuildDate: buildDate(b), AllowAnyVersion: anyVersion}
			signing, err := signingKeys(cmd, keys, signer)
			if err != nil {
				return err
			}
			if r.Keys, err = readSigners(cmd, signing); err != nil {
				return err
			}
			p, err := deploy.Prepare(r)
			if err != nil {
				return prepareFault(args[0], err)
			}
			if folder != "" {
				return publishFolder(cmd, folder, p, asJSON)
			}
			client, err := a.client(cmd)
			if err != nil {
				return err
			}
			out, err := deploy.Publish(cmd.Context(), client, p, channel, uploadProgress(cmd, asJSON))
			if err != nil {
				return publishFault(err, len(r.Keys) == 0)
			}
			for _, w := range merge(p.Warnings, out.Warnings) {
				warn(cmd, "%s", w)
			}
			if asJSON {
				return printJSON(cmd, out.Release)
			}
			return printf(cmd, "published %s %s for %s: %d bytes, sha256 %s\n",
				out.Release.Project, out.Release.Version, out.Release.Chip, out.Release.Size, out.Release.SHA256)
		},
	}
	a.serverFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&version, "version", "", "override the version of the image's own description")
	f.StringVar(&channel, "channel", "", `channel to point at the release (default "stable")`)
	f.StringVar(&description, "description", "", "what changed, for people")
	f.StringVar(&minVersion, "min-version", "", "what a device must run at least to take this release")
	f.BoolVar(&force, "force-update", false, "a device that checks installs it without being told to")
	f.StringArrayVar(&keys, "key", nil, "release key that signs the manifest, see 'bmsota keys new'; given again, a further key that signs too")
	f.StringVar(&signer, "signer", "", signerUsage)
	f.StringVar(&folder, "folder", "", "write firmware and version.json into this folder instead")
	f.BoolVar(&anyVersion, "allow-any-version", false, "take a version that is no SemVer")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// checkVersions finds a wrong flag before a file is read for it.
func checkVersions(cmd *cobra.Command, version, minVersion string, anyVersion bool) error {
	if _, ok := protocol.ParseVersion(version); version != "" && !ok && !anyVersion {
		return usageFault(cmd, "--version %q is no SemVer 2.0.0 version such as 1.4.0 (--allow-any-version takes it)", version)
	}
	if _, ok := protocol.ParseVersion(minVersion); minVersion != "" && !ok {
		return usageFault(cmd, "--min-version %q is no SemVer 2.0.0 version such as 1.4.0", minVersion)
	}
	return nil
}

func prepareFault(path string, err error) error {
	switch {
	case errors.Is(err, deploy.ErrVersion):
		return badContent(path, err, "set the version where the image is built, or give --version, or --allow-any-version")
	case errors.Is(err, deploy.ErrImage):
		return badContent(path, err, "see 'bmsota image info' for what the file holds")
	}
	return err
}

// publishFault is serverFault with what a publisher can do about it.
func publishFault(err error, unsigned bool) error {
	fail := serverFault(err)
	if f, ok := errors.AsType[*fault](fail); ok && f.hint == "" && f.code == exitRefused && unsigned {
		f.hint = "give the release key with --key; 'bmsota keys new' makes one"
	}
	return fail
}

func publishFolder(cmd *cobra.Command, folder string, p *deploy.Prepared, asJSON bool) error {
	files, err := deploy.WriteFolder(folder, p)
	if err != nil {
		return failure("is there room, is it a folder, and may this user write there?", "write folder %s: %w", shown(folder), cause(err))
	}
	for _, w := range p.Warnings {
		warn(cmd, "%s", w)
	}
	if asJSON {
		return printJSON(cmd, p.VersionFile(p.Manifest.SHA256+".bin"))
	}
	for _, name := range files {
		if err := printf(cmd, "wrote %s\n", shown(name)); err != nil {
			return err
		}
	}
	return printf(cmd, "server_url of the devices: the address under which a web server shows firmware.bin\n")
}

// buildDate is when the image says it was compiled, zero when it does not say.
func buildDate(b []byte) time.Time {
	img, err := appimage.Parse(b)
	if err != nil || img.Desc == nil {
		return time.Time{}
	}
	t, err := time.Parse("Jan _2 2006 15:04:05", img.Desc.Date+" "+img.Desc.Time)
	if err != nil {
		return time.Time{}
	}
	return t
}

// merge joins two lists of warnings, each sentence once.
func merge(a, b []string) []string {
	seen := make(map[string]bool)
	var all []string
	for _, w := range append(append([]string(nil), a...), b...) {
		if !seen[w] {
			seen[w] = true
			all = append(all, w)
		}
	}
	return all
}

// uploadProgress shows an upload on a terminal, and nothing elsewhere.
func uploadProgress(cmd *cobra.Command, quiet bool) func(done, total int64) {
	screen := newScreen(cmd.ErrOrStderr())
	if quiet || !screen.live {
		return nil
	}
	return func(done, total int64) {
		line := fmt.Sprintf("uploading %s %s", bar(done, total), sizes(done, total))
		if done == total {
			screen.clear()
			return
		}
		screen.draw([]string{line})
	}
}
