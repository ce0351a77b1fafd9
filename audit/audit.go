// Package audit is the form of the audit log: what a row says, how it is written as a line, and how each row holds on to
// the one before by its hash. The server writes rows by it, the operator's tool checks them by it, and so can a script:
// docs/audit.md says it in ten lines.
//
// A line is the JSON object of Entry without white space. Its hash is the SHA-256, in lower-case hex, of the line
// without the member "hash". The hash of the row before is a member of the line, so it is hashed with the rest: whoever
// changes one row has to change every row behind it.
//
// That shows every change to whoever has written down one hash ("N:HASH", type Head) outside of the server's reach. It
// shows nothing to somebody who has only the log, made anew from the first changed row by whoever rules the server.
package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Action is what was done, in dotted words: its first word is what it was done to.
type Action string

// The actions. The set is closed: a log holds no others.
const (
	ReleasePublish  Action = "release.publish"
	ReleaseWithdraw Action = "release.withdraw"
	ReleaseChange   Action = "release.change"
	ChannelSet      Action = "channel.set"
	KeyAdd          Action = "key.add"
	KeyChange       Action = "key.change"

	DeviceSeen    Action = "device.seen" // the first word of one that was never enrolled here
	DeviceEnroll  Action = "device.enroll"
	DeviceRevoke  Action = "device.revoke"
	DeviceLabel   Action = "device.label"
	DeviceChannel Action = "device.channel"
	DeviceSuspect Action = "device.suspect" // what it is suspected of has changed
	DeviceClear   Action = "device.clear"   // it is suspected of nothing any more

	CommandSend     Action = "command.send"
	CommandTakeBack Action = "command.takeback"
	AttemptBegin    Action = "attempt.begin"
	AttemptEnd      Action = "attempt.end"
	AttemptPrune    Action = "attempt.prune" // old attempts were forgotten

	RolloutCreate  Action = "rollout.create"
	RolloutPause   Action = "rollout.pause"
	RolloutResume  Action = "rollout.resume"
	RolloutAbort   Action = "rollout.abort"
	RolloutHalt    Action = "rollout.halt"
	RolloutAdvance Action = "rollout.advance"
	RolloutDone    Action = "rollout.done"
	RolloutChange  Action = "rollout.change" // any other step
	QuarantineSet  Action = "quarantine.set"
	QuarantineLift Action = "quarantine.lift"

	AccountAdd      Action = "account.add"
	AccountRole     Action = "account.role"
	AccountPassword Action = "account.password"
	AccountRemove   Action = "account.remove"
	TokenAdd        Action = "token.add"
	TokenChange     Action = "token.change"
	TokenRemove     Action = "token.remove"

	WebhookAdd    Action = "webhook.add"
	WebhookChange Action = "webhook.change"
	WebhookRemove Action = "webhook.remove"

	LoginOK      Action = "login.ok"
	LoginFailed  Action = "login.failed"
	LoginOut     Action = "login.out"
	AccessDenied Action = "access.denied"

	BackupRestore Action = "backup.restore"
	LogPrune      Action = "audit.prune" // the log begins behind the row that About names ("N:HASH")
)

// Actions lists them, in the order in which docs/audit.md explains them.
func Actions() []Action {
	return []Action{
		ReleasePublish, ReleaseWithdraw, ReleaseChange, ChannelSet, KeyAdd, KeyChange,
		DeviceSeen, DeviceEnroll, DeviceRevoke, DeviceLabel, DeviceChannel, DeviceSuspect, DeviceClear,
		CommandSend, CommandTakeBack, AttemptBegin, AttemptEnd, AttemptPrune,
		RolloutCreate, RolloutPause, RolloutResume, RolloutAbort, RolloutHalt, RolloutAdvance, RolloutDone, RolloutChange,
		QuarantineSet, QuarantineLift,
		AccountAdd, AccountRole, AccountPassword, AccountRemove, TokenAdd, TokenChange, TokenRemove, WebhookAdd, WebhookChange, WebhookRemove,
		LoginOK, LoginFailed, LoginOut, AccessDenied, BackupRestore, LogPrune,
	}
}

