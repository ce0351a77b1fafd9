package agent

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"bmsota/device/internal/otaops"
	"bmsota/esp/appimage"
	"bmsota/esp/parttable"
	"bmsota/manifest"
	"bmsota/protocol"
)

const (
	chunk         = 4 << 10 // read from the network and written at once, bytes: one flash sector
	maxMismatches = 3       // bytes that are wrong this often are wrong on the server
)

// download brings an image into a slot, in as many tries as it takes until the deadline.
//
// With block digests a try goes on where flash stops being right, whoever wrote it there: an earlier try or an earlier
// life of the board. Within a block it goes on at the sector where the try before it in this life was cut off; the digest
// of the block then judges what both have brought. Without digests nothing in flash can be trusted, and each try starts over.
type download struct {
	a    *agent
	o    offer
	slot parttable.Partition
	size int64 // -1 while unknown

	begun      bool
	good       int64  // bytes from the start that are in flash and right; a multiple of a block, or size
	reached    int64  // bytes from the start that are in flash and not yet known to be wrong; whole sectors. 0: none beyond good
	fromZero   bool   // this server cannot be asked for a part
	partial    bool   // the answer being read is one
	etag       string // what the server calls the file that flash has the beginning of
	retries    int
	mismatches int
}

func newDownload(a *agent, o offer, slot parttable.Partition) *download {
	// Our server calls a file by its digest. What another calls it is known from its first answer on.
	d := &download{a: a, o: o, slot: slot, size: o.Size, etag: `"` + o.SHA256 + `"`}
	if d.size == 0 {
		d.size = -1
	}
	return d
}

func (d *download) run(ctx context.Context) *fault {
	release := d.a.heap.use(heapDownload)
	defer release()
	defer d.a.rep.pulse()()
	if err := d.scan(); err != nil {
		return flashFault(err)
	}
	pause := pauses{rand: d.a.rand, first: time.Second, limit: d.a.env.longest(time.Minute)}
	for {
		before := d.next()
		fl := d.try(ctx)
		if fl == nil {
			return nil
		}
		if !fl.retry || gone(fl.err) {
			return fl
		}
		if d.next() > before {
			pause.reset() // it gets on: a flaky line is no reason to wait ever longer
		}
		d.retries++
		d.a.log.Info("download interrupted", "reason", fl.reason, "bytes", d.next(), "err", fl.err)
		if !sleep(ctx, max(pause.next(), fl.after)) {
			if errors.Is(context.Cause(ctx), errDeadline) {
				return failed(protocol.ReasonDeadline, "%w, at last: %w", errDeadline, fl.err)
			}
			return fl
		}
	}
}

// scan finds out how much of the image is in the slot already, block by block.
func (d *download) scan() error {
	if d.o.manifest == nil || d.size > int64(d.slot.Size) {
		return nil
	}
	r := d.a.section(d.slot)
	for d.good < d.size {
		want, ok := d.o.manifest.Block(int(d.good / manifest.BlockSize))
		if !ok {
			return nil
		}
		n := min(manifest.BlockSize, d.size-d.good)
		sum, err := hashOf(io.NewSectionReader(r, d.good, n))
		if err != nil {
			return err
		}
		if sum != want && !d.a.without(MutantBlindBlocks) {
			return nil
		}
		d.good += n
	}
	return nil
}

// next is the first byte to ask for.
func (d *download) next() int64 {
	if d.fromZero {
		return 0
	}
	return max(d.good, d.reached)
}

