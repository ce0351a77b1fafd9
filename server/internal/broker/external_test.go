package broker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

// mosquitto is a real broker on loopback, with logins and rights, that can be stopped and started again.
type mosquitto struct {
	t    *testing.T
	dir  string
	addr string
	cmd  *exec.Cmd
}

func newMosquitto(t *testing.T) *mosquitto {
	t.Helper()
	const program = "/usr/sbin/mosquitto"
	if _, err := os.Stat(program); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("mosquitto is not installed; CI must test the external broker (apt-get install mosquitto)")
		}
		t.Skip("NOT TESTED: the external broker, because " + program + " is not installed (apt-get install mosquitto)")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := &mosquitto{t: t, dir: t.TempDir(), addr: ln.Addr().String()}
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	host, port, _ := net.SplitHostPort(m.addr)
	m.file("passwords", "server:server-secret\nd1:d1-secret\nolga:olga-secret\nblind:blind-secret\n")
	if out, err := exec.Command("mosquitto_passwd", "-U", filepath.Join(m.dir, "passwords")).CombinedOutput(); err != nil {
		t.Fatalf("mosquitto_passwd: %v: %s", err, out)
	}
	m.file("rights", "user server\ntopic readwrite bms/ota/#\nuser olga\ntopic readwrite bms/ota/#\nuser d1\ntopic read bms/ota/command\ntopic read bms/ota/command/d1\ntopic write bms/ota/status/d1\n")
	m.file("conf", fmt.Sprintf("listener %s %s\nallow_anonymous false\npassword_file %s/passwords\nacl_file %s/rights\n", port, host, m.dir, m.dir)+
		fmt.Sprintf("persistence true\npersistence_location %s/\nlog_type none\nuser root\n", m.dir))
	m.start()
	t.Cleanup(m.stop)
	return m
}

func (m *mosquitto) file(name, content string) {
	if err := os.WriteFile(filepath.Join(m.dir, name), []byte(content), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

func (m *mosquitto) start() {
	m.t.Helper()
	m.cmd = exec.Command("/usr/sbin/mosquitto", "-c", filepath.Join(m.dir, "conf"))
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	until(m.t, "mosquitto listens", func() bool {
		c, err := net.Dial("tcp", m.addr)
		if err != nil {
			return false
		}
		_ = c.Close()
		return true
	})
}

func (m *mosquitto) stop() {
	if m.cmd == nil {
		return
	}
	_ = m.cmd.Process.Signal(os.Interrupt)
	_ = m.cmd.Wait()
	m.cmd = nil
}

// until polls what another process brings about.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("did not happen: %s", what)
		}
	}
}

// dial logs in as somebody else.
func (m *mosquitto) dial(name string, got func(paho.Message)) paho.Client {
	m.t.Helper()
	o := paho.NewClientOptions().AddBroker("tcp://" + m.addr).SetClientID("test-" + name).SetUsername(name).
		SetPassword(name + "-secret").SetAutoReconnect(false)
	if got != nil {
		o.SetDefaultPublishHandler(func(_ paho.Client, msg paho.Message) { got(msg) })
	}
	c := paho.NewClient(o)
	if t := c.Connect(); !t.WaitTimeout(10*time.Second) || t.Error() != nil {
		m.t.Fatalf("%s: %v", name, t.Error())
	}
	m.t.Cleanup(func() { c.Disconnect(50) })
	return c
}

func done(t *testing.T, token paho.Token) {
	t.Helper()
	if !token.WaitTimeout(10*time.Second) || token.Error() != nil {
		t.Fatalf("mqtt: %v", token.Error())
	}
}

