package crashdisk

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
)

// Survival is how much of what was not synced outlives the loss of power.
type Survival int

// The survivals.
const (
	Dropped   Survival = iota // nothing
	Kept                      // everything, as when only the process dies
	Torn                      // what came before some moment, and the first sectors of the write of that moment
	Reordered                 // any sectors and any names
	ByFile                    // of some files everything, of others nothing
)

// Survivals are all of them.
func Survivals() []Survival { return []Survival{Dropped, Kept, Torn, Reordered, ByFile} }

func (s Survival) String() string {
	return [...]string{"dropped", "kept", "torn", "reordered", "by file"}[s]
}

// Replay is a disk on which the operations of a log happen again, one after the other.
type Replay struct {
	root   *folder
	opened map[string]*file // by the name a file was made under, which whoever has it open need not know to be another now
	moves  int              // operations so far; numbers what is not yet durable
}

// NewReplay is an empty disk.
func NewReplay() *Replay { return &Replay{root: newFolder(), opened: make(map[string]*file)} }

// node is a file or a folder.
type node struct {
	file   *file
	folder *folder
}

type file struct {
	durable []byte
	live    []byte
	pending []change
}

// change is a write, or a truncation where data is nil.
type change struct {
	at     int // its number
	offset int64
	data   []byte
}

type folder struct {
	durable, live map[string]node
	pending       []*entry
}

// entry is a name that was set or, without a node, taken away.
type entry struct {
	at   int
	name string
	node node
	// after is the new name of what is taken away from here: a file that is moved has one of its names at least.
	after   *entry
	durable bool
}

func newFolder() *folder { return &folder{durable: map[string]node{}, live: map[string]node{}} }

// folderOf is the folder that holds name, and the name within.
func (r *Replay) folderOf(name string) (*folder, string, error) {
	f, err := r.folder(path.Dir(name))
	return f, path.Base(name), err
}

func (r *Replay) folder(name string) (*folder, error) {
	if name == "." {
		return r.root, nil
	}
	parent, base, err := r.folderOf(name)
	if err != nil {
		return nil, err
	}
	if f := parent.live[base].folder; f != nil {
		return f, nil
	}
	return nil, fmt.Errorf("no folder %s", name)
}

func (f *folder) set(e *entry) {
	if e.node == (node{}) {
		delete(f.live, e.name)
	} else {
		f.live[e.name] = e.node
	}
	f.pending = append(f.pending, e)
}

// Apply has op happen.
func (r *Replay) Apply(op Op) error {
	if err := r.apply(op); err != nil {
		return fmt.Errorf("%s %s: %w", op.Kind, op.Name, err)
	}
	return nil
}

func (r *Replay) apply(op Op) error {
	r.moves++
	if op.Kind == SyncFolder {
		f, err := r.folder(op.Name)
		if err != nil {
			return err
		}
		for _, e := range f.pending {
			e.durable = true
		}
		f.durable, f.pending = maps.Clone(f.live), nil
		return nil
	}
	f, base, err := r.folderOf(op.Name)
	if err != nil {
		return err
	}
	switch op.Kind {
	case Create:
		made := &file{}
		r.opened[op.Name] = made
		f.set(&entry{at: r.moves, name: base, node: node{file: made}})
	case Mkdir:
		f.set(&entry{at: r.moves, name: base, node: node{folder: newFolder()}})
	case Write, Truncate, Sync:
		there := r.opened[op.Name]
		if there == nil {
			return errNoFile
		}
		there.do(op, r.moves)
	case Remove, Rename:
		there, ok := f.live[base]
		if !ok {
			return errNoFile
		}
		gone := &entry{at: r.moves, name: base}
		if op.Kind == Rename {
			to, name, err := r.folderOf(op.To)
			if err != nil {
				return err
			}
			gone.after = &entry{at: r.moves, name: name, node: there}
			to.set(gone.after)
		}
		f.set(gone)
	}
	return nil
}

var errNoFile = errors.New("no such file")

