package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"bmsota/device"
	"bmsota/esp/appimage"

	"github.com/spf13/cobra"
)

// flashKind is the content of a chip, for replay.
var flashKind = inputKind{what: "a board's flash file", limit: 32 << 20}

// maxFailureFiles is how many failing states are written as flash files.
const maxFailureFiles = 5

// maxFailures is how many of them the report lists.
const maxFailures = 100

// proofReport is what the command prints with --json, and what it keeps with -o.
type proofReport struct {
	Old         provedImage          `json:"old"`
	New         provedImage          `json:"new"`
	Chip        string               `json:"chip"`
	Project     string               `json:"project"`
	Partitions  string               `json:"partitions"` // file
	Every       int                  `json:"every"`
	Seed        uint64               `json:"seed"`
	Cuts        int                  `json:"cuts_in_one_update"`
	Complete    bool                 `json:"complete"`
	Seconds     float64              `json:"seconds"`
	States      int                  `json:"states"`
	Distinct    int                  `json:"distinct_states"`
	Escaped     int                  `json:"escaped_bootloader"`
	Bricks      int                  `json:"bricks"`
	Boots       int                  `json:"worst_recovery_boots"`
	Stories     []device.StoryReport `json:"stories"`
	Failures    []failedState        `json:"failures"`
	Modelled    []string             `json:"modelled"`
	NotModelled []string             `json:"not_modelled"`
}

type provedImage struct {
	Version string `json:"version"`
	SHA256  string `json:"sha256"`
	Size    int    `json:"size"`
}

type failedState struct {
	device.ProofFailure
	File   string `json:"flash,omitempty"`
	Replay string `json:"replay,omitempty"`
}

func modelled() []string {
	return []string{
		"NOR flash: programs clear bits in pieces of 64 bytes, erases set sectors of 4096; each is one operation",
		"cuts before and after each operation, after a part of it, with a random subset of its bits done, and of an erase with bits cleared first",
		"ESP-IDF's boot decision: records, trial, rollback, fall-back, verification of the image",
		"the update as the firmware that is built in does it, which the ESP-IDF component follows byte for byte in flash, and what it mends at each boot",
		"power lost again as soon as the board looks for its network",
	}
}

func notModelled() []string {
	return []string{
		"your application's own writes to flash (NVS, logs), and a storage partition that is damaged: nothing in an update writes it, so the board has one of 64 KiB, behind the table's end where the table has none",
		"your release keys: the board trusts a key of the proof's own, in the place of those in its settings and in its images; which set of keys an image carries counts as it does on your boards",
		"the cut that tears ESP-IDF's bootloader in its own rewrite of a trial's record while the new image crashes at once: about one in a hundred of such torn writes; those met are counted as escaped and not tried (docs/adr/0010)",
		"flash encryption, secure boot and anti-rollback eFuses, wear-out, and bits that read differently twice",
		"supply voltage: a chip that runs on while it browns out",
	}
}

