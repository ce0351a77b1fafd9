//go:build unix

package e2e

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// cmdKillPublishes publishes N releases, one after the other, and kills the server (process NAME, started by the story) at
// a random moment of each publish: killpublishes N NAME KEY. After each restart the server must offer the release of
// before or the new one, whole and under its digest, and publishing again must finish what was begun.
func cmdKillPublishes(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg, "killpublishes")
	if len(args) != 3 {
		ts.Fatalf("usage: killpublishes N NAME KEY")
	}
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	ts.Logf("seed %d: repeat with -seed=%d", newSeed(), newSeed())
	random := rand.New(rand.NewPCG(newSeed(), 13))
	ctx, cancel := context.WithTimeout(context.Background(), 10*patience)
	defer cancel()
	must := func(args ...string) {
		if _, stderr, err := output(ts, ctx, args); err != nil {
			ts.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, stderr)
		}
	}
	old := "1.0.0"
	must("bmsota", "image", "new", "--chip", "esp32", "--project", "bms", "--version", old, "-o", "first.bin")
	must("bmsota", "publish", "first.bin", "--key", args[2])
	took := 100 * time.Millisecond
	interrupted := 0
	for round := 1; round <= n; round++ {
		next := fmt.Sprintf("1.%d.0", round)
		must("bmsota", "image", "new", "--chip", "esp32", "--project", "bms", "--version", next, "--size", "1M", "-o", "next.bin")
		moment := time.Duration(random.Int64N(int64(took)))
		begun := time.Now()
		ts.Check(begin(ts, "publish", "bmsota", "publish", "next.bin", "--key", args[2]))
		publish, server := running(ts, "publish"), running(ts, args[1])
		select {
		case <-publish.done:
			took = time.Since(begun) // it was faster than the moment chosen
		case <-time.After(moment):
		}
		ts.Check(server.end(syscall.SIGKILL))
		<-publish.done
		done := publish.err == nil
		if !done {
			interrupted++
		}
		cmdServer(ts, false, args[1:2])
		offered, err := offer(ts)
		if err != nil {
			ts.Fatalf("round %d, killed after %v: %v", round, moment, err)
		}
		if offered != next && (done || offered != old) {
			ts.Fatalf("round %d, killed after %v: %s is offered, want %s (old %s, published: %v)", round, moment, offered, next, old, done)
		}
		// The operator tries again: the same bytes are no conflict.
		must("bmsota", "publish", "next.bin", "--key", args[2])
		if offered, err = offer(ts); err != nil || offered != next {
			ts.Fatalf("round %d: %s is offered after publishing %s again: %v", round, offered, next, err)
		}
		old = next
	}
	if interrupted == 0 {
		ts.Fatalf("no kill met a publish: %d rounds prove nothing", n)
	}
	ts.Logf("%d of %d publishes were interrupted", interrupted, n)
}

// offer reads version.json and the image behind it, as a device would, and holds one against the other.
func offer(ts *testscript.TestScript) (version string, err error) {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(ts.ReadFile(ts.Getenv("CA"))))
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: patience}
	get := func(name string) ([]byte, error) {
		resp, err := client.Get(ts.Getenv("URL") + "/firmware/" + name)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if resp.StatusCode != http.StatusOK {
			err = errors.Join(err, fmt.Errorf("%s: %s", name, resp.Status))
		}
		return b, err
	}
	b, err := get("version.json")
	if err != nil {
		return "", err
	}
	var file struct {
		Version, SHA256, URL string
		Size                 int
	}
	if err := json.Unmarshal(b, &file); err != nil {
		return "", err
	}
	for _, name := range []string{file.URL, "firmware.bin"} {
		image, err := get(name)
		if err != nil {
			return file.Version, err
		}
		sum := sha256.Sum256(image)
		if hex.EncodeToString(sum[:]) != file.SHA256 || len(image) != file.Size {
			return file.Version, fmt.Errorf("%s has %d bytes that are not those of version.json", name, len(image))
		}
	}
	return file.Version, nil
}
