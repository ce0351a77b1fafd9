package store_test

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"bmsota/durable/crashdisk"

	"modernc.org/libc"
	sqlite3 "modernc.org/sqlite/lib"
)

// The databases of this test binary go to disk through a layer of our own under SQLite, below the driver that the server
// uses: it writes down what SQLite does to the files of a watched folder, and lets any of it fail. Locks and shared memory
// stay SQLite's; neither outlives the power.
//
// What SQLite syncs by itself below this layer (the folder, at the first sync of a new log and after a removal) is written
// down as it is documented for its unix files (unixSync, unixDelete).

// watch has what SQLite does to the files in dir written down in log from now on, or, with no log, only spares it waiting
// for the disk: whether a sync has really happened is the log's to say, for nobody pulls this machine's plug.
func watch(t testing.TB, dir string, log *crashdisk.Log) {
	t.Helper()
	if err := layer.install(); err != nil {
		t.Fatal(err)
	}
	layer.mu.Lock()
	defer layer.mu.Unlock()
	layer.watched[dir] = &watched{log: log, known: make(map[string]bool)}
	t.Cleanup(func() {
		layer.mu.Lock()
		defer layer.mu.Unlock()
		delete(layer.watched, dir)
	})
}

// watched is a folder of databases.
type watched struct {
	log   *crashdisk.Log
	known map[string]bool // files that the log has seen made; guarded by layer.mu
}

// watchedFile is an open file of SQLite's in a watched folder.
type watchedFile struct {
	*watched
	name    string
	beneath uintptr // SQLite's own methods
	// syncFolder says that the next sync is one of the folder too: the first of a new log or journal.
	syncFolder bool
}

// vfsLayer is what C calls, which knows no receiver: there is one.
type vfsLayer struct {
	once    sync.Once
	err     error
	beneath uintptr // SQLite's own sqlite3_vfs

	mu      sync.Mutex
	watched map[string]*watched      // by folder; guarded by mu
	files   map[uintptr]*watchedFile // by sqlite3_file; guarded by mu
	methods map[uintptr]uintptr      // our methods by those beneath; guarded by mu
}

var layer = vfsLayer{watched: map[string]*watched{}, files: map[uintptr]*watchedFile{}, methods: map[uintptr]uintptr{}}

// deref is C's pointer p as one of Go's.
func deref[T any](p uintptr) *T { return *(**T)(unsafe.Pointer(&p)) }

// function is the function that C's pointer p points at.
func function[F any](p uintptr) F { return *(*F)(unsafe.Pointer(&p)) }

// point has C's pointer p point at f, which is no closure.
func point[F any](p *uintptr, f F) { *(*F)(unsafe.Pointer(p)) = f }

type (
	openFunc     = func(tls *libc.TLS, vfs, name, file uintptr, flags int32, outFlags uintptr) int32
	deleteFunc   = func(tls *libc.TLS, vfs, name uintptr, syncDir int32) int32
	writeFunc    = func(tls *libc.TLS, file, data uintptr, n int32, offset int64) int32
	truncateFunc = func(tls *libc.TLS, file uintptr, size int64) int32
	syncFunc     = func(tls *libc.TLS, file uintptr, flags int32) int32
	closeFunc    = func(tls *libc.TLS, file uintptr) int32
)

// install makes the layer the one that databases are opened through, once.
func (l *vfsLayer) install() error {
	l.once.Do(func() {
		tls := libc.NewTLS() // stays, as the layer does
		if rc := sqlite3.Xsqlite3_initialize(tls); rc != sqlite3.SQLITE_OK {
			l.err = errors.New("SQLite does not begin")
			return
		}
		l.beneath = sqlite3.Xsqlite3_vfs_find(tls, 0)
		own := libc.Xcalloc(tls, 1, libc.Tsize_t(unsafe.Sizeof(sqlite3.Tsqlite3_vfs{})))
		name, err := libc.CString("crashdisk")
		if err != nil || own == 0 {
			l.err = errors.New("no memory")
			return
		}
		vfs := deref[sqlite3.Tsqlite3_vfs](own)
		*vfs = *deref[sqlite3.Tsqlite3_vfs](l.beneath)
		vfs.FpNext, vfs.FzName = 0, name
		point[openFunc](&vfs.FxOpen, layerOpen)
		point[deleteFunc](&vfs.FxDelete, layerDelete)
		if rc := sqlite3.Xsqlite3_vfs_register(tls, own, 1); rc != sqlite3.SQLITE_OK {
			l.err = errors.New("SQLite does not take the layer")
		}
	})
	return l.err
}

// folder is the watched folder of a file, nil when it is none.
func (l *vfsLayer) folder(path string) *watched {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.watched[filepath.Dir(path)]
}

func (l *vfsLayer) file(p uintptr) *watchedFile {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.files[p]
}

// code is what SQLite is told: a full disk where a write met one, else its own code for what has failed.
func code(err error, full, ioErr int32) int32 {
	switch {
	case err == nil:
		return sqlite3.SQLITE_OK
	case errors.Is(err, syscall.ENOSPC):
		return full
	}
	return ioErr
}

// answered is an answer of SQLite's own file that is not OK.
type answered int32

func (a answered) Error() string { return "an answer of SQLite's own" }

// do has what happens beneath written down; the answer is that of beneath, or rc for an error that the log made.
func (w *watched) do(op crashdisk.Op, full, ioErr int32, beneath func() int32) int32 {
	err := w.log.Do(op, func() error {
		if rc := beneath(); rc != sqlite3.SQLITE_OK {
			return answered(rc)
		}
		return nil
	})
	if own := answered(0); errors.As(err, &own) {
		return int32(own)
	}
	return code(err, full, ioErr)
}