func (f *file) do(op Op, at int) {
	switch c := (change{at: at, offset: op.Offset}); op.Kind {
	case Sync:
		f.durable, f.pending = bytes.Clone(f.live), nil
		return
	case Write:
		c.data = append([]byte{}, op.Data...)
		fallthrough
	case Truncate:
		f.live = c.on(f.live)
		f.pending = append(f.pending, c)
	}
}

// on is what c makes of b.
func (c change) on(b []byte) []byte {
	if c.data == nil {
		if int64(len(b)) > c.offset {
			return b[:c.offset:c.offset]
		}
		return append(b, make([]byte, c.offset-int64(len(b)))...)
	}
	if end := c.offset + int64(len(c.data)); int64(len(b)) < end {
		b = append(b, make([]byte, end-int64(len(b)))...)
	}
	copy(b[c.offset:], c.data)
	return b
}

// Image is what stands on a disk: files by their names, and the names of folders, which end in a slash.
type Image map[string][]byte

// Sum tells images apart.
func (i Image) Sum() [sha256.Size]byte {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(i)) {
		fmt.Fprintf(h, "%q %d\n", name, len(i[name]))
		h.Write(i[name])
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// WriteTo puts the image into an empty folder of this machine.
func (i Image) WriteTo(dir string) error {
	for _, name := range slices.Sorted(maps.Keys(i)) {
		at := filepath.Join(dir, filepath.FromSlash(name))
		var err error
		if name[len(name)-1] == '/' {
			err = os.MkdirAll(at, 0o700)
		} else {
			err = os.WriteFile(at, i[name], 0o600)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Lose is what the disk holds when the power goes now. rng decides what chance decides.
func (r *Replay) Lose(s Survival, rng *rand.Rand) Image {
	l := &loss{survival: s, rng: rng, image: make(Image), chosen: make(map[*entry]bool)}
	l.moment = rng.IntN(r.moves + 1)
	if s == Torn { // the later moments are where something is pending
		l.moment = r.moves - rng.IntN(min(r.moves, 12)+1)
	}
	l.walk(".", r.root)
	return l.image
}

type loss struct {
	survival Survival
	rng      *rand.Rand
	moment   int
	image    Image
	chosen   map[*entry]bool
}

func (l *loss) walk(at string, f *folder) {
	names := maps.Clone(f.durable)
	for _, e := range f.pending {
		switch {
		case !l.survives(e):
		case e.node == (node{}):
			delete(names, e.name)
		default:
			names[e.name] = e.node
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		at := path.Join(at, name)
		if n := names[name]; n.folder != nil {
			l.image[at+"/"] = nil
			l.walk(at, n.folder)
		} else {
			l.image[at] = l.content(n.file)
		}
	}
}

func (l *loss) survives(e *entry) bool {
	if e.after != nil && !e.after.durable && !l.survives(e.after) {
		return false
	}
	kept, known := l.chosen[e]
	if known {
		return kept
	}
	switch l.survival {
	case Kept:
		kept = true
	case Torn:
		kept = e.at <= l.moment
	case Reordered, ByFile:
		kept = l.rng.IntN(2) == 0
	}
	l.chosen[e] = kept
	return kept
}

func (l *loss) content(f *file) []byte {
	b := bytes.Clone(f.durable)
	all := l.survival == Kept || l.survival == ByFile && l.rng.IntN(2) == 0
	for _, c := range f.pending {
		switch {
		case all, l.survival == Torn && c.at < l.moment:
			b = c.on(b)
		case l.survival == Torn && c.at == l.moment && len(c.data) > 0:
			sectors := c.sectors()
			for _, part := range sectors[:l.rng.IntN(len(sectors))] {
				b = part.on(b)
			}
		case l.survival == Reordered:
			for _, part := range c.sectors() {
				if l.rng.IntN(2) == 0 {
					b = part.on(b)
				}
			}
		}
	}
	return b
}

// sectors are the parts of a write that a disk writes whole; of a truncation, itself.
func (c change) sectors() []change {
	if c.data == nil {
		return []change{c}
	}
	var list []change
	for offset, rest := c.offset, c.data; len(rest) > 0; {
		n := min(int64(len(rest)), Sector-offset%Sector)
		list = append(list, change{at: c.at, offset: offset, data: rest[:n]})
		offset, rest = offset+n, rest[n:]
	}
	return list
}
