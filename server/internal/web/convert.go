package web

import (
	"slices"

	"bmsota/api"
	"bmsota/server/internal/fleet"
)

// channelNames lists, for each digest, the channels that point at it, sorted and each once.
func channelNames(channels []fleet.Channel) map[string][]string {
	names := make(map[string][]string)
	for _, c := range channels {
		names[c.SHA256] = append(names[c.SHA256], c.Name)
	}
	for digest, list := range names {
		slices.Sort(list)
		names[digest] = slices.Compact(list)
	}
	return names
}

func releaseOf(r fleet.Release, channels map[string][]string) api.Release {
	return api.Release{
		SHA256: r.SHA256, Project: r.Project, Chip: r.Chip, Version: r.Version, MinVersion: r.MinVersion,
		Description: r.Description, ForceUpdate: r.ForceUpdate, Size: r.Size, SecureVersion: r.SecureVersion,
		BuildDate: r.BuildDate.UTC(), Signed: r.Manifest != "", Manifest: r.Manifest, Cosignatures: r.Cosignatures,
		PublishedAt: r.PublishedAt.UTC(), PublishedBy: r.PublishedBy, Withdrawn: r.Withdrawn,
		Channels: append([]string{}, channels[r.SHA256]...),
	}
}

func channelOf(c fleet.Channel, version string) api.Channel {
	return api.Channel{Project: c.Project, Chip: c.Chip, Channel: c.Name, SHA256: c.SHA256, Version: version, SetAt: c.SetAt.UTC(), SetBy: c.SetBy}
}

func deviceOf(d fleet.Device) api.Device {
	s := d.Status
	out := api.Device{
		DeviceID: d.ID, CurrentVersion: s.CurrentVersion, AvailableVersion: s.AvailableVersion, Phase: s.Phase,
		Status: s.Status, ProgressPct: s.ProgressPct, Reason: s.Reason, Online: d.Online,
		Message: s.Message, PhaseSince: d.PhaseSince.UTC(), FirstSeen: d.FirstSeen.UTC(), Enrolled: d.Enrolled(),
		CertificateSHA256: d.CertificateSHA256, CertificateEnds: d.CertificateEnds.UTC(),
		EnrolledAt: d.EnrolledAt.UTC(), Revoked: d.Revoked, Channel: d.Channel, Project: s.Project, Chip: s.Chip,
		Slot: s.Slot, SlotSize: s.SlotSize, ImageSHA256: s.ImageSHA256, SecureVersion: s.SecureVersion,
		RollbackPending: s.RollbackPending, RollbackProtected: s.RollbackProtected, SignedOnly: s.Signed,
		ResetReason: s.ResetReason, BytesDone: s.BytesDone, BytesTotal: s.BytesTotal, FreeHeap: s.FreeHeap,
		LargestFreeBlock: s.LargestFreeBlock, UptimeSec: s.UptimeSec, Battery: s.Battery, Labels: d.Labels,
	}
	for _, s := range d.Suspicions() {
		out.Suspicions = append(out.Suspicions, api.Suspicion{Kind: string(s.Kind), Since: s.Since.UTC(), Last: s.Last.UTC(), Times: s.Times, Text: s.Kind.Text(), Evidence: s.Evidence})
	}
	if out.Channel == "" {
		out.Channel = fleet.DefaultChannel
	}
	if !d.LastSeen.IsZero() {
		seen := d.LastSeen.UTC()
		out.LastSeen = &seen
	}
	return out
}

func attemptOf(a fleet.Attempt) api.Attempt {
	return api.Attempt{
		ID: a.ID, CommandID: a.CommandID, DeviceID: a.DeviceID, RolloutID: a.RolloutID, Action: a.Action, Force: a.Force, Version: a.Version,
		SHA256: a.SHA256, State: string(a.State), Phase: a.Phase, Reason: a.Reason, Message: a.Message,
		CreatedAt: a.CreatedAt.UTC(), CreatedBy: a.CreatedBy, ExpiresAt: a.ExpiresAt.UTC(), UpdatedAt: a.UpdatedAt.UTC(),
		EndedAt: a.EndedAt.UTC(),
	}
}
