package sso

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// provider is an OpenID provider in which everything can be wrong.
type provider struct {
	*httptest.Server
	key   *rsa.PrivateKey
	other *rsa.PrivateKey // that it does not publish

	mu     sync.Mutex
	codes  map[string]url.Values            // what was asked, by code; each counts once
	claims func(asked url.Values) any       // of the token; nil: good ones
	sign   func(claims any) (string, error) // nil: with key
	answer func(w http.ResponseWriter) bool // of the token endpoint instead; nil or false: as usual
}

func newProvider(t *testing.T) *provider {
	t.Helper()
	p := &provider{codes: map[string]url.Values{}}
	var err error
	if p.key, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		t.Fatal(err)
	}
	if p.other, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	say := func(w http.ResponseWriter, v any) {
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(v); err != nil {
			t.Error(err)
		}
	}
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, r *http.Request) {
		say(w, map[string]any{"issuer": p.URL, "authorization_endpoint": p.URL + "/authorize", "token_endpoint": p.URL + "/token", "jwks_uri": p.URL + "/keys",
			"id_token_signing_alg_values_supported": []string{"RS256", "HS256", "none"}})
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, r *http.Request) {
		say(w, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &p.key.PublicKey, KeyID: "1", Algorithm: "RS256", Use: "sig"}}})
	})
	mux.HandleFunc("POST /token", func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		asked, ok := p.codes[r.PostFormValue("code")]
		delete(p.codes, r.PostFormValue("code"))
		p.mu.Unlock()
		if p.answer != nil && p.answer(w) {
			return
		}
		sum := sha256.Sum256([]byte(r.PostFormValue("code_verifier")))
		if !ok || asked.Get("code_challenge") != base64.RawURLEncoding.EncodeToString(sum[:]) || asked.Get("redirect_uri") != r.PostFormValue("redirect_uri") {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusBadRequest)
			_, _ = w.Write([]byte(`{"error":"invalid_grant"}`))
			return
		}
		var claims any = p.good(asked)
		if p.claims != nil {
			claims = p.claims(asked)
		}
		sign := p.sign
		if sign == nil {
			sign = func(c any) (string, error) { return signed(jose.RS256, p.key, "1", c) }
		}
		token, err := sign(claims)
		if err != nil {
			t.Error(err)
		}
		say(w, map[string]any{"access_token": "a", "token_type": "Bearer", "id_token": token})
	})
	p.Server = httptest.NewTLSServer(mux)
	t.Cleanup(p.Close)
	return p
}

func signed(alg jose.SignatureAlgorithm, key any, id string, claims any) (string, error) {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: key, KeyID: id}}, nil)
	if err != nil {
		return "", err
	}
	b, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	s, err := signer.Sign(b)
	if err != nil {
		return "", err
	}
	return s.CompactSerialize()
}

func (p *provider) good(asked url.Values) map[string]any {
	return map[string]any{"iss": p.URL, "aud": "bmsota", "sub": "7", "nonce": asked.Get("nonce"), "exp": time.Now().Add(time.Hour).Unix(), "iat": time.Now().Unix(),
		"email": "anna@example.org", "email_verified": true, "groups": []string{"staff", "bms"}}
}

// authorize is what a browser does that was sent to to: it comes back with a code.
func (p *provider) authorize(t *testing.T, to string) Answer {
	t.Helper()
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	if q.Get("response_type") != "code" || q.Get("code_challenge_method") != "S256" || q.Get("client_id") != "bmsota" || q.Get("redirect_uri") != "https://ota.example/login/sso/callback" ||
		!strings.Contains(q.Get("scope"), "openid") || q.Get("nonce") == "" || q.Get("state") == "" {
		t.Errorf("asked with %v", q)
	}
	code := rand.Text()
	p.mu.Lock()
	p.codes[code] = q
	p.mu.Unlock()
	return Answer{State: q.Get("state"), Code: code, Issuer: p.URL}
}

func (p *provider) client(change ...func(*Config)) *Provider {
	cfg := Config{Issuer: p.URL, ClientID: "bmsota", ClientSecret: "s", Redirect: "https://ota.example/login/sso/callback", Scopes: []string{"email"},
		Claim: "email", GroupsClaim: "groups", Roots: x509.NewCertPool()}
	cfg.Roots.AddCert(p.Certificate())
	for _, c := range change {
		c(&cfg)
	}
	return New(cfg)
}

func begin(t *testing.T, c *Provider) (to, keep string) {
	t.Helper()
	to, keep, err := c.Begin()
	if err != nil {
		t.Fatal(err)
	}
	return to, keep
}

