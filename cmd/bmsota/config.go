package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"bmsota/api"
	"bmsota/deploy"

	"github.com/spf13/cobra"
)

// configurer makes and shows deployment settings.
type configurer struct {
	settings
	data                     string
	kind, broker             string
	passwordIn, mqttPassword string
	timeout                  time.Duration
	asJSON                   bool
	given                    deploy.Config // what flags say
}

func newConfigCmd() *cobra.Command {
	c := configurer{}
	cmd := &cobra.Command{
		Use:   "config",
		Short: "make, show and check the deployment settings of a firmware project (idf.py ota_config)",
		Long: `Without a file it makes one, readable by its owner only and kept out of git: from the flags, from the
access file of a server in ` + defaultDataName + ` beside it, and from questions where standard input is a terminal.
With a file it shows what that says, secrets masked, and whether server and broker can be reached.

docs/deploying.md describes every key.`,
		Example: `  bmsota config --key release.pem                    # beside the data folder of a server
  bmsota config --kind sftp --server https://nas.local --username ota --ssh-path /var/www/firmware --broker mqtt://nas.local
  bmsota config --kind dir --dir /var/www/firmware --broker mqtt://localhost`,
		Args: cobra.NoArgs,
		RunE: c.run,
	}
	f := cmd.Flags()
	f.StringVar(&c.path, "config", deploy.ConfigName, "the settings file")
	f.StringVar(&c.data, "data", "", "data folder of a server on this machine (default: "+defaultDataName+" beside the file)")
	f.StringVar(&c.kind, "kind", "", "where releases go: bmsota, sftp or dir")
	f.StringVar(&c.given.Server.BaseURL, "server", "", "server address, https://host:port")
	f.StringVar(&c.given.Server.CAFile, "ca-file", "", "certificates to trust for server and broker, PEM")
	f.StringVar(&c.given.Server.Username, "username", "", "kind sftp: login on that machine")
	f.StringVar(&c.passwordIn, "password-file", "", "file with the password of that login, or the server's token (or BMSOTA_TOKEN)")
	f.StringVar(&c.given.Server.SFTP.Host, "ssh-host", "", "kind sftp: the machine, where it is not the server's")
	f.IntVar(&c.given.Server.SFTP.Port, "ssh-port", 0, "kind sftp: its port (default 22)")
	f.StringVar(&c.given.Server.SFTP.Path, "ssh-path", "", "kind sftp: the folder there")
	f.StringVar(&c.given.Server.SFTP.KeyFile, "ssh-key", "", "kind sftp: private key (default: the agent's and ~/.ssh)")
	f.StringVar(&c.given.Server.SFTP.KnownHosts, "known-hosts", "", "kind sftp: file that knows the machine's key (default: ssh's own)")
	f.StringVar(&c.given.Server.Dir, "dir", "", "kind dir: the folder")
	f.StringVar(&c.broker, "broker", "", "broker address, mqtt://host:port or mqtts://host:port")
	f.StringVar(&c.given.MQTT.Username, "broker-username", "", "broker login")
	f.StringVar(&c.mqttPassword, "broker-password-file", "", "file with the broker password (or BMSOTA_PASSWORD)")
	f.StringVar(&c.given.Build.FirmwarePath, "image", "", "the image (default: what the build names)")
	f.StringVar(&c.given.Signing.KeyFile, "key", "", "release key that signs; see 'bmsota keys new'")
	f.DurationVar(&c.timeout, "timeout", 10*time.Second, "how long to wait for server and broker")
	f.BoolVar(&c.asJSON, "json", false, "print JSON")
	return cmd
}

// configured is what config prints with --json.
type configured struct {
	File     string        `json:"file"`
	Created  bool          `json:"created"`
	Settings deploy.Config `json:"settings"` // secrets masked
	Checks   []probe       `json:"checks"`
}

func (c *configurer) run(cmd *cobra.Command, _ []string) error {
	_, err := os.Stat(c.path)
	switch {
	case err == nil:
		if name := c.changed(cmd); name != "" {
			return &fault{code: exitUsage, err: fmt.Errorf("%s is there already, and --%s would change it", shown(c.path), name),
				hint: "edit the file, or move it away first"}
		}
		return c.show(cmd)
	case errors.Is(err, fs.ErrNotExist):
		return c.create(cmd)
	}
	return configFault(c.path, err, "")
}

