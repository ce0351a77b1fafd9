package bench

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"bmsota/api"
	"bmsota/deploy"
	"bmsota/esp/appimage"
	"bmsota/manifest"
)

// Server is our own binary's serve with a fresh data folder, and what an operator knows of it.
type Server struct {
	*Process
	Access api.Access
	Client *api.Client
	CAPEM  []byte
	Data   string // folder
	Key    *ecdsa.PrivateKey

	b                  *Bench
	config             string // file
	mqttTLS, mqttPlain string // host:port
}

// What the releases of a run are called.
const (
	project = "bench"
	// ImageSize is 1.25 MB: what a monitor's firmware with Wi-Fi, TLS and MQTT comes to.
	ImageSize = 1_250_000 &^ 15
)

// serve starts a server. settings are keys of its configuration (docs/configuration.md), over those that keep it on loopback and
// on ports of the system's choice.
func (b *Bench) serve(ctx context.Context, settings map[string]any) (*Server, error) {
	data, err := os.MkdirTemp(b.Dir, "data-")
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	at := func(i int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[i])) }
	config := map[string]any{"data_dir": data, "host": "127.0.0.1"}
	for key, section := range map[string]map[string]any{
		"https": {"listen": at(0)}, "mqtt": {"tls_listen": at(1), "listen": at(2)},
	} {
		if more, ok := settings[key].(map[string]any); ok {
			for k, v := range more {
				section[k] = v
			}
		}
		config[key] = section
	}
	text, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(data, "server.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return nil, err
	}
	s := &Server{Data: data, b: b, config: file, mqttTLS: at(1), mqttPlain: at(2)}
	return s, s.start(ctx)
}

// start starts serve with the folder it has, and waits until it is ready.
func (s *Server) start(ctx context.Context) (err error) {
	if s.Process, err = s.b.start("bmsota", s.b.Binary, "serve", "--config", s.config); err != nil {
		return err
	}
	if err := s.ready(ctx, func() error { return s.open(ctx) }); err != nil {
		s.stop()
		return err
	}
	return nil
}

// again ends the server and starts it anew with the same folder: a process that holds nothing of what went before.
func (s *Server) again(ctx context.Context) error {
	s.stop()
	return s.start(ctx)
}

// open reads operator.json and asks whether the server is ready.
func (s *Server) open(ctx context.Context) (err error) {
	if s.Access, err = api.ReadAccess(filepath.Join(s.Data, api.AccessFile)); err != nil {
		return err
	}
	if s.CAPEM, err = os.ReadFile(filepath.Join(s.Data, "tls", "ca.pem")); err != nil {
		return err
	}
	if s.Client, err = api.NewClient(api.Options{BaseURL: s.Access.Server, Token: s.Access.Token, CAPEM: s.CAPEM}); err != nil {
		return err
	}
	return s.Client.Ready(ctx)
}

// Publish makes an image of size bytes, signs and publishes it. An empty channel is the usual one.
func (s *Server) Publish(ctx context.Context, version string, size int, channel string) (*deploy.Prepared, error) {
	if s.Key == nil {
		key, err := manifest.NewKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		s.Key = key
	}
	image, err := appimage.Build(appimage.BuildOptions{Chip: appimage.ESP32, Project: project, Version: version, Size: int64(size)})
	if err != nil {
		return nil, err
	}
	p, err := deploy.Prepare(deploy.Release{Image: image, Keys: []crypto.Signer{s.Key}})
	if err != nil {
		return nil, err
	}
	if _, err := deploy.Publish(ctx, s.Client, p, channel, nil); err != nil {
		return nil, fmt.Errorf("publish %s: %w", version, err)
	}
	return p, nil
}

// addr is where HTTPS is, host:port.
func (s *Server) addr() string { return strings.TrimPrefix(s.Access.Server, "https://") }

// certificate and key are the files of what it shows.
func (s *Server) certificate() string { return filepath.Join(s.Data, "tls", "server.pem") }
func (s *Server) key() string         { return filepath.Join(s.Data, "tls", "server.key") }

// freePorts are ports of loopback that nobody listens on. Whoever takes one in between is met at the start of the program.
func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}
