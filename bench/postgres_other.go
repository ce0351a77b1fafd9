//go:build !unix

package bench

// startPostgres is nil: none is started here.
func (b *Bench) startPostgres() (*postgres, error) { return b.noPostgres() }
