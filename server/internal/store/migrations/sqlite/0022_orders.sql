-- +goose Up
-- Commands to all devices that not every device has its attempt of yet; they go when every one has.
CREATE TABLE orders (
  id         TEXT PRIMARY KEY,
  command    TEXT NOT NULL,
  by_name    TEXT NOT NULL,
  by_role    TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  reached    TEXT NOT NULL, -- id of the last device that was looked at
  moved_at   INTEGER NOT NULL
) STRICT;