func newPowercutCmd() *cobra.Command {
	var b board
	var oldPath, newPath, out, replay, story string
	var asJSON bool
	var limit time.Duration
	var cfg device.ProofConfig
	var size sizeFlag
	cmd := &cobra.Command{
		Use:   "powercut",
		Short: "prove that no power cut in an update from one image to another loses a board",
		Long: `Takes your partition table and two of your images, updates a virtual board from the old one to the new one, and lets
the power fail before, in and after every flash operation, in many ways. From each flash that this leaves the board is
switched on again and has to come to rest on a good image by itself. The stories: the update goes well; the new image
crashes; it hears from no battery; an operator rolls it back; the old one is installed again; the new one is damaged later.

Nothing is sent anywhere, and no hardware is needed. A state that a board does not come back from is written as a flash
file, with the command that shows it again. Exit code 0 says that there is none, 4 that there is.

Large images take long: --every N cuts one in N of the operations on the image's bytes (those on records, tombstones
and the head of a slot are always all cut), --time stops after a while and says how far it came.`,
		Example: `  bmsota powercut --partitions partitions.csv --old build-1.2/app.bin --new build-1.3/app.bin
  bmsota powercut --partitions partitions.csv --old a.bin --new b.bin --every 16 --cuts 2 -o powercut.txt
  bmsota powercut --partitions partitions.csv --old a.bin --new b.bin --replay powercut-crash-1.flash --story crash`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needFlags(cmd, "partitions", "old", "new"); err != nil {
				return err
			}
			switch {
			case cfg.Every < 1:
				return usageFault(cmd, "--every of %d: 1 is every operation", cfg.Every)
			case cfg.Cuts < 1 || cfg.Cuts > 3:
				return usageFault(cmd, "--cuts of %d is not 1, 2 or 3", cfg.Cuts)
			case cfg.Jobs < 0 || cfg.Jobs > 1024:
				return usageFault(cmd, "--jobs of %d is not within 1 to 1024", cfg.Jobs)
			case limit < 0:
				return usageFault(cmd, "--time of %v is less than nothing", limit)
			case (replay == "") != (story == ""):
				return usageFault(cmd, "--replay and --story go together: a flash file, and the story that it is from")
			}
			var err error
			if cfg.Old, err = imageKind.read(cmd, oldPath); err != nil {
				return err
			}
			if cfg.New, err = imageKind.read(cmd, newPath); err != nil {
				return err
			}
			if cfg.Table, err = b.table(cmd); err != nil {
				return err
			}
			if folder := filepath.Dir(out); out != "" && out != standardStream && replay == "" {
				// Before the work of an hour, not after it.
				if info, err := os.Stat(folder); err != nil || !info.IsDir() {
					return failure("make the folder first", "there is no folder %s for the report", shown(folder))
				}
			}
			cfg.FlashSize = int64(size)
			given := fmt.Sprintf("--partitions %s --old %s --new %s", b.partitions, oldPath, newPath)
			if size != 0 {
				given += fmt.Sprintf(" --flash-size %d", int64(size))
			}
			if replay != "" {
				return replayState(cmd, cfg, replay, story)
			}
			ctx := cmd.Context()
			if limit > 0 {
				var stop context.CancelFunc
				ctx, stop = context.WithTimeout(ctx, limit)
				defer stop()
			}
			r := proofReport{Partitions: b.partitions, Every: cfg.Every, Seed: cfg.Seed, Cuts: cfg.Cuts, Failures: []failedState{}, Modelled: modelled(), NotModelled: notModelled()}
			began := time.Now()
			r.Stories, err = watchProof(cmd, ctx, cfg, &r, given)
			if err != nil {
				return proofFault(err)
			}
			r.Seconds = time.Since(began).Seconds()
			r.add(cfg)
			return r.finish(cmd, asJSON, out)
		},
	}
	f := cmd.Flags()
	f.StringVar(&b.partitions, "partitions", "", "your partition table, CSV or binary")
	f.StringVar(&oldPath, "old", "", "image that runs now")
	f.StringVar(&newPath, "new", "", "image of the update")
	f.Var(&size, "flash-size", "size of the chip (default 4M, or what the table needs)")
	f.IntVar(&cfg.Every, "every", 1, "of the operations on the image's bytes, cut one in so many")
	f.Uint64Var(&cfg.Seed, "seed", 1, "decides which those are, and how operations are torn")
	f.IntVar(&cfg.Cuts, "cuts", 1, "power cuts in one update: from the second on, in operations on metadata")
	f.DurationVar(&limit, "time", 0, "stop after this long and say how far it came (default never)")
	f.IntVar(&cfg.Jobs, "jobs", 0, "boards that run at once (default eight for each processor)")
	f.StringVarP(&out, "output", "o", "", "keep the report in this file, too")
	f.BoolVar(&asJSON, "json", false, "report as JSON, also in the file")
	f.StringVar(&replay, "replay", "", "show what a board does from this flash file")
	f.StringVar(&story, "story", "", "with --replay: story that the file is from")
	return cmd
}

