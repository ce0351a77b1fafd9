package main

import (
	"fmt"
	"strings"

	"bmsota/api"

	"github.com/spf13/cobra"
)

func newWebhooksCmd() *cobra.Command {
	return group("webhooks", "programs that are told of halts, rollbacks and ends (admin)",
		newWebhooksListCmd(), newWebhooksAddCmd(), newWebhooksTestCmd(), newWebhooksRemoveCmd())
}

func newWebhooksListCmd() *cobra.Command {
	return newListCmd("list webhooks, and how their deliveries go", "no webhooks; see 'bmsota webhooks add'",
		"WEBHOOK\tADDRESS\tEVENTS\tWAITING\tDROPPED\tLAST SUCCESS\tLAST FAILURE", (*api.Client).Webhooks, func(h api.Webhook) string {
			events, success, fault := "all", "never", "never"
			if len(h.Events) > 0 {
				events = strings.Join(h.Events, ",")
			}
			if !h.SucceededAt.IsZero() {
				success = ago(h.SucceededAt)
			}
			if !h.FailedAt.IsZero() {
				fault = ago(h.FailedAt) + ": " + plain(h.Failure)
			}
			return fmt.Sprintf("%s\t%s\t%s\t%d\t%d\t%s\t%s", h.ID, plain(h.URL), events, h.Waiting, h.Dropped, success, fault)
		})
}

func newWebhooksAddCmd() *cobra.Command {
	var a access
	var events []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "add URL",
		Short: "make a webhook and print its secret, this once",
		Long: `Makes a webhook: the server posts JSON to the address when something happens, signed as Standard Webhooks
says, with the secret that is printed. Events: rollout.halted, rollout.finished, device.rolled_back, release.quarantined;
without --events all of them. docs/api.md says what they hold and how a receiver checks them.`,
		Example: `  bmsota webhooks add http://homeassistant.lan:8123/api/webhook/bms
  bmsota webhooks add https://ops.example/bmsota --events rollout.halted,device.rolled_back`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.client(cmd)
			if err != nil {
				return err
			}
			out, err := client.AddWebhook(cmd.Context(), api.AddWebhookRequest{URL: args[0], Events: events})
			if err != nil {
				return serverFault(err)
			}
			if asJSON {
				return printJSON(cmd, out)
			}
			return printf(cmd, "added: %s; its secret, shown this once:\n%s\n", out.ID, out.Secret)
		},
	}
	a.serverFlags(cmd)
	cmd.Flags().StringSliceVar(&events, "events", nil, "events that it is told of; without it all")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newWebhooksTestCmd() *cobra.Command {
	var a access
	cmd := &cobra.Command{
		Use:   "test WEBHOOK",
		Short: "send a webhook an event that tells of nothing",
		Long:  "Queues an event of the type test and tries the webhook at once. 'bmsota webhooks list' says what came of it.",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.client(cmd)
			if err != nil {
				return err
			}
			if err := client.TestWebhook(cmd.Context(), args[0]); err != nil {
				return serverFault(notFoundHint(err, "see 'bmsota webhooks list'"))
			}
			return printf(cmd, "queued; 'bmsota webhooks list' says what came of it\n")
		},
	}
	a.serverFlags(cmd)
	return cmd
}

func newWebhooksRemoveCmd() *cobra.Command {
	return newRemoveCmd("webhook and what waits for it", "see 'bmsota webhooks list'", (*api.Client).RemoveWebhook)
}
