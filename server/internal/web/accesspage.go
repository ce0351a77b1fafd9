package web

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"bmsota/server/internal/fleet"
)

// tokenLives are the lengths of life that the form for a token offers.
var tokenLives = []struct {
	Name, Text string
	Days       int
}{{"", "for ever", 0}, {"30d", "30 days", 30}, {"90d", "90 days", 90}, {"365d", "a year", 365}}

type accessData struct {
	Accounts []fleet.Account
	Tokens   []fleet.Operator
	Roles    []fleet.Role
	Lives    any
	// What a form that was refused held, never a password.
	Account, AccountRole, TokenName, TokenRole, TokenLife string
	// New is a token that has just been made: shown here, and never again.
	New string
}

func (u *ui) routeAccess() {
	get := func(pattern string, v view) { u.route(http.MethodGet, pattern, fleet.RightAdminister, v) }
	post := func(pattern string, v view) { u.route(http.MethodPost, pattern, fleet.RightAdminister, v) }
	get("/access", func(w http.ResponseWriter, r *http.Request, by fleet.Identity) error {
		return u.showAccess(w, r, by, http.StatusOK, accessData{}, nil)
	})
	post("/access/accounts", u.addAccount)
	post("/access/accounts/{name}/password", u.givePassword)
	post("/access/accounts/{name}/remove", u.removeAccess("/access/accounts/", "account", "accounts",
		"Whoever signs in with it is signed out now, and can no longer sign in.", u.h.cfg.Fleet.RemoveAccount))
	post("/access/tokens", u.addToken)
	post("/access/tokens/{name}/remove", u.removeAccess("/access/tokens/", "token", "tokens",
		"Every program and tool that uses it is locked out at once.", u.h.cfg.Fleet.RemoveToken))
}

// showAccess is the page of who may sign in, with the reason why a form on it was refused.
func (u *ui) showAccess(w http.ResponseWriter, r *http.Request, by fleet.Identity, status int, d accessData, refusal error) error {
	d.Roles, d.Lives = fleet.Roles(), tokenLives
	var err error
	if d.Accounts, err = u.h.cfg.Fleet.Accounts(r.Context(), by); err != nil {
		return err
	}
	if d.Tokens, err = u.h.cfg.Fleet.Tokens(r.Context(), by); err != nil {
		return err
	}
	p := page{Title: "Who may sign in", Here: "access", By: by, Done: doneTexts[r.URL.Query().Get("done")], Data: d}
	if refusal != nil {
		_ = busy(w, refusal)
		p.Done, p.Fault = "", sentence(refusal)
	}
	return u.show(w, status, "access", p)
}

// refuseAccess shows the page with what was typed and why it was not taken; a fault of the server is a page of its own.
func (u *ui) refuseAccess(w http.ResponseWriter, r *http.Request, by fleet.Identity, d accessData, err error) error {
	if p := problemOf(err); p.Status < 500 {
		return u.showAccess(w, r, by, p.Status, d, err)
	}
	return err
}

// newPasswordOf reads a password that is typed twice, as it was typed: spaces belong to it.
func newPasswordOf(r *http.Request) (string, error) {
	password := r.PostFormValue("new")
	if password != r.PostFormValue("again") {
		return "", fmt.Errorf("%w: the password and its repetition differ", fleet.ErrInvalid)
	}
	return password, nil
}

func (u *ui) addAccount(w http.ResponseWriter, r *http.Request, by fleet.Identity) error {
	f, err := form(r, "name", "role", "new", "again")
	if err != nil {
		return err
	}
	password, err := newPasswordOf(r)
	if err == nil {
		err = u.h.cfg.Fleet.AddAccount(r.Context(), by, f["name"], fleet.Role(f["role"]), password)
	}
	if err != nil {
		return u.refuseAccess(w, r, by, accessData{Account: f["name"], AccountRole: f["role"]}, err)
	}
	u.h.cfg.Log.Info("account made", "by", by.Name, "account", f["name"], "role", f["role"])
	return done(w, r, "/access", "account-made")
}

func (u *ui) givePassword(w http.ResponseWriter, r *http.Request, by fleet.Identity) error {
	if _, err := form(r, "new", "again"); err != nil {
		return err
	}
	name := r.PathValue("name")
	password, err := newPasswordOf(r)
	if err == nil {
		err = u.h.cfg.Fleet.SetPassword(r.Context(), by, name, password)
	}
	if err != nil {
		return u.refuseAccess(w, r, by, accessData{}, err)
	}
	u.h.cfg.Log.Info("password set", "by", by.Name, "account", name)
	return done(w, r, "/access", "password")
}

// addToken answers with the token itself instead of sending the reader on: it is kept nowhere, and stands in no address.
func (u *ui) addToken(w http.ResponseWriter, r *http.Request, by fleet.Identity) error {
	f, err := form(r, "name", "role", "life")
	if err != nil {
		return err
	}
	d := accessData{TokenName: f["name"], TokenRole: f["role"], TokenLife: f["life"]}
	ends, err := tokenEnd(f["life"], time.Now())
	if err == nil {
		d.New, err = u.h.cfg.Fleet.NewToken(r.Context(), by, f["name"], fleet.Role(f["role"]), ends)
	}
	if err != nil {
		return u.refuseAccess(w, r, by, d, err)
	}
	u.h.cfg.Log.Info("token made", "by", by.Name, "token", f["name"], "role", f["role"])
	return u.showAccess(w, r, by, http.StatusOK, d, nil)
}

func tokenEnd(life string, now time.Time) (time.Time, error) {
	for _, l := range tokenLives {
		if l.Name == life && l.Days > 0 {
			return now.AddDate(0, 0, l.Days), nil
		} else if l.Name == life {
			return time.Time{}, nil
		}
	}
	return time.Time{}, fmt.Errorf("%w: the form says %.32q for how long", fleet.ErrInvalid, life)
}

// removeAccess asks, and then takes an account or token away.
func (u *ui) removeAccess(path, kind, noun, means string, remove func(ctx context.Context, by fleet.Identity, name string) error) view {
	return func(w http.ResponseWriter, r *http.Request, by fleet.Identity) error {
		f, err := form(r, "confirmed")
		if err != nil {
			return err
		}
		name := r.PathValue("name")
		if f["confirmed"] != "yes" {
			list := []string{means, "What was done in its name stays written."}
			if name == by.Name {
				list = append(list, "You are signed in with it yourself.")
			}
			return u.confirm(w, by, "access", confirmation{
				Question: "Remove the " + kind + " " + name + "?", Means: list, Button: "Remove", CLI: "bmsota " + noun + " remove " + name,
				Action: path + name + "/remove", Fields: map[string]string{}, Back: "/access",
			})
		}
		if err := remove(r.Context(), by, name); err != nil {
			return u.refuseAccess(w, r, by, accessData{}, err)
		}
		u.h.cfg.Log.Info(kind+" removed", "by", by.Name, kind, name)
		return done(w, r, "/access", kind+"-gone")
	}
}
