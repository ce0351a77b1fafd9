package durable

// SyncFolder does nothing: Windows has no sync of folders, and NTFS logs the names itself.
func SyncFolder(string) error { return nil }
