package server

import (
	"context"

	"bmsota/server/internal/store/beside"
)

// Beside is work on rows that is done through this server's store and through the bare driver (`bmsota bench store`).
type Beside = beside.Pairs

// SQLiteBeside is that work in files of dir.
func SQLiteBeside(ctx context.Context, dir string) (*Beside, error) { return beside.SQLite(ctx, dir) }

// PostgresBeside is that work in two empty databases, by their URLs.
func PostgresBeside(ctx context.Context, ours, bare string) (*Beside, error) {
	return beside.Postgres(ctx, ours, bare)
}
