//go:build !(darwin || freebsd || linux)

package server

// diskFree is not known here.
func diskFree(string) int64 { return -1 }
