// Package api is what operator tools and a bmsota server say to each other: the JSON types of /api/v1, the codes of its
// errors, the access file that a server leaves for tools on its own machine, and a client for all of it.
//
// It promises that one set of types serves both sides, so that a field cannot mean two things; that every error of the
// server arrives as *Error with a stable code; and that a failure below HTTP says which kind it was (ErrUnreachable,
// ErrTimeout, ErrUntrusted), because a tool's exit code depends on it.
//
// The client refuses to send a token over plain HTTP to another machine, to follow a redirect with it, and to read
// answers without bound. It keeps no state and is safe for concurrent use.
//
// Times are RFC 3339 in UTC, digests lower-case hex of SHA-256, sizes bytes. Errors are RFC 9457 problem documents.
package api

import (
	"time"

	"bmsota/protocol"
)

// Prefix is where the API lives below the server's address.
const Prefix = "/api/v1"

// MaxUpload is the largest firmware file in bytes that a server takes: the largest app partition of ESP-IDF and 64 KiB
// for what is appended to an image.
const MaxUpload = 16<<20 + 64<<10

// How many rows a page of a listing has where the request does not say, and at most.
const (
	DefaultPage = 100
	MaxPage     = 500
)

// Release is an image and its manifest as published.
type Release struct {
	SHA256        string    `json:"sha256"` // of the image file; the release's identity
	Project       string    `json:"project"`
	Chip          string    `json:"chip"`
	Version       string    `json:"version"`
	MinVersion    string    `json:"min_version,omitempty"`
	Description   string    `json:"description,omitempty"`
	ForceUpdate   bool      `json:"force_update"`
	Size          int64     `json:"size"`
	SecureVersion uint32    `json:"secure_version"`
	BuildDate     time.Time `json:"build_date,omitzero"`
	Signed        bool      `json:"signed"`
	Manifest      string    `json:"manifest,omitempty"` // compact JWS; left out of listings
	Cosignatures  string    `json:"cosignatures,omitempty"`
	PublishedAt   time.Time `json:"published_at"`
	PublishedBy   string    `json:"published_by"`
	Withdrawn     bool      `json:"withdrawn"`
	Channels      []string  `json:"channels"` // that point at it now, sorted
	// Quarantined says why it is offered to nobody, where a rollout of it was halted after devices had rolled back.
	Quarantined string `json:"quarantined,omitempty"`
}

// Channel is a named pointer to a release, one for each project and chip.
type Channel struct {
	Project string    `json:"project"`
	Chip    string    `json:"chip"`
	Channel string    `json:"channel"`
	SHA256  string    `json:"sha256"`
	Version string    `json:"version"`
	SetAt   time.Time `json:"set_at,omitzero"`
	SetBy   string    `json:"set_by,omitempty"`
}

// SetChannelRequest points a channel at a published version.
type SetChannelRequest struct {
	Project string `json:"project"`
	Chip    string `json:"chip"`
	Channel string `json:"channel"`
	Version string `json:"version"`
}

