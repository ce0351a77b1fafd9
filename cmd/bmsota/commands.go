package main

import "github.com/spf13/cobra"

// commands lists every command, in the order of the help text.
func commands(s streams) []*cobra.Command {
	return []*cobra.Command{
		newVersionCmd(),
	}
}
