package audit

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// Broken is the first row at which a log is not what was written.
type Broken struct {
	Seq  int64  // of the row that is altered, missing or out of its place
	Line int64  // of the export, from 1; 0 for a row that is not there
	Why  string // a sentence about the row
}

func (b *Broken) Error() string {
	if b.Line == 0 {
		return fmt.Sprintf("row %d: %s", b.Seq, b.Why)
	}
	return fmt.Sprintf("row %d (line %d): %s", b.Seq, b.Line, b.Why)
}

// Chain checks a log from its first row on. The zero value has seen nothing. It is not for concurrent use.
//
// A log whose first rows were pruned begins with another row than 1. It is whole when one of its rows (LogPrune) names the
// row before its first, with that row's hash, which the first row holds as well: whoever cuts the beginning off has to say so in
// the log, and what is left hangs together as before.
type Chain struct {
	// Expect are heads that were written down: the log must have these rows with these hashes.
	Expect []Head

	Rows        int64
	First, Last time.Time // of the rows
	Pruned      Head      // the row before the first, where that is not row 1
	accounted   bool      // a row says that Pruned and what was before it is gone
	last        Entry
}

// Head is that of the last row that was seen; Genesis before the first.
func (c *Chain) Head() Head {
	if c.Rows == 0 {
		return Genesis
	}
	return c.last.Head()
}

// Next takes the next line, without its line feed. The error is *Broken, and the chain is of no use after it.
func (c *Chain) Next(line []byte) error {
	number, prev := c.Rows+1, c.Head()
	want := prev.Seq + 1
	broken := func(seq int64, format string, args ...any) error {
		return &Broken{Seq: seq, Line: number, Why: fmt.Sprintf(format, args...)}
	}
	var e Entry
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if len(line) > MaxLine {
		return broken(want, "is longer than %d bytes", MaxLine)
	}
	if err := dec.Decode(&e); err != nil {
		return broken(want, "is no row: %v", err)
	}
	if c.Rows == 0 && e.Seq > 1 {
		want, prev = e.Seq, Head{e.Seq - 1, e.Prev}
	}
	switch {
	case e.Seq > want:
		return broken(want, "is missing: row %d stands in its place", e.Seq)
	case e.Seq < want:
		return broken(want, "is not here: row %d stands in its place, a second time or out of order", e.Seq)
	case !bytes.Equal(e.Line(), line):
		// One row has one spelling, so that nothing hides in another: a member named twice, an escaped letter.
		return broken(want, "is not spelled as bmsota writes it: it was altered")
	case e.Hash != e.Sum():
		return broken(want, "was altered: its hash is not that of what it says")
	case e.Prev != prev.Hash && want == 1:
		return broken(want, "names a row before it: the log begins elsewhere")
	case e.Prev != prev.Hash:
		return broken(want, "does not follow row %d: one of the two was put in another's place", want-1)
	}
	for _, h := range c.Expect {
		if h.Seq == e.Seq && h.Hash != e.Hash || want > 1 && c.Rows == 0 && h.Seq == prev.Seq && h.Hash != prev.Hash {
			return broken(h.Seq, "has another hash than was written down: this row, or one before it, was replaced")
		}
	}
	if c.Rows == 0 {
		c.First = e.At
		if want > 1 {
			c.Pruned = prev
		}
	}
	c.accounted = c.accounted || e.What == LogPrune && e.About == c.Pruned.String()
	c.Rows, c.Last, c.last = number, e.At, e
	return nil
}

// End says whether the log goes as far as the heads that were written down, and back to row 1 or to where it was pruned.
func (c *Chain) End() error {
	if c.Pruned.Seq > 0 && !c.accounted {
		return &Broken{Seq: 1, Why: fmt.Sprintf("is missing: the log begins with row %d, and no row of it says that those before were pruned", c.Pruned.Seq+1)}
	}
	last := c.Head().Seq
	for _, h := range c.Expect {
		if h.Seq < c.Pruned.Seq {
			return &Broken{Seq: h.Seq, Why: fmt.Sprintf("was written down and is pruned since: the log begins with row %d; hold it against a later head, and that one against an export of then", c.Pruned.Seq+1)}
		}
		if h.Seq > last {
			return &Broken{Seq: last + 1, Why: fmt.Sprintf("is missing: the log ends before it, and row %d was written down: its tail was cut off", h.Seq)}
		}
	}
	return nil
}

// Verify checks an export, one row a line.
func (c *Chain) Verify(r io.Reader) error {
	lines := bufio.NewReaderSize(r, MaxLine+2)
	for {
		line, err := lines.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF) && len(line) == 0:
			return c.End()
		case errors.Is(err, io.EOF):
			return &Broken{Seq: c.Head().Seq + 1, Line: c.Rows + 1, Why: "is cut off in the middle: the export is not whole"}
		case errors.Is(err, bufio.ErrBufferFull):
			return &Broken{Seq: c.Head().Seq + 1, Line: c.Rows + 1, Why: fmt.Sprintf("is longer than %d bytes", MaxLine)}
		case err != nil:
			return fmt.Errorf("read the log: %w", err)
		}
		if err := c.Next(line[:len(line)-1]); err != nil {
			return err
		}
	}
}
