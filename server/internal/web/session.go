package web

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"

	"bmsota/server/internal/fleet"
)

// sessionCookie: the prefix has browsers refuse it without Secure, with a Domain or with another Path, so that no other
// host can plant one.
const sessionCookie = "__Host-bmsota"

func cookieOf(r *http.Request) string {
	c, err := r.Cookie(sessionCookie)
	if err != nil {
		return ""
	}
	return c.Value
}

func setCookie(w http.ResponseWriter, value string, age int) {
	http.SetCookie(w, &http.Cookie{Name: sessionCookie, Value: value, Path: "/", MaxAge: age, Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
}

// addressOf is where a request comes from, as far as this server can see: behind a proxy that is not trusted it is the proxy.
func addressOf(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

type loginData struct {
	Name, Next string
	SSO        string // what the button for it says; empty: there is none
}

func (u *ui) loginForm(w http.ResponseWriter, r *http.Request) {
	u.headers(w)
	next := local(r.URL.Query().Get("next"))
	if _, err := u.h.cfg.Fleet.BySession(r.Context(), cookieOf(r), false); err == nil {
		http.Redirect(w, r, next, http.StatusSeeOther)
		return
	}
	u.showLogin(w, r, http.StatusOK, loginData{Next: next}, "")
}

func (u *ui) showLogin(w http.ResponseWriter, r *http.Request, status int, d loginData, fault string) {
	if u.h.cfg.SSO != nil {
		d.SSO = u.h.cfg.SSO.Name()
	}
	if err := u.show(w, status, "login", page{Title: "Sign in", Data: d, Fault: fault}); err != nil {
		u.fault(w, r, fleet.Identity{}, err)
	}
}

// local is a path of this server, or the first page: a link that leads to the login must not lead elsewhere after it.
func local(next string) string {
	if !strings.HasPrefix(next, "/") || strings.HasPrefix(next, "//") || strings.HasPrefix(next, "/login") ||
		strings.ContainsFunc(next, func(c rune) bool { return c < ' ' || c == '\\' || c > '~' }) {
		return "/"
	}
	return next
}

func (u *ui) login(w http.ResponseWriter, r *http.Request) {
	u.headers(w)
	if err := u.origins.Check(r); err != nil {
		u.fault(w, r, fleet.Identity{}, fmt.Errorf("%w: the form was sent from another site", fleet.ErrDenied))
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	f, err := form(r, "name", "password", "next")
	if err != nil {
		u.fault(w, r, fleet.Identity{}, err)
		return
	}
	d := loginData{Name: f["name"], Next: local(f["next"])}
	cookie, by, err := u.h.cfg.Fleet.Login(r.Context(), d.Name, r.PostFormValue("password"), addressOf(r))
	switch {
	case tooSoon(err):
		_ = busy(w, err)
		u.showLogin(w, r, http.StatusTooManyRequests, d, sentence(err))
	case errors.Is(err, fleet.ErrDenied):
		u.h.cfg.Log.Warn("sign-in refused", "address", addressOf(r))
		u.showLogin(w, r, http.StatusUnauthorized, d, sentence(err))
	case err != nil:
		u.fault(w, r, fleet.Identity{}, err)
	default:
		u.h.cfg.Log.Info("signed in", "name", by.Name, "role", by.Role, "address", addressOf(r))
		setCookie(w, cookie, int(fleet.SessionLife.Seconds()))
		http.Redirect(w, r, d.Next, http.StatusSeeOther)
	}
}

func (u *ui) logout(w http.ResponseWriter, r *http.Request) {
	u.headers(w)
	err := u.origins.Check(r)
	if err == nil {
		err = u.h.cfg.Fleet.Logout(r.Context(), cookieOf(r))
	} else {
		err = fmt.Errorf("%w: the form was sent from another site", fleet.ErrDenied)
	}
	if err != nil {
		u.fault(w, r, fleet.Identity{}, err)
		return
	}
	setCookie(w, "", -1)
	http.Redirect(w, r, "/login", http.StatusSeeOther)
}

func (u *ui) account(w http.ResponseWriter, _ *http.Request, by fleet.Identity) error {
	return u.showAccount(w, http.StatusOK, by, nil)
}

func (u *ui) showAccount(w http.ResponseWriter, status int, by fleet.Identity, fault error) error {
	p := page{Title: "Your account", Here: "account", By: by, Data: fleet.Roles()}
	if fault != nil {
		p.Fault = sentence(fault)
	}
	return u.show(w, status, "account", p)
}

// changePassword ends every session of the account, this one too.
func (u *ui) changePassword(w http.ResponseWriter, r *http.Request, by fleet.Identity) error {
	if _, err := form(r, "old", "new", "again"); err != nil {
		return err
	}
	old, password := r.PostFormValue("old"), r.PostFormValue("new") // as typed: spaces belong to a password
	err := fmt.Errorf("%w: the new password and its repetition differ", fleet.ErrInvalid)
	if password == r.PostFormValue("again") {
		err = u.h.cfg.Fleet.ChangePassword(r.Context(), by, addressOf(r), old, password)
	}
	if errors.Is(err, fleet.ErrNotFound) {
		err = fmt.Errorf("%w: you signed in with a token, which has no password", fleet.ErrInvalid)
	}
	if err != nil {
		_ = busy(w, err)
		return u.showAccount(w, problemOf(err).Status, by, err)
	}
	setCookie(w, "", -1)
	http.Redirect(w, r, "/login", http.StatusSeeOther)
	return nil
}
