package web

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

type deviceData struct {
	fleet.Device
	Attempts []fleet.Attempt
	Releases []fleet.Release // it could be given
	Offered  string          // what its channel offers it
	Release  *fleet.Release  // of the image that runs; nil when there is none here
	Other    string          // the slot that does not run
	Channels []string        // it could be in
	Chosen   string          // version of the form that was refused
	Contest  *fleet.Contest  // about its login
}

func (u *ui) device(w http.ResponseWriter, r *http.Request, by fleet.Identity) error {
	return u.showDevice(w, r, by, http.StatusOK, "", nil)
}

// showDevice is the page of a device, with the reason why a form on it was refused.
func (u *ui) showDevice(w http.ResponseWriter, r *http.Request, by fleet.Identity, status int, chosen string, refusal error) error {
	d := deviceData{Chosen: chosen, Contest: u.h.cfg.Fleet.ContestOf(r.PathValue("id"))}
	var err error
	if d.Device, err = u.h.cfg.Fleet.Device(r.Context(), r.PathValue("id")); err != nil {
		return err
	}
	if d.Attempts, err = u.h.cfg.Fleet.Attempts(r.Context(), d.ID, attemptsShown); err != nil {
		return err
	}
	if d.Releases, d.Offered, err = u.h.cfg.Fleet.OffersFor(r.Context(), d.Device); err != nil {
		return err
	}
	releases, err := u.h.cfg.Fleet.Releases(r.Context())
	if err != nil {
		return err
	}
	channels, err := u.h.cfg.Fleet.Channels(r.Context())
	if err != nil {
		return err
	}
	d.Channels = channelsFor(channels, d.Device)
	nameVersions(d.Attempts, releases)
	if d.SHA256 != "" {
		if rel, err := u.h.cfg.Fleet.Release(r.Context(), d.SHA256); err == nil {
			d.Release = &rel
		}
	}
	switch d.Status.Slot {
	case "ota_0":
		d.Other = "ota_1"
	case "ota_1":
		d.Other = "ota_0"
	}
	p := page{Title: d.ID, Here: "devices", By: by, Live: "/events?device=" + url.QueryEscape(d.ID), Done: doneTexts[r.URL.Query().Get("done")], Data: d}
	if refusal != nil {
		p.Done, p.Fault = "", sentence(refusal)
	}
	return u.show(w, status, "device", p)
}

// command gives a device one of the four commands. What is hard to take back is asked about first.
func (u *ui) command(w http.ResponseWriter, r *http.Request, by fleet.Identity) error {
	f, err := form(r, "action", "version", "force", "confirmed")
	if err != nil {
		return err
	}
	id := r.PathValue("id")
	cmd := protocol.Command{Action: protocol.Action(f["action"]), Version: f["version"], Force: f["force"] == "yes"}
	if err := checkCommand(f, cmd); err != nil {
		return u.showDevice(w, r, by, problemOf(err).Status, f["version"], err)
	}
	if f["confirmed"] != "yes" && (cmd.Action == protocol.ActionRollback || cmd.Force) {
		return u.confirmCommand(w, r, by, id, cmd)
	}
	if _, err := u.h.cfg.Fleet.Command(r.Context(), u.h.cfg.Messenger, by, id, cmd); err != nil {
		if p := problemOf(err); p.Status < 500 && p.Status != http.StatusNotFound {
			return u.showDevice(w, r, by, p.Status, f["version"], err)
		}
		return err
	}
	u.h.cfg.Log.Info("command", "by", by.Name, "device", id, "action", cmd.Action, "version", cmd.Version, "force", cmd.Force)
	return done(w, r, "/devices/"+id, string(cmd.Action))
}

func checkCommand(f map[string]string, cmd protocol.Command) error {
	switch cmd.Action {
	case protocol.ActionCheck, protocol.ActionStatus, protocol.ActionUpdate, protocol.ActionRollback:
	default:
		return fmt.Errorf("%w: there is no command %.32q", fleet.ErrInvalid, f["action"])
	}
	for _, name := range []string{"force", "confirmed"} {
		if f[name] != "" && f[name] != "yes" {
			return fmt.Errorf("%w: the form says %.32q for %s", fleet.ErrInvalid, f[name], name)
		}
	}
	if cmd.Version == "" {
		return nil
	}
	if len(cmd.Version) > 64 {
		return fmt.Errorf("%w: a version has at most 64 characters", fleet.ErrInvalid)
	}
	if _, ok := protocol.ParseVersion(cmd.Version); !ok && cmd.Action == protocol.ActionUpdate {
		return fmt.Errorf("%w: %q is no version such as 1.4.0", fleet.ErrInvalid, cmd.Version)
	}
	return nil
}

