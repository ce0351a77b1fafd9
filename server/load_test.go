package server

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"bmsota/protocol"
)

// The load of TestGoodDevicesBesideSlowOnes: BMSOTA_LOAD=long is that of the promise.
const (
	slowShort, slowLong = 1500, 10_000
	measured            = 10 * time.Second // before and during, in the long run
	memoryCap           = 384 << 20        // bytes of the whole server, what the good devices of this test need included
)

// slowClients is the whole program when the environment says so: slow clients need open files of their own.
func slowClients() {
	kind, addr, n := os.Getenv("BMSOTA_SLOW"), os.Getenv("BMSOTA_SLOW_ADDR"), 0
	if kind == "" {
		return
	}
	n, _ = strconv.Atoi(os.Getenv("BMSOTA_SLOW_COUNT"))
	var dialed sync.WaitGroup
	for i := range n {
		dialed.Add(1)
		go slowClient(addr, i, sync.OnceFunc(dialed.Done))
		if i%200 == 199 {
			time.Sleep(20 * time.Millisecond) // the kernel's queue of new connections is short
		}
	}
	dialed.Wait()
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin) // until the test ends
	os.Exit(0)
}

// slowClient connects, from one of a hundred addresses, and says nothing, or the first bytes of a TLS greeting one by one.
// When it is cut off it comes back ten seconds later.
func slowClient(addr string, i int, dialed func()) {
	from := &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+i%100))}
	for {
		conn, err := (&net.Dialer{LocalAddr: from, Timeout: 30 * time.Second}).Dial("tcp", addr)
		dialed()
		if err == nil {
			if i%2 == 0 {
				go func() {
					for _, b := range []byte{0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03} {
						if _, err := conn.Write([]byte{b}); err != nil {
							return
						}
						time.Sleep(time.Second)
					}
				}()
			}
			_, _ = conn.Read(make([]byte, 1))
			_ = conn.Close()
		}
		time.Sleep(10 * time.Second)
	}
}

// TestGoodDevicesBesideSlowOnes: while thousands of connections to HTTPS, and as many to MQTT, are silent or say a byte a
// second, everything a device needs for an update (version.json, a piece of the image, a status that is acknowledged; each
// over a new connection) works, and memory stays below the cap. In the long run it takes at most twice as long at the 99th
// percentile, or 100 ms; the short one does not judge times, which on a busy machine are those of others.
func TestGoodDevicesBesideSlowOnes(t *testing.T) {
	slow, span, long := slowShort, time.Second, os.Getenv("BMSOTA_LOAD") == "long"
	if long {
		slow, span = slowLong, measured
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	held := m.Sys // by tests before this one, and given back to nobody
	s, _ := run(t, testConfig(t))
	c := operatorClient(t, s)
	publish(t, c, makeRelease(t, newKey(t), "1.0.0", 256<<10))
	const devices, each = 4, 10 // one alone would soon wait for its own limit of statuses
	var logins []protocol.MQTTConfig
	for i := range devices * each {
		enrolled, err := c.Enroll(t.Context(), fmt.Sprintf("bms-%d", i))
		if err != nil {
			t.Fatal(err)
		}
		_, mc := deviceFiles(t, s, enrolled.DeviceID, enrolled.Token)
		logins = append(logins, mc)
	}
	measure := func() (web, mqtt []time.Duration) {
		var mu sync.Mutex
		var group sync.WaitGroup
		until := time.Now().Add(span)
		for i := range devices {
			group.Go(func() {
				for n := i; time.Now().Before(until); n = (n + devices) % len(logins) {
					began := time.Now()
					if err := fetchOnce(t.Context(), s); err != nil {
						t.Errorf("web: %v", err)
						return
					}
					middle := time.Now()
					if err := speakOnce(logins[n], fmt.Sprintf("bms-%d", n)); err != nil {
						t.Errorf("mqtt: %v", err)
						return
					}
					mu.Lock()
					web, mqtt = append(web, middle.Sub(began)), append(mqtt, time.Since(middle))
					mu.Unlock()
				}
			})
		}
		group.Wait()
		return web, mqtt
	}
	web, mqtt := measure()
	for kind, addr := range map[string]string{"https": s.HTTPSAddr(), "mqtt": s.MQTTTLSAddr()} {
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), "BMSOTA_SLOW="+kind, "BMSOTA_SLOW_ADDR="+addr, fmt.Sprintf("BMSOTA_SLOW_COUNT=%d", slow))
		stdin, err := child.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		stdout, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			stdin.Close()
			_ = child.Wait()
		})
		if line, err := bufio.NewReader(stdout).ReadString('\n'); strings.TrimSpace(line) != "ready" {
			t.Fatalf("slow clients say %q, %v", line, err)
		}
	}
	webSlow, mqttSlow := measure()
	runtime.ReadMemStats(&m)
	took := m.Sys - held
	for _, row := range []struct {
		name          string
		before, after []time.Duration
	}{{"web", web, webSlow}, {"mqtt", mqtt, mqttSlow}} {
		was, is := percentile99(row.before), percentile99(row.after)
		t.Logf("%s, %d slow connections: p99 %v of %d before, %v of %d beside them", row.name, slow, was, len(row.before), is, len(row.after))
		if long && is > max(2*was, 100*time.Millisecond) {
			t.Errorf("%s: p99 went from %v to %v", row.name, was, is)
		}
	}
	t.Logf("memory: %d MiB more from the system, heap %d MiB; %+v", took>>20, m.HeapInuse>>20, s.broker.(flagged).Stats())
	if took > memoryCap {
		t.Errorf("the server took %d MiB", took>>20)
	}
}

func percentile99(list []time.Duration) time.Duration {
	slices.Sort(list)
	if len(list) == 0 {
		return time.Hour
	}
	return list[len(list)*99/100]
}

// fetchOnce asks what there is and takes a piece of it, over one new connection.
func fetchOnce(ctx context.Context, s *Server) error {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.CAPEM())
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	defer tr.CloseIdleConnections()
	hc := &http.Client{Transport: tr, Timeout: 10 * time.Second}
	for _, path := range []string{"/firmware/version.json", "/firmware/firmware.bin"} {
		req, err := http.NewRequestWithContext(ctx, "GET", s.URL()+path, nil)
		if err != nil {
			return err
		}
		if strings.HasSuffix(path, ".bin") {
			req.Header.Set("Range", "bytes=0-65535")
		}
		resp, err := hc.Do(req)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode >= 300 {
			return fmt.Errorf("%s: %s, %w", path, resp.Status, err)
		}
	}
	return nil
}

// speakOnce logs in over TLS and has a status acknowledged.
func speakOnce(mc protocol.MQTTConfig, id string) error {
	client, err := mqttConnect(mc, id)
	if err != nil {
		return err
	}
	defer client.Disconnect(0)
	payload, err := protocol.Status{DeviceID: id, CurrentVersion: "1.0.0", Phase: protocol.PhaseIdle}.Append(nil)
	if err != nil {
		return err
	}
	token := client.Publish(protocol.Topics{}.Status(id), 1, true, payload)
	if !token.WaitTimeout(10 * time.Second) {
		return fmt.Errorf("no PUBACK within 10 s")
	}
	return token.Error()
}
