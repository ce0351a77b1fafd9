package web

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

// choicesFor is how old the names may be that a listing offers to choose from.
const choicesFor = time.Minute

// devicesShown is how many devices a page lists.
const devicesShown = 50

type devicesData struct {
	Query           fleet.DeviceQuery
	Rows            []fleet.Device
	Total           int
	Newer, Older    string // links to the pages before and after; empty where there is none
	States          []fleet.State
	Phases          []protocol.Phase
	Projects, Chips []string
	Versions        []string
	Channels        []string
	CLI             string
}

// deviceFields are what the address of a listing may say.
var deviceFields = []string{"state", "phase", "reason", "version", "project", "chip", "channel", "q", "image", "sort", "order", "after", "before"}

func (u *ui) devices(w http.ResponseWriter, r *http.Request, by fleet.Identity) error {
	values := r.URL.Query()
	for name := range values {
		if !slices.Contains(deviceFields, name) {
			return fmt.Errorf("%w: devices cannot be narrowed by %.32q", fleet.ErrInvalid, name)
		}
	}
	q, err := deviceQuery(values)
	if err != nil {
		return err
	}
	rows, total, err := u.h.cfg.Fleet.DevicePage(r.Context(), q)
	if err != nil {
		return err
	}
	d := devicesData{Query: q, Rows: rows, Total: total, States: fleet.States(), Phases: protocol.Phases(), CLI: "bmsota devices list"}
	// One more was asked for than is shown, which tells whether the listing goes on that way.
	more := len(d.Rows) > devicesShown
	if more && q.Back {
		d.Rows = d.Rows[1:]
	} else if more {
		d.Rows = d.Rows[:devicesShown]
	}
	if n := len(d.Rows); n > 0 {
		if q.After != nil && (!q.Back || more) {
			d.Newer = pageLink(values, "before", d.Rows[0])
		}
		if more && !q.Back || q.Back {
			d.Older = pageLink(values, "after", d.Rows[n-1])
		}
	}
	if err := u.choices(r, &d); err != nil {
		return err
	}
	return u.show(w, http.StatusOK, "devices", page{Title: "Devices", Here: "devices", By: by, Live: "/events", Data: d})
}

// choices are what the fleet has to choose from.
func (u *ui) choices(r *http.Request, d *devicesData) error {
	census, err := u.h.cfg.Fleet.Census(r.Context(), choicesFor)
	if err != nil {
		return err
	}
	add := func(list *[]string, s string) {
		if s != "" && len(*list) < 100 && !slices.Contains(*list, s) {
			*list = append(*list, s)
		}
	}
	for _, v := range census.Versions {
		add(&d.Projects, v.Project)
		add(&d.Chips, v.Chip)
		add(&d.Versions, v.Version)
	}
	channels, err := u.h.cfg.Fleet.Channels(r.Context())
	if err != nil {
		return err
	}
	for _, c := range channels {
		add(&d.Channels, c.Name)
	}
	// What is asked for can be chosen even where no device has it.
	add(&d.Projects, d.Query.Project)
	add(&d.Chips, d.Query.Chip)
	add(&d.Channels, d.Query.Channel)
	return nil
}

func deviceQuery(values url.Values) (fleet.DeviceQuery, error) {
	q := fleet.DeviceQuery{
		State: fleet.State(values.Get("state")), Phase: protocol.Phase(values.Get("phase")), Reason: protocol.Reason(values.Get("reason")),
		Version: values.Get("version"), SHA256: values.Get("image"), Project: values.Get("project"), Chip: values.Get("chip"), Channel: values.Get("channel"), Text: values.Get("q"),
		Sort: fleet.Sort(values.Get("sort")), Limit: devicesShown + 1,
	}
	switch values.Get("order") {
	case "", "up":
	case "down":
		q.Desc = true
	default:
		return q, fmt.Errorf("%w: an order is up or down", fleet.ErrInvalid)
	}
	mark := values.Get("after")
	if before := values.Get("before"); before != "" {
		mark, q.Back = before, true
	}
	if mark == "" {
		return q, nil
	}
	m, err := readMark(mark)
	q.After = &m
	return q, err
}

// placeMark is a fleet.DeviceMark in an address.
type placeMark struct {
	ID      string `json:"i"`
	Seen    int64  `json:"s,omitempty"` // milliseconds
	Version string `json:"v,omitempty"`
}

func readMark(text string) (fleet.DeviceMark, error) {
	var m placeMark
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err == nil && len(b) <= 512 {
		err = json.Unmarshal(b, &m)
	}
	if err != nil || m.ID == "" || len(m.ID) > protocol.MaxDeviceID {
		return fleet.DeviceMark{}, fmt.Errorf("%w: the address names no place in the listing", fleet.ErrInvalid)
	}
	mark := fleet.DeviceMark{ID: m.ID, Version: m.Version}
	if m.Seen != 0 {
		mark.Seen = time.UnixMilli(m.Seen).UTC()
	}
	return mark, nil
}

func pageLink(values url.Values, to string, d fleet.Device) string {
	m := placeMark{ID: d.ID}
	switch fleet.Sort(values.Get("sort")) {
	case fleet.SortSeen:
		if !d.LastSeen.IsZero() {
			m.Seen = d.LastSeen.UnixMilli()
		}
	case fleet.SortVersion:
		m.Version = d.Version
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic("web: a place does not encode: " + err.Error())
	}
	next := url.Values{}
	for name, v := range values {
		if name != "after" && name != "before" && v[0] != "" {
			next.Set(name, v[0])
		}
	}
	next.Set(to, base64.RawURLEncoding.EncodeToString(b))
	return "/devices?" + next.Encode()
}
