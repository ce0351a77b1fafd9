-- +goose Up
-- Who may sign in, and with what right. Operators from before there were roles keep every right.
ALTER TABLE operators ADD COLUMN role TEXT NOT NULL DEFAULT 'admin';
ALTER TABLE operators ADD COLUMN expires_at INTEGER NOT NULL DEFAULT 0;

CREATE TABLE accounts (
  name        TEXT PRIMARY KEY,
  role        TEXT NOT NULL,
  password    TEXT NOT NULL,
  created_at  INTEGER NOT NULL,
  created_by  TEXT NOT NULL,
  password_at INTEGER NOT NULL
) STRICT;

CREATE TABLE sessions (
  sha256     TEXT PRIMARY KEY,
  account    TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  seen_at    INTEGER NOT NULL,
  expires_at INTEGER NOT NULL
) STRICT;
CREATE INDEX sessions_of_account ON sessions (account);
CREATE INDEX sessions_by_end ON sessions (expires_at);

-- What listings look for in the last status, beside its JSON.
ALTER TABLE devices ADD COLUMN project TEXT NOT NULL DEFAULT '';
ALTER TABLE devices ADD COLUMN chip TEXT NOT NULL DEFAULT '';
ALTER TABLE devices ADD COLUMN reason TEXT NOT NULL DEFAULT '';
ALTER TABLE devices ADD COLUMN protected INTEGER NOT NULL DEFAULT 0;
UPDATE devices SET project = coalesce(json_extract(status, '$.project'), ''), chip = coalesce(json_extract(status, '$.chip'), ''),
  reason = coalesce(json_extract(status, '$.reason'), ''),
  protected = coalesce(json_extract(status, '$.rollback_protected'), 0) AND coalesce(json_extract(status, '$.signed_only'), 0)
WHERE status <> '';

-- Listings and counts are answered from these, without the rows or from the few rows in a phase. The first begins with
-- what a census groups by.
CREATE INDEX devices_facts ON devices (revoked, project, chip, version, sha256, phase, reason, online, protected, last_seen, enrolled_at, id);
CREATE INDEX devices_by_phase ON devices (phase, last_seen, revoked, id);
CREATE INDEX devices_by_seen ON devices (last_seen, id);

CREATE INDEX attempts_bad ON attempts (ended_at, id, device_id, created_at) WHERE state IN ('failed', 'rolled_back');
CREATE INDEX attempts_of_release ON attempts (sha256, state);
