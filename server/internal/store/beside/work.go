package beside

import (
	"context"
	"fmt"
	"strings"
	"time"

	"bmsota/audit"
	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

const (
	group   = 500    // rows of a table in one transaction: what fleet commits of statuses, and what its planner begins, at once
	phases  = 8      // statuses of a device from the beginning of an update to its end
	fleetOf = 10_000 // devices
)

// midnight is when the work begins; each turn is a second later.
var midnight = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func at(turn int) time.Time { return midnight.Add(time.Duration(turn) * time.Second) }

var imageDigest = strings.Repeat("5e", 32)

// phase is what a device says at each step; the attempt ends with the last.
var phase = [phases]protocol.Phase{protocol.PhaseIdle, protocol.PhaseChecking, protocol.PhaseDownloading, protocol.PhaseDownloading,
	protocol.PhaseDownloading, protocol.PhaseVerifying, protocol.PhaseRebooting, protocol.PhaseConfirmed}

func deviceID(i int) string { return fmt.Sprintf("bms-%06d", i) }

// device is a device in a turn.
func device(i, turn int) fleet.Device {
	now := at(turn)
	return fleet.Device{ID: deviceID(i), TokenSHA256: imageDigest, EnrolledAt: midnight, Online: true, FirstSeen: midnight, LastSeen: now, PhaseSince: now,
		Version: "1.0.0", SHA256: imageDigest, Boot: "0f3a", Seq: uint64(turn + 1), OldBoots: []string{"77c1"}, Labels: fleet.Labels{"site": "north"},
		Status: protocol.Status{DeviceID: deviceID(i), Project: "bms", Chip: "esp32c3", CurrentVersion: "1.0.0", Phase: phase[(turn+i)%phases],
			UptimeSec: int64(3600 + turn), BootID: "0f3a", Seq: uint64(turn + 1), RollbackProtected: true, Signed: true,
			Battery: &protocol.Battery{SOCPct: float64(turn % 100), Charging: true}}}
}

// attempt is that of a device in a turn: one begins at the first step and ends at the last.
func attempt(i, turn int) fleet.Attempt {
	run, step := (turn+i)/phases, (turn+i)%phases
	a := fleet.Attempt{ID: fmt.Sprintf("r%d-%s", run, deviceID(i)), CommandID: fmt.Sprintf("r%d", run), DeviceID: deviceID(i), Action: protocol.ActionUpdate,
		Version: "1.1.0", SHA256: imageDigest, CreatedAt: midnight, CreatedBy: "anna", ExpiresAt: midnight.Add(24 * time.Hour), State: fleet.AttemptOpen,
		Phase: phase[step], UpdatedAt: at(turn)}
	if step == phases-1 {
		a.State, a.EndedAt = fleet.AttemptSucceeded, at(turn)
	}
	return a
}

// logged is a row of the audit log that is not sealed yet.
func logged(at time.Time, what audit.Action, a fleet.Attempt) audit.Entry {
	return audit.Entry{At: at, Who: "server", What: what, About: a.ID, Device: a.DeviceID, Rollout: a.RolloutID,
		Details: audit.Details{{Key: "version", Value: a.Version}}}
}

// seal seals the rows of the log of all batches behind the head that is there, as fleet does before it gives them to the store.
func seal(batches []batch, head audit.Head) {
	for _, b := range batches {
		for i, e := range b.log {
			b.log[i] = e.Seal(head)
			head = b.log[i].Head()
		}
	}
}

// seed makes the devices, in either database through the store.
func seed(ctx context.Context, s fleet.Store) error {
	for from := 0; from < fleetOf; from += group {
		devices := make([]fleet.Device, group)
		for i := range devices {
			devices[i] = device(from+i, 0)
			devices[i].LastSeen = midnight.Add(-time.Hour)
		}
		if err := s.Update(ctx, func(tx fleet.Tx) error { return tx.PutDevices(devices) }); err != nil {
			return err
		}
	}
	return nil
}

// groups makes a batch of each group of devices.
func groups(fill func(b *batch, i int)) []batch {
	list := make([]batch, 0, fleetOf/group)
	for from := 0; from < fleetOf; from += group {
		var b batch
		for i := from; i < from+group; i++ {
			fill(&b, i)
		}
		list = append(list, b)
	}
	return list
}

// statuses is a turn in which every device, in the middle of an update, says its next status: groups as fleet commits them. An
// eighth of the attempts begins and an eighth ends, which is what the log holds of it.
func statuses(turn int) []batch {
	return groups(func(b *batch, i int) {
		a := attempt(i, turn)
		b.devices, b.attempts = append(b.devices, device(i, turn)), append(b.attempts, a)
		switch (turn + i) % phases {
		case 0:
			b.log = append(b.log, logged(at(turn), audit.AttemptBegin, a))
		case phases - 1:
			b.log = append(b.log, logged(at(turn), audit.AttemptEnd, a))
		}
	})
}

// begun is a turn in which an attempt begins for every device, a group at once, as the planner has it.
func begun(turn int) []batch {
	return groups(func(b *batch, i int) {
		a := attempt(i, turn)
		a.ID, a.Phase, a.State, a.EndedAt = fmt.Sprintf("b%d-%s", turn, a.DeviceID), "", fleet.AttemptOpen, time.Time{}
		a.CreatedAt, a.UpdatedAt = beganAt(turn), beganAt(turn)
		b.attempts, b.log = append(b.attempts, a), append(b.log, logged(a.CreatedAt, audit.AttemptBegin, a))
	})
}

// beganAt is before midnight, so that no turn of statuses finds what one of attempts has written.
func beganAt(turn int) time.Time { return midnight.Add(-time.Duration(turn+1) * time.Second) }

// created is a turn in which rollouts over all devices are created, each in one transaction.
func created(turn int) []batch {
	r := fleet.Rollout{ID: fmt.Sprintf("rollout-%d", turn), State: fleet.RolloutPaused, CreatedAt: at(turn), CreatedBy: "anna", Version: "1.1.0", SHA256: imageDigest, Members: fleetOf}
	b := batch{rollout: &r, members: make([]fleet.Member, fleetOf)}
	for i := range b.members {
		b.members[i] = fleet.Member{RolloutID: r.ID, DeviceID: deviceID(i), Rank: i, State: fleet.MemberPending, UpdatedAt: r.CreatedAt}
	}
	return []batch{b}
}

var (
	ofDevices = question{"devices", "last_seen = $1 ORDER BY id", func(p *pair) any { return at(p.turns - 1).UnixMilli() },
		func(b batch) int { return len(b.devices) }}
	ofAttempts = question{"attempts", "updated_at = $1 ORDER BY device_id", func(p *pair) any { return at(p.turns - 1).UnixMilli() },
		func(b batch) int { return len(b.attempts) }}
	ofBegun = question{"attempts", "updated_at = $1 ORDER BY device_id", func(p *pair) any { return beganAt(p.turns - 1).UnixMilli() },
		func(b batch) int { return len(b.attempts) }}
	ofLog     = question{"audit", "seq > $1 ORDER BY seq", func(p *pair) any { return p.head.Seq }, func(b batch) int { return len(b.log) }}
	ofRollout = question{"rollouts", "id = $1", func(p *pair) any { return p.pending[0].rollout.ID }, func(batch) int { return 1 }}
	ofMembers = question{"rollout_members", "rollout_id = $1 ORDER BY rank", func(p *pair) any { return p.pending[0].rollout.ID },
		func(b batch) int { return len(b.members) }}
)
