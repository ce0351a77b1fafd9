package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"bmsota/api"
	"bmsota/deploy"

	"github.com/spf13/cobra"
)

// access is where a command finds server and broker. A flag wins over the environment, that over --config, and that
// over the access file which a server leaves in its data folder.
type access struct {
	data, config                           string
	server, token, caFile                  string
	broker, username, password, passwordIn string
	prefix                                 string
}

var (
	certificateInput = inputKind{what: "a PEM file of certificates", limit: 1 << 20}
	passwordInput    = inputKind{what: "a file that holds a password", limit: 4096}
)

// serverFlags adds the flags of commands that call a server's API.
func (a *access) serverFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&a.data, "data", defaultData(), "data folder of a server on this machine, for its address and token")
	f.StringVar(&a.config, "config", "", "deployment settings to read address and token from, such as "+deploy.ConfigName)
	f.StringVar(&a.server, "server", os.Getenv("BMSOTA_SERVER"), "server address, https://host:port (BMSOTA_SERVER)")
	f.StringVar(&a.caFile, "ca-file", os.Getenv("BMSOTA_CA_FILE"), "certificates to trust, PEM (BMSOTA_CA_FILE)")
	// The token itself is no flag: a process list shows flags to everybody on the machine.
	a.token = os.Getenv("BMSOTA_TOKEN")
}

// brokerFlags adds the flags of commands that speak MQTT.
func (a *access) brokerFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&a.broker, "broker", os.Getenv("BMSOTA_BROKER"), "broker address, mqtt://host:port or mqtts://host:port (BMSOTA_BROKER)")
	f.StringVar(&a.username, "username", os.Getenv("BMSOTA_USERNAME"), "broker login (BMSOTA_USERNAME)")
	f.StringVar(&a.passwordIn, "password-file", "", "file with the broker password (or BMSOTA_PASSWORD)")
	f.StringVar(&a.prefix, "prefix", "", "topic prefix (default bms/ota)")
	a.password = os.Getenv("BMSOTA_PASSWORD")
}

// defaultDataName is a server's data folder unless it is given another.
const defaultDataName = "bmsota-data"

func defaultData() string {
	if dir := os.Getenv("BMSOTA_DATA"); dir != "" {
		return dir
	}
	return defaultDataName
}

// client opens the API of the server.
func (a *access) client(cmd *cobra.Command) (*api.Client, error) {
	if err := a.fill(); err != nil {
		return nil, err
	}
	if a.server == "" {
		return nil, &fault{code: exitUsage, err: errors.New("no server given"),
			hint: "run it beside the server's data folder, or give --data, or --server and BMSOTA_TOKEN"}
	}
	return a.newClient(cmd)
}

// newClient opens the API of the server that a holds.
func (a *access) newClient(cmd *cobra.Command) (*api.Client, error) {
	opt := api.Options{BaseURL: a.server, Token: a.token}
	if a.caFile != "" {
		pem, err := readCertificates(cmd, a.caFile)
		if err != nil {
			return nil, err
		}
		opt.CAPEM = pem
	}
	client, err := api.NewClient(opt)
	if err != nil {
		return nil, usagef("%w", err)
	}
	return client, nil
}

// link opens the connection to the broker.
func (a *access) link(ctx context.Context, cmd *cobra.Command) (*deploy.Link, error) {
	if err := a.fill(); err != nil {
		return nil, err
	}
	if a.broker == "" {
		return nil, &fault{code: exitUsage, err: errors.New("no broker given"),
			hint: "run it beside the server's data folder, or give --data or --broker"}
	}
	return a.dial(ctx, cmd)
}

// dial opens the connection to the broker that a holds.
func (a *access) dial(ctx context.Context, cmd *cobra.Command) (*deploy.Link, error) {
	b, err := a.parseBroker(cmd)
	if err != nil {
		return nil, err
	}
	l, err := deploy.Dial(ctx, b)
	if err != nil {
		return nil, brokerFault(err)
	}
	return l, nil
}

func readCertificates(cmd *cobra.Command, path string) ([]byte, error) {
	pem, err := certificateInput.read(cmd, path)
	if err != nil {
		return nil, err
	}
	if !x509.NewCertPool().AppendCertsFromPEM(pem) {
		return nil, badContent(path, errors.New("no certificate in it"), "give a PEM file; a server keeps its CA in its data folder as tls/ca.pem")
	}
	return pem, nil
}

// parseAddress reads a broker's address; Port is 0 where it has none.
func parseAddress(text string) (deploy.Broker, error) {
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" || u.Scheme != "mqtt" && u.Scheme != "mqtts" {
		return deploy.Broker{}, usagef("broker %q is not mqtt://host:port or mqtts://host:port", text)
	}
	b := deploy.Broker{Host: u.Hostname(), TLS: u.Scheme == "mqtts"}
	if p := u.Port(); p != "" {
		if b.Port, err = strconv.Atoi(p); err != nil || b.Port < 1 || b.Port > 65535 {
			return deploy.Broker{}, usagef("broker port %q is not a number from 1 to 65535", p)
		}
	}
	return b, nil
}

