//go:build !linux

package web

// queued says that it is not known, so nobody's send buffer is made larger.
func (socket) queued() int { return -1 }

func (socket) resize(int) int { return SendBuffer }