func (u *ui) confirmCommand(w http.ResponseWriter, r *http.Request, by fleet.Identity, id string, cmd protocol.Command) error {
	d, err := u.h.cfg.Fleet.Device(r.Context(), id)
	if err != nil {
		return err
	}
	c := confirmation{
		CLI: commandLine(id, cmd), Action: "/devices/" + id + "/command", Back: "/devices/" + id,
		Fields: map[string]string{"action": string(cmd.Action), "version": cmd.Version},
	}
	if cmd.Action == protocol.ActionRollback {
		to := "the image in its other slot, whatever that is"
		if d.PreviousVersion != "" {
			to = d.PreviousVersion
		}
		c.Question, c.Button = "Roll "+id+" back?", "Roll back"
		c.Means = []string{"It now runs " + orUnknown(d.Version) + " and goes back to " + to + ".", "It restarts, and monitors nothing while it does.",
			"What it runs now is not kept on the device."}
	} else {
		c.Question, c.Button, c.Fields["force"] = "Force an update of "+id+"?", "Force the update", "yes"
		c.Means = []string{"It now runs " + orUnknown(d.Version) + ".", "It installs " + orOffered(cmd.Version) + " even when that is older than what it runs, or the same.",
			"Signature, chip, size and security floor are checked all the same."}
	}
	return u.confirm(w, by, "devices", c)
}

func orUnknown(version string) string {
	if version == "" {
		return "an unknown version"
	}
	return version
}

func orOffered(version string) string {
	if version == "" {
		return "what its channel offers"
	}
	return version
}

// commandLine is what to type for the same.
func commandLine(id string, cmd protocol.Command) string {
	var b strings.Builder
	fmt.Fprintf(&b, "bmsota %s --device %s", cmd.Action, id)
	if cmd.Version != "" {
		b.WriteString(" --version " + cmd.Version)
	}
	if cmd.Force {
		b.WriteString(" --force")
	}
	return b.String()
}

// channelsFor are the names that a device's channel may have: its own, the default one, and those of its project and chip.
func channelsFor(channels []fleet.Channel, d fleet.Device) []string {
	names := []string{fleet.DefaultChannel}
	if d.Channel != "" {
		names = append(names, d.Channel)
	}
	for _, c := range channels {
		if (d.Status.Project == "" || c.Project == d.Status.Project) && (d.Status.Chip == "" || c.Chip == "" || c.Chip == d.Status.Chip) {
			names = append(names, c.Name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (u *ui) deviceChannel(w http.ResponseWriter, r *http.Request, by fleet.Identity) error {
	f, err := form(r, "channel")
	if err != nil {
		return err
	}
	id := r.PathValue("id")
	if _, err := u.h.cfg.Fleet.SetDeviceChannel(r.Context(), by, id, f["channel"]); err != nil {
		if p := problemOf(err); p.Status < 500 && p.Status != http.StatusNotFound {
			return u.showDevice(w, r, by, p.Status, "", err)
		}
		return err
	}
	return done(w, r, "/devices/"+id, "moved")
}

func (u *ui) clearDevice(w http.ResponseWriter, r *http.Request, by fleet.Identity) error {
	if _, err := form(r); err != nil {
		return err
	}
	id := r.PathValue("id")
	if _, err := u.h.cfg.Fleet.Clear(r.Context(), by, id); err != nil {
		return err
	}
	return done(w, r, "/devices/"+id, "clear")
}

func (u *ui) revokeDevice(w http.ResponseWriter, r *http.Request, by fleet.Identity) error {
	f, err := form(r, "confirmed")
	if err != nil {
		return err
	}
	d, err := u.h.cfg.Fleet.Device(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	if f["confirmed"] != "yes" {
		return u.confirm(w, by, "devices", confirmation{
			Question: "Revoke " + d.ID + "?", Button: "Revoke",
			Means:  []string{"It is cut off now and can no longer log in, and so gets no more updates.", "What is known of it stays. Enrolling it again gives it a new token, which must be put on the device."},
			CLI:    "bmsota devices revoke " + d.ID,
			Action: "/devices/" + d.ID + "/revoke", Fields: map[string]string{}, Back: "/devices/" + d.ID,
		})
	}
	if err := u.h.cfg.Fleet.Revoke(r.Context(), by, d.ID); err != nil {
		return err
	}
	u.h.cfg.Log.Info("device revoked", "by", by.Name, "device", d.ID)
	return done(w, r, "/devices/"+d.ID, "revoke")
}
