package spiffs

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// File is a file to put in an image.
type File struct {
	// Name is the whole path with a leading slash and without the mount point: /spiffs/ota_config.txt is "/ota_config.txt".
	Name string
	Data []byte
}

// Build makes an image of size bytes with ESP-IDF's default settings; see [Config.Build].
func Build(size int64, files []File) ([]byte, error) {
	return DefaultConfig(size).Build(files)
}

// Build makes an image of the files, in their order, as spiffsgen.py does: object ids from 1, pages handed out one after the
// other, erase counts unset. spiffsgen.py takes files in the order in which the operating system lists the folder, so
// that the order decides whether two images are the same bytes.
//
// It refuses names that firmware could not open or that [SafeName] refuses, a name twice, and, with numbers and wrapping
// [ErrFull], more than fits. spiffsgen.py lets names of exactly NameSize bytes through, and shifts the index of a file whose
// name is not ASCII; neither is copied.
func (c Config) Build(files []File) ([]byte, error) {
	g, err := c.geometry()
	if err != nil {
		return nil, err
	}
	if err := g.checkFiles(files); err != nil {
		return nil, err
	}
	w := &writer{geometry: g, image: make([]byte, g.Size)}
	for i := range w.image {
		w.image[i] = 0xFF
	}
	if g.Magic {
		for b := range g.blocks {
			binary.LittleEndian.PutUint16(w.image[g.magicOffset(b):], g.magic(b))
		}
	}
	for i, f := range files {
		w.add(uint16(i+1), f)
	}
	return w.image, nil
}

func (g *geometry) checkFiles(files []File) error {
	seen := make(map[string]bool, len(files))
	have := int64(g.blocks) * int64(g.usable)
	if g.blocks*g.pagesPerBlock == maxPages {
		have-- // the last page's number means "no page"
	}
	var need, total int64
	for _, f := range files {
		if !strings.HasPrefix(f.Name, "/") {
			return fmt.Errorf("spiffs: name %q does not start with a slash", f.Name)
		}
		if _, err := SafeName(f.Name); err != nil {
			return err
		}
		if len(f.Name) > g.NameSize-1 {
			return fmt.Errorf("spiffs: name %q has %d bytes, firmware can open at most %d", f.Name, len(f.Name), g.NameSize-1)
		}
		if seen[f.Name] {
			return fmt.Errorf("spiffs: name %q is there twice", f.Name)
		}
		seen[f.Name] = true
		spans := g.dataSpans(int64(len(f.Data)))
		need += 1 + spans
		if more := spans - int64(g.headEntries); more > 0 {
			need += (more + int64(g.nextEntries) - 1) / int64(g.nextEntries)
		}
		total += int64(len(f.Data))
	}
	if need > have {
		return fmt.Errorf("spiffs: %w: %d files of %d bytes need %d pages of %d bytes, an image of %d bytes has %d",
			ErrFull, len(files), total, need, g.PageSize, g.Size, have)
	}
	if most := idIndex - 2; len(files) > most {
		return fmt.Errorf("spiffs: %w: %d files, there are numbers for %d", ErrFull, len(files), most)
	}
	return nil
}

// writer fills an erased image. That everything fits was counted before.
type writer struct {
	geometry
	image []byte
	taken int // usable pages handed out
}

// page takes the next page, enters it in its block's lookup and writes its header.
func (w *writer) page(id, span uint16, flags byte) (number int, page []byte) {
	block, k := w.taken/w.usable, w.taken%w.usable
	w.taken++
	number = block*w.pagesPerBlock + w.lookupPages + k
	binary.LittleEndian.PutUint16(w.image[w.lookupOffset(number):], id)
	page = w.image[number*w.PageSize:][:w.PageSize]
	binary.LittleEndian.PutUint16(page, id)
	binary.LittleEndian.PutUint16(page[2:], span)
	page[4] = flags
	return number, page
}

// add writes the index header, then the data pages; a further index page comes right before the data page that does not
// fit in the one before.
func (w *writer) add(id uint16, f File) {
	_, index := w.page(id|idIndex, 0, flagsIndex)
	binary.LittleEndian.PutUint32(index[indexStart:], uint32(len(f.Data)))
	index[12] = typeFile
	clear(index[nameStart:w.tableStart])
	copy(index[nameStart:], f.Name)

	indexSpan := 0
	start, room := w.table(indexSpan)
	at := 0
	rest := f.Data
	for span := uint16(0); len(rest) > 0; span++ {
		if at == room {
			indexSpan++
			_, index = w.page(id|idIndex, uint16(indexSpan), flagsIndex)
			start, room = w.table(indexSpan)
			at = 0
		}
		number, page := w.page(id, span, flagsData)
		binary.LittleEndian.PutUint16(index[start+at*lookupEntrySize:], uint16(number))
		at++
		rest = rest[copy(page[pageHeaderSize:], rest):]
	}
}
