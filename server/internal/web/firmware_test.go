package web

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

func TestFirmwarePathsServeTheOfferAndItsBytes(t *testing.T) {
	f := newFake()
	image := testImage(1, 200_000)
	digest := f.add("bms", "1.0.0", image)
	other := testImage(2, 1000)
	f.add("charger", "7.0.0", other)
	f.point("charger", "beta", digestHex(other))
	srv := start(t, f)

	for _, c := range []struct {
		path, kind, cache, etag string
		body                    []byte // nil = a version file
		version                 string
	}{
		{"/firmware/firmware.bin?project=bms", "application/octet-stream", "no-cache", `"` + digest + `"`, image, ""},
		{"/firmware/" + digest + ".bin", "application/octet-stream", "public, max-age=31536000, immutable", `"` + digest + `"`, image, ""},
		{"/firmware/bms/stable/firmware.bin", "application/octet-stream", "no-cache", `"` + digest + `"`, image, ""},
		{"/firmware/bms/stable/" + digest + ".bin", "application/octet-stream", "public, max-age=31536000, immutable", `"` + digest + `"`, image, ""},
		{"/firmware/charger/beta/firmware.bin", "application/octet-stream", "no-cache", `"` + digestHex(other) + `"`, other, ""},
		{"/firmware/version", "application/json", "no-cache", "", nil, "1.0.0"},
		{"/firmware/version.json", "application/json", "no-cache", "", nil, "1.0.0"},
		{"/firmware/version.json?project=charger", "application/json", "no-cache", "", nil, "7.0.0"},
		{"/firmware/charger/beta/version.json", "application/json", "no-cache", "", nil, "7.0.0"},
		{"/firmware/charger/stable/version", "application/json", "no-cache", "", nil, "7.0.0"},
	} {
		resp, b := ask(t, "GET", srv.URL+c.path)
		if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != c.kind || resp.Header.Get("Cache-Control") != c.cache {
			t.Errorf("%s: %d, %v", c.path, resp.StatusCode, resp.Header)
		}
		if resp.Header.Get("X-Content-Type-Options") != "nosniff" || resp.Header.Get("Content-Security-Policy") != "default-src 'none'" {
			t.Errorf("%s: security headers are %v", c.path, resp.Header)
		}
		if c.etag != "" && resp.Header.Get("ETag") != c.etag {
			t.Errorf("%s: ETag %s, want %s", c.path, resp.Header.Get("ETag"), c.etag)
		}
		if c.body != nil && !bytes.Equal(b, c.body) {
			t.Errorf("%s: %d bytes that are not the image", c.path, len(b))
		}
		if c.body == nil {
			file, err := protocol.ParseVersionFile(b)
			if err != nil || file.Version != c.version {
				t.Errorf("%s: %+v, %v", c.path, file, err)
			}
		}
		head, hb := ask(t, "HEAD", srv.URL+c.path)
		if head.StatusCode != 200 || head.ContentLength != int64(len(b)) || len(hb) != 0 {
			t.Errorf("HEAD %s: %d, length %d, %d bytes", c.path, head.StatusCode, head.ContentLength, len(hb))
		}
	}
	if f.opened != f.closed || f.opened == 0 {
		t.Errorf("%d images opened, %d closed", f.opened, f.closed)
	}
}

func TestListingShowsWhatIsOffered(t *testing.T) {
	f := newFake()
	digest := f.add("bms<script>", "1.0.0", testImage(1, 10))
	gone := f.add("bms", "0.9.0", testImage(2, 10))
	if err := f.Withdraw(t.Context(), fleet.Identity{}, gone); err != nil {
		t.Fatal(err)
	}
	srv := start(t, f)
	for _, path := range []string{"/firmware/", "/firmware"} {
		resp, b := ask(t, "GET", srv.URL+path)
		if resp.StatusCode != 200 || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html") {
			t.Fatalf("%s: %d %v", path, resp.StatusCode, resp.Header)
		}
		if s := string(b); !strings.Contains(s, `href="/firmware/`+digest+`.bin"`) || strings.Contains(s, gone) || strings.Contains(s, "<script>") {
			t.Errorf("%s: %s", path, s)
		}
	}
	if _, b := ask(t, "GET", srv.URL+"/firmware/charger/stable/"); strings.Contains(string(b), digest) {
		t.Errorf("listing of another project shows the release: %s", b)
	}
}

