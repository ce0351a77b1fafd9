-- +goose Up

ALTER TABLE devices ADD COLUMN labels TEXT NOT NULL DEFAULT '';
CREATE INDEX devices_away ON devices (last_seen) WHERE online = 0;

ALTER TABLE attempts ADD COLUMN rollout_id TEXT NOT NULL DEFAULT '';
CREATE INDEX attempts_of_rollout ON attempts (rollout_id, created_at) WHERE rollout_id <> '';
CREATE INDEX attempts_rolled_back ON attempts (sha256) WHERE state = 'rolled_back';

-- What queries ask for stands in columns; all of it, these too, is the JSON in body.
CREATE TABLE rollouts (
  id          TEXT PRIMARY KEY,
  revision    INTEGER NOT NULL,
  state       TEXT NOT NULL,
  priority    INTEGER NOT NULL,
  created_at  INTEGER NOT NULL,
  request_key TEXT NOT NULL,
  body        TEXT NOT NULL
) STRICT;

CREATE UNIQUE INDEX rollouts_by_key ON rollouts (request_key) WHERE request_key <> '';

CREATE TABLE rollout_members (
  rollout_id TEXT NOT NULL REFERENCES rollouts (id),
  device_id  TEXT NOT NULL REFERENCES devices (id),
  rank       INTEGER NOT NULL,
  state      TEXT NOT NULL,
  attempts   INTEGER NOT NULL,
  tries      INTEGER NOT NULL,
  attempt_id TEXT NOT NULL,
  not_before INTEGER NOT NULL,
  reason     TEXT NOT NULL,
  message    TEXT NOT NULL,
  updated_at INTEGER NOT NULL,
  PRIMARY KEY (rollout_id, device_id)
) STRICT;

CREATE INDEX members_by_rank ON rollout_members (rollout_id, rank);
CREATE INDEX members_by_state ON rollout_members (rollout_id, state, rank);
CREATE INDEX members_open ON rollout_members (rollout_id) WHERE state = 'open';
CREATE INDEX members_of_device ON rollout_members (device_id);

CREATE TABLE quarantine (
  sha256     TEXT PRIMARY KEY,
  rollout_id TEXT NOT NULL,
  why        TEXT NOT NULL,
  since      INTEGER NOT NULL,
  lifted_at  INTEGER NOT NULL,
  lifted_by  TEXT NOT NULL
) STRICT;
