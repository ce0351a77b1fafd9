package fleet

import (
	"errors"
	"time"

	"bmsota/protocol"
)

// Errors a caller branches on. web maps them to HTTP statuses and cmd to exit codes, in one table each.
var (
	ErrNotFound = errors.New("not found")
	ErrConflict = errors.New("conflict")      // exists with other content
	ErrRefused  = errors.New("refused")       // verification or policy says no
	ErrInvalid  = errors.New("invalid")       // the request makes no sense
	ErrDenied   = errors.New("not allowed")   // unknown, revoked, or without the right
	ErrStorage  = errors.New("storage fault") // disk full, I/O error: nothing was acknowledged
	ErrUnderWay = errors.New("under way")     // an order to all that is durable and goes on without its caller
	ErrDamaged  = errors.New("damaged")       // stored bytes that are not those of their digest
)

// Release is an image and its manifest, published under (project, chip, version) and immutable.
type Release struct {
	SHA256        string // of the image file; the release's identity
	Project, Chip string
	Version       string
	MinVersion    string
	Description   string
	ForceUpdate   bool
	Size          int64 // bytes
	SecureVersion uint32
	BuildDate     time.Time
	Manifest      string // compact JWS; empty for an unsigned release
	Cosignatures  string // by further keys, as version.json has them
	PublishedAt   time.Time
	PublishedBy   string
	Withdrawn     bool // offered to nobody; the bytes stay
}

// DefaultChannel is the channel of a device or request that names none.
const DefaultChannel = "stable"

// Channel is a named pointer to a release, one for each project and chip.
type Channel struct {
	Project, Chip, Name string
	SHA256              string
	SetAt               time.Time
	SetBy               string
}

// Device is one monitor as the fleet knows it.
type Device struct {
	ID          string
	TokenSHA256 string // hex; empty when the device has no token
	// CertificateSHA256 is the fingerprint of the one certificate that the device may show in place of a token, in hex.
	CertificateSHA256 string
	CertificateEnds   time.Time
	EnrolledAt        time.Time
	Revoked           bool
	Channel           string // empty = DefaultChannel
	Labels            Labels // nil when it has none
	Online            bool
	FirstSeen         time.Time
	LastSeen          time.Time       // of its last accepted status or connect
	PhaseSince        time.Time       // when Status.Phase was entered
	Status            protocol.Status // the last accepted one; zero when it has said nothing

	// Version and SHA256 are what the device runs: as it last reported outside a trial. During a trial they are still
	// those of the image before it, so that nobody is said to run what is not yet shown to work.
	Version, SHA256 string
	// PreviousVersion is what it ran before Version, where the image is still in the other slot; empty when unknown.
	PreviousVersion string

	// Boot and Seq order the statuses: those of the last accepted status that carried a boot id.
	Boot string
	Seq  uint64
	// OldBoots are the boots before Boot, oldest first, at most eight: what still arrives from them is late.
	OldBoots []string

	// Doubts are what it has said that does not go together.
	Doubts Doubts
}

// Enrolled says whether a login was ever made for the device. That it may use it is another question: Revoked.
func (d Device) Enrolled() bool { return d.TokenSHA256 != "" || d.CertificateSHA256 != "" }

// AttemptState is how an attempt stands.
type AttemptState string

// The states. All but open are final.
const (
	AttemptOpen       AttemptState = "open"
	AttemptSucceeded  AttemptState = "succeeded"
	AttemptFailed     AttemptState = "failed"
	AttemptRefused    AttemptState = "refused"
	AttemptRolledBack AttemptState = "rolled_back"
	AttemptExpired    AttemptState = "expired"    // the device never took it up in time
	AttemptSuperseded AttemptState = "superseded" // a later command took its place
)

// Attempt is one device's try at one command.
type Attempt struct {
	ID        string // the command's id and the device's: unique
	CommandID string
	DeviceID  string
	RolloutID string // empty for a command of its own
	Action    protocol.Action
	Force     bool
	Version   string // wanted; empty = whatever is offered
	SHA256    string // digest wanted where it was known when the attempt was made
	CreatedAt time.Time
	CreatedBy string
	ExpiresAt time.Time // zero = never
	State     AttemptState
	Phase     protocol.Phase // furthest the device has reported for it
	Reason    protocol.Reason
	Message   string
	UpdatedAt time.Time
	EndedAt   time.Time
}

// KeyKind is what a key of a project signs.
type KeyKind string

// The kinds.
const (
	KeyRelease KeyKind = "release" // manifests; Key is the public key in PEM
	KeyImage   KeyKind = "image"   // images, as Secure Boot v2 has it; Key is the digest that eFuse holds, in hex
)

// ProjectKey is a key that may sign for a project. Release keys stand in sets: set 0 is that of the first signed release,
// a later one came in an image that carried it (manifest.Builtin). Devices that run FromVersion or newer trust the set
// with it, and older ones the set before; what they would refuse is refused at publish.
type ProjectKey struct {
	Project     string
	Kind        KeyKind
	Sequence    uint32 // of the set
	Key         string
	FromVersion string // empty for set 0
	Threshold   int    // of the set: how many keys have to sign
	Retired     bool   // an image key that counts no more
	AddedAt     time.Time
	AddedBy     string
}

// Identity is who stands behind a login.
type Identity struct {
	Name string // device id or operator name
	Role Role
}

// Operator is a token by which a program, or a person's tool, logs in.
type Operator struct {
	Name        string
	TokenSHA256 string // hex of the SHA-256 of a 256-bit random token
	Role        Role
	CreatedAt   time.Time
	ExpiresAt   time.Time // zero = never
	Revoked     bool
}
