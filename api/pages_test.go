package api_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"bmsota/api"
)

// A listing is followed from page to page of the one server, however often that says there is more, and nowhere else.
func TestListingsAreReadToTheirEndAndNoFurther(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("another server was asked, with the token %q", r.Header.Get("Authorization"))
	}))
	defer elsewhere.Close()
	for name, c := range map[string]struct {
		rows  string
		links map[string]string // by the query that is asked
		want  int               // rows; -1: refused
	}{
		"one page":         {`[{"name":"a"}]`, nil, 1},
		"no rows":          {`[]`, nil, 0},
		"three pages":      {`[{"name":"a"}]`, map[string]string{"limit=500": `<?after=a&limit=500>; rel="next"`, "after=a&limit=500": `<?after=b>; rel="next"`}, 3},
		"round and round":  {`[{"name":"a"}]`, map[string]string{"limit=500": `<?after=a>; rel="next"`, "after=a": `<?after=a>; rel="next"`}, -1},
		"empty, and more":  {`[]`, map[string]string{"limit=500": `<?after=a>; rel="next"`}, -1},
		"another server":   {`[{"name":"a"}]`, map[string]string{"limit=500": "<" + elsewhere.URL + `/api/v1/tokens?after=a>; rel="next"`}, -1},
		"another path":     {`[{"name":"a"}]`, map[string]string{"limit=500": `</api/v1/devices?after=a>; rel="next"`}, -1},
		"the path itself":  {`[{"name":"a"}]`, map[string]string{"limit=500": `</api/v1/tokens?after=a>; rel="next"`}, 2},
		"another relation": {`[{"name":"a"}]`, map[string]string{"limit=500": `<?after=a>; rel="prev"`}, 1},
		"broken":           {`[{"name":"a"}]`, map[string]string{"limit=500": `<?after=a; rel="next"`}, -1},
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if link := c.links[r.URL.RawQuery]; link != "" {
				w.Header().Set("Link", link)
			}
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, c.rows)
		}))
		client, err := api.NewClient(api.Options{BaseURL: srv.URL, Token: "t"})
		if err != nil {
			t.Fatal(err)
		}
		list, err := client.Tokens(t.Context())
		var e *api.Error
		switch {
		case c.want < 0 && (!errors.As(err, &e) || e.Code != api.CodeUnexpectedAnswer):
			t.Errorf("%s: %d rows, %v", name, len(list), err)
		case c.want >= 0 && (err != nil || len(list) != c.want):
			t.Errorf("%s: %d rows, want %d (%v)", name, len(list), c.want, err)
		}
		srv.Close()
	}
}
