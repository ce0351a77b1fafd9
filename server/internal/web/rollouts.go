package web

import (
	"context"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"time"

	"bmsota/api"
	"bmsota/server/internal/fleet"
)

// RolloutFleet is what web needs of a *fleet.Fleet for rollouts.
type RolloutFleet interface {
	PlanRollout(ctx context.Context, by fleet.Identity, req fleet.RolloutRequest) (fleet.Draft, error)
	CreateRollout(ctx context.Context, by fleet.Identity, req fleet.RolloutRequest) (fleet.Rollout, error)
	Rehearse(ctx context.Context, by fleet.Identity, req fleet.RehearsalRequest) (fleet.Rehearsal, error)
	Rollouts(ctx context.Context) ([]fleet.RolloutView, error)
	RolloutPage(ctx context.Context, after string, limit int) ([]fleet.RolloutView, error)
	OpenRollouts(ctx context.Context) ([]fleet.RolloutView, error)
	Rollout(ctx context.Context, id string) (fleet.RolloutView, error)
	RolloutMembers(ctx context.Context, id string, state fleet.MemberState, after, limit int) ([]fleet.MemberView, error)
	Pause(ctx context.Context, by fleet.Identity, rollout string) (fleet.RolloutView, error)
	Resume(ctx context.Context, by fleet.Identity, rollout string) (fleet.RolloutView, error)
	Abort(ctx context.Context, by fleet.Identity, rollout string) (fleet.RolloutView, error)
	SkipMember(ctx context.Context, by fleet.Identity, rollout, device string) (fleet.RolloutView, error)
	SetLabels(ctx context.Context, by fleet.Identity, device string, set fleet.Labels, remove []string) (fleet.Labels, error)
	SetDeviceChannel(ctx context.Context, by fleet.Identity, device, channel string) (fleet.Device, error)
	LiftQuarantine(ctx context.Context, by fleet.Identity, sha256 string) error
}

const (
	membersShown = 200    // of a page that names no limit
	maxMembers   = 10_000 // of a page
	maxDraft     = 10_000 // members and devices left out that a dry run lists; the figures are of all
)

func (h *handler) rolloutRoutes() []route {
	view, operate := fleet.RightView, fleet.RightOperate
	turns := []api.Code{api.CodeNotFound, api.CodeConflict, api.CodeRefused}
	members := []param{
		{"state", "only members in this state", reflect.TypeFor[string]()},
		{"after", "only members with a rank above this", reflect.TypeFor[int]()},
		{"limit", fmt.Sprintf("how many at most, 1 to %d (default %d)", maxMembers, membersShown), reflect.TypeFor[int]()},
	}
	return []route{
		{http.MethodGet, "/rollouts", "listRollouts", "List rollouts, newest first", view, paged, []api.Rollout{}, nil, reads(h.listRollouts)},
		{http.MethodPost, "/rollouts", "createRollout", "Choose the members and begin", operate, nil, api.Rollout{}, turns, once(takes(h.createRollout))},
		{http.MethodPost, "/rollouts/dry-run", "planRollout", "Say what a rollout would be, and change nothing", operate, nil, api.RolloutDraft{},
			[]api.Code{api.CodeNotFound, api.CodeRefused}, takes(h.dryRun)},
		{http.MethodPost, "/rollouts/rehearse", "rehearseRollout", "Run a policy over a copy of the fleet in virtual time", operate, nil, api.Rehearsal{},
			[]api.Code{api.CodeNotFound, api.CodeRefused}, takes(h.rehearse)},
		{http.MethodGet, "/rollouts/{id}", "getRollout", "Show one rollout", view, nil, api.Rollout{}, []api.Code{api.CodeNotFound}, reads(h.showRollout)},
		{http.MethodGet, "/rollouts/{id}/members", "listMembers", "List members of a rollout by rank", view, members, api.MemberPage{},
			[]api.Code{api.CodeNotFound}, reads(h.listMembers)},
		{http.MethodPost, "/rollouts/{id}/pause", "pauseRollout", "Start no more devices until it is resumed", operate, nil, api.Rollout{}, turns, reads(h.turn(h.cfg.Fleet.Pause))},
		{http.MethodPost, "/rollouts/{id}/resume", "resumeRollout", "Go on with a paused or halted rollout", operate, nil, api.Rollout{}, turns, reads(h.turn(h.cfg.Fleet.Resume))},
		{http.MethodPost, "/rollouts/{id}/abort", "abortRollout", "End a rollout for good", operate, nil, api.Rollout{}, turns, reads(h.turn(h.cfg.Fleet.Abort))},
		{http.MethodPost, "/rollouts/{id}/members/{device}/skip", "skipMember", "Leave a member out that waits", operate, nil, api.Rollout{}, turns, reads(h.skipMember)},
		{http.MethodPost, "/devices/{id}/channel", "setDeviceChannel", "Put a device into a channel", operate, nil, api.Device{},
			[]api.Code{api.CodeNotFound, api.CodeRefused}, takes(h.setDeviceChannel)},
		{http.MethodPost, "/devices/{id}/labels", "setLabels", "Set and remove labels of a device; the answer is all it has then", operate, nil, map[string]string{},
			[]api.Code{api.CodeNotFound}, takes(h.setLabels)},
		{http.MethodPost, "/releases/{sha256}/lift", "liftQuarantine", "Let a quarantined release be offered again", operate, nil, nil, digestCodes, reads(h.lift)},
	}
}

