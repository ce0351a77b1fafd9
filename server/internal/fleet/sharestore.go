package fleet

import "time"

// Lease is the right to do what goes by the clock, of which there is one. Its number grows with every one who gets it, so that
// whoever had it before can be told from whoever has it now, however long he slept.
type Lease struct {
	Holder string // place of the server
	Token  int64
	Until  time.Time // by the store's clock
}

// Peer is a server that works on the store.
type Peer struct {
	Place  string // its data folder: two processes never have one at once
	Name   string // empty for one that works alone
	Seen   time.Time
	Tables int64 // the version of the tables that it knows; the store fills it in
}

// Change is what one server tells the others of a transaction, in the transaction.
type Change struct {
	Number int64     `json:"-"` // given by the store, in the order of the commits
	Place  string    `json:"-"` // who tells it
	At     time.Time `json:"-"` // by the store's clock

	All      bool     `json:"all,omitempty"`      // more than is worth telling one by one
	Catalog  bool     `json:"catalog,omitempty"`  // releases, channels or quarantines
	Notices  bool     `json:"notices,omitempty"`  // there may be something to deliver
	Devices  []string `json:"devices,omitempty"`  // whose rows changed
	Attempts []string `json:"attempts,omitempty"` // devices with an attempt that has begun or ended
	Rollouts []string `json:"rollouts,omitempty"`
	Lifted   []string `json:"lifted,omitempty"` // digests with another quarantine
	Logins   []string `json:"logins,omitempty"` // names whose secret stopped working
	Out      bool     `json:"out,omitempty"`    // somebody has signed out
	Again    []string `json:"again,omitempty"`  // devices that may have been sent what is old
	Say      []Saying `json:"say,omitempty"`
}

// Saying is a command that is said once, by whichever server's broker has the device.
type Saying struct {
	Device  string `json:"device"`
	Payload []byte `json:"payload"`
}

// ShareTx is the part of Tx that several servers agree by.
type ShareTx interface {
	Clock() (time.Time, error) // one for all servers
	Lease() (Lease, error)     // zero before the first
	PutLease(Lease) error      // of a smaller number than the one there is ErrConflict
	Peers() ([]Peer, error)    // by place
	PutPeer(Peer) error
	DeletePeer(place string) error
	Changes(after int64, limit int) ([]Change, error) // oldest first
	LastChange() (int64, error)                       // number; 0 = none
	PutChange(Change) error                           // the store numbers it
	DeleteChanges(before time.Time) error
	Home(device string) (string, error) // the place that has its session; "" = none
	HomesOf(place string, limit int) ([]string, error)
	PutHome(device, place string) error // "" takes it away
}
