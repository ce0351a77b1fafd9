-- +goose Up
-- What a device has said that does not go together, as JSON; suspect is 1 while it is not believed.
ALTER TABLE devices ADD COLUMN doubts TEXT NOT NULL DEFAULT '';
ALTER TABLE devices ADD COLUMN suspect INTEGER NOT NULL DEFAULT 0;

CREATE INDEX devices_suspect ON devices (id) WHERE suspect = 1;
