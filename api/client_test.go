package api

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestOptionsThatWouldLeakOrFailAreRefused(t *testing.T) {
	for _, c := range []struct {
		o    Options
		want string // empty = good
	}{
		{Options{BaseURL: "https://a.example:8443"}, ""},
		{Options{BaseURL: "https://a.example:8443/", Token: "t"}, ""},
		{Options{BaseURL: "http://127.0.0.1:8080", Token: "t"}, ""},
		{Options{BaseURL: "http://[::1]:8080", Token: "t"}, ""},
		{Options{BaseURL: "http://localhost", Token: "t"}, ""},
		{Options{BaseURL: "http://a.example"}, ""},
		{Options{BaseURL: "http://a.example", Token: "t"}, "in the clear"},
		{Options{BaseURL: "http://127.0.0.1.a.example", Token: "t"}, "in the clear"},
		{Options{BaseURL: ""}, "is not https://host:port"},
		{Options{BaseURL: "a.example:8443"}, "is not https://host:port"},
		{Options{BaseURL: "ftp://a.example"}, "is not https://host:port"},
		{Options{BaseURL: "https://u:secret@a.example"}, "holds more than"},
		{Options{BaseURL: "https://a.example?x"}, "holds more than"},
		{Options{BaseURL: "https://a.example", Token: "a\r\nb"}, "white space"},
		{Options{BaseURL: "https://a.example", CAPEM: []byte("none")}, "no certificate"},
	} {
		_, err := NewClient(c.o)
		if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "secret")) {
			t.Errorf("%+v: %v", c.o, err)
		}
	}
}

func answer(status int, kind, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", kind)
		w.Header().Set("Location", "https://elsewhere.example/")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

func TestAnswersThatAreNoSuccessAreTyped(t *testing.T) {
	for _, c := range []struct {
		name    string
		handler http.HandlerFunc
		status  int
		code    Code
		detail  string
	}{
		{"problem", answer(409, ProblemType, `{"status":409,"code":"conflict","detail":"exists"}`), 409, CodeConflict, "exists"},
		{"problem of a later version", answer(418, ProblemType+"; charset=utf-8", `{"status":418,"code":"teapot","new":1}`), 418, "teapot", ""},
		{"another server", answer(404, "text/html", `<h1>nginx</h1>`), 404, CodeUnexpectedAnswer, "not as a bmsota server"},
		{"a portal that says yes", answer(200, "text/html", `<h1>log in</h1>`), 200, CodeUnexpectedAnswer, "not as a bmsota server"},
		{"JSON that is cut off", answer(200, "application/json", `[{"sha`), 200, CodeUnexpectedAnswer, "not readable"},
		{"JSON of another kind", answer(200, "application/json", `{}`), 200, CodeUnexpectedAnswer, "not readable"},
		{"a redirect", answer(302, "text/html", ``), 302, CodeUnexpectedAnswer, "not as a bmsota server"},
		{"a problem without code", answer(500, ProblemType, `{}`), 500, CodeUnexpectedAnswer, "not as a bmsota server"},
	} {
		srv := httptest.NewServer(c.handler)
		client, err := NewClient(Options{BaseURL: srv.URL, Token: "t", HTTPClient: srv.Client()})
		if err != nil {
			t.Fatal(err)
		}
		_, err = client.Releases(t.Context())
		var e *Error
		if !errors.As(err, &e) || e.Status != c.status || e.Code != c.code || !strings.Contains(e.Detail, c.detail) || e.Error() == "" {
			t.Errorf("%s: %v", c.name, err)
		}
		srv.Close()
	}
}

// A tool's exit code hangs on the difference.
func TestFailuresBelowHTTPSayTheirKind(t *testing.T) {
	tlsServer := httptest.NewTLSServer(answer(200, "application/json", "[]"))
	defer tlsServer.Close()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: tlsServer.Certificate().Raw})
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	broken := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1000")
		_, _ = io.WriteString(w, "[")
		panic(http.ErrAbortHandler)
	}))
	defer broken.Close()
	silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer silent.Close()

	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	ended, end := context.WithCancel(t.Context())
	end()
	for _, c := range []struct {
		name string
		ctx  context.Context
		o    Options
		want error
	}{
		{"good", t.Context(), Options{BaseURL: tlsServer.URL, CAPEM: ca}, nil},
		{"unknown authority", t.Context(), Options{BaseURL: tlsServer.URL}, ErrUntrusted},
		{"another name", t.Context(), Options{BaseURL: strings.Replace(tlsServer.URL, "127.0.0.1", "localhost", 1), CAPEM: ca}, ErrUntrusted},
		{"nobody there", t.Context(), Options{BaseURL: "https://" + gone.Addr().String()}, ErrUnreachable},
		{"plain behind https", t.Context(), Options{BaseURL: strings.Replace(silent.URL, "http:", "https:", 1)}, ErrUnreachable},
		{"broken off", t.Context(), Options{BaseURL: broken.URL}, ErrUnreachable},
		{"no answer in time", short, Options{BaseURL: silent.URL}, ErrTimeout},
		{"given up", ended, Options{BaseURL: silent.URL}, context.Canceled},
	} {
		client, err := NewClient(c.o)
		if err != nil {
			t.Fatal(err)
		}
		_, err = client.Releases(c.ctx)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
		for _, other := range []error{ErrUnreachable, ErrTimeout, ErrUntrusted} {
			if other != c.want && errors.Is(err, other) {
				t.Errorf("%s is also: %v", c.name, other)
			}
		}
		client.http.CloseIdleConnections()
	}
}

