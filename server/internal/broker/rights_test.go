package broker

import (
	"strings"
	"testing"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

func dev(name string) fleet.Identity { return fleet.Identity{Name: name, Role: fleet.RoleDevice} }
func op(name string) fleet.Identity  { return fleet.Identity{Name: name, Role: fleet.RoleOperator} }

// TestRightsOddTopics holds the cases in which a lazy comparison says yes.
func TestRightsOddTopics(t *testing.T) {
	plain, seed := rights{}, rights{seed: true}
	rows := []struct {
		r         rights
		id        fleet.Identity
		topic     string
		pub, read bool
	}{
		{plain, dev("d1"), "bms/ota/status/d1", true, false},
		{plain, dev("d1"), "bms/ota/command", false, true},
		{plain, dev("d1"), "bms/ota/command/d1", false, true},
		{plain, dev("d1"), "bms/ota/status", false, false},
		{seed, dev("d1"), "bms/ota/status", true, false},
		{seed, dev("d1"), "bms/ota/status/d2", false, false},
		{plain, dev("d1"), "bms/ota/status/d2", false, false},
		{plain, dev("d1"), "bms/ota/status/d11", false, false},
		{plain, dev("d11"), "bms/ota/status/d1", false, false},
		{plain, dev("d1"), "bms/ota/status/D1", false, false},
		{plain, dev("d1"), "BMS/ota/status/d1", false, false},
		{plain, dev("d1"), "bms/ota/status/d1/", false, false},
		{plain, dev("d1"), "bms/ota/status/d1/x", false, false},
		{plain, dev("d1"), "bms/ota/status//d1", false, false},
		{plain, dev("d1"), "/bms/ota/status/d1", false, false},
		{plain, dev("d1"), "bms/ota/status/d1\x00", false, false},
		{plain, dev("d1"), "bms/ota/status/d1 ", false, false},
		{plain, dev("d1"), "bms/ota/status/dé1", false, false},
		{plain, dev("d1"), "bms/ota/status/", false, false},
		{plain, dev("d1"), "bms/ota/Command", false, false},
		{plain, dev("d1"), "BMS/OTA/COMMAND", false, false},
		{plain, dev("d1"), "bms/ota/command/D1", false, false},
		{plain, dev("d1"), "bms/ota/command2", false, false},
		{plain, dev("d1"), "bms/ota/comman", false, false},
		{plain, dev("d1"), "bms/ota/command/", false, false},
		{plain, dev("d1"), "bms/ota/command/d2", false, false},
		{plain, dev("d1"), "bms/ota/command/+", false, false},
		{plain, dev("d1"), "bms/ota/command/#", false, false},
		{plain, dev("d1"), "bms/ota/+/d1", false, false},
		{plain, dev("d1"), "bms/ota/#", false, false},
		{plain, dev("d1"), "+/+/command/d1", false, false},
		{plain, dev("d1"), "#", false, false},
		{plain, dev("d1"), "+", false, false},
		{plain, dev("d1"), "", false, false},
		{plain, dev("d1"), "$SYS/#", false, false},
		{plain, dev("d1"), "$SYS/broker/version", false, false},
		{plain, dev("d1"), "$share/g/bms/ota/command", false, false},
		{plain, dev("d1"), "$share/g/bms/ota/command/d1", false, false},
		{plain, dev("command"), "bms/ota/command", false, true},
		{plain, dev(""), "bms/ota/status/", false, false},
		{plain, dev(""), "bms/ota/command/", false, false},
		{seed, dev(""), "bms/ota/status", false, false},
		{plain, fleet.Identity{Name: "d1"}, "bms/ota/status/d1", false, false},
		{plain, fleet.Identity{Name: "d1", Role: "root"}, "bms/ota/command", false, false},

		{plain, op("o"), "bms/ota/command", true, true},
		{plain, op("o"), "bms/ota/command/d1", true, true},
		{plain, op("o"), "bms/ota/command/d1/x", false, true},
		{plain, op("o"), "bms/ota/status/d1", false, true},
		{plain, op("o"), "bms/ota/status", false, true},
		{plain, op("o"), "bms/ota/status/#", false, true},
		{plain, op("o"), "bms/ota/#", false, true},
		{plain, op("o"), "bms/ota/+/d1", false, true},
		{plain, op("o"), "bms/ota/+/d1/", false, true},
		{plain, op("o"), "bms/ota/", false, false},
		{plain, op("o"), "bms/ota", false, false},
		{plain, op("o"), "bms/#", false, false},
		{plain, op("o"), "bms/+/status/d1", false, false},
		{plain, op("o"), "bms/otax/status", false, false},
		{plain, op("o"), "#", false, false},
		{plain, op("o"), "$SYS/broker/version", false, false},
		{plain, op("o"), "bms/ota/sta#", false, false},
		{plain, op("o"), "bms/ota/sta+us", false, false},
		{plain, op("o"), "bms/ota/#/x", false, false},
		{plain, op("o"), "bms/ota/st\x00", false, false},
		{plain, op("o"), "bms/ota/sté", false, false},
		{plain, op("o"), "$share/g/bms/ota/status/#", false, true},
		{plain, op("o"), "$SHARE/g/bms/ota/status/#", false, false},
		{plain, op("o"), "$share//bms/ota/status/#", false, false},
		{plain, op("o"), "$share/+/bms/ota/status/#", false, false},
		{plain, op("o"), "$share/g/#", false, false},
		{plain, op("o"), "$share/g/$share/g/bms/ota/#", false, false},
		{plain, op("o"), "$share/bms/ota/status", false, false},
		{plain, op("o"), "bms/ota/" + strings.Repeat("/", 64), false, false},
		{plain, op("o"), "bms/ota/" + strings.Repeat("x", 256), false, false},
		{plain, op(""), "bms/ota/command", false, false},

		{rights{topics: protocol.Topics{Prefix: "site/7"}}, dev("d1"), "site/7/status/d1", true, false},
		{rights{topics: protocol.Topics{Prefix: "site/7"}}, dev("d1"), "bms/ota/status/d1", false, false},
		{rights{topics: protocol.Topics{Prefix: "site/7"}}, op("o"), "site/7/#", false, true},
		{rights{topics: protocol.Topics{Prefix: "site/7"}}, op("o"), "site/77/#", false, false},
	}
	for _, row := range rows {
		if got := row.r.publish(row.id, row.topic); got != row.pub {
			t.Errorf("%s %q may publish %q: got %t", row.id.Role, row.id.Name, row.topic, got)
		}
		if got := row.r.read(row.id, row.topic); got != row.read {
			t.Errorf("%s %q may read %q: got %t", row.id.Role, row.id.Name, row.topic, got)
		}
	}
}