// Device is one row of the device listing. The first nine keys are what scripts rely on: they are always present.
type Device struct {
	DeviceID         string          `json:"device_id"`
	CurrentVersion   string          `json:"current_version"`
	AvailableVersion string          `json:"available_version"`
	Phase            protocol.Phase  `json:"phase"` // empty when the device has said nothing yet
	Status           protocol.Code   `json:"status"`
	ProgressPct      int             `json:"progress_pct"`
	Reason           protocol.Reason `json:"reason"`
	Online           bool            `json:"online"`
	LastSeen         *time.Time      `json:"last_seen"` // null when never

	Message           string            `json:"message,omitempty"`
	PhaseSince        time.Time         `json:"phase_since,omitzero"`
	FirstSeen         time.Time         `json:"first_seen,omitzero"`
	Enrolled          bool              `json:"enrolled"`
	EnrolledAt        time.Time         `json:"enrolled_at,omitzero"`
	CertificateSHA256 string            `json:"certificate_sha256,omitempty"` // by which it logs in, where it has no token
	CertificateEnds   time.Time         `json:"certificate_ends,omitzero"`
	Revoked           bool              `json:"revoked"`
	Channel           string            `json:"channel"`
	Project           string            `json:"project,omitempty"`
	Chip              string            `json:"chip,omitempty"`
	Slot              string            `json:"slot,omitempty"`
	SlotSize          int64             `json:"slot_size,omitempty"`
	ImageSHA256       string            `json:"image_sha256,omitempty"`
	SecureVersion     uint32            `json:"secure_version"`
	RollbackPending   bool              `json:"rollback_pending"`
	RollbackProtected bool              `json:"rollback_protected"`
	SignedOnly        bool              `json:"signed_only"`
	ResetReason       string            `json:"reset_reason,omitempty"`
	BytesDone         int64             `json:"bytes_done,omitempty"`
	BytesTotal        int64             `json:"bytes_total,omitempty"`
	FreeHeap          int64             `json:"free_heap,omitempty"`
	LargestFreeBlock  int64             `json:"largest_free_block,omitempty"`
	UptimeSec         int64             `json:"uptime_sec,omitempty"`
	Battery           *protocol.Battery `json:"battery,omitempty"`
	Labels            map[string]string `json:"labels,omitempty"`
	Suspicions        []Suspicion       `json:"suspicions,omitempty"` // while there are any, rollouts leave it out
}

// Attempt is one device's try at one command.
type Attempt struct {
	ID        string          `json:"id"`
	CommandID string          `json:"command_id"`
	DeviceID  string          `json:"device_id"`
	RolloutID string          `json:"rollout_id,omitempty"`
	Action    protocol.Action `json:"action"`
	Force     bool            `json:"force"`
	Version   string          `json:"version,omitempty"` // wanted; empty = whatever is offered
	SHA256    string          `json:"sha256,omitempty"`
	State     string          `json:"state"` // open, succeeded, failed, refused, rolled_back, expired, superseded
	Phase     protocol.Phase  `json:"phase,omitempty"`
	Reason    protocol.Reason `json:"reason,omitempty"`
	Message   string          `json:"message,omitempty"`
	CreatedAt time.Time       `json:"created_at"`
	CreatedBy string          `json:"created_by"`
	ExpiresAt time.Time       `json:"expires_at,omitzero"`
	UpdatedAt time.Time       `json:"updated_at,omitzero"`
	EndedAt   time.Time       `json:"ended_at,omitzero"`
}

// DeviceDetail is one device with its latest attempts, newest first.
type DeviceDetail struct {
	Device
	Attempts []Attempt `json:"attempts"`
	Contest  *Contest  `json:"contest,omitempty"`
}

// Suspicion is one reason why what a device reports is not believed.
type Suspicion struct {
	Kind     string    `json:"kind"` // alternating_boots, sequence_back, never_offered, contested
	Since    time.Time `json:"since"`
	Last     time.Time `json:"last"`
	Times    int       `json:"times"`
	Text     string    `json:"text"`     // what it means
	Evidence string    `json:"evidence"` // what was seen last
}

// Contest says that a device's login was found in use in two places within the last hour.
type Contest struct {
	At        time.Time `json:"at"`
	Addresses []string  `json:"addresses"`
	Times     int       `json:"times"` // that its sessions met within ten minutes
}

// PublishRequest makes uploaded bytes a release.
type PublishRequest struct {
	SHA256          string    `json:"sha256"`
	Manifest        string    `json:"manifest,omitempty"`       // compact JWS
	Cosignatures    string    `json:"cosignatures,omitempty"`   // by further keys
	PublicKeyPEM    string    `json:"public_key_pem,omitempty"` // of the keys that signed it
	Version         string    `json:"version,omitempty"`        // for an unsigned release only
	MinVersion      string    `json:"min_version,omitempty"`
	Description     string    `json:"description,omitempty"`
	ForceUpdate     bool      `json:"force_update,omitempty"`
	BuildDate       time.Time `json:"build_date,omitzero"`
	Channel         string    `json:"channel,omitempty"` // to point at it; empty = the server's default
	AllowAnyVersion bool      `json:"allow_any_version,omitempty"`
}

// PublishResponse is the release and what the publisher should know about it.
type PublishResponse struct {
	Release  Release  `json:"release"`
	Warnings []string `json:"warnings"`
}