func (h *handler) lift(_ http.ResponseWriter, r *http.Request, by fleet.Identity) (any, error) {
	digest, err := digestOf(r)
	if err != nil {
		return nil, err
	}
	return nil, h.cfg.Fleet.LiftQuarantine(r.Context(), by, digest)
}

func (h *handler) listRollouts(w http.ResponseWriter, r *http.Request, _ fleet.Identity) (any, error) {
	after, limit, err := pageOf(r)
	if err != nil {
		return nil, err
	}
	list, err := h.cfg.Fleet.RolloutPage(r.Context(), after, limit)
	if err != nil {
		return nil, err
	}
	return shown(w, list, limit, func(v fleet.RolloutView) string { return v.ID }, rolloutOf), nil
}

func (h *handler) createRollout(_ http.ResponseWriter, r *http.Request, by fleet.Identity, in api.RolloutRequest) (any, error) {
	req := rolloutRequestOf(in)
	req.Key = r.Header.Get(api.IdempotencyKey)
	made, err := h.cfg.Fleet.CreateRollout(r.Context(), by, req)
	if err != nil {
		return nil, err
	}
	return shownRollout(h.cfg.Fleet.Rollout(r.Context(), made.ID))
}

func (h *handler) dryRun(_ http.ResponseWriter, r *http.Request, by fleet.Identity, in api.RolloutRequest) (any, error) {
	d, err := h.cfg.Fleet.PlanRollout(r.Context(), by, rolloutRequestOf(in))
	if err != nil {
		return nil, err
	}
	out := api.RolloutDraft{
		Rollout: rolloutOf(fleet.RolloutView{Rollout: d.Rollout, Figures: fleet.Figures{Pending: d.Rollout.Members}}),
		Members: []api.Member{}, Cannot: []api.Cannot{}, Held: []api.Held{}, Through: d.Through, UpToDate: d.UpToDate,
	}
	out.Rollout.ID = "" // it has none before it is made
	for _, m := range d.Selection.Members[:min(len(d.Selection.Members), maxDraft)] {
		out.Members = append(out.Members, memberOf(fleet.MemberView{Member: m, Hold: d.Holds[m.DeviceID]}, d.Rollout.Limits))
	}
	for _, c := range d.Cannot[:min(len(d.Cannot), maxDraft)] {
		out.Cannot = append(out.Cannot, api.Cannot(c))
	}
	for _, h := range d.Held() {
		out.Held = append(out.Held, api.Held{Hold: string(h.Hold), Text: h.Hold.Text(), Count: h.Count})
	}
	return out, nil
}

func (h *handler) rehearse(_ http.ResponseWriter, r *http.Request, by fleet.Identity, in api.RehearsalRequest) (any, error) {
	mix := make(fleet.Mix, len(in.Mix))
	for name, share := range in.Mix {
		mix[fleet.Fate(name)] = share
	}
	out, err := h.cfg.Fleet.Rehearse(r.Context(), by, fleet.RehearsalRequest{
		Rollout: rolloutRequestOf(in.RolloutRequest), Mix: mix, Seed: in.MixSeed, Update: seconds(in.UpdateS)})
	if err != nil {
		return nil, err
	}
	return api.Rehearsal{Members: out.Members, Away: out.Away, Bad: runOf(out.Bad), Good: runOf(out.Good)}, nil
}

func (h *handler) showRollout(_ http.ResponseWriter, r *http.Request, _ fleet.Identity) (any, error) {
	return shownRollout(h.cfg.Fleet.Rollout(r.Context(), r.PathValue("id")))
}

