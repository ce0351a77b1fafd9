package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"bmsota/api"
	"bmsota/device"
	"bmsota/esp/appimage"
	"bmsota/esp/parttable"
	"bmsota/manifest"
	"bmsota/protocol"
	"bmsota/provision"

	"github.com/spf13/cobra"
)

var (
	configKind = inputKind{what: "a device's configuration file", limit: protocol.MaxConfig}
	publicKind = inputKind{what: "a public key in PEM", limit: 64 << 10}
)

func newDeviceCmd() *cobra.Command {
	return group("device", "virtual boards: create, run, boot and inspect them",
		newDeviceCreateCmd(), newDeviceRunCmd(), newDeviceFleetCmd(), newDeviceBootCmd(), newDeviceInspectCmd())
}

// board is what create and fleet make boards from.
type board struct {
	access                        access
	image, partitions, trustedKey string
	otaConfig, mqttConfig         string
	enroll, certificate           bool
}

func (b *board) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&b.image, "image", "", "application image for the first slot")
	f.StringVar(&b.partitions, "partitions", "", "partition table, CSV or binary (default the original layout: two slots of 1536K)")
	f.StringVar(&b.trustedKey, "trusted-key", "", "with enrolment: public key that signs releases; without it the board takes unsigned ones")
}

// layout reads the files that a board is made of.
func (b *board) layout(cmd *cobra.Command) (device.Layout, error) {
	var l device.Layout
	var err error
	if err := needFlags(cmd, "image"); err != nil {
		return l, err
	}
	if l.Image, err = imageKind.read(cmd, b.image); err != nil {
		return l, err
	}
	if b.partitions != "" {
		if l.Table, err = b.table(cmd); err != nil {
			return l, err
		}
	}
	if b.otaConfig != "" {
		if l.OTAConfig, err = configKind.read(cmd, b.otaConfig); err != nil {
			return l, err
		}
		if _, err := protocol.ParseOTAConfig(l.OTAConfig); err != nil {
			return l, badContent(b.otaConfig, err, "docs/protocol.md §8 shows the file")
		}
	}
	if b.mqttConfig != "" {
		if l.MQTTConfig, err = configKind.read(cmd, b.mqttConfig); err != nil {
			return l, err
		}
		if _, err := protocol.ParseMQTTConfig(l.MQTTConfig); err != nil {
			return l, badContent(b.mqttConfig, err, "docs/protocol.md §8 shows the file")
		}
	}
	return l, nil
}

// id is the one that a board with these files has.
func (b *board) id(l device.Layout) (string, error) {
	if len(l.OTAConfig) == 0 {
		return protocol.DeviceID(l.MAC), nil
	}
	c, err := protocol.ParseOTAConfig(l.OTAConfig)
	return cmp.Or(c.DeviceID, protocol.DeviceID(l.MAC)), err
}

func (b *board) table(cmd *cobra.Command) (parttable.Table, error) {
	raw, err := tableKind.read(cmd, b.partitions)
	if err != nil {
		return nil, err
	}
	var t parttable.Table
	if parttable.IsBinary(raw) {
		t, err = parttable.ParseBinary(raw)
	} else {
		t, err = parttable.ParseCSV(raw, parttable.CSVOptions{MD5: true})
	}
	if err != nil {
		return nil, badTable(b.partitions, err)
	}
	return t, nil
}

// enrolment gives boards a login at a server and the files that go with it.
type enrolment struct {
	certificate bool
	client      *api.Client
	info        api.ServerInfo
	trusted     string
}

// readTrustedKey reads the public keys that a device shall trust; no file means none.
func readTrustedKey(cmd *cobra.Command, path string) (string, error) {
	if path == "" {
		return "", nil
	}
	pem, err := publicKind.read(cmd, path)
	if err != nil {
		return "", err
	}
	if _, err := manifest.ParsePublicKeys(pem); err != nil {
		return "", badContent(path, err, "give the public half that 'bmsota keys new' made")
	}
	return string(pem), nil
}