// Entry is one row.
type Entry struct {
	Seq     int64     `json:"seq"`            // from 1, without gaps; the first ones may have been pruned (LogPrune)
	At      time.Time `json:"at"`             // when the row was written: UTC, whole milliseconds
	Who     string    `json:"who"`            // account, token, device, "server" or "stranger"
	Role    string    `json:"role,omitempty"` // of Who at that time
	What    Action    `json:"what"`
	About   string    `json:"about,omitempty"`  // digest of a release, name of an account or token, id of an attempt
	Device  string    `json:"device,omitempty"` // it was done to, or by
	Rollout string    `json:"rollout,omitempty"`
	Details Details   `json:"details,omitempty"`
	Prev    string    `json:"prev"`           // Hash of the row before; Genesis of the first
	Hash    string    `json:"hash,omitempty"` // last: the line without it is what is hashed
}

// Genesis is what the first row names as the hash before it.
var Genesis = Head{Hash: strings.Repeat("0", 2*sha256.Size)}

// The limits of a row, in bytes. A line is never above MaxLine.
const (
	maxField   = 128
	maxDetails = 40
	maxValue   = 256
	MaxLine    = 128 << 10
)

// Seal makes e the row behind head: it fills in Seq, Prev and Hash, and cuts what is too long or no text.
func (e Entry) Seal(head Head) Entry {
	e.Seq, e.Prev = head.Seq+1, head.Hash
	e.At = e.At.UTC().Truncate(time.Millisecond)
	for _, text := range []*string{&e.Who, &e.Role, &e.About, &e.Device, &e.Rollout} {
		*text = clip(*text, maxField)
	}
	e.Details = append(Details(nil), e.Details[:min(len(e.Details), maxDetails)]...)
	for i := range e.Details {
		e.Details[i].Key, e.Details[i].Value = clip(e.Details[i].Key, maxField), clip(e.Details[i].Value, maxValue)
	}
	e.Hash = e.Sum()
	return e
}

// clip cuts a text to n bytes between two characters, and makes it one that every database holds as it is.
func clip(s string, n int) string {
	if len(s) > n {
		for n > 0 && !utf8.RuneStart(s[n]) {
			n--
		}
		s = s[:n]
	}
	return strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", "\uFFFD"), "\uFFFD")
}

// Sum is the hash that the row should have.
func (e Entry) Sum() string {
	e.Hash = ""
	sum := sha256.Sum256(e.Line())
	return hex.EncodeToString(sum[:])
}

// Line is the row as it is exported, without a line feed.
func (e Entry) Line() []byte {
	b, err := json.Marshal(e)
	if err != nil {
		// Nothing in an Entry can fail to be JSON but a year beyond 9999, which no clock says.
		return fmt.Appendf(nil, `{"error":%q}`, err.Error())
	}
	return b
}

// Head is the row's number and hash: what to write down.
func (e Entry) Head() Head { return Head{e.Seq, e.Hash} }

// Head names a row and, with it, everything before it.
type Head struct {
	Seq  int64
	Hash string
}

func (h Head) String() string { return fmt.Sprintf("%d:%s", h.Seq, h.Hash) }

// ParseHead reads "N:HASH".
func ParseHead(text string) (Head, error) {
	number, hash, _ := strings.Cut(text, ":")
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 1 || len(hash) != 2*sha256.Size || strings.Trim(hash, "0123456789abcdef") != "" {
		return Head{}, fmt.Errorf("%.80q is not N:HASH, the number of a row and its 64 hex digits", text)
	}
	return Head{n, hash}, nil
}

// Details are what else there is to say, in order. As JSON they are an object of texts.
type Details []Detail

// Detail is one of them.
type Detail struct{ Key, Value string }

// Of makes details of keys and values in turn, and leaves out those without a value.
func Of(pairs ...string) Details {
	var d Details
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			d = append(d, Detail{pairs[i], pairs[i+1]})
		}
	}
	return d
}

// Get is the value of a key; empty when there is none.
func (d Details) Get(key string) string {
	for _, pair := range d {
		if pair.Key == key {
			return pair.Value
		}
	}
	return ""
}

// MarshalJSON implements json.Marshaler.
func (d Details) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, pair := range d {
		if i > 0 {
			b.WriteByte(',')
		}
		for j, text := range []string{pair.Key, pair.Value} {
			quoted, err := json.Marshal(text)
			if err != nil {
				return nil, err
			}
			if j > 0 {
				b.WriteByte(':')
			}
			b.Write(quoted)
		}
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (d *Details) UnmarshalJSON(b []byte) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return errors.New("details are no object")
	}
	*d = nil
	for dec.More() {
		var pair [2]string
		for i := range pair {
			t, err := dec.Token()
			text, ok := t.(string)
			if err != nil || !ok {
				return errors.New("details hold something that is no text")
			}
			pair[i] = text
		}
		*d = append(*d, Detail{pair[0], pair[1]})
	}
	return nil
}
