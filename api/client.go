package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

// maxAnswer bounds an answer in bytes: a dry run of the largest fleet is about 10 MB.
const maxAnswer = 64 << 20

// Failures below HTTP. An error of Client wraps at most one of them.
var (
	// ErrUnreachable: no connection, or it broke before the answer was complete.
	ErrUnreachable = errors.New("server cannot be reached")
	// ErrTimeout: the server did not answer in time, or the caller's deadline passed.
	ErrTimeout = errors.New("server did not answer in time")
	// ErrUntrusted: the server's certificate is not one the client trusts for this name.
	ErrUntrusted = errors.New("server certificate is not trusted")
)

// Error is an answer of the server that is no success.
type Error struct {
	Status int    // HTTP status
	Code   Code   // for programs
	Detail string // for people
}

func (e *Error) Error() string {
	if e.Detail == "" {
		return fmt.Sprintf("server answered %d (%s)", e.Status, e.Code)
	}
	return fmt.Sprintf("%s (%d %s)", e.Detail, e.Status, e.Code)
}

// Options say which server a Client talks to, and how.
type Options struct {
	// BaseURL is https://host[:port], with or without a path before /api. Plain http is accepted for loopback only.
	BaseURL string
	// Token is an operator's; empty for a client that only asks what needs no login.
	Token string
	// CAPEM are the authorities to trust; empty = the system's. Ignored when TLSConfig or HTTPClient is set.
	CAPEM []byte
	// TLSConfig overrides CAPEM. Ignored when HTTPClient is set.
	TLSConfig *tls.Config
	// HTTPClient overrides the transport altogether. Its redirect policy is replaced: no redirect is followed.
	HTTPClient *http.Client
}

// Client calls one server. It is safe for concurrent use.
type Client struct {
	base  *url.URL
	token string
	http  *http.Client
}

// NewClient makes a client. It makes no connection; the error is one of the options.
func NewClient(o Options) (*Client, error) {
	u, err := url.Parse(strings.TrimRight(o.BaseURL, "/"))
	switch {
	case err != nil:
		return nil, fmt.Errorf("server address: %w", err)
	case u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		return nil, fmt.Errorf("server address %q is not https://host:port", o.BaseURL)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return nil, fmt.Errorf("server address %q holds more than host, port and path", u.Redacted())
	case u.Scheme == "http" && o.Token != "" && !loopback(u.Hostname()):
		return nil, fmt.Errorf("server address %q is plain http: the token would cross the network in the clear", o.BaseURL)
	case strings.ContainsAny(o.Token, " \r\n\t"):
		return nil, errors.New("token holds white space")
	}
	hc := &http.Client{}
	if o.HTTPClient != nil {
		*hc = *o.HTTPClient
	} else {
		config := o.TLSConfig
		if config == nil {
			config = &tls.Config{MinVersion: tls.VersionTLS12}
			if len(o.CAPEM) > 0 {
				config.RootCAs = x509.NewCertPool()
				if !config.RootCAs.AppendCertsFromPEM(o.CAPEM) {
					return nil, errors.New("no certificate in the authorities given")
				}
			}
		}
		hc.Transport = &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
			TLSClientConfig:       config,
			TLSHandshakeTimeout:   10 * time.Second,
			ResponseHeaderTimeout: 60 * time.Second,
			ExpectContinueTimeout: 5 * time.Second,
			IdleConnTimeout:       60 * time.Second,
			MaxIdleConnsPerHost:   4,
		}
	}
	// A redirect would carry the token to wherever it points.
	hc.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &Client{base: u, token: o.Token, http: hc}, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Upload sends a firmware file of exactly size bytes whose digest is sha256. progress, when not nil, is called with the
// bytes handed to the connection so far, on another goroutine than the caller's; neither progress nor r is used after
// Upload has returned. Bytes the server holds already are fine.
func (c *Client) Upload(ctx context.Context, sha256 string, size int64, r io.Reader, progress func(done, total int64)) error {
	if size <= 0 || size > MaxUpload {
		return fmt.Errorf("upload: %d bytes is not within 1 to %d", size, MaxUpload)
	}
	body := &uploadBody{r: io.LimitReader(r, size), total: size, progress: progress}
	defer body.Close()
	req, err := c.request(ctx, http.MethodPut, "/blobs/"+url.PathEscape(sha256), body)
	if err != nil {
		return err
	}
	req.ContentLength = size
	req.Header.Set("Content-Type", "application/octet-stream")
	// The server's refusal arrives before the bytes leave, not as a broken pipe in the middle of them.
	req.Header.Set("Expect", "100-continue")
	return c.do(req, nil)
}

