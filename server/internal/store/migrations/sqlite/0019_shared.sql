-- +goose Up
-- What several servers on one database agree on. They share PostgreSQL alone; here it is for the tests that hold both to one.
CREATE TABLE lease (
  id     INTEGER PRIMARY KEY CHECK (id = 1),
  holder TEXT NOT NULL,
  token  INTEGER NOT NULL,
  until  INTEGER NOT NULL
) STRICT;
CREATE TABLE servers (
  place TEXT PRIMARY KEY,
  name  TEXT NOT NULL,
  seen  INTEGER NOT NULL,
  tables_of INTEGER NOT NULL
) STRICT;
CREATE TABLE changes (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  place  TEXT NOT NULL,
  at     INTEGER NOT NULL,
  body   TEXT NOT NULL
) STRICT;
CREATE INDEX changes_by_time ON changes (at);
CREATE TABLE homes (
  device_id TEXT PRIMARY KEY,
  place     TEXT NOT NULL
) STRICT;
CREATE INDEX homes_by_place ON homes (place);
