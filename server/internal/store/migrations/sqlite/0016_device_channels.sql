-- +goose Up
-- Listings look for the channel of a device as well, and are answered from this index still.
DROP INDEX devices_facts;
CREATE INDEX devices_facts ON devices (revoked, project, chip, version, sha256, phase, reason, online, protected, last_seen, enrolled_at, channel, id);