func (b *board) enrolment(cmd *cobra.Command) (*enrolment, error) {
	e := &enrolment{certificate: b.certificate}
	var err error
	if e.trusted, err = readTrustedKey(cmd, b.trustedKey); err != nil {
		return nil, err
	}
	if e.client, err = b.access.client(cmd); err != nil {
		return nil, err
	}
	if e.info, err = e.client.Server(cmd.Context()); err != nil {
		return nil, serverFault(err)
	}
	if e.certificate && !certifies(e.info) {
		return nil, noCertificates()
	}
	return e, nil
}

// files enrolls the device and makes its two files.
func (e *enrolment) files(ctx context.Context, id string, l *device.Layout) error {
	_, login, err := api.EnrollDevice(ctx, e.client, id, e.certificate)
	if err != nil {
		return serverFault(err)
	}
	ota, mqtt, err := e.info.DeviceFiles(id, login, e.trusted)
	if err != nil {
		return failure("set host in the server's configuration", "%w", err)
	}
	if l.OTAConfig, err = ota.Append(nil); err != nil {
		return failure("", "%w", err)
	}
	if l.MQTTConfig, err = mqtt.Append(nil); err != nil {
		return failure("", "%w", err)
	}
	return nil
}

func newDeviceCreateCmd() *cobra.Command {
	var b board
	var flash, mac string
	cmd := &cobra.Command{
		Use:   "create",
		Short: "make the flash file of a new board",
		Long: `Writes a 4 MiB flash image: partition table, application in the first slot, blank boot records, and
the two configuration files in the SPIFFS partition. esptool could write the file to a real chip.

With --enroll the board gets a login at the server and both files are made for it.`,
		Example: `  bmsota device create --flash board.bin --image app.bin --enroll --trusted-key release.pub.pem
  bmsota device create --flash board.bin --image app.bin --ota-config ota_config.txt --mqtt-config mqtt_config.txt`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needFlags(cmd, "flash", "image"); err != nil {
				return err
			}
			if b.enroll && (b.otaConfig != "" || b.mqttConfig != "") {
				return usageFault(cmd, "--enroll makes both configuration files itself")
			}
			if b.certificate && !b.enroll {
				return usageFault(cmd, "--certificate goes with --enroll")
			}
			if b.trustedKey != "" && !b.enroll {
				return usageFault(cmd, "--trusted-key goes with --enroll: in a file of your own the key is trusted_key_pem of --ota-config")
			}
			l, err := b.layout(cmd)
			if err != nil {
				return err
			}
			if l.MAC, err = parseMAC(cmd, mac); err != nil {
				return err
			}
			// The flash is tried before the server is told: a board that cannot be made must not be enrolled.
			try := l
			if b.enroll {
				try.OTAConfig, try.MQTTConfig = []byte("{}"), []byte("{}") // there must be a place for them
			}
			if _, err := device.Build(try); err != nil {
				return b.buildFault(err)
			}
			if b.partitions != "" {
				warnOfTable(cmd, b.partitions, l.Table)
			}
			id, err := b.id(l)
			if err != nil {
				return err
			}
			if b.enroll {
				e, err := b.enrolment(cmd)
				if err != nil {
					return err
				}
				if err := e.files(cmd.Context(), id, &l); err != nil {
					return err
				}
			}
			if err := device.Create(flash, l); err != nil {
				if errors.Is(err, fs.ErrExist) {
					return refused(fmt.Errorf("%s is there already and is not overwritten", shown(flash)), "choose another name, or remove it")
				}
				return unwritable(flash, err)
			}
			return printf(cmd, "created %s: %s\n", shown(flash), id)
		},
	}
	b.flags(cmd)
	b.access.serverFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&flash, "flash", "", "flash file to make")
	f.StringVar(&b.otaConfig, "ota-config", "", "file to put on the board as ota_config.txt")
	f.StringVar(&b.mqttConfig, "mqtt-config", "", "file to put on the board as mqtt_config.txt")
	f.StringVar(&mac, "mac", "", "MAC address, which gives the board its id (default random)")
	f.BoolVar(&b.certificate, "certificate", false, "with --enroll: a certificate in place of a token")
	f.BoolVar(&b.enroll, "enroll", false, "enroll the board at the server and make its configuration files")
	return cmd
}

