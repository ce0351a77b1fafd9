package notify

import (
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// An administrator says where webhooks go, and the server stands where he does not: what answers there without a login,
// because only the machine itself can reach it, must not be reached through a webhook. Private networks are allowed,
// because the receiver of many is a home automation in the same house. What counts is the address that a name has led
// to, at the moment of the connection, so a name that changes its mind changes nothing.

// metadata are the addresses at which clouds give a machine its credentials and that no range below holds.
var metadata = []netip.Addr{
	netip.MustParseAddr("100.100.100.200"), // Alibaba
	netip.MustParseAddr("192.0.0.192"),     // Oracle
	netip.MustParseAddr("168.63.129.16"),   // Azure
	netip.MustParseAddr("fd00:ec2::254"),   // AWS
	netip.MustParseAddr("fd20:ce::254"),    // Google
}

// nat64 leads to the IPv4 address in its last four bytes (RFC 6052).
var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// refusal says why webhooks do not go to an address; empty when they may.
func refusal(a netip.Addr, loopback bool) string {
	a = a.Unmap().WithZone("")
	if nat64.Contains(a) {
		b := a.As16()
		a = netip.AddrFrom4([4]byte(b[12:]))
	}
	switch {
	case a.IsLoopback() && !loopback:
		return "is this machine: allow it with webhooks.allow_loopback"
	case a.IsLoopback():
		return ""
	case a.IsUnspecified(), a.Is4() && a.As4()[0] == 0:
		return "is no address of a receiver"
	case a.IsLinkLocalUnicast():
		return "is link-local, where clouds keep the credentials of their machines"
	case a.IsMulticast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "is many machines"
	}
	for _, m := range metadata {
		if a == m {
			return "is where a cloud keeps the credentials of its machines"
		}
	}
	return ""
}

func dialer(loopback bool) *net.Dialer {
	return &net.Dialer{Timeout: Timeout, KeepAlive: 15 * time.Second, Control: func(_, address string, _ syscall.RawConn) error {
		to, err := netip.ParseAddrPort(address)
		if err != nil {
			return fmt.Errorf("address %q cannot be read", address)
		}
		if why := refusal(to.Addr(), loopback); why != "" {
			return fmt.Errorf("%s %s", to.Addr(), why)
		}
		return nil
	}}
}
