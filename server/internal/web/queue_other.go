//go:build !linux

package web

// holds: where there may be room for less than a chunk, a stalled download would have its records held in memory.
const holds = false

// queued says that it is not known, so nobody's send buffer is made larger.
func (socket) queued() int { return -1 }

func (socket) resize(int) int { return SendBuffer }

func (socket) abandon() {}