// buildFault says which of the files a board cannot be made of.
func (b *board) buildFault(err error) error {
	if ve, ok := errors.AsType[*appimage.VerifyError](err); ok {
		return badContent(b.image, fmt.Errorf("not a valid image: %w", withoutCode(ve)), imageHint)
	}
	path := b.image
	if b.partitions != "" {
		path += " and " + b.partitions
	}
	return badContent(path, errors.New(strings.TrimPrefix(err.Error(), "create board: ")), "give another image, or another table with --partitions")
}

// warnOfTable tells what a board cannot do with a table that lacks something.
func warnOfTable(cmd *cobra.Command, path string, t parttable.Table) {
	if _, ok := t.OTAData(); !ok || len(t.Slots()) < 2 {
		warn(cmd, "%s: without an otadata partition and two slots (ota_0, ota_1) the board cannot be updated", shown(path))
	}
	if _, ok := t.Storage(); !ok {
		warn(cmd, "%s: without a SPIFFS partition the board has no place for its configuration files", shown(path))
	}
}

func parseMAC(cmd *cobra.Command, text string) ([6]byte, error) {
	var mac [6]byte
	if text == "" {
		if _, err := rand.Read(mac[:]); err != nil {
			return mac, failure("", "make a MAC address: %w", err)
		}
		mac[0] = mac[0]&^1 | 2 // one station, locally administered (IEEE 802)
		return mac, nil
	}
	mac, err := provision.ParseMAC(text)
	if err != nil {
		return mac, usageFault(cmd, "%w", err)
	}
	return mac, nil
}

