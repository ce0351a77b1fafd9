-- +goose Up
-- Who is told of what happens, and what waits to be told. The secret signs, so it stands here as it is.

CREATE TABLE webhooks (
  id           TEXT PRIMARY KEY,
  url          TEXT NOT NULL,
  events       TEXT NOT NULL,
  secret       TEXT NOT NULL,
  created_at   INTEGER NOT NULL,
  created_by   TEXT NOT NULL,
  seq          INTEGER NOT NULL,
  dropped      INTEGER NOT NULL,
  succeeded_at INTEGER NOT NULL,
  failed_at    INTEGER NOT NULL,
  failure      TEXT NOT NULL,
  failures     INTEGER NOT NULL,
  retry_at     INTEGER NOT NULL
) STRICT;

CREATE TABLE webhook_deliveries (
  webhook_id TEXT NOT NULL REFERENCES webhooks (id),
  seq        INTEGER NOT NULL,
  id         TEXT NOT NULL,
  type       TEXT NOT NULL,
  body       TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  PRIMARY KEY (webhook_id, seq)
) STRICT;
