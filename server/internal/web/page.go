package web

import (
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"bmsota/api"
	"bmsota/server/internal/fleet"
)

// paged are the parameters of a listing.
var paged = []param{
	{"limit", fmt.Sprintf("how many at most, 1 to %d (default %d)", api.MaxPage, api.DefaultPage), reflect.TypeFor[int]()},
	{"after", "go on behind this row; the Link header of a page that is not the last names it", reflect.TypeFor[string]()},
}

// pageOf reads which page of a listing is asked for.
func pageOf(r *http.Request) (after string, limit int, err error) {
	q := r.URL.Query()
	if limit, err = number(q.Get("limit"), "limit", api.DefaultPage, 1, api.MaxPage); err != nil {
		return "", 0, err
	}
	if after = q.Get("after"); len(after) > 256 {
		return "", 0, fmt.Errorf("%w: after is longer than 256 bytes", fleet.ErrInvalid)
	}
	return after, limit, nil
}

// nextPage says where the listing goes on (RFC 8288). The address is relative, because a proxy may have put a path
// before ours.
func nextPage(w http.ResponseWriter, limit int, last string) {
	q := url.Values{"after": {last}, "limit": {strconv.Itoa(limit)}}
	w.Header().Set("Link", "<?"+q.Encode()+`>; rel="next"`)
}

// shown is a page that the fleet has cut, as the API shows it: limit rows, or fewer when they are the last. id names a row.
func shown[T, Row any](w http.ResponseWriter, rows []T, limit int, id func(T) string, show func(T) Row) []Row {
	if len(rows) == limit {
		nextPage(w, limit, id(rows[limit-1]))
	}
	out := make([]Row, 0, len(rows))
	for _, row := range rows {
		out = append(out, show(row))
	}
	return out
}

// cut is the page of rows that is asked for; key names a row. The rows never go away, so the one that a page ended with
// is there when the next is asked for.
func cut[T any](w http.ResponseWriter, r *http.Request, rows []T, key func(T) string) ([]T, error) {
	return cutBehind(w, r, rows, key, func(after string) (int, error) {
		at := slices.IndexFunc(rows, func(row T) bool { return key(row) == after })
		if at < 0 {
			return 0, fmt.Errorf("%w: after: nothing in this list is called %.64q", fleet.ErrInvalid, after)
		}
		return at + 1, nil
	})
}

// cutByName is cut for rows that are in the order of their keys and may go away.
func cutByName[T any](w http.ResponseWriter, r *http.Request, rows []T, key func(T) string) ([]T, error) {
	return cutBehind(w, r, rows, key, func(after string) (int, error) {
		at, found := slices.BinarySearchFunc(rows, after, func(row T, name string) int { return strings.Compare(key(row), name) })
		if found {
			at++
		}
		return at, nil
	})
}

func cutBehind[T any](w http.ResponseWriter, r *http.Request, rows []T, key func(T) string, behind func(after string) (int, error)) ([]T, error) {
	after, limit, err := pageOf(r)
	if err != nil {
		return nil, err
	}
	if after != "" {
		at, err := behind(after)
		if err != nil {
			return nil, err
		}
		rows = rows[at:]
	}
	if len(rows) > limit {
		rows = rows[:limit]
		nextPage(w, limit, key(rows[limit-1]))
	}
	return rows, nil
}