// uploadBody counts what passes. The transport may still be reading when an answer has come; after Close it reads
// nothing more from the caller's reader.
type uploadBody struct {
	mu          sync.Mutex
	r           io.Reader // nil once closed
	done, total int64
	progress    func(done, total int64)
}

func (u *uploadBody) Read(b []byte) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.r == nil {
		return 0, errors.New("upload is over")
	}
	n, err := u.r.Read(b)
	u.done += int64(n)
	if n > 0 && u.progress != nil {
		u.progress(u.done, u.total)
	}
	return n, err
}

func (u *uploadBody) Close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.r = nil
	return nil
}

// Publish makes uploaded bytes a release.
func (c *Client) Publish(ctx context.Context, in PublishRequest) (out PublishResponse, err error) {
	return out, c.call(ctx, http.MethodPost, "/releases", in, &out)
}

// Releases lists every release, newest first, without manifests.
func (c *Client) Releases(ctx context.Context) ([]Release, error) {
	return all[Release](ctx, c, "/releases")
}

// Release returns one release by its digest.
func (c *Client) Release(ctx context.Context, sha256 string) (out Release, err error) {
	return out, c.call(ctx, http.MethodGet, "/releases/"+url.PathEscape(sha256), nil, &out)
}

// Withdraw takes a release out of every offer. Its bytes stay.
func (c *Client) Withdraw(ctx context.Context, sha256 string) error {
	return c.call(ctx, http.MethodPost, "/releases/"+url.PathEscape(sha256)+"/withdraw", nil, nil)
}

// Channels lists every channel, by project, chip and name.
func (c *Client) Channels(ctx context.Context) ([]Channel, error) {
	return all[Channel](ctx, c, "/channels")
}

// SetChannel points a channel at a published version.
func (c *Client) SetChannel(ctx context.Context, in SetChannelRequest) (out Channel, err error) {
	return out, c.call(ctx, http.MethodPut, "/channels", in, &out)
}

// Devices lists every device, by id.
func (c *Client) Devices(ctx context.Context) ([]Device, error) {
	return all[Device](ctx, c, "/devices")
}

// Device returns one device with its latest attempts.
func (c *Client) Device(ctx context.Context, id string) (out DeviceDetail, err error) {
	return out, c.call(ctx, http.MethodGet, "/devices/"+url.PathEscape(id), nil, &out)
}

// Attempts lists every attempt of a device, newest first.
func (c *Client) Attempts(ctx context.Context, device string) ([]Attempt, error) {
	return all[Attempt](ctx, c, "/devices/"+url.PathEscape(device)+"/attempts")
}

// EnrollCertificate gives a device a certificate for the key that signed the request, in place of any token or certificate.
func (c *Client) EnrollCertificate(ctx context.Context, id, request string) (out EnrollResponse, err error) {
	return out, c.call(ctx, http.MethodPost, "/devices", EnrollRequest{DeviceID: id, CertificateRequest: request}, &out)
}

// Enroll gives a device a new token, in place of any it had.
func (c *Client) Enroll(ctx context.Context, id string) (out EnrollResponse, err error) {
	return out, c.call(ctx, http.MethodPost, "/devices", EnrollRequest{DeviceID: id}, &out)
}

// Revoke takes a device's token away and ends its session.
func (c *Client) Revoke(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodPost, "/devices/"+url.PathEscape(id)+"/revoke", nil, nil)
}

// Clear takes away what a device is suspected of, and returns the device.
func (c *Client) Clear(ctx context.Context, id string) (out Device, err error) {
	return out, c.call(ctx, http.MethodPost, "/devices/"+url.PathEscape(id)+"/clear", nil, &out)
}

// Server asks the server about itself.
func (c *Client) Server(ctx context.Context) (out ServerInfo, err error) {
	return out, c.call(ctx, http.MethodGet, "/server", nil, &out)
}

// Ready asks /readyz, which needs no login: nil when the server can do its work.
func (c *Client) Ready(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base.String()+"/readyz", nil)
	if err != nil {
		return fmt.Errorf("ask server: %w", err)
	}
	return c.do(req, nil)
}

func (c *Client) request(ctx context.Context, method, path string, body io.Reader) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base.String()+Prefix+path, body)
	if err != nil {
		return nil, fmt.Errorf("ask server: %w", err)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	req.Header.Set("Accept", "application/json")
	return req, nil
}

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	return c.callWith(ctx, method, path, in, out, func(http.Header) {})
}

// callWith is call with headers of its own.
func (c *Client) callWith(ctx context.Context, method, path string, in, out any, header func(http.Header)) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := c.request(ctx, method, path, body)
	if err != nil {
		return err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	header(req.Header)
	return c.do(req, out)
}

