package server

import (
	"cmp"
	"net"
	"net/url"
	"path/filepath"
	"strconv"

	"bmsota/api"
)

// URL is the server's address as devices should be told it, without a slash at the end.
func (s *Server) URL() string {
	if s.cfg.PublicURL != "" {
		return s.cfg.PublicURL
	}
	if s.https != nil {
		return "https://" + hostPort(s.host, portOf(s.https), 443)
	}
	return "http://" + hostPort(s.host, portOf(s.plain), 80)
}

// HTTPSAddr is where HTTPS is listened on, host:port; empty when it is off.
func (s *Server) HTTPSAddr() string { return addrOf(s.https) }

// MQTTTLSAddr is where the embedded broker listens for MQTT over TLS; empty when that is off or the broker is external.
func (s *Server) MQTTTLSAddr() string { return addrOf(s.mqttTLS) }

// MQTTAddr is where the embedded broker listens for plain MQTT; empty when that is off or the broker is external.
func (s *Server) MQTTAddr() string { return addrOf(s.mqttPlain) }

// MQTT is how devices reach the broker.
func (s *Server) MQTT() api.MQTT { return s.mqtt }

// CAPEM is what devices need to trust the web side; empty when public authorities do.
func (s *Server) CAPEM() []byte { return s.certs.caPEM }

// Access is what operator.json says.
func (s *Server) Access() api.Access { return s.access }

// AccessFile is the path of operator.json.
func (s *Server) AccessFile() string { return filepath.Join(s.cfg.DataDir, api.AccessFile) }

// FirstStart says whether the operator account was made by this Open.
func (s *Server) FirstStart() bool { return s.firstStart }

func hostPort(host string, port, usual int) string {
	if port == usual {
		if ip := net.ParseIP(host); ip != nil && ip.To4() == nil {
			return "[" + host + "]"
		}
		return host
	}
	return net.JoinHostPort(host, strconv.Itoa(port))
}

func hostOfURL(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return ""
	}
	return u.Hostname()
}

// boundHost is the address a listener is bound to, when it is a single one.
func boundHost(l net.Listener) string {
	if l == nil {
		return ""
	}
	if addr, ok := l.Addr().(*net.TCPAddr); ok && !addr.IP.IsUnspecified() {
		return addr.IP.String()
	}
	return ""
}

// ownHost is the name or address by which devices reach this machine, as far as it can tell.
func (s *Server) ownHost() string {
	if s.cfg.Host != "" {
		return s.cfg.Host
	}
	if hosts := s.cfg.TLS.ACME.Hosts; len(hosts) > 0 {
		return hosts[0]
	}
	if s.cfg.TLS.CertFile != "" {
		for _, name := range s.certs.current.Load().Leaf.DNSNames {
			if isHost(name) {
				return name
			}
		}
	}
	if bound := boundHost(cmp.Or(s.https, s.plain)); bound != "" {
		return bound
	}
	for _, name := range interfaceAddrs() {
		return name.String()
	}
	return "localhost"
}
