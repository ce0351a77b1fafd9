package deploy_test

import (
	"testing"

	"bmsota/deploy"
	"bmsota/protocol"
)

// say is a report of device d in a phase, with the command's id when it still knows it.
func say(d string, phase protocol.Phase, reason protocol.Reason, id string) deploy.Report {
	code, _ := phase.Code()
	return deploy.Report{Device: d, Status: protocol.Status{Phase: phase, Status: code, Reason: reason, CommandID: id, CurrentVersion: "1.0.0"}}
}

// told is what is heard after a command, and the verdict it should end with.
type told struct {
	name    string
	action  protocol.Action
	reports []deploy.Report
	want    deploy.Verdict
	reason  protocol.Reason
}

func TestTrackEndsWithTheRightVerdict(t *testing.T) {
	const id = "c1"
	retained := func(r deploy.Report) deploy.Report { r.Retained = true; return r }
	for _, c := range []told{
		{"good", protocol.ActionUpdate, []deploy.Report{
			retained(say("a", "idle", "", "")), say("a", "checking", "", id), say("a", "downloading", "", id), say("a", "rebooting", "", id),
			say("a", "offline", "", ""), say("a", "trial", "", ""), say("a", "confirmed", "", "")}, deploy.Done, ""},
		{"crash", protocol.ActionUpdate, []deploy.Report{
			say("a", "downloading", "", id), say("a", "rebooting", "", id), say("a", "rolled_back", "crash", "")}, deploy.Failed, "crash"},
		{"refused", protocol.ActionUpdate, []deploy.Report{say("a", "checking", "", id), say("a", "refused", "wrong_chip", id)}, deploy.Refused, "wrong_chip"},
		{"there already", protocol.ActionUpdate, []deploy.Report{say("a", "checking", "", id), say("a", "idle", "up_to_date", id)}, deploy.Done, "up_to_date"},
		{"bad command", protocol.ActionUpdate, []deploy.Report{say("a", "idle", "expired_command", id)}, deploy.Refused, "expired_command"},
		{"sent during the trial of an earlier one", protocol.ActionUpdate, []deploy.Report{
			say("a", "trial", "", id), say("a", "trial", "", ""), say("a", "confirmed", "", "")}, deploy.Pending, ""},
		{"and taken up after it", protocol.ActionUpdate, []deploy.Report{
			say("a", "trial", "", id), say("a", "confirmed", "", ""), say("a", "checking", "", id), say("a", "refused", "downgrade", id)}, deploy.Refused, "downgrade"},
		{"while another one downloads", protocol.ActionUpdate, []deploy.Report{
			say("a", "downloading", "", "other"), say("a", "confirmed", "", "")}, deploy.Pending, ""},
		{"answer to another command", protocol.ActionUpdate, []deploy.Report{say("a", "idle", "up_to_date", "other")}, deploy.Pending, ""},
		{"old verdict kept by the broker", protocol.ActionUpdate, []deploy.Report{retained(say("a", "failed", "stalled", id))}, deploy.Pending, ""},
		{"verdict of an earlier update", protocol.ActionUpdate, []deploy.Report{say("a", "rolled_back", "crash", "")}, deploy.Pending, ""},
		{"rollback ordered", protocol.ActionRollback, []deploy.Report{say("a", "rebooting", "operator", id), say("a", "rolled_back", "operator", "")}, deploy.Done, "operator"},
		{"check", protocol.ActionCheck, []deploy.Report{say("a", "checking", "", id), say("a", "idle", "update_available", id)}, deploy.Done, "update_available"},
		{"check finds a forced release", protocol.ActionCheck, []deploy.Report{
			say("a", "checking", "", id), say("a", "downloading", "", id), say("a", "rebooting", "", id), say("a", "offline", "", ""),
			say("a", "trial", "", ""), say("a", "confirmed", "", "")}, deploy.Done, ""},
		{"check finds a forced release that crashes", protocol.ActionCheck, []deploy.Report{
			say("a", "checking", "", id), say("a", "downloading", "", id), say("a", "rolled_back", "crash", "")}, deploy.Failed, "crash"},
		{"check of nobody beside an update", protocol.ActionCheck, []deploy.Report{
			say("a", "downloading", "", "other"), say("a", "confirmed", "", "")}, deploy.Pending, ""},
		{"taken while an earlier rollback is told", protocol.ActionUpdate, []deploy.Report{
			say("a", "rolled_back", "operator", ""), say("a", "rolled_back", "operator", id)}, deploy.Pending, ""},
		{"taken up after an earlier rollback was told", protocol.ActionUpdate, []deploy.Report{
			say("a", "rolled_back", "operator", id), say("a", "idle", "", ""), say("a", "checking", "", id), say("a", "rebooting", "", id),
			say("a", "trial", "", ""), say("a", "confirmed", "", "")}, deploy.Done, ""},
		{"check failed", protocol.ActionCheck, []deploy.Report{say("a", "checking", "", id), say("a", "failed", "server_unreachable", id)}, deploy.Failed, "server_unreachable"},
	} {
		track := deploy.NewTrack(protocol.Command{Action: c.action, ID: id}, "a")
		for _, r := range c.reports {
			track.Apply(r)
		}
		row := track.Rows()[0]
		if row.Verdict != c.want || c.want != deploy.Pending && row.Reason != c.reason {
			t.Errorf("%s: %q %q, want %q %q", c.name, row.Verdict, row.Reason, c.want, c.reason)
		}
		if track.Ended() != (c.want != deploy.Pending) {
			t.Errorf("%s: ended is %v", c.name, track.Ended())
		}
	}
}