// A server that accepts and never answers is given up without a deadline of the caller.
func TestServerThatNeverAnswersIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, err := NewClient(Options{BaseURL: "http://localhost"})
		if err != nil {
			t.Fatal(err)
		}
		transport := client.http.Transport.(*http.Transport)
		transport.Proxy = nil
		ours, theirs := net.Pipe()
		transport.DialContext = func(context.Context, string, string) (net.Conn, error) { return ours, nil }
		go func() { _, _ = io.Copy(io.Discard, theirs) }()
		start := time.Now()
		if _, err := client.Releases(t.Context()); !errors.Is(err, ErrTimeout) || time.Since(start) > 2*time.Minute {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		theirs.Close()
	})
}

func TestRefusedUploadSendsNoBytesAndSaysWhy(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer good" {
			w.Header().Set("Content-Type", ProblemType)
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprint(w, `{"status":401,"code":"unauthorized","detail":"no"}`)
			return
		}
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			t.Error(err)
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	defer srv.Close()
	const size = 5 << 20
	for _, token := range []string{"bad", "good"} {
		client, err := NewClient(Options{BaseURL: srv.URL, Token: token})
		if err != nil {
			t.Fatal(err)
		}
		var sent int64
		err = client.Upload(t.Context(), strings.Repeat("0", 64), size, bytes.NewReader(make([]byte, size)), func(done, total int64) { sent = done })
		var e *Error
		switch {
		case token == "bad" && (!errors.As(err, &e) || e.Code != CodeUnauthorized || sent != 0):
			t.Errorf("refused after %d bytes: %v", sent, err)
		case token == "good" && (err != nil || sent != size):
			t.Errorf("%d bytes sent: %v", sent, err)
		}
		client.http.CloseIdleConnections()
	}
}

// After Upload has returned, the caller's reader is the caller's again, whatever the transport still does.
func TestUploadLetsGoOfTheReader(t *testing.T) {
	body := &uploadBody{r: strings.NewReader("abc"), total: 3, progress: func(int64, int64) { t.Error("progress after the end") }}
	if err := body.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := body.Read(make([]byte, 3)); n != 0 || err == nil {
		t.Errorf("%d bytes read after the end, %v", n, err)
	}
}

func TestAccessFile(t *testing.T) {
	want := Access{Server: "https://localhost:8443", Token: "t", CAFile: "/ca.pem", MQTT: AccessMQTT{Host: "localhost", Port: 1883, Username: "operator", Password: "t", Prefix: "bms/ota"}}
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), AccessFile)
	if _, err := ReadAccess(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent: %v", err)
	}
	for _, c := range []struct {
		text string
		ok   bool
	}{{string(b), true}, {string(b) + "x", false}, {`{"server":5}`, false}, {``, false}, {strings.Repeat(" ", maxAccess+1), false}} {
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := ReadAccess(path)
		if (err == nil) != c.ok || c.ok && got != want {
			t.Errorf("%.40q: %+v, %v", c.text, got, err)
		}
	}
}

// The keys scripts read are there even in an empty row, and in this order.
func TestDeviceKeys(t *testing.T) {
	b, err := json.Marshal(Device{})
	const want = `{"device_id":"","current_version":"","available_version":"","phase":"","status":0,"progress_pct":0,"reason":"","online":false,"last_seen":null,`
	if err != nil || !strings.HasPrefix(string(b), want) {
		t.Errorf("%s, %v", b, err)
	}
}
