package main

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"bmsota/esp/appimage"
	"bmsota/manifest"
)

var imageKind = inputKind{what: "an ESP32 application image", limit: appimage.MaxPartitionSize,
	hint: "give the application's .bin, not a flash dump"}

const imageHint = "give the application's .bin from the build folder, and build or download it again if it is damaged"

func newImageCmd() *cobra.Command {
	return group("image", "look at, check, make and sign application images",
		newImageInfoCmd(), newImageVerifyCmd(), newImageNewCmd(), newImageSignCmd())
}

// imageReport is what `image info --json` prints. Of an image that is not valid it says as much as can be read.
type imageReport struct {
	Valid          bool              `json:"valid"`
	Error          string            `json:"error"` // why it is not valid
	Chip           string            `json:"chip"`
	ChipID         *uint16           `json:"chip_id"` // null where there is no header
	Project        string            `json:"project"`
	Version        string            `json:"version"`
	SecureVersion  uint32            `json:"secure_version"`
	FileSize       int64             `json:"file_size"`    // bytes of the file
	ImageLength    int64             `json:"image_length"` // bytes up to the appended hash, without padding and signatures
	FileLength     int64             `json:"file_length"`  // bytes with padding and signature sector, where there is one
	SHA256         string            `json:"sha256"`       // of the whole file: the identity of a release
	HashAppended   bool              `json:"hash_appended"`
	ValidationHash string            `json:"validation_hash"` // the appended hash; empty where there is none
	IDFVersion     string            `json:"idf_version"`
	BuildDate      string            `json:"build_date"`   // as the compiler wrote it, in the time zone of the build
	Trial          string            `json:"trial"`        // what a virtual board does with it
	TrustedKeys    *trustReport      `json:"trusted_keys"` // the release keys that it carries; null where it carries none
	Segments       []segmentReport   `json:"segments"`
	Signatures     []signatureReport `json:"signatures"`
	Warnings       []string          `json:"warnings"`

	hint   string           // what to do about Error
	header *appimage.Header // nil where there is none
	img    *appimage.Image  // nil where it is not valid
}

type segmentReport struct {
	LoadAddr   uint32 `json:"load_addr"`
	Length     int64  `json:"length"`
	FileOffset int64  `json:"file_offset"`
}

// describeImage looks at the file b. Its rules are those of the chip the header names.
func describeImage(b []byte) *imageReport {
	sum := sha256.Sum256(b)
	r := &imageReport{FileSize: int64(len(b)), SHA256: hex.EncodeToString(sum[:]),
		Segments: []segmentReport{}, Signatures: []signatureReport{}, Warnings: []string{}}
	if h, err := appimage.ParseHeader(b); err == nil {
		id := uint16(h.Chip)
		r.header, r.Chip, r.ChipID, r.HashAppended = &h, h.Chip.String(), &id, h.HashAppended != 0
	}
	img, err := appimage.Parse(b)
	if err != nil {
		r.Error, r.hint = err.Error(), imageHint
		if r.header != nil && len(b) >= appimage.DescOffset {
			if d, err := appimage.ParseDesc(b[appimage.DescOffset:]); err == nil {
				r.describe(d)
			}
		}
		return r
	}
	r.Valid, r.img = true, img
	if img.Desc != nil {
		r.describe(img.Desc)
	} else {
		r.Warnings = append(r.Warnings, "the image has no description: no project, no version")
	}
	file := bytes.NewReader(b)
	r.ImageLength = img.Length
	if r.TrustedKeys, err = describeTrust(b, img); err != nil {
		r.Warnings = append(r.Warnings, err.Error())
	}
	r.Trial = string(appimage.TrialBehaviour(file, img))
	if img.HashAppended {
		r.ValidationHash = hex.EncodeToString(img.Hash[:])
	}
	for _, s := range img.Segments {
		r.Segments = append(r.Segments, segmentReport{s.LoadAddr, s.Length, s.Offset})
	}
	r.addSignatures(b)
	return r
}