// watchProof runs the proof, says on standard error what it is about to do and how far it is, and keeps what fails.
func watchProof(cmd *cobra.Command, ctx context.Context, cfg device.ProofConfig, r *proofReport, given string) ([]device.StoryReport, error) {
	s := newScreen(cmd.ErrOrStderr())
	defer s.clear()
	var began time.Time
	var plan device.ProofPlan
	cfg.OnStory = func(p device.ProofPlan) {
		s.clear()
		plan, began = p, time.Now()
		fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s; %d operations, %d cuts, about %s\n", p.Story, p.About, p.Operations, p.Cuts, roughly(p.Estimate))
	}
	cfg.OnProgress = func(done, of int) {
		left := time.Duration(float64(time.Since(began)) / float64(max(done, 1)) * float64(of-done))
		s.draw([]string{fmt.Sprintf("%s %s %d/%d cuts, %s left", plan.Story, bar(int64(done), int64(of)), done, of, roughly(left))})
	}
	cfg.OnFailure = func(f device.ProofFailure) { r.keep(cmd, f, given) }
	return device.Prove(ctx, cfg)
}

// keep puts a failing state into the report, and the first few into flash files with the command that shows them again.
func (r *proofReport) keep(cmd *cobra.Command, f device.ProofFailure, given string) {
	failed := failedState{ProofFailure: f}
	if len(r.Failures) < maxFailureFiles {
		path := fmt.Sprintf("powercut-%s-%d.flash", f.Story, len(r.Failures)+1)
		if err := replaceFile(path, f.Flash); err == nil {
			failed.File = path
			failed.Replay = fmt.Sprintf("bmsota powercut %s --replay %s --story %s", given, path, f.Story)
		} else {
			warn(cmd, "%s", sentence(unwritable(path, err)))
		}
	}
	if failed.Flash = nil; len(r.Failures) < maxFailures {
		r.Failures = append(r.Failures, failed)
	}
}

// roughly says a time for people.
func roughly(d time.Duration) string {
	switch {
	case d < 2*time.Second:
		return "a second"
	case d < 2*time.Minute:
		return fmt.Sprintf("%.0f seconds", d.Seconds())
	case d < 2*time.Hour:
		return fmt.Sprintf("%.0f minutes", d.Minutes())
	}
	return fmt.Sprintf("%.0f hours", d.Hours())
}

func proofFault(err error) error {
	if !errors.Is(err, device.ErrNoProof) {
		return failure("run it again; if it stays, please report it with the images", "%w", err)
	}
	why := strings.TrimPrefix(err.Error(), device.ErrNoProof.Error()+": ")
	hint := "give the table and the images of one project, as its build folder has them"
	if _, ok := errors.AsType[*appimage.VerifyError](err); ok {
		hint = imageHint
	}
	return refused(errors.New(plain(why)), hint)
}

// add sums the stories up.
func (r *proofReport) add(cfg device.ProofConfig) {
	one := func(b []byte) provedImage {
		p := provedImage{Size: len(b), SHA256: fmt.Sprintf("%x", sha256.Sum256(b))}
		if img, err := appimage.Parse(b); err == nil && img.Desc != nil {
			p.Version, r.Project = plain(img.Desc.Version), plain(img.Desc.Project)
		}
		return p
	}
	r.Old, r.New = one(cfg.Old), one(cfg.New)
	if h, err := appimage.ParseHeader(cfg.Old); err == nil {
		r.Chip = h.Chip.String()
	}
	r.Complete = true
	for _, s := range r.Stories {
		r.States += s.States
		r.Distinct += s.Distinct
		r.Escaped += s.Escaped
		r.Bricks += s.Bricks
		r.Boots = max(r.Boots, s.Boots)
		r.Complete = r.Complete && s.Complete
	}
}

