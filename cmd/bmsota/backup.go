package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"bmsota/durable"
	"bmsota/server"

	"github.com/spf13/cobra"
)

func newBackupCmd() *cobra.Command {
	var data, output string
	cmd := &cobra.Command{
		Use:   "backup -o FILE",
		Short: "copy everything a server keeps into one file, while it runs",
		Long: `Run it on the server's machine, as its account. The file holds what the data folder holds, the keys and
tokens too: only its owner can read it, keep it so. The release key is not in there, because it is not on
the server. For as long as it takes, the database is copied to the folder for temporary files, too: set TMPDIR
to one with room for it. 'bmsota restore' makes a data folder of it.

Where the rows are in PostgreSQL they are not in the file, which says so: run pg_dump first, then this.`,
		Example: `  bmsota backup --data /var/lib/bmsota -o /mnt/backup/bmsota.tar`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output == "" {
				return usageFault(cmd, "say where to with -o")
			}
			if err := dataFolder(data); err != nil {
				return err
			}
			if within(output, data) {
				return usageFault(cmd, "%s is in the data folder: the next backup would hold this one; name a place outside, best on another disk", shown(output))
			}
			r, w := io.Pipe()
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				w.CloseWithError(server.Backup(cmd.Context(), data, time.Now(), w))
			}()
			staged, err := durable.Stage(output, r, 0o600)
			r.Close() // ends the writer where the disk was full
			<-ended
			if err == nil {
				err = staged.Commit()
			}
			if err != nil {
				return unwritable(output, err)
			}
			info, err := os.Stat(output)
			if err != nil {
				return unwritable(output, err)
			}
			if err := printf(cmd, "wrote %s: %d bytes\n", shown(output), info.Size()); err != nil {
				return err
			}
			place, err := server.DatabaseElsewhere(data)
			if err != nil || place == "" {
				return err
			}
			return printf(cmd, "not in it: the rows, which are in PostgreSQL, in %s; keep it with a dump of them (pg_dump) that was begun before\n", place)
		},
	}
	cmd.Flags().StringVar(&data, "data", defaultData(), "data folder of the server")
	cmd.Flags().StringVarP(&output, "output", "o", "", "file to write; one that is there is replaced as a whole")
	return cmd
}

// dataFolder says whether there is a server's data folder.
func dataFolder(dir string) error {
	if _, err := os.Stat(dir); err != nil {
		return failure("name the server's data folder with --data", "there is no folder %s", shown(dir))
	}
	return nil
}

// within says whether a file would stand in a folder or below it, whatever links lead there.
func within(file, folder string) bool {
	above, err := filepath.EvalSymlinks(filepath.Dir(file))
	if err != nil {
		return false // and cannot be written
	}
	if folder, err = filepath.EvalSymlinks(folder); err != nil {
		return false
	}
	for _, path := range []*string{&above, &folder} {
		if *path, err = filepath.Abs(*path); err != nil {
			return false
		}
	}
	rel, err := filepath.Rel(folder, above)
	return err == nil && filepath.IsLocal(rel)
}

func newRestoreCmd() *cobra.Command {
	var data string
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "make a data folder of a backup",
		Long: `The folder must not be there, or be empty: move the old one away, with the server stopped. It appears when
everything in it is checked and on disk.

What happened after the backup was made is not in it, and nobody knows it. So rollouts that were running
are paused and commands that were open are ended. Look at the rest yourself: releases published since are
gone, quarantines, revocations and removed tokens since are undone.`,
		Example: `  bmsota restore /mnt/backup/bmsota.tar --data /var/lib/bmsota`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := os.Open(args[0])
			if err != nil {
				return inputKind{what: "a backup"}.unreadable(args[0], err)
			}
			defer f.Close()
			done, err := server.Restore(cmd.Context(), f, data, time.Now())
			switch {
			case errors.Is(err, server.ErrInUse):
				return refused(err, "stop the server and move the folder away, or name another with --data")
			case errors.Is(err, server.ErrNotBackup):
				return badContent(args[0], err, "give a file that 'bmsota backup' has made")
			case errors.Is(err, syscall.EBUSY):
				return failure("a disk is mounted there: restore into a new folder beside it and, with the server stopped, move what is in that here", "restore into %s: %w", shown(data), err)
			case err != nil:
				return failure("", "restore into %s: %w", shown(data), err)
			}
			if done.Elsewhere != "" {
				return printf(cmd, "restored the backup of %s into %s, without the rows, which are in PostgreSQL (then in %s)\n"+
					"restore the dump of them that was begun before it (pg_restore), then start the server: it pauses rollouts that ran and ends commands that were open\n",
					done.Taken.UTC().Format(time.RFC3339), shown(data), done.Elsewhere)
			}
			return printf(cmd, "restored the backup of %s into %s: %s, %s\n"+
				"rollouts that ran and are paused: %d, commands that were open and are ended: %d\n",
				done.Taken.UTC().Format(time.RFC3339), shown(data), count(done.Releases, "release"), count(done.Devices, "device"),
				done.Paused, done.Ended)
		},
	}
	cmd.Flags().StringVar(&data, "data", defaultData(), "data folder to make")
	return cmd
}