func TestCallerNamesItselfByQueryOrLogin(t *testing.T) {
	f := newFake()
	f.add("bms", "1.0.0", testImage(1, 10))
	srv := start(t, f)
	for _, c := range []struct {
		path, auth string
		status     int
		want       fleet.Query
	}{
		{"/firmware/version", "", 200, fleet.Query{}},
		{"/firmware/version?device=bms-1&chip=esp32&project=bms", "", 200, fleet.Query{Device: "bms-1", Chip: "esp32", Project: "bms"}},
		{"/firmware/bms/stable/version?device=bms-1&project=charger", "", 200, fleet.Query{Device: "bms-1", Project: "bms", Channel: "stable"}},
		{"/firmware/firmware.bin", "bms-2", 200, fleet.Query{Device: "bms-2"}},
		{"/firmware/firmware.bin?device=bms-1", "bms-2", 200, fleet.Query{Device: "bms-1"}},
		{"/firmware/version?device=a%2Fb", "", 400, fleet.Query{}},
		{"/firmware/version?device=%23", "", 400, fleet.Query{}},
		{"/firmware/version?device=%zz", "", 400, fleet.Query{}},
		{"/firmware/version?project=" + strings.Repeat("x", 65), "", 400, fleet.Query{}},
		{"/firmware/" + strings.Repeat("x", 65) + "/stable/version", "", 404, fleet.Query{}},
	} {
		f.queries = nil
		var lines []string
		if c.auth != "" {
			r := httptest.NewRequest("GET", "/", nil)
			r.SetBasicAuth(c.auth, "anything")
			lines = append(lines, "Authorization: "+r.Header.Get("Authorization"))
		}
		resp, _ := ask(t, "GET", srv.URL+c.path, lines...)
		if resp.StatusCode != c.status {
			t.Errorf("%s: %d, want %d", c.path, resp.StatusCode, c.status)
		}
		if c.status == 200 && (len(f.queries) != 1 || f.queries[0] != c.want) {
			t.Errorf("%s: asked %+v, want once %+v", c.path, f.queries, c.want)
		}
		if c.status != 200 && len(f.queries) != 0 {
			t.Errorf("%s: asked %+v", c.path, f.queries)
		}
	}
}

// raw sends text to the server as it stands and returns the answer, header and body apart.
func raw(t *testing.T, srv *httptest.Server, text string) (status int, header string, body []byte) {
	t.Helper()
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	head, body, ok := bytes.Cut(all, []byte("\r\n\r\n"))
	if !ok {
		t.Fatalf("no complete header in %q", all)
	}
	if _, err := fmt.Sscanf(string(head), "HTTP/1.1 %d", &status); err != nil {
		t.Fatalf("status line of %q: %v", head, err)
	}
	return status, string(head) + "\r\n\r\n", body
}

