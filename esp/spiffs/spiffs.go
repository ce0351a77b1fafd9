// Package spiffs builds and reads SPIFFS images, the flat file system that ESP-IDF keeps in a data/spiffs partition.
//
// It promises that [Build] gives, for the same files in the same order, the bytes that ESP-IDF's spiffsgen.py gives, and that
// [Read] also understands images which running firmware has changed: deleted pages, moved indexes, several versions
// of a file after a power cut. Reading never fails as a whole because one file is damaged; the file says so itself and
// [FS.Anomalies] lists everything that a sound image would not have.
//
// It refuses images that the firmware would not mount, files that the firmware could not open (names of 32 bytes and
// more, two files of one name), and names that would leave a folder they are extracted to ([SafeName]).
// Every input is taken as hostile: page numbers, sizes and names are checked before they are used, and time and memory are
// bounded by the size of the image.
//
// The truth is in ESP-IDF v5.5: components/spiffs/spiffsgen.py, components/spiffs/include/spiffs_config.h, and in pellepl/spiffs
// at commit 0dbb3f71: src/spiffs_nucleus.h and .c.
package spiffs

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
)

/*
A block starts with its lookup, one page with ESP-IDF's settings; all numbers are 16-bit little-endian.
Entry k of the lookup tells whose page k behind the lookup is:

	FFFF free   0000 deleted   else the object's id, with bit 15 set for an index page

The last four bytes of the lookup are the block's magic and its erase count.

A page starts with spiffs_page_header (spiffs_nucleus.h), 5 bytes:

	0  u16  object id, bit 15 as in the lookup
	2  u16  span: the page's number within the object's data, or within its index
	4  u8   flags; a bit is cleared when its condition holds

Data follows at once. In an index page 3 bytes of padding follow, and in span 0, the index header:

	 8  u32  size         FFFFFFFF until something was written
	12  u8   type         1 is a file
	13  name              NameSize bytes, NUL padded
	    meta              MetaSize bytes; ESP-IDF keeps the modification time in the first four

The rest of an index page are the page numbers of the data spans, FFFF where unused.
*/
const (
	lookupEntrySize = 2
	pageHeaderSize  = 5
	indexStart      = 8  // of what follows an index page's header and padding
	nameStart       = 13 // of the name in an index header
	magicTailSize   = 4  // magic and erase count at the end of the lookup

	idFree    = 0xFFFF
	idDeleted = 0x0000
	idIndex   = 0x8000
	noPage    = 0xFFFF

	flagUsed         = 1 << 0
	flagFinal        = 1 << 1
	flagIndex        = 1 << 2
	flagIndexDeleted = 1 << 6 // an index header on its way out
	flagDeleted      = 1 << 7

	flagsData  = 0xFF &^ (flagUsed | flagFinal)
	flagsIndex = flagsData &^ flagIndex

	typeFile     = 1
	sizeUnset    = 0xFFFFFFFF
	maxPages     = 1 << 16 // page numbers have 16 bits
	magicPattern = 0x20140529
)

// Config is how an image is laid out. Firmware that was built with other settings does not mount it.
type Config struct {
	Size        int64 // of the whole image in bytes, a multiple of BlockSize; at most 65536 pages
	PageSize    int   // CONFIG_SPIFFS_PAGE_SIZE, bytes
	BlockSize   int   // the flash sector, bytes
	NameSize    int   // CONFIG_SPIFFS_OBJ_NAME_LEN: room for a name and its NUL, bytes
	MetaSize    int   // CONFIG_SPIFFS_META_LENGTH, bytes
	Magic       bool  // CONFIG_SPIFFS_USE_MAGIC
	MagicLength bool  // CONFIG_SPIFFS_USE_MAGIC_LENGTH: the magic depends on the image's size
}

// DefaultConfig gives ESP-IDF's default settings for an image of size bytes.
func DefaultConfig(size int64) Config {
	return Config{Size: size, PageSize: 256, BlockSize: 4096, NameSize: 32, MetaSize: 4, Magic: true, MagicLength: true}
}

// ErrFull is wrapped by the error for files that do not fit in an image.
var ErrFull = errors.New("the files do not fit")

// FormatError says which bytes of an image are wrong.
type FormatError struct {
	Offset int64  // of the faulty bytes, from the start of the image
	Field  string // what lies there: "magic", "size", "page number", ...
	Reason string
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("spiffs: %s at 0x%x: %s", e.Field, e.Offset, e.Reason)
}

// geometry is a checked Config and what follows from it.
type geometry struct {
	Config
	blocks        int
	pagesPerBlock int
	lookupPages   int // at the start of each block
	usable        int // pages of a block behind its lookup
	dataSize      int // content bytes of a data page
	tableStart    int // of the page numbers in an index header
	headEntries   int // page numbers in an index header
	nextEntries   int // page numbers in any further index page
}

