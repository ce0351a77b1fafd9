-- +goose Up
-- Sets of trusted release keys, one after the other, and the keys that images are signed with. What was there is the set of a
-- project's first signed release.
ALTER TABLE releases ADD COLUMN cosignatures TEXT NOT NULL DEFAULT '';

CREATE TABLE keys (
  project      TEXT NOT NULL,
  kind         TEXT NOT NULL,
  sequence     INTEGER NOT NULL,
  key          TEXT NOT NULL,
  from_version TEXT NOT NULL,
  threshold    INTEGER NOT NULL,
  retired      INTEGER NOT NULL,
  added_at     INTEGER NOT NULL,
  added_by     TEXT NOT NULL,
  PRIMARY KEY (project, kind, sequence, key)
) STRICT;
INSERT INTO keys SELECT project, 'release', 0, public_key, '', 1, 0, added_at, added_by FROM project_keys;
DROP TABLE project_keys;
