package store

import (
	"cmp"
	"fmt"
	"slices"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

func scanOrder(s scanner) (o fleet.Order, err error) {
	var command []byte
	if err := s.Scan(&command, &o.By.Name, &o.By.Role, instant{&o.CreatedAt}, &o.Reached, instant{&o.Moved}); err != nil {
		return o, err
	}
	if o.Command, err = protocol.ParseCommand(command); err != nil {
		err = fmt.Errorf("command of an order: %w", err)
	}
	return o, err
}

func (t *sqlTx) Orders() ([]fleet.Order, error) {
	return manyOf(t, scanOrder, `SELECT command, by_name, by_role, created_at, reached, moved_at FROM orders ORDER BY created_at, id`)
}

func (t *sqlTx) PutOrder(o fleet.Order) error {
	command, err := o.Command.Append(nil)
	if err != nil {
		return fmt.Errorf("encode order: %w", err)
	}
	return t.exec(`INSERT INTO orders (id, command, by_name, by_role, created_at, reached, moved_at) VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (id) DO UPDATE SET command = excluded.command, by_name = excluded.by_name, by_role = excluded.by_role,
 created_at = excluded.created_at, reached = excluded.reached, moved_at = excluded.moved_at`,
		o.Command.ID, string(command), o.By.Name, string(o.By.Role), millis(o.CreatedAt), o.Reached, millis(o.Moved))
}

func (t *sqlTx) DeleteOrder(command string) error {
	return t.exec(`DELETE FROM orders WHERE id = $1`, command)
}

func (t *sqlTx) DevicesAfter(after string, limit int) ([]fleet.Device, error) {
	return manyOf(t, scanDevice, `SELECT `+deviceColumns+` FROM devices WHERE id > $1 ORDER BY id LIMIT $2`, after, int64(limit))
}

func (t *memoryTx) Orders() ([]fleet.Order, error) {
	return sorted(t.m.orders, func(a, b fleet.Order) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.Command.ID, b.Command.ID))
	}), nil
}

func (t *memoryTx) PutOrder(o fleet.Order) error {
	if err := t.may(); err != nil {
		return err
	}
	trim(&o.CreatedAt, &o.Moved)
	set(t, t.m.orders, o.Command.ID, o)
	return nil
}

func (t *memoryTx) DeleteOrder(command string) error { return drop(t, t.m.orders, command) }

func (t *memoryTx) DevicesAfter(after string, limit int) ([]fleet.Device, error) {
	var ids []string
	for id := range t.m.devices {
		if id > after {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return t.DevicesIn(ids[:min(len(ids), max(limit, 0))])
}