func TestAPersonComesBackAsWhoTheProviderSays(t *testing.T) {
	p := newProvider(t)
	for _, change := range []func(*Config){func(*Config) {}, func(c *Config) { c.Groups = []string{"bms"} }} {
		c := p.client(change)
		to, keep := begin(t, c)
		if who, err := c.Finish(t.Context(), keep, p.authorize(t, to)); err != nil || who != "anna@example.org" {
			t.Errorf("%q, %v", who, err)
		}
		c.Close()
	}
	c := p.client(func(c *Config) { c.Claim = "sub" })
	defer c.Close()
	to, keep := begin(t, c)
	if who, err := c.Finish(t.Context(), keep, p.authorize(t, to)); err != nil || who != "7" {
		t.Errorf("%q, %v", who, err)
	}
}

// attack is what somebody does to get in. mutant is the check without which he does; empty where the library, or more than one
// check, stands in his way.
type attack struct {
	name   string
	mutant string
	claims func(good map[string]any)
	do     func(t *testing.T, p *provider, c *Provider) (string, error)
}

func attacks() []attack {
	return []attack{
		{name: "an answer to another sign-in", mutant: "state", do: func(t *testing.T, p *provider, c *Provider) (string, error) {
			to, keep := begin(t, c)
			a := p.authorize(t, to)
			a.State = "another"
			return c.Finish(t.Context(), keep, a)
		}},
		{name: "the attacker's code in the victim's browser", do: func(t *testing.T, p *provider, c *Provider) (string, error) {
			his, _ := begin(t, c)
			stolen := p.authorize(t, his)
			_, keep := begin(t, c)
			stolen.State = strings.Split(keep, ".")[0]
			return c.Finish(t.Context(), keep, stolen)
		}},
		{name: "a browser that did not begin it", do: func(t *testing.T, p *provider, c *Provider) (string, error) {
			to, _ := begin(t, c)
			return c.Finish(t.Context(), "", p.authorize(t, to))
		}},
		{name: "a cookie of nothing", do: func(t *testing.T, p *provider, c *Provider) (string, error) {
			to, _ := begin(t, c)
			a := p.authorize(t, to)
			a.State = ""
			return c.Finish(t.Context(), "..", a)
		}},
		{name: "a code twice", do: func(t *testing.T, p *provider, c *Provider) (string, error) {
			to, keep := begin(t, c)
			a := p.authorize(t, to)
			if _, err := c.Finish(t.Context(), keep, a); err != nil {
				t.Fatal(err)
			}
			return c.Finish(t.Context(), keep, a)
		}},
		{name: "another provider's answer", do: func(t *testing.T, p *provider, c *Provider) (string, error) {
			to, keep := begin(t, c)
			a := p.authorize(t, to)
			a.Issuer = "https://evil.example"
			return c.Finish(t.Context(), keep, a)
		}},
		{name: "the provider's refusal", do: func(t *testing.T, p *provider, c *Provider) (string, error) {
			to, keep := begin(t, c)
			a := p.authorize(t, to)
			a.Error = "access_denied"
			return c.Finish(t.Context(), keep, a)
		}},
		{name: "no code", do: func(t *testing.T, p *provider, c *Provider) (string, error) {
			to, keep := begin(t, c)
			a := p.authorize(t, to)
			a.Code = ""
			return c.Finish(t.Context(), keep, a)
		}},
		{name: "a token of another sign-in", mutant: "nonce", claims: func(g map[string]any) { g["nonce"] = "another" }},
		{name: "a token without nonce", mutant: "nonce", claims: func(g map[string]any) { delete(g, "nonce") }},
		{name: "a token for another client", mutant: "audience", claims: func(g map[string]any) { g["aud"] = "shop" }},
		{name: "a token of another issuer", claims: func(g map[string]any) { g["iss"] = "https://evil.example" }},
		{name: "an expired token", claims: func(g map[string]any) { g["exp"] = time.Now().Add(-time.Hour).Unix() }},
		{name: "a token that never expires", claims: func(g map[string]any) { delete(g, "exp") }},
		{name: "an address nobody verified", mutant: "verified", claims: func(g map[string]any) { g["email_verified"] = false }},
		{name: "an address of which nothing is said", mutant: "verified", claims: func(g map[string]any) { delete(g, "email_verified") }},
		{name: "no address", claims: func(g map[string]any) { delete(g, "email") }},
		{name: "an address that is a list", claims: func(g map[string]any) { g["email"] = []string{"anna@example.org"} }},
		{name: "an endless address", claims: func(g map[string]any) { g["email"] = strings.Repeat("a", 300) }},
	}
}

