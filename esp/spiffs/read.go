package spiffs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io/fs"
	"slices"
)

// maxAnomalies is how many anomalies are kept in words; the rest is counted.
const maxAnomalies = 200

// FileInfo describes a file of an image.
type FileInfo struct {
	Name string // as stored, with its leading slash; any bytes in a hostile image, so see SafeName
	Size int64  // bytes; what the index header says, checked only where Err is nil
	ID   uint16 // object id, without the index bit
	// ModTime is what ESP-IDF's file system layer keeps in the first meta bytes, in seconds since 1970; 0 when it is not set.
	ModTime uint32
	// Err says why the content cannot be read; nil for a sound file.
	Err error
}

// FS is an image that was read. It keeps the image, which must not change as long as it is used, and is otherwise
// immutable: its methods may be called from several goroutines.
type FS struct {
	geometry
	image     []byte
	erased    int // the one block whose magic is wrong and whose content therefore counts as erased; -1 for none
	files     []file
	anomalies []string
	more      int // anomalies beyond maxAnomalies
	tables    map[spanKey]indexPage
}

type file struct {
	FileInfo
	header int // page number
}

type spanKey struct{ id, span uint16 }

// indexPage is an index page and how many of its first page numbers lead to sound data pages.
type indexPage struct {
	page  int
	sound int
}

// Read reads an image with ESP-IDF's default settings, of the size it has; see [Config.Read].
func Read(image []byte) (*FS, error) {
	return DefaultConfig(int64(len(image))).Read(image)
}

// Read mounts an image as firmware would and looks through it once. image must have c.Size bytes, and is kept.
//
// Errors are of type [*FormatError] where the image is at fault: a size that is no multiple of the block size, or more
// than one block with a wrong magic. One such block is what a power cut during an erase leaves; firmware erases it
// again, so its content counts as erased.
func (c Config) Read(image []byte) (*FS, error) {
	if int64(len(image)) != c.Size || len(image) == 0 || c.BlockSize > 0 && len(image)%c.BlockSize != 0 {
		return nil, &FormatError{int64(len(image)), "size", fmt.Sprintf("%d bytes, not a multiple of %d bytes or not the %d expected", len(image), c.BlockSize, c.Size)}
	}
	g, err := c.geometry()
	if err != nil {
		return nil, err
	}
	f := &FS{geometry: g, image: image, erased: -1, tables: make(map[spanKey]indexPage)}
	if err := f.mount(); err != nil {
		return nil, err
	}
	f.list(f.scan())
	return f, nil
}

// Files lists the files in the order in which firmware finds them. No two have the same name.
func (f *FS) Files() []FileInfo {
	infos := make([]FileInfo, len(f.files))
	for i, e := range f.files {
		infos[i] = e.FileInfo
	}
	return infos
}

