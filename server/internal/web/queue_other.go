//go:build !linux

package web

import "syscall"

// queued says that it is not known, so nobody's send buffer is made larger.
func queued(syscall.RawConn) int { return -1 }

func setSendBuffer(syscall.RawConn, int) {}
