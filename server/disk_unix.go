//go:build darwin || freebsd || linux

package server

import "syscall"

// diskFree is how many bytes the server's account may still write below path; -1 when that cannot be known.
func diskFree(path string) int64 {
	var s syscall.Statfs_t
	if syscall.Statfs(path, &s) != nil {
		return -1
	}
	return int64(s.Bavail) * int64(s.Bsize)
}
