// Package bench measures the product beside the programs people would use in its place, on this machine and in one run: its
// own binary's serve as a child process with a fresh data folder, the peer (nginx, Mosquitto) from PATH with a configuration
// of its own, both on loopback, one load for both.
//
// It promises figures that a busy machine bends little: what is compared is the processor time that the kernel charges a
// server for one piece of work, taken in rounds that alternate (ours, peer, ours, peer, …); a figure is the median of the
// ratios of the rounds. What depends on the clock on the wall says so.
//
// It refuses to guess: without the peer a figure stands alone and says that nobody is beside it. Everything it starts is
// bounded in number and in time, listens on loopback only, and ends with it. It needs /proc.
package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Options are what can be chosen.
type Options struct {
	Binary   string        // bmsota's own program, whose serve is measured
	Other    string        // another build of it, which takes the place of nginx; empty = nginx
	Bare     bool          // Go's own parts alone take the place of ours beside nginx
	Rounds   int           // of each figure; each is one turn of ours and one of the peer
	Duration time.Duration // of one turn
	Clients  int           // at once, where a figure has clients
	Only     string        // figures whose name has this in it; empty = all
	Count    int           // sessions or boards, where a figure holds many at once; 0 = as many as it is meant for
	Say      func(format string, args ...any)

	// Database is where ingest has the rows of our server: the URL of a PostgreSQL database, or StartDatabase; empty = SQLite.
	Database string
	// SQLiteRows and PostgresRows make what store measures: files in a folder, and two empty databases by their URLs. The program
	// gives them.
	SQLiteRows   func(ctx context.Context, dir string) (Rows, error)
	PostgresRows func(ctx context.Context, ours, bare string) (Rows, error)
}

// StartDatabase asks for a PostgreSQL that is started for the run.
const StartDatabase = "start"

// Figure is one line of the result.
type Figure struct {
	Suite string  `json:"suite"`
	Name  string  `json:"name"`
	Unit  string  `json:"unit"` // of Ours and Theirs
	Ours  float64 `json:"ours"` // median of the rounds
	// Theirs is the peer's; 0 without one. Ratio is the median of what each round of ours was to the peer's beside it.
	Theirs float64 `json:"theirs,omitempty"`
	Ratio  float64 `json:"ratio,omitempty"`
	Peer   string  `json:"peer,omitempty"`
	// Goal bounds Ratio from above, or Ours where Own is set; from below with AtLeast. 0 = none.
	Goal    float64 `json:"goal,omitempty"`
	Own     bool    `json:"goal_of_ours,omitempty"`
	AtLeast bool    `json:"goal_at_least,omitempty"`
	Verdict Verdict `json:"verdict"`
	Rounds  int     `json:"rounds"`
	// Each is the ratio of every round, or what ours took where there is no peer.
	Each []float64 `json:"each"`
	Note string    `json:"note,omitempty"`
}

// Verdict says whether a figure met its goal.
type Verdict string

// The verdicts.
const (
	Met    Verdict = "met"
	Missed Verdict = "missed"
	Alone  Verdict = "no peer" // the goal is for the ratio, and the peer is not there
	NoGoal Verdict = "no goal"
)

// Report is a whole run.
type Report struct {
	Version    string   `json:"version,omitempty"` // of bmsota
	Processors int      `json:"processors"`
	LoadBefore string   `json:"load_before"`
	LoadAfter  string   `json:"load_after"`
	Peers      []Peer   `json:"peers"`
	Figures    []Figure `json:"figures"`
}

// Peer is a program that was measured beside ours, or was not there.
type Peer struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
	Missing bool   `json:"missing,omitempty"`
}

// Bench is a run under way: what suites are given.
type Bench struct {
	Options
	Dir    string // for everything the run writes; removed at its end
	report *Report
	suite  string
}

// suite is one sub-command.
type suite struct {
	name, about string
	run         func(ctx context.Context, b *Bench) error
}

// suites are all there are, in the order in which they run. A new one is a row here and a file.
var suites = []suite{
	{"https", "processor time of downloads, version.json and resumes over TLS, memory of stalled ones, beside nginx", https},
	{"mqtt", "memory of idle devices, logins over TLS and a message to all of them, beside Mosquitto", mqtt},
	{"ingest", "statuses of many devices at QoS 1 into the database, none lost, beside Mosquitto", ingest},
	{"store", "rows through the store into SQLite and PostgreSQL, beside the same rows through the bare driver", rows},
	{"validate", "full validation of an image, beside one SHA-256 pass over it", validate},
	{"rollout", "whole rollouts to virtual boards: time, processor time of the server, and who waits meanwhile", rollout},
}

// Names are the suites; About says what each measures.
func Names() []string {
	var names []string
	for _, s := range suites {
		names = append(names, s.name)
	}
	return names
}

