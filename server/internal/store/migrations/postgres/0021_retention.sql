-- +goose Up
-- What is old is found by its end. Attempts that rolled back are kept.
CREATE INDEX attempts_ended ON attempts (ended_at, id) WHERE state NOT IN ('open', 'rolled_back');

-- Rows of the audit log go from its beginning, as far as the newest row about that names, "N:HASH", and never another way.
-- +goose StatementBegin
CREATE FUNCTION audit_pruned() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF OLD.seq <= coalesce((SELECT CAST(split_part(about, ':', 1) AS BIGINT) FROM audit
    WHERE what = 'audit.prune' AND what NOT IN ('attempt.begin', 'attempt.end') ORDER BY seq DESC LIMIT 1), 0) THEN
    RETURN OLD;
  END IF;
  RAISE EXCEPTION 'the audit log is appended to only' USING ERRCODE = 'integrity_constraint_violation';
END $$;
-- +goose StatementEnd
DROP TRIGGER audit_appends ON audit;
CREATE TRIGGER audit_appends BEFORE INSERT OR UPDATE ON audit FOR EACH ROW EXECUTE FUNCTION audit_appends();
CREATE TRIGGER audit_prunes BEFORE DELETE ON audit FOR EACH ROW EXECUTE FUNCTION audit_pruned();