func TestOddPathsAreNotFoundAndNeverRedirected(t *testing.T) {
	f := newFake()
	digest := f.add("bms", "1.0.0", testImage(1, 10))
	srv := start(t, f)
	for _, path := range []string{
		"//", "/firmware/../firmware/version", "//firmware/version", "/firmware//version", "/firmware/./version", "/firmware/version/",
		"/firmware/%2e%2e/version", "/firmware/..%2fversion", "/firmware/%2e%2e%2f%2e%2e%2fetc/passwd", "/firmware/firmware.bin%00",
		"/firmware%2fversion", "/firmware/%76ersion", "/%66irmware/version", "/firmware/..\\version", "/firmware/version.json%20", "/firmware/Version", "/firmware/FIRMWARE.BIN", "/firmware/ota.bin",
		"/firmware/" + strings.ToUpper(digest) + ".bin", "/firmware/" + digest, "/firmware/" + digest + ".bin.bin", "/firmware/" + digest[1:] + ".bin",
		"/firmware/" + digest + "a.bin", "/firmware/" + strings.Repeat("0", 64) + ".bin", "/firmware/.bin", "/firmware/bms", "/firmware/bms/",
		"/firmware/bms/stable", "/firmware/bms/stable/x/version", "/firmware/bms/nope/version", "/firmware/nope/stable/firmware.bin",
		"/firmware/C:/stable/x", "/firmware/con.bin", "/firmware/%c3%a4/stable/version", "/firmware/x;/stable/version.json",
		"/Firmware/version", "/firmwares", "/api", "/api/v1", "/api/v1/", "/api/v2/server", "/api/v1//server", "/index.html", "/favicon.ico", "/healthz/",
	} {
		status, header, _ := raw(t, srv, "GET "+path+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		if status != 404 || strings.Contains(header, "Location:") {
			t.Errorf("%s: %d\n%s", path, status, header)
		}
	}
}

func TestFirmwareAnswersFitABufferOf512Bytes(t *testing.T) {
	f := newFake()
	digest := f.add("bms", "1.0.0", testImage(1, 1_500_000))
	srv := start(t, f)
	for _, c := range []struct {
		name, request string
		status        int
	}{
		{"image", "GET /firmware/" + digest + ".bin HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 200},
		{"channel image", "GET /firmware/bms/stable/firmware.bin HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 200},
		{"range", "GET /firmware/firmware.bin HTTP/1.1\r\nHost: x\r\nRange: bytes=1000000-\r\nIf-Range: \"" + digest + "\"\r\nConnection: close\r\n\r\n", 206},
		{"version", "GET /firmware/version.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 200},
		{"absent", "GET /firmware/nope HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404},
		{"beyond", "GET /firmware/firmware.bin HTTP/1.1\r\nHost: x\r\nRange: bytes=2000000-\r\nConnection: close\r\n\r\n", 416},
	} {
		status, header, _ := raw(t, srv, c.request)
		if status != c.status || len(header) >= 512 {
			t.Errorf("%s: %d, header of %d bytes\n%s", c.name, status, len(header), header)
		}
		t.Logf("%s: header of %d bytes", c.name, len(header))
	}
}

func TestRanges(t *testing.T) {
	f := newFake()
	image := testImage(1, 100_000)
	digest := f.add("bms", "1.0.0", image)
	n := len(image)
	srv := start(t, f)
	for _, c := range []struct {
		name   string
		lines  []string
		status int
		from   int // of the body in image; -1 = no part of it
		to     int
	}{
		{"first byte", []string{"Range: bytes=0-0"}, 206, 0, 1},
		{"rest", []string{"Range: bytes=65536-"}, 206, 65536, n},
		{"one past the end, as esp_https_ota asks", []string{fmt.Sprintf("Range: bytes=65536-%d", n)}, 206, 65536, n},
		{"far past the end", []string{"Range: bytes=5-9223372036854775807"}, 206, 5, n},
		{"last bytes", []string{"Range: bytes=-5"}, 206, n - 5, n},
		{"more last bytes than there are", []string{"Range: bytes=-500000"}, 206, 0, n},
		{"last zero bytes", []string{"Range: bytes=-0"}, 416, -1, 0},
		{"last zero bytes, long", []string{"Range: bytes=-0000"}, 416, -1, 0},
		{"from the end on", []string{fmt.Sprintf("Range: bytes=%d-", n)}, 416, -1, 0},
		{"reversed", []string{"Range: bytes=9-5"}, 416, -1, 0},
		{"overflow", []string{"Range: bytes=99999999999999999999-"}, 416, -1, 0},
		{"negative", []string{"Range: bytes=--5"}, 416, -1, 0},
		{"no numbers", []string{"Range: bytes=x-y"}, 416, -1, 0},
		{"two ranges", []string{"Range: bytes=0-0,2-2"}, 200, 0, n},
		{"two ranges that overlap", []string{"Range: bytes=0-,0-"}, 200, 0, n},
		{"a comma", []string{"Range: bytes=0-0,"}, 200, 0, n},
		{"two header lines", []string{"Range: bytes=0-0", "Range: bytes=2-2"}, 200, 0, n},
		{"If-Range holds", []string{"Range: bytes=10-19", `If-Range: "` + digest + `"`}, 206, 10, 20},
		{"If-Range of another image", []string{"Range: bytes=10-19", `If-Range: "` + strings.Repeat("0", 64) + `"`}, 200, 0, n},
		{"If-Range is weak", []string{"Range: bytes=10-19", `If-Range: W/"` + digest + `"`}, 200, 0, n},
		{"If-Range and last zero bytes", []string{"Range: bytes=-0", `If-Range: "` + digest + `"`}, 416, -1, 0},
		{"If-None-Match", []string{`If-None-Match: "` + digest + `"`}, 304, -1, 0},
		{"If-Match of another image", []string{`If-Match: "x"`}, 412, -1, 0},
	} {
		resp, b := ask(t, "GET", srv.URL+"/firmware/"+digest+".bin", c.lines...)
		if resp.StatusCode != c.status {
			t.Errorf("%s: %d, want %d", c.name, resp.StatusCode, c.status)
			continue
		}
		if c.from >= 0 && !bytes.Equal(b, image[c.from:c.to]) {
			t.Errorf("%s: %d bytes that are not %d to %d", c.name, len(b), c.from, c.to)
		}
		if want := fmt.Sprintf("bytes %d-%d/%d", c.from, c.to-1, n); c.status == 206 && resp.Header.Get("Content-Range") != want {
			t.Errorf("%s: Content-Range %q, want %q", c.name, resp.Header.Get("Content-Range"), want)
		}
		if c.status == 416 && len(b) > 100 {
			t.Errorf("%s: %d bytes of refusal", c.name, len(b))
		}
	}
	resp, _ := ask(t, "HEAD", srv.URL+"/firmware/"+digest+".bin", "Range: bytes=5-9")
	if resp.StatusCode != 200 || resp.ContentLength != int64(n) {
		t.Errorf("HEAD with a range: %d, length %d", resp.StatusCode, resp.ContentLength)
	}
}

// A request whose header fits the limit must not make an answer above 1.1 times the file: http.ServeContent alone
// answers each of thousands of ranges.
func TestManyRangesDoNotAmplify(t *testing.T) {
	image := testImage(1, 20_000)
	f := newFake()
	digest := f.add("bms", "1.0.0", image)
	attack := "bytes=0-0" + strings.Repeat(",0-0", (maxHeader-400)/4)
	request := "GET /firmware/" + digest + ".bin HTTP/1.1\r\nHost: x\r\nRange: " + attack + "\r\nConnection: close\r\n\r\n"

	srv := start(t, f)
	status, _, body := raw(t, srv, request)
	if limit := len(image) + len(image)/10; status != 200 || len(body) > limit {
		t.Errorf("%d with %d bytes, the limit is %d", status, len(body), limit)
	}

	// The control: without the guard this request is an attack.
	naked := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(image))
	}))
	defer naked.Close()
	if _, _, body := raw(t, naked, request); len(body) < 2*len(image) {
		t.Errorf("the unguarded answer is %d bytes: this request proves nothing", len(body))
	}
	if status, _, _ := raw(t, srv, "GET /firmware/version HTTP/1.1\r\nHost: x\r\nRange: bytes=0-0"+strings.Repeat(",0-0", maxHeader)+"\r\n\r\n"); status != 431 {
		t.Errorf("a header of %d bytes got %d, want 431", 4*maxHeader, status)
	}
}

func TestVersionFileIsNotSentTwice(t *testing.T) {
	f := newFake()
	f.add("bms", "1.0.0", testImage(1, 10))
	srv := start(t, f)
	first, _ := ask(t, "GET", srv.URL+"/firmware/version.json")
	etag := first.Header.Get("ETag")
	if resp, b := ask(t, "GET", srv.URL+"/firmware/version.json", "If-None-Match: "+etag); resp.StatusCode != 304 || len(b) != 0 {
		t.Errorf("unchanged: %d with %d bytes", resp.StatusCode, len(b))
	}
	f.add("bms", "1.1.0", testImage(2, 10))
	resp, b := ask(t, "GET", srv.URL+"/firmware/version.json", "If-None-Match: "+etag)
	if file, err := protocol.ParseVersionFile(b); resp.StatusCode != 200 || err != nil || file.Version != "1.1.0" {
		t.Errorf("changed: %d, %+v, %v", resp.StatusCode, file, err)
	}
}

func TestOtherMethodsAreRefusedWithAllow(t *testing.T) {
	srv := start(t, newFake())
	for _, c := range []struct{ method, path, allow string }{
		{"POST", "/firmware/firmware.bin", "GET, HEAD"}, {"PUT", "/firmware/version.json", "GET, HEAD"}, {"DELETE", "/firmware/", "GET, HEAD"},
		{"OPTIONS", "/firmware/firmware.bin", "GET, HEAD"}, {"PROPFIND", "/firmware/", "GET, HEAD"}, {"POST", "/", "GET, HEAD"}, {"PUT", "/healthz", "GET, HEAD"},
		{"POST", "/readyz", "GET, HEAD"}, {"DELETE", "/api/v1/releases", "GET, POST"}, {"POST", "/api/v1/channels", "GET, PUT"},
		{"GET", "/api/v1/blobs/x", "PUT"}, {"GET", "/api/v1/devices/x/revoke", "POST"}, {"POST", "/api/v1/server", "GET"},
	} {
		resp, _ := ask(t, c.method, srv.URL+c.path, "Authorization: Bearer "+operatorToken)
		if resp.StatusCode != 405 || resp.Header.Get("Allow") != c.allow {
			t.Errorf("%s %s: %d, Allow %q", c.method, c.path, resp.StatusCode, resp.Header.Get("Allow"))
		}
	}
}

// Readers of firmware.bin get the old or the new image, never a mix, however often the channel moves meanwhile.
func TestPublishWhileFiftyReadersDownload(t *testing.T) {
	f := newFake()
	images := [][]byte{testImage(1, 300_000), testImage(2, 310_000), testImage(3, 300_000)}
	known := make(map[string][]byte)
	for i, image := range images {
		known[f.add("bms", fmt.Sprintf("1.%d.0", i), image)] = image
	}
	srv := start(t, f, func(c *Config) { c.CacheBytes = 700_000 }) // one image goes whenever another comes
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 50}}
	defer client.CloseIdleConnections()
	stop := make(chan struct{})
	var publisher, readers sync.WaitGroup
	publisher.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			f.mu.Lock()
			f.point("bms", "stable", digestHex(images[i%len(images)]))
			f.mu.Unlock()
		}
	})
	seen := make([]map[string]int, 50)
	for i := range 50 {
		seen[i] = make(map[string]int)
		readers.Go(func() {
			for range 10 {
				resp, err := client.Get(srv.URL + "/firmware/firmware.bin")
				if err != nil {
					t.Error(err)
					return
				}
				b, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				etag := strings.Trim(resp.Header.Get("ETag"), `"`)
				if err != nil || known[etag] == nil || digestHex(b) != etag {
					t.Errorf("%d bytes under ETag %s: %v", len(b), etag, err)
				}
				seen[i][etag]++
			}
		})
	}
	readers.Wait()
	close(stop)
	publisher.Wait()
	total := make(map[string]int)
	for _, m := range seen {
		for digest, n := range m {
			total[digest] += n
		}
	}
	if len(total) < 2 {
		t.Errorf("the channel never moved under a reader: %v", total)
	}
}

