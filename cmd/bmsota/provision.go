package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"bmsota/esp/parttable"
	"bmsota/esp/spiffs"
	"bmsota/protocol"
	"bmsota/provision"

	"github.com/spf13/cobra"
)

var listKind = inputKind{what: "a list of devices, CSV", limit: provision.MaxList}

// provisioning is what the flags of provision say.
type provisioning struct {
	board                          board // its access, partitions and trustedKey
	device, csv, out, build, files string
	replace, certificate, asJSON   bool
}

func newProvisionCmd() *cobra.Command {
	var p provisioning
	cmd := &cobra.Command{
		Use:   "provision {--device ID | --csv FILE} -o DIR",
		Short: "make what goes over USB onto new boards: login, storage image, whole flash",
		Long: `Enrolls each device and writes DIR/ID/storage.bin: its server, broker, token, certificate authority and release
key as firmware finds them in its storage partition. With --certificate it is a certificate and its key in place of the token. With --build, the build folder of a firmware project, DIR/ID/flash.bin
is the whole flash: bootloader, partition table, application, blank boot records, and that storage. 'bmsota device run' boots it.

The list of --csv has a header line: the column device, mac if you like (its end is the id where device is empty), and any
others, which --json repeats. It is read as a whole before the first device is enrolled. Run the same command again to go
on with one that stopped: devices whose folder is complete are left alone.

A device that has a token keeps it, because the board that uses it would be locked out: exit 3, unless --replace.`,
		Example: `  bmsota provision --device bms-a1b2c3 -o boards --build build --trusted-key release.pub.pem
  bmsota provision --csv boards.csv -o boards --build build --trusted-key release.pub.pem
  bmsota provision --device bms-a1b2c3 -o boards --partitions partitions.csv --files spiffs`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return p.run(cmd) },
	}
	p.board.access.serverFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&p.device, "device", "", "id of the device")
	f.StringVar(&p.csv, "csv", "", "list of devices, CSV with a header line; - reads standard input")
	f.StringVarP(&p.out, "out", "o", "", "folder to make the devices' folders in")
	f.StringVar(&p.build, "build", "", "build folder of the firmware project (with flasher_args.json), for a whole flash")
	f.StringVar(&p.board.partitions, "partitions", "", "without a build: partition table, CSV or binary (default the original layout)")
	f.StringVar(&p.board.trustedKey, "trusted-key", "", "public key that signs releases; without it the devices take unsigned ones")
	f.StringVar(&p.files, "files", "", "folder of further files for the storage partition, such as the Wi-Fi settings")
	f.BoolVar(&p.replace, "replace", false, "give a new token to devices that have one; boards with the old one are locked out")
	f.BoolVar(&p.certificate, "certificate", false, "give the devices certificates in place of tokens; the private keys are made here and sent nowhere")
	f.BoolVar(&p.asJSON, "json", false, "print JSON")
	return cmd
}

func (p *provisioning) run(cmd *cobra.Command) error {
	if err := needFlags(cmd, "out"); err != nil {
		return err
	}
	if (p.device == "") == (p.csv == "") {
		return usageFault(cmd, "give --device or --csv, one of them")
	}
	if p.build != "" && p.board.partitions != "" {
		return usageFault(cmd, "--build has its own partition table: leave --partitions out")
	}
	devices, err := p.devices(cmd)
	if err != nil {
		return err
	}
	recipe, err := p.recipe(cmd)
	if err != nil {
		return err
	}
	e, err := p.board.enrolment(cmd)
	if err != nil {
		return err
	}
	if p.certificate && !certifies(e.info) {
		return noCertificates()
	}
	r := &provision.Run{Server: e.client, Info: e.info, TrustedKey: e.trusted, Certificate: p.certificate, Recipe: recipe, Dir: p.out, Replace: p.replace, Resume: p.csv != ""}
	if err := r.Check(); err != nil {
		hint := "set host in the server's configuration"
		if errors.Is(err, spiffs.ErrFull) {
			hint = "leave files out, or give the storage partition more room"
		}
		return failure(hint, "%w", err)
	}
	if from := p.build + p.board.partitions; from != "" {
		warnOfTable(cmd, from, recipe.Table)
	}
	if e.trusted == "" {
		warn(cmd, "without --trusted-key the devices install whatever their server gives them, signed or not")
	}
	view := &provisionView{cmd: cmd, run: r, single: p.csv == "", asJSON: p.asJSON, count: make(map[provision.State]int)}
	stopped := r.All(cmd.Context(), devices, view.add)
	if len(view.rows) > 0 { // none where not even the folder could be made
		if err := view.end(); err != nil {
			return err
		}
	}
	return view.fault(stopped)
}

