package notify

import (
	"net/netip"
	"testing"
)

func TestWebhooksDoNotReachWhatOnlyTheMachineCan(t *testing.T) {
	for address, want := range map[string]struct{ plain, loopback bool }{
		"192.168.1.20": {true, true}, "10.0.0.1": {true, true}, "172.16.3.4": {true, true}, "fd12:3456::1": {true, true}, "203.0.113.7": {true, true},
		"2001:db8::1": {true, true}, "100.64.0.1": {true, true}, "::ffff:192.168.1.20": {true, true}, "64:ff9b::c0a8:114": {true, true},
		"127.0.0.1": {false, true}, "127.9.9.9": {false, true}, "::1": {false, true}, "::ffff:127.0.0.1": {false, true}, "64:ff9b::7f00:1": {false, true},
		"169.254.169.254": {}, "169.254.170.2": {}, "::ffff:169.254.169.254": {}, "64:ff9b::a9fe:a9fe": {}, "fe80::1": {}, "fe80::1%eth0": {},
		"fd00:ec2::254": {}, "fd20:ce::254": {}, "100.100.100.200": {}, "168.63.129.16": {}, "192.0.0.192": {}, "0.0.0.0": {}, "0.1.2.3": {}, "::": {}, "224.0.0.1": {}, "ff02::1": {}, "255.255.255.255": {},
	} {
		a := netip.MustParseAddr(address)
		if got := refusal(a, false) == ""; got != want.plain {
			t.Errorf("%s is allowed: %v, want %v", address, got, want.plain)
		}
		if got := refusal(a, true) == ""; got != want.loopback {
			t.Errorf("%s is allowed with loopback: %v, want %v", address, got, want.loopback)
		}
	}
}