// try is one request, from the first missing byte to the end or to what goes wrong.
func (d *download) try(ctx context.Context) *fault {
	if d.good == d.size {
		return nil
	}
	header := http.Header{}
	start := d.next()
	if start > 0 {
		// If-Range makes a server that has other bytes by now send all of them instead of the rest (RFC 9110 §13.1.5).
		header.Set("Range", "bytes="+strconv.FormatInt(start, 10)+"-")
		header.Set("If-Range", d.etag)
	}
	resp, fl := d.a.web.get(ctx, http.MethodGet, d.o.url.String(), header)
	if fl != nil {
		return fl
	}
	defer resp.stop()
	switch {
	case resp.StatusCode == http.StatusOK:
		start, d.good, d.reached = 0, 0, 0 // the whole file, asked for or not
	case resp.StatusCode == http.StatusPartialContent && start > 0:
		want := fmt.Sprintf("bytes %d-%d/%d", start, d.size-1, d.size)
		if got := resp.Header.Get("Content-Range"); got != want {
			d.fromZero = true
			return again(protocol.ReasonSizeMismatch, "asked for %q, the server sends %q", want, printable(got))
		}
	case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable && start > 0:
		d.fromZero = true
		return again(protocol.ReasonHTTPStatus, "the server has no bytes from %d on", start)
	default:
		return statusFault(resp.Response)
	}
	d.fromZero, d.partial = false, start > 0
	// A weak tag must not be used for ranges (RFC 9110 §8.8.3.2), and a long one is not worth its memory.
	if tag := resp.Header.Get("ETag"); strings.HasPrefix(tag, `"`) && len(tag) <= 128 {
		d.etag = tag
	}
	if fl := d.length(resp.ContentLength, start); fl != nil {
		return fl
	}
	return d.receive(resp, start)
}

// length compares what the answer announces with what was promised.
func (d *download) length(announced, start int64) *fault {
	switch {
	case announced < 0:
		return nil
	case d.size < 0 && announced > int64(d.slot.Size):
		return failed(protocol.ReasonTooBig, "%d bytes, the slot has %d", announced, d.slot.Size)
	case d.size >= 0 && start+announced != d.size:
		return d.wrong(protocol.ReasonSizeMismatch, "the server sends %d bytes, %d are missing", announced, d.size-start)
	}
	return nil
}

// wrong counts bytes that are not the promised ones. Once may be a file that is being replaced; the third time it is
// what the server has.
func (d *download) wrong(reason protocol.Reason, format string, args ...any) *fault {
	d.mismatches++
	d.reached = 0
	// A cache that puts together a part of one file and a part of another has the whole of each.
	d.fromZero = d.fromZero || d.partial
	fl := again(reason, format, args...)
	fl.retry = d.mismatches < maxMismatches || d.a.without(MutantCountNothing)
	return fl
}

// open opens the slot for writing from start on. The record of what was in it goes first, once is enough, so that no
// record ever vouches for bytes that are being replaced. esp_ota_begin erases it where it is not the active one; it is
// the active one on a board that fell back to its factory application, and would boot the next image without a trial.
func (d *download) open(start int64) (*otaops.Update, error) {
	if !d.begun {
		u, err := d.a.ops.Begin(d.slot, otaops.SequentialWrites)
		if err != nil {
			return nil, err
		}
		if err := u.Abort(); err != nil {
			return nil, err
		}
		if err := d.a.ops.Disown(d.slot); err != nil {
			return nil, err
		}
		d.begun = true
	}
	return d.a.ops.Resume(d.slot, true, start)
}

