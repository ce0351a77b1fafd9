package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"bmsota/esp/otadata"
	"bmsota/esp/parttable"
)

const otadataHint = "cut the otadata partition out of a flash image first ('bmsota partition show' says where it is)"

var otadataKind = inputKind{what: "an otadata partition", limit: otadata.PartitionSize, hint: otadataHint}

func newOTADataCmd() *cobra.Command {
	return group("otadata", "show and set the two boot records", newOTADataShowCmd(), newOTADataSetCmd())
}

func readOTAData(cmd *cobra.Command, path string) ([]byte, [2]otadata.Record, error) {
	b, err := otadataKind.read(cmd, path)
	if err != nil {
		return nil, [2]otadata.Record{}, err
	}
	recs, err := otadata.Parse(b)
	if err != nil {
		return nil, recs, badContent(path, err, otadataHint)
	}
	return b, recs, nil
}

// otadataReport is what `otadata show --json` prints.
type otadataReport struct {
	Active  int            `json:"active"` // the record that boots, or -1
	Slot    int            `json:"slot"`   // the slot that the active record means, or -1
	Records []recordReport `json:"records"`
}

type recordReport struct {
	Seq      uint32 `json:"seq"`
	State    string `json:"state"`
	CRCOK    bool   `json:"crc_ok"`
	StateRaw string `json:"state_raw"` // as stored; a value without a name counts as undefined
	Slot     int    `json:"slot"`      // the slot that seq means, or -1 for an erased record
	Usable   bool   `json:"usable"`    // whether the bootloader considers it
}

func describeOTAData(recs [2]otadata.Record, slots int) otadataReport {
	report := otadataReport{Active: otadata.Select(recs), Slot: -1}
	for _, r := range recs {
		row := recordReport{Seq: r.Seq, State: r.State.String(), CRCOK: r.CRCOK(), StateRaw: r.State.Hex(),
			Slot: otadata.SlotIndex(r.Seq, slots), Usable: r.Usable()}
		if r.Erased() {
			row.State, row.Slot = "erased", -1
		}
		report.Records = append(report.Records, row)
	}
	if report.Active >= 0 {
		report.Slot = report.Records[report.Active].Slot
	}
	return report
}

func (r otadataReport) text() string {
	var buf bytes.Buffer
	w := tabwriter.NewWriter(&buf, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "RECORD\tSEQ\tSLOT\tSTATE\tCRC\t")
	for i, rec := range r.Records {
		seq, slot, crc, active := "-", "-", "wrong", ""
		if rec.State != "erased" {
			seq, slot = fmt.Sprint(rec.Seq), fmt.Sprintf("ota_%d", rec.Slot)
		}
		if rec.CRCOK {
			crc = "ok"
		}
		if i == r.Active {
			active = "active"
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\n", i, seq, slot, rec.State, crc, active)
	}
	w.Flush()
	if r.Active < 0 {
		buf.WriteString("no record is usable: the factory application boots, or ota_0 where there is none\n")
	}
	return trimLines(buf.String())
}

func checkSlots(cmd *cobra.Command, slots int) error {
	if slots < 1 || slots > parttable.MaxSlots {
		return usageFault(cmd, "--slots must be 1 to %d, the number of ota_N partitions of the board", parttable.MaxSlots)
	}
	return nil
}

func newOTADataShowCmd() *cobra.Command {
	var asJSON bool
	var slots int
	cmd := &cobra.Command{
		Use:   "show FILE",
		Short: "print the two boot records and which one is active",
		Long: `Print the two boot records of an otadata partition (8192 bytes) and which of them the bootloader follows.
- reads standard input.`,
		Example: `  bmsota otadata show otadata.bin
  bmsota otadata show --json otadata.bin`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkSlots(cmd, slots); err != nil {
				return err
			}
			_, recs, err := readOTAData(cmd, args[0])
			if err != nil {
				return err
			}
			report := describeOTAData(recs, slots)
			if asJSON {
				return printJSON(cmd, report)
			}
			return printf(cmd, "%s", report.text())
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().IntVar(&slots, "slots", 2, "how many ota_N partitions the board has")
	return cmd
}

func newOTADataSetCmd() *cobra.Command {
	var slot, slots int
	var state string
	var create, asJSON bool
	cmd := &cobra.Command{
		Use:   "set --slot N FILE",
		Short: "make a slot the one that boots next",
		Long: `Write the boot record that makes slot N boot next, as esp_ota_set_boot_partition does: into the sector that is not active,
the other one untouched. FILE is replaced as a whole or not at all. With state new the slot is on trial: firmware must confirm it.`,
		Example: `  bmsota otadata set --slot 1 otadata.bin
  bmsota otadata set --slot 0 --state valid --create otadata.bin`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := needFlags(cmd, "slot"); err != nil {
				return err
			}
			if err := checkSlots(cmd, slots); err != nil {
				return err
			}
			if slot < 0 || slot >= slots {
				return usageFault(cmd, "--slot %d does not exist, the board has slots 0 to %d (see --slots)", slot, slots-1)
			}
			st, err := otadata.ParseState(state)
			if err != nil {
				return usageFault(cmd, "--state: %w", err)
			}
			path := args[0]
			if path == standardStream {
				return usageFault(cmd, "otadata set changes a file, it cannot change standard input")
			}
			recs := [2]otadata.Record{otadata.ErasedRecord(), otadata.ErasedRecord()}
			image := otadata.Append(nil, recs)
			if _, err := os.Stat(path); !create || !errors.Is(err, fs.ErrNotExist) {
				if image, recs, err = readOTAData(cmd, path); err != nil {
					return err
				}
			}
			sector, rec, err := otadata.Next(recs, slot, slots, st)
			if err != nil {
				return badContent(path, err, "start from an erased otadata partition")
			}
			recs[sector] = rec
			// Only the chosen sector changes, as on the chip, where the other one is what a power cut falls back to.
			copy(image[sector*otadata.SectorSize:], otadata.Append(nil, [2]otadata.Record{rec, rec})[:otadata.SectorSize])
			if err := writeOutput(cmd, path, image); err != nil {
				return err
			}
			report := describeOTAData(recs, slots)
			if rec.Usable() && report.Active != sector {
				warn(cmd, "record %d stays active: slot %d booted already, and ESP-IDF gives it the same sequence number again", report.Active, slot)
			}
			if asJSON {
				return printJSON(cmd, report)
			}
			return printf(cmd, "%s", report.text())
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&slot, "slot", 0, "the slot to boot: 0 for ota_0")
	flags.IntVar(&slots, "slots", 2, "how many ota_N partitions the board has")
	flags.StringVar(&state, "state", otadata.New.String(), "new, pending, valid, invalid, aborted or undefined")
	flags.BoolVar(&create, "create", false, "start from erased records where FILE does not exist")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
