-- +goose Up
-- What is old is found by its end. Attempts that rolled back are kept.
CREATE INDEX attempts_ended ON attempts (ended_at, id) WHERE state NOT IN ('open', 'rolled_back');

-- Rows of the audit log go from its beginning, as far as the newest row about that names, "N:HASH", and never another way.
DROP TRIGGER audit_holds;
-- +goose StatementBegin
CREATE TRIGGER audit_holds BEFORE DELETE ON audit
WHEN OLD.seq > coalesce((SELECT CAST(about AS INTEGER) FROM audit WHERE what = 'audit.prune' AND what NOT IN ('attempt.begin', 'attempt.end')
  ORDER BY seq DESC LIMIT 1), 0)
BEGIN
  SELECT RAISE(ABORT, 'the audit log is appended to only');
END;
-- +goose StatementEnd
