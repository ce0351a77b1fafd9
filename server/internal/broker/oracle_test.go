package broker

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

// oracle says what rights must say, written from the standard's words and the protocol's table alone: levels are compared
// one by one, and what an operator reads is asked of a matcher of topics, not of the shape of his filter.
type oracle struct{ prefix []string }

func (o oracle) below(topic string) (levels []string, ok bool) {
	levels = strings.Split(topic, "/")
	if len(levels) < len(o.prefix) || !slices.Equal(levels[:len(o.prefix)], o.prefix) {
		return nil, false
	}
	return levels[len(o.prefix):], true
}

func (o oracle) devicePublishes(id, topic string) bool {
	levels, ok := o.below(topic)
	return ok && slices.Equal(levels, []string{"status", id})
}

func (o oracle) deviceReads(id, filter string) bool {
	levels, ok := o.below(filter)
	return ok && (slices.Equal(levels, []string{"command"}) || slices.Equal(levels, []string{"command", id}))
}

// matches is MQTT 3.1.1 §4.7: + is one level, # the level above it and all below, and neither meets a first level with $.
func matches(filter, topic string) bool {
	f, t := strings.Split(filter, "/"), strings.Split(topic, "/")
	if strings.HasPrefix(t[0], "$") && (f[0] == "+" || f[0] == "#") {
		return false
	}
	for i, level := range f {
		switch {
		case level == "#":
			return true
		case i >= len(t) || level != "+" && level != t[i]:
			return false
		}
	}
	return len(f) == len(t)
}

// names makes n device ids that are prefixes, extensions and case variants of each other, and words of the topics.
func names(random *rand.Rand, n int) []string {
	const first = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	list := []string{"status", "command", "bms", "ota", "Status", "COMMAND", "d", "D"}
	seen := make(map[string]bool)
	for _, name := range list {
		seen[name] = true
	}
	for len(list) < n {
		name := list[random.IntN(len(list))]
		switch random.IntN(5) {
		case 0:
			name = string(first[random.IntN(len(first))])
		case 1:
			name = name[:1+random.IntN(len(name))]
		case 2:
			name = strings.ToUpper(name)
		default:
			name += string((first + "._:-")[random.IntN(len(first)+4)])
		}
		if protocol.CheckDeviceID(name) == nil && !seen[name] {
			seen[name] = true
			list = append(list, name)
		}
	}
	return list
}

// TestNoDeviceCrosses asks about every pair of 1,000 devices with names as alike as they can be, six topics for each, to
// publish and to read: twelve million decisions, none of which lets one device act for another or hear another's command.
func TestNoDeviceCrosses(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	ids := names(rand.New(rand.NewPCG(seed, 1)), 1000)
	shapes := []string{"bms/ota/status/%s", "bms/ota/command/%s", "bms/ota/status/%s/#", "bms/ota/%s", "bms/ota/+/%s", "$share/g/bms/ota/command/%s"}
	topics := make([]string, 0, len(ids)*len(shapes))
	for _, id := range ids {
		for _, shape := range shapes {
			topics = append(topics, fmt.Sprintf(shape, id))
		}
	}
	r := rights{}
	decisions, publishes, reads := 0, 0, 0
	for _, id := range ids {
		who := dev(id)
		own, command := "bms/ota/status/"+id, "bms/ota/command/"+id
		for _, topic := range topics {
			decisions += 2
			if r.publish(who, topic) {
				publishes++
				if topic != own {
					t.Fatalf("%s may publish %s", id, topic)
				}
			}
			if r.read(who, topic) {
				reads++
				if topic != command && topic != "bms/ota/command" {
					t.Fatalf("%s may read %s", id, topic)
				}
			}
		}
	}
	// bms/ota/command comes up once for each device, from the one that is called command.
	if decisions != 12_000_000 || publishes != len(ids) || reads != 2*len(ids) {
		t.Errorf("%d decisions: %d publishes and %d reads allowed, want %d and %d", decisions, publishes, reads, len(ids), 2*len(ids))
	}
}

// FuzzRights holds rights against the oracle for any name, topic and prefix. What an operator may subscribe to must meet no
// topic outside the prefix, nor one that the broker keeps for itself.
func FuzzRights(f *testing.F) {
	for _, topic := range []string{"bms/ota/command", "bms/ota/status/d1", "bms/ota/command/d1", "bms/ota/+/d1", "#", "$SYS/#", "$share/g/bms/ota/#", "bms/ota/status/d1\x00", "bms/ota//", "bms/ota/#"} {
		f.Add("d1", topic, "bms/ota/status/d2", "bms/ota")
		f.Add("d1", topic, "$SYS/broker/version", "bms/ota")
	}
	f.Add("d1", "site/7/status/d1", "site/77/status/d1", "site/7")
	f.Fuzz(func(t *testing.T, id, topic, other, prefix string) {
		if protocol.CheckDeviceID(id) != nil || protocol.CheckPrefix(prefix) != nil {
			return
		}
		r, o := rights{topics: protocol.Topics{Prefix: prefix}}, oracle{strings.Split(prefix, "/")}
		if got, want := r.publish(dev(id), topic), o.devicePublishes(id, topic); got != want {
			t.Errorf("device %q publishes %q below %q: %t", id, topic, prefix, got)
		}
		if got, want := r.read(dev(id), topic), o.deviceReads(id, topic); got != want {
			t.Errorf("device %q reads %q below %q: %t", id, topic, prefix, got)
		}
		filter := topic
		if rest, shared := strings.CutPrefix(topic, "$share/"); shared {
			_, filter, _ = strings.Cut(rest, "/")
		}
		if _, inside := o.below(other); r.read(op("o"), topic) && matches(filter, other) && !inside {
			t.Errorf("an operator below %q hears %q through %q", prefix, other, topic)
		}
		if levels, inside := o.below(topic); r.publish(op("o"), topic) && (!inside || levels[0] != "command" || strings.ContainsAny(topic, "+#")) {
			t.Errorf("an operator below %q publishes %q", prefix, topic)
		}
		for _, nobody := range []fleet.Identity{{}, {Name: id}, {Role: fleet.RoleDevice}, {Name: id, Role: fleet.RoleViewer}} {
			if r.publish(nobody, topic) || r.read(nobody, topic) {
				t.Errorf("%+v has a right to %q", nobody, topic)
			}
		}
	})
}
