package web

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"bmsota/audit"
	"bmsota/server/internal/fleet"
)

// SSO signs people in by a provider of theirs.
type SSO interface {
	// Name is what the button says.
	Name() string
	// Begin is where to send the browser, and what it has to keep until it comes back.
	Begin() (to, keep string, err error)
	// Finish says whose account the one who came back may use. The error wraps fleet.ErrDenied where he may use none; any
	// other is of the provider.
	Finish(ctx context.Context, keep string, a SSOAnswer) (account string, err error)
}

// SSOAnswer is what the provider sends back with the browser.
type SSOAnswer struct{ State, Code, Issuer, Error string }

// SSOCallback is the path to which the provider sends the browser.
const SSOCallback = "/login/sso/callback"

// ssoCookie holds what a browser keeps while it is away. It is no session: it opens nothing.
const ssoCookie = "__Host-bmsota-sso"

// ssoLife is how long that counts, in seconds.
const ssoLife = 600

func (u *ui) setSSOCookie(w http.ResponseWriter, value string, age int) {
	// Lax: the provider sends the browser back from another site.
	http.SetCookie(w, &http.Cookie{Name: ssoCookie, Value: value, Path: "/", MaxAge: age, Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
}

func (u *ui) ssoBegin(w http.ResponseWriter, r *http.Request) {
	u.headers(w)
	next := local(r.URL.Query().Get("next"))
	err := u.h.cfg.Fleet.MayTry(addressOf(r))
	var to, keep string
	if err == nil {
		to, keep, err = u.h.cfg.SSO.Begin()
	}
	if err != nil {
		u.ssoFault(w, r, next, err)
		return
	}
	u.setSSOCookie(w, keep+"."+base64.RawURLEncoding.EncodeToString([]byte(next)), ssoLife)
	http.Redirect(w, r, to, http.StatusSeeOther)
}

func (u *ui) ssoCallback(w http.ResponseWriter, r *http.Request) {
	u.headers(w)
	u.setSSOCookie(w, "", -1) // one answer for one question
	keep, next := "", "/"
	if c, err := r.Cookie(ssoCookie); err == nil && len(c.Value) <= 4096 {
		if i := strings.LastIndexByte(c.Value, '.'); i >= 0 {
			keep = c.Value[:i]
			if b, err := base64.RawURLEncoding.DecodeString(c.Value[i+1:]); err == nil {
				next = local(string(b))
			}
		}
	}
	q := r.URL.Query()
	err := u.h.cfg.Fleet.MayTry(addressOf(r))
	var account string
	if err == nil {
		account, err = u.h.cfg.SSO.Finish(r.Context(), keep, SSOAnswer{State: q.Get("state"), Code: q.Get("code"), Issuer: q.Get("iss"), Error: q.Get("error")})
	}
	if err != nil {
		if errors.Is(err, fleet.ErrDenied) {
			u.h.cfg.Fleet.Refused(fleet.Knock{What: audit.LoginFailed, Via: fleet.ViaSSO, Address: addressOf(r), About: sentence(err)})
		}
		u.ssoFault(w, r, next, err)
		return
	}
	cookie, by, err := u.h.cfg.Fleet.LoginVouched(r.Context(), account, addressOf(r))
	if err != nil {
		u.ssoFault(w, r, next, err)
		return
	}
	u.h.cfg.Log.Info("signed in", "name", by.Name, "role", by.Role, "via", fleet.ViaSSO, "address", addressOf(r))
	setCookie(w, cookie, int(fleet.SessionLife.Seconds()))
	http.Redirect(w, r, next, http.StatusSeeOther)
}

// ssoFault shows the login again: a password works while the provider does not.
func (u *ui) ssoFault(w http.ResponseWriter, r *http.Request, next string, err error) {
	status, said := http.StatusUnauthorized, sentence(err)
	switch {
	case tooSoon(err):
		_ = busy(w, err)
		status = http.StatusTooManyRequests
	case !errors.Is(err, fleet.ErrDenied):
		status, said = http.StatusBadGateway, fmt.Sprintf("%s does not answer: try again later, or sign in with a password", u.h.cfg.SSO.Name())
	}
	u.h.cfg.Log.Warn("sign-in refused", "via", fleet.ViaSSO, "address", addressOf(r), "err", err)
	u.showLogin(w, r, status, loginData{Next: next}, said)
}
