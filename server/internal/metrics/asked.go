package metrics

import (
	"context"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"bmsota/server/internal/fleet"
)

// What a scrape asks for.
var (
	devices = describe("bmsota_devices", "Devices that are not revoked, by what is so with them; a device may be in several, and is in all.", "state")
	running = describe("bmsota_devices_running", "Devices by the version they run outside a trial: the most frequent, and the rest as other.",
		"project", "chip", "version", "released")
	open         = describe("bmsota_attempts_open", "Attempts that have not ended.")
	rollouts     = describe("bmsota_rollouts", "Rollouts that have not ended, by state.", "state")
	members      = describe("bmsota_rollout_members", "Devices in running rollouts, by how they stand in them; dark ones are counted beside their state.", "state")
	stalled      = describe("bmsota_rollouts_stalled", "Running rollouts in which the present wave does not stand and nothing of it is under way.")
	byWave       = describe("bmsota_rollout_wave_members", "Devices in running rollouts, by how they stand in them and whether their wave is past, present or to come.", "wave", "state")
	notices      = describe("bmsota_webhook_events_waiting", "Events that wait for the receivers of webhooks.")
	failing      = describe("bmsota_webhooks_failing", "Webhooks whose last try failed.")
	sessions     = describe("bmsota_mqtt_sessions", "MQTT sessions of the embedded broker.")
	waiting      = describe("bmsota_mqtt_connections_waiting", "Connections that have not logged in yet.")
	turnedAway   = describe("bmsota_mqtt_connections_turned_away_total", "Connections over a limit.")
	refused      = describe("bmsota_mqtt_logins_refused_total", "MQTT logins refused.")
	takeovers    = describe("bmsota_mqtt_takeovers_total", "Sessions ended because another of the same name began.")
	contested    = describe("bmsota_mqtt_logins_contested_total", "Times that a device's login was found in use in two places.")
	banned       = describe("bmsota_mqtt_addresses_banned", "Addresses kept out because too many of their connections ended without a login.")
	denied       = describe("bmsota_mqtt_topics_denied_total", "Publishes and subscriptions to topics without the right.")
	dropped      = describe("bmsota_mqtt_statuses_dropped_total", "Statuses not taken: unreadable, or above the rate.")
	notStored    = describe("bmsota_mqtt_statuses_not_stored_total", "Statuses not acknowledged because they could not be stored.")
	certificate  = describe("bmsota_certificate_days_left", "Days until the certificate runs out that the server shows.")
	storage      = describe("bmsota_storage_free_bytes", "Free space where the server keeps its data.")
	ready        = describe("bmsota_ready", "1 while the server can do its work.")
	build        = describe("bmsota_build_info", "1, with bmsota's version.", "version")
	censusFailed = describe("bmsota_census_failed", "1 when the devices could not be counted for this scrape.")
)

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// asked collects what is not counted but asked for.
type asked struct{ s Sources }

// Describe implements prometheus.Collector.
func (a *asked) Describe(c chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{devices, running, open, rollouts, members, stalled, byWave, notices, failing, sessions, waiting, turnedAway, refused, takeovers, contested, banned, denied, dropped, notStored,
		certificate, storage, ready, build, censusFailed} {
		c <- d
	}
}