// ReadFile gives a copy of a file's content. The error is a [*fs.PathError] around [fs.ErrNotExist], or the file's own Err.
func (f *FS) ReadFile(name string) ([]byte, error) {
	for _, e := range f.files {
		if e.Name == name {
			if e.Err != nil {
				return nil, &fs.PathError{Op: "read", Path: name, Err: e.Err}
			}
			return f.content(e), nil
		}
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

// Anomalies tells, in words for people, what a sound image would not have: what a power cut left behind, and damage.
func (f *FS) Anomalies() []string {
	if f.more == 0 {
		return slices.Clone(f.anomalies)
	}
	return append(slices.Clone(f.anomalies), fmt.Sprintf("and %d more", f.more))
}

func (f *FS) note(format string, args ...any) {
	if len(f.anomalies) >= maxAnomalies {
		f.more++
		return
	}
	f.anomalies = append(f.anomalies, fmt.Sprintf(format, args...))
}

// mount is the check of every block's magic in spiffs_obj_lu_scan.
func (f *FS) mount() error {
	if !f.Magic {
		return nil
	}
	for b := range f.blocks {
		off := f.magicOffset(b)
		got, want := f.u16(off), f.magic(b)
		if got == want {
			continue
		}
		// Firmware would take a single foreign block for an erase that was cut short; that is no sign of a file system.
		if f.erased >= 0 || f.blocks == 1 {
			return &FormatError{int64(off), "magic", fmt.Sprintf("%04x instead of %04x: not a SPIFFS image of %d bytes with pages of %d", got, want, f.Size, f.PageSize)}
		}
		f.erased = b
		f.note("block %d was left half erased (magic %04x); firmware erases it again", b, got)
	}
	return nil
}

// objects is what a scan finds, in lookup order.
type objects struct {
	headers   map[uint16][]int // live index headers by object id, page numbers
	order     []uint16         // the ids of headers, as first found
	dataPages map[uint16]int   // live data pages by object id
}

// scan walks the lookups. It sorts index pages by what they are for and leaves data pages to those that point to them.
func (f *FS) scan() objects {
	found := objects{headers: make(map[uint16][]int), dataPages: make(map[uint16]int)}
	for page := range f.blocks * f.pagesPerBlock {
		if !f.isUsable(page) {
			continue
		}
		entry := f.u16(f.lookupOffset(page))
		switch {
		case entry == idFree || entry == idDeleted:
			continue
		case entry&idIndex == 0:
			found.dataPages[entry]++
			continue
		}
		id, span, flags := f.header(page)
		if id != entry {
			f.note("page %d is entered as %04x but says it is %04x", page, entry, id)
			continue
		}
		id &^= idIndex
		switch {
		case flags&flagDeleted == 0:
			f.note("page %d is deleted but still entered as index %d of object %d", page, span, id)
		case span == 0 && flags&flagFinal == 0 && flags&flagIndexDeleted != 0:
			if len(found.headers[id]) == 0 {
				found.order = append(found.order, id)
			}
			found.headers[id] = append(found.headers[id], page)
		case span == 0:
			f.note("page %d is an index header of object %d that was not finished or is half deleted (flags %02x)", page, id, flags)
		case flags&(flagUsed|flagFinal) == 0:
			f.offer(id, span, page)
		default:
			f.note("page %d is index %d of object %d but was not finished (flags %02x)", page, span, id, flags)
		}
	}
	return found
}

// offer takes an index page behind the header. Of several for one place the one that leads to more sound pages counts, and
// the first of equals.
func (f *FS) offer(id, span uint16, page int) {
	key := spanKey{id, span}
	candidate := indexPage{page, f.sound(id, span, page)}
	before, taken := f.tables[key]
	if taken {
		f.note("object %d has two pages of index %d: %d and %d", id, span, before.page, page)
	}
	if !taken || candidate.sound > before.sound {
		f.tables[key] = candidate
	}
}

// sound counts the leading page numbers of an index page that lead to the object's own finished data pages.
// Because a data page belongs to exactly one place of one object, no more content can come out than the image has.
func (f *FS) sound(id, indexSpan uint16, page int) int {
	first := f.firstSpan(int(indexSpan))
	start, entries := f.table(int(indexSpan))
	for i := range entries {
		number := int(f.u16(page*f.PageSize + start + i*lookupEntrySize))
		if f.dataFault(id, first+i, number) != "" {
			return i
		}
	}
	return entries
}

// firstSpan is the first data span that an index page covers.
func (f *FS) firstSpan(indexSpan int) int {
	if indexSpan == 0 {
		return 0
	}
	return f.headEntries + (indexSpan-1)*f.nextEntries
}

// dataFault says what is wrong with the page that should hold a data span; empty for nothing.
func (f *FS) dataFault(id uint16, span, number int) string {
	if number == noPage {
		return "has no page"
	}
	if number >= f.blocks*f.pagesPerBlock {
		return "points outside the image"
	}
	if !f.isUsable(number) {
		return "points to a lookup page or an erased block"
	}
	gotID, gotSpan, flags := f.header(number)
	if gotID != id || int(gotSpan) != span {
		return fmt.Sprintf("points to a page of object %04x, span %d", gotID, gotSpan)
	}
	if flags&(flagUsed|flagFinal|flagIndex|flagDeleted) != flagIndex|flagDeleted {
		return fmt.Sprintf("points to a page that is deleted or was not finished (flags %02x)", flags)
	}
	return ""
}

// list chooses one header for each object and one object for each name.
func (f *FS) list(found objects) {
	names := make(map[string]int, len(found.order))
	for _, id := range found.order {
		pages := found.headers[id]
		best := f.describe(id, pages[0])
		if len(pages) > 1 {
			f.note("object %d has %d live index headers, the first two in pages %d and %d", id, len(pages), pages[0], pages[1])
			for _, page := range pages[1:] {
				if best.Err == nil {
					break
				}
				if other := f.describe(id, page); other.Err == nil {
					best = other
				}
			}
		}
		delete(found.dataPages, id)
		f.noteHeader(best)
		if before, taken := names[best.Name]; taken {
			f.note("objects %d and %d both have the name %q; firmware opens the first", before, id, best.Name)
			continue
		}
		names[best.Name] = int(id)
		f.files = append(f.files, best)
	}
	orphans, owners := 0, len(found.dataPages)
	for _, n := range found.dataPages {
		orphans += n
	}
	if orphans > 0 {
		f.note("%d data pages belong to %d objects without an index header", orphans, owners)
	}
}

func (f *FS) noteHeader(e file) {
	if e.Err != nil {
		f.note("file %q cannot be read: %v", e.Name, e.Err)
	}
	if len(e.Name) == f.NameSize {
		f.note("file %q has a name without an end", e.Name)
	}
	if typ := f.image[e.header*f.PageSize+12]; typ != typeFile {
		f.note("file %q has type %d, not %d", e.Name, typ, typeFile)
	}
}

// describe reads an index header and looks whether all of the content is there.
func (f *FS) describe(id uint16, page int) file {
	b := f.image[page*f.PageSize:][:f.PageSize]
	size := int64(binary.LittleEndian.Uint32(b[indexStart:]))
	if size == sizeUnset {
		size = 0
	}
	name := b[nameStart:][:f.NameSize]
	if end := bytes.IndexByte(name, 0); end >= 0 {
		name = name[:end]
	}
	e := file{FileInfo: FileInfo{Name: string(name), Size: size, ID: id}, header: page}
	if meta := b[nameStart+f.NameSize : f.tableStart]; len(meta) >= 4 {
		if t := binary.LittleEndian.Uint32(meta); t != 0xFFFFFFFF {
			e.ModTime = t
		}
	}
	e.Err = f.fault(e)
	return e
}

// fault says why a file's content cannot be read. It stops at the first missing page, so a size that lies costs nothing.
func (f *FS) fault(e file) error {
	at := int64(e.header) * int64(f.PageSize)
	spans := f.dataSpans(e.Size)
	if spans > int64(f.blocks*f.usable) {
		return &FormatError{at + indexStart, "size", fmt.Sprintf("%d bytes are more than the image can hold", e.Size)}
	}
	for indexSpan := 0; ; indexSpan++ {
		left := spans - int64(f.firstSpan(indexSpan))
		if left <= 0 {
			return nil
		}
		table, ok := f.indexPage(e, indexSpan)
		if !ok {
			return &FormatError{at, "index", fmt.Sprintf("page %d of the index is missing", indexSpan)}
		}
		start, entries := f.table(indexSpan)
		if int64(table.sound) < min(left, int64(entries)) {
			off := table.page*f.PageSize + start + table.sound*lookupEntrySize
			span := f.firstSpan(indexSpan) + table.sound
			return &FormatError{int64(off), "page number", fmt.Sprintf("data span %d %s", span, f.dataFault(e.ID, span, int(f.u16(off))))}
		}
	}
}

func (f *FS) indexPage(e file, indexSpan int) (indexPage, bool) {
	if indexSpan == 0 {
		return indexPage{e.header, f.sound(e.ID, 0, e.header)}, true
	}
	table, ok := f.tables[spanKey{e.ID, uint16(indexSpan)}]
	return table, ok
}

// content puts a file together that describe found to be whole.
func (f *FS) content(e file) []byte {
	data := make([]byte, 0, e.Size)
	for indexSpan := 0; int64(len(data)) < e.Size; indexSpan++ {
		table, _ := f.indexPage(e, indexSpan)
		start, entries := f.table(indexSpan)
		for i := 0; i < entries && int64(len(data)) < e.Size; i++ {
			number := int(f.u16(table.page*f.PageSize + start + i*lookupEntrySize))
			page := f.image[number*f.PageSize+pageHeaderSize:][:f.dataSize]
			data = append(data, page[:min(int64(len(page)), e.Size-int64(len(data)))]...)
		}
	}
	return data
}

// isUsable reports whether a page can hold data or an index: it is no lookup page, and its block counts.
func (f *FS) isUsable(page int) bool {
	return page%f.pagesPerBlock >= f.lookupPages && page/f.pagesPerBlock != f.erased
}

// header reads a page header: the object id with its index bit, the span, the flags.
func (f *FS) header(page int) (id, span uint16, flags byte) {
	b := f.image[page*f.PageSize:]
	return binary.LittleEndian.Uint16(b), binary.LittleEndian.Uint16(b[2:]), b[4]
}

func (f *FS) u16(off int) uint16 { return binary.LittleEndian.Uint16(f.image[off:]) }
