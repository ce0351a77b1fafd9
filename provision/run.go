package provision

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"bmsota/api"
	"bmsota/durable"
	"bmsota/protocol"
)

// Names of the files of a device, in its folder.
const (
	StorageFile = "storage.bin"
	FlashFile   = "flash.bin"
)

// Why a device is left as it is.
var (
	// ErrHasToken: a board may be using the token that the device has.
	ErrHasToken = errors.New("has a token already")
	// ErrThere: its folder holds images, and this run is not to replace them.
	ErrThere = errors.New("is provisioned already")
)

// Server is what a run asks of the operator's API. *api.Client is one.
type Server interface {
	Device(ctx context.Context, id string) (api.DeviceDetail, error)
	api.Enroller
}

// Run provisions devices into one folder. One run at a time may use it.
type Run struct {
	Server     Server
	Info       api.ServerInfo // how devices reach the server and the broker
	TrustedKey string         // PEM of the public keys that sign releases; empty: devices take unsigned ones
	// Certificate gives devices a certificate in place of a token. Its key is made here, and is in the device's files only.
	Certificate bool
	Recipe      *Recipe
	Dir         string // of the devices' folders; made where it is missing
	Replace     bool   // take the token of devices that have one
	Resume      bool   // leave devices alone whose folder is complete, instead of refusing them
}

// State is what became of a device.
type State string

// The states.
const (
	Done    State = "provisioned"
	Kept    State = "kept"    // its folder was complete
	Refused State = "refused" // it has a token, or the server will not have it
	Failed  State = "failed"
	Left    State = "left" // not tried: the run had stopped
)

// Result is what became of one device.
type Result struct {
	Device Device
	State  State
	Err    error // of Refused and Failed
}

// Folder is where a device's files are.
func (r *Run) Folder(id string) string { return filepath.Join(r.Dir, id) }

// mark is the file that says, durably, that a device is being provisioned: as long as it is there, what is in the device's
// folder may be half of it, or carry a token that is no longer taken.
func (r *Run) mark(id string) string { return filepath.Join(r.Dir, "."+id+".part") }

// maxPEM is more than a certificate or key of a device has in PEM, in bytes: 800 with the longest id.
const maxPEM = 1200

// Check tries everything but the server: that the files of a device with the longest id fit. It touches nothing.
func (r *Run) Check() error {
	login := api.Login{Token: strings.Repeat("x", 64)}
	if r.Certificate {
		login = api.Login{CertificatePEM: strings.Repeat("x", maxPEM), KeyPEM: strings.Repeat("x", maxPEM)}
	}
	_, _, err := r.images(strings.Repeat("x", protocol.MaxDeviceID), login)
	return err
}

// All provisions the devices in their order and hands each result to each. A device that is refused or fails keeps none
// of the others from it; what would fail for all of them too (no server, no operator's token, a folder that cannot be
// written, ctx) stops the run, is the error, and leaves the rest.
func (r *Run) All(ctx context.Context, devices []Device, each func(Result)) error {
	if err := durable.MkdirAll(r.Dir, 0o700); err != nil {
		return err
	}
	for i, d := range devices {
		state, err := r.one(ctx, d.ID)
		stop := err != nil && fatal(err)
		if stop {
			err = fmt.Errorf("%s: %w", d.ID, err)
		}
		each(Result{d, state, err})
		if stop {
			for _, d := range devices[i+1:] {
				each(Result{Device: d, State: Left})
			}
			return err
		}
	}
	return nil
}

// fatal says whether what happened to one device will happen to every other.
func fatal(err error) bool {
	if errors.Is(err, ErrHasToken) || errors.Is(err, ErrThere) {
		return false
	}
	if e, ok := errors.AsType[*api.Error](err); ok {
		switch e.Code {
		case api.CodeConflict, api.CodeInvalid, api.CodeRefused, api.CodeInternal, api.CodeNotFound:
			return false
		}
	}
	return true
}

