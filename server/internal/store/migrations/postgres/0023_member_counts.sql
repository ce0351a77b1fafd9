-- +goose Up
-- What a statement changes of the members of a rollout is noted in a row for each state, not in one or two for each member: they are
-- written and moved by the hundred and by the ten thousand, under the lock of the writers.
-- +goose StatementBegin
CREATE FUNCTION members_added() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO rollout_changes SELECT rollout_id, state, COUNT(*) FROM added GROUP BY rollout_id, state;
  RETURN NULL;
END $$;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE FUNCTION members_moved() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO rollout_changes SELECT rollout_id, state, SUM(n)
  FROM (SELECT rollout_id, state, 1 AS n FROM are UNION ALL SELECT rollout_id, state, -1 FROM were) AS parts
  GROUP BY rollout_id, state HAVING SUM(n) <> 0;
  RETURN NULL;
END $$;
-- +goose StatementEnd
DROP TRIGGER members_count_new ON rollout_members;
DROP TRIGGER members_count_moved ON rollout_members;
DROP FUNCTION members_count();
CREATE TRIGGER members_count_new AFTER INSERT ON rollout_members REFERENCING NEW TABLE AS added
FOR EACH STATEMENT EXECUTE FUNCTION members_added();
CREATE TRIGGER members_count_moved AFTER UPDATE ON rollout_members REFERENCING OLD TABLE AS were NEW TABLE AS are
FOR EACH STATEMENT EXECUTE FUNCTION members_moved();