// all asks for every page of a listing.
func all[T any](ctx context.Context, c *Client, path string) ([]T, error) {
	var rows []T
	for query := (url.Values{"limit": {strconv.Itoa(MaxPage)}}).Encode(); query != ""; {
		req, err := c.request(ctx, http.MethodGet, path+"?"+query, nil)
		if err != nil {
			return nil, err
		}
		var page []T
		header, err := c.ask(req, &page)
		if err != nil {
			return nil, err
		}
		rows = append(rows, page...)
		next, err := nextPage(req.URL, header)
		if err != nil || next != "" && (len(page) == 0 || next == query) {
			return nil, &Error{Status: http.StatusOK, Code: CodeUnexpectedAnswer, Detail: req.URL.Host + " answered with a listing that cannot be read to its end"}
		}
		query = next
	}
	return rows, nil
}

// nextPage is the query of the page that a Link header says comes behind the one at asked; empty when there is none. A
// page at another place is an error: the token must not go there, and a listing without its end must not pass for whole.
func nextPage(asked *url.URL, h http.Header) (string, error) {
	for _, link := range h.Values("Link") {
		target, relation, _ := strings.Cut(strings.TrimPrefix(link, "<"), ">")
		if !strings.Contains(relation+target, `rel="next"`) {
			continue
		}
		next, err := asked.Parse(target)
		if err != nil || next.Scheme != asked.Scheme || next.Host != asked.Host || next.Path != asked.Path || next.RawQuery == "" {
			return "", errors.New("the next page is elsewhere")
		}
		return next.RawQuery, nil
	}
	return "", nil
}

func (c *Client) do(req *http.Request, out any) error {
	_, err := c.ask(req, out)
	return err
}

// ask is do that also returns the header of the answer.
func (c *Client) ask(req *http.Request, out any) (http.Header, error) {
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, classify(req, err)
	}
	defer resp.Body.Close()
	return resp.Header, read(req, resp, out)
}

func read(req *http.Request, resp *http.Response, out any) error {
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return classify(req, err)
	}
	if len(b) > maxAnswer {
		return &Error{Status: resp.StatusCode, Code: CodeUnexpectedAnswer, Detail: "answer is larger than " + strconv.Itoa(maxAnswer) + " bytes"}
	}
	if resp.StatusCode/100 != 2 {
		return problem(resp, b)
	}
	if out == nil {
		return nil
	}
	if kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); kind != "application/json" {
		return &Error{Status: resp.StatusCode, Code: CodeUnexpectedAnswer, Detail: req.URL.Host + " answered, but not as a bmsota server does"}
	}
	// Unknown keys are ignored, so that a newer server can say more.
	if err := json.Unmarshal(b, out); err != nil {
		return &Error{Status: resp.StatusCode, Code: CodeUnexpectedAnswer, Detail: "answer of " + req.URL.Host + " is not readable: " + err.Error()}
	}
	return nil
}

func problem(resp *http.Response, b []byte) error {
	var p Problem
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if kind == ProblemType && json.Unmarshal(b, &p) == nil && p.Code != "" {
		return &Error{Status: resp.StatusCode, Code: p.Code, Detail: p.Detail}
	}
	if resp.Request.URL.Path == "/readyz" && resp.StatusCode == http.StatusServiceUnavailable {
		return &Error{Status: resp.StatusCode, Code: CodeUnavailable, Detail: strings.TrimSpace(string(b[:min(len(b), 500)]))}
	}
	return &Error{Status: resp.StatusCode, Code: CodeUnexpectedAnswer, Detail: resp.Request.URL.Host + " answered, but not as a bmsota server does"}
}

// classify names the kind of failure below HTTP.
func classify(req *http.Request, err error) error {
	var (
		unknown  x509.UnknownAuthorityError
		name     x509.HostnameError
		invalid  x509.CertificateInvalidError
		verify   *tls.CertificateVerificationError
		netError net.Error
	)
	// url.Error repeats method and address; what it wraps is what happened.
	cause := err
	var u *url.Error
	if errors.As(err, &u) {
		cause = u.Err
	}
	kind := ErrUnreachable
	switch {
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("ask %s: %w", req.URL.Host, context.Canceled)
	case errors.As(err, &unknown), errors.As(err, &name), errors.As(err, &invalid), errors.As(err, &verify):
		kind = ErrUntrusted
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &netError) && netError.Timeout():
		kind = ErrTimeout
	}
	return fmt.Errorf("%w: %s: %w", kind, req.URL.Host, cause)
}
