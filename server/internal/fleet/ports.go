package fleet

import (
	"context"
	"io"
	"time"

	"bmsota/protocol"
)

// Store remembers. Update runs fn in one transaction: when it returns nil everything fn put is durable (it survives
// the loss of power), when it returns an error nothing of it is there. fn may be run again after a conflict, so it
// has no effect but through tx. View runs fn on one consistent state. Both are safe for concurrent use; Updates are
// serialised. Errors of the database itself wrap ErrStorage.
type Store interface {
	Update(ctx context.Context, fn func(tx Tx) error) error
	View(ctx context.Context, fn func(tx Tx) error) error
	Close() error
}

// Tx is one transaction. Get methods return ErrNotFound (wrapped) when there is no such row. Put methods write the
// whole row, new or not. Listings are ordered as said. A Tx must not be used after fn returns.
type Tx interface {
	Release(sha256 string) (Release, error)
	ReleaseByVersion(project, chip, version string) (Release, error)
	Releases() ([]Release, error) // newest first
	PutRelease(Release) error

	Channel(project, chip, name string) (Channel, error)
	Channels() ([]Channel, error) // by project, chip, name
	PutChannel(Channel) error

	Device(id string) (Device, error)
	Devices() ([]Device, error) // by id
	PutDevice(Device) error
	// DevicesIn are those of the named that there are, OpenAttemptsIn the open attempts of the named, those of one device
	// oldest first. They and the three Puts of lists are for many rows at once, and mean what one call for each row would.
	// A list of either kind names each row once.
	DevicesIn(ids []string) ([]Device, error)
	PutDevices([]Device) error
	// PutReports is PutDevices for devices that are there, in whose rows nothing changes but Online, LastSeen, Seq and Status; and in
	// Status nothing that a row has copies of: Phase, Project, Chip, Reason, RollbackProtected and Signed.
	PutReports([]Device) error

	Attempt(id string) (Attempt, error)
	AttemptsOf(device string, limit int) ([]Attempt, error) // newest first
	AttemptsBefore(a Attempt, limit int) ([]Attempt, error) // of its device, older than it; newest first
	OpenAttempts() ([]Attempt, error)                       // oldest first
	OpenAttemptsOf(device string) ([]Attempt, error)        // oldest first
	PutAttempt(Attempt) error
	OpenAttemptsIn(devices []string) ([]Attempt, error)
	PutAttempts([]Attempt) error
	// EndedAttempts are those that ended behind the mark and before a time, and have not rolled back: by end and id, at most
	// limit. Which of them are needed is said at EndedAttempt.
	EndedAttempts(after EndedAttempt, before time.Time, limit int) ([]EndedAttempt, error)
	DeleteAttempts(ids []string) error

	Keys(project string) ([]ProjectKey, error) // oldest first; of every project where it is empty
	PutKey(ProjectKey) error

	Rollout(id string) (Rollout, error)
	RolloutByKey(key string) (Rollout, error)
	Rollouts() ([]Rollout, error) // newest first
	// RolloutsToTend are those that run and those with open members: highest priority first, then oldest.
	RolloutsToTend() ([]Rollout, error)
	// PutRollout writes the row when its Revision is still the one given (0 for a new one) and counts it up; else it
	// is ErrConflict, so that nobody writes over what he has not seen.
	PutRollout(Rollout) error

	Member(rollout, device string) (Member, error)
	MemberCounts(rollout string) (map[MemberState]int, error)
	// Members are those of a rank above after, in one state or, where it is empty, in any; by rank, at most limit.
	Members(rollout string, state MemberState, after, limit int) ([]Member, error)
	// MemberCountsBetween counts the members with from <= rank < below.
	MemberCountsBetween(rollout string, from, below int) (map[MemberState]int, error)
	// Candidates are pending members with after < rank < below that are connected or revoked, or away where those are
	// wanted too; by rank, at most limit. One is reserved when a running rollout of a priority above the given one has it
	// pending or open.
	Candidates(rollout string, priority, after, below, limit int, away bool) ([]Candidate, error)
	// AwayMembers are pending members with a rank below the given one that were never started and whose device is not
	// connected, was last seen before a time and was not in an update then; by rank, at most limit.
	AwayMembers(rollout string, below int, before time.Time, limit int) ([]Member, error)
	// TriedAndGone are the pending members that have used up a try and are not connected, by rank.
	TriedAndGone(rollout string) ([]Candidate, error)
	// Doubted are the members that are neither open nor skipped nor suspect while their device is suspect, and those that
	// are suspect while it is not; by rank.
	Doubted(rollout string) ([]Candidate, error)
	// CountDark counts members that have succeeded, or are pending after a try, and are not connected and were last seen
	// before a time.
	CountDark(rollout string, before time.Time) (int, error)
	PutMember(Member) error
	PutMembers([]Member) error

	CountAttempts(rollout string, since time.Time) (int, error) // begun after since
	RolledBack(sha256 string) ([]string, error)                 // devices with an attempt at it that rolled back, by id

	Quarantine(sha256 string) (Quarantine, error)
	Quarantines() ([]Quarantine, error) // newest first
	PutQuarantine(Quarantine) error

	Operator(name string) (Operator, error)
	OperatorByToken(sha256 string) (Operator, error)
	PutOperator(Operator) error

	AccountTx
	OverviewTx
	AuditTx
	WebhookTx
	OrderTx
	ShareTx
}

// Blobs keeps firmware bytes under their digest. Put reads exactly size bytes from r, checks the digest and is durable
// when it returns nil (temp file, fsync, rename, fsync of the folder; or an object that was read back); bytes that exist
// already are not written again. A reader never sees part of a file. Open returns ErrNotFound (wrapped) for bytes that are
// not there, ErrDamaged for other bytes than the digest's where it can tell. Reread is Open past everything that is kept
// nearer than the store itself: what it gives is what a restart would find.
type Blobs interface {
	Put(ctx context.Context, sha256 string, size int64, r io.Reader) error
	Open(ctx context.Context, sha256 string) (Blob, error)
	Reread(ctx context.Context, sha256 string) (Blob, error)
}

// Blob is an open firmware file of known size.
type Blob interface {
	io.ReadSeekCloser
	io.ReaderAt
	Size() int64
}

// Commander carries commands to devices. Send publishes cmd retained on the device's own topic at QoS 1; it returns
// when the broker has it. Clear removes the retained command. Drop ends the live sessions of a device or
// an operator, where the broker is ours.
type Commander interface {
	Send(ctx context.Context, device string, cmd protocol.Command) error
	Clear(ctx context.Context, device string) error
	Drop(ctx context.Context, name string) error
}