func TestTrackOfEverybodyLeavesOutWhoIsOffline(t *testing.T) {
	track := deploy.NewTrack(protocol.Command{Action: protocol.ActionUpdate, ID: "c1"})
	if track.Ended() {
		t.Error("ended with nobody heard of")
	}
	track.Apply(say("off", "offline", "", ""))
	track.Apply(say("on", "idle", "", ""))
	if rows := track.Rows(); len(rows) != 1 || rows[0].Device != "on" {
		t.Errorf("rows: %+v", rows)
	}
}

func TestSilenceIsAVerdict(t *testing.T) {
	track := deploy.NewTrack(protocol.Command{Action: protocol.ActionUpdate, ID: "c1"}, "gone", "gated", "never")
	track.Apply(say("gone", "downloading", "", "c1"))
	track.Apply(say("gone", "offline", "", ""))
	track.Apply(say("gated", "waiting", "charging", "c1"))
	track.Expire()
	want := map[string]deploy.Verdict{"gone": deploy.Silent, "gated": deploy.Waiting, "never": deploy.Waiting}
	for _, row := range track.Rows() {
		if row.Verdict != want[row.Device] {
			t.Errorf("%s: %q, want %q", row.Device, row.Verdict, want[row.Device])
		}
	}
	if !track.Ended() {
		t.Error("not ended")
	}
}

func TestUnreadableStatusesChangeNothing(t *testing.T) {
	track := deploy.NewTrack(protocol.Command{Action: protocol.ActionUpdate, ID: "c1"}, "a")
	if row := track.Apply(deploy.Report{Device: "a", Err: deploy.ErrDenied}); row != nil {
		t.Errorf("changed %+v", row)
	}
}

