package main

import "github.com/spf13/cobra"

// groups are the parts of the help text, in its order.
func groups() []*cobra.Group {
	return []*cobra.Group{
		{ID: "server", Title: "The server:"},
		{ID: "project", Title: "From a firmware project:"},
		{ID: "releases", Title: "Releases, and who gets them:"},
		{ID: "fleet", Title: "Devices, people and programs:"},
		{ID: "boards", Title: "Virtual boards, keys and file formats:"},
		{ID: "tool", Title: "This program:"},
	}
}

// commands lists every command; the help text has them by group, each in the order of the alphabet.
func commands() []*cobra.Command {
	var all []*cobra.Command
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
		}
		all = append(all, cmds...)
	}
	add("server", newDemoCmd(), newServeCmd(), newHealthCmd(), newBackupCmd(), newRestoreCmd())
	add("project", newConfigCmd(), newFlashCmd(), newCheckCmd(), newLintCmd(), newPowercutCmd(), newProvisionCmd())
	add("releases", newPublishCmd(), newReleasesCmd(), newChannelCmd(), newRolloutCmd(), newUpdateCmd(), newRollbackCmd(), newStatusCmd(), newMonitorCmd())
	add("fleet", newDevicesCmd(), newAccountsCmd(), newTokensCmd(), newWebhooksCmd(), newAuditCmd())
	add("boards", newDeviceCmd(), newImageCmd(), newKeysCmd(), newPartitionCmd(), newOTADataCmd(), newSPIFFSCmd())
	add("tool", newBenchCmd(), newVersionCmd())
	return all
}
