package fleet

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"
	_ "time/tzdata" // small systems, NAS boxes among them, have no zones of their own
)

// Labels are what operators say of a device: site, bank, owner. The server gives a meaning to one of them alone,
// TimezoneLabel.
type Labels map[string]string

// TimezoneLabel is where the device's local time comes from: a name of the IANA database ("Europe/Berlin") or an
// offset ("+05:30").
const TimezoneLabel = "timezone"

const (
	maxLabels     = 32
	maxLabelKey   = 32
	maxLabelValue = 64
)

func checkLabelKey(key string) error {
	if key == "" || len(key) > maxLabelKey {
		return invalid("label %.40q is not 1 to %d letters long", key, maxLabelKey)
	}
	for i, c := range []byte(key) {
		if letter := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'; !letter && (i == 0 || c != '-' && c != '_' && c != '.') {
			return invalid("label %q: a to z, 0 to 9, and behind the first one - _ . are allowed", key)
		}
	}
	return nil
}

func checkLabel(key, value string) error {
	if err := checkLabelKey(key); err != nil {
		return err
	}
	if value == "" || len(value) > maxLabelValue {
		return invalid("label %s: a value has 1 to %d bytes", key, maxLabelValue)
	}
	for _, c := range []byte(value) {
		if c <= ' ' || c > '~' || c == '=' || c == ',' || c == '"' {
			return invalid("label %s: value %q has a space, = , \" or a letter beyond ASCII", key, value)
		}
	}
	if key == TimezoneLabel {
		if _, err := location(value); err != nil {
			return err
		}
	}
	return nil
}

// location reads the value of TimezoneLabel.
func location(value string) (*time.Location, error) {
	if value == "" {
		return time.UTC, nil
	}
	if value[0] == '+' || value[0] == '-' {
		at, err := time.Parse("-07:00", value)
		if err != nil {
			return nil, invalid("timezone %q is not an offset such as +05:30", value)
		}
		_, offset := at.Zone()
		return time.FixedZone(value, offset), nil
	}
	if value == "Local" || strings.Contains(value, "..") {
		return nil, invalid("timezone %q is not a name such as Europe/Berlin", value)
	}
	zone, err := time.LoadLocation(value)
	if err != nil {
		return nil, invalid("timezone %q is neither a name such as Europe/Berlin nor an offset such as +05:30", value)
	}
	return zone, nil
}

// zones remembers locations, because every look at a window needs one. The nil value remembers nothing.
type zones struct {
	mu   sync.Mutex
	seen map[string]*time.Location // guarded by mu
}

// maxZones is more than the world has.
const maxZones = 2000

// of is the location of a device; UTC where its label cannot be read.
func (z *zones) of(l Labels) *time.Location {
	value := l[TimezoneLabel]
	if value == "" {
		return time.UTC
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	if zone := z.seen[value]; zone != nil {
		return zone
	}
	zone, err := location(value)
	if err != nil {
		zone = time.UTC
	}
	if z.seen == nil || len(z.seen) >= maxZones {
		z.seen = make(map[string]*time.Location)
	}
	z.seen[value] = zone
	return zone
}

// SetLabels adds, replaces and removes labels of a device and returns all it has then. Errors: ErrDenied, ErrInvalid,
// ErrNotFound, ErrStorage.
func (f *Fleet) SetLabels(ctx context.Context, by Identity, device string, set Labels, remove []string) (Labels, error) {
	if err := f.operator(by); err != nil {
		return nil, err
	}
	for key, value := range set {
		if err := checkLabel(key, value); err != nil {
			return nil, err
		}
	}
	for _, key := range remove {
		if err := checkLabelKey(key); err != nil {
			return nil, err
		}
		if _, both := set[key]; both {
			return nil, invalid("label %s is both set and removed", key)
		}
	}
	var labels Labels
	err := f.update(ctx, by, func(tx Tx) error {
		d, err := tx.Device(device)
		if err != nil {
			return fmt.Errorf("device %q: %w", device, err)
		}
		labels = make(Labels, len(d.Labels)+len(set))
		maps.Copy(labels, d.Labels)
		for _, key := range remove {
			delete(labels, key)
		}
		maps.Copy(labels, set)
		if len(labels) > maxLabels {
			return invalid("device %q would have %d labels, the limit is %d", device, len(labels), maxLabels)
		}
		d.Labels = labels
		return tx.PutDevice(d)
	})
	if err != nil {
		return nil, err
	}
	f.watchers.tell(device)
	f.cfg.Log.Info("labels set", "device", device, "by", by.Name)
	return labels, nil
}
