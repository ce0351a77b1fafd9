-- +goose Up
-- What SQLite's tables are after its 0018; the numbers that follow are the same change in both. Times are milliseconds since
-- 1970 in UTC, 0 for never. Texts are never NULL, and are ordered byte by byte whatever the database's language is. Yes and no
-- are 1 and 0, as the shared queries have them. Seq is a 64-bit pattern.

-- Who changes anything locks the first, which stays empty: one transaction at a time, whatever number of servers. In the
-- second each server writes the number of its last change, with the change: a server whose connection is lost while it waits
-- for the answer to COMMIT finds out there what became of it.
CREATE TABLE writing ();
CREATE TABLE operations (
  writer TEXT COLLATE "C" PRIMARY KEY,
  number BIGINT NOT NULL,
  at     BIGINT NOT NULL
);

CREATE TABLE releases (
  sha256         TEXT COLLATE "C" PRIMARY KEY,
  project        TEXT COLLATE "C" NOT NULL,
  chip           TEXT COLLATE "C" NOT NULL,
  version        TEXT COLLATE "C" NOT NULL,
  min_version    TEXT COLLATE "C" NOT NULL,
  description    TEXT COLLATE "C" NOT NULL,
  force_update   SMALLINT NOT NULL,
  size           BIGINT NOT NULL,
  secure_version BIGINT NOT NULL,
  build_date     BIGINT NOT NULL,
  manifest       TEXT COLLATE "C" NOT NULL,
  cosignatures   TEXT COLLATE "C" NOT NULL,
  published_at   BIGINT NOT NULL,
  published_by   TEXT COLLATE "C" NOT NULL,
  withdrawn      SMALLINT NOT NULL,
  UNIQUE (project, chip, version)
);

CREATE TABLE channels (
  project TEXT COLLATE "C" NOT NULL,
  chip    TEXT COLLATE "C" NOT NULL,
  name    TEXT COLLATE "C" NOT NULL,
  sha256  TEXT COLLATE "C" NOT NULL REFERENCES releases (sha256),
  set_at  BIGINT NOT NULL,
  set_by  TEXT COLLATE "C" NOT NULL,
  PRIMARY KEY (project, chip, name)
);

-- What lists and sweeps ask for stands in columns; the rest of the last status is its JSON.
CREATE TABLE devices (
  id                 TEXT COLLATE "C" PRIMARY KEY,
  token_sha256       TEXT COLLATE "C" NOT NULL,
  enrolled_at        BIGINT NOT NULL,
  revoked            SMALLINT NOT NULL,
  channel            TEXT COLLATE "C" NOT NULL,
  online             SMALLINT NOT NULL,
  first_seen         BIGINT NOT NULL,
  last_seen          BIGINT NOT NULL,
  phase_since        BIGINT NOT NULL,
  phase              TEXT COLLATE "C" NOT NULL,
  version            TEXT COLLATE "C" NOT NULL,
  sha256             TEXT COLLATE "C" NOT NULL,
  previous_version   TEXT COLLATE "C" NOT NULL,
  boot               TEXT COLLATE "C" NOT NULL,
  seq                BIGINT NOT NULL,
  old_boots          TEXT COLLATE "C" NOT NULL,
  status             TEXT COLLATE "C" NOT NULL,
  labels             TEXT COLLATE "C" NOT NULL,
  project            TEXT COLLATE "C" NOT NULL,
  chip               TEXT COLLATE "C" NOT NULL,
  reason             TEXT COLLATE "C" NOT NULL,
  protected          SMALLINT NOT NULL,
  certificate_sha256 TEXT COLLATE "C" NOT NULL,
  certificate_ends   BIGINT NOT NULL,
  doubts             TEXT COLLATE "C" NOT NULL,
  suspect            SMALLINT NOT NULL
);

