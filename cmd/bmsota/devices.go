package main

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"bmsota/api"
	"bmsota/durable"

	"github.com/spf13/cobra"
)

func newDevicesCmd() *cobra.Command {
	return group("devices", "list, show, enroll, label, clear and revoke devices, and put them into channels", newDevicesListCmd(), newDevicesShowCmd(), newDevicesEnrollCmd(), newDevicesLabelCmd(), newDevicesChannelCmd(), newDevicesClearCmd(), newDevicesRevokeCmd())
}

func newDevicesListCmd() *cobra.Command {
	return newListCmd("list devices as the server knows them", "no devices yet; see 'bmsota devices enroll'",
		"DEVICE\tONLINE\tVERSION\tPHASE\tREASON\tCHIP\tSIGNED ONLY\tROLLBACK\tLAST SEEN\tSUSPECT", (*api.Client).Devices, func(d api.Device) string {
			return fmt.Sprintf("%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s", d.DeviceID, yesNo(d.Online), orDash(plain(d.CurrentVersion)),
				orDash(string(d.Phase)), orDash(string(d.Reason)), orDash(d.Chip), yesNo(d.SignedOnly), yesNo(d.RollbackProtected), lastSeen(d.LastSeen), orDash(suspicionKinds(d.Suspicions)))
		})
}

// suspicionKinds names what a device is suspected of.
func suspicionKinds(list []api.Suspicion) string {
	kinds := make([]string, 0, len(list))
	for _, s := range list {
		kinds = append(kinds, s.Kind)
	}
	return strings.Join(kinds, ",")
}

func lastSeen(t *time.Time) string {
	if t == nil {
		return "never"
	}
	return ago(*t)
}

func newDevicesShowCmd() *cobra.Command {
	var a access
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show DEVICE",
		Short: "show one device and its latest attempts",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.client(cmd)
			if err != nil {
				return err
			}
			d, err := client.Device(cmd.Context(), args[0])
			if err != nil {
				return serverFault(notFoundHint(err, "see 'bmsota devices list'"))
			}
			if asJSON {
				d.Attempts = emptyNotNull(d.Attempts)
				return printJSON(cmd, d)
			}
			return showDevice(cmd, d)
		},
	}
	a.serverFlags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func showDevice(cmd *cobra.Command, d api.DeviceDetail) error {
	var b strings.Builder
	row := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "  %-13s %s\n", name, fmt.Sprintf(format, args...))
	}
	fmt.Fprintf(&b, "%s\n", d.DeviceID)
	row("online", "%s, last seen %s", yesNo(d.Online), lastSeen(d.LastSeen))
	row("runs", "%s %s (%s), image %s", orDash(plain(d.Project)), orDash(plain(d.CurrentVersion)), orDash(d.Slot), orDash(d.ImageSHA256))
	row("phase", "%s", strings.Join(words(orDash(string(d.Phase)), string(d.Reason), plain(d.Message)), " "))
	row("chip", "%s, slot of %d bytes", orDash(d.Chip), d.SlotSize)
	row("protection", "rollback %s, signed releases only %s", yesNo(d.RollbackProtected), yesNo(d.SignedOnly))
	row("account", "enrolled %s, revoked %s, channel %s", yesNo(d.Enrolled), yesNo(d.Revoked), orDash(d.Channel))
	if d.CertificateSHA256 != "" {
		row("certificate", "%s, until %s", d.CertificateSHA256, d.CertificateEnds.Format(time.DateOnly))
	}
	if len(d.Labels) > 0 {
		row("labels", "%s", labelsText(d.Labels))
	}
	if d.Battery != nil {
		row("battery", "%.1f %%, %+.1f A, charging %s", d.Battery.SOCPct, d.Battery.PackCurrentA, yesNo(d.Battery.Charging))
		if t := d.Battery.Temperatures(); t != "" {
			row("cells", "%s", t)
		}
	}
	for _, s := range d.Suspicions {
		row("suspect", "%s (%s, since %s, %d times, last %s): %s", s.Text, s.Kind, s.Since.Format(time.RFC3339), s.Times, s.Last.Format(time.RFC3339), plain(s.Evidence))
	}
	if c := d.Contest; c != nil {
		row("contested", "its login is used in two places, %s: two boards with one token, or a stolen one (last %s)", strings.Join(c.Addresses, " and "), c.At.Format(time.RFC3339))
	}
	for i, t := range d.Attempts {
		name := ""
		if i == 0 {
			name = "attempts"
		}
		row(name, "%s %s: %s (%s)", t.CreatedAt.Format(time.RFC3339), strings.Join(words(string(t.Action), t.Version), " "),
			strings.Join(words(string(t.State), string(t.Reason)), " "), t.CommandID)
	}
	return printf(cmd, "%s", trimLines(b.String()))
}

