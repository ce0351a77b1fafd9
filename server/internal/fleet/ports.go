package fleet

import (
	"context"
	"io"

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

	Attempt(id string) (Attempt, error)
	AttemptsOf(device string, limit int) ([]Attempt, error) // newest first
	OpenAttempts() ([]Attempt, error)                       // oldest first
	OpenAttemptsOf(device string) ([]Attempt, error)        // oldest first
	PutAttempt(Attempt) error

	Keys(project string) ([]ProjectKey, error) // oldest first
	PutKey(ProjectKey) error

	Operator(name string) (Operator, error)
	OperatorByToken(sha256 string) (Operator, error)
	PutOperator(Operator) error

	AccountTx
	OverviewTx
}

// Blobs keeps firmware bytes under their digest. Put reads exactly size bytes from r, checks the digest and is durable
// when it returns nil (temp file, fsync, rename, fsync of the folder); bytes that exist already are not written again.
// A reader never sees part of a file. Open returns ErrNotFound (wrapped) for bytes that are not there.
type Blobs interface {
	Put(ctx context.Context, sha256 string, size int64, r io.Reader) error
	Open(sha256 string) (Blob, error)
}

// Blob is an open firmware file of known size.
type Blob interface {
	io.ReadSeekCloser
	io.ReaderAt
	Size() int64
}

// Commander carries commands to devices. Send publishes cmd retained on the device's own topic at QoS 1; it returns
// when the broker has it. Clear removes the retained command. Drop ends the live sessions of a device, where the broker
// is ours.
type Commander interface {
	Send(ctx context.Context, device string, cmd protocol.Command) error
	Clear(ctx context.Context, device string) error
	Drop(ctx context.Context, device string) error
}
