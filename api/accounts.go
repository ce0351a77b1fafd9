package api

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// Account is a person who signs in to the dashboard with a password.
type Account struct {
	Name       string    `json:"name"`
	Role       string    `json:"role"` // viewer, operator, admin
	CreatedAt  time.Time `json:"created_at"`
	CreatedBy  string    `json:"created_by"`
	PasswordAt time.Time `json:"password_at"` // when the password was set
}

// AddAccountRequest makes an account.
type AddAccountRequest struct {
	Name     string `json:"name"`
	Role     string `json:"role"`
	Password string `json:"password,omitempty"`
	// NoPassword makes an account that no password opens, for somebody who signs in by a provider.
	NoPassword bool `json:"no_password,omitempty"`
}

// SetPasswordRequest gives an account a new password and ends its sessions.
type SetPasswordRequest struct {
	Password string `json:"password"`
}

// Token is what a program, or a person's tool, logs in with.
type Token struct {
	Name      string    `json:"name"`
	Role      string    `json:"role"`
	CreatedAt time.Time `json:"created_at"`
	ExpiresAt time.Time `json:"expires_at,omitzero"` // left out = never
}

// AddTokenRequest makes a token.
type AddTokenRequest struct {
	Name      string    `json:"name"`
	Role      string    `json:"role"`
	ExpiresAt time.Time `json:"expires_at,omitzero"`
}

// AddTokenResponse carries the token. The server keeps only its digest, so this is the one time it is shown.
type AddTokenResponse struct {
	Name  string `json:"name"`
	Token string `json:"token"`
}

// Accounts lists the accounts, by name.
func (c *Client) Accounts(ctx context.Context) ([]Account, error) {
	return all[Account](ctx, c, "/accounts")
}

// AddAccount makes an account.
func (c *Client) AddAccount(ctx context.Context, in AddAccountRequest) error {
	return c.call(ctx, http.MethodPost, "/accounts", in, nil)
}

// RemoveAccount deletes an account and ends its sessions.
func (c *Client) RemoveAccount(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, "/accounts/"+url.PathEscape(name), nil, nil)
}

// SetPassword gives an account a new password and ends its sessions.
func (c *Client) SetPassword(ctx context.Context, name, password string) error {
	return c.call(ctx, http.MethodPut, "/accounts/"+url.PathEscape(name)+"/password", SetPasswordRequest{password}, nil)
}

// Tokens lists the tokens, by name.
func (c *Client) Tokens(ctx context.Context) ([]Token, error) {
	return all[Token](ctx, c, "/tokens")
}

// AddToken makes a token and returns it.
func (c *Client) AddToken(ctx context.Context, in AddTokenRequest) (out AddTokenResponse, err error) {
	return out, c.call(ctx, http.MethodPost, "/tokens", in, &out)
}

// RemoveToken makes a token stop working.
func (c *Client) RemoveToken(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, "/tokens/"+url.PathEscape(name), nil, nil)
}