// receive writes the body from start on. No byte beyond the promised ones is written, and of an unknown size none
// beyond the slot.
func (d *download) receive(resp *response, start int64) *fault {
	var u *otaops.Update
	end := d.size
	if end < 0 {
		end = int64(d.slot.Size)
	}
	block := sha256.New()
	var buf [chunk]byte
	if start > d.good {
		// The beginning of a block, from the try before: read again, so that what is judged is what flash holds.
		if _, err := io.CopyBuffer(block, onlyReader{io.NewSectionReader(d.a.section(d.slot), d.good, start-d.good)}, buf[:]); err != nil {
			return flashFault(fmt.Errorf("read slot: %w", err))
		}
	}
	for at := start; at < end; {
		n, err := io.ReadFull(resp.body, buf[:min(chunk, end-at)])
		ended := err == io.EOF || err == io.ErrUnexpectedEOF
		if err != nil && !ended {
			return transient(resp.ctx, "download", err)
		}
		if n > 0 {
			if at == 0 {
				if fl := d.first(buf[:n]); fl != nil {
					return fl
				}
			}
			if u == nil {
				if u, err = d.open(start); err != nil {
					return flashFault(err)
				}
			}
			if _, err := u.Write(buf[:n]); err != nil {
				return d.writeFault(err)
			}
			at += int64(n)
			if fl := d.checkBlock(block, buf[:n], at); fl != nil {
				return fl
			}
			if d.o.manifest != nil && at%chunk == 0 && !d.a.without(MutantWholeBlocks) {
				d.reached = at
			}
			d.a.rep.progress(at, max(d.size, resp.ContentLength), d.retries)
		}
		if ended {
			// A length that only the answer announces is no promise; reached, it is the end.
			if d.size >= 0 || resp.ContentLength >= 0 && at != resp.ContentLength {
				return again(protocol.ReasonUnreachable, "the server stopped at %d of %d bytes", at, max(d.size, resp.ContentLength))
			}
			end = at
		}
		if d.size < 0 && resp.ContentLength >= 0 && at == resp.ContentLength {
			end = at
		}
	}
	// Bytes behind the promised ones are not read at all where a digest says that the promised ones are right.
	if resp.ContentLength < 0 && d.size >= 0 && d.o.SHA256 == "" {
		if n, _ := io.ReadFull(resp.body, buf[:1]); n > 0 {
			return d.wrong(protocol.ReasonSizeMismatch, "the server sends more than %d bytes", end)
		}
	}
	d.size, d.good = end, end
	return nil
}

// checkBlock adds p to the block's digest and judges it when the block is complete at at.
func (d *download) checkBlock(block hash.Hash, p []byte, at int64) *fault {
	if d.o.manifest == nil {
		return nil
	}
	block.Write(p)
	if at%manifest.BlockSize != 0 && at != d.size {
		return nil
	}
	i := int((at - 1) / manifest.BlockSize)
	want, ok := d.o.manifest.Block(i)
	if sum := [32]byte(block.Sum(nil)); ok && sum != want {
		return d.wrong(protocol.ReasonDigestMismatch, "block %d is not the promised one", i)
	}
	block.Reset()
	d.good = at
	return nil
}

// first looks at the start of the image before anything is erased for it.
func (d *download) first(p []byte) *fault {
	if d.a.without(MutantAnyProduct) {
		return nil
	}
	h, err := appimage.ParseHeader(p)
	if err != nil {
		return d.wrong(protocol.ReasonImageInvalid, "%w", err)
	}
	if h.Chip != d.a.env.Ops.Chip {
		return failed(protocol.ReasonWrongChip, "image is for %s, this device is an %s", h.Chip, d.a.env.Ops.Chip)
	}
	if len(p) < appimage.DescOffset {
		return nil
	}
	desc, err := appimage.ParseDesc(p[appimage.DescOffset:])
	if err != nil {
		return nil // no description: nothing to compare
	}
	switch {
	case d.a.self.project != "" && desc.Project != "" && printable(desc.Project) != d.a.self.project:
		return failed(protocol.ReasonWrongProject, "image is of %q, this device runs %q", printable(desc.Project), d.a.self.project)
	case desc.SecureVersion < d.a.self.floor:
		return failed(protocol.ReasonSecurityFloor, "image has secure version %d, the floor is %d", desc.SecureVersion, d.a.self.floor)
	}
	return nil
}

func (d *download) writeFault(err error) *fault {
	if errors.Is(err, otaops.ValidateFailed) {
		return failed(protocol.ReasonImageInvalid, "%w", err)
	}
	return flashFault(err)
}