// one provisions one device.
func (r *Run) one(ctx context.Context, id string) (State, error) {
	unfinished := exists(r.mark(id))
	if !unfinished && !r.Replace && r.holdsImages(id) {
		if r.Resume && r.complete(id) {
			return Kept, nil
		}
		return Refused, fmt.Errorf("%s %w: see %s", id, ErrThere, r.Folder(id))
	}
	if !r.Replace {
		if err := r.checkToken(ctx, id, unfinished); err != nil {
			return verdict(err), err
		}
	}
	// The mark before the token: the server shows it once, and nobody else may take it from the device then.
	if err := r.setMark(id); err != nil {
		return Failed, err
	}
	_, login, err := api.EnrollDevice(ctx, r.Server, id, r.Certificate)
	if err != nil {
		// Where the line broke it is not known whether the server did it. Where it said no, it did not.
		if e, answered := errors.AsType[*api.Error](err); answered && e.Status/100 == 4 && !unfinished {
			err = errors.Join(err, r.clearMark(id))
		}
		return verdict(err), err
	}
	if err := r.write(id, login); err != nil {
		return Failed, err
	}
	if err := r.clearMark(id); err != nil {
		return Failed, err
	}
	return Done, nil
}

// verdict tells what is not wanted from what went wrong.
func verdict(err error) State {
	if errors.Is(err, ErrHasToken) {
		return Refused
	}
	if e, ok := errors.AsType[*api.Error](err); ok && (e.Code == api.CodeConflict || e.Code == api.CodeInvalid || e.Code == api.CodeRefused) {
		return Refused
	}
	return Failed
}

// checkToken refuses a device whose token may be in use. unfinished is whether a run of ours stopped in the middle of this
// device: then the token is one that no board has, unless one has spoken since.
func (r *Run) checkToken(ctx context.Context, id string, unfinished bool) error {
	d, err := r.Server.Device(ctx, id)
	if e, ok := errors.AsType[*api.Error](err); ok && e.Code == api.CodeNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	spoken := d.LastSeen != nil && !d.LastSeen.Before(d.EnrolledAt)
	if d.Enrolled && !d.Revoked && (!unfinished || spoken) {
		return fmt.Errorf("%s %w", id, ErrHasToken)
	}
	return nil
}

func (r *Run) setMark(id string) error {
	if err := os.WriteFile(r.mark(id), nil, 0o600); err != nil {
		return err
	}
	return durable.SyncFolder(r.Dir)
}

func (r *Run) clearMark(id string) error {
	if err := os.Remove(r.mark(id)); err != nil {
		return err
	}
	return durable.SyncFolder(r.Dir)
}

func (r *Run) images(id string, login api.Login) (storage, flash []byte, err error) {
	ota, mqtt, err := r.Info.DeviceFiles(id, login, r.TrustedKey)
	if err != nil {
		return nil, nil, err
	}
	return r.Recipe.Make(ota, mqtt)
}

// write makes the files of a device. They hold its token, or its private key.
func (r *Run) write(id string, login api.Login) error {
	storage, flash, err := r.images(id, login)
	if err != nil {
		return err
	}
	folder := r.Folder(id)
	// The folder's own name must be there for good before the mark goes.
	if err := errors.Join(os.MkdirAll(folder, 0o700), os.Chmod(folder, 0o700), durable.SyncFolder(r.Dir)); err != nil {
		return err
	}
	if err := durable.WriteFile(filepath.Join(folder, StorageFile), storage, 0o600); err != nil {
		return err
	}
	path := filepath.Join(folder, FlashFile)
	if flash == nil {
		// One of an earlier run has a token that is no longer taken.
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	}
	return durable.WriteFile(path, flash, 0o600)
}

// holdsImages says whether a device's folder has images of an earlier run.
func (r *Run) holdsImages(id string) bool {
	return exists(filepath.Join(r.Folder(id), StorageFile)) || exists(filepath.Join(r.Folder(id), FlashFile))
}

// complete says whether a device's folder holds what this run would make. The files were whole before they had their names.
func (r *Run) complete(id string) bool {
	want := map[string]int64{StorageFile: int64(r.Recipe.Storage.Size)}
	if r.Recipe.HasFlash() {
		want[FlashFile] = r.Recipe.FlashSize()
	}
	for name, size := range want {
		info, err := os.Lstat(filepath.Join(r.Folder(id), name))
		if err != nil || !info.Mode().IsRegular() || info.Size() != size {
			return false
		}
	}
	return true
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
