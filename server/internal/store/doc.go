// Package store remembers what package fleet decides: rows in SQLite, in PostgreSQL or in memory, firmware bytes in a folder or
// a bucket.
//
// What Update or Put acknowledge survives the loss of power: SQLite runs with synchronous=FULL, PostgreSQL must have
// fsync and synchronous_commit on, a firmware file is synced before it is renamed into place and its folder after, an object
// of a bucket is read back. What they do not acknowledge is absent or whole, never half.
//
// Rules of the tables hold in every store alike: a channel points at a release that exists, an attempt belongs to a
// device that exists, a version of a project and chip is one release, a token is one operator's. Breaking one is
// fleet.ErrConflict and voids the transaction. Times are kept in milliseconds, in UTC.
//
// Queries are in the subset that SQLite and PostgreSQL share and stand in queries.go; tables are made by the
// migrations of each database. The contract is that of fleet.Store and fleet.Blobs; one suite holds every store to it.
package store
