package web

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"html/template"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

// The dashboard is pages for people, made here and complete without a script; live.js replaces the parts of a page that
// have changed. Nothing comes from another host, and no page holds a script or style of its own, so the policy below
// forbids both and a text that a device has made up stays a text.
const pagePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"form-action 'self'; frame-ancestors 'none'; base-uri 'none'"

// maxForm bounds the body of a form, in bytes.
const maxForm = 16 << 10

// Dashboard is what the pages need of a *fleet.Fleet beside what the API does.
type Dashboard interface {
	Login(ctx context.Context, name, secret, address string) (cookie string, by fleet.Identity, err error)
	LoginVouched(ctx context.Context, name, address string) (cookie string, by fleet.Identity, err error)
	MayTry(address string) error
	Refused(k fleet.Knock)
	BySession(ctx context.Context, cookie string, use bool) (fleet.Identity, error)
	Logout(ctx context.Context, cookie string) error
	ChangePassword(ctx context.Context, by fleet.Identity, address, old, password string) error

	Census(ctx context.Context, age time.Duration) (*fleet.Census, error)
	UnderWay(ctx context.Context, limit int) (open, failed []fleet.Attempt, err error)
	DevicePage(ctx context.Context, q fleet.DeviceQuery) (page []fleet.Device, total int, err error)
	OffersFor(ctx context.Context, d fleet.Device) (list []fleet.Release, offered string, err error)
	ReleaseTally(ctx context.Context, sha256 string) (map[fleet.AttemptState]int, error)
	Command(ctx context.Context, out fleet.Messenger, by fleet.Identity, device string, cmd protocol.Command) (protocol.Command, error)
	Watch() (changes <-chan string, stop func())

	Contests() []fleet.Contest
	ContestOf(device string) *fleet.Contest
}

//go:embed templates/ui static
var dashboardFiles embed.FS

// ui is the dashboard of a handler.
type ui struct {
	h       *handler
	pages   map[string]*template.Template
	static  map[string]asset // by path
	origins *http.CrossOriginProtection
	readers chan struct{} // capacity maxReaders
}

// asset is a file that never changes under its path, which holds its digest.
type asset struct {
	kind string
	body []byte
}

// routeDashboard adds the pages.
func (h *handler) routeDashboard() {
	u := &ui{h: h, static: make(map[string]asset), origins: http.NewCrossOriginProtection(), readers: make(chan struct{}, maxReaders)}
	if h.cfg.PublicURL != "" {
		// Behind a proxy that says another Host than the browser does.
		if err := u.origins.AddTrustedOrigin(h.cfg.PublicURL); err != nil {
			h.cfg.Log.Warn("public_url is no origin that forms may come from", "err", err)
		}
	}
	u.load()
	h.lost = u.lost
	get := func(pattern string, v view) { u.route(http.MethodGet, pattern, fleet.RightView, v) }
	post := func(pattern string, right fleet.Right, v view) { u.route(http.MethodPost, pattern, right, v) }
	get("/{$}", u.home)
	get("/devices", u.devices)
	get("/devices/{id}", u.device)
	post("/devices/{id}/command", fleet.RightOperate, u.command)
	post("/devices/{id}/channel", fleet.RightOperate, u.deviceChannel)
	post("/devices/{id}/clear", fleet.RightOperate, u.clearDevice)
	post("/devices/{id}/revoke", fleet.RightOperate, u.revokeDevice)
	get("/releases", u.releases)
	get("/releases/{sha256}", u.release)
	post("/releases/{sha256}/channel", fleet.RightOperate, u.pointChannel)
	post("/releases/{sha256}/withdraw", fleet.RightOperate, u.withdrawRelease)
	post("/releases/{sha256}/lift", fleet.RightOperate, u.liftQuarantine)
	get("/rollouts", u.rollouts)
	u.route(http.MethodGet, "/rollouts/new", fleet.RightOperate, u.newRollout)
	post("/rollouts", fleet.RightOperate, u.createRollout)
	get("/rollouts/{id}", u.rollout)
	post("/rollouts/{id}/pause", fleet.RightOperate, u.turnRollout(fleet.VerbPause, h.cfg.Fleet.Pause))
	post("/rollouts/{id}/resume", fleet.RightOperate, u.turnRollout(fleet.VerbResume, h.cfg.Fleet.Resume))
	post("/rollouts/{id}/abort", fleet.RightOperate, u.turnRollout(fleet.VerbAbort, h.cfg.Fleet.Abort))
	u.route(http.MethodGet, "/audit", fleet.RightAudit, u.auditPage)
	get("/account", u.account)
	post("/account/password", fleet.RightPassword, u.changePassword)
	u.routeAccess()
	u.routeWebhooks()
	get("/events", u.events)
	h.mux.HandleFunc("GET /login", u.loginForm)
	h.mux.HandleFunc("POST /login", u.login)
	if h.cfg.SSO != nil {
		h.mux.HandleFunc("GET /login/sso", u.ssoBegin)
		h.mux.HandleFunc("GET "+SSOCallback, u.ssoCallback)
	}
	h.mux.HandleFunc("POST /logout", u.logout)
	for p, a := range u.static {
		h.mux.HandleFunc("GET "+p, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", a.kind)
			w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
			_, _ = paced(w).Write(a.body)
		})
	}
}