CREATE INDEX devices_away ON devices (last_seen) WHERE online = 0;
CREATE INDEX devices_facts ON devices (revoked, project, chip, version, sha256, phase, reason, online, protected, last_seen, enrolled_at, channel, id);
CREATE INDEX devices_by_phase ON devices (phase, last_seen, revoked, id);
CREATE INDEX devices_by_seen ON devices (last_seen, id);
CREATE INDEX devices_suspect ON devices (id) WHERE suspect = 1;

CREATE TABLE attempts (
  id         TEXT COLLATE "C" PRIMARY KEY,
  command_id TEXT COLLATE "C" NOT NULL,
  device_id  TEXT COLLATE "C" NOT NULL REFERENCES devices (id),
  action     TEXT COLLATE "C" NOT NULL,
  force      SMALLINT NOT NULL,
  version    TEXT COLLATE "C" NOT NULL,
  sha256     TEXT COLLATE "C" NOT NULL,
  created_at BIGINT NOT NULL,
  created_by TEXT COLLATE "C" NOT NULL,
  expires_at BIGINT NOT NULL,
  state      TEXT COLLATE "C" NOT NULL,
  phase      TEXT COLLATE "C" NOT NULL,
  reason     TEXT COLLATE "C" NOT NULL,
  message    TEXT COLLATE "C" NOT NULL,
  updated_at BIGINT NOT NULL,
  ended_at   BIGINT NOT NULL,
  rollout_id TEXT COLLATE "C" NOT NULL
);

CREATE INDEX attempts_of_device ON attempts (device_id, created_at, id);
CREATE INDEX attempts_open ON attempts (created_at, id) WHERE state = 'open';
CREATE INDEX attempts_open_of_device ON attempts (device_id, created_at, id) WHERE state = 'open';
CREATE INDEX attempts_of_rollout ON attempts (rollout_id, created_at) WHERE rollout_id <> '';
CREATE INDEX attempts_rolled_back ON attempts (sha256) WHERE state = 'rolled_back';
CREATE INDEX attempts_bad ON attempts (ended_at, id, device_id, created_at) WHERE state IN ('failed', 'rolled_back');
CREATE INDEX attempts_of_release ON attempts (sha256, state);

-- Sets of trusted release keys, one after the other, and the keys that images are signed with.
CREATE TABLE keys (
  project      TEXT COLLATE "C" NOT NULL,
  kind         TEXT COLLATE "C" NOT NULL,
  sequence     BIGINT NOT NULL,
  key          TEXT COLLATE "C" NOT NULL,
  from_version TEXT COLLATE "C" NOT NULL,
  threshold    BIGINT NOT NULL,
  retired      SMALLINT NOT NULL,
  added_at     BIGINT NOT NULL,
  added_by     TEXT COLLATE "C" NOT NULL,
  PRIMARY KEY (project, kind, sequence, key)
);

CREATE TABLE operators (
  name         TEXT COLLATE "C" PRIMARY KEY,
  token_sha256 TEXT COLLATE "C" NOT NULL UNIQUE,
  created_at   BIGINT NOT NULL,
  revoked      SMALLINT NOT NULL,
  role         TEXT COLLATE "C" NOT NULL,
  expires_at   BIGINT NOT NULL
);

CREATE TABLE accounts (
  name        TEXT COLLATE "C" PRIMARY KEY,
  role        TEXT COLLATE "C" NOT NULL,
  password    TEXT COLLATE "C" NOT NULL,
  created_at  BIGINT NOT NULL,
  created_by  TEXT COLLATE "C" NOT NULL,
  password_at BIGINT NOT NULL
);

CREATE TABLE sessions (
  sha256     TEXT COLLATE "C" PRIMARY KEY,
  account    TEXT COLLATE "C" NOT NULL,
  created_at BIGINT NOT NULL,
  seen_at    BIGINT NOT NULL,
  expires_at BIGINT NOT NULL
);
CREATE INDEX sessions_of_account ON sessions (account);
CREATE INDEX sessions_by_end ON sessions (expires_at);

