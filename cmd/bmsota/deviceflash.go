package main

import (
	"errors"
	"fmt"

	"bmsota/device"

	"github.com/spf13/cobra"
)

func newDeviceBootCmd() *cobra.Command {
	var (
		flash                          string
		rollback, antiRollback, asJSON bool
		efuse                          uint32
	)
	cmd := &cobra.Command{
		Use:   "boot",
		Short: "make one boot decision as ESP-IDF's bootloader does, and apply it to the flash file",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needFlags(cmd, "flash"); err != nil {
				return err
			}
			opt := device.BootOptions{Rollback: rollback, AntiRollback: antiRollback}
			if cmd.Flags().Changed("efuse") {
				opt.Efuse = &efuse
			}
			r, err := device.Boot(flash, opt)
			if err != nil {
				return flashFault(flash, err)
			}
			if asJSON {
				return printJSON(cmd, r)
			}
			return printf(cmd, "selected %s, booted %s\nrecord 0  %s\nrecord 1  %s\nefuse %d, operations %v\n",
				r.Selected, r.Booted, r.RecordsAfter[0], r.RecordsAfter[1], r.EfuseAfter, r.Operations)
		},
	}
	f := cmd.Flags()
	f.StringVar(&flash, "flash", "", "flash file of the board")
	f.BoolVar(&rollback, "rollback", false, "bootloader built with rollback")
	f.BoolVar(&antiRollback, "anti-rollback", false, "bootloader built with rollback and anti-rollback")
	f.Uint32Var(&efuse, "efuse", 0, "secure version burnt into the board (default: what the flash file keeps)")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newDeviceInspectCmd() *cobra.Command {
	var flash string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "inspect",
		Short: "show partitions, boot records, images and configuration files of a flash file",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needFlags(cmd, "flash"); err != nil {
				return err
			}
			i, err := device.Inspect(flash)
			if err != nil {
				return flashFault(flash, err)
			}
			if asJSON {
				return printJSON(cmd, i)
			}
			return showInspection(cmd, i)
		},
	}
	cmd.Flags().StringVar(&flash, "flash", "", "flash file of the board")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func showInspection(cmd *cobra.Command, i device.Inspection) error {
	if err := printf(cmd, "%s, %s, MAC %s, %s of flash, secure version %d\n\n", plain(i.DeviceID), i.Chip, i.MAC, sizeText(i.FlashSize), i.Efuse); err != nil {
		return err
	}
	err := table(cmd, "PARTITION\tTYPE\tSUBTYPE\tOFFSET\tSIZE", len(i.Partitions), func(n int) string {
		p := i.Partitions[n]
		return fmt.Sprintf("%s\t%s\t%s\t0x%x\t%s", plain(p.Name), p.Type, p.Subtype, p.Offset, sizeText(int64(p.Size)))
	})
	if err != nil {
		return err
	}
	err = errors.Join(printf(cmd, "\n"), table(cmd, "RECORD\tSEQ\tSTATE\tCRC\tSLOT\tACTIVE", len(i.Records), func(n int) string {
		r := i.Records[n]
		return fmt.Sprintf("%d\t%d\t%s\t%s\t%s\t%s", n, r.Seq, r.State, map[bool]string{true: "ok", false: "bad"}[r.CRCOK], orDash(r.Slot), yesNo(i.Active == n))
	}))
	if err != nil {
		return err
	}
	err = errors.Join(printf(cmd, "\n"), table(cmd, "SLOT\tVALID\tPROJECT\tVERSION\tBYTES\tSHA256 / FAULT", len(i.Images), func(n int) string {
		m := i.Images[n]
		what := m.SHA256
		if !m.Valid {
			what = plain(m.Error)
			if m.Quarantined != "" {
				what += fmt.Sprintf(" (%s, %s)", m.Quarantined[:12], plain(m.Cause))
			}
		}
		return fmt.Sprintf("%s\t%s\t%s\t%s\t%d\t%s", m.Slot, yesNo(m.Valid), orDash(plain(m.Project)), orDash(plain(m.Version)), m.Length, what)
	}))
	if err != nil {
		return err
	}
	err = errors.Join(printf(cmd, "\n"), table(cmd, "FILE\tBYTES\tFAULT", len(i.Files), func(n int) string {
		f := i.Files[n]
		return fmt.Sprintf("%s\t%d\t%s", plain(f.Name), f.Size, orDash(plain(f.Error)))
	}))
	for _, a := range i.Anomalies {
		warn(cmd, "%s", plain(a))
	}
	return err
}
