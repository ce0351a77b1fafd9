//go:build unix

package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// ports hands out TCP ports of loopback, each once. They lie below the range that systems give to outgoing connections
// (32768 on Linux): a port from there could be taken between now and the moment that a server listens, or while a server
// is down in the middle of a story.
var ports = struct {
	sync.Mutex
	next int
}{next: 20000 + os.Getpid()*37%10000}

func freePort() (int, error) {
	ports.Lock()
	defer ports.Unlock()
	for range 2000 {
		ports.next++
		if ports.next >= 32000 {
			ports.next = 20000
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", ports.next))
		if err != nil {
			continue
		}
		return ports.next, l.Close()
	}
	return 0, errors.New("no free port")
}

// cmdFreePorts sets variables to ports that nobody uses: freeports NAME…
func cmdFreePorts(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg, "freeports")
	for _, name := range args {
		port, err := freePort()
		ts.Check(err)
		ts.Setenv(name, strconv.Itoa(port))
	}
}

// cmdServer starts "bmsota serve" in the background and waits until it is healthy: server NAME [FLAGS…]
// Its ports are $HTTPS and $MQTT (plain MQTT on loopback), which it chooses where they are not set; its data folder is
// $WORK/data, and $BMSOTA_DATA says so to the operator's commands. A second start finds all of it again.
func cmdServer(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg, "server")
	if len(args) < 1 {
		ts.Fatalf("usage: server NAME [FLAGS…]")
	}
	for _, name := range []string{"HTTPS", "MQTT"} {
		if ts.Getenv(name) == "" {
			cmdFreePorts(ts, false, []string{name})
		}
	}
	data := filepath.Join(ts.Getenv("WORK"), "data")
	ts.Setenv("BMSOTA_DATA", data)
	ts.Setenv("CA", filepath.Join(data, "tls", "ca.pem"))
	ts.Setenv("URL", "https://127.0.0.1:"+ts.Getenv("HTTPS"))
	flags := []string{"bmsota", "serve", "--data", data, "--host", "127.0.0.1",
		"--https", "127.0.0.1:" + ts.Getenv("HTTPS"), "--mqtts", "off", "--mqtt", "127.0.0.1:" + ts.Getenv("MQTT")}
	if url := ts.Getenv("DATABASE"); url != "" {
		flags = append(flags, "--database", url)
	}
	ts.Check(begin(ts, args[0], append(flags, args[1:]...)...))
	ts.Check(healthy(ts, running(ts, args[0])))
}

func healthy(ts *testscript.TestScript, p *process) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		stdout, stderr, err := output(ts, ctx, []string{"bmsota", "health", "--timeout", "5s"})
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || !p.alive() {
			return fmt.Errorf("%s is not healthy: %w\n%s%s\n%s", p.name, err, stdout, stderr, tail(p.log))
		}
		time.Sleep(askEvery)
	}
}

// boardOptions are those of boardfiles and board.
type boardOptions struct {
	id, token, url, ca, key, broker, version, username, image, mirror, serverKey string
	skip, noRollback                                                             bool
	deadline, frames, timeout                                                    int
}

func (o *boardOptions) flags(name string) *flag.FlagSet {
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.StringVar(&o.id, "id", "", "device_id")
	f.StringVar(&o.token, "token", "", "password")
	f.StringVar(&o.username, "username", "", "username; default: the id")
	f.StringVar(&o.url, "url", "", "server_url; default: the server's")
	f.StringVar(&o.ca, "ca", "", "file for cert_pem; default: the server's CA; - for none")
	f.StringVar(&o.key, "key", "", "file for trusted_key_pem")
	f.StringVar(&o.mirror, "mirror", "", "mirror_url")
	f.StringVar(&o.serverKey, "server-key", "", "file for server_key_pem")
	f.StringVar(&o.broker, "broker", "", "port of the broker on loopback; default $MQTT")
	f.StringVar(&o.version, "current", "", "current_version")
	f.BoolVar(&o.skip, "skip", false, "skip_cert_verification")
	f.BoolVar(&o.noRollback, "no-rollback", false, "auto_rollback_enabled false")
	f.IntVar(&o.deadline, "deadline", 20, "health.deadline_s")
	f.IntVar(&o.frames, "frames", 1, "health.bms_frames")
	f.IntVar(&o.timeout, "timeout", 5000, "timeout_ms")
	f.StringVar(&o.image, "image", "", "image to create the flash with")
	return f
}

// cmdBoardFiles writes a device's two files as a person would, after the guide: boardfiles [OPTIONS] DIR
func cmdBoardFiles(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg, "boardfiles")
	var o boardOptions
	f := o.flags("boardfiles")
	ts.Check(f.Parse(args))
	if f.NArg() != 1 {
		ts.Fatalf("usage: boardfiles [OPTIONS] DIR")
	}
	ts.Check(o.write(ts, ts.MkAbs(f.Arg(0))))
}