-- What queries ask for stands in columns; all of it, these too, is the JSON in body.
CREATE TABLE rollouts (
  id          TEXT COLLATE "C" PRIMARY KEY,
  revision    BIGINT NOT NULL,
  state       TEXT COLLATE "C" NOT NULL,
  priority    BIGINT NOT NULL,
  created_at  BIGINT NOT NULL,
  request_key TEXT COLLATE "C" NOT NULL,
  body        TEXT COLLATE "C" NOT NULL
);
CREATE UNIQUE INDEX rollouts_by_key ON rollouts (request_key) WHERE request_key <> '';

CREATE TABLE rollout_members (
  rollout_id TEXT COLLATE "C" NOT NULL REFERENCES rollouts (id),
  device_id  TEXT COLLATE "C" NOT NULL REFERENCES devices (id),
  rank       BIGINT NOT NULL,
  state      TEXT COLLATE "C" NOT NULL,
  attempts   BIGINT NOT NULL,
  tries      BIGINT NOT NULL,
  attempt_id TEXT COLLATE "C" NOT NULL,
  not_before BIGINT NOT NULL,
  reason     TEXT COLLATE "C" NOT NULL,
  message    TEXT COLLATE "C" NOT NULL,
  updated_at BIGINT NOT NULL,
  PRIMARY KEY (rollout_id, device_id)
);
CREATE INDEX members_by_rank ON rollout_members (rollout_id, rank);
CREATE INDEX members_by_state ON rollout_members (rollout_id, state, rank);
CREATE INDEX members_open ON rollout_members (rollout_id) WHERE state = 'open';
CREATE INDEX members_of_device ON rollout_members (device_id);
CREATE INDEX members_tried ON rollout_members (rollout_id, rank) WHERE state = 'pending' AND tries > 0;

-- How many members of a rollout stand in each state, kept by the rows themselves. A row that is counted up at every member of
-- a large rollout would leave a version of itself each time, and each would be walked over by the next until the commit. So
-- what changes is noted first, and summed up once before the commit (sum_members); the view counts both.
CREATE TABLE rollout_sums (
  rollout_id TEXT COLLATE "C" NOT NULL REFERENCES rollouts (id),
  state      TEXT COLLATE "C" NOT NULL,
  members    BIGINT NOT NULL,
  PRIMARY KEY (rollout_id, state)
);
CREATE TABLE rollout_changes (
  rollout_id TEXT COLLATE "C" NOT NULL,
  state      TEXT COLLATE "C" NOT NULL,
  members    BIGINT NOT NULL
);
CREATE VIEW rollout_counts AS SELECT rollout_id, state, CAST(SUM(members) AS BIGINT) AS members
FROM (SELECT rollout_id, state, members FROM rollout_sums UNION ALL SELECT rollout_id, state, members FROM rollout_changes) AS parts
GROUP BY rollout_id, state;
-- +goose StatementBegin
CREATE FUNCTION members_count() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'UPDATE' THEN
    INSERT INTO rollout_changes VALUES (OLD.rollout_id, OLD.state, -1);
  END IF;
  INSERT INTO rollout_changes VALUES (NEW.rollout_id, NEW.state, 1);
  RETURN NULL;
END $$;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE FUNCTION sum_members() RETURNS void LANGUAGE sql AS $$
  WITH changes AS (DELETE FROM rollout_changes RETURNING rollout_id, state, members)
  INSERT INTO rollout_sums SELECT rollout_id, state, SUM(members) FROM changes GROUP BY rollout_id, state
  ON CONFLICT (rollout_id, state) DO UPDATE SET members = rollout_sums.members + excluded.members;
$$;
-- +goose StatementEnd
CREATE TRIGGER members_count_new AFTER INSERT ON rollout_members FOR EACH ROW EXECUTE FUNCTION members_count();
CREATE TRIGGER members_count_moved AFTER UPDATE OF state ON rollout_members FOR EACH ROW
WHEN (OLD.state <> NEW.state) EXECUTE FUNCTION members_count();