// Collect implements prometheus.Collector.
func (a *asked) Collect(c chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		c <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	total := func(d *prometheus.Desc, v uint64) {
		c <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v))
	}
	gauge(build, 1, a.s.Version)
	census, err := a.s.Census(ctx)
	gauge(censusFailed, bit(err != nil))
	if err == nil {
		countDevices(census, gauge)
	} else {
		a.s.Log.Error("count devices for a scrape", "err", err)
	}
	if a.s.Rollouts != nil {
		if list, err := a.s.Rollouts(ctx); err == nil {
			countRollouts(list, gauge)
		} else {
			a.s.Log.Error("count rollouts for a scrape", "err", err)
		}
	}
	if a.s.Outbox != nil {
		if o, err := a.s.Outbox(ctx); err == nil {
			gauge(notices, float64(o.Waiting))
			gauge(failing, float64(o.Failing))
		} else {
			a.s.Log.Error("count webhooks for a scrape", "err", err)
		}
	}
	if a.s.Broker != nil {
		b := a.s.Broker()
		gauge(sessions, float64(b.Sessions))
		gauge(waiting, float64(b.Waiting))
		total(turnedAway, b.TurnedAway)
		total(refused, b.Refused)
		total(takeovers, b.Takeovers)
		total(contested, b.Contested)
		gauge(banned, float64(b.Banned))
		total(denied, b.Denied)
		total(dropped, b.Dropped)
		total(notStored, b.NotStored)
	}
	if a.s.Certificate != nil {
		if until := a.s.Certificate(); !until.IsZero() {
			gauge(certificate, time.Until(until).Hours()/24)
		}
	}
	if a.s.StorageFree != nil {
		if n := a.s.StorageFree(); n >= 0 {
			gauge(storage, float64(n))
		}
	}
	if a.s.Ready != nil {
		gauge(ready, bit(a.s.Ready(ctx) == nil))
	}
}

func bit(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func countDevices(c *fleet.Census, gauge func(*prometheus.Desc, float64, ...string)) {
	for state, n := range map[string]int{"all": c.Devices, string(fleet.StateOnline): c.Online, string(fleet.StateUpdating): c.Updating,
		string(fleet.StateWaiting): c.Waiting, string(fleet.StateStuck): c.Stuck, string(fleet.StateFailed): c.Failed,
		string(fleet.StateUnprotected): c.Unprotected, string(fleet.StateAway): c.Away, string(fleet.StateUnreleased): c.Others,
		string(fleet.StateSuspect): c.Suspect} {
		gauge(devices, float64(n), state)
	}
	rest := 0
	for i, v := range c.Versions { // most first
		if i >= maxVersions {
			rest += v.Count
			continue
		}
		gauge(running, float64(v.Count), v.Project, v.Chip, v.Version, strconv.FormatBool(v.Released))
	}
	gauge(running, float64(rest), other, other, other, other)
	gauge(open, float64(c.OpenTotal))
}

func countRollouts(list []fleet.RolloutView, gauge func(*prometheus.Desc, float64, ...string)) {
	states := map[fleet.RolloutState]int{fleet.RolloutRunning: 0, fleet.RolloutPaused: 0, fleet.RolloutHalted: 0}
	sum, waiting := make(map[string]int), 0
	waves := map[string]map[string]int{"past": {}, "present": {}, "to_come": {}}
	for i := range list {
		r := &list[i]
		if _, asked := states[r.State]; asked {
			states[r.State]++
		}
		if r.State == fleet.RolloutRunning {
			addFigures(sum, r.Figures)
		}
		waiting += int(bit(r.Stalled()))
		for n, w := range r.Waves {
			when := "present"
			if n < r.Wave {
				when = "past"
			} else if n > r.Wave {
				when = "to_come"
			}
			addFigures(waves[when], w.Figures)
		}
	}
	addFigures(sum, fleet.Figures{}) // every state has its series, also while nothing runs
	gauge(stalled, float64(waiting))
	for when, sum := range waves {
		addFigures(sum, fleet.Figures{})
		delete(sum, "dark") // not known by wave
		for state, n := range sum {
			gauge(byWave, float64(n), when, state)
		}
	}
	for state, n := range states {
		gauge(rollouts, float64(n), string(state))
	}
	for state, n := range sum {
		gauge(members, float64(n), state)
	}
}

func addFigures(sum map[string]int, f fleet.Figures) {
	for state, n := range map[fleet.MemberState]int{fleet.MemberPending: f.Pending, fleet.MemberOpen: f.Open, fleet.MemberSucceeded: f.Succeeded,
		fleet.MemberFailed: f.Failed, fleet.MemberRolledBack: f.RolledBack, fleet.MemberBrownout: f.Brownouts, fleet.MemberSilent: f.Silent,
		fleet.MemberSkipped: f.Skipped, fleet.MemberSuspect: f.Suspect, "dark": f.Dark} {
		sum[string(state)] += n
	}
}
