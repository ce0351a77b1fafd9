package provision_test

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"bmsota/protocol"
	"bmsota/provision"
)

func TestListOfDevices(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []provision.Device
	}{
		{"ids alone", "device\nbms-1\nbms-2\n", []provision.Device{{ID: "bms-1"}, {ID: "bms-2"}}},
		{"as spreadsheets write it", "\xef\xbb\xbfdevice,mac\r\nbms-1, 24-6F-28-A1-B2-C3\r\n\r\n", []provision.Device{{ID: "bms-1", MAC: "24:6f:28:a1:b2:c3"}}},
		{"the id of the MAC", "mac,device\n24:6f:28:a1:b2:c3,\n", []provision.Device{{ID: "bms-a1b2c3", MAC: "24:6f:28:a1:b2:c3"}}},
		{"other columns", "site,device,rack\n\"Oslo, north\",bms-1, 4\n", []provision.Device{{ID: "bms-1", Others: []provision.Column{{"site", "Oslo, north"}, {"rack", "4"}}}}},
		{"no MAC twice is none twice", "device,mac\na,\nb,\n", []provision.Device{{ID: "a"}, {ID: "b"}}},
	} {
		got, err := provision.ParseList([]byte(c.text))
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, %v, want %+v", c.name, got, err, c.want)
		}
	}
}

func TestAListWithOneFaultIsNoList(t *testing.T) {
	for _, c := range []struct{ name, text, says string }{
		{"nothing", "", "the list is empty"},
		{"a header alone", "device\n", "names no device"},
		{"no header", "bms-1\nbms-2\n", "no column device in the first line (bms-1)"},
		{"another separator", "device;mac\nbms-1;\n", "no column device in the first line (device;mac)"},
		{"a column twice", "device,x,x\n", `"x" is there twice`},
		{"a column without a name", "device,,x\n", "column 2"},
		{"a wildcard", "device\nbms-1\nbms/+\n", "line 3: device id"},
		{"a way out", "device\n../../etc\n", "line 2: device id"},
		{"no id at all", "device,mac\n,\n", "line 2: device id must be 1 to 64"},
		{"an id twice", "device\nbms-1\nbms-2\nbms-1\n", "line 4: bms-1 is in line 2 already"},
		{"in other letters", "device\nBMS-1\nbms-1\n", "line 3: bms-1 is in line 2 already"},
		{"a MAC twice", "device,mac\na,24:6f:28:a1:b2:c3\nb,246f.28a1.b2c3\n", "line 3: 24:6f:28:a1:b2:c3 is in line 2 already"},
		{"a MAC that is none", "device,mac\na,24:6f:28\n", `line 2: "24:6f:28" is not a MAC address`},
		{"the MAC of eight bytes", "device,mac\na,02:00:5e:10:00:00:00:01\n", "is not a MAC address"},
		{"a row too short", "device,mac\na\n", "line 2 has another number of columns"},
		{"quotes", "device\n\"a\nb\n", "line"},
		{"many faults", "device\n" + strings.Repeat("+\n", 12), "and 7 more"},
		{"too many", "device\n" + many(provision.MaxDevices+1), "more than 100000 devices"},
		{"too long", strings.Repeat(" ", provision.MaxList+1), "at most"},
	} {
		got, err := provision.ParseList([]byte(c.text))
		if got != nil || err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %d devices, %v, want %q", c.name, len(got), err, c.says)
		}
	}
}

func many(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "d%d\n", i)
	}
	return b.String()
}

// FuzzList: whatever the list, what is taken names each device once, in a form that can be a folder.
func FuzzList(f *testing.F) {
	for _, s := range []string{"device\na\n", "device,mac\n,24:6f:28:a1:b2:c3\n", "x,device\n\"1\n2\",b\n", "device\n../a\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		devices, err := provision.ParseList(b)
		if err != nil {
			return
		}
		seen := make(map[string]bool)
		for _, d := range devices {
			if err := protocol.CheckDeviceID(d.ID); err != nil || seen[d.ID] {
				t.Errorf("%q: %v, twice %v", d.ID, err, seen[d.ID])
			}
			seen[d.ID] = true
		}
	})
}