CREATE TABLE quarantine (
  sha256     TEXT COLLATE "C" PRIMARY KEY,
  rollout_id TEXT COLLATE "C" NOT NULL,
  why        TEXT COLLATE "C" NOT NULL,
  since      BIGINT NOT NULL,
  lifted_at  BIGINT NOT NULL,
  lifted_by  TEXT COLLATE "C" NOT NULL
);

-- Who did what. A row holds the hash of the one before (package audit); details are JSON, empty for none.
CREATE TABLE audit (
  seq     BIGINT PRIMARY KEY,
  at      BIGINT NOT NULL,
  who     TEXT COLLATE "C" NOT NULL,
  role    TEXT COLLATE "C" NOT NULL,
  what    TEXT COLLATE "C" NOT NULL,
  about   TEXT COLLATE "C" NOT NULL,
  device  TEXT COLLATE "C" NOT NULL,
  rollout TEXT COLLATE "C" NOT NULL,
  details TEXT COLLATE "C" NOT NULL,
  prev    TEXT COLLATE "C" NOT NULL,
  hash    TEXT COLLATE "C" NOT NULL
);
CREATE INDEX audit_by_time ON audit (at);
CREATE INDEX audit_of_device ON audit (device, seq) WHERE device <> '';
CREATE INDEX audit_of_rollout ON audit (rollout, seq) WHERE rollout <> '';
CREATE INDEX audit_by_who ON audit (who, seq);
CREATE INDEX audit_by_action ON audit (what, seq) WHERE what NOT IN ('attempt.begin', 'attempt.end');

-- Nothing is done to it but appending.
-- +goose StatementBegin
CREATE FUNCTION audit_appends() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  last audit%ROWTYPE;
BEGIN
  IF TG_OP = 'INSERT' THEN
    SELECT * INTO last FROM audit ORDER BY seq DESC LIMIT 1;
    IF NEW.seq = 1 + coalesce(last.seq, 0) AND NEW.prev = coalesce(last.hash, repeat('0', 64)) THEN
      RETURN NEW;
    END IF;
  END IF;
  RAISE EXCEPTION 'the audit log is appended to only' USING ERRCODE = 'integrity_constraint_violation';
END $$;
-- +goose StatementEnd
CREATE TRIGGER audit_appends BEFORE INSERT OR UPDATE OR DELETE ON audit FOR EACH ROW EXECUTE FUNCTION audit_appends();
CREATE TRIGGER audit_holds BEFORE TRUNCATE ON audit FOR EACH STATEMENT EXECUTE FUNCTION audit_appends();

-- Who is told of what happens, and what waits to be told. The secret signs, so it stands here as it is.
CREATE TABLE webhooks (
  id           TEXT COLLATE "C" PRIMARY KEY,
  url          TEXT COLLATE "C" NOT NULL,
  events       TEXT COLLATE "C" NOT NULL,
  secret       TEXT COLLATE "C" NOT NULL,
  created_at   BIGINT NOT NULL,
  created_by   TEXT COLLATE "C" NOT NULL,
  seq          BIGINT NOT NULL,
  dropped      BIGINT NOT NULL,
  succeeded_at BIGINT NOT NULL,
  failed_at    BIGINT NOT NULL,
  failure      TEXT COLLATE "C" NOT NULL,
  failures     BIGINT NOT NULL,
  retry_at     BIGINT NOT NULL
);
CREATE TABLE webhook_deliveries (
  webhook_id TEXT COLLATE "C" NOT NULL REFERENCES webhooks (id),
  seq        BIGINT NOT NULL,
  id         TEXT COLLATE "C" NOT NULL,
  type       TEXT COLLATE "C" NOT NULL,
  body       TEXT COLLATE "C" NOT NULL,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (webhook_id, seq)
);
