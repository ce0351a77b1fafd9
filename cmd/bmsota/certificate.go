package main

import (
	"errors"
	"path/filepath"

	"bmsota/api"
	"bmsota/durable"

	"github.com/spf13/cobra"
)

// certifies says whether devices of a server can log in by certificate: where its own broker asks for one.
func certifies(info api.ServerInfo) bool { return info.MQTT.TLS && !info.MQTT.External }

func noCertificates() error {
	return refused(errors.New("devices of this server have no certificates: its own broker is not open for TLS"), "see mqtt.tls_listen in docs/configuration.md, or leave --certificate out")
}

// placeForCertificate tries what a certificate needs before the device's login is taken away for it.
func placeForCertificate(cmd *cobra.Command, client *api.Client, certificate bool, folder string) error {
	if !certificate {
		return nil
	}
	info, err := client.Server(cmd.Context())
	if err != nil {
		return serverFault(err)
	}
	if !certifies(info) {
		return noCertificates()
	}
	if folder == "" {
		return nil
	}
	if err := durable.MkdirAll(folder, 0o700); err != nil {
		return unwritable(folder, err)
	}
	return nil
}

// writeCertificate writes the two files of a device's certificate, the key first.
func writeCertificate(folder string, login api.Login) error {
	for _, f := range []struct{ name, text string }{{"client.key", login.KeyPEM}, {"client.pem", login.CertificatePEM}} {
		path := filepath.Join(folder, f.name)
		if err := durable.WriteFile(path, []byte(f.text), 0o600); err != nil {
			return unwritable(path, err)
		}
	}
	return nil
}