func (a *access) parseBroker(cmd *cobra.Command) (deploy.Broker, error) {
	b, err := parseAddress(a.broker)
	if err != nil {
		return deploy.Broker{}, err
	}
	b.Username, b.Password, b.Prefix = a.username, a.password, a.prefix
	if a.passwordIn != "" {
		secret, err := passwordInput.read(cmd, a.passwordIn)
		if err != nil {
			return deploy.Broker{}, err
		}
		b.Password = strings.TrimSpace(string(secret))
	}
	if b.TLS && a.caFile != "" {
		if b.CAPEM, err = readCertificates(cmd, a.caFile); err != nil {
			return deploy.Broker{}, err
		}
	}
	return b, nil
}

// fill completes what flags and environment left open.
func (a *access) fill() error {
	if a.config != "" {
		c, err := deploy.LoadConfig(a.config)
		if err != nil {
			return configFault(a.config, err, "")
		}
		a.fromConfig(c)
	}
	// A server or broker that was named is meant: the credentials of another must not go to it.
	if a.server != "" || a.broker != "" {
		return nil
	}
	file := filepath.Join(a.data, api.AccessFile)
	found, err := api.ReadAccess(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		if pe, ok := errors.AsType[*fs.PathError](err); ok {
			return inputKind{what: "a server's access file"}.unreadable(file, pe)
		}
		return failure("a server writes it anew when it starts; or give --server or --broker", "%s is broken, no server left it like this", shown(file))
	}
	a.server, a.token, a.caFile = found.Server, found.Token, found.CAFile
	scheme := "mqtt"
	if found.MQTT.TLS {
		scheme = "mqtts"
		if found.MQTT.CAFile != "" {
			a.caFile = found.MQTT.CAFile
		}
	}
	if found.MQTT.Host != "" {
		a.broker = fmt.Sprintf("%s://%s", scheme, net.JoinHostPort(found.MQTT.Host, strconv.Itoa(found.MQTT.Port)))
	}
	a.username, a.password = found.MQTT.Username, found.MQTT.Password
	if a.prefix == "" {
		a.prefix = found.MQTT.Prefix
	}
	return nil
}

func (a *access) fromConfig(c deploy.Config) {
	set := func(to *string, from string) {
		if *to == "" {
			*to = from
		}
	}
	set(&a.server, c.Server.BaseURL)
	set(&a.token, c.Server.Password)
	set(&a.caFile, c.Server.CAFile)
	if c.Broker() != "" && a.broker == "" {
		scheme, port := "mqtt", 1883
		if c.MQTT.TLS {
			scheme, port = "mqtts", 8883
		}
		if c.MQTT.Port != 0 {
			port = c.MQTT.Port
		}
		a.broker = fmt.Sprintf("%s://%s", scheme, net.JoinHostPort(c.Broker(), strconv.Itoa(port)))
		set(&a.username, c.MQTT.Username)
		set(&a.password, c.MQTT.Password)
	}
	set(&a.prefix, c.Prefix())
}

// serverFault turns a failed call into its exit code and hint.
func serverFault(err error) error {
	var e *api.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e):
		err = plainAnswer(err, e)
		switch e.Code {
		case api.CodeDenied:
			return &fault{code: exitRefused, err: err, hint: "the token you use has too weak a role; on the server's machine " + api.AccessFile + " holds one that may do everything"}
		case api.CodeUnauthorized:
			return &fault{code: exitRefused, err: err, hint: "check BMSOTA_TOKEN, or the password in the deployment settings; a server keeps its token in its data folder in " + api.AccessFile}
		case api.CodeStorageFull:
			return failure("make room on the server's disk and try again", "%w", err)
		case api.CodeRefused, api.CodeConflict:
			return &fault{code: exitRefused, err: err}
		case api.CodeInvalid:
			return &fault{code: exitUsage, err: err}
		case api.CodeUnavailable, api.CodeTooManyTries:
			return &fault{code: exitUnreachable, err: err}
		}
		return err
	case errors.Is(err, api.ErrUntrusted):
		return &fault{code: exitRefused, err: err, hint: "give the server's CA with --ca-file; a server keeps it in its data folder as tls/ca.pem"}
	case errors.Is(err, api.ErrUnreachable), errors.Is(err, api.ErrTimeout):
		return &fault{code: exitUnreachable, err: err, hint: "is the server running, and is the address right?"}
	}
	return err
}

// plainAnswer is err without what the server's answer says twice: in words, and as the code behind them.
func plainAnswer(err error, e *api.Error) error {
	if e.Detail == "" {
		return err
	}
	said := e.Detail
	for _, kind := range []string{"invalid: ", "conflict: ", "refused: ", "not allowed: "} {
		said = strings.TrimPrefix(said, kind)
	}
	if e.Code == api.CodeUnauthorized {
		said = "the server does not accept the operator's token, or got none"
	}
	return &answer{strings.Replace(err.Error(), e.Error(), said, 1), err}
}

// answer is an error in other words.
type answer struct {
	text string
	err  error
}

func (a *answer) Error() string { return a.text }
func (a *answer) Unwrap() error { return a.err }

// brokerFault turns a failed link into its exit code and hint.
func brokerFault(err error) error {
	switch {
	case errors.Is(err, deploy.ErrLogin), errors.Is(err, deploy.ErrDenied):
		return &fault{code: exitRefused, err: err, hint: "check the broker's user name and password"}
	case errors.Is(err, deploy.ErrUntrusted):
		return &fault{code: exitRefused, err: err, hint: "give the broker's CA with --ca-file"}
	case errors.Is(err, deploy.ErrUnreachable):
		return &fault{code: exitUnreachable, err: err, hint: "is the broker running, and is the address right?"}
	}
	return err
}
