package server

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"

	"bmsota/server/internal/fleet"
	"bmsota/server/internal/sso"
	"bmsota/server/internal/web"
)

// OIDC is the section "oidc": people may sign in to the dashboard by a provider that speaks OpenID Connect.
type OIDC struct {
	// Issuer is the provider's https address, as it says of itself; setting one turns this on. public_url must be set or
	// host be the name that browsers use: the provider sends them back to <url>/login/sso/callback, which it must know.
	Issuer string `json:"issuer"`

	// ClientID and ClientSecretFile are this server's login there; the file holds the secret and nothing else. Default: a
	// client without a secret (PKCE alone).
	ClientID         string `json:"client_id"`
	ClientSecretFile string `json:"client_secret_file"`

	// Name is what the button on the login page says. Default: the issuer's host.
	Name string `json:"name"`

	// Scopes are asked for beside openid. Default ["email"].
	Scopes []string `json:"scopes"`

	// Claim says who somebody is. An email counts only where the provider has verified it. Default "email".
	Claim string `json:"claim"`

	// People are who may come in, by what the claim says, each with the name of an account here:
	// {"anna@example.org": "anna"}. What somebody may do is the account's role.
	People map[string]string `json:"people"`

	// Groups are those of which somebody has to have one, from groups_claim. Default: none is asked for.
	Groups []string `json:"groups"`

	// GroupsClaim is where groups stand. Default "groups".
	GroupsClaim string `json:"groups_claim"`

	// CAFile is the PEM to trust for the provider. Default: the system's authorities.
	CAFile string `json:"ca_file"`
}

func (o OIDC) check() error {
	if o.Issuer == "" {
		if o.ClientID != "" || len(o.People) > 0 {
			return errors.New("oidc.issuer is empty: name the provider")
		}
		return nil
	}
	// What is wrong is not repeated: it may hold a password.
	u, err := url.Parse(o.Issuer)
	switch {
	case err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return errors.New("oidc.issuer is not an https address")
	case o.ClientID == "":
		return errors.New("oidc.client_id is empty")
	case len(o.People) == 0:
		return errors.New("oidc.people is empty: nobody could sign in")
	}
	for who, account := range o.People {
		if who == "" || account == "" {
			return errors.New("oidc.people: a name is empty")
		}
	}
	return nil
}

// signOn is a provider, and who of those it knows has an account here.
type signOn struct {
	*sso.Provider
	name   string
	people map[string]string
}

// openSignOn is nil where none is configured.
func (s *Server) openSignOn() (*signOn, error) {
	o := s.cfg.OIDC
	if o.Issuer == "" {
		return nil, nil
	}
	if s.cfg.PublicURL == "" && s.https == nil {
		return nil, errors.New("oidc needs https, or public_url where a proxy holds the certificate")
	}
	cfg := sso.Config{Issuer: o.Issuer, ClientID: o.ClientID, Redirect: s.URL() + web.SSOCallback, Scopes: o.Scopes,
		Claim: o.Claim, GroupsClaim: o.GroupsClaim, Groups: o.Groups}
	if o.ClientSecretFile != "" {
		secret, err := os.ReadFile(o.ClientSecretFile)
		if err != nil {
			return nil, fmt.Errorf("oidc.client_secret_file: %w", err)
		}
		if cfg.ClientSecret = strings.TrimSpace(string(secret)); cfg.ClientSecret == "" {
			return nil, fmt.Errorf("oidc.client_secret_file: %s is empty", o.ClientSecretFile)
		}
	}
	if o.CAFile != "" {
		text, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("oidc.ca_file: %w", err)
		}
		cfg.Roots = x509.NewCertPool()
		if !cfg.Roots.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("oidc.ca_file: %s holds no certificate", o.CAFile)
		}
	}
	return &signOn{Provider: sso.New(cfg), name: o.Name, people: o.People}, nil
}

// Name is what the button says.
func (s *signOn) Name() string { return s.name }

// Finish says whose account the one who came back may use.
func (s *signOn) Finish(ctx context.Context, keep string, a web.SSOAnswer) (string, error) {
	who, err := s.Provider.Finish(ctx, keep, sso.Answer(a))
	if errors.Is(err, sso.ErrRefused) {
		return "", fmt.Errorf("%w: %w", fleet.ErrDenied, err)
	}
	if err != nil {
		return "", err
	}
	account, ok := s.people[who]
	if !ok {
		return "", fmt.Errorf("%w: %.64q has no account here", fleet.ErrDenied, who)
	}
	return account, nil
}
