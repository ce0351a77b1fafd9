package web

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"syscall"

	"bmsota/api"
	"bmsota/server/internal/fleet"
)

// problems maps an error to its HTTP status and code: the one table. The first row that matches counts, so what is
// more special stands first.
var problems = []struct {
	is     func(error) bool
	status int
	code   api.Code
}{
	{target(errNoPath), http.StatusNotFound, api.CodeNotFound},
	{target(errMethod), http.StatusMethodNotAllowed, api.CodeMethod},
	{target(errToken), http.StatusUnauthorized, api.CodeUnauthorized},
	{target(errMedia), http.StatusUnsupportedMediaType, api.CodeMediaType},
	{target(errLength), http.StatusLengthRequired, api.CodeLengthRequired},
	{tooLarge, http.StatusRequestEntityTooLarge, api.CodeTooLarge},
	{tooSoon, http.StatusTooManyRequests, api.CodeTooManyTries},
	{full, http.StatusInsufficientStorage, api.CodeStorageFull},
	{target(fleet.ErrDamaged), http.StatusBadGateway, api.CodeDamaged},
	{target(fleet.ErrStorage), http.StatusServiceUnavailable, api.CodeStorage},
	{target(fleet.ErrNotFound), http.StatusNotFound, api.CodeNotFound},
	{target(fleet.ErrConflict), http.StatusConflict, api.CodeConflict},
	{target(fleet.ErrRefused), http.StatusUnprocessableEntity, api.CodeRefused},
	{target(fleet.ErrInvalid), http.StatusBadRequest, api.CodeInvalid},
	{target(fleet.ErrDenied), http.StatusForbidden, api.CodeDenied},
	{target(context.Canceled), http.StatusServiceUnavailable, api.CodeUnavailable},
	{target(context.DeadlineExceeded), http.StatusServiceUnavailable, api.CodeUnavailable},
}

func target(want error) func(error) bool {
	return func(err error) bool { return errors.Is(err, want) }
}

func tooLarge(err error) bool {
	var m *http.MaxBytesError
	return errors.As(err, &m)
}

func full(err error) bool {
	return errors.Is(err, fleet.ErrStorage) && errors.Is(err, syscall.ENOSPC)
}

// problemOf finds the row of err. What is in no row is a fault of this program, and its text stays in the log.
func problemOf(err error) api.Problem {
	for _, row := range problems {
		if row.is(err) {
			return api.Problem{Type: "about:blank", Title: http.StatusText(row.status), Status: row.status, Code: row.code, Detail: err.Error()}
		}
	}
	const status = http.StatusInternalServerError
	return api.Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Code: api.CodeInternal, Detail: "a fault of the server; its log says more"}
}

// fail answers with the problem document of err. Faults of the server are logged, what a client did wrong is not.
func (h *handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	p := problemOf(err)
	header := w.Header()
	if p.Status >= 500 {
		h.cfg.Log.LogAttrs(r.Context(), slog.LevelError, "request failed",
			slog.String("method", r.Method), slog.String("path", r.URL.Path), slog.Int("status", p.Status), slog.Any("err", err))
		if p.Status != http.StatusInternalServerError {
			header.Set("Retry-After", "30")
		}
	}
	b, err := json.Marshal(p)
	if err != nil {
		panic("web: a problem does not encode: " + err.Error())
	}
	// What was said about a body that is not sent would be wrong about this one.
	header.Del("ETag")
	header.Del("Accept-Ranges")
	header.Set("Content-Type", api.ProblemType)
	header.Set("Cache-Control", "no-store")
	w.WriteHeader(p.Status)
	_, _ = w.Write(append(b, '\n'))
}
