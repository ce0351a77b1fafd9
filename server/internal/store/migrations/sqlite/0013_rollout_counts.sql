-- +goose Up
-- How many members of a rollout stand in each state, kept by the rows themselves: a list of rollouts is read without their
-- members.
CREATE TABLE rollout_counts (
  rollout_id TEXT NOT NULL REFERENCES rollouts (id),
  state      TEXT NOT NULL,
  members    INTEGER NOT NULL,
  PRIMARY KEY (rollout_id, state)
) STRICT;
INSERT INTO rollout_counts (rollout_id, state, members) SELECT rollout_id, state, COUNT(*) FROM rollout_members GROUP BY rollout_id, state;

-- +goose StatementBegin
CREATE TRIGGER members_count_new AFTER INSERT ON rollout_members BEGIN
  INSERT INTO rollout_counts (rollout_id, state, members) VALUES (NEW.rollout_id, NEW.state, 1)
  ON CONFLICT (rollout_id, state) DO UPDATE SET members = members + 1;
END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER members_count_moved AFTER UPDATE OF state ON rollout_members WHEN OLD.state <> NEW.state BEGIN
  UPDATE rollout_counts SET members = members - 1 WHERE rollout_id = OLD.rollout_id AND state = OLD.state;
  INSERT INTO rollout_counts (rollout_id, state, members) VALUES (NEW.rollout_id, NEW.state, 1)
  ON CONFLICT (rollout_id, state) DO UPDATE SET members = members + 1;
END;
-- +goose StatementEnd

-- Members that wait for another try.
CREATE INDEX members_tried ON rollout_members (rollout_id, rank) WHERE state = 'pending' AND tries > 0;
