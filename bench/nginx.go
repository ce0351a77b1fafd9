package bench

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// nginxConfig is Debian's nginx.conf, with the server's own certificate and key (both sides sign with the same P-256),
// and where it says anything about cost (workers, sendfile, tcp_nopush, protocols), without
// its access log, which ours has not.
const nginxConfig = `daemon off;
worker_processes auto;
pid %[1]s/nginx.pid;
error_log stderr warn;
events { worker_connections 12000; }
worker_rlimit_nofile 20000;
http {
	sendfile on;
	tcp_nopush on;
	types_hash_max_size 2048;
	include /etc/nginx/mime.types;
	default_type application/octet-stream;
	access_log off;
	client_body_temp_path %[1]s; proxy_temp_path %[1]s; fastcgi_temp_path %[1]s; uwsgi_temp_path %[1]s; scgi_temp_path %[1]s;
	ssl_protocols TLSv1.2 TLSv1.3;
	ssl_prefer_server_ciphers on;
	server {
		listen %[2]s ssl;
		server_name localhost;
		ssl_certificate %[3]s;
		ssl_certificate_key %[4]s;
		root %[1]s/www;
	}
}
`

// findPeer looks for a peer's program on PATH and where Debian keeps servers, and notes what it found. version is what it is
// asked for its version with.
func (b *Bench) findPeer(ctx context.Context, name string, version ...string) (path string) {
	for _, at := range []string{name, filepath.Join("/usr/sbin", name), filepath.Join("/usr/local/sbin", name)} {
		path, err := exec.LookPath(at)
		if err != nil {
			continue
		}
		out, _ := exec.CommandContext(ctx, path, version...).CombinedOutput() // some end with an error after they have said it
		line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		b.named(Peer{Name: name, Version: line})
		return path
	}
	b.named(Peer{Name: name, Missing: true})
	b.Say("%s: %s is not on this machine: figures without a peer", b.suite, name)
	return ""
}

// startNginx is nil where there is no nginx. files are what it serves, by path.
func (b *Bench) startNginx(ctx context.Context, s *Server, files map[string][]byte) (*side, error) {
	program := b.findPeer(ctx, "nginx", "-v")
	if program == "" {
		return nil, nil
	}
	root, err := b.writeFiles("nginx", files)
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(1)
	if err != nil {
		return nil, err
	}
	dir := filepath.Dir(root)
	n := &side{addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[0])), files: true}
	config := filepath.Join(dir, "nginx.conf")
	text := fmt.Sprintf(nginxConfig, dir, n.addr, s.certificate(), s.key())
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	if n.Process, err = b.start("nginx", program, "-p", dir, "-c", config); err != nil {
		return nil, err
	}
	if err := n.listens(ctx, n.addr); err != nil {
		return nil, err
	}
	return n, nil
}

// writeFiles writes what a side has as files, and returns the folder.
func (b *Bench) writeFiles(side string, files map[string][]byte) (root string, err error) {
	root = filepath.Join(b.Dir, side, "www")
	for name, content := range files {
		path := filepath.Join(root, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return "", err
		}
	}
	return root, nil
}
