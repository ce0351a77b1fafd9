package broker

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestAnOpenBrokerIsFoundAtStart: a real Mosquitto with each fault that a person leaves in its configuration, and without;
// nothing of the test is folded, ordered or retained.
func TestAnOpenBrokerIsFoundAtStart(t *testing.T) {
	const (
		server  = "user server\ntopic readwrite bms/ota/#\n"
		strict  = server + "user d1\ntopic read bms/ota/command\ntopic read bms/ota/command/d1\ntopic write bms/ota/status/d1\n"
		pattern = server + "pattern read bms/ota/command/%u\npattern write bms/ota/status/%u\n"
		speak   = " can speak for any device"
		hear    = " can hear the commands of any device"
	)
	rows := []struct {
		name      string
		anonymous bool
		rights    string // empty = no file of rights: everything is allowed
		device    bool   // a login of a device is tried, too
		want      []string
	}{
		{"as it should be", false, strict, true, nil},
		{"patterns", false, pattern, true, nil},
		{"no rights, nothing tried as a device", false, "", false, nil},
		{"no rights", false, "", true, []string{"a device" + speak, "a device" + hear}},
		{"devices may write each other's status", false, server + "user d1\ntopic write bms/ota/status/#\n", true, []string{"a device" + speak}},
		{"devices may read each other's commands", false, server + "user d1\ntopic read bms/ota/command/#\n", true, []string{"a device" + hear}},
		{"strangers without rights", true, strict, true, []string{"anybody without a login is let in"}},
		{"strangers with every right", true, "topic readwrite bms/ota/#\n" + strict, true, []string{"anybody without a login is let in", "anybody without a login" + speak, "anybody without a login" + hear}},
		{"open", true, "", false, []string{"anybody without a login is let in", "anybody without a login" + speak, "anybody without a login" + hear}},
		{"no passwords", true, "", false, []string{"anybody without a login is let in", "anybody without a login" + speak, "anybody without a login" + hear,
			"anybody with a wrong password is let in", "anybody with a wrong password" + speak, "anybody with a wrong password" + hear}},
		{"the device's login does not work", false, strict, true, nil},
	}
	m := newMosquitto(t)
	host, port, _ := strings.Cut(m.addr, ":")
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			m.stop()
			conf := fmt.Sprintf("listener %s %s\nallow_anonymous %t\nlog_type none\nuser root\n", port, host, row.anonymous)
			if row.name != "no passwords" {
				conf += "password_file " + m.dir + "/passwords\n"
			}
			if row.rights != "" {
				m.file("rights", row.rights)
				conf += "acl_file " + m.dir + "/rights\n"
			}
			m.file("conf", conf)
			m.start()
			f := newFleet()
			cfg := ExternalConfig{Handler: f, URL: "tcp://" + m.addr, Username: "server", Password: "server-secret", Timeout: 5 * time.Second}
			if row.device {
				cfg.TestUsername, cfg.TestPassword = "d1", "d1-secret"
			}
			broken := strings.Contains(row.name, "does not work")
			if broken {
				cfg.TestPassword = "wrong"
			}
			x, err := NewExternal(cfg)
			if err != nil {
				t.Fatal(err)
			}
			x.hearing = time.Second
			if broken {
				if _, err := x.tryIntruders(t.Context()); err == nil {
					t.Error("a test that could not be made says nothing")
				}
				return
			}
			run(t, x)
			until(t, "connected", x.Connected)
			<-x.tested
			got := x.Doubts()
			slices.Sort(got)
			slices.Sort(row.want)
			if !slices.Equal(got, row.want) {
				t.Errorf("found %q, want %q", got, row.want)
			}
			if seen := f.seen(); len(seen) != 0 {
				t.Errorf("told %q", seen)
			}
		})
	}
}
