package crashdisk

import (
	"io/fs"
	"path"

	"bmsota/durable"
)

// Files are Real that write down in Log what is done to them. Names of Real are put below Under in the log.
type Files struct {
	Log   *Log
	Real  durable.Files
	Under string
}

func (f Files) at(name string) string { return path.Join(f.Under, name) }

// Create implements durable.Files.
func (f Files) Create(name string) (file durable.File, err error) {
	var opened durable.File
	err = f.Log.Do(Op{Kind: Create, Name: f.at(name)}, func() (err error) { opened, err = f.Real.Create(name); return err })
	if err != nil {
		return nil, err
	}
	return &written{File: opened, log: f.Log, name: f.at(name)}, nil
}

// Rename implements durable.Files.
func (f Files) Rename(from, to string) error {
	return f.Log.Do(Op{Kind: Rename, Name: f.at(from), To: f.at(to)}, func() error { return f.Real.Rename(from, to) })
}

// Remove implements durable.Files.
func (f Files) Remove(name string) error {
	return f.Log.Do(Op{Kind: Remove, Name: f.at(name)}, func() error { return f.Real.Remove(name) })
}

// Mkdir implements durable.Files.
func (f Files) Mkdir(name string, perm fs.FileMode) error {
	return f.Log.Do(Op{Kind: Mkdir, Name: f.at(name)}, func() error { return f.Real.Mkdir(name, perm) })
}

// SyncFolder implements durable.Files.
func (f Files) SyncFolder(name string) error {
	return f.Log.Do(Op{Kind: SyncFolder, Name: f.at(name)}, func() error { return f.Real.SyncFolder(name) })
}

// written is a file that is written from its beginning to its end.
type written struct {
	durable.File
	log  *Log
	name string
	end  int64
}

func (w *written) Write(b []byte) (n int, err error) {
	err = w.log.Do(Op{Kind: Write, Name: w.name, Offset: w.end, Data: b}, func() (err error) { n, err = w.File.Write(b); return err })
	w.end += int64(n)
	return n, err
}

func (w *written) Sync() error { return w.log.Do(Op{Kind: Sync, Name: w.name}, w.File.Sync) }

func (w *written) Chmod(perm fs.FileMode) error {
	return w.log.Do(Op{Kind: Chmod, Name: w.name}, func() error { return w.File.Chmod(perm) })
}

// Close gives the file back even where its answer is an error, as close does.
func (w *written) Close() error {
	var answer error
	if err := w.log.Do(Op{Kind: Close, Name: w.name}, func() error { answer = w.File.Close(); return nil }); err != nil {
		_ = w.File.Close()
		return err
	}
	return answer
}
