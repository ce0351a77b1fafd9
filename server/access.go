package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"strings"

	"bmsota/api"
	"bmsota/durable"
	"bmsota/server/internal/fleet"
)

// operatorName is the account made at first start. Of several servers each has its own, because each has its own file.
const operatorName = "operator"

func (s *Server) operatorName() string {
	if s.cfg.Replicas.Name == "" {
		return operatorName
	}
	return operatorName + "-" + s.cfg.Replicas.Name
}

// openAccess makes operator.json say how tools on this machine reach the server. Its token stays the same from start to
// start; where the file is gone or its token no longer works, the operator gets a new one.
func (s *Server) openAccess(ctx context.Context) error {
	old, err := api.ReadAccess(s.AccessFile())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		s.firstStart = true
	case err != nil:
		s.log.Warn("operator.json cannot be read and is made again", "err", err)
	default:
		_, err := s.fleet.OperatorByToken(ctx, old.Token)
		if err != nil && !errors.Is(err, fleet.ErrDenied) {
			return fmt.Errorf("check operator token: %w", err)
		}
		if err == nil {
			s.access.Token = old.Token
		}
	}
	if s.access.Token == "" {
		// Row before file: a crash between the two leaves a token that does not work, and the next start makes another.
		if s.access.Token, err = s.fleet.NewOperator(ctx, s.operatorName()); err != nil {
			return fmt.Errorf("make operator account: %w", err)
		}
		s.log.Info("operator token was made", "path", s.AccessFile())
	}
	s.fillAccess()
	if s.access == old {
		return nil
	}
	b, err := json.MarshalIndent(s.access, "", "  ")
	if err != nil {
		return fmt.Errorf("encode operator.json: %w", err)
	}
	return durable.WriteFile(s.AccessFile(), append(b, '\n'), private)
}

// fillAccess says how this machine reaches its own server.
func (s *Server) fillAccess() {
	a := &s.access
	if s.https != nil {
		a.Server = "https://" + hostPort(s.trustedHost(nearHost(s.https)), portOf(s.https), 443)
		a.CAFile = absolute(s.certs.caFile())
	} else {
		a.Server = "http://" + hostPort(nearHost(s.plain), portOf(s.plain), 80)
	}
	a.MQTT = api.AccessMQTT{Username: s.operatorName(), Password: a.Token, Prefix: s.cfg.MQTT.Prefix}
	switch {
	case s.cfg.MQTT.External.URL != "":
		// The broker knows the server's login, not ours.
		ext := s.cfg.MQTT.External
		a.MQTT.Host, a.MQTT.Port, a.MQTT.TLS = s.mqtt.Host, s.mqtt.Port, s.mqtt.TLS
		a.MQTT.Username, a.MQTT.Password, a.MQTT.CAFile = ext.Username, ext.Password, absolute(ext.CAFile)
	case s.mqttPlain != nil:
		a.MQTT.Host, a.MQTT.Port = nearHost(s.mqttPlain), portOf(s.mqttPlain)
	default:
		a.MQTT.Host, a.MQTT.Port, a.MQTT.TLS = s.trustedHost(nearHost(s.mqttTLS)), portOf(s.mqttTLS), true
		a.MQTT.CAFile = absolute(s.certs.caFile())
	}
}

// absolute makes a path good for a tool that runs in another folder; empty stays empty.
func absolute(path string) string {
	if path == "" {
		return ""
	}
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// trustedHost is near where the certificate covers it, else a name that it does cover.
func (s *Server) trustedHost(near string) string {
	leaf := s.certs.current.Load().Leaf
	if leaf.VerifyHostname(near) == nil {
		return near
	}
	return s.host
}

// Placeholders in the files that Banner shows.
const (
	deviceHere = "DEVICE-ID"
	tokenHere  = "TOKEN"
)

// Banner is what a person needs to go on: the addresses, where the operator's token is, and at the first start the two
// files of a device. It holds no secret.
func (s *Server) Banner() string {
	var b strings.Builder
	scheme := "mqtt"
	if s.mqtt.TLS {
		scheme = "mqtts"
	}
	fmt.Fprintf(&b, "bmsota %s\n\n", s.cfg.Version)
	fmt.Fprintf(&b, "  web        %s/\n", s.URL())
	fmt.Fprintf(&b, "  firmware   %s/firmware/\n", s.URL())
	fmt.Fprintf(&b, "  mqtt       %s://%s  (topics below %s)\n\n", scheme, net.JoinHostPort(s.mqtt.Host, fmt.Sprint(s.mqtt.Port)), s.mqtt.Prefix)
	fmt.Fprintf(&b, "The bmsota tool on this machine finds its token in\n  %s\n\n", s.AccessFile())
	fmt.Fprintf(&b, "To sign in to the web side, take the name %s and that token, or make an account:\n  bmsota accounts add NAME --role admin\n\n", s.operatorName())
	fmt.Fprintf(&b, "To let a device in, give it a token and put the two files into its storage partition:\n  bmsota devices enroll %s --files FOLDER\n", deviceHere)
	if !s.firstStart {
		return b.String()
	}
	b.WriteString("\nThe files look like this.\n")
	ota, mqtt, err := s.DeviceFiles(deviceHere, tokenHere)
	if err != nil {
		fmt.Fprintf(&b, "They cannot be made from this configuration: %v\n", err)
		return b.String()
	}
	fmt.Fprintf(&b, "\nota_config.txt:\n%s\nmqtt_config.txt:\n%s", ota, mqtt)
	return b.String()
}

// DeviceFiles are ota_config.txt and mqtt_config.txt for one device. A key that signs releases is not in them, because
// the server does not hold it: add it as trusted_key_pem.
func (s *Server) DeviceFiles(id, token string) (ota, mqtt []byte, err error) {
	oc, mc, err := api.ServerInfo{URL: s.URL(), CAPEM: string(s.certs.caPEM), MQTT: s.mqtt}.DeviceFiles(id, api.Login{Token: token}, "")
	if err != nil {
		return nil, nil, err
	}
	if ota, err = oc.Append(nil); err != nil {
		return nil, nil, err
	}
	if mqtt, err = mc.Append(nil); err != nil {
		return nil, nil, err
	}
	return ota, mqtt, nil
}