func (p *provisioning) devices(cmd *cobra.Command) ([]provision.Device, error) {
	if p.csv == "" {
		if err := protocol.CheckDeviceID(p.device); err != nil {
			return nil, usageFault(cmd, "--device: %w", err)
		}
		return []provision.Device{{ID: p.device}}, nil
	}
	text, err := listKind.read(cmd, p.csv)
	if err != nil {
		return nil, err
	}
	list, err := provision.ParseList(text)
	if err != nil {
		return nil, badContent(p.csv, err, "mend the list; no device has been enrolled")
	}
	return list, nil
}

func (p *provisioning) recipe(cmd *cobra.Command) (*provision.Recipe, error) {
	var files []spiffs.File
	var err error
	if p.files != "" {
		if files, err = filesOf(cmd, p.files, "", maxSPIFFS); err != nil {
			return nil, err
		}
	}
	if p.build != "" {
		r, err := provision.FromBuild(p.build, files)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
			return nil, failure("run idf.py build, and give the folder it builds in", "%s: %w", shown(p.build), err)
		case err != nil:
			return nil, badContent(p.build, err, "mend the build; no device has been enrolled")
		}
		return r, nil
	}
	t := parttable.Default()
	if p.board.partitions != "" {
		if t, err = p.board.table(cmd); err != nil {
			return nil, err
		}
	}
	r, err := provision.FromTable(t, files)
	if err != nil {
		return nil, refused(err, "give another table with --partitions, or other --files")
	}
	return r, nil
}

// provisioned is one device of --json.
type provisioned struct {
	DeviceID string            `json:"device_id"`
	MAC      string            `json:"mac,omitempty"`
	State    provision.State   `json:"state"`
	Error    string            `json:"error,omitempty"`
	Columns  map[string]string `json:"columns,omitempty"` // of the list, that are not ours
	Storage  *flashable        `json:"storage,omitempty"`
	Flash    *flashable        `json:"flash,omitempty"`
}

// flashable is a file for a board and the command line of esptool that writes it, in both spellings.
type flashable struct {
	File      string `json:"file"`
	Size      int64  `json:"size"`   // bytes
	Offset    uint32 `json:"offset"` // in flash
	Esptool   string `json:"esptool"`
	EsptoolV5 string `json:"esptool_v5"`
}

// provisionView prints what becomes of each device as it ends, or all of it as JSON at the end.
type provisionView struct {
	cmd    *cobra.Command
	run    *provision.Run
	single bool
	asJSON bool
	rows   []provisioned
	count  map[provision.State]int
	first  error // why the first device was refused or failed
	err    error // of standard output
}

func (v *provisionView) add(res provision.Result) {
	v.count[res.State]++
	row := provisioned{DeviceID: res.Device.ID, MAC: res.Device.MAC, State: res.State}
	for _, c := range res.Device.Others {
		if row.Columns == nil {
			row.Columns = make(map[string]string)
		}
		row.Columns[c.Name] = c.Value
	}
	switch res.State {
	case provision.Done, provision.Kept:
		row.Storage, row.Flash = v.files(res.Device.ID)
	case provision.Refused, provision.Failed:
		row.Error = sentence(serverFault(res.Err))
		if v.first == nil {
			v.first = res.Err
		}
	}
	v.rows = append(v.rows, row)
	if !v.asJSON && v.err == nil {
		v.err = v.print(row)
	}
}

