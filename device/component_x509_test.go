package device

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bmsota/esp/appimage"
	"bmsota/firmware/host_test/hosttest"
	"bmsota/protocol"
)

// TestComponentCertificateFactory holds the component in C to the same servers as the board in Go. On this machine its TLS is
// libcurl's with OpenSSL and not esp-tls with mbedTLS. So it shows what the component itself decides: that it asks for
// verification, of which names and by which certificates, and takes a refusal for what it is. What is too weak, and how a chain has
// to be built, is the library's decision; where OpenSSL decides otherwise the row says so, and the chip is not shown.
func TestComponentCertificateFactory(t *testing.T) {
	b := newComponentBench(t)
	t.Setenv("OTA_HOST_SPEEDUP", "1") // a machine under load must not be what a handshake fails on
	b.order(`{"action":"check"}`)
	small := func(o *appimage.BuildOptions) { o.Size = 16 << 10 }
	old, next := image(t, "1.0.0", small), image(t, "1.1.0", small)
	f := newFactory(t, time.Now())
	folder := t.TempDir()
	var wg sync.WaitGroup
	slots := make(chan struct{}, 32) // boards that wait at a time
	for i, c := range f.cases() {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			s := serve(t, release(t, next, nil), next)
			var heard atomic.Int64
			s.answer = func(*http.Request) *http.Response { heard.Add(1); return nil }
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Error(err)
				return
			}
			defer ln.Close()
			if c.plain {
				go func() {
					for conn, err := ln.Accept(); err == nil; conn, err = ln.Accept() {
						go notTLS(conn)
					}
				}()
			} else {
				web := webServer(s)
				defer web.Close()
				go web.Serve(tls.NewListener(ln, c.config()))
			}
			path := filepath.Join(folder, fmt.Sprint(i))
			if err := Create(path, Layout{Image: old, Table: componentTable(), Size: 1 << 20, MAC: [6]byte{2, 0, 0, 0, 1, byte(i)},
				OTAConfig:  fmt.Appendf(nil, `{"server_url":"https://%s:%d/firmware/firmware.bin","cert_pem":%q}`, c.hostOr(), ln.Addr().(*net.TCPAddr).Port, c.trusted(f)),
				MQTTConfig: fmt.Appendf(nil, `{"broker_host":"127.0.0.1","broker_port":%d,"qos":1}`, b.port)}); err != nil {
				t.Error(err)
				return
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			var last protocol.Status
			board, err := Open(Config{Path: path, Application: b.program, Seed: uint64(i), OnStatus: func(s protocol.Status) {
				last = s
				// What the first try met is said at once; that a check says it again as its end is the same line of code.
				if s.Phase == protocol.PhaseIdle && s.Reason != protocol.ReasonNone || strings.HasPrefix(s.Message, "will try again") {
					cancel()
				}
			}})
			if err != nil {
				t.Error(err)
				return
			}
			defer board.Close()
			if err := board.Run(ctx); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			got, want := fmt.Sprintf("%s:%s", last.Phase, last.Reason), "checking:tls"
			if last.Phase == protocol.PhaseChecking && strings.Contains(last.Message, "(mbedTLS -0x") { // a fault that is tls_failed
				got = "checking:tls"
			}
			if c.good == (c.differs == "") {
				want = "idle:update_available"
			}
			if c.differs != "" {
				t.Logf("%s: %s, %s", c.name, got, c.differs)
			}
			if got != want || (heard.Load() > 0) != strings.HasPrefix(want, "idle") {
				t.Errorf("%s: ends as %s after %d requests, %q; want %s", c.name, got, heard.Load(), last.Message, want)
			}
		})
	}
	wg.Wait()
}

// TestMbedTLSJudgesTheChainsAlike asks the library that the chip has, as far as it is a question of certificates: the version
// that Debian has of it, with the default of those that ESP-IDF has for what is strong enough. It is built to look at dates;
// ESP-IDF's is not, unless CONFIG_MBEDTLS_HAVE_TIME_DATE is set.
func TestMbedTLSJudgesTheChainsAlike(t *testing.T) {
	tool := hosttest.Build(t, "chain_tool", true)
	f := newFactory(t, time.Now())
	folder := t.TempDir()
	trusted, sent := filepath.Join(folder, "trusted.pem"), filepath.Join(folder, "chain.pem")
	for _, c := range f.cases() {
		if c.server != nil || c.plain || c.name == "the key is another" {
			continue // not a question of certificates
		}
		if err := errors.Join(os.WriteFile(trusted, []byte(c.trusted(f)), 0o600), os.WriteFile(sent, []byte(encoded(c.chain)), 0o600)); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(tool, trusted, sent, c.hostOr()).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", c.name, err, out)
		}
		got, want := strings.TrimSpace(string(out)), c.good
		if c.mbedTLS != "" {
			want = !want
			t.Logf("%s: %s, %s", c.name, got, c.mbedTLS)
		}
		if (got == "flags 0x0") != want {
			t.Errorf("%s: mbedTLS says %s, trusted is meant to be %v", c.name, got, want)
		}
	}
}
