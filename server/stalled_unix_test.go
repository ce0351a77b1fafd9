//go:build darwin || freebsd || linux

package server

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"
)

// A download whose client reads nothing waits for the kernel before its next record is made, and not with the record in memory;
// when the client reads on it gets every byte.
func TestAStalledDownloadHoldsNoRecordOfTLS(t *testing.T) {
	s, _ := run(t, testConfig(t))
	r := makeRelease(t, newKey(t), "1.0.0", 4<<20)
	publish(t, operatorClient(t, s), r)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.CAPEM())
	conn, err := tls.Dial("tcp", s.HTTPSAddr(), &tls.Config{RootCAs: roots})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "GET /firmware/firmware.bin HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	stacks := make([]byte, 4<<20)
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		all := string(stacks[:runtime.Stack(stacks, true)])
		waits := false
		for stack := range strings.SplitSeq(all, "\n\n") {
			waits = waits || strings.Contains(stack, "web.socket.room") && strings.Contains(stack, "[IO wait")
		}
		if waits {
			break
		}
		if time.Since(began) > 40*time.Second { // before the server cuts who takes nothing
			t.Fatal("nobody waits for room:\n", all)
		}
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(b, r.image) {
		t.Errorf("%d bytes (%v), not the image of %d", len(b), err, len(r.image))
	}
}