func nothing() int32 { return sqlite3.SQLITE_OK }

func layerOpen(tls *libc.TLS, vfs, name, file uintptr, flags int32, outFlags uintptr) int32 {
	beneath := function[openFunc](deref[sqlite3.Tsqlite3_vfs](layer.beneath).FxOpen)
	path := ""
	if name != 0 {
		path = libc.GoString(name)
	}
	w := layer.folder(path)
	if w == nil {
		return beneath(tls, layer.beneath, name, file, flags, outFlags)
	}
	base := filepath.Base(path)
	open := func() int32 { return beneath(tls, layer.beneath, name, file, flags, outFlags) }
	layer.mu.Lock()
	info, err := os.Stat(path)
	fresh := err != nil || info.Size() == 0 && !w.known[base] // the server makes the database file, empty, by itself
	w.known[base] = true
	layer.mu.Unlock()
	var rc int32
	if fresh {
		rc = w.do(crashdisk.Op{Kind: crashdisk.Create, Name: base}, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_CANTOPEN, open)
	} else {
		rc = open()
	}
	if rc != sqlite3.SQLITE_OK {
		return rc
	}
	const logs = sqlite3.SQLITE_OPEN_WAL | sqlite3.SQLITE_OPEN_MAIN_JOURNAL | sqlite3.SQLITE_OPEN_SUPER_JOURNAL
	f := deref[sqlite3.Tsqlite3_file](file)
	layer.mu.Lock()
	defer layer.mu.Unlock()
	layer.files[file] = &watchedFile{watched: w, name: base, beneath: f.FpMethods,
		syncFolder: flags&sqlite3.SQLITE_OPEN_CREATE != 0 && flags&logs != 0}
	own, ok := layer.methods[f.FpMethods]
	if !ok {
		own = libc.Xcalloc(tls, 1, libc.Tsize_t(unsafe.Sizeof(sqlite3.Tsqlite3_io_methods{})))
		m := deref[sqlite3.Tsqlite3_io_methods](own)
		*m = *deref[sqlite3.Tsqlite3_io_methods](f.FpMethods)
		point[writeFunc](&m.FxWrite, layerWrite)
		point[truncateFunc](&m.FxTruncate, layerTruncate)
		point[syncFunc](&m.FxSync, layerSync)
		point[closeFunc](&m.FxClose, layerClose)
		layer.methods[f.FpMethods] = own
	}
	f.FpMethods = own
	return rc
}

func layerDelete(tls *libc.TLS, vfs, name uintptr, syncDir int32) int32 {
	beneath := function[deleteFunc](deref[sqlite3.Tsqlite3_vfs](layer.beneath).FxDelete)
	path := libc.GoString(name)
	w := layer.folder(path)
	if w == nil {
		return beneath(tls, layer.beneath, name, syncDir)
	}
	op := crashdisk.Op{Kind: crashdisk.Remove, Name: filepath.Base(path)}
	const fault = sqlite3.SQLITE_IOERR_DELETE
	rc := w.do(op, fault, fault, func() int32 { return beneath(tls, layer.beneath, name, 0) })
	if rc == sqlite3.SQLITE_OK && syncDir != 0 {
		rc = w.do(crashdisk.Op{Kind: crashdisk.SyncFolder, Name: "."}, sqlite3.SQLITE_IOERR_DIR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC, nothing)
	}
	return rc
}

func layerWrite(tls *libc.TLS, file, data uintptr, n int32, offset int64) int32 {
	f := layer.file(file)
	op := crashdisk.Op{Kind: crashdisk.Write, Name: f.name, Offset: offset, Data: unsafe.Slice(deref[byte](data), n)}
	beneath := function[writeFunc](deref[sqlite3.Tsqlite3_io_methods](f.beneath).FxWrite)
	return f.do(op, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, func() int32 { return beneath(tls, file, data, n, offset) })
}

func layerTruncate(tls *libc.TLS, file uintptr, size int64) int32 {
	f := layer.file(file)
	op := crashdisk.Op{Kind: crashdisk.Truncate, Name: f.name, Offset: size}
	beneath := function[truncateFunc](deref[sqlite3.Tsqlite3_io_methods](f.beneath).FxTruncate)
	return f.do(op, sqlite3.SQLITE_IOERR_TRUNCATE, sqlite3.SQLITE_IOERR_TRUNCATE, func() int32 { return beneath(tls, file, size) })
}

func layerSync(tls *libc.TLS, file uintptr, flags int32) int32 {
	f := layer.file(file)
	const fault = sqlite3.SQLITE_IOERR_FSYNC
	rc := f.do(crashdisk.Op{Kind: crashdisk.Sync, Name: f.name}, fault, fault, nothing)
	if rc == sqlite3.SQLITE_OK && f.syncFolder {
		f.syncFolder = false
		rc = f.do(crashdisk.Op{Kind: crashdisk.SyncFolder, Name: "."}, fault, fault, nothing)
	}
	return rc
}

func layerClose(tls *libc.TLS, file uintptr) int32 {
	f := layer.file(file)
	layer.mu.Lock()
	delete(layer.files, file)
	layer.mu.Unlock()
	deref[sqlite3.Tsqlite3_file](file).FpMethods = f.beneath
	return function[closeFunc](deref[sqlite3.Tsqlite3_io_methods](f.beneath).FxClose)(tls, file)
}