// load reads templates and static files; they are part of the program, so a fault in them is a bug.
func (u *ui) load() {
	kinds := map[string]string{".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
	names := make(map[string]string)
	files, err := dashboardFiles.ReadDir("static")
	if err != nil {
		panic("web: " + err.Error())
	}
	for _, f := range files {
		body, err := dashboardFiles.ReadFile("static/" + f.Name())
		if err != nil {
			panic("web: " + err.Error())
		}
		sum := sha256.Sum256(body)
		names[f.Name()] = "/static/" + hex.EncodeToString(sum[:6]) + "/" + f.Name()
		u.static[names[f.Name()]] = asset{kinds[path.Ext(f.Name())], body}
	}
	funcs := words()
	funcs["static"] = func(name string) string { return names[name] }
	u.pages = make(map[string]*template.Template)
	for _, name := range []string{"home", "devices", "device", "releases", "release", "rollouts", "rollout", "rolloutform", "draft", "audit", "account", "access", "webhooks", "login", "confirm", "fault"} {
		t := template.New(name).Funcs(funcs).Option("missingkey=error")
		u.pages[name] = template.Must(t.ParseFS(dashboardFiles, "templates/ui/base.html", "templates/ui/"+name+".html"))
	}
}

// view answers one request of somebody who is signed in and has the right. An error becomes a page of its own.
type view func(w http.ResponseWriter, r *http.Request, by fleet.Identity) error

// route adds a page. Whoever is not signed in is sent to do so; a form from another site is refused before anything else.
func (u *ui) route(method, pattern string, right fleet.Right, v view) {
	u.h.mux.HandleFunc(method+" "+pattern, func(w http.ResponseWriter, r *http.Request) {
		u.headers(w)
		if err := u.origins.Check(r); err != nil {
			u.fault(w, r, fleet.Identity{}, fmt.Errorf("%w: the form was sent from another site", fleet.ErrDenied))
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxForm)
		background := r.Header.Get(liveHeader) != "" || pattern == "/events"
		by, err := u.h.cfg.Fleet.BySession(r.Context(), cookieOf(r), !background)
		switch {
		case errors.Is(err, fleet.ErrDenied) && background:
			plain(w, http.StatusUnauthorized, "the session has ended")
			return
		case errors.Is(err, fleet.ErrDenied):
			target := "/login"
			if method == http.MethodGet && r.URL.RequestURI() != "/" {
				target += "?next=" + url.QueryEscape(r.URL.RequestURI())
			}
			http.Redirect(w, r, target, http.StatusSeeOther)
			return
		case err == nil && !by.Has(right):
			err = u.h.lacks(r, fleet.ViaWeb, by, right)
		}
		if err == nil {
			err = v(w, r, by)
		}
		if err != nil {
			u.fault(w, r, by, err)
		}
	})
}

// headers are those of every page. Pages hold what only their reader may see, so nobody keeps them.
func (u *ui) headers(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Content-Security-Policy", pagePolicy)
	h.Set("Referrer-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	u.h.httpsOnly(w)
}

// page is what base.html needs; Data is the page's own.
type page struct {
	Title   string
	Here    string // the entry of the navigation that this page belongs to
	By      fleet.Identity
	Operate bool   // whether the reader may change the fleet
	Admin   bool   // whether the reader decides who may
	Audit   bool   // whether the reader may see who did what
	Version string // of bmsota
	Live    string // where changes are told; empty = nowhere
	Done    string // what has just been done
	Fault   string // why something was not done
	Data    any
}

// show renders a page and then writes it, so that a template that fails is an error and not half a page.
func (u *ui) show(w http.ResponseWriter, status int, name string, p page) error {
	p.Operate, p.Admin, p.Audit, p.Version = p.By.Has(fleet.RightOperate), p.By.Has(fleet.RightAdminister), p.By.Has(fleet.RightAudit), u.h.cfg.Version
	var b strings.Builder
	if err := u.pages[name].ExecuteTemplate(&b, "base.html", p); err != nil {
		return fmt.Errorf("page %s: %w", name, err)
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(paced(w), b.String())
	return nil
}

// fault answers with a page that says in one sentence what is wrong.
func (u *ui) fault(w http.ResponseWriter, r *http.Request, by fleet.Identity, err error) {
	p := problemOf(err)
	if p.Status >= 500 && r.Context().Err() == nil { // a reader who left is no fault
		u.h.cfg.Log.LogAttrs(r.Context(), slog.LevelError, "page failed", slog.String("path", r.URL.Path), slog.Any("err", err))
	}
	_ = busy(w, err)
	if shown := u.show(w, p.Status, "fault", page{Title: p.Title, By: by, Data: sentence(err)}); shown != nil {
		u.h.fail(w, r, shown)
	}
}

// lost is where nothing is. Nobody is asked who he is for it, so it shows nothing.
func (u *ui) lost(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead || !strings.Contains(r.Header.Get("Accept"), "text/html") ||
		strings.HasPrefix(r.URL.Path, "/api/") || strings.HasPrefix(r.URL.Path, "/firmware/") {
		u.h.fail(w, r, errNoPath)
		return
	}
	u.headers(w)
	u.fault(w, r, fleet.Identity{}, errNoPath)
}

// sentence is what an error says to a person.
func sentence(err error) string {
	text := problemOf(err).Detail
	for _, kind := range []error{fleet.ErrInvalid, fleet.ErrRefused, fleet.ErrConflict, fleet.ErrDenied} {
		text = strings.TrimPrefix(text, kind.Error()+": ")
	}
	if text == "" {
		return ""
	}
	return strings.ToUpper(text[:1]) + text[1:] + "."
}

// form reads a form's fields: known ones only, each once.
func form(r *http.Request, known ...string) (map[string]string, error) {
	if err := r.ParseForm(); err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			return nil, err
		}
		return nil, fmt.Errorf("%w: the form cannot be read", fleet.ErrInvalid)
	}
	fields := make(map[string]string, len(known))
	for _, name := range known {
		fields[name] = ""
	}
	for name, values := range r.PostForm {
		if _, ok := fields[name]; !ok || len(values) != 1 {
			return nil, fmt.Errorf("%w: the form has a field %.32q that does not belong there", fleet.ErrInvalid, name)
		}
		fields[name] = strings.TrimSpace(values[0])
	}
	return fields, nil
}

// confirmation is a page between an order that is hard to undo and its being carried out.
type confirmation struct {
	Question string
	Means    []string // what it leads to
	CLI      string
	Action   string // where the form goes
	Fields   map[string]string
	Button   string
	Back     string
}

// confirm asks; the answer comes back as the same form with confirmed=yes.
func (u *ui) confirm(w http.ResponseWriter, by fleet.Identity, here string, c confirmation) error {
	c.Fields["confirmed"] = "yes"
	return u.show(w, http.StatusOK, "confirm", page{Title: c.Question, Here: here, By: by, Data: c})
}

// done sends the reader back to a page that says what was done.
func done(w http.ResponseWriter, r *http.Request, target, what string) error {
	http.Redirect(w, r, target+"?done="+url.QueryEscape(what), http.StatusSeeOther)
	return nil
}

// doneTexts are the sentences that ?done= may ask for. Nobody else's words can be put on a page.
var doneTexts = map[string]string{
	"check": "The device was asked what it is offered.", "status": "The device was asked for its status.",
	"update": "The update is ordered. A device that is away learns of it when it comes back.", "rollback": "The rollback is ordered.",
	"clear":  "The device is suspected of nothing any more: rollouts count it again.",
	"revoke": "The device is revoked and can no longer log in.", "channel": "The channel points at this release now.",
	"moved":    "The device is in this channel now. It is offered what that points at when it next asks.",
	"withdraw": "The release is withdrawn: it is offered to nobody.", "lift": "The quarantine is lifted: the release may be offered again.",
	"account-made": "The account is made.", "account-gone": "The account is removed, and its sessions have ended.",
	"token-gone": "The token is removed: it works no more.", "password": "The new password is set, and the sessions of the account have ended.",
	"webhook-test": "A test is on its way: this page says what came of it.", "webhook-gone": "The webhook is removed.",
	"create": "The rollout has begun.", "pause": "The rollout is paused: nothing more is started.", "resume": "The rollout goes on.", "abort": "The rollout is aborted.",
}
