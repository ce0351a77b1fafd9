package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"bmsota/api"

	"github.com/spf13/cobra"
)

// probe is one line of the health report.
type probe struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
}

// Limits below which health speaks up.
const (
	minCertificateDays = 21
	minFreeBytes       = 64 << 20
)

func newHealthCmd() *cobra.Command {
	var a access
	var asJSON bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "health",
		Short: "server, broker, certificate, storage: one line each; exit code 0 or 5",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			probes, err := a.probe(ctx, cmd)
			if err != nil {
				return err
			}
			if asJSON {
				if err := printJSON(cmd, probes); err != nil {
					return err
				}
			}
			bad := 0
			for _, p := range probes {
				word := "ok"
				if !p.OK {
					word, bad = "FAULT", bad+1
				}
				if !asJSON {
					if err := printf(cmd, "%-12s %-6s %s\n", p.Name, word, plain(p.Detail)); err != nil {
						return err
					}
				}
			}
			if bad > 0 {
				return &fault{code: exitUnreachable, err: fmt.Errorf("%d of %d checks failed", bad, len(probes))}
			}
			return nil
		},
	}
	a.serverFlags(cmd)
	a.brokerFlags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().DurationVar(&timeout, "timeout", 10*time.Second, "how long to wait for answers")
	return cmd
}

// probe asks everything there is to ask. Its own error is a wrong use; what does not work is in the probes.
func (a *access) probe(ctx context.Context, cmd *cobra.Command) ([]probe, error) {
	client, err := a.client(cmd)
	if err != nil {
		return nil, err
	}
	info, err := client.Server(ctx)
	probes := []probe{serverProbe(info, err)}
	broker := probe{Name: "broker", Detail: "no broker address known"}
	if a.broker != "" {
		link, linkErr := a.link(ctx, cmd)
		switch f := (*fault)(nil); {
		case linkErr == nil:
			link.Close()
			broker = probe{"broker", true, a.broker}
		case errors.As(linkErr, &f) && f.code == exitUsage:
			return nil, linkErr
		default:
			broker.Detail = sentence(linkErr)
		}
	}
	probes = append(probes, broker)
	if err != nil {
		return append(probes, probe{"certificate", false, "not known"}, probe{"storage", false, "not known"}), nil
	}
	if len(info.BrokerDoubts) > 0 {
		probes = append(probes, probe{"rights", true, "WARNING: the broker does not keep devices apart: " + strings.Join(info.BrokerDoubts, ", ")})
	}
	if len(info.FirmwareDoubts) > 0 {
		probes = append(probes, probe{"firmware", false, strings.Join(info.FirmwareDoubts, "; ")})
	}
	return append(probes, certificateProbe(info), storageProbe(info)), nil
}

func serverProbe(info api.ServerInfo, err error) probe {
	switch {
	case err != nil:
		return probe{"server", false, sentence(err)}
	case !info.Ready:
		return probe{"server", false, info.NotReady}
	}
	return probe{"server", true, fmt.Sprintf("%s, version %s, up %s", info.URL, info.Version, time.Since(info.StartedAt).Round(time.Second))}
}

func certificateProbe(info api.ServerInfo) probe {
	if info.CertificateExpires.IsZero() {
		return probe{"certificate", true, "kept by the server, no date given"}
	}
	days := int(time.Until(info.CertificateExpires).Hours() / 24)
	return probe{"certificate", days >= minCertificateDays, fmt.Sprintf("expires in %d days (%s)", days, info.CertificateExpires.Format(time.DateOnly))}
}

func storageProbe(info api.ServerInfo) probe {
	if info.StorageFreeBytes < 0 {
		return probe{"storage", true, "free space not known on this system"}
	}
	return probe{"storage", info.StorageFreeBytes >= minFreeBytes, fmt.Sprintf("%d MiB free", info.StorageFreeBytes>>20)}
}
