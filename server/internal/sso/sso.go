// Package sso signs people in by a provider of theirs that speaks OpenID Connect (OpenID Connect Core 1.0, authorization
// code flow with PKCE, RFC 7636). It says who somebody is; whether such a person has an account, and what that may do, is
// for package fleet.
//
// What it promises: an answer counts in the browser alone that asked (it keeps state, nonce and verifier), from the issuer that was asked (RFC 9207), signed with a key of the issuer's by a public-key algorithm, for
// this client and not expired. The address to come back to is made of the server's configured name and never of a request.
// The provider is asked for its addresses when it is first needed, so that one that is away keeps nobody's server down.
package sso

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"
)

const (
	timeout   = 10 * time.Second // of one request to the provider
	retry     = 5 * time.Second  // between two tries to reach it
	maxAnswer = 1 << 20          // bytes of its answer
	maxWho    = 256              // bytes of a name
	maxGroups = 1000
)

// algorithms are what an ID token may be signed with: no shared secret, and not nothing.
var algorithms = []string{oidc.RS256, oidc.RS384, oidc.RS512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.EdDSA}

// ErrProvider says that the provider could not be asked; the person may be who he says.
var ErrProvider = errors.New("the sign-in provider cannot be asked")

// ErrRefused says that the answer does not count; the sentence says why.
var ErrRefused = errors.New("sign-in refused")

// Config says which provider. All but Claim, Groups and the last must be given.
type Config struct {
	Issuer       string // https address, as the provider says it of itself
	ClientID     string
	ClientSecret string // empty for a public client
	Redirect     string // where the provider sends the browser: this server's callback
	Scopes       []string
	// Claim is the claim that says who somebody is. "email" counts only where the provider has verified it.
	Claim string
	// GroupsClaim is where a person's groups stand, Groups those of which he has to have one; no groups = everybody.
	GroupsClaim string
	Groups      []string
	Roots       *x509.CertPool // to trust for the provider; nil = the system's
	// Mutant switches one check off, for the tests that have to notice it.
	mutant string
}

// Provider is safe for concurrent use.
type Provider struct {
	cfg    Config
	client *http.Client

	mu    sync.Mutex
	known *oidc.Provider // nil until it was asked; guarded by mu
	away  error          // of the last try; guarded by mu
	again time.Time      // when to try next; guarded by mu
}

// New asks nobody yet.
func New(cfg Config) *Provider {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{RootCAs: cfg.Roots, MinVersion: tls.VersionTLS12}
	return &Provider{cfg: cfg, client: &http.Client{Transport: capped{transport}, Timeout: timeout}}
}

// Close ends connections that are idle.
func (p *Provider) Close() { p.client.CloseIdleConnections() }

// capped cuts answers: the library reads them whole.
type capped struct{ *http.Transport }

func (c capped) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := c.Transport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(resp.Body, maxAnswer), resp.Body}
	return resp, nil
}

// discover asks the provider for its addresses, until it has answered once.
func (p *Provider) discover() (*oidc.Provider, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known != nil {
		return p.known, nil
	}
	if time.Now().Before(p.again) {
		return nil, p.away // everybody who asks meanwhile would wait for it in turn
	}
	// Not the request's context: the keys are fetched under this one later.
	known, err := oidc.NewProvider(oidc.ClientContext(context.Background(), p.client), p.cfg.Issuer)
	if err != nil {
		p.away, p.again = fmt.Errorf("%w: %.300v", ErrProvider, err), time.Now().Add(retry)
		return nil, p.away
	}
	if e := known.Endpoint(); !strings.HasPrefix(e.AuthURL, "https://") || !strings.HasPrefix(e.TokenURL, "https://") {
		return nil, fmt.Errorf("%w: it names addresses that are not https", ErrProvider)
	}
	p.known = known
	return known, nil
}

func (p *Provider) oauth(known *oidc.Provider) *oauth2.Config {
	return &oauth2.Config{ClientID: p.cfg.ClientID, ClientSecret: p.cfg.ClientSecret, Endpoint: known.Endpoint(),
		RedirectURL: p.cfg.Redirect, Scopes: slices.Concat([]string{oidc.ScopeOpenID}, p.cfg.Scopes)}
}