// changed names a flag that was given to make settings with.
func (c *configurer) changed(cmd *cobra.Command) (name string) {
	for _, flag := range []string{"data", "kind", "server", "ca-file", "username", "password-file", "ssh-host", "ssh-port", "ssh-path", "ssh-key",
		"known-hosts", "dir", "broker", "broker-username", "broker-password-file", "image", "key"} {
		if cmd.Flags().Changed(flag) {
			return flag
		}
	}
	return ""
}

// show prints settings that are there, and whether what they name answers.
func (c *configurer) show(cmd *cobra.Command) error {
	if err := c.load("."); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), c.timeout)
	defer cancel()
	out := configured{File: c.path, Settings: c.config.Masked()}
	var first error
	check := func(name string, try func() (string, error)) {
		detail, err := try()
		if err != nil {
			detail, first = sentence(err), errors.Join(first, err)
		}
		out.Checks = append(out.Checks, probe{name, err == nil, detail})
	}
	c.warnOfKeys(cmd)
	check("server", func() (string, error) { return c.tryServer(ctx, cmd) })
	check("broker", func() (string, error) {
		link, err := c.link(ctx, cmd)
		if err != nil {
			return "", err
		}
		link.Close()
		return c.access().broker, nil
	})
	if err := c.print(cmd, out); err != nil {
		return err
	}
	if first == nil {
		return nil
	}
	f := &fault{code: exitFailed}
	errors.As(first, &f)
	bad := slices.DeleteFunc(slices.Clone(out.Checks), func(p probe) bool { return p.OK })
	return &fault{code: f.code, err: fmt.Errorf("%d of %d checks failed", len(bad), len(out.Checks)), hint: f.hint}
}

func (c *configurer) tryServer(ctx context.Context, cmd *cobra.Command) (string, error) {
	at, err := c.open(ctx, cmd)
	if err != nil {
		return "", err
	}
	defer at.Close() // nothing was written
	offer, err := at.Offered(ctx, "", "")
	if err != nil {
		return "", placeFault(at, err, false)
	}
	if offer.Version == "" {
		return fmt.Sprintf("%s offers nothing yet", at), nil
	}
	return fmt.Sprintf("%s offers %s", at, offer.Version), nil
}

func (c *configurer) print(cmd *cobra.Command, out configured) error {
	if c.asJSON {
		return printJSON(cmd, out)
	}
	text, err := out.Settings.Append(nil)
	if err != nil {
		return err
	}
	if err := printf(cmd, "%s\n%s", shown(out.File), text); err != nil {
		return err
	}
	for _, p := range out.Checks {
		word := "ok"
		if !p.OK {
			word = "FAULT"
		}
		if err := printf(cmd, "%-8s %-6s %s\n", p.Name, word, plain(p.Detail)); err != nil {
			return err
		}
	}
	return nil
}

// create writes new settings.
func (c *configurer) create(cmd *cobra.Command) error {
	if err := c.fromFlags(cmd); err != nil {
		return err
	}
	if err := c.fromServer(cmd); err != nil {
		return err
	}
	if err := c.ask(cmd); err != nil {
		return err
	}
	g := &c.config
	if err := c.relate(g); err != nil {
		return err
	}
	verify := true
	g.Server.VerifySSL = &verify
	if g.MQTT.CommandTopic == "" {
		g.MQTT.CommandTopic, g.MQTT.StatusTopic = "bms/ota/command", "bms/ota/status"
	}
	if g.MQTT.Timeout == 0 {
		g.MQTT.Timeout = g.Answer().Seconds()
	}
	if err := g.Check(); err != nil {
		return usageFault(cmd, "%w", err)
	}
	text, err := g.Append(nil)
	if err != nil {
		return err
	}
	// Before the secrets are in the file.
	ignored, err := ignoreInGit(c.path)
	if err != nil {
		return unwritable(filepath.Join(filepath.Dir(c.path), ".gitignore"), err)
	}
	if err := createFile(c.path, text, 0o600); err != nil {
		return err
	}
	written := settings{path: c.path} // as flash will read it
	if err := written.load(""); err != nil {
		return err
	}
	written.warnOfKeys(cmd)
	if g.Signing.KeyFile == "" {
		warn(cmd, "no release key: releases will not be signed, and devices that hold a key refuse those; name it as signing.key_file")
	}
	if c.asJSON {
		return printJSON(cmd, configured{File: c.path, Created: true, Settings: g.Masked(), Checks: []probe{}})
	}
	if ignored {
		if err := printf(cmd, "added %s to .gitignore: it holds secrets\n", shown(filepath.Base(c.path))); err != nil {
			return err
		}
	}
	return printf(cmd, "wrote %s; 'bmsota config' again shows and checks it\n", shown(c.path))
}

