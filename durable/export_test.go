package durable

import "io/fs"

// WriteFileOn is WriteFile with other files than those of this machine.
func WriteFileOn(files Files, path string, data []byte, perm fs.FileMode) error {
	return writeFile(files, path, data, perm)
}

// MkdirAllOn is MkdirAll, of folders that are not there, with other files than those of this machine.
func MkdirAllOn(files Files, path string, perm fs.FileMode) error { return mkdirAll(files, path, perm) }
