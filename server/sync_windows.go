package server

// syncFolder does nothing: Windows has no sync of folders, and NTFS logs the rename itself.
func syncFolder(string) error { return nil }