func TestFirmwareFaultsAreSaidWithoutDetail(t *testing.T) {
	f := newFake()
	f.add("bms", "1.0.0", testImage(1, 10))
	srv := start(t, f)
	for _, c := range []struct {
		fail   error
		status int
	}{
		{fmt.Errorf("several projects: %w", fleet.ErrInvalid), 400}, {fleet.ErrNotFound, 404},
		{fleet.ErrStorage, 503}, {fmt.Errorf("pointer in /secret"), 500},
	} {
		f.fail = c.fail
		resp, b := ask(t, "GET", srv.URL+"/firmware/version.json")
		if resp.StatusCode != c.status || resp.Header.Get("ETag") != "" || strings.Contains(string(b), "secret") {
			t.Errorf("%v: %d %v %s", c.fail, resp.StatusCode, resp.Header, b)
		}
	}
}

func FuzzPathsServeKnownNamesOnly(f *testing.F) {
	fake := newFake()
	digest := fake.add("bms", "1.0.0", testImage(1, 10))
	h := New(Config{Fleet: fake, Log: quiet()})
	for _, s := range []string{"/firmware/version", "/firmware/" + digest + ".bin", "/firmware/%2e%2e/x", "//firmware/", "/firmware/bms/stable/firmware.bin", "/api/v1/server"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, target string) {
		req, err := http.ReadRequest(bufio.NewReader(strings.NewReader("GET " + target + " HTTP/1.1\r\nHost: x\r\n\r\n")))
		if err != nil {
			return
		}
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, req)
		switch rec.Code {
		case 200, 400, 401, 404, 405:
		default:
			t.Errorf("%q: %d", target, rec.Code)
		}
		if rec.Header().Get("Location") != "" {
			t.Errorf("%q: redirected to %s", target, rec.Header().Get("Location"))
		}
	})
}