func (c Config) geometry() (geometry, error) {
	bad := func(format string, args ...any) (geometry, error) {
		return geometry{}, fmt.Errorf("spiffs: "+format, args...)
	}
	g := geometry{Config: c}
	if c.PageSize < 64 || c.PageSize > 1<<15 || c.PageSize&(c.PageSize-1) != 0 {
		return bad("page size %d is not a power of two from 64 to 32768", c.PageSize)
	}
	if c.BlockSize < 2*c.PageSize || c.BlockSize > 1<<20 || c.BlockSize%c.PageSize != 0 {
		return bad("block size %d is not a multiple of the page size %d, of at least two pages and at most 1 MiB", c.BlockSize, c.PageSize)
	}
	if c.NameSize < 2 || c.MetaSize < 0 || c.NameSize > c.PageSize || c.MetaSize > c.PageSize {
		return bad("name size %d and meta size %d are not possible in a page of %d bytes", c.NameSize, c.MetaSize, c.PageSize)
	}
	if c.Size <= 0 || c.Size%int64(c.BlockSize) != 0 {
		return bad("image size %d is not a multiple of the block size %d", c.Size, c.BlockSize)
	}
	if most := int64(maxPages) * int64(c.PageSize); c.Size > most {
		return bad("image size %d is more than the %d bytes that 16-bit page numbers reach", c.Size, most)
	}
	g.blocks = int(c.Size / int64(c.BlockSize))
	g.pagesPerBlock = c.BlockSize / c.PageSize
	g.lookupPages = (g.pagesPerBlock*lookupEntrySize + c.PageSize - 1) / c.PageSize
	g.usable = g.pagesPerBlock - g.lookupPages
	g.dataSize = c.PageSize - pageHeaderSize
	g.tableStart = nameStart + c.NameSize + c.MetaSize
	g.headEntries = (c.PageSize - g.tableStart) / lookupEntrySize
	g.nextEntries = (c.PageSize - indexStart) / lookupEntrySize
	if g.usable < 1 || g.tableStart+lookupEntrySize > c.PageSize {
		return bad("page size %d leaves no room for files", c.PageSize)
	}
	if c.Magic && g.usable*lookupEntrySize+magicTailSize > g.lookupPages*c.PageSize {
		return bad("a lookup of %d pages has no room for the magic", g.lookupPages)
	}
	return g, nil
}

// magic is SPIFFS_MAGIC of a block.
func (g *geometry) magic(block int) uint16 {
	m := magicPattern ^ g.PageSize
	if g.MagicLength {
		m ^= g.blocks - block
	}
	return uint16(m)
}

// magicOffset is where a block's magic lies in the image.
func (g *geometry) magicOffset(block int) int {
	return block*g.BlockSize + g.lookupPages*g.PageSize - magicTailSize
}

// lookupOffset is where the lookup entry of a page lies in the image; the page must be no lookup page itself.
func (g *geometry) lookupOffset(page int) int {
	return page/g.pagesPerBlock*g.BlockSize + (page%g.pagesPerBlock-g.lookupPages)*lookupEntrySize
}

// table is where an index page's page numbers start within the page, and how many there are.
func (g *geometry) table(span int) (start, entries int) {
	if span == 0 {
		return g.tableStart, g.headEntries
	}
	return indexStart, g.nextEntries
}

// dataSpans is how many data pages a file of size bytes has.
func (g *geometry) dataSpans(size int64) int64 {
	return (size + int64(g.dataSize) - 1) / int64(g.dataSize)
}

// SafeName turns a name from an image into a relative, slash-separated path that stays within the folder it is joined to
// on every system: one leading slash is dropped. It refuses what is left when that is empty, absolute, not UTF-8, has
// an empty, "." or ".." element, a backslash, a drive letter, or a control character such as NUL.
func SafeName(name string) (string, error) {
	rel := strings.TrimPrefix(name, "/")
	reason := ""
	switch {
	case rel == "" || rel == "." || !fs.ValidPath(rel):
		reason = "it is empty, absolute, not UTF-8, or has an element that is empty, . or .."
	case strings.ContainsFunc(rel, func(r rune) bool { return r < 0x20 || r == 0x7F }):
		reason = "it has a control character"
	case strings.Contains(rel, `\`):
		reason = "it has a backslash"
	case len(rel) > 1 && rel[1] == ':':
		reason = "it starts like a drive letter"
	default:
		return rel, nil
	}
	return "", fmt.Errorf("spiffs: name %q is not safe as a path: %s", name, reason)
}