// run starts x and returns what ends it.
func run(t *testing.T, x *External) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- x.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func external(t *testing.T, m *mosquitto, f Handler, user string) *External {
	t.Helper()
	x, err := NewExternal(ExternalConfig{Handler: f, URL: "tcp://" + m.addr, Username: user, Password: user + "-secret", Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// TestExternalBroker: statuses in, commands out and in, own commands not taken for others', storage faults outlived.
func TestExternalBroker(t *testing.T) {
	m := newMosquitto(t)
	f := newFleet()
	var faults atomic.Int32
	faults.Store(1)
	f.onFold = func(string, []byte) error {
		if faults.Add(-1) >= 0 {
			return fmt.Errorf("fold: %w", fleet.ErrStorage)
		}
		return nil
	}
	x := external(t, m, f, "server")
	if err := x.Send(t.Context(), "d1", protocol.Command{Action: protocol.ActionCheck}); !errors.Is(err, ErrClosed) {
		t.Errorf("send before run: %v", err)
	}
	run(t, x)
	until(t, "connected", x.Connected)

	got := make(chan string, 16)
	d := m.dial("d1", func(msg paho.Message) { got <- string(msg.Payload()) })
	done(t, d.Publish("bms/ota/status/d1", 1, true, status(protocol.PhaseIdle)))
	f.until(t, "fold d1 false "+status(protocol.PhaseIdle))
	done(t, d.Publish("bms/ota/status/d1", 1, true, "no status"))
	done(t, d.Publish("bms/ota/status/d1", 1, true, status(protocol.PhaseChecking)))
	f.until(t, "fold d1 false "+status(protocol.PhaseChecking))

	// A device that comes later gets the retained command.
	if err := x.Send(t.Context(), "d1", protocol.Command{Action: protocol.ActionUpdate, ID: "u1"}); err != nil {
		t.Fatal(err)
	}
	done(t, d.Subscribe("bms/ota/command/d1", 1, nil))
	if p := <-got; !strings.Contains(p, `"id":"u1"`) {
		t.Errorf("device got %s", p)
	}
	if err := x.Tell(t.Context(), "d1", protocol.Command{Action: protocol.ActionCheck, ID: "c1"}); err != nil {
		t.Fatal(err)
	}
	if p := <-got; !strings.Contains(p, `"id":"c1"`) {
		t.Errorf("device got %s", p)
	}
	if err := x.Clear(t.Context(), "d1"); err != nil {
		t.Fatal(err)
	}
	if p := <-got; p != "" {
		t.Errorf("clearing said %q", p)
	}
	if err := x.Drop(t.Context(), "d1"); err != nil {
		t.Error(err)
	}

	o := m.dial("olga", nil)
	done(t, o.Publish("bms/ota/command", 1, false, `{"action":"explode"}`))
	done(t, o.Publish("bms/ota/command", 1, false, `{"action":"check"}`))
	f.until(t, `order external broker "" false {"action":"check"}`)
	if n := f.count("order"); n != 1 {
		t.Errorf("%d orders: %q", n, f.seen())
	}
}

// TestExternalBrokerComesBack: statuses sent while the server is away, and after the broker was away, arrive once the
// connection stands again; what could not be stored before the end is delivered again.
func TestExternalBrokerComesBack(t *testing.T) {
	m := newMosquitto(t)
	f := newFleet()
	var broken atomic.Bool
	var tried sync.Once
	trying := make(chan struct{})
	f.onFold = func(string, []byte) error {
		if broken.Load() {
			tried.Do(func() { close(trying) })
			return fleet.ErrStorage
		}
		return nil
	}
	x := external(t, m, f, "server")
	stop := run(t, x)
	until(t, "connected", x.Connected)
	d := m.dial("d1", nil)
	broken.Store(true)
	done(t, d.Publish("bms/ota/status/d1", 1, false, status(protocol.PhaseTrial)))
	<-trying
	stop()
	done(t, d.Publish("bms/ota/status/d1", 1, false, status(protocol.PhaseConfirmed)))
	if f.count("fold") != 0 {
		t.Fatalf("told %q", f.seen())
	}
	broken.Store(false)
	x = external(t, m, f, "server")
	run(t, x)
	f.until(t, "fold d1 false "+status(protocol.PhaseTrial))
	f.until(t, "fold d1 false "+status(protocol.PhaseConfirmed))

	m.stop()
	until(t, "the loss is noticed", func() bool { return !x.Connected() })
	m.start()
	until(t, "connected again", x.Connected)
	d = m.dial("d1", nil)
	done(t, d.Publish("bms/ota/status/d1", 1, false, status(protocol.PhaseRefused)))
	f.until(t, "fold d1 false "+status(protocol.PhaseRefused))
	if err := x.Send(t.Context(), "d1", protocol.Command{Action: protocol.ActionCheck}); err != nil {
		t.Errorf("send: %v", err)
	}
	if n := f.count("order"); n != 0 {
		t.Errorf("%d own commands were taken for others'", n)
	}
}

// TestExternalBrokerThatIsNotThere: Run keeps trying and ends with its context; Send says so at once.
func TestExternalBrokerThatIsNotThere(t *testing.T) {
	x, err := NewExternal(ExternalConfig{Handler: newFleet(), URL: "tcp://127.0.0.1:1", Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, x)
	if err := x.Send(t.Context(), "d1", protocol.Command{Action: protocol.ActionCheck}); !errors.Is(err, ErrClosed) {
		t.Errorf("send: %v", err)
	}
	stop()
}

func TestExternalConfigurationsThatAreRefused(t *testing.T) {
	for name, cfg := range map[string]ExternalConfig{
		"no handler": {URL: "tcp://h:1883"}, "no address": {Handler: newFleet()}, "no scheme": {Handler: newFleet(), URL: "h:1883"},
		"web": {Handler: newFleet(), URL: "http://h"}, "prefix": {Handler: newFleet(), URL: "tcp://h:1883", Topics: protocol.Topics{Prefix: "/"}},
	} {
		if _, err := NewExternal(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestOwnCommandsAreKnownForAWhile and the memory for it is bounded.
func TestOwnCommandsAreKnownForAWhile(t *testing.T) {
	x := &External{echoes: map[[32]byte]time.Time{}}
	now := time.Unix(1, 0)
	for i := range maxEchoes + 10 {
		x.remember("t", fmt.Append(nil, i), now)
	}
	if len(x.echoes) != maxEchoes || len(x.queue) != maxEchoes || x.own("t", []byte("9")) || !x.own("t", []byte("10")) || x.own("u", []byte("10")) {
		t.Errorf("%d kept", len(x.echoes))
	}
	x.remember("t", []byte("10"), now.Add(echoMemory))
	x.remember("t", []byte("new"), now.Add(echoMemory+time.Second))
	if len(x.echoes) != 2 || !x.own("t", []byte("10")) || x.own("t", []byte("11")) {
		t.Errorf("%d kept", len(x.echoes))
	}
}
