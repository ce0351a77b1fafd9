package protocol

import "fmt"

// Reason says, for programs, why a device refused, waits, failed or went back. The set is closed: a peer that gets
// another word treats it as ReasonOther. The words people read are in a status's message.
type Reason string

// Reasons. The comment is the cause; docs/protocol.md lists them with the phase they come with.
const (
	ReasonNone  Reason = ""
	ReasonOther Reason = "other" // a reason this version does not know

	// Answers to a command that changed nothing.
	ReasonBadCommand     Reason = "bad_command"     // not JSON, wrong types, a key twice
	ReasonOversize       Reason = "oversize"        // more than MaxCommand bytes
	ReasonUnknownAction  Reason = "unknown_action"  // an action that is none of the four
	ReasonExpired        Reason = "expired_command" // expires_at has passed
	ReasonStaleCommand   Reason = "stale_command"   // retained rollback with no version: acting would repeat at each boot
	ReasonBusy           Reason = "busy"            // another update is under way
	ReasonNoRollback     Reason = "no_rollback"     // no other slot holds an image that verifies
	ReasonUpToDate       Reason = "up_to_date"      // the offered release is what runs
	ReasonUpdateExists   Reason = "update_available"
	ReasonNotPublished   Reason = "not_published"    // the server offers nothing to this device
	ReasonVersionMissing Reason = "version_mismatch" // the command names a version, the server offers another

	// Refusals of a release (phase refused).
	ReasonWrongChip         Reason = "wrong_chip"
	ReasonWrongProject      Reason = "wrong_project"
	ReasonTooBig            Reason = "too_big" // larger than this device's slot
	ReasonDowngrade         Reason = "downgrade"
	ReasonSameVersion       Reason = "same_version" // equal version, other bytes
	ReasonSecurityFloor     Reason = "security_floor"
	ReasonNeedsIntermediate Reason = "needs_intermediate" // runs something older than min_version
	ReasonUnsigned          Reason = "unsigned"           // the device holds a key and there is no manifest
	ReasonBadSignature      Reason = "bad_signature"
	ReasonQuarantined       Reason = "quarantined" // this digest was rolled back on this device
	ReasonBadVersionFile    Reason = "bad_version_file"
	ReasonStaleOffer        Reason = "stale_offer" // the device holds the server's key, and the answer is not proven to be of now

	// Gates (phase waiting).
	ReasonCharging      Reason = "charging"
	ReasonLowSOC        Reason = "low_soc"
	ReasonHighCurrent   Reason = "high_current"
	ReasonTooCold       Reason = "too_cold"
	ReasonTooHot        Reason = "too_hot"
	ReasonOutsideWindow Reason = "outside_window"
	ReasonNoReading     Reason = "no_reading" // a gate needs a battery reading and there is none

	// Failures (phase failed). The device keeps running what it ran.
	ReasonUnreachable    Reason = "server_unreachable"
	ReasonTLS            Reason = "tls_failed"
	ReasonHTTPStatus     Reason = "http_status"
	ReasonStalled        Reason = "stalled"
	ReasonDeadline       Reason = "deadline"
	ReasonSizeMismatch   Reason = "size_mismatch"   // more or fewer bytes than promised
	ReasonDigestMismatch Reason = "digest_mismatch" // the bytes are not those of the manifest
	ReasonImageInvalid   Reason = "image_invalid"   // the image in flash does not verify
	ReasonFlash          Reason = "flash_error"
	ReasonBadConfig      Reason = "bad_config"

	// Causes of a rollback (phase rolled_back).
	ReasonCrash     Reason = "crash"
	ReasonWatchdog  Reason = "watchdog"
	ReasonBrownout  Reason = "brownout"
	ReasonPowerLoss Reason = "power_loss"
	ReasonNoNetwork Reason = "no_network"
	ReasonNoBroker  Reason = "no_broker"
	ReasonNoServer  Reason = "no_server"
	ReasonBMSSilent Reason = "bms_silent"
	ReasonLowHeap   Reason = "low_heap"
	ReasonOperator  Reason = "operator" // a rollback command
	ReasonCorrupt   Reason = "image_corrupt"

	// Said by a server about a device it has not heard of in time.
	ReasonSilent Reason = "silent"
)