// shownRollout is a rollout, or why there is none, as the API answers.
func shownRollout(v fleet.RolloutView, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	return rolloutOf(v), nil
}

func (h *handler) listMembers(_ http.ResponseWriter, r *http.Request, _ fleet.Identity) (any, error) {
	q := r.URL.Query()
	after, err := number(q.Get("after"), "after", -1, -1, 1<<31-1)
	if err != nil {
		return nil, err
	}
	limit, err := number(q.Get("limit"), "limit", membersShown, 1, maxMembers)
	if err != nil {
		return nil, err
	}
	state := fleet.MemberState(q.Get("state"))
	if state != "" && !slices.Contains(fleet.MemberStates(), state) {
		return nil, fmt.Errorf("%w: state %.32q is none of %v", fleet.ErrInvalid, string(state), fleet.MemberStates())
	}
	v, err := h.cfg.Fleet.Rollout(r.Context(), r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	list, err := h.cfg.Fleet.RolloutMembers(r.Context(), v.ID, state, after, limit)
	if err != nil {
		return nil, err
	}
	out := api.MemberPage{Members: make([]api.Member, 0, len(list)), Next: -1}
	for _, m := range list {
		out.Members = append(out.Members, memberOf(m, v.Limits))
	}
	if len(list) == limit {
		out.Next = list[limit-1].Rank
	}
	return out, nil
}

// number reads a number of a query within low to high; what is not given is fallback.
func number(text, name string, fallback, low, high int) (int, error) {
	if text == "" {
		return fallback, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < low || n > high {
		return 0, fmt.Errorf("%w: %s %.32q is not within %d to %d", fleet.ErrInvalid, name, text, low, high)
	}
	return n, nil
}

func (h *handler) turn(verb func(context.Context, fleet.Identity, string) (fleet.RolloutView, error)) call {
	return func(_ http.ResponseWriter, r *http.Request, by fleet.Identity) (any, error) {
		return shownRollout(verb(r.Context(), by, r.PathValue("id")))
	}
}

func (h *handler) setLabels(_ http.ResponseWriter, r *http.Request, by fleet.Identity, in api.SetLabelsRequest) (any, error) {
	labels, err := h.cfg.Fleet.SetLabels(r.Context(), by, r.PathValue("id"), in.Set, in.Remove)
	if err != nil {
		return nil, err
	}
	return map[string]string(labels), nil
}

func (h *handler) skipMember(_ http.ResponseWriter, r *http.Request, by fleet.Identity) (any, error) {
	return shownRollout(h.cfg.Fleet.SkipMember(r.Context(), by, r.PathValue("id"), r.PathValue("device")))
}

func (h *handler) setDeviceChannel(_ http.ResponseWriter, r *http.Request, by fleet.Identity, in api.SetDeviceChannelRequest) (any, error) {
	d, err := h.cfg.Fleet.SetDeviceChannel(r.Context(), by, r.PathValue("id"), in.Channel)
	if err != nil {
		return nil, err
	}
	return deviceOf(d), nil
}

// seconds is a number of seconds as a time; what is absurd stays absurd instead of passing round.
func seconds(n int64) time.Duration {
	const most = 1 << 32
	return time.Duration(min(max(n, -most), most)) * time.Second
}

func rolloutRequestOf(in api.RolloutRequest) fleet.RolloutRequest {
	p := in.Policy
	out := fleet.RolloutRequest{Version: in.Version, Project: in.Project, Chip: in.Chip, Expect: in.Expect, Policy: fleet.Policy{
		Description: p.Description, Seed: p.Seed, Stop: fleet.Stop(p.Stop), NeedPct: p.NeedPct, Gate: fleet.Gate(p.Gate),
		Selector: fleet.Selector{All: p.Selector.All, IDs: p.Selector.IDs, Labels: p.Selector.Labels, Versions: p.Selector.Versions,
			Channel: p.Selector.Channel, Chip: p.Selector.Chip},
		OverrideGates: p.OverrideGates, Window: p.Window, Concurrency: p.Concurrency, PerMinute: p.PerMinute, Jitter: seconds(p.JitterS),
		Priority: p.Priority, Retries: p.Retries, RetryAfter: seconds(p.RetryAfterS), Silence: seconds(p.SilenceS),
		Deadline: seconds(p.DeadlineS), Lasts: seconds(p.LastsS), Spread: p.Spread, Force: p.Force, AllowUnprotected: p.AllowUnprotected,
	}}
	for _, w := range p.Waves {
		out.Policy.Waves = append(out.Policy.Waves, fleet.Wave{Count: w.Count, Percent: w.Percent, Soak: seconds(w.SoakS)})
	}
	return out
}

func policyOf(p fleet.Policy) api.Policy {
	s := func(d time.Duration) int64 { return int64(d / time.Second) }
	out := api.Policy{
		Description: p.Description, Seed: p.Seed, Stop: api.Stop(p.Stop), NeedPct: p.NeedPct, Gate: api.RolloutGate(p.Gate),
		Selector: api.Selector{All: p.Selector.All, IDs: p.Selector.IDs, Labels: p.Selector.Labels, Versions: p.Selector.Versions,
			Channel: p.Selector.Channel, Chip: p.Selector.Chip},
		OverrideGates: p.OverrideGates, Window: p.Window, Concurrency: p.Concurrency, PerMinute: p.PerMinute, JitterS: s(p.Jitter),
		Priority: p.Priority, Retries: p.Retries, RetryAfterS: s(p.RetryAfter), SilenceS: s(p.Silence),
		DeadlineS: s(p.Deadline), LastsS: s(p.Lasts), Spread: p.Spread, Force: p.Force, AllowUnprotected: p.AllowUnprotected,
	}
	for _, w := range p.Waves {
		out.Waves = append(out.Waves, api.Wave{Count: w.Count, Percent: w.Percent, SoakS: s(w.Soak)})
	}
	return out
}

func rolloutOf(v fleet.RolloutView) api.Rollout {
	out := api.Rollout{
		ID: v.ID, State: string(v.State), Version: v.Version, Project: v.Project, Chip: v.Chip, SHA256: v.SHA256, Members: v.Members,
		Wave: v.Wave + 1, Waves: []api.WaveLimit{}, WaveSince: v.WaveSince.UTC(), SoakSince: v.SoakSince.UTC(), Figures: api.Figures(v.Figures),
		Halt: haltOf(v.Halt), Policy: policyOf(v.Policy), CreatedAt: v.CreatedAt.UTC(), CreatedBy: v.CreatedBy, ExpiresAt: v.ExpiresAt.UTC(),
		EndedAt: v.EndedAt.UTC(), Events: eventsOf(v.Events), WaitsMore: v.More,
	}
	for i, limit := range v.Limits {
		w := api.WaveLimit{Limit: limit, SoakS: int64(v.Soaks[i] / time.Second)}
		if i < len(v.Waves) {
			figures := api.Figures(v.Waves[i].Figures)
			w.Figures, w.Held = &figures, make(map[string]int)
			for hold, n := range v.Waves[i].Held {
				w.Held[string(hold)] = n
			}
		}
		out.Waves = append(out.Waves, w)
	}
	for _, w := range v.Waits {
		out.Waits = append(out.Waits, api.RolloutWait{DeviceID: w.DeviceID, Hold: string(w.Hold), HoldText: w.Hold.Text(), Since: w.Since.UTC()})
	}
	return out
}

func haltOf(h *fleet.Halt) *api.Halt {
	if h == nil {
		return nil
	}
	return &api.Halt{Rule: h.Rule, Figure: h.Figure, Of: h.Of, Limit: h.Limit, Text: h.Text, At: h.At.UTC()}
}

func eventsOf(events []fleet.Event) []api.RolloutEvent {
	out := make([]api.RolloutEvent, 0, len(events))
	for _, e := range events {
		out = append(out, api.RolloutEvent{At: e.At.UTC(), By: e.By, Text: e.Text})
	}
	return out
}

// waveOf is the wave of the member of a rank, from 1.
func waveOf(rank int, limits []int) int {
	wave, _ := slices.BinarySearch(limits, rank+1)
	return wave + 1
}

func memberOf(m fleet.MemberView, limits []int) api.Member {
	out := api.Member{DeviceID: m.DeviceID, Rank: m.Rank, Wave: waveOf(m.Rank, limits), State: string(m.State), Tries: m.Tries, Phase: m.Phase,
		Reason: m.Reason, Message: m.Message, UpdatedAt: m.UpdatedAt.UTC()}
	if m.Hold != fleet.HoldNone {
		out.Hold, out.HoldText = string(m.Hold), m.Hold.Text()
	}
	return out
}

func runOf(r fleet.RehearsalRun) api.RehearsalRun {
	return api.RehearsalRun{State: string(r.State), Halt: haltOf(r.Halt), Wave: r.Wave, Touched: r.Touched, Harmed: r.Harmed,
		Figures: api.Figures(r.Figures), TookS: int64(r.Took / time.Second), Events: eventsOf(r.Events)}
}
