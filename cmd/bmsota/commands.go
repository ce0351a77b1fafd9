package main

import "github.com/spf13/cobra"

// commands lists every command, in the order of the help text.
func commands() []*cobra.Command {
	return []*cobra.Command{
		newDemoCmd(),
		newServeCmd(),
		newFlashCmd(),
		newCheckCmd(),
		newConfigCmd(),
		newPublishCmd(),
		newReleasesCmd(),
		newChannelCmd(),
		newRolloutCmd(),
		newUpdateCmd(),
		newRollbackCmd(),
		newStatusCmd(),
		newMonitorCmd(),
		newDeviceCmd(),
		newPowercutCmd(),
		newDevicesCmd(),
		newAccountsCmd(),
		newTokensCmd(),
		newWebhooksCmd(),
		newProvisionCmd(),
		newLintCmd(),
		newAuditCmd(),
		newHealthCmd(),
		newBackupCmd(),
		newRestoreCmd(),
		newImageCmd(),
		newKeysCmd(),
		newPartitionCmd(),
		newOTADataCmd(),
		newSPIFFSCmd(),
		newVersionCmd(),
	}
}
