package provision

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"

	"bmsota/protocol"
)

// The most that is read of a list.
const (
	MaxList    = 16 << 20 // bytes
	MaxDevices = 100_000
)

// maxFaults is how many faults of a list are told; the rest is counted.
const maxFaults = 5

// Device is one board to provision.
type Device struct {
	ID     string
	MAC    string   // as 24:6f:28:a1:b2:c3; empty where it is not known
	Others []Column // of the list, kept for the report
}

// Column is a value of a list that means nothing to us.
type Column struct{ Name, Value string }

// ParseList reads a list of devices: CSV with a header line. The column device is needed, mac is optional, every other
// column is kept as it is. Where a device is empty and its mac is not, the id is the one that the MAC gives.
//
// The list is taken as a whole or not at all. What is wrong is told by line, the first few faults at once: ids and
// addresses that are none, devices and addresses that are there twice (ids that differ in upper and lower case only would
// share a folder on some systems), more than MaxDevices.
func ParseList(text []byte) ([]Device, error) {
	if len(text) > MaxList {
		return nil, fmt.Errorf("%d bytes, a list has at most %d", len(text), MaxList)
	}
	r := csv.NewReader(bytes.NewReader(bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))))
	r.TrimLeadingSpace = true
	header, err := r.Read()
	if errors.Is(err, io.EOF) {
		return nil, errors.New("the list is empty: its first line names the columns, one of them device")
	}
	if err != nil {
		return nil, csvFault(err)
	}
	l := list{device: -1, mac: -1, seen: make(map[string]int)}
	if err := l.readHeader(header); err != nil {
		return nil, err
	}
	for {
		row, err := r.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, csvFault(err)
		}
		if len(l.devices) == MaxDevices {
			return nil, fmt.Errorf("more than %d devices", MaxDevices)
		}
		line, _ := r.FieldPos(0)
		l.readRow(line, row)
	}
	if l.count > 0 {
		if more := l.count - len(l.faults); more > 0 {
			l.faults = append(l.faults, fmt.Sprintf("and %d more", more))
		}
		return nil, errors.New(strings.Join(l.faults, "; "))
	}
	if len(l.devices) == 0 {
		return nil, errors.New("the list names no device")
	}
	return l.devices, nil
}

// csvFault says a fault of the form without the words of package csv.
func csvFault(err error) error {
	pe, ok := errors.AsType[*csv.ParseError](err)
	if !ok {
		return err
	}
	if errors.Is(pe.Err, csv.ErrFieldCount) {
		return fmt.Errorf("line %d has another number of columns than the first line", pe.StartLine)
	}
	return fmt.Errorf("line %d: %w", pe.Line, pe.Err)
}

type list struct {
	header      []string
	device, mac int            // columns
	seen        map[string]int // line of a device or address
	devices     []Device
	faults      []string
	count       int // of faults
}

func (l *list) readHeader(names []string) error {
	for i, name := range names {
		name = strings.TrimSpace(name)
		if name == "" {
			return fmt.Errorf("column %d of the first line has no name", i+1)
		}
		if slices.Contains(l.header, name) {
			return fmt.Errorf("column %q is there twice", name)
		}
		l.header = append(l.header, name)
		switch name {
		case "device":
			l.device = i
		case "mac":
			l.mac = i
		}
	}
	if l.device < 0 {
		return fmt.Errorf("no column device in the first line (%s); commas separate the columns", strings.Join(l.header, ", "))
	}
	return nil
}

func (l *list) fault(line int, format string, args ...any) {
	if l.count++; len(l.faults) < maxFaults {
		l.faults = append(l.faults, fmt.Sprintf("line %d: %s", line, fmt.Sprintf(format, args...)))
	}
}

func (l *list) readRow(line int, row []string) {
	d := Device{ID: strings.TrimSpace(row[l.device])}
	if l.mac >= 0 && strings.TrimSpace(row[l.mac]) != "" {
		mac, err := ParseMAC(strings.TrimSpace(row[l.mac]))
		if err != nil {
			l.fault(line, "%v", err)
			return
		}
		d.MAC = net.HardwareAddr(mac[:]).String()
		if d.ID == "" {
			d.ID = protocol.DeviceID(mac)
		}
	}
	if err := protocol.CheckDeviceID(d.ID); err != nil {
		l.fault(line, "%v", err)
		return
	}
	for _, key := range []string{strings.ToLower(d.ID), "mac " + d.MAC} {
		if first, twice := l.seen[key]; twice && key != "mac " {
			l.fault(line, "%s is in line %d already", strings.TrimPrefix(key, "mac "), first)
			return
		}
		l.seen[key] = line
	}
	for i, name := range l.header {
		if i != l.device && i != l.mac {
			d.Others = append(d.Others, Column{name, row[i]})
		}
	}
	l.devices = append(l.devices, d)
}

// ParseMAC reads the address of a board, six bytes in one of the usual forms.
func ParseMAC(text string) ([6]byte, error) {
	hw, err := net.ParseMAC(text)
	if err != nil || len(hw) != 6 {
		return [6]byte{}, fmt.Errorf("%q is not a MAC address such as 24:6f:28:a1:b2:c3", text)
	}
	return [6]byte(hw), nil
}
