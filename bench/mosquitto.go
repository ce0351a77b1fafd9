package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// brokerSide is one of two brokers under the same load.
type brokerSide struct {
	*Process
	plain, secure string // host:port
	again         func(ctx context.Context) error
}

// mosquittoConfig asks of Mosquitto what our broker does by itself: a login by password, and rights by topic. user keeps it
// root where it is started by root, so that it can read a key that is nobody else's.
const mosquittoConfig = `user root
log_dest stderr
log_type error
allow_anonymous false
password_file %[1]s/passwords
acl_file %[1]s/rights
listener %[2]d 127.0.0.1
listener %[3]d 127.0.0.1
certfile %[4]s
keyfile %[5]s
`

// mosquittoRights are those of operators and of devices: their own topics.
const mosquittoRights = `user %[1]s
topic readwrite %[2]s/#
pattern write %[2]s/status/%%u
pattern read %[2]s/command/%%u
pattern read %[2]s/command
`

// startMosquitto is nil where there is no Mosquitto. It knows the devices of the server by the same names and passwords.
func (b *Bench) startMosquitto(ctx context.Context, s *Server, devices []login) (*brokerSide, error) {
	program, hash := b.findPeer(ctx, "mosquitto", "-h"), ""
	if program != "" {
		var err error
		if hash, err = exec.LookPath("mosquitto_passwd"); err != nil {
			return nil, errors.New("mosquitto is there, but mosquitto_passwd is not")
		}
	} else {
		return nil, nil
	}
	dir := filepath.Join(b.Dir, "mosquitto")
	if err := os.Mkdir(dir, 0o711); err != nil {
		return nil, err
	}
	ports, err := freePorts(2)
	if err != nil {
		return nil, err
	}
	m := s.Access.MQTT
	var passwords strings.Builder
	for _, l := range append([]login{{name: m.Username, password: m.Password}}, devices...) {
		fmt.Fprintf(&passwords, "%s:%s\n", l.name, l.password)
	}
	for name, content := range map[string]string{
		"passwords": passwords.String(),
		"rights":    fmt.Sprintf(mosquittoRights, m.Username, m.Prefix),
		"config": fmt.Sprintf(mosquittoConfig, dir, ports[0], ports[1],
			filepath.Join(s.Data, "tls", "server.pem"), filepath.Join(s.Data, "tls", "server.key")),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			return nil, err
		}
	}
	if out, err := exec.CommandContext(ctx, hash, "-U", filepath.Join(dir, "passwords")).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("mosquitto_passwd: %w: %s", err, out)
	}
	at := func(i int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[i])) }
	side := &brokerSide{plain: at(0), secure: at(1)}
	start := func() (err error) {
		if side.Process, err = b.start("mosquitto", program, "-c", filepath.Join(dir, "config")); err != nil {
			return err
		}
		return side.listens(ctx, side.secure)
	}
	side.again = func(context.Context) error {
		side.stop()
		return start()
	}
	return side, start()
}