// fromFlags takes what was given on the command line, by files and by the environment.
func (c *configurer) fromFlags(cmd *cobra.Command) error {
	g := c.given
	g.Server.Kind = deploy.Kind(c.kind)
	g.Server.Password, g.MQTT.Password = os.Getenv("BMSOTA_TOKEN"), os.Getenv("BMSOTA_PASSWORD")
	for path, to := range map[string]*string{c.passwordIn: &g.Server.Password, c.mqttPassword: &g.MQTT.Password} {
		if path == "" {
			continue
		}
		text, err := passwordInput.read(cmd, path)
		if err != nil {
			return err
		}
		*to = strings.TrimSpace(string(text))
	}
	if c.broker != "" {
		if err := setBroker(&g, c.broker); err != nil {
			return err
		}
	}
	c.config = g
	return nil
}

// warnOfKeys says of each release key that it is not where the settings say: flash would find out after the build.
func (s *settings) warnOfKeys(cmd *cobra.Command) {
	for _, key := range s.config.Signing.Keys() {
		if _, err := os.Stat(key.KeyFile); err != nil {
			warn(cmd, "the release key %s cannot be read (%v): 'bmsota flash' will not sign; 'bmsota keys new' makes one", shown(key.KeyFile), cause(err))
		}
	}
}

// relate makes paths that were given from where the command runs relative to the settings' folder, as they are read.
func (c *configurer) relate(g *deploy.Config) error {
	dir, err := filepath.Abs(filepath.Dir(c.path))
	if err != nil {
		return err
	}
	for _, p := range g.Paths() {
		if *p == "" || filepath.IsAbs(*p) || strings.HasPrefix(*p, "~/") {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return err
		}
		if rel, err := filepath.Rel(dir, abs); err == nil {
			abs = filepath.ToSlash(rel)
		}
		*p = abs
	}
	return nil
}

func setBroker(g *deploy.Config, address string) error {
	b, err := parseAddress(address)
	if err != nil {
		return err
	}
	g.MQTT.Broker, g.MQTT.TLS, g.MQTT.Port = b.Host, b.TLS, b.Port
	if b.Port == 0 {
		// The original tool knows no default.
		if g.MQTT.Port = 1883; b.TLS {
			g.MQTT.Port = 8883
		}
	}
	return nil
}

// fromServer fills in what the access file of a server on this machine says, where nothing else was asked for.
func (c *configurer) fromServer(cmd *cobra.Command) error {
	g := &c.config
	if g.Server.Kind != "" && g.Server.Kind != deploy.KindServer || g.Server.BaseURL != "" || g.Server.Dir != "" {
		return nil
	}
	dir := c.data
	if dir == "" {
		dir = filepath.Join(filepath.Dir(c.path), defaultDataName)
	}
	found, err := api.ReadAccess(filepath.Join(dir, api.AccessFile))
	if errors.Is(err, fs.ErrNotExist) && !cmd.Flags().Changed("data") {
		return nil
	}
	if err != nil {
		return configFault(filepath.Join(dir, api.AccessFile), err, "a server writes it anew when it starts")
	}
	set := func(to *string, from string) {
		if *to == "" {
			*to = from
		}
	}
	g.Server.Kind, g.Server.BaseURL = deploy.KindServer, found.Server
	set(&g.Server.Password, found.Token)
	if g.MQTT.Broker == "" {
		m := found.MQTT
		g.MQTT.Broker, g.MQTT.Port, g.MQTT.TLS = m.Host, m.Port, m.TLS
		set(&g.MQTT.Username, m.Username)
		set(&g.MQTT.Password, m.Password)
		if m.Prefix != "" {
			g.MQTT.CommandTopic, g.MQTT.StatusTopic = m.Prefix+"/command", m.Prefix+"/status"
		}
	}
	if g.Server.CAFile == "" && found.CAFile != "" {
		g.Server.CAFile = found.CAFile
	}
	return nil
}

