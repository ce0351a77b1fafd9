package main

import (
	"regexp"

	"github.com/spf13/cobra"
)

// fileWords are the words by which the use of a command names a file or folder.
var fileWords = regexp.MustCompile(`\b(FILE|IMAGE|DIR|IN|OUT)\b|KEY\.pem`)

// completions has a shell offer files where a file is meant, and the words that a flag takes. Without it every argument
// is completed with files, also the name of a rollout.
func completions(cmd *cobra.Command) {
	if cmd.ValidArgsFunction == nil && !cmd.HasSubCommands() && !fileWords.MatchString(cmd.Use) {
		cmd.ValidArgsFunction = cobra.NoFileCompletions
	}
	for name, words := range map[string][]string{
		"role": {"viewer", "operator", "admin"},
		"cut":  {"before", "torn", "after"},
		"kind": {"bmsota", "sftp", "dir"},
	} {
		if cmd.Flags().Lookup(name) != nil {
			// It fails for a flag that is not there, and for one that was given its words already.
			_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
		}
	}
	for _, sub := range cmd.Commands() {
		completions(sub)
	}
}
