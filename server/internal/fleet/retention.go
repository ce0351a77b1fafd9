package fleet

import (
	"context"
	"fmt"
	"time"

	"bmsota/audit"
)

// EndedAttempt is an attempt that has ended, as the pruner sees it.
//
// It is Needed, and kept however old it is, while
//   - it is the newest of its device: a start takes back what that one may have left retained, and a device's page is never
//     empty for want of recent updates;
//   - its rollout has not ended, or its member there is still open: the planner counts by attempts;
//   - its image is in quarantine: it is the evidence.
//
// Attempts that rolled back are not among them at all: by these a device is known that has undone a release.
type EndedAttempt struct {
	ID      string
	EndedAt time.Time
	Needed  bool
}

const (
	// pruneBatch bounds what one transaction looks at, and so what it removes.
	pruneBatch = 1000
	// pruneBatches is how many of them one pass of the loop takes, at most: statuses and rollouts go first.
	pruneBatches = 10
	// pruneEvery is what the limits are rounded to, so that a log that is not used says at most once a day that it is pruned.
	pruneEvery = 24 * time.Hour
)

// pruner forgets what is older than Config says, a batch at a time: each is a transaction of its own, with its row in the
// audit log, so a server that ends between two of them has done the one and not begun the other. It remembers nothing
// beyond the process: a start begins anew, and finds less.
type pruner struct {
	fleet *Fleet

	attempts, log time.Time    // limits up to which all is done
	mark          EndedAttempt // as far as the attempts were looked at, for the limit of marked
	marked        time.Time
}

// step does a part of what there is to do; nothing, most of the time.
func (p *pruner) step(ctx context.Context) error {
	cfg, now := p.fleet.cfg, p.fleet.cfg.Now()
	limit := func(keep time.Duration) time.Time { return now.Add(-keep).Truncate(pruneEvery) }
	for range pruneBatches {
		switch {
		case cfg.KeepAttempts > 0 && !limit(cfg.KeepAttempts).Equal(p.attempts):
			if err := p.pruneAttempts(ctx, limit(cfg.KeepAttempts)); err != nil {
				return err
			}
		case cfg.KeepAudit > 0 && !limit(cfg.KeepAudit).Equal(p.log):
			if err := p.pruneLog(ctx, limit(cfg.KeepAudit)); err != nil {
				return err
			}
		default:
			return nil
		}
	}
	return nil
}

// pruneAttempts looks at the attempts behind the mark. Most that are old are the newest of their device, so a batch may
// well remove nothing, and then is no transaction that writes.
func (p *pruner) pruneAttempts(ctx context.Context, before time.Time) error {
	if !p.marked.Equal(before) {
		p.mark, p.marked = EndedAttempt{}, before
	}
	var batch []EndedAttempt
	var old []string
	look := func(tx Tx) (err error) {
		old = nil
		if batch, err = tx.EndedAttempts(p.mark, before, pruneBatch); err != nil {
			return err
		}
		for _, a := range batch {
			if !a.Needed {
				old = append(old, a.ID)
			}
		}
		return nil
	}
	err := p.fleet.cfg.Store.View(ctx, look)
	if err == nil && len(old) > 0 {
		err = p.fleet.update(ctx, theServer, func(tx Tx) error {
			if err := look(tx); err != nil || len(old) == 0 { // as they stand now
				return err
			}
			return tx.DeleteAttempts(old)
		})
	}
	if err != nil {
		return err
	}
	if len(batch) < pruneBatch {
		p.attempts = before
		return nil
	}
	p.mark = batch[len(batch)-1]
	return nil
}

// pruneLog removes rows from the beginning of the audit log, as many as are old before the first that is not: the clock may
// have been set back, and what is left has to hang together. The row that says so names the last of them with its hash, and
// is part of the chain that is left.
func (p *pruner) pruneLog(ctx context.Context, before time.Time) error {
	oldest := func(tx Tx) (through audit.Entry, rows int, err error) {
		page, err := tx.AuditPage(AuditQuery{Limit: pruneBatch})
		for _, e := range page {
			if !e.At.Before(before) {
				break
			}
			through, rows = e, rows+1
		}
		return through, rows, err
	}
	rows := 0
	err := p.fleet.cfg.Store.View(ctx, func(tx Tx) (err error) {
		_, rows, err = oldest(tx)
		return err
	})
	if err == nil && rows > 0 {
		err = p.fleet.update(ctx, theServer, func(tx Tx) error {
			through, n, err := oldest(tx)
			if err != nil {
				return err
			}
			if rows = n; n == 0 { // another server was faster
				return nil
			}
			return tx.PruneAudit(through.Head())
		})
	}
	if err != nil {
		return err
	}
	if rows < pruneBatch {
		p.log = before
	}
	return nil
}

func (t *audited) DeleteAttempts(ids []string) error {
	t.add(audit.Entry{What: audit.AttemptPrune, Details: audit.Of("attempts", fmt.Sprint(len(ids)))})
	return t.Tx.DeleteAttempts(ids)
}

// PruneAudit is done when the row that says so is in the log: the stores would refuse it before.
func (t *audited) PruneAudit(through audit.Head) error {
	t.add(audit.Entry{What: audit.LogPrune, About: through.String()})
	t.book.pruned = through
	return nil
}
