package api

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"bmsota/protocol"
)

// IdempotencyKey is the header that makes a repeated request the same request (draft-ietf-httpapi-idempotency-key-header).
// POST /rollouts heeds it.
const IdempotencyKey = "Idempotency-Key"

// Selector says which devices a rollout is for: those that every field which is given is true of.
type Selector struct {
	All      bool              `json:"all,omitempty"` // must be said where nothing else is
	IDs      []string          `json:"ids,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
	Versions string            `json:"versions,omitempty"` // range of running versions, ">=1.2.0 <2.0.0"
	Channel  string            `json:"channel,omitempty"`
	Chip     string            `json:"chip,omitempty"`
}

// Wave is one step of a rollout: how many members may have been touched, those of the waves before included. One of
// Count and Percent is set.
type Wave struct {
	Count   int     `json:"count,omitempty"`
	Percent float64 `json:"percent,omitempty"`
	SoakS   int64   `json:"soak_s,omitempty"` // seconds that it must stand before the next begins
}

// Stop holds the rules that halt a rollout: a figure above its limit does.
type Stop struct {
	FailedPct  *float64 `json:"failed_pct,omitempty"` // of the members that the present wave may touch
	Failed     *int     `json:"failed,omitempty"`
	RolledBack *int     `json:"rolled_back,omitempty"`
	Brownouts  *int     `json:"brownouts,omitempty"` // counted apart from failures
}

// RolloutGate holds what a device's last status must say before it is started.
type RolloutGate struct {
	MinSOCPct        float64 `json:"min_soc_pct,omitempty"`
	NotWhileCharging bool    `json:"not_while_charging,omitempty"`
	MaxCurrentA      float64 `json:"max_current_a,omitempty"`
	// °C of the coldest and of the warmest cell; left out = any.
	MinTempC *float64 `json:"min_temp_c,omitempty"`
	MaxTempC *float64 `json:"max_temp_c,omitempty"`
}

// Policy is how a release is delivered. What is left out has a default, which the answer shows.
type Policy struct {
	Description      string      `json:"description,omitempty"`
	Selector         Selector    `json:"selector"`
	Seed             string      `json:"seed,omitempty"` // orders the members; default: the digest of the release
	Waves            []Wave      `json:"waves,omitempty"`
	Stop             Stop        `json:"stop,omitzero"`
	NeedPct          float64     `json:"need_pct,omitempty"` // that must have succeeded before members that are away are left behind
	Gate             RolloutGate `json:"gate,omitzero"`
	OverrideGates    bool        `json:"override_gates,omitempty"`
	Window           string      `json:"window,omitempty"` // "HH:MM-HH:MM", in the time of each device
	Concurrency      int         `json:"concurrency,omitempty"`
	PerMinute        int         `json:"per_minute,omitempty"`
	JitterS          int64       `json:"jitter_s,omitempty"`
	Priority         int         `json:"priority,omitempty"`
	Retries          int         `json:"retries,omitempty"`
	RetryAfterS      int64       `json:"retry_after_s,omitempty"`
	SilenceS         int64       `json:"silence_s,omitempty"`
	DeadlineS        int64       `json:"deadline_s,omitempty"`
	LastsS           int64       `json:"lasts_s,omitempty"`
	Spread           string      `json:"spread,omitempty"` // label whose values never update twice at once
	Force            bool        `json:"force,omitempty"`
	AllowUnprotected bool        `json:"allow_unprotected,omitempty"`
}

// RolloutRequest asks for a rollout of a published version.
type RolloutRequest struct {
	Version string `json:"version"`
	Project string `json:"project,omitempty"` // where several have the version
	Chip    string `json:"chip,omitempty"`    // likewise
	Policy  Policy `json:"policy"`
	Expect  *int   `json:"expect,omitempty"` // another number of members is refused
}

// Figures count the members of a rollout.
type Figures struct {
	Pending    int `json:"pending"`
	Open       int `json:"open"`
	Succeeded  int `json:"succeeded"`
	Failed     int `json:"failed"` // or refused
	RolledBack int `json:"rolled_back"`
	Brownouts  int `json:"brownouts"`
	Silent     int `json:"silent"`
	Skipped    int `json:"skipped"`
	Dark       int `json:"dark"`    // of the succeeded ones and those to be tried again: not heard of since
	Suspect    int `json:"suspect"` // set aside, because what they report does not go together
}

// Failures are the devices that speak against the release.
func (f Figures) Failures() int { return f.Failed + f.RolledBack + f.Silent + f.Dark }

// Halt is the rule that halted a rollout, with its figures.
type Halt struct {
	Rule   string    `json:"rule"` // failed_pct, failed, rolled_back, brownouts, quarantined, withdrawn, no_success
	Figure int       `json:"figure"`
	Of     int       `json:"of,omitempty"`
	Limit  float64   `json:"limit"`
	Text   string    `json:"text"`
	At     time.Time `json:"at"`
}

// RolloutEvent is something that happened to a rollout.
type RolloutEvent struct {
	At   time.Time `json:"at"`
	By   string    `json:"by,omitempty"` // operator; empty = the server
	Text string    `json:"text"`
}

// WaveLimit is a wave as a number of members, those of the waves before it included.
type WaveLimit struct {
	Limit int   `json:"limit"`
	SoakS int64 `json:"soak_s"`
	// What follows counts the wave's own members. Listings leave it out.
	Figures *Figures       `json:"figures,omitempty"` // dark is not counted by wave
	Held    map[string]int `json:"held,omitempty"`    // pending ones by what holds them back, as far as they were looked at
}

// RolloutWait is a member that keeps a wave, or the end, waiting while nothing is under way.
type RolloutWait struct {
	DeviceID string    `json:"device_id"`
	Hold     string    `json:"hold"`
	HoldText string    `json:"hold_text"`
	Since    time.Time `json:"since,omitzero"` // when one that is not connected was last heard of
}

// Rollout is the delivery of one release to its members.
type Rollout struct {
	ID        string         `json:"id"`
	State     string         `json:"state"` // running, paused, halted, aborted, done
	Version   string         `json:"version"`
	Project   string         `json:"project"`
	Chip      string         `json:"chip"`
	SHA256    string         `json:"sha256"`
	Members   int            `json:"members"`
	Wave      int            `json:"wave"` // the present one, from 1
	Waves     []WaveLimit    `json:"waves"`
	WaveSince time.Time      `json:"wave_since,omitzero"`
	SoakSince time.Time      `json:"soak_since,omitzero"`
	Figures   Figures        `json:"figures"`
	Waits     []RolloutWait  `json:"waits,omitempty"`      // the first of them; listings leave them out
	WaitsMore int            `json:"waits_more,omitempty"` // how many there are beside them
	Halt      *Halt          `json:"halt"`                 // null unless a rule has ever halted it
	Policy    Policy         `json:"policy"`
	CreatedAt time.Time      `json:"created_at"`
	CreatedBy string         `json:"created_by"`
	ExpiresAt time.Time      `json:"expires_at,omitzero"`
	EndedAt   time.Time      `json:"ended_at,omitzero"`
	Events    []RolloutEvent `json:"events"` // oldest first
}

// Member is a device in a rollout.
type Member struct {
	DeviceID  string          `json:"device_id"`
	Rank      int             `json:"rank"`
	Wave      int             `json:"wave"`  // from 1
	State     string          `json:"state"` // pending, open, succeeded, failed, rolled_back, brownout, silent, skipped
	Tries     int             `json:"tries"`
	Phase     protocol.Phase  `json:"phase,omitempty"` // of the device now
	Reason    protocol.Reason `json:"reason,omitempty"`
	Message   string          `json:"message,omitempty"`
	Hold      string          `json:"hold,omitempty"` // why a pending one is not started now
	HoldText  string          `json:"hold_text,omitempty"`
	UpdatedAt time.Time       `json:"updated_at,omitzero"`
}

// MemberPage is a part of the members, by rank.
type MemberPage struct {
	Members []Member `json:"members"`
	Next    int      `json:"next"` // rank to ask for more after; -1 when there are no more
}

// Cannot is a device that is meant and left out.
type Cannot struct {
	DeviceID string `json:"device_id"`
	Reason   string `json:"reason"`
	Detail   string `json:"detail,omitempty"`
}

// Held is how many members one thing holds back.
type Held struct {
	Hold  string `json:"hold"`
	Text  string `json:"text"` // for people
	Count int    `json:"count"`
}

// RolloutDraft is what a rollout would be.
type RolloutDraft struct {
	Rollout  Rollout  `json:"rollout"`
	Members  []Member `json:"members"` // by rank, with what holds them back now
	Cannot   []Cannot `json:"cannot"`
	Held     []Held   `json:"held"`       // what would hold members back now, most first
	Through  int      `json:"through"`    // members that install another release first
	UpToDate int      `json:"up_to_date"` // members that run the release already
}

// RehearsalRequest asks what a rollout would do to the server's fleet.
type RehearsalRequest struct {
	RolloutRequest
	Mix     map[string]float64 `json:"mix"` // shares of good, crash, silent, brownout, fail, flaky, refuse, dark, mute
	MixSeed string             `json:"mix_seed,omitempty"`
	UpdateS int64              `json:"update_s,omitempty"` // seconds that an update takes, about
}

// RehearsalRun is one run of a policy over the copy of a fleet.
type RehearsalRun struct {
	State   string         `json:"state"`
	Halt    *Halt          `json:"halt"`
	Wave    int            `json:"wave"`
	Touched int            `json:"touched"` // devices that were started
	Harmed  int            `json:"harmed"`  // of them, those that the build did not suit
	Figures Figures        `json:"figures"`
	TookS   int64          `json:"took_s"` // until the halt or the end
	Events  []RolloutEvent `json:"events"`
}

// Rehearsal is what came of it: of the build that the mix describes, and of a good one.
type Rehearsal struct {
	Members int          `json:"members"`
	Away    int          `json:"away"` // not heard of for a day
	Bad     RehearsalRun `json:"bad"`
	Good    RehearsalRun `json:"good"`
}

// SetLabelsRequest changes labels of a device.
type SetLabelsRequest struct {
	Set    map[string]string `json:"set,omitempty"`
	Remove []string          `json:"remove,omitempty"`
}

// SetDeviceChannelRequest puts a device into a channel.
type SetDeviceChannelRequest struct {
	Channel string `json:"channel"`
}

// DryRunRollout says what CreateRollout would make, and changes nothing.
func (c *Client) DryRunRollout(ctx context.Context, in RolloutRequest) (out RolloutDraft, err error) {
	return out, c.call(ctx, http.MethodPost, "/rollouts/dry-run", in, &out)
}

// CreateRollout begins a rollout. The same request with the same key, which may be empty, makes it once.
func (c *Client) CreateRollout(ctx context.Context, in RolloutRequest, key string) (out Rollout, err error) {
	return out, c.callWith(ctx, http.MethodPost, "/rollouts", in, &out, func(h http.Header) {
		if key != "" {
			h.Set(IdempotencyKey, key)
		}
	})
}

// Rehearse runs a policy over a copy of the server's fleet in virtual time.
func (c *Client) Rehearse(ctx context.Context, in RehearsalRequest) (out Rehearsal, err error) {
	return out, c.call(ctx, http.MethodPost, "/rollouts/rehearse", in, &out)
}

// Rollouts lists every rollout, newest first.
func (c *Client) Rollouts(ctx context.Context) ([]Rollout, error) {
	return all[Rollout](ctx, c, "/rollouts")
}

// Rollout returns one rollout.
func (c *Client) Rollout(ctx context.Context, id string) (out Rollout, err error) {
	return out, c.call(ctx, http.MethodGet, "/rollouts/"+url.PathEscape(id), nil, &out)
}

// RolloutMembers returns up to limit members with a rank above after (-1 for the first); with a state, those in it alone.
func (c *Client) RolloutMembers(ctx context.Context, id, state string, after, limit int) (out MemberPage, err error) {
	q := url.Values{"state": {state}, "after": {strconv.Itoa(after)}, "limit": {strconv.Itoa(limit)}}
	return out, c.call(ctx, http.MethodGet, "/rollouts/"+url.PathEscape(id)+"/members?"+q.Encode(), nil, &out)
}

// TurnRollout does pause, resume or abort to a rollout.
func (c *Client) TurnRollout(ctx context.Context, id, verb string) (out Rollout, err error) {
	return out, c.call(ctx, http.MethodPost, "/rollouts/"+url.PathEscape(id)+"/"+url.PathEscape(verb), nil, &out)
}

// SkipMember leaves a member out that waits to be started.
func (c *Client) SkipMember(ctx context.Context, rollout, device string) (out Rollout, err error) {
	return out, c.call(ctx, http.MethodPost, "/rollouts/"+url.PathEscape(rollout)+"/members/"+url.PathEscape(device)+"/skip", nil, &out)
}

// SetLabels changes labels of a device and returns all it has then.
func (c *Client) SetLabels(ctx context.Context, device string, in SetLabelsRequest) (out map[string]string, err error) {
	return out, c.call(ctx, http.MethodPost, "/devices/"+url.PathEscape(device)+"/labels", in, &out)
}

// SetDeviceChannel puts a device into a channel and returns the device.
func (c *Client) SetDeviceChannel(ctx context.Context, device, channel string) (out Device, err error) {
	return out, c.call(ctx, http.MethodPost, "/devices/"+url.PathEscape(device)+"/channel", SetDeviceChannelRequest{channel}, &out)
}

// LiftQuarantine lets a quarantined release be offered again.
func (c *Client) LiftQuarantine(ctx context.Context, sha256 string) error {
	return c.call(ctx, http.MethodPost, "/releases/"+url.PathEscape(sha256)+"/lift", nil, nil)
}
