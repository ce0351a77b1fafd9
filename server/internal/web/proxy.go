package web

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// maxHops is how many entries of X-Forwarded-For are looked at, from the last one on.
const maxHops = 16

// behind takes a request's address from X-Forwarded-For where the peer is one of proxies. Each of those adds at the end whom it
// heard, so the last entry that is none of them is the client as far as anybody vouches for it; what stands before it is the
// client's own word. From anybody else the header means nothing.
func behind(proxies []netip.Prefix, next http.Handler) http.Handler {
	if len(proxies) == 0 {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if client, ok := forwardedFor(proxies, r); ok {
			r.RemoteAddr = net.JoinHostPort(client.String(), "0")
		}
		next.ServeHTTP(w, r)
	})
}

// forwardedFor is false where the peer itself is the client.
func forwardedFor(proxies []netip.Prefix, r *http.Request) (client netip.Addr, ok bool) {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !among(proxies, peer.Addr()) {
		return client, false
	}
	entries := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for hops := 0; len(entries) > 0 && hops < maxHops; hops++ {
		last := entries[len(entries)-1]
		entries = entries[:len(entries)-1]
		addr, good := addressIn(last)
		if !good {
			break // a proxy that writes something else vouches for nobody
		}
		client, ok = addr, true
		if !among(proxies, addr) {
			break
		}
	}
	return client, ok
}

// addressIn reads one entry: an address, and some proxies add a port.
func addressIn(entry string) (netip.Addr, bool) {
	entry = strings.TrimSpace(entry)
	if a, err := netip.ParseAddrPort(entry); err == nil {
		return a.Addr().Unmap().WithZone(""), true
	}
	a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(entry, "["), "]"))
	return a.Unmap().WithZone(""), err == nil
}

func among(proxies []netip.Prefix, a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	for _, p := range proxies {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
