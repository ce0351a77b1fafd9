package main

import (
	"bytes"
	"errors"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"bmsota/esp/parttable"
)

const tableHint = "cut the table out of a flash image first: 3072 bytes from 0x8000"

var tableKind = inputKind{what: "a partition table", limit: parttable.MaxCSVSize, hint: tableHint}

func newPartitionCmd() *cobra.Command {
	return group("partition", "show and convert partition tables", newPartitionShowCmd(), newPartitionConvertCmd())
}

// tableFlags are the facts about a board that a table is checked against.
type tableFlags struct {
	offset, flashSize   sizeFlag
	primary, recovery   sizeFlag
	primarySet, recoSet func() bool
}

func (f *tableFlags) add(cmd *cobra.Command) {
	f.offset = parttable.Offset
	flags := cmd.Flags()
	flags.Var(&f.offset, "offset", "where the table lies in flash")
	flags.Var(&f.flashSize, "flash-size", "size of the flash chip, 0 to check nothing")
	flags.Var(&f.primary, "primary-bootloader-offset", "where the bootloader lies, for tables with a row for it")
	flags.Var(&f.recovery, "recovery-bootloader-offset", "where the recovery bootloader lies, for tables with a row for it")
	f.primarySet = func() bool { return flags.Changed("primary-bootloader-offset") }
	f.recoSet = func() bool { return flags.Changed("recovery-bootloader-offset") }
}

func (f *tableFlags) options(cmd *cobra.Command, md5 bool) (parttable.CSVOptions, error) {
	opt := parttable.CSVOptions{FlashSize: int64(f.flashSize), MD5: md5}
	if f.offset < 0 || f.offset%parttable.SectorSize != 0 || f.offset >= 1<<32-parttable.SectorSize {
		return opt, usageFault(cmd, "--offset 0x%x is not the address of a flash sector", int64(f.offset))
	}
	if f.primary >= 1<<32 || f.recovery >= 1<<32 {
		return opt, usageFault(cmd, "a bootloader offset must be a 32-bit flash address")
	}
	opt.Offset = uint32(f.offset)
	if f.primarySet() {
		at := uint32(f.primary)
		opt.PrimaryBootloaderOffset = &at
	}
	if f.recoSet() {
		at := uint32(f.recovery)
		opt.RecoveryBootloaderOffset = &at
	}
	return opt, nil
}

// readTable reads a table in either form. refusal is why gen_esp32part.py would not take it although the rows could be
// read; only a binary table can have one, because rows of CSV get their place from the rules themselves.
func readTable(cmd *cobra.Command, path string, opt parttable.CSVOptions) (d parttable.Decoded, binary bool, refusal, err error) {
	text, err := tableKind.read(cmd, path)
	if err != nil {
		return d, false, nil, err
	}
	switch {
	case !parttable.IsBinary(text):
		if bytes.IndexByte(text, 0) >= 0 && !bytes.HasPrefix(text, []byte{0xFF, 0xFE}) && !bytes.HasPrefix(text, []byte{0xFE, 0xFF}) {
			return d, false, nil, badContent(path, errors.New("neither a binary partition table nor CSV text"), tableHint)
		}
		d, err = parttable.DecodeCSV(text, opt)
	case len(text) > parttable.SectorSize:
		err = badContent(path, fmt.Errorf("%d bytes, a binary partition table has %d", len(text), parttable.BinarySize), tableHint)
		return d, true, nil, err
	default:
		binary = true
		if d, err = parttable.DecodeBinary(text); err == nil {
			var warnings []parttable.Warning
			warnings, refusal = d.Table.Check(opt)
			d.Warnings = append(d.Warnings, warnings...)
		}
	}
	if err != nil {
		return d, binary, nil, badTable(path, err)
	}
	if refusal != nil {
		refusal = badTable(path, refusal)
	}
	if len(d.Table) == 0 && refusal == nil {
		refusal = badContent(path, errors.New("the table has no partitions"), "")
	}
	for _, w := range d.Warnings {
		warn(cmd, "%s: %s", shown(path), plain(w.String()))
	}
	return d, binary, refusal, nil
}