// missing lists what the settings cannot do without: the flag that gives it, the question that asks for it, and where it
// goes.
func (c *configurer) missing() (list []need) {
	g := &c.config
	add := func(flag, question, proposed string, to *string) {
		if *to == "" {
			list = append(list, need{flag, question, proposed, to})
		}
	}
	if g.Server.Kind == "" {
		return []need{{"kind", "where do releases go: bmsota (a server of bmsota), sftp (a folder of another machine), dir (a folder of this one)", "bmsota", (*string)(&g.Server.Kind)}}
	}
	switch g.Server.Kind {
	case deploy.KindServer:
		add("server", "address of the server, https://host:port", "", &g.Server.BaseURL)
	case deploy.KindSFTP:
		if g.Server.BaseURL == "" {
			add("ssh-host", "the machine to copy to", "", &g.Server.SFTP.Host)
		}
		add("username", "login on that machine", "", &g.Server.Username)
		add("ssh-path", "folder there, which its web server shows", "/var/www/firmware", &g.Server.SFTP.Path)
	case deploy.KindDir:
		add("dir", "the folder, which a web server shows", "", &g.Server.Dir)
	}
	add("broker", "address of the MQTT broker, mqtt://host:port", "", &g.MQTT.Broker)
	return list
}

// need is one thing that is missing.
type need struct {
	flag, question, proposed string
	to                       *string
}

// ask completes the settings from a person, and without one says which flags are missing.
func (c *configurer) ask(cmd *cobra.Command) error {
	person := terminal(cmd)
	if person == nil {
		var flags []string
		for _, n := range c.missing() {
			flags = append(flags, "--"+n.flag)
		}
		if len(flags) > 0 {
			return &fault{code: exitUsage, err: fmt.Errorf("%s must be given, because standard input is no terminal to ask at", strings.Join(flags, ", ")),
				hint: "or run it beside the data folder of a server, or give --data"}
		}
		return nil
	}
	lines := bufio.NewReader(person)
	for {
		list := c.missing()
		if len(list) == 0 {
			if err := c.askKey(cmd, lines); err != nil {
				return err
			}
			return c.askSecrets(cmd)
		}
		n := list[0]
		text, err := question(cmd, lines, n.question, n.proposed)
		if err != nil {
			return err
		}
		if n.flag == "broker" && text != "" {
			if !strings.Contains(text, "://") {
				text = "mqtt://" + text
			}
			if err := setBroker(&c.config, text); err != nil {
				return err
			}
			continue
		}
		*n.to = text
		if err := c.config.Check(); n.flag == "kind" && err != nil && c.config.Server.Kind != deploy.KindDir {
			return usageFault(cmd, "%w", err)
		}
	}
}

// askKey asks for the release key: boards that hold its public half refuse what is published without it.
func (c *configurer) askKey(cmd *cobra.Command, lines *bufio.Reader) error {
	if c.config.Signing.KeyFile != "" {
		return nil
	}
	const none = "none"
	proposed := filepath.Join(filepath.Dir(c.path), "release.pem")
	if _, err := os.Stat(proposed); err != nil {
		proposed = none
	}
	text, err := question(cmd, lines, "file of the release key that signs, or none", proposed)
	if err == nil && text != none {
		c.config.Signing.KeyFile = text
	}
	return err
}

func (c *configurer) askSecrets(cmd *cobra.Command) error {
	g := &c.config
	secret := asker(cmd.Context(), cmd)
	var err error
	if g.Server.Kind == deploy.KindServer && g.Server.Password == "" {
		if g.Server.Password, err = secret("the operator's token of the server: "); err != nil {
			return err
		}
	}
	if g.MQTT.Username != "" && g.MQTT.Password == "" {
		if g.MQTT.Password, err = secret("password of the broker's login: "); err != nil {
			return err
		}
	}
	return nil
}

// ignoreInGit adds the file to the .gitignore beside it, when that folder belongs to a git repository; added says whether
// it had to.
func ignoreInGit(path string) (added bool, err error) {
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return false, err
	}
	if !inRepository(dir) {
		return false, nil
	}
	name, file := filepath.Base(path), filepath.Join(dir, ".gitignore")
	text, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line == name || line == "/"+name {
			return false, nil
		}
	}
	if len(text) > 0 && !bytes.HasSuffix(text, []byte("\n")) {
		text = append(text, '\n')
	}
	return true, replaceFile(file, append(text, "/"+name+"\n"...))
}

func inRepository(dir string) bool {
	for {
		if _, err := os.Stat(filepath.Join(dir, ".git")); err == nil {
			return true
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return false
		}
		dir = parent
	}
}
