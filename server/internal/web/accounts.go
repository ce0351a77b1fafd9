package web

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"bmsota/api"
	"bmsota/server/internal/fleet"
)

// AccountKeeper is what web needs of a *fleet.Fleet to manage who may sign in.
type AccountKeeper interface {
	Accounts(ctx context.Context, by fleet.Identity) ([]fleet.Account, error)
	AddAccount(ctx context.Context, by fleet.Identity, name string, role fleet.Role, password string) error
	RemoveAccount(ctx context.Context, by fleet.Identity, name string) error
	SetPassword(ctx context.Context, by fleet.Identity, name, password string) error
	Tokens(ctx context.Context, by fleet.Identity) ([]fleet.Operator, error)
	NewToken(ctx context.Context, by fleet.Identity, name string, role fleet.Role, expires time.Time) (token string, err error)
	RemoveToken(ctx context.Context, by fleet.Identity, name string) error
}

func (h *handler) accountRoutes() map[string]map[string]call {
	return map[string]map[string]call{
		"/accounts":                 {http.MethodGet: h.administer(h.listAccounts), http.MethodPost: h.administer(h.addAccount)},
		"/accounts/{name}":          {http.MethodDelete: h.administer(h.removeAccount)},
		"/accounts/{name}/password": {http.MethodPut: h.administer(h.setPassword)},
		"/tokens":                   {http.MethodGet: h.administer(h.listTokens), http.MethodPost: h.administer(h.addToken)},
		"/tokens/{name}":            {http.MethodDelete: h.administer(h.removeToken)},
	}
}

// administer refuses who may not, before the body is read.
func (h *handler) administer(fn call) call {
	return func(w http.ResponseWriter, r *http.Request, by fleet.Identity) (any, error) {
		if !by.Has(fleet.RightAdminister) {
			return nil, h.lacks(r, fleet.ViaAPI, by, fleet.RightAdminister)
		}
		return fn(w, r, by)
	}
}

func (h *handler) listAccounts(_ http.ResponseWriter, r *http.Request, by fleet.Identity) (any, error) {
	accounts, err := h.cfg.Fleet.Accounts(r.Context(), by)
	out := make([]api.Account, 0, len(accounts))
	for _, a := range accounts {
		out = append(out, api.Account{Name: a.Name, Role: string(a.Role), CreatedAt: a.CreatedAt.UTC(), CreatedBy: a.CreatedBy, PasswordAt: a.PasswordAt.UTC()})
	}
	return out, err
}

func (h *handler) addAccount(w http.ResponseWriter, r *http.Request, by fleet.Identity) (any, error) {
	var in api.AddAccountRequest
	if err := decode(w, r, &in); err != nil {
		return nil, err
	}
	return nil, busy(w, h.cfg.Fleet.AddAccount(r.Context(), by, in.Name, fleet.Role(in.Role), in.Password))
}

func (h *handler) removeAccount(_ http.ResponseWriter, r *http.Request, by fleet.Identity) (any, error) {
	return nil, h.cfg.Fleet.RemoveAccount(r.Context(), by, r.PathValue("name"))
}

func (h *handler) setPassword(w http.ResponseWriter, r *http.Request, by fleet.Identity) (any, error) {
	var in api.SetPasswordRequest
	if err := decode(w, r, &in); err != nil {
		return nil, err
	}
	return nil, busy(w, h.cfg.Fleet.SetPassword(r.Context(), by, r.PathValue("name"), in.Password))
}

func (h *handler) listTokens(_ http.ResponseWriter, r *http.Request, by fleet.Identity) (any, error) {
	tokens, err := h.cfg.Fleet.Tokens(r.Context(), by)
	out := make([]api.Token, 0, len(tokens))
	for _, t := range tokens {
		out = append(out, api.Token{Name: t.Name, Role: string(t.Role), CreatedAt: t.CreatedAt.UTC(), ExpiresAt: t.ExpiresAt.UTC()})
	}
	return out, err
}

func (h *handler) addToken(w http.ResponseWriter, r *http.Request, by fleet.Identity) (any, error) {
	var in api.AddTokenRequest
	if err := decode(w, r, &in); err != nil {
		return nil, err
	}
	token, err := h.cfg.Fleet.NewToken(r.Context(), by, in.Name, fleet.Role(in.Role), in.ExpiresAt)
	if err != nil {
		return nil, err
	}
	return api.AddTokenResponse{Name: in.Name, Token: token}, nil
}

func (h *handler) removeToken(_ http.ResponseWriter, r *http.Request, by fleet.Identity) (any, error) {
	return nil, h.cfg.Fleet.RemoveToken(r.Context(), by, r.PathValue("name"))
}

// busy says when to come again, where too many passwords are being worked on.
func busy(w http.ResponseWriter, err error) error {
	var soon *fleet.TooSoon
	if errors.As(err, &soon) {
		w.Header().Set("Retry-After", strconv.Itoa(int(soon.Wait/time.Second)+1))
	}
	return err
}

func tooSoon(err error) bool {
	var soon *fleet.TooSoon
	return errors.As(err, &soon)
}