// words leaves out of a row what is empty, and what says the same as the word before.
func words(all ...string) []string {
	return slices.Compact(slices.DeleteFunc(all, func(s string) bool { return s == "" }))
}

// notFoundHint adds what to do about a name that the server does not know.
func notFoundHint(err error, hint string) error {
	var e *api.Error
	if errors.As(err, &e) && e.Code == api.CodeNotFound {
		return &fault{code: exitFailed, err: err, hint: hint}
	}
	return err
}

func newDevicesEnrollCmd() *cobra.Command {
	var a access
	var asJSON bool
	var folder, trustedKey, out string
	var certificate bool
	cmd := &cobra.Command{
		Use:   "enroll DEVICE",
		Short: "give a device a login and print its token, this once",
		Long: `Gives the device a new token in place of any login it had, and prints it. The server keeps only its
digest. The token is the password in the device's mqtt_config.txt.

With --certificate it is a certificate in place of a token. The private key is made here and is sent nowhere; -o names
a folder for client.pem and client.key.

With --files both files of the device's storage partition are written to a folder, ready for it.`,
		Example: `  bmsota devices enroll bms-a1b2c3
  bmsota devices enroll bms-a1b2c3 --files storage --trusted-key release.pub.pem
  bmsota devices enroll bms-a1b2c3 --certificate -o bms-a1b2c3`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if trustedKey != "" && folder == "" {
				return usageFault(cmd, "--trusted-key goes into the files that --files writes")
			}
			if certificate && folder == "" && out == "" || out != "" && !certificate {
				return usageFault(cmd, "--certificate and -o go together, or --certificate and --files: somewhere the key has to stay")
			}
			client, err := a.client(cmd)
			if err != nil {
				return err
			}
			// What the files need is asked first: a device must not lose its old token over a folder or a key.
			write, err := deviceFilesWriter(cmd, client, folder, trustedKey)
			if err != nil {
				return err
			}
			if err := placeForCertificate(cmd, client, certificate, out); err != nil {
				return err
			}
			before, beforeErr := client.Device(cmd.Context(), args[0])
			given, login, err := api.EnrollDevice(cmd.Context(), client, args[0], certificate)
			if err != nil {
				return serverFault(err)
			}
			if beforeErr == nil && before.Enrolled && !before.Revoked {
				warn(cmd, "the login that %s had is no longer taken: put the new one into its mqtt_config.txt", args[0])
			}
			if write != nil {
				if err := write(given.DeviceID, login); err != nil {
					return err
				}
			}
			if out != "" {
				if err := writeCertificate(out, login); err != nil {
					return err
				}
			}
			switch {
			case asJSON:
				return printJSON(cmd, given)
			case certificate:
				return printf(cmd, "%s  certificate %s, until %s\n", given.DeviceID, given.CertificateSHA256, given.CertificateEnds.Format(time.DateOnly))
			}
			return printf(cmd, "%s\n", given.Token)
		},
	}
	a.serverFlags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&certificate, "certificate", false, "give a certificate in place of a token")
	cmd.Flags().StringVarP(&out, "out", "o", "", "with --certificate: write client.pem and client.key into this folder")
	cmd.Flags().StringVar(&folder, "files", "", "write ota_config.txt and mqtt_config.txt into this folder")
	cmd.Flags().StringVar(&trustedKey, "trusted-key", "", "with --files: public key that signs releases; without it the device takes unsigned ones")
	return cmd
}

// deviceFilesWriter prepares to write a device's two files into folder; nil when none is asked for.
func deviceFilesWriter(cmd *cobra.Command, client *api.Client, folder, trustedKey string) (func(string, api.Login) error, error) {
	if folder == "" {
		return nil, nil
	}
	key, err := readTrustedKey(cmd, trustedKey)
	if err != nil {
		return nil, err
	}
	info, err := client.Server(cmd.Context())
	if err != nil {
		return nil, serverFault(err)
	}
	if err := durable.MkdirAll(folder, 0o700); err != nil {
		return nil, unwritable(folder, err)
	}
	return func(id string, login api.Login) error {
		ota, mqtt, err := info.DeviceFiles(id, login, key)
		if err != nil {
			return failure("set host in the server's configuration", "%w", err)
		}
		for name, file := range map[string]interface{ Append([]byte) ([]byte, error) }{"ota_config.txt": ota, "mqtt_config.txt": mqtt} {
			text, err := file.Append(nil)
			if err != nil {
				return failure("", "%w", err)
			}
			// They hold the token, or the key.
			if err := durable.WriteFile(filepath.Join(folder, name), text, 0o600); err != nil {
				return unwritable(filepath.Join(folder, name), err)
			}
		}
		return nil
	}, nil
}