func (v *provisionView) files(id string) (storage, flash *flashable) {
	folder, recipe := v.run.Folder(id), v.run.Recipe
	c := v.run.WriteStorage(id)
	storage = &flashable{filepath.Join(folder, provision.StorageFile), int64(recipe.Storage.Size), recipe.Storage.Offset, c.V4, c.V5}
	if recipe.HasFlash() {
		c = v.run.WriteFlash(id)
		flash = &flashable{filepath.Join(folder, provision.FlashFile), recipe.FlashSize(), 0, c.V4, c.V5}
	}
	return storage, flash
}

func (v *provisionView) print(row provisioned) error {
	switch {
	case row.State == provision.Left || v.single && row.Error != "":
		return nil // the fault says it
	case row.Error != "":
		return printf(v.cmd, "%s  %s: %s\n", row.DeviceID, row.State, plain(row.Error))
	case v.single:
		return printf(v.cmd, "%s", provisionText(row))
	case row.Flash != nil:
		return printf(v.cmd, "%s  %s  %s\n", row.DeviceID, row.State, row.Flash.Esptool)
	}
	return printf(v.cmd, "%s  %s  %s\n", row.DeviceID, row.State, row.Storage.Esptool)
}

// provisionText is what there is for one device and how it gets onto the board.
func provisionText(row provisioned) string {
	var b strings.Builder
	part := func(f *flashable, what string) {
		fmt.Fprintf(&b, "  %s\n    %s\n    %s   (esptool 5)\n", what, f.Esptool, f.EsptoolV5)
	}
	fmt.Fprintf(&b, "%s %s\n", row.DeviceID, row.State)
	part(row.Storage, fmt.Sprintf("only the storage, %d bytes at 0x%x; the rest of the board stays as it is:", row.Storage.Size, row.Storage.Offset))
	if row.Flash != nil {
		part(row.Flash, fmt.Sprintf("the whole flash, %d bytes; nothing that was on the board stays:", row.Flash.Size))
	}
	return b.String()
}

// end prints what is said once.
func (v *provisionView) end() error {
	switch {
	case v.err != nil:
		return v.err
	case v.asJSON:
		return printJSON(v.cmd, v.rows)
	case v.single:
		return nil
	}
	var parts []string
	for _, s := range []provision.State{provision.Done, provision.Kept, provision.Refused, provision.Failed, provision.Left} {
		if v.count[s] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", v.count[s], s))
		}
	}
	return printf(v.cmd, "%d devices: %s\n", len(v.rows), strings.Join(parts, ", "))
}

// fault makes one exit code of many results: what stopped the run outweighs a device that failed, and that one a refusal.
func (v *provisionView) fault(stopped error) error {
	again := "run the same command again to go on; what is done is left alone"
	switch {
	case stopped != nil:
		return provisionFault(stopped, again)
	case v.first == nil:
		return nil
	case v.single:
		return provisionFault(v.first, "")
	case v.count[provision.Failed] > 0:
		return failure(again, "%d of %d devices failed, %d were refused", v.count[provision.Failed], len(v.rows), v.count[provision.Refused])
	}
	return refused(fmt.Errorf("%d of %d devices were refused, the others are done", v.count[provision.Refused], len(v.rows)), replaceHint)
}

const replaceHint = "--replace gives a new token and new files; the board that uses the old token is locked out"

// provisionFault says why a device was not provisioned. Where err has no hint of its own, it is hint.
func provisionFault(err error, hint string) error {
	if errors.Is(err, provision.ErrHasToken) || errors.Is(err, provision.ErrThere) {
		return refused(err, replaceHint)
	}
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return unwritable(pe.Path, pe)
	}
	err = serverFault(err)
	if f, ok := errors.AsType[*fault](err); ok && f.hint != "" {
		return err
	}
	code := exitFailed
	if f, ok := errors.AsType[*fault](err); ok {
		code = f.code
	}
	return &fault{code: code, err: err, hint: hint}
}
