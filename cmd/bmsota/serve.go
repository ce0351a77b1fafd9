package main

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"bmsota/server"

	"github.com/spf13/cobra"
)

func newServeCmd() *cobra.Command {
	var (
		config, data, database, host, https, mqtts, mqtt string
		logJSON, verbose                                 bool
	)
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "run the server: firmware over HTTPS, the MQTT broker, the fleet",
		Long: `Runs until interrupted. The first start makes the data folder, a certificate authority of its own,
a certificate for this machine's names, and an operator token; then it prints the addresses and the
files a device needs. A flag wins over the configuration file; every key of that is described in
docs/configuration.md.`,
		Example: `  bmsota serve
  bmsota serve --data /var/lib/bmsota --host nas.local
  bmsota serve --config /etc/bmsota.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg := server.Default()
			if config != "" {
				var err error
				if cfg, err = server.Load(config); err != nil {
					return configFault(config, err, "every key is described in docs/configuration.md")
				}
			}
			set := func(to *string, name, value string) {
				if cmd.Flags().Changed(name) {
					*to = value
				}
			}
			if config == "" || cmd.Flags().Changed("data") {
				cfg.DataDir = data
			}
			cfg.Version = readBuildInfo().Version
			set(&cfg.Database.URL, "database", database)
			set(&cfg.Host, "host", host)
			set(&cfg.HTTPS.Listen, "https", https)
			set(&cfg.MQTT.TLSListen, "mqtts", mqtts)
			set(&cfg.MQTT.Listen, "mqtt", mqtt)
			if err := cfg.Check(); err != nil {
				return usagef("%w", err)
			}
			if logJSON {
				cfg.Log.Format = "json"
			}
			if verbose {
				cfg.Log.Level = "debug"
			}
			srv, err := server.Open(cmd.Context(), cfg, slog.New(cfg.Log.Handler(cmd.ErrOrStderr())))
			if err != nil {
				return openFault(err)
			}
			if err := printf(cmd, "%s", srv.Banner()); err != nil {
				return err
			}
			defer reloadOnHangup(srv)()
			defer giveHeapRoom()()
			return srv.Run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&config, "config", "", "configuration file, JSON")
	f.StringVar(&data, "data", defaultData(), "folder for everything the server keeps")
	f.StringVar(&database, "database", "", "PostgreSQL database for the rows, postgres://user@host/name (default a file in the data folder)")
	f.StringVar(&host, "host", "", "name or address by which devices reach this machine")
	f.StringVar(&https, "https", "", `address for HTTPS (default ":8443")`)
	f.StringVar(&mqtts, "mqtts", "", `address for MQTT over TLS, or off (default ":8883")`)
	f.StringVar(&mqtt, "mqtt", "", `address for plain MQTT, or off (default "127.0.0.1:1883")`)
	f.BoolVar(&logJSON, "log-json", false, "write the log as JSON")
	f.BoolVarP(&verbose, "verbose", "v", false, "log what goes right as well")
	return cmd
}

// reloadOnHangup has the server look at its certificate for every SIGHUP, until stop.
func reloadOnHangup(srv *server.Server) (stop func()) {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP) // which no program of Windows gets
	go func() {
		for range hangup {
			srv.Reload()
		}
	}()
	return func() {
		signal.Stop(hangup)
		close(hangup)
	}
}

// openFault tells a database, a bucket or another server that does not let this one in (3) from one that is away (5).
func openFault(err error) error {
	switch {
	case errors.Is(err, server.ErrBucketRefused):
		return refused(err, "firmware.bucket is described in docs/deploying.md")
	case errors.Is(err, server.ErrReplicaRefused):
		return refused(err, "several servers on one database are described in docs/scaling.md")
	case errors.Is(err, server.ErrDatabaseRefused):
		return refused(err, "docs/install.md says what a database has to be")
	case errors.Is(err, server.ErrBucketAway), errors.Is(err, server.ErrDatabaseAway):
		return &fault{code: exitUnreachable, err: err}
	}
	return err
}

// configFault tells a file that cannot be read (exit code 1) from one that says something wrong (2).
func configFault(path string, err error, hint string) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return inputKind{what: "a configuration file, JSON"}.unreadable(path, pe)
	}
	return &fault{code: exitUsage, err: err, hint: hint}
}

// newLog writes to stderr, so that stdout stays for what was asked.
func newLog(cmd *cobra.Command, verbose bool) *slog.Logger {
	opt := &slog.HandlerOptions{Level: slog.LevelInfo}
	if verbose {
		opt.Level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), opt))
}
