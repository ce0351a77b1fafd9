-- +goose Up
-- The one certificate by which a device may log in: its fingerprint, and when it ends.
ALTER TABLE devices ADD COLUMN certificate_sha256 TEXT NOT NULL DEFAULT '';
ALTER TABLE devices ADD COLUMN certificate_ends INTEGER NOT NULL DEFAULT 0;
