package device

import (
	"sync"

	"bmsota/protocol"
)

// Sensors is the simulated battery management system. It may be set while the board runs, from any goroutine.
type Sensors struct {
	mu      sync.Mutex
	battery protocol.Battery
	silent  bool
}

// NewSensors is a healthy pack: 80 % charged, giving 1.5 A, at 21 to 23 °C.
func NewSensors() *Sensors {
	return &Sensors{battery: protocol.Battery{SOCPct: 80, PackCurrentA: -1.5, TempMinC: new(21.0), TempMaxC: new(23.0)}}
}

// Set changes what the pack measures.
func (s *Sensors) Set(b protocol.Battery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.battery = b.Clone()
}

// SetSilent makes the pack answer no more, or again.
func (s *Sensors) SetSilent(silent bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.silent = silent
}

// Read is one reading; ok is false while the pack is silent.
func (s *Sensors) Read() (b protocol.Battery, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.battery.Clone(), !s.silent
}