// finish prints and keeps the report, and makes the exit code of it.
func (r *proofReport) finish(cmd *cobra.Command, asJSON bool, out string) error {
	text := []byte(r.text())
	if asJSON {
		var err error
		if text, err = json.MarshalIndent(r, "", "  "); err != nil {
			return failure("", "%w", err)
		}
		text = append(text, '\n')
	}
	if _, err := cmd.OutOrStdout().Write(text); err != nil {
		return failure("", "write standard output: %w", cause(err))
	}
	if out != "" && out != standardStream {
		if err := writeOutput(cmd, out, text); err != nil {
			return err
		}
	}
	if r.Bricks > 0 {
		return &fault{code: exitDevice, err: fmt.Errorf("%s that a board does not come back from", count(r.Bricks, "state")),
			hint: "the report has the command that shows each again"}
	}
	if err := cmd.Context().Err(); err != nil {
		return failure("--time stops after a while of your choice", "interrupted: the report is incomplete")
	}
	return nil
}

func (r *proofReport) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "power cuts in the update of %s (%s) from %s to %s, with %s\n", orDash(r.Project), r.Chip, orDash(r.Old.Version), orDash(r.New.Version), plain(r.Partitions))
	fmt.Fprintf(&b, "  old %s\n  new %s\n\n", r.Old.SHA256, r.New.SHA256)
	fmt.Fprintf(&b, "%-9s %10s %8s %8s %8s %8s %7s %6s\n", "STORY", "OPERATIONS", "CUTS", "STATES", "DISTINCT", "ESCAPED", "BRICKS", "BOOTS")
	for _, s := range r.Stories {
		fmt.Fprintf(&b, "%-9s %10d %8d %8d %8d %8d %7d %6d\n", s.Story, s.Operations, s.Done, s.States, s.Distinct, s.Escaped, s.Bricks, s.Boots)
	}
	fmt.Fprintf(&b, "\n%d states, %d of them different, %d bricks; a board took %d boots at most to come to rest\n", r.States, r.Distinct, r.Bricks, r.Boots)
	fmt.Fprintf(&b, "up to %s in one update, seed %d, %.0f s\n", count(r.Cuts, "cut"), r.Seed, r.Seconds)
	if r.Every > 1 {
		fmt.Fprintf(&b, "a sample: one in %d of the operations on the image's bytes\n", r.Every)
	}
	if !r.Complete {
		b.WriteString("INCOMPLETE: it was ended before its end; what was not cut is not proved\n")
	}
	for _, f := range r.Failures {
		fmt.Fprintf(&b, "\nbrick: %s: %s\n  %s\n", f.Story, plain(f.Cut), plain(f.Problem))
		if f.Replay != "" {
			fmt.Fprintf(&b, "  %s\n", plain(f.Replay))
		}
	}
	list := func(heading string, lines []string) {
		fmt.Fprintf(&b, "\n%s\n", heading)
		for _, line := range lines {
			fmt.Fprintf(&b, "  * %s\n", line)
		}
	}
	list("what is modelled", r.Modelled)
	list("what is not", r.NotModelled)
	return b.String()
}

// replayState shows one state again.
func replayState(cmd *cobra.Command, cfg device.ProofConfig, path, story string) error {
	content, err := flashKind.read(cmd, path)
	if err != nil {
		return err
	}
	problem, err := device.Replay(cfg, story, content, func(line string) {
		_, _ = fmt.Fprintln(cmd.OutOrStdout(), plain(line))
	})
	if err != nil {
		return proofFault(err)
	}
	if problem != "" {
		return &fault{code: exitDevice, err: errors.New(plain(problem)), hint: "see 'bmsota device inspect --flash " + shown(path) + "'"}
	}
	return printf(cmd, "the board comes to rest on a good image\n")
}