func (o *boardOptions) write(ts *testscript.TestScript, dir string) error {
	read := func(path string) string {
		if path == "" || path == "-" {
			return ""
		}
		return ts.ReadFile(path)
	}
	if o.url == "" {
		o.url = ts.Getenv("URL") + "/firmware/firmware.bin"
	}
	if o.ca == "" && ts.Getenv("CA") != "" && !o.skip {
		o.ca = ts.Getenv("CA")
	}
	if o.broker == "" {
		o.broker = ts.Getenv("MQTT")
	}
	if o.username == "" {
		o.username = o.id
	}
	port, err := strconv.Atoi(o.broker)
	if err != nil {
		return fmt.Errorf("port of the broker: %w", err)
	}
	ota := map[string]any{"server_url": o.url, "cert_pem": read(o.ca), "skip_cert_verification": o.skip, "timeout_ms": o.timeout,
		"current_version": o.version, "auto_rollback_enabled": !o.noRollback, "device_id": o.id,
		"health": map[string]any{"deadline_s": o.deadline, "bms_frames": o.frames}}
	if o.key != "" {
		ota["trusted_key_pem"] = read(o.key)
	}
	if o.serverKey != "" {
		ota["server_key_pem"] = read(o.serverKey)
	}
	if o.mirror != "" {
		ota["mirror_url"] = o.mirror
	}
	mqtt := map[string]any{"broker_host": "127.0.0.1", "broker_port": port, "username": o.username, "password": o.token, "qos": 1}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, v := range map[string]any{"ota_config.txt": ota, "mqtt_config.txt": mqtt} {
		b, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// cmdBoard enrolls a device with the server of the story and makes its flash: board -image FILE [OPTIONS] NAME
// The flash is NAME.flash, the id bms-NAME, and the files are left in the folder NAME. The board is not switched on.
func cmdBoard(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg, "board")
	var o boardOptions
	f := o.flags("board")
	ts.Check(f.Parse(args))
	if f.NArg() != 1 || o.image == "" {
		ts.Fatalf("usage: board -image FILE [OPTIONS] NAME")
	}
	name := f.Arg(0)
	if o.id == "" {
		o.id = "bms-" + name
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	must := func(args ...string) string {
		stdout, stderr, err := output(ts, ctx, args)
		if err != nil {
			ts.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, stderr)
		}
		return strings.TrimSpace(stdout)
	}
	if o.token == "" && ts.Getenv("BMSOTA_DATA") != "" {
		o.token = must("bmsota", "devices", "enroll", o.id)
	}
	ts.Setenv("TOKEN", o.token)
	ts.Check(o.write(ts, ts.MkAbs(name)))
	must("bmsota", "device", "create", "--flash", name+".flash", "--image", o.image,
		"--ota-config", filepath.Join(name, "ota_config.txt"), "--mqtt-config", filepath.Join(name, "mqtt_config.txt"))
}

// cmdTestCA makes an authority and a certificate of it for 127.0.0.1 and localhost: testca DIR (ca.pem, server.pem, server.key)
func cmdTestCA(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg, "testca")
	if len(args) != 1 {
		ts.Fatalf("usage: testca DIR")
	}
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o755))
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	now := time.Now()
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, NotBefore: now.Add(-time.Hour),
		NotAfter: now.Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "localhost"}, NotBefore: now.Add(-time.Hour),
		NotAfter: now.Add(24 * time.Hour), DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	ts.Check(err)
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	ts.Check(err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	ts.Check(err)
	for name, block := range map[string]*pem.Block{
		"ca.pem":     {Type: "CERTIFICATE", Bytes: caDER},
		"server.pem": {Type: "CERTIFICATE", Bytes: leafDER},
		"server.key": {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		ts.Check(os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600))
	}
}

// cmdSmallDisk mounts a disk of its own that is soon full: smalldisk DIR SIZE. It needs to be root, or sudo without a
// password; a story cannot prove what happens on a full disk without one, so it fails where neither is there.
func cmdSmallDisk(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg, "smalldisk")
	if len(args) != 2 {
		ts.Fatalf("usage: smalldisk DIR SIZE")
	}
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o755))
	sudo := []string{}
	if os.Getuid() != 0 {
		sudo = []string{"sudo", "-n"}
	}
	run := func(args ...string) ([]byte, error) {
		args = append(append([]string{}, sudo...), args...)
		return exec.Command(args[0], args[1:]...).CombinedOutput()
	}
	options := fmt.Sprintf("size=%s,uid=%d,gid=%d,mode=0755", args[1], os.Getuid(), os.Getgid())
	if b, err := run("mount", "-t", "tmpfs", "-o", options, "tmpfs", dir); err != nil {
		ts.Fatalf("a small disk cannot be mounted (be root, or allow sudo): %v\n%s", err, b)
	}
	s := of(ts)
	s.undo = append(s.undo, func() {
		if b, err := run("umount", dir); err != nil {
			ts.Logf("umount %s: %v\n%s", dir, err, b)
		}
	})
}

// cmdNotBelow holds a folder against leftovers: notbelow DIR PATTERN… fails when a file below DIR has such a name.
func cmdNotBelow(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg, "notbelow")
	if len(args) < 2 {
		ts.Fatalf("usage: notbelow DIR PATTERN…")
	}
	ts.Check(filepath.WalkDir(ts.MkAbs(args[0]), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		for _, pattern := range args[1:] {
			if match, err := filepath.Match(pattern, d.Name()); err != nil || match {
				return errors.Join(err, fmt.Errorf("%s is left", path))
			}
		}
		return nil
	}))
}