// Begin is where to send the browser, and what it has to keep until it comes back, for a cookie.
func (p *Provider) Begin() (to, keep string, err error) {
	known, err := p.discover()
	if err != nil {
		return "", "", err
	}
	state, nonce, verifier := rand.Text(), rand.Text(), oauth2.GenerateVerifier()
	to = p.oauth(known).AuthCodeURL(state, oidc.Nonce(nonce), oauth2.S256ChallengeOption(verifier))
	return to, strings.Join([]string{state, nonce, verifier}, "."), nil
}

// Answer is what the provider sends back with the browser.
type Answer struct{ State, Code, Issuer, Error string }

// Finish says who came back. keep is what Begin gave this browser.
func (p *Provider) Finish(ctx context.Context, keep string, a Answer) (who string, err error) {
	kept := strings.Split(keep, ".")
	if len(keep) > 256 || len(kept) != 3 || slices.Contains(kept, "") {
		return "", fmt.Errorf("%w: this browser did not begin it, or too long ago", ErrRefused)
	}
	state, nonce, verifier := kept[0], kept[1], kept[2]
	switch {
	case subtle.ConstantTimeCompare([]byte(state), []byte(a.State)) != 1 && p.cfg.mutant != "state":
		return "", fmt.Errorf("%w: it is the answer to another sign-in", ErrRefused)
	case a.Issuer != "" && a.Issuer != p.cfg.Issuer:
		return "", fmt.Errorf("%w: it is the answer of another provider", ErrRefused)
	case a.Error != "":
		return "", fmt.Errorf("%w: the provider says %.64q", ErrRefused, a.Error)
	case a.Code == "" || len(a.Code) > 4096:
		return "", fmt.Errorf("%w: the answer has no code", ErrRefused)
	}
	known, err := p.discover()
	if err != nil {
		return "", err
	}
	ctx = oidc.ClientContext(ctx, p.client)
	token, err := p.oauth(known).Exchange(ctx, a.Code, oauth2.VerifierOption(verifier))
	if err != nil {
		if _, said := errors.AsType[*oauth2.RetrieveError](err); said {
			return "", fmt.Errorf("%w: the provider does not take the code", ErrRefused)
		}
		return "", fmt.Errorf("%w: %.300v", ErrProvider, err)
	}
	raw, ok := token.Extra("id_token").(string)
	if !ok {
		return "", fmt.Errorf("%w: the provider sent no ID token", ErrRefused)
	}
	id, err := known.Verifier(&oidc.Config{ClientID: p.cfg.ClientID, SupportedSigningAlgs: algorithms, SkipClientIDCheck: p.cfg.mutant == "audience"}).Verify(ctx, raw)
	if err != nil {
		return "", fmt.Errorf("%w: %.200v", ErrRefused, err)
	}
	if subtle.ConstantTimeCompare([]byte(id.Nonce), []byte(nonce)) != 1 && p.cfg.mutant != "nonce" {
		return "", fmt.Errorf("%w: the ID token is for another sign-in", ErrRefused)
	}
	return p.person(id)
}

// person reads who the token is about, and whether he may come in.
func (p *Provider) person(id *oidc.IDToken) (string, error) {
	var claims map[string]any
	if err := id.Claims(&claims); err != nil {
		return "", fmt.Errorf("%w: the ID token cannot be read", ErrRefused)
	}
	who, _ := claims[p.cfg.Claim].(string)
	if who == "" || len(who) > maxWho {
		return "", fmt.Errorf("%w: the ID token does not say %s", ErrRefused, p.cfg.Claim)
	}
	// An address that nobody has verified is whatever somebody wrote into a form.
	if verified, _ := claims["email_verified"].(bool); p.cfg.Claim == "email" && !verified && p.cfg.mutant != "verified" {
		return "", fmt.Errorf("%w: the provider has not verified that address", ErrRefused)
	}
	if len(p.cfg.Groups) == 0 {
		return who, nil
	}
	groups, _ := claims[p.cfg.GroupsClaim].([]any)
	for _, g := range groups[:min(len(groups), maxGroups)] {
		if name, ok := g.(string); ok && slices.Contains(p.cfg.Groups, name) {
			return who, nil
		}
	}
	return who, fmt.Errorf("%w: %.64q is in none of the groups that may", ErrRefused, who)
}
