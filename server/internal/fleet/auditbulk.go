package fleet

// The calls for many rows, with the rows of the log that one call for each would make.

func (t *audited) DevicesIn(ids []string) ([]Device, error) {
	list, err := t.Tx.DevicesIn(ids)
	if err != nil {
		return nil, err
	}
	for _, d := range list {
		if _, known := t.book.devices[d.ID]; !known {
			t.book.devices[d.ID] = thenOf(d)
		}
	}
	for _, id := range ids {
		if _, known := t.book.devices[id]; !known {
			t.book.devices[id] = deviceThen{}
		}
	}
	return list, nil
}

// recalled is for rows of a device that are as the transaction would read them, and were not read.
func recalled(tx Tx, d Device, open []Attempt) {
	if t, ok := tx.(*audited); ok {
		t.book.devices[d.ID] = thenOf(d)
		t.remember(open...)
	}
}

func (t *audited) PutDevices(list []Device) error {
	if err := t.tellDevices(list); err != nil {
		return err
	}
	return t.Tx.PutDevices(list)
}

func (t *audited) PutReports(list []Device) error {
	if err := t.tellDevices(list); err != nil {
		return err
	}
	return t.Tx.PutReports(list)
}

func (t *audited) tellDevices(list []Device) error {
	for i := range list {
		if err := t.tellDevice(list[i]); err != nil {
			return err
		}
	}
	return nil
}

// AttemptsIn remembers which there are not as well.
func (t *audited) AttemptsIn(ids []string) ([]Attempt, error) {
	list, err := t.Tx.AttemptsIn(ids)
	if err != nil {
		return nil, err
	}
	t.remember(list...)
	for _, id := range ids {
		if _, known := t.book.attempts[id]; !known {
			t.book.attempts[id] = ""
		}
	}
	return list, nil
}

func (t *audited) OpenAttemptsIn(devices []string) ([]Attempt, error) {
	list, err := t.Tx.OpenAttemptsIn(devices)
	t.remember(list...)
	return list, err
}

func (t *audited) PutAttempts(list []Attempt) error {
	for _, a := range list {
		if err := t.tellAttempt(a); err != nil {
			return err
		}
	}
	return t.Tx.PutAttempts(list)
}

func (t *audited) PutMembers(list []Member) error {
	for _, m := range list {
		t.tellMember(m)
	}
	return t.Tx.PutMembers(list)
}