func newDeviceRunCmd() *cobra.Command {
	var (
		flash, mac, application          string
		seed                             uint64
		noRollback, antiRollback, asJSON bool
		verbose, charging                bool
		soc, current, temp               float64
		cutAt                            int
		cut                              string
	)
	cmd := &cobra.Command{
		Use:   "run",
		Short: "run one board until stopped",
		Long: `Switches the board on. Its statuses are printed as it says them; what it writes is in the flash file
at once, so it may be stopped, or killed, at any moment and run again.

--cut-at lets the power fail at the n-th flash operation after power on: an erased sector or a programmed piece of
at most 64 bytes. The command then ends with exit 0 and says so in its last line (with --json on standard error);
run again without it, the board continues from what the cut left. How far a torn operation got is --seed's.

--application runs a program of your own as the board's firmware: docs/virtual-boards.md says what it is given and
what its exit status means.`,
		Example: `  bmsota device run --flash board.bin
  bmsota device run --flash board.bin --cut-at 300 --cut torn --seed 7
  bmsota device run --flash board.bin --application ./build/monitor`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needFlags(cmd, "flash"); err != nil {
				return err
			}
			switch how := device.CutMoment(cut); {
			case cmd.Flags().Changed("cut-at") && cutAt < 1:
				return usageFault(cmd, "--cut-at of %d is no operation: the first one is 1", cutAt)
			case cutAt == 0 && cmd.Flags().Changed("cut"):
				return usageFault(cmd, "--cut says how the power fails, --cut-at has to say where")
			case how != device.CutBefore && how != device.CutTorn && how != device.CutAfter:
				return usageFault(cmd, "--cut %q is not before, torn or after", cut)
			}
			if !(soc >= 0 && soc <= 100) {
				return usageFault(cmd, "--soc of %v is not within 0 to 100", soc)
			}
			if !(current >= -protocol.MaxGateCurrentA && current <= protocol.MaxGateCurrentA) {
				return usageFault(cmd, "--current of %v is not within -%d to %[2]d", current, protocol.MaxGateCurrentA)
			}
			if !(temp >= protocol.LowestTempC && temp <= protocol.HighestTempC) {
				return usageFault(cmd, "--temp of %v is not within %v to %v", temp, protocol.LowestTempC, protocol.HighestTempC)
			}
			sensors := device.NewSensors()
			battery, _ := sensors.Read()
			battery.SOCPct, battery.PackCurrentA, battery.Charging = soc, current, charging
			if charging && !cmd.Flags().Changed("current") {
				battery.PackCurrentA = 6
			}
			if cmd.Flags().Changed("temp") {
				battery.TempMinC, battery.TempMaxC = &temp, &temp
			}
			sensors.Set(battery)
			say := statusPrinter(cmd, asJSON)
			cfg := device.Config{Path: flash, Application: application, Seed: seed, NoRollback: noRollback, AntiRollback: antiRollback,
				Sensors: sensors, Log: newLog(cmd, verbose), OnStatus: say,
				PowerCut: device.PowerCut{At: cutAt, How: device.CutMoment(cut), Seed: seed}}
			if mac != "" {
				var err error
				if cfg.MAC, err = parseMAC(cmd, mac); err != nil {
					return err
				}
			}
			b, err := device.Open(cfg)
			if errors.Is(err, device.ErrApplication) {
				return applicationFault(err)
			} else if err != nil {
				return flashFault(flash, err)
			}
			err = b.Run(cmd.Context())
			if errors.Is(err, device.ErrPowerCut) {
				if err := b.Close(); err != nil {
					return flashFault(flash, err)
				}
				out := cmd.OutOrStdout()
				if asJSON {
					out = cmd.ErrOrStderr()
				}
				_, err := fmt.Fprintf(out, "power cut at operation %d\n", cutAt)
				return err
			}
			if err := errors.Join(err, b.Close()); errors.Is(err, device.ErrApplication) {
				return applicationFault(err)
			} else if err != nil {
				return &fault{code: exitDevice, err: err, hint: "see 'bmsota device inspect --flash " + shown(flash) + "'"}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&flash, "flash", "", "flash file of the board")
	f.Uint64Var(&seed, "seed", 1, "of everything random about the board")
	f.StringVar(&mac, "mac", "", "MAC address, for a flash read from a real board")
	f.StringVar(&application, "application", "", "program to run as the firmware (default the one built in)")
	f.BoolVar(&noRollback, "no-rollback", false, "bootloader and application are built without rollback")
	f.BoolVar(&antiRollback, "anti-rollback", false, "and with anti-rollback")
	f.Float64Var(&soc, "soc", 80, "state of charge that the battery reports, percent")
	f.BoolVar(&charging, "charging", false, "the battery reports that it charges")
	f.Float64Var(&current, "current", -1.5, "current that the battery reports, ampere, positive while it charges (with --charging default 6)")
	f.Float64Var(&temp, "temp", 22, "temperature that every cell of the battery reports, °C")
	f.IntVar(&cutAt, "cut-at", 0, "let the power fail at this flash operation after power on")
	f.StringVar(&cut, "cut", string(device.CutBefore), "when it fails, seen from the operation: before, torn, after")
	f.BoolVar(&asJSON, "json", false, "print statuses as JSON, one a line")
	f.BoolVarP(&verbose, "verbose", "v", false, "log more")
	return cmd
}

// statusPrinter prints what boards say, one line each; it may be called from many goroutines.
func statusPrinter(cmd *cobra.Command, asJSON bool) func(protocol.Status) {
	var mu sync.Mutex
	return func(s protocol.Status) {
		line := fmt.Sprintf("%s %-12s %3d %% %s %s", s.DeviceID, s.Phase, s.ProgressPct, orDash(plain(s.CurrentVersion)), plain(s.Message))
		if asJSON {
			b, err := s.Append(nil)
			if err != nil {
				return
			}
			line = string(b)
		}
		mu.Lock()
		defer mu.Unlock()
		// A board does not stop because nobody reads its console.
		_, _ = fmt.Fprintln(cmd.OutOrStdout(), line)
	}
}

func applicationFault(err error) error {
	return failure("docs/virtual-boards.md says what a program has to do to run on a board", "%w", err)
}

func flashFault(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return failure("make one with 'bmsota device create'", "there is no file %s", shown(path))
	case errors.Is(err, fs.ErrPermission):
		return failure("change its permissions or run as its owner", "this user may not use %s", shown(path))
	case errors.Is(err, syscall.EISDIR):
		return failure("give the path of a board's flash file", "%s is a folder", shown(path))
	case errors.Is(err, device.ErrInUse):
		return failure("stop the board that runs from it first", "%s is in use by another process", shown(path))
	}
	if _, why, ok := strings.Cut(err.Error(), "open flash "+path+": "); ok {
		err = errors.New(why)
	}
	return badContent(path, err, "a flash file has the size of a chip (4 MiB unless made otherwise) and its partition table at 0x8000")
}

