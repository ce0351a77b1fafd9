package main

import "github.com/spf13/cobra"

// commands lists every command, in the order of the help text.
func commands() []*cobra.Command {
	return []*cobra.Command{
		newDemoCmd(),
		newServeCmd(),
		newPublishCmd(),
		newReleasesCmd(),
		newChannelCmd(),
		newRolloutCmd(),
		newCheckCmd(),
		newUpdateCmd(),
		newRollbackCmd(),
		newStatusCmd(),
		newMonitorCmd(),
		newDeviceCmd(),
		newDevicesCmd(),
		newHealthCmd(),
		newImageCmd(),
		newKeysCmd(),
		newPartitionCmd(),
		newOTADataCmd(),
		newSPIFFSCmd(),
		newVersionCmd(),
	}
}
