package server

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestFiguresAreServedOnLoopbackWithoutALogin(t *testing.T) {
	c := testConfig(t)
	c.Metrics.Listen = "127.0.0.1:0"
	s, stop := run(t, c)
	publish(t, operatorClient(t, s), makeRelease(t, newKey(t), "1.0.0", 100<<10))
	hc := httpClient(t, s.CAPEM())
	resp, err := hc.Get(s.URL() + "/firmware/firmware.bin")
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != 100<<10 {
		t.Fatal(n, err)
	}
	resp.Body.Close()
	if resp, err = hc.Get(s.URL() + "/metrics"); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("on the web side without a token: %d", resp.StatusCode)
	}
	for path, want := range map[string]int{"/metrics": 200, "/": 404, "/api/v1/devices": 404, "/firmware/version": 404} {
		resp, err := http.Get("http://" + s.MetricsAddr() + path)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != want {
			t.Errorf("%s: %d, want %d (%v)", path, resp.StatusCode, want, err)
		}
		if want != 200 {
			continue
		}
		for _, line := range []string{`bmsota_downloads_total{result="complete"} 1`, `bmsota_http_requests_total{code="401",method="GET",route="/metrics"} 1`,
			`bmsota_http_requests_total{code="2xx",method="PUT",route="/api/v1/blobs/{sha256}"} 1`, "bmsota_mqtt_sessions 0", "bmsota_ready 1", "bmsota_certificate_days_left ",
			`bmsota_devices{state="all"} 0`, `bmsota_build_info{version="1.2.3"} 1`} {
			if !strings.Contains(string(b), "\n"+line) {
				t.Errorf("no %s in\n%s", line, b)
			}
		}
	}
	addr := s.MetricsAddr()
	stop()
	if _, err := http.Get("http://" + addr + "/metrics"); err == nil {
		t.Error("the figures outlive the server")
	}
}

func TestFiguresAreNotShownToTheNetwork(t *testing.T) {
	for listen, ok := range map[string]bool{"off": true, "": true, "127.0.0.1:9464": true, "[::1]:9464": true, "localhost:9464": true, ":9464": false, "0.0.0.0:9464": false, "192.0.2.1:9464": false, "nonsense": false} {
		c := Default()
		c.Metrics.Listen = listen
		if err := c.Check(); (err == nil) != ok || err != nil && !strings.HasPrefix(err.Error(), "metrics.listen: ") {
			t.Errorf("%q: %v", listen, err)
		}
	}
}
