package main

import (
	"bytes"
	"crypto/ecdsa"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"bmsota/api"
	"bmsota/esp/appimage"
	"bmsota/manifest"
)

// trustReport is the set of keys that an image carries.
type trustReport struct {
	Sequence     uint32   `json:"sequence"`
	Threshold    int      `json:"threshold"`
	Fingerprints []string `json:"fingerprints"`
}

func (t *trustReport) text() string {
	return fmt.Sprintf("set %d, %d of %s", t.Sequence, t.Threshold, strings.Join(t.Fingerprints, ", "))
}

// describeTrust is nil for an image that carries no set.
func describeTrust(b []byte, img *appimage.Image) (*trustReport, error) {
	set, err := manifest.Builtin(bytes.NewReader(b), img)
	if err != nil || set.Sequence == 0 {
		return nil, err
	}
	r := &trustReport{Sequence: set.Sequence, Threshold: set.Threshold}
	for _, key := range set.Keys {
		print, err := fingerprint(key)
		if err != nil {
			return nil, err
		}
		r.Fingerprints = append(r.Fingerprints, print)
	}
	return r, nil
}

func newKeysRotateCmd() *cobra.Command {
	var files []string
	var threshold int
	var sequence uint32
	var out string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "rotate --new KEY.pub.pem -o OUT IMAGE",
		Short: "put the trusted keys of the next releases into an image",
		Long: `Put a set of trusted release keys into IMAGE. A device that runs the image trusts this set and no longer the one before,
whether that came from its settings or from an earlier image. The old keys sign the new ones by signing the release:
publish OUT with the old key and the new one, which so shows that somebody holds it, roll it out, and sign what comes
after with the new key. Every image after it carries the set too, or devices refuse it: give each build the same --new
and --sequence.

IMAGE is what the build made, before padding and signing. It has room for keys when it was built with the component
ota_manager (CONFIG_OTA_MANAGER_KEY_ROOM).`,
		Example: `  bmsota keys new -o key2.pem
  bmsota keys rotate --new key2.pub.pem --sequence 1 -o app-1.4.0.bin build/app.bin
  bmsota publish app-1.4.0.bin --key key1.pem --key key2.pem
  bmsota keys rotate --new a.pub.pem --new b.pub.pem --new c.pub.pem --threshold 2 --sequence 2 -o app.bin build/app.bin`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := needFlags(cmd, "new", "sequence", "output"); err != nil {
				return err
			}
			set := manifest.Trust{Sequence: sequence, Threshold: threshold}
			for _, path := range files {
				keys, err := readReleaseKeys(cmd, path)
				if err != nil {
					return err
				}
				set.Keys = append(set.Keys, keys...)
			}
			b, err := imageKind.read(cmd, args[0])
			if err != nil {
				return err
			}
			done, err := manifest.WithBuiltin(b, set)
			if err != nil {
				return badContent(args[0], err, "see 'bmsota keys rotate --help'")
			}
			return reportOutput(cmd, out, done, asJSON)
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&files, "new", nil, "public key of the new set; give it once for each file")
	f.IntVar(&threshold, "threshold", 1, "how many of them have to sign a release")
	f.Uint32Var(&sequence, "sequence", 0, "number of the set: 1 for a project's first, then one more each time")
	f.StringVarP(&out, "output", "o", "", "file to write, - for standard output")
	f.BoolVar(&asJSON, "json", false, "print what was written as JSON")
	return cmd
}

func readReleaseKeys(cmd *cobra.Command, path string) ([]*ecdsa.PublicKey, error) {
	text, err := publicKind.read(cmd, path)
	if err != nil {
		return nil, err
	}
	keys, err := manifest.ParsePublicKeys(text)
	if err != nil {
		return nil, badContent(path, err, "give the public half that 'bmsota keys new' made")
	}
	return keys, nil
}

func newKeysListCmd() *cobra.Command {
	cmd := newListCmd("list the keys that the server takes releases and images by", "no keys: the first signed release of a project registers its own",
		"PROJECT\tSIGNS\tSET\tFROM VERSION\tMUST SIGN\tFINGERPRINT OR DIGEST\tADDED", (*api.Client).Keys, func(k api.Key) string {
			set, from, must := "-", "-", "-"
			if k.Kind == "release" {
				set, must, from = fmt.Sprint(k.Sequence), fmt.Sprint(k.Threshold), orDash(k.FromVersion)
			}
			return fmt.Sprintf("%s\t%s\t%s\t%s\t%s\t%s\t%s by %s", plain(k.Project), k.Kind, set, from, must, k.Digest, ago(k.AddedAt), plain(k.AddedBy))
		})
	cmd.Long = `List what the server knows of each project's keys: the sets of release keys, each with the version from which on devices trust
it, and the digests of image keys (see 'bmsota keys pin'). The server holds public halves only.`
	return cmd
}

func newKeysServerCmd() *cobra.Command {
	var a access
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "server",
		Short: "print the public key of the server's answers to devices",
		Long: `Print what a device's server_key_pem has to be, so that it takes no answer but the server's own to its own question. Files
that are made with --trusted-key hold it. The private half stays on the server; releases are signed by other keys.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.client(cmd)
			if err != nil {
				return err
			}
			info, err := client.Server(cmd.Context())
			if err != nil {
				return serverFault(err)
			}
			if asJSON {
				return printJSON(cmd, map[string]string{"offer_key_pem": info.OfferKeyPEM})
			}
			_, err = fmt.Fprint(cmd.OutOrStdout(), info.OfferKeyPEM)
			return err
		},
	}
	a.serverFlags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newKeysPinCmd(retire bool) *cobra.Command {
	var a access
	var project string
	use, short, done := "pin", "have the server refuse images that Secure Boot would not start (admin)", "pinned"
	if retire {
		use, short, done = "unpin", "take a pinned image key back (admin)", "unpinned"
	}
	cmd := &cobra.Command{
		Use:   use + " --project P KEY.pem|DIGEST",
		Short: short,
		Long: `Name the digest that the eFuse of a project's boards holds, or a file with the key. With one or more pinned, a release whose
image is not signed by one of them, in the block that its chip looks at, is refused at publish.`,
		Example: "  bmsota keys " + use + " --project bms-monitor secure-boot.pub.pem",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := needFlags(cmd, "project"); err != nil {
				return err
			}
			digest, err := pinnedDigest(cmd, args[0])
			if err != nil {
				return err
			}
			client, err := a.client(cmd)
			if err != nil {
				return err
			}
			if err := client.PinImageKey(cmd.Context(), api.PinRequest{Project: project, Digest: digest, Retire: retire}); err != nil {
				return serverFault(err)
			}
			return printf(cmd, "%s: %s for images of %s\n", done, digest, plain(project))
		},
	}
	a.serverFlags(cmd)
	cmd.Flags().StringVar(&project, "project", "", "whose images")
	return cmd
}
