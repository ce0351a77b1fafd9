-- +goose Up
-- Commands to all devices that not every device has its attempt of yet; they go when every one has.
CREATE TABLE orders (
  id         TEXT COLLATE "C" PRIMARY KEY,
  command    TEXT COLLATE "C" NOT NULL,
  by_name    TEXT COLLATE "C" NOT NULL,
  by_role    TEXT COLLATE "C" NOT NULL,
  created_at BIGINT NOT NULL,
  reached    TEXT COLLATE "C" NOT NULL, -- id of the last device that was looked at
  moved_at   BIGINT NOT NULL
);
