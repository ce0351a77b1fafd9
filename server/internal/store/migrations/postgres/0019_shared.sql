-- +goose Up
-- Who may do what goes by the clock, and the number of that right: it grows with every one who gets it.
CREATE TABLE lease (
  id     BIGINT PRIMARY KEY CHECK (id = 1),
  holder TEXT COLLATE "C" NOT NULL,
  token  BIGINT NOT NULL,
  until  BIGINT NOT NULL
);

-- Which servers work on this database, when they last said so, and of which version the tables are that they know.
CREATE TABLE servers (
  place     TEXT COLLATE "C" PRIMARY KEY,
  name      TEXT COLLATE "C" NOT NULL,
  seen      BIGINT NOT NULL,
  tables_of BIGINT NOT NULL
);

-- What one server tells the others, in the order of the commits: the number is drawn under the lock of the writers.
CREATE TABLE changes (
  number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  place  TEXT COLLATE "C" NOT NULL,
  at     BIGINT NOT NULL,
  body   TEXT COLLATE "C" NOT NULL
);
CREATE INDEX changes_by_time ON changes (at);

-- Whose broker holds the session of a device.
CREATE TABLE homes (
  device_id TEXT COLLATE "C" PRIMARY KEY,
  place     TEXT COLLATE "C" NOT NULL
);
CREATE INDEX homes_by_place ON homes (place);

-- A program that knows tables of this version or newer works on these. A migration that only adds leaves it; one that takes away
-- what older programs use raises it, which is refused while one of them works here.
CREATE TABLE compatible (
  id     BIGINT PRIMARY KEY CHECK (id = 1),
  oldest BIGINT NOT NULL
);
INSERT INTO compatible VALUES (1, 19);
-- +goose StatementBegin
CREATE FUNCTION compatible_waits() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  old servers%ROWTYPE;
BEGIN
  SELECT * INTO old FROM servers WHERE tables_of < NEW.oldest
    AND seen > CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT) - 30000 LIMIT 1;
  IF FOUND THEN
    RAISE EXCEPTION 'server "%" works here and knows tables of version % alone, and these are to be of % at least: end it first', old.name, old.tables_of, NEW.oldest
      USING ERRCODE = 'object_in_use';
  END IF;
  RETURN NEW;
END $$;
-- +goose StatementEnd
CREATE TRIGGER compatible_waits BEFORE UPDATE ON compatible FOR EACH ROW EXECUTE FUNCTION compatible_waits();