// About says what a suite measures; empty for one that is not known.
func About(name string) string {
	for _, s := range suites {
		if s.name == name {
			return s.about
		}
	}
	return ""
}

// Run runs the suites of these names; none = all.
func Run(ctx context.Context, o Options, names ...string) (_ Report, err error) {
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		return Report{}, errors.New("processor time and memory are read from /proc, which this system does not have")
	}
	for _, name := range names {
		if About(name) == "" {
			return Report{}, fmt.Errorf("nothing to measure is called %q: one of %s", name, strings.Join(Names(), ", "))
		}
	}
	if o.Binary, err = filepath.Abs(o.Binary); err != nil {
		return Report{}, err
	}
	dir, err := os.MkdirTemp("", "bmsota-bench-")
	if err != nil {
		return Report{}, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	// nginx, started by root, reads its files under an account of its own.
	if err := os.Chmod(dir, 0o711); err != nil {
		return Report{}, err
	}
	report := Report{Processors: processors(), LoadBefore: load(), Peers: []Peer{}, Figures: []Figure{}}
	for _, s := range suites {
		if len(names) > 0 && !slices.Contains(names, s.name) {
			continue
		}
		b := &Bench{Options: o, Dir: filepath.Join(dir, s.name), report: &report, suite: s.name}
		if err := os.Mkdir(b.Dir, 0o711); err != nil {
			return Report{}, err
		}
		if err := s.run(ctx, b); err != nil {
			return Report{}, fmt.Errorf("%s: %w", s.name, err)
		}
	}
	report.LoadAfter = load()
	return report, nil
}

// Turn is one measurement of one side: what one piece of work cost.
type Turn func(ctx context.Context) (float64, error)

// Beside measures ours and theirs in rounds that alternate, and adds the figure f with what came out. theirs is nil where
// the peer is not there, or where there is none. One turn of each goes before the rounds and is not counted: caches fill.
func (b *Bench) Beside(ctx context.Context, f Figure, ours, theirs Turn) error {
	if !b.wants(f.Name) {
		return nil
	}
	var mine, other, ratios []float64
	for round := range b.Rounds + 1 {
		b.Say("%s: %s, round %d of %d", b.suite, f.Name, round, b.Rounds)
		m, err := ours(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
		var o float64
		if theirs != nil {
			if o, err = theirs(ctx); err != nil {
				return fmt.Errorf("%s: %s: %w", f.Name, f.Peer, err)
			}
		}
		if round == 0 {
			continue
		}
		mine = append(mine, m)
		if theirs != nil {
			if o <= 0 {
				return fmt.Errorf("%s: %s took nothing that can be measured: give --duration more", f.Name, f.Peer)
			}
			other, ratios = append(other, o), append(ratios, m/o)
		}
	}
	f.Ours, f.Rounds, f.Each = median(mine), b.Rounds, mine
	if theirs != nil {
		f.Theirs, f.Ratio, f.Each = median(other), median(ratios), ratios
	} else if f.Peer != "" {
		f.Note = strings.TrimSpace(f.Peer + " is not on this machine: a figure without a peer. " + f.Note)
		f.Peer = ""
	}
	b.Add(f)
	return nil
}

// noted adds a note to the last figure.
func (b *Bench) noted(text string) {
	last := &b.report.Figures[len(b.report.Figures)-1]
	last.Note = strings.TrimSpace(last.Note + " " + text)
}

// Add adds a figure and judges it.
func (b *Bench) Add(f Figure) {
	f.Suite = b.suite
	judged := f.Ratio
	if f.Own {
		judged = f.Ours
	}
	switch {
	case f.Goal == 0:
		f.Verdict = NoGoal
	case judged == 0 && !f.Own:
		f.Verdict = Alone
	case judged == f.Goal, (judged > f.Goal) == f.AtLeast:
		f.Verdict = Met
	default:
		f.Verdict = Missed
	}
	if f.Each == nil {
		f.Each = []float64{f.Ours}
	}
	b.report.Figures = append(b.report.Figures, f)
}

// named adds a peer to the report, once.
func (b *Bench) named(p Peer) {
	if !slices.ContainsFunc(b.report.Peers, func(q Peer) bool { return q.Name == p.Name }) {
		b.report.Peers = append(b.report.Peers, p)
	}
}

// wants says whether a figure was asked for.
func (b *Bench) wants(name string) bool { return strings.Contains(name, b.Only) }

// count is what a figure is meant for, or what was asked for.
func (b *Bench) count(meant int) int { return cmp.Or(b.Count, meant) }

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	fields := strings.Fields(string(b))
	return strings.Join(fields[:min(3, len(fields))], " ")
}