func badTable(path string, err error) error {
	hint := ""
	if _, ok := errors.AsType[*parttable.CSVError](err); ok {
		hint = "a line is: name, type, subtype, offset, size, and perhaps flags"
	}
	return badContent(path, err, hint)
}

// partitionRow is one element of `partition show --json`.
type partitionRow struct {
	Name      string `json:"name"`
	Type      string `json:"type"`    // ESP-IDF's keyword, or the decimal number where it has none
	Subtype   string `json:"subtype"` // likewise
	Offset    uint32 `json:"offset"`  // bytes from the start of flash
	Size      uint32 `json:"size"`    // bytes
	Encrypted bool   `json:"encrypted"`
	ReadOnly  bool   `json:"readonly"`
}

func newPartitionShowCmd() *cobra.Command {
	var asJSON bool
	var flags tableFlags
	cmd := &cobra.Command{
		Use:   "show FILE",
		Short: "print a partition table, CSV or binary",
		Long: `Print a partition table. CSV and binary tables are told apart by their content; - reads standard input.
Automatic offsets are filled in. A binary table that can be read but breaks ESP-IDF's rules is printed, and the exit code is 3.`,
		Example: `  bmsota partition show partitions.csv
  bmsota partition show --json build/partition_table/partition-table.bin`,
		Args: cobra.ExactArgs(1),
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		opt, err := flags.options(cmd, true)
		if err != nil {
			return err
		}
		d, _, refusal, err := readTable(cmd, args[0], opt)
		if err != nil {
			return err
		}
		if len(d.Table) == 0 && !asJSON {
			return refusal
		}
		rows := make([]partitionRow, len(d.Table))
		for i, p := range d.Table {
			rows[i] = partitionRow{p.Name, p.TypeName(), p.SubtypeName(), p.Offset, p.Size, p.Encrypted, p.ReadOnly}
		}
		if asJSON {
			err = printJSON(cmd, rows)
		} else {
			err = printf(cmd, "%s", partitionText(rows))
		}
		return errors.Join(err, refusal)
	}
	return cmd
}

func partitionText(rows []partitionRow) string {
	var buf bytes.Buffer
	w := tabwriter.NewWriter(&buf, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tTYPE\tSUBTYPE\tOFFSET\tSIZE\tEND\tFLAGS")
	for _, r := range rows {
		flags := ""
		if r.Encrypted {
			flags += "encrypted "
		}
		if r.ReadOnly {
			flags += "readonly"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t0x%x\t%s\t0x%x\t%s\n", plain(r.Name), r.Type, r.Subtype, r.Offset, sizeText(int64(r.Size)),
			uint64(r.Offset)+uint64(r.Size), flags)
	}
	w.Flush()
	return trimLines(buf.String())
}

func newPartitionConvertCmd() *cobra.Command {
	var noMD5 bool
	var flags tableFlags
	cmd := &cobra.Command{
		Use:   "convert IN OUT",
		Short: "turn a partition table from CSV into binary or back",
		Long: `Turn a CSV partition table into the binary that is flashed, and a binary one into CSV, as ESP-IDF's gen_esp32part.py does.
What IN is, its content decides. - stands for standard input or output.`,
		Example: `  bmsota partition convert partitions.csv partitions.bin
  bmsota partition convert --flash-size 4M partitions.csv partitions.bin
  bmsota partition convert dump.bin -`,
		Args: cobra.ExactArgs(2),
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&noMD5, "no-md5", false, "write no MD5 row (for bootloaders older than ESP-IDF v3.1)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		opt, err := flags.options(cmd, !noMD5)
		if err != nil {
			return err
		}
		d, binary, refusal, err := readTable(cmd, args[0], opt)
		if err := errors.Join(err, refusal); err != nil {
			return err
		}
		if binary {
			return writeOutput(cmd, args[1], d.Table.AppendCSV(nil))
		}
		out, err := d.Table.AppendBinary(nil, !noMD5)
		if err != nil {
			return badTable(args[0], err)
		}
		return writeOutput(cmd, args[1], out)
	}
	return cmd
}
