package web

import (
	"context"
	"errors"
	"fmt"
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
	AddAccountWithoutPassword(ctx context.Context, by fleet.Identity, name string, role fleet.Role) error
	RemoveAccount(ctx context.Context, by fleet.Identity, name string) error
	SetPassword(ctx context.Context, by fleet.Identity, name, password string) error
	Tokens(ctx context.Context, by fleet.Identity) ([]fleet.Operator, error)
	NewToken(ctx context.Context, by fleet.Identity, name string, role fleet.Role, expires time.Time) (token string, err error)
	RemoveToken(ctx context.Context, by fleet.Identity, name string) error
}

func (h *handler) accountRoutes() []route {
	admin, named := fleet.RightAdminister, []api.Code{api.CodeNotFound}
	return []route{
		{http.MethodGet, "/accounts", "listAccounts", "List accounts by name", admin, paged, []api.Account{}, nil, reads(h.listAccounts)},
		{http.MethodPost, "/accounts", "addAccount", "Make an account; a name that is taken is a conflict", admin, nil, nil,
			[]api.Code{api.CodeConflict, api.CodeTooManyTries}, takes(h.addAccount)},
		{http.MethodDelete, "/accounts/{name}", "removeAccount", "Delete an account and end its sessions", admin, nil, nil, named, reads(h.removeAccount)},
		{http.MethodPut, "/accounts/{name}/password", "setPassword", "Give an account a new password and end its sessions", admin, nil, nil,
			[]api.Code{api.CodeNotFound, api.CodeTooManyTries}, takes(h.setPassword)},
		{http.MethodGet, "/tokens", "listTokens", "List tokens by name, without the tokens themselves", admin, paged, []api.Token{}, nil, reads(h.listTokens)},
		{http.MethodPost, "/tokens", "addToken", "Make a token, which this answer alone shows; a name that is taken is a conflict", admin, nil,
			api.AddTokenResponse{}, []api.Code{api.CodeConflict}, takes(h.addToken)},
		{http.MethodDelete, "/tokens/{name}", "removeToken", "Make a token stop working", admin, nil, nil, named, reads(h.removeToken)},
	}
}

func (h *handler) listAccounts(w http.ResponseWriter, r *http.Request, by fleet.Identity) (any, error) {
	accounts, err := h.cfg.Fleet.Accounts(r.Context(), by)
	if err == nil {
		accounts, err = cutByName(w, r, accounts, func(a fleet.Account) string { return a.Name })
	}
	out := make([]api.Account, 0, len(accounts))
	for _, a := range accounts {
		out = append(out, api.Account{Name: a.Name, Role: string(a.Role), CreatedAt: a.CreatedAt.UTC(), CreatedBy: a.CreatedBy, PasswordAt: a.PasswordAt.UTC()})
	}
	return out, err
}

func (h *handler) addAccount(w http.ResponseWriter, r *http.Request, by fleet.Identity, in api.AddAccountRequest) (any, error) {
	if in.NoPassword {
		if in.Password != "" {
			return nil, fmt.Errorf("%w: a password, and no_password", fleet.ErrInvalid)
		}
		return nil, h.cfg.Fleet.AddAccountWithoutPassword(r.Context(), by, in.Name, fleet.Role(in.Role))
	}
	return nil, busy(w, h.cfg.Fleet.AddAccount(r.Context(), by, in.Name, fleet.Role(in.Role), in.Password))
}

func (h *handler) removeAccount(_ http.ResponseWriter, r *http.Request, by fleet.Identity) (any, error) {
	return nil, h.cfg.Fleet.RemoveAccount(r.Context(), by, r.PathValue("name"))
}

func (h *handler) setPassword(w http.ResponseWriter, r *http.Request, by fleet.Identity, in api.SetPasswordRequest) (any, error) {
	return nil, busy(w, h.cfg.Fleet.SetPassword(r.Context(), by, r.PathValue("name"), in.Password))
}

func (h *handler) listTokens(w http.ResponseWriter, r *http.Request, by fleet.Identity) (any, error) {
	tokens, err := h.cfg.Fleet.Tokens(r.Context(), by)
	if err == nil {
		tokens, err = cutByName(w, r, tokens, func(t fleet.Operator) string { return t.Name })
	}
	out := make([]api.Token, 0, len(tokens))
	for _, t := range tokens {
		out = append(out, api.Token{Name: t.Name, Role: string(t.Role), CreatedAt: t.CreatedAt.UTC(), ExpiresAt: t.ExpiresAt.UTC()})
	}
	return out, err
}

func (h *handler) addToken(_ http.ResponseWriter, r *http.Request, by fleet.Identity, in api.AddTokenRequest) (any, error) {
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