// EnrollRequest names the device to enrol. With a certificate request (PKCS #10 in PEM, signed by the device's P-256 key) it
// gets a certificate, else a token.
type EnrollRequest struct {
	DeviceID           string `json:"device_id"`
	CertificateRequest string `json:"certificate_request,omitempty"`
}

// EnrollResponse carries the device's token, or its certificate. The server keeps only a digest of either, so this is the one
// time it is shown.
type EnrollResponse struct {
	DeviceID          string    `json:"device_id"`
	Token             string    `json:"token,omitempty"`
	Certificate       string    `json:"certificate,omitempty"`        // PEM
	CertificateSHA256 string    `json:"certificate_sha256,omitempty"` // its fingerprint
	CertificateEnds   time.Time `json:"certificate_ends,omitzero"`
}

// MQTT is how to reach the broker.
type MQTT struct {
	Host   string `json:"host"`
	Port   int    `json:"port"`
	TLS    bool   `json:"tls"`
	Prefix string `json:"prefix"` // of the topics
	// External is whether the broker is one of yours, and not the server's own.
	External bool   `json:"external"`
	CAPEM    string `json:"ca_pem"` // what devices need to trust it; empty = public authorities, or no TLS
}

// ServerInfo is what a server says of itself.
type ServerInfo struct {
	Version            string    `json:"version"`
	StartedAt          time.Time `json:"started_at"`
	URL                string    `json:"url"`                  // as devices should name the server, without a slash at the end
	Addresses          []string  `json:"addresses"`            // it listens on, host:port
	CAPEM              string    `json:"ca_pem"`               // what devices need to trust it; empty = public authorities
	MirrorURL          string    `json:"mirror_url,omitempty"` // where devices that hold a key find a copy of the releases
	OfferKeyPEM        string    `json:"offer_key_pem"`        // public key of the signatures under its answers to devices
	MQTT               MQTT      `json:"mqtt"`                 // as devices should reach it
	CertificateExpires time.Time `json:"certificate_expires,omitzero"`
	StorageFreeBytes   int64     `json:"storage_free_bytes"` // -1 = unknown on this system
	Ready              bool      `json:"ready"`
	NotReady           string    `json:"not_ready,omitempty"` // why not
	// BrokerDoubts are sentences about an external broker that does not keep devices apart.
	BrokerDoubts []string `json:"broker_doubts,omitempty"`
	// FirmwareDoubts are sentences about firmware that is damaged or missing in its bucket.
	FirmwareDoubts []string `json:"firmware_doubts,omitempty"`
}

// Problem is an error document of RFC 9457 with a code for programs.
type Problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
	Code   Code   `json:"code"`
}

// ProblemType is the media type of a Problem.
const ProblemType = "application/problem+json"

// Code says, for programs, what kind of error a Problem is.
type Code string

// The codes. They are stable: a new kind of error gets a new code.
const (
	CodeInvalid          Code = "invalid"                // the request makes no sense
	CodeUnauthorized     Code = "unauthorized"           // no token, or one that is not known
	CodeDenied           Code = "denied"                 // known, but without the right
	CodeNotFound         Code = "not_found"              // no such release, device, channel or path
	CodeMethod           Code = "method_not_allowed"     // the path exists, the method does not
	CodeConflict         Code = "conflict"               // exists with other content
	CodeRefused          Code = "refused"                // verification or policy says no
	CodeLengthRequired   Code = "length_required"        // an upload must say its length
	CodeMediaType        Code = "unsupported_media_type" // the body does not say that it is JSON
	CodeTooLarge         Code = "too_large"              // body above the limit
	CodeStorage          Code = "storage_fault"          // storage failed; nothing was acknowledged
	CodeDamaged          Code = "damaged"                // stored firmware no longer has its digest
	CodeStorageFull      Code = "storage_full"           // no space left; nothing was acknowledged
	CodeTooManyTries     Code = "too_many_tries"         // wait as long as Retry-After says
	CodeUnavailable      Code = "unavailable"            // shutting down, or too slow to answer
	CodeInternal         Code = "internal"               // a fault of the server; its log says more
	CodeUnexpectedAnswer Code = "unexpected_answer"      // said by Client: what answered is no bmsota server
)
