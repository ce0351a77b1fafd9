//go:build unix

package bench

import (
	"errors"
	"strings"

	"bmsota/server/pgtest"
)

// startPostgres is nil where there is none. It has the settings of a Debian server but for 64 MB of shared buffers: with fsync.
func (b *Bench) startPostgres() (*postgres, error) {
	s, err := pgtest.Start()
	if errors.Is(err, pgtest.ErrMissing) {
		return b.noPostgres()
	}
	if err != nil {
		return nil, err
	}
	version, err := s.Ask("postgres", "SHOW server_version")
	if err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	b.named(Peer{Name: "postgresql", Version: strings.TrimSpace(version)})
	return &postgres{stop: s.Stop, database: func() (string, error) {
		name, err := s.New("template0")
		return s.URL(name, pgtest.Superuser), err
	}}, nil
}