func TestFirmwareOfTheOriginalToolIsFollowedByItsCodes(t *testing.T) {
	at := func(code protocol.Code, version, available string) deploy.Report {
		phases := map[protocol.Code]protocol.Phase{0: "idle", 1: "checking", 2: "downloading", 3: "switching", 4: "confirmed", 5: "failed", 6: "rolled_back"}
		return deploy.Report{Status: protocol.Status{Status: code, Phase: phases[code], CurrentVersion: version, AvailableVersion: available}}
	}
	for _, c := range []told{
		{"good", protocol.ActionUpdate, []deploy.Report{at(0, "1.0.0", ""), at(1, "1.0.0", ""), at(2, "1.0.0", "1.1.0"), at(3, "1.0.0", "1.1.0"), at(4, "1.0.0", "1.1.0")}, deploy.Done, ""},
		{"good, its last word lost", protocol.ActionUpdate, []deploy.Report{at(0, "1.0.0", ""), at(2, "1.0.0", "1.1.0"), at(0, "1.1.0", "")}, deploy.Done, ""},
		{"failed", protocol.ActionUpdate, []deploy.Report{at(1, "1.0.0", ""), at(2, "1.0.0", "1.1.0"), at(5, "1.0.0", "")}, deploy.Failed, "other"},
		{"gone back", protocol.ActionUpdate, []deploy.Report{at(2, "1.0.0", "1.1.0"), at(6, "1.0.0", "")}, deploy.Failed, "other"},
		{"nothing new", protocol.ActionUpdate, []deploy.Report{at(1, "1.0.0", ""), at(0, "1.0.0", "")}, deploy.Done, "up_to_date"},
		{"back as it was", protocol.ActionUpdate, []deploy.Report{at(2, "1.0.0", "1.1.0"), at(0, "1.0.0", "")}, deploy.Pending, ""},
		{"the failure before", protocol.ActionUpdate, []deploy.Report{at(5, "1.0.0", ""), at(0, "1.0.0", "")}, deploy.Pending, ""},
		{"the success before", protocol.ActionUpdate, []deploy.Report{at(4, "1.0.0", "")}, deploy.Pending, ""},
		{"check finds one", protocol.ActionCheck, []deploy.Report{at(1, "1.0.0", ""), at(0, "1.0.0", "1.1.0")}, deploy.Done, "update_available"},
		{"check finds none", protocol.ActionCheck, []deploy.Report{at(1, "1.0.0", ""), at(0, "1.0.0", "1.0.0")}, deploy.Done, "up_to_date"},
		{"rollback", protocol.ActionRollback, []deploy.Report{at(6, "1.1.0", "")}, deploy.Done, "operator"},
	} {
		track := deploy.NewTrack(protocol.Command{Action: c.action, ID: "c1"})
		for _, r := range c.reports {
			track.Apply(r)
		}
		rows := track.Rows()
		if len(rows) != 1 || rows[0].Verdict != c.want || c.want != deploy.Pending && rows[0].Reason != c.reason {
			t.Errorf("%s: %+v, want %q %q", c.name, rows, c.want, c.reason)
		}
	}
	// Of a named device a status without a name says nothing.
	track := deploy.NewTrack(protocol.Command{Action: protocol.ActionUpdate, ID: "c1"}, "a")
	if row := track.Apply(at(2, "1.0.0", "")); row != nil || len(track.Rows()) != 1 {
		t.Errorf("taken for the named device: %+v", row)
	}
}

func TestSomebodyHasAnsweredWhenItIsThereToWaitFor(t *testing.T) {
	track := deploy.NewTrack(protocol.Command{Action: protocol.ActionUpdate, ID: "c1"})
	anonymous := say("", "idle", "", "")
	anonymous.Status.CommandID = ""
	track.Apply(anonymous)
	if track.Answered() {
		t.Error("firmware that names itself nowhere is there, but did not take the command up")
	}
	anonymous.Status.Phase = protocol.PhaseDownloading
	track.Apply(anonymous)
	if !track.Answered() {
		t.Error("it did take the command up")
	}
	track = deploy.NewTrack(protocol.Command{Action: protocol.ActionUpdate, ID: "c1"})
	track.Apply(say("a", "idle", "", ""))
	if !track.Answered() {
		t.Error("a device that names itself is there")
	}
}

func TestFirmwareWithoutANameHoldsNobodyUp(t *testing.T) {
	track := deploy.NewTrack(protocol.Command{Action: protocol.ActionUpdate, ID: "c1"})
	old := say("", "downloading", "", "")
	old.Retained = true
	if row := track.Apply(old); row != nil {
		t.Errorf("what the broker kept is taken for an answer: %+v", row)
	}
	track.Apply(say("", "idle", "", ""))
	if track.Ended() {
		t.Error("ended with nobody who answered")
	}
	track.Apply(say("a", "checking", "", "c1"))
	if track.Ended() {
		t.Error("ended in the middle")
	}
	track.Apply(say("a", "idle", "up_to_date", "c1"))
	if !track.Ended() {
		t.Error("waits for firmware that did not take the command up")
	}
	track.Apply(say("", "downloading", "", ""))
	if track.Ended() {
		t.Error("does not wait for firmware that did")
	}
}