func newDeviceFleetCmd() *cobra.Command {
	var (
		b             board
		count         int
		seed          uint64
		quiet, asJSON bool
		mix           string
		spread        time.Duration
		maxPause      time.Duration
	)
	cmd := &cobra.Command{
		Use:   "fleet",
		Short: "run many boards in this process, enrolled at the server",
		Long: `Makes boards with a flash each, enrolls them at the server and switches them on. With --mix a part of them does badly with
any new image, on its trial: crash, hang, brownout, silent (not heard of again). Which boards is --seed's.`,
		Example: `  bmsota device fleet --count 1000 --image app.bin --mix good=0.9,crash=0.05,silent=0.05 --quiet`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if count < 1 || count > 100_000 {
				return usageFault(cmd, "--count of %d is not within 1 to 100000", count)
			}
			if spread < 0 || maxPause < 0 {
				return usageFault(cmd, "--spread and --max-pause cannot be less than nothing")
			}
			cfg := device.FleetConfig{Board: device.Config{Seed: seed, MaxPause: maxPause}, Count: count, Spread: spread}
			if mix != "" {
				shares, err := parseMix(mix)
				if err != nil {
					return usageFault(cmd, "--mix: %w", err)
				}
				cfg.Mix = make(device.Mix, len(shares))
				for name, share := range shares {
					if !slices.Contains(device.Fates(), device.Fate(name)) {
						return usageFault(cmd, "--mix: %q is none of %v", name, device.Fates())
					}
					cfg.Mix[device.Fate(name)] = share
				}
			}
			l, err := b.layout(cmd)
			if err != nil {
				return err
			}
			cfg.Layout = l
			e, err := b.enrolment(cmd)
			if err != nil {
				return err
			}
			if !quiet {
				cfg.Board.OnStatus = statusPrinter(cmd, asJSON)
			}
			var enrollErr error
			cfg.Each = func(_ int, l *device.Layout, _ *device.Config) {
				if enrollErr == nil {
					enrollErr = e.files(cmd.Context(), protocol.DeviceID(l.MAC), l)
				}
			}
			fleet, err := device.NewFleet(cfg)
			if enrollErr != nil || err != nil {
				return errors.Join(enrollErr, err)
			}
			err = fleet.Run(cmd.Context())
			return errors.Join(err, fleet.Close())
		},
	}
	b.flags(cmd)
	b.access.serverFlags(cmd)
	f := cmd.Flags()
	f.IntVar(&count, "count", 10, "how many boards")
	f.StringVar(&mix, "mix", "", "shares of boards and how new images do on them: good=0.9,crash=0.05,silent=0.05")
	f.DurationVar(&maxPause, "max-pause", 0, "longest pause of a board between two tries to reach the server (default 2m, as real ones)")
	f.DurationVar(&spread, "spread", 0, "switch the boards on at random within this time")
	f.Uint64Var(&seed, "seed", 1, "of everything random about the boards")
	f.BoolVarP(&quiet, "quiet", "q", false, "do not print statuses")
	f.BoolVar(&asJSON, "json", false, "print statuses as JSON, one a line")
	return cmd
}
