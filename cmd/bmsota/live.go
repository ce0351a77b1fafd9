package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/term"
)

// screen redraws a block of lines in place on a terminal. Where the output is no terminal it is not live, and callers
// print what changed, line by line.
type screen struct {
	w      io.Writer
	live   bool
	width  int
	height int
	drawn  int // lines of the last block
	last   time.Time
}

// redraw is the shortest time between two blocks: faster is flicker.
const redraw = 50 * time.Millisecond

func newScreen(w io.Writer) *screen {
	s := &screen{w: w, width: 80, height: 24}
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) || os.Getenv("TERM") == "dumb" {
		return s
	}
	s.live = true
	if width, height, err := term.GetSize(int(f.Fd())); err == nil && width > 20 && height > 4 {
		s.width, s.height = width, height
	}
	return s
}

// draw replaces the block; it may skip one that comes too soon after another.
func (s *screen) draw(lines []string) {
	if !s.live || time.Since(s.last) < redraw {
		return
	}
	s.last = time.Now()
	s.put(lines)
}

// finish draws the last block and leaves it standing.
func (s *screen) finish(lines []string) {
	if s.live {
		s.put(lines)
		s.drawn = 0
	}
}

// clear takes the block away.
func (s *screen) clear() {
	if s.live {
		s.put(nil)
	}
}

func (s *screen) put(lines []string) {
	if room := s.height - 2; len(lines) > room {
		more := len(lines) - room + 1
		lines = append(append([]string(nil), lines[:room-1]...), fmt.Sprintf("… and %d more", more))
	}
	var b strings.Builder
	if s.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", s.drawn)
	}
	b.WriteString("\x1b[J")
	for _, line := range lines {
		b.WriteString(cut(line, s.width-1))
		b.WriteByte('\n')
	}
	s.drawn = len(lines)
	// A terminal that went away is noticed by whatever reads the keyboard or signals, not here.
	_, _ = io.WriteString(s.w, b.String())
}

// cut shortens a line to width characters, so that it never wraps.
func cut(line string, width int) string {
	if utf8.RuneCountInString(line) <= width {
		return line
	}
	return string([]rune(line)[:width-1]) + "…"
}

const barWidth = 20

// bar draws done of total as a bar.
func bar(done, total int64) string {
	filled := 0
	if total > 0 {
		filled = int(barWidth * min(done, total) / total)
	}
	return "[" + strings.Repeat("█", filled) + strings.Repeat("░", barWidth-filled) + "]"
}

// sizes says done of total in KiB.
func sizes(done, total int64) string { return fmt.Sprintf("%d/%d KiB", done>>10, (total+1023)>>10) }