func labelsText(labels map[string]string) string {
	parts := make([]string, 0, len(labels))
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		parts = append(parts, key+"="+labels[key])
	}
	return strings.Join(parts, " ")
}

func newDevicesLabelCmd() *cobra.Command {
	var a access
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "label DEVICE KEY=VALUE… KEY-…",
		Short: "set labels of a device, or take them away",
		Long: `Sets KEY=VALUE and takes away KEY-, and prints all labels that the device has then. Rollouts select by labels and
keep apart what shares one (--spread bank). The label timezone ("Europe/Berlin" or "+05:30") gives the device its local
time, for windows.`,
		Example: `  bmsota devices label bms-a1b2c3 site=north bank=3 timezone=Europe/Berlin
  bmsota devices label bms-a1b2c3 bank-`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := api.SetLabelsRequest{Set: make(map[string]string)}
			for _, arg := range args[1:] {
				if key, value, ok := strings.Cut(arg, "="); ok {
					in.Set[key] = value
				} else if key, ok := strings.CutSuffix(arg, "-"); ok {
					in.Remove = append(in.Remove, key)
				} else {
					return usageFault(cmd, "%q is neither key=value nor key-", arg)
				}
			}
			client, err := a.client(cmd)
			if err != nil {
				return err
			}
			labels, err := client.SetLabels(cmd.Context(), args[0], in)
			if err != nil {
				return serverFault(notFoundHint(err, "see 'bmsota devices list'"))
			}
			if asJSON {
				return printJSON(cmd, labels)
			}
			return printf(cmd, "%s: %s\n", args[0], orDash(labelsText(labels)))
		},
	}
	a.serverFlags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newDevicesChannelCmd() *cobra.Command {
	var a access
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "channel DEVICE CHANNEL",
		Short: "put a device into a channel",
		Long: `The device is offered what the channel points at when it next asks: at its own check, or at an update that names no
version. A device whose server_url names a channel (…/firmware/PROJECT/CHANNEL/…) is offered that one, whatever is said here.
Rollouts select by it: rollout create --channel.`,
		Example: `  bmsota publish app.bin --key release.pem --channel beta
  bmsota devices channel bms-a1b2c3 beta
  bmsota devices channel bms-a1b2c3 stable                # back`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.client(cmd)
			if err != nil {
				return err
			}
			d, err := client.SetDeviceChannel(cmd.Context(), args[0], args[1])
			if err != nil {
				return serverFault(notFoundHint(err, "see 'bmsota devices list'"))
			}
			if asJSON {
				return printJSON(cmd, d)
			}
			return printf(cmd, "%s: %s\n", d.DeviceID, plain(d.Channel))
		},
	}
	a.serverFlags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newDevicesClearCmd() *cobra.Command {
	var a access
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "clear DEVICE",
		Short: "take away what a device is suspected of",
		Long: `A device whose reports do not go together is left out of rollouts until it is cleared: it is not started, and what it says
counts for nothing. Find the other board first: give one of them a login of its own ('bmsota devices enroll', which clears the device,
too), or it is suspected again with its next reports.`,
		Example: `  bmsota devices show bms-a1b2c3                          # what was seen
  bmsota devices clear bms-a1b2c3`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.client(cmd)
			if err != nil {
				return err
			}
			d, err := client.Clear(cmd.Context(), args[0])
			if err != nil {
				return serverFault(notFoundHint(err, "see 'bmsota devices list'"))
			}
			if asJSON {
				return printJSON(cmd, d)
			}
			return printf(cmd, "cleared: %s\n", d.DeviceID)
		},
	}
	a.serverFlags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newDevicesRevokeCmd() *cobra.Command {
	var a access
	cmd := &cobra.Command{
		Use:   "revoke DEVICE",
		Short: "take a device's login away and end its session",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.client(cmd)
			if err != nil {
				return err
			}
			if err := client.Revoke(cmd.Context(), args[0]); err != nil {
				return serverFault(notFoundHint(err, "see 'bmsota devices list'"))
			}
			return printf(cmd, "revoked: %s\n", args[0])
		},
	}
	a.serverFlags(cmd)
	return cmd
}