// explain gives each reason the sentence people read when a device has nothing better to say.
var explain = map[Reason]string{
	ReasonOther:             "reason not known to this version",
	ReasonBadCommand:        "command is not readable",
	ReasonOversize:          fmt.Sprintf("command is larger than %d bytes", MaxCommand),
	ReasonUnknownAction:     "command has an unknown action",
	ReasonExpired:           "command has expired",
	ReasonStaleCommand:      "retained rollback without a version ignored",
	ReasonBusy:              "another update is under way",
	ReasonNoRollback:        "no earlier image to go back to",
	ReasonUpToDate:          "already running this release",
	ReasonUpdateExists:      "update available",
	ReasonNotPublished:      "server offers no release for this device",
	ReasonVersionMissing:    "server offers another version than the one asked for",
	ReasonWrongChip:         "release is for another chip",
	ReasonWrongProject:      "release is of another project",
	ReasonTooBig:            "release is larger than the slot of this device",
	ReasonDowngrade:         "release is older than what runs",
	ReasonSameVersion:       "same version with other bytes",
	ReasonSecurityFloor:     "release is below the security floor",
	ReasonNeedsIntermediate: "an intermediate version must be installed first",
	ReasonUnsigned:          "release is not signed",
	ReasonBadSignature:      "signature does not match a trusted key",
	ReasonQuarantined:       "this image was rolled back before",
	ReasonBadVersionFile:    "version.json is not readable",
	ReasonStaleOffer:        "answer does not prove that it is the server's of now",
	ReasonCharging:          "blocked: charging",
	ReasonLowSOC:            "blocked: state of charge too low",
	ReasonHighCurrent:       "blocked: too much current",
	ReasonTooCold:           "blocked: too cold",
	ReasonTooHot:            "blocked: too hot",
	ReasonOutsideWindow:     "blocked: outside the update window",
	ReasonNoReading:         "blocked: no battery reading",
	ReasonUnreachable:       "server cannot be reached",
	ReasonTLS:               "server certificate is not trusted",
	ReasonHTTPStatus:        "server answered with an error",
	ReasonStalled:           "download stalled",
	ReasonDeadline:          "update took longer than allowed",
	ReasonSizeMismatch:      "download has another size than promised",
	ReasonDigestMismatch:    "image digest does not match",
	ReasonImageInvalid:      "image in flash does not verify",
	ReasonFlash:             "flash could not be written",
	ReasonBadConfig:         "configuration is not readable",
	ReasonCrash:             "new image crashed",
	ReasonWatchdog:          "new image hung",
	ReasonBrownout:          "supply voltage dropped during the trial",
	ReasonPowerLoss:         "power was lost during the trial",
	ReasonNoNetwork:         "new image had no network",
	ReasonNoBroker:          "new image did not reach the broker",
	ReasonNoServer:          "new image did not reach the server",
	ReasonBMSSilent:         "new image could not read the BMS",
	ReasonLowHeap:           "new image ran low on memory",
	ReasonOperator:          "rolled back by command",
	ReasonCorrupt:           "image in the selected slot was damaged",
	ReasonSilent:            "not heard of in time",
}

// Text is the sentence for people.
func (r Reason) Text() string { return explain[r] }

// Known maps a word from the wire to the closed set: itself when it is in it, ReasonOther when it is not.
func (r Reason) Known() Reason {
	if _, ok := explain[r]; ok || r == ReasonNone {
		return r
	}
	return ReasonOther
}

// Reasons lists the closed set, for documentation and tests, in no order.
func Reasons() []Reason {
	all := make([]Reason, 0, len(explain))
	for r := range explain {
		all = append(all, r)
	}
	return all
}

// Refusal is an error that carries the reason a device gives for it.
type Refusal struct {
	Reason Reason
	Detail string // what exactly, for people; may be empty
}

func (r *Refusal) Error() string {
	if r.Detail == "" {
		return r.Reason.Text()
	}
	return r.Reason.Text() + ": " + r.Detail
}

func refuse(reason Reason, format string, args ...any) *Refusal {
	return &Refusal{Reason: reason, Detail: fmt.Sprintf(format, args...)}
}
