-- +goose Up
-- Who did what. A row holds the hash of the one before (package audit); details are JSON, empty for none.
CREATE TABLE audit (
  seq     INTEGER PRIMARY KEY,
  at      INTEGER NOT NULL,
  who     TEXT NOT NULL,
  role    TEXT NOT NULL,
  what    TEXT NOT NULL,
  about   TEXT NOT NULL,
  device  TEXT NOT NULL,
  rollout TEXT NOT NULL,
  details TEXT NOT NULL,
  prev    TEXT NOT NULL,
  hash    TEXT NOT NULL
) STRICT;

CREATE INDEX audit_by_time ON audit (at);
CREATE INDEX audit_of_device ON audit (device, seq) WHERE device <> '';
CREATE INDEX audit_of_rollout ON audit (rollout, seq) WHERE rollout <> '';
CREATE INDEX audit_by_who ON audit (who, seq);
-- Of attempts there is so much that a walk over the rows finds them soon.
CREATE INDEX audit_by_action ON audit (what, seq) WHERE what NOT IN ('attempt.begin', 'attempt.end');

-- Nothing is done to it but appending: a REPLACE would delete without the third trigger being asked, so the first one
-- refuses what does not stand behind the last row.
-- +goose StatementBegin
CREATE TRIGGER audit_appends BEFORE INSERT ON audit
WHEN NEW.seq <> 1 + coalesce((SELECT max(seq) FROM audit), 0)
  OR NEW.prev <> coalesce((SELECT hash FROM audit ORDER BY seq DESC LIMIT 1), '0000000000000000000000000000000000000000000000000000000000000000')
BEGIN
  SELECT RAISE(ABORT, 'the audit log is appended to only');
END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER audit_keeps BEFORE UPDATE ON audit
BEGIN
  SELECT RAISE(ABORT, 'the audit log is appended to only');
END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER audit_holds BEFORE DELETE ON audit
BEGIN
  SELECT RAISE(ABORT, 'the audit log is appended to only');
END;
-- +goose StatementEnd
