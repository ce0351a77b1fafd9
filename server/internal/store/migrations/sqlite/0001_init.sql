-- +goose Up
-- Times are milliseconds since 1970 in UTC, 0 for never. Texts are never NULL. Seq is a 64-bit pattern.

CREATE TABLE releases (
  sha256         TEXT PRIMARY KEY,
  project        TEXT NOT NULL,
  chip           TEXT NOT NULL,
  version        TEXT NOT NULL,
  min_version    TEXT NOT NULL,
  description    TEXT NOT NULL,
  force_update   INTEGER NOT NULL,
  size           INTEGER NOT NULL,
  secure_version INTEGER NOT NULL,
  build_date     INTEGER NOT NULL,
  manifest       TEXT NOT NULL,
  published_at   INTEGER NOT NULL,
  published_by   TEXT NOT NULL,
  withdrawn      INTEGER NOT NULL,
  UNIQUE (project, chip, version)
) STRICT;

CREATE TABLE channels (
  project TEXT NOT NULL,
  chip    TEXT NOT NULL,
  name    TEXT NOT NULL,
  sha256  TEXT NOT NULL REFERENCES releases (sha256),
  set_at  INTEGER NOT NULL,
  set_by  TEXT NOT NULL,
  PRIMARY KEY (project, chip, name)
) STRICT;

-- What lists and sweeps ask for stands in columns; the rest of the last status is its JSON.
CREATE TABLE devices (
  id               TEXT PRIMARY KEY,
  token_sha256     TEXT NOT NULL,
  enrolled_at      INTEGER NOT NULL,
  revoked          INTEGER NOT NULL,
  channel          TEXT NOT NULL,
  online           INTEGER NOT NULL,
  first_seen       INTEGER NOT NULL,
  last_seen        INTEGER NOT NULL,
  phase_since      INTEGER NOT NULL,
  phase            TEXT NOT NULL,
  version          TEXT NOT NULL,
  sha256           TEXT NOT NULL,
  previous_version TEXT NOT NULL,
  boot             TEXT NOT NULL,
  seq              INTEGER NOT NULL,
  old_boots        TEXT NOT NULL,
  status           TEXT NOT NULL
) STRICT;

CREATE TABLE attempts (
  id         TEXT PRIMARY KEY,
  command_id TEXT NOT NULL,
  device_id  TEXT NOT NULL REFERENCES devices (id),
  action     TEXT NOT NULL,
  force      INTEGER NOT NULL,
  version    TEXT NOT NULL,
  sha256     TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  created_by TEXT NOT NULL,
  expires_at INTEGER NOT NULL,
  state      TEXT NOT NULL,
  phase      TEXT NOT NULL,
  reason     TEXT NOT NULL,
  message    TEXT NOT NULL,
  updated_at INTEGER NOT NULL,
  ended_at   INTEGER NOT NULL
) STRICT;

CREATE INDEX attempts_of_device ON attempts (device_id, created_at, id);
CREATE INDEX attempts_open ON attempts (created_at, id) WHERE state = 'open';
CREATE INDEX attempts_open_of_device ON attempts (device_id, created_at, id) WHERE state = 'open';

CREATE TABLE project_keys (
  project    TEXT NOT NULL,
  public_key TEXT NOT NULL,
  added_at   INTEGER NOT NULL,
  added_by   TEXT NOT NULL,
  PRIMARY KEY (project, public_key)
) STRICT;

CREATE TABLE operators (
  name         TEXT PRIMARY KEY,
  token_sha256 TEXT NOT NULL UNIQUE,
  created_at   INTEGER NOT NULL,
  revoked      INTEGER NOT NULL
) STRICT;