func TestNobodyComesInByAnAnswerThatIsNotHis(t *testing.T) {
	p := newProvider(t)
	for _, at := range attacks() {
		play := func(mutant string) (string, error) {
			c := p.client(func(c *Config) { c.mutant = mutant })
			defer c.Close()
			p.claims = nil
			if at.claims != nil {
				p.claims = func(asked url.Values) any { g := p.good(asked); at.claims(g); return g }
			}
			defer func() { p.claims = nil }()
			if at.do != nil {
				return at.do(t, p, c)
			}
			to, keep := begin(t, c)
			return c.Finish(t.Context(), keep, p.authorize(t, to))
		}
		if who, err := play(""); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %q, %v, want ErrRefused", at.name, who, err)
		}
		if at.mutant == "" {
			continue
		}
		if who, err := play(at.mutant); err != nil {
			t.Errorf("%s: without the check of the %s he is refused all the same, so the test proves nothing: %q, %v", at.name, at.mutant, who, err)
		}
	}
}

func TestOnlyAKeyOfTheIssuersSigns(t *testing.T) {
	p := newProvider(t)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public := x509.MarshalPKCS1PublicKey(&p.key.PublicKey)
	for name, sign := range map[string]func(any) (string, error){
		"nothing": func(c any) (string, error) {
			b, err := json.Marshal(c)
			enc := base64.RawURLEncoding.EncodeToString
			return enc([]byte(`{"alg":"none"}`)) + "." + enc(b) + ".", err
		},
		"another key":            func(c any) (string, error) { return signed(jose.RS256, p.other, "1", c) },
		"another kind of key":    func(c any) (string, error) { return signed(jose.ES256, ec, "1", c) },
		"the public key as HMAC": func(c any) (string, error) { return signed(jose.HS256, public, "1", c) },
		"the secret as HMAC":     func(c any) (string, error) { return signed(jose.HS256, []byte(strings.Repeat("s", 32)), "1", c) },
		"a spoilt signature": func(c any) (string, error) {
			s, err := signed(jose.RS256, p.key, "1", c)
			return s[:len(s)-8] + "AAAAAAAA", err
		},
		"no token": func(any) (string, error) { return "", nil },
	} {
		p.sign = sign
		c := p.client()
		to, keep := begin(t, c)
		if who, err := c.Finish(t.Context(), keep, p.authorize(t, to)); !errors.Is(err, ErrRefused) {
			t.Errorf("signed with %s: %q, %v", name, who, err)
		}
		c.Close()
	}
}

func TestWhoIsInNoneOfTheGroupsIsRefused(t *testing.T) {
	p := newProvider(t)
	c := p.client(func(c *Config) { c.Groups = []string{"admins"} })
	defer c.Close()
	for name, groups := range map[string]any{"others": []string{"staff"}, "none": nil, "a text": "admins", "numbers": []int{1}} {
		p.claims = func(asked url.Values) any { g := p.good(asked); g["groups"] = groups; return g }
		to, keep := begin(t, c)
		if who, err := c.Finish(t.Context(), keep, p.authorize(t, to)); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %q, %v", name, who, err)
		}
	}
	p.claims = func(asked url.Values) any {
		g := maps.Clone(p.good(asked))
		g["groups"] = []string{"staff", "admins"}
		return g
	}
	to, keep := begin(t, c)
	if _, err := c.Finish(t.Context(), keep, p.authorize(t, to)); err != nil {
		t.Error(err)
	}
}

// A provider that is away, or answers with too much, is no refusal; and it is asked again.
func TestAProviderThatIsAwayIsAskedAgain(t *testing.T) {
	p := newProvider(t)
	c := p.client()
	defer c.Close()
	to, keep := begin(t, c)
	p.answer = func(w http.ResponseWriter) bool {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"id_token":"`))
		for range 3 << 10 {
			if _, err := w.Write([]byte(strings.Repeat("a", 1<<10))); err != nil {
				break
			}
		}
		return true
	}
	if _, err := c.Finish(t.Context(), keep, p.authorize(t, to)); !errors.Is(err, ErrProvider) || errors.Is(err, ErrRefused) {
		t.Errorf("an endless answer: %v", err)
	}
	p.answer = nil
	gone := New(Config{Issuer: "https://127.0.0.1:1", Claim: "email"})
	defer gone.Close()
	if _, _, err := gone.Begin(); !errors.Is(err, ErrProvider) {
		t.Errorf("a provider that is away: %v", err)
	}
	lying := p.client(func(c *Config) { c.Issuer = p.URL + "/" })
	defer lying.Close()
	if _, _, err := lying.Begin(); !errors.Is(err, ErrProvider) {
		t.Errorf("a provider that calls itself otherwise: %v", err)
	}
	if _, _, err := c.Begin(); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	to, keep = begin(t, c)
	if _, err := c.Finish(ctx, keep, p.authorize(t, to)); !errors.Is(err, ErrProvider) {
		t.Errorf("a browser that has gone: %v", err)
	}
}