func (r *imageReport) describe(d *appimage.Desc) {
	r.Project, r.Version, r.SecureVersion, r.IDFVersion = d.Project, d.Version, d.SecureVersion, d.IDFVersion
	r.BuildDate = strings.TrimSpace(d.Date + " " + d.Time)
}

// refuse makes the report that of an image which is not valid, for a reason outside the image.
func (r *imageReport) refuse(err error, hint string) {
	r.Valid, r.Error, r.hint = false, err.Error(), hint
}

// readImageReport reads and describes a file. A file that is too long to be an image gets a report too.
func readImageReport(cmd *cobra.Command, path string) (*imageReport, []byte, error) {
	b, err := imageKind.read(cmd, path)
	if tl, ok := errors.AsType[*tooLargeError](err); ok {
		return &imageReport{Error: tl.Error(), hint: tl.kind.hint, FileSize: tl.size,
			Segments: []segmentReport{}, Signatures: []signatureReport{}, Warnings: []string{}}, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	return describeImage(b), b, nil
}

// name is how a sentence calls the image: project, version and chip.
func (r *imageReport) name() string {
	project, version := plain(r.Project), plain(r.Version)
	if project == "" {
		project = "(no project)"
	}
	if version == "" {
		version = "(no version)"
	}
	return project + " " + version + " for " + r.Chip
}

func (r *imageReport) text() string {
	var buf bytes.Buffer
	w := tabwriter.NewWriter(&buf, 0, 8, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	if r.Valid {
		row("valid", "yes")
	} else {
		row("valid", "no: %s", plain(r.Error))
	}
	if r.header != nil {
		row("chip", "%s (id %d)", r.Chip, *r.ChipID)
		row("project", "%s", plain(r.Project))
		row("version", "%s", plain(r.Version))
		row("secure version", "%d", r.SecureVersion)
		row("built", "%s", plain(r.BuildDate))
		row("ESP-IDF", "%s", plain(r.IDFVersion))
		row("chip revisions", "%s", revisionsText(r.header))
		row("flash", "%d MB, %s", 1<<r.header.SPISize, flashMode(r.header.SPIMode))
		row("entry point", "0x%08x", r.header.EntryAddr)
	}
	if r.SHA256 != "" {
		row("file", "%d bytes, sha256 %s", r.FileSize, r.SHA256)
	}
	if r.Valid {
		row("image", "%d bytes, checksum 0x%02x, %s", r.ImageLength, r.img.Checksum, r.hashText())
		row("trial", "%s", r.Trial)
		if r.TrustedKeys != nil {
			row("trusted keys", "%s", r.TrustedKeys.text())
		}
		for _, s := range r.Signatures {
			row("signature", "%s", s.text())
		}
		if len(r.Signatures) == 0 {
			row("signature", "none")
		}
	}
	w.Flush()
	if len(r.Segments) > 0 {
		fmt.Fprint(w, "\nSEGMENT\tLOAD ADDRESS\tFILE OFFSET\tLENGTH\n")
		for i, s := range r.Segments {
			fmt.Fprintf(w, "%d\t0x%08x\t0x%x\t%d\n", i, s.LoadAddr, s.FileOffset, s.Length)
		}
		w.Flush()
	}
	return trimLines(buf.String())
}

func (r *imageReport) hashText() string {
	if r.HashAppended {
		return "validation hash " + r.ValidationHash
	}
	return "no validation hash"
}

func revisionsText(h *appimage.Header) string {
	text := fmt.Sprintf("v%d.%d", h.MinRevision/100, h.MinRevision%100)
	if h.MaxRevision == 0 || h.MaxRevision == 65535 {
		return text + " and later"
	}
	return text + fmt.Sprintf(" to v%d.%d", h.MaxRevision/100, h.MaxRevision%100)
}

func flashMode(mode byte) string {
	names := []string{"QIO", "QOUT", "DIO", "DOUT", "fast read", "slow read"}
	if int(mode) < len(names) {
		return names[mode]
	}
	return fmt.Sprintf("mode %d", mode)
}

// print writes the report as text or JSON, its warnings to standard error, and makes an image that is not valid exit code 3.
func (r *imageReport) print(cmd *cobra.Command, path, text string, asJSON bool) error {
	var err error
	if asJSON {
		err = printJSON(cmd, r)
	} else {
		err = printf(cmd, "%s", text)
	}
	for _, w := range r.Warnings {
		warn(cmd, "%s: %s", shown(path), plain(w))
	}
	if !r.Valid {
		err = errors.Join(err, r.refusal(path))
	}
	return err
}

// refusal is the fault for an image that is not valid, by itself or for a board or key.
func (r *imageReport) refusal(path string) error {
	reason := r.Error
	if r.img == nil {
		reason = "not a valid image: " + reason
	}
	return badContent(path, errors.New(reason), r.hint)
}

func newImageInfoCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "info FILE",
		Short: "print what an image is",
		Long: `Print what an application image says about itself, and whether structure, checksum and hash are sound by the rules of the
chip it is for. An image that is not valid is described as far as it can be read, and the exit code is 3.
- reads standard input.`,
		Example: `  bmsota image info build/app.bin
  bmsota image info --json build/app.bin`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, _, err := readImageReport(cmd, args[0])
			if err != nil {
				return err
			}
			return r.print(cmd, args[0], r.text(), asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newImageVerifyCmd() *cobra.Command {
	var keyFile, chip string
	var partition sizeFlag
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify FILE",
		Short: "check an image, and its signature with --key",
		Long: `Check structure, checksum and hash of an image as ESP-IDF does before it boots it. With --key one of its Secure Boot v2
signatures must be by that key (RSA-3072 or ECDSA P-256). The exit code is 3 when anything does not hold.`,
		Example: `  bmsota image verify build/app.bin
  bmsota image verify --key secure-boot.pub.pem --chip esp32c3 --partition-size 1536K app-signed.bin`,
		Args: cobra.ExactArgs(1),
	}
	flags := cmd.Flags()
	flags.StringVar(&keyFile, "key", "", "PEM file of the public key that must have signed it")
	flags.StringVar(&chip, "chip", "", "the chip it must be for, such as esp32 or esp32c3")
	flags.Var(&partition, "partition-size", "size of the slot it must fit in")
	flags.BoolVar(&asJSON, "json", false, "print what 'image info --json' prints")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		target := appimage.Target{
			PartitionSize: appimage.MaxPartitionSize, SignatureSpace: flags.Changed("key"),
			// The board is not known; these suit every limit an image can name.
			Revision: 65534, IgnoreMaxRevision: true, EfuseBlockRevision: 65534, IgnoreMaxBlockRevision: true,
		}
		if flags.Changed("partition-size") {
			if partition <= 0 || partition > appimage.MaxPartitionSize {
				return usageFault(cmd, "--partition-size must be more than 0 and at most %s", sizeText(appimage.MaxPartitionSize))
			}
			target.PartitionSize = int64(partition)
		}
		if flags.Changed("chip") {
			var err error
			if target.Chip, err = appimage.ParseChip(chip); err != nil {
				return usageFault(cmd, "--chip: %w", err)
			}
		}
		var key crypto.PublicKey
		if flags.Changed("key") {
			var err error
			if key, err = readImageKey(cmd, keyFile); err != nil {
				return err
			}
		}
		r, b, err := readImageReport(cmd, args[0])
		if err != nil {
			return err
		}
		signedBy := ""
		if r.Valid {
			if !flags.Changed("chip") {
				target.Chip = r.header.Chip
			}
			signedBy = r.verify(b, target, key)
		}
		var text string
		if r.Valid {
			text = fmt.Sprintf("%s verifies: %s%s\n", shown(args[0]), r.name(), signedBy)
		}
		return r.print(cmd, args[0], text, asJSON)
	}
	return cmd
}

// withoutCode is what a board finds wrong with an image, without the number that ESP-IDF gives it.
func withoutCode(err error) error {
	if ve, ok := errors.AsType[*appimage.VerifyError](err); ok {
		return fmt.Errorf("%s at 0x%x: %s", ve.Field, ve.Offset, ve.Reason)
	}
	return err
}

// verify holds a sound image against a board, and against a key where there is one; what does not hold goes into the
// report. It gives the end of the sentence that says that all is well.
func (r *imageReport) verify(b []byte, target appimage.Target, key crypto.PublicKey) (signedBy string) {
	const boardHint = "give the image that was built for this board"
	if _, err := appimage.Verify(bytes.NewReader(b), target); err != nil {
		r.refuse(withoutCode(err), boardHint)
		return ""
	}
	// A file with its signature or anything else behind the image is written as a whole.
	if r.FileSize > target.PartitionSize {
		r.refuse(fmt.Errorf("the file has %d bytes, the partition %d", r.FileSize, target.PartitionSize), boardHint)
		return ""
	}
	if key == nil {
		return ""
	}
	signedBy, err := r.signedBy(b, key)
	if err != nil {
		r.refuse(err, "see 'bmsota image info' for its signatures and 'bmsota image sign' to sign it with this key")
	}
	return signedBy
}

func newImageNewCmd() *cobra.Command {
	var opt appimage.BuildOptions
	var chip, trial, out string
	var size sizeFlag
	var room, asJSON bool
	cmd := &cobra.Command{
		Use:   "new --chip C --project P --version V -o FILE",
		Short: "make a small valid image for virtual boards and tests",
		Long: `Make an image that a bootloader accepts and a virtual board runs. --trial decides what the board does with it:
ok runs and passes its self-test, crash resets, hang stops until the watchdog, unhealthy fails its self-test.
The same flags give the same bytes. It holds no program: on a real chip it does nothing.`,
		Example: `  bmsota image new --chip esp32 --project bms-monitor --version 1.2.0 -o good.bin
  bmsota image new --chip esp32c3 --project bms-monitor --version 1.3.0 --size 1M --trial crash -o bad.bin`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needFlags(cmd, "chip", "project", "version", "output"); err != nil {
				return err
			}
			var err error
			if opt.Chip, err = appimage.ParseChip(chip); err != nil {
				return usageFault(cmd, "--chip: %w", err)
			}
			if opt.Trial, err = appimage.ParseBehaviour(trial); err != nil {
				return usageFault(cmd, "--trial: %w", err)
			}
			if cmd.Flags().Changed("size") && size == 0 {
				return usageFault(cmd, "--size 0 holds nothing; leave it out for the smallest image")
			}
			opt.Size = int64(size)
			if room {
				opt.Extra = manifest.AppendRoom(nil)
			}
			b, err := appimage.Build(opt)
			if err != nil {
				return usageFault(cmd, "%w", err)
			}
			return reportOutput(cmd, out, b, asJSON)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&chip, "chip", "", "the chip it is for, such as esp32 or esp32c3")
	flags.StringVar(&opt.Project, "project", "", "project name, at most 31 bytes")
	flags.StringVar(&opt.Version, "version", "", "version, at most 31 bytes")
	flags.Uint32Var(&opt.SecureVersion, "secure-version", 0, "security floor that the image carries")
	flags.Var(&size, "size", "exact size of the file, such as 64K (default: the smallest)")
	flags.StringVar(&trial, "trial", string(appimage.BehaviourOK), "what a virtual board does with it: ok, crash, hang or unhealthy")
	flags.BoolVar(&room, "key-room", false, "with room for trusted release keys, see 'bmsota keys rotate'")
	flags.StringVarP(&out, "output", "o", "", "file to write, - for standard output")
	flags.BoolVar(&asJSON, "json", false, "print what was written as JSON")
	return cmd
}
