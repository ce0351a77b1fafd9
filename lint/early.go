package lint

import (
	"fmt"
	"slices"
)

// markValid is what ends the trial of a new image.
const markValid = "esp_ota_mark_app_valid_cancel_rollback"

// call is a call that comes right after a delay, or among the first statements of app_main.
type call struct {
	place
	name string
	why  string
}

// delays are calls that let time pass and prove nothing.
var delays = []string{"vTaskDelay", "vTaskDelayUntil", "xTaskDelayUntil", "usleep", "sleep", "sleep_for", "delay", "esp_rom_delay_us", "ets_delay_us"}

const (
	// near is how many statements back a delay still counts as right before.
	near = 3
	// reach is how many words a function's parameters have at most.
	reach = 512
	// start is how many statements are the start of app_main.
	start = 5
)

// block is a pair of braces that is open.
type block struct {
	function string // whose body it is part of; empty outside of functions
	body     bool   // it is the whole body
	count    int    // of statements that ended in it
	delayed  int    // the count at which a delay ended; 0 is none
}

// functions walks through the bodies of a source's functions, statement by statement.
func (v *sourceView) functions(f *file, w []word) {
	stack := []block{{}}
	var delay, loop, condition bool // in the statement that is open
	parens := 0
	endStatement := func() {
		b := &stack[len(stack)-1]
		if b.count++; delay && !loop {
			b.delayed = b.count
		}
		delay, loop, condition = false, false, false
	}
	for i := range w {
		b := &stack[len(stack)-1]
		switch {
		case w[i].is("("):
			parens++
		case w[i].is(")"):
			parens = max(0, parens-1)
		case w[i].is("{"):
			inner := block{function: b.function}
			if b.function == "" {
				inner.function = functionOf(w[:i])
				inner.body = inner.function != ""
			}
			stack = append(stack, inner)
			delay, loop, condition, parens = false, false, false, 0
		case w[i].is("}"):
			if len(stack) > 1 {
				stack = stack[:len(stack)-1]
			}
			parens = 0
			endStatement()
		case w[i].is(";") && parens == 0:
			endStatement()
		case w[i].kind == name && b.function != "":
			condition = condition || w[i].is("if")
			loop = loop || w[i].is("while") || w[i].is("for") || w[i].is("do")
			if i+1 < len(w) && w[i+1].is("(") {
				delay = delay || slices.Contains(delays, w[i].text)
				v.called(f, w[i], *b, condition && parens == 0)
			}
		}
	}
}

// called notes a call that may matter once it is known what the function does. What hangs on a condition is left alone.
func (v *sourceView) called(f *file, w word, b block, conditional bool) {
	if w.text == markValid && b.function != "app_main" {
		v.marking[b.function] = true
	}
	switch {
	case conditional:
	case b.delayed > 0 && b.count-b.delayed < near:
		v.early = append(v.early, call{place{f, w.line}, w.text, "right after a delay"})
	case b.function == "app_main" && b.body && b.count < start:
		v.early = append(v.early, call{place{f, w.line}, w.text, "at the start of app_main"})
	}
}

// functionOf gives the name of the function whose body starts behind the words; empty where it is another pair of braces.
func functionOf(before []word) string {
	i := len(before) - 1
	for i >= 0 && (before[i].is("const") || before[i].is("noexcept") || before[i].is("override")) {
		i--
	}
	if i < 0 || !before[i].is(")") {
		return ""
	}
	for depth, last := 0, max(0, i-reach); i >= last; i-- {
		switch {
		case before[i].is(")"):
			depth++
		case before[i].is("("):
			if depth--; depth == 0 {
				if i > 0 && before[i-1].kind == name {
					return before[i-1].text
				}
				return ""
			}
		}
	}
	return ""
}

// checkEarly tells of trials that end before anything was tried: by the call itself, or by a function that makes it.
func (p *project) checkEarly(v *sourceView) {
	told := 0
	for _, c := range v.early {
		if !v.marking[c.name] || told == maxPlaces {
			continue
		}
		told++
		found := c.file.quote(c.line) + ", " + c.why
		if c.name != markValid {
			found += fmt.Sprintf(" (%s calls %s)", c.name, markValid)
		}
		p.add(Finding{"early-valid", Warning, c.file.path, c.line, found, "if (broker_acknowledged && battery_read && heap_is_enough) " + markValid + "();",
			"A guess: it looks as if the image is declared good before broker and battery have answered. A release that cannot reach its broker then stays for good, rollback or not."})
	}
}
