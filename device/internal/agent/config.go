package agent

import (
	"crypto/ecdsa"
	"crypto/tls"
	"errors"
	"fmt"
	"io"

	"bmsota/esp/appimage"
	"bmsota/esp/parttable"
	"bmsota/esp/spiffs"
	"bmsota/manifest"
	"bmsota/protocol"
)

// maxStorage is the largest storage partition that is read, in bytes.
const maxStorage = 16 << 20

// settings is what the two files on the storage partition say. What cannot be read is left out, and problem tells; the
// rest counts, so that a board with a broken file can still say so.
type settings struct {
	ota     protocol.OTAConfig
	mqtt    protocol.MQTTConfig
	haveOTA bool
	haveMQ  bool
	// identity is the board's own certificate; nil where it logs in by password.
	identity *tls.Certificate
	trust    manifest.Trust     // no keys in it: the board holds none
	server   []*ecdsa.PublicKey // who answers for the server; none: answers are taken as they come
	problem  error
}

// readSettings reads both files. The error is of the flash.
func readSettings(flash io.ReaderAt, table parttable.Table) (settings, error) {
	var s settings
	files, err := mount(flash, table)
	if err != nil {
		if gone(err) {
			return s, err
		}
		s.problem = err
		return s, nil
	}
	var problems []error
	if text, err := files.ReadFile(protocol.OTAConfigFile); err != nil {
		problems = append(problems, fmt.Errorf("ota_config.txt: %w", err))
	} else if cfg, err := protocol.ParseOTAConfig(text); err != nil {
		problems = append(problems, err)
	} else if trust, server, err := trusted(cfg); err != nil {
		// A board that was given a key and cannot read it must not go on as one that was given none: that one would
		// install what nobody signed.
		problems = append(problems, fmt.Errorf("ota_config.txt: %w", err))
	} else {
		s.ota, s.haveOTA, s.trust, s.server = cfg, true, trust, server
	}
	if text, err := files.ReadFile(protocol.MQTTConfigFile); err != nil {
		problems = append(problems, fmt.Errorf("mqtt_config.txt: %w", err))
	} else if cfg, err := protocol.ParseMQTTConfig(text); err != nil {
		problems = append(problems, err)
	} else if s.identity, err = identity(cfg); err != nil {
		problems = append(problems, fmt.Errorf("mqtt_config.txt: client_cert_pem: %w", err))
	} else {
		s.mqtt, s.haveMQ = cfg, true
	}
	s.problem = errors.Join(problems...)
	return s, nil
}

func identity(cfg protocol.MQTTConfig) (*tls.Certificate, error) {
	if cfg.ClientCertPEM == "" {
		return nil, nil
	}
	cert, err := tls.X509KeyPair([]byte(cfg.ClientCertPEM), []byte(cfg.ClientKeyPEM))
	if err != nil {
		return nil, err
	}
	return &cert, nil
}

func trusted(cfg protocol.OTAConfig) (t manifest.Trust, server []*ecdsa.PublicKey, err error) {
	t.Threshold = cfg.TrustedThreshold
	if cfg.TrustedKeyPEM != "" {
		if t.Keys, err = manifest.ParsePublicKeys([]byte(cfg.TrustedKeyPEM)); err != nil {
			return t, nil, err
		}
	}
	if cfg.ServerKeyPEM != "" {
		if server, err = manifest.ParsePublicKeys([]byte(cfg.ServerKeyPEM)); err != nil {
			return t, nil, fmt.Errorf("server_key_pem: %w", err)
		}
	}
	return t, server, t.Check()
}

// believeImage puts the set that the running image carries in the place of the one in the settings; instead, where there
// are any, are the keys of every such set.
func (s *settings) believeImage(r io.ReaderAt, img *appimage.Image, instead []*ecdsa.PublicKey) {
	t, err := manifest.Builtin(r, img)
	if err != nil {
		// As with a key in the settings that cannot be read.
		s.problem = errors.Join(s.problem, err)
		s.haveOTA = false
		return
	}
	if t.Sequence > 0 {
		if instead != nil {
			t.Keys, t.Threshold = instead, 1
		}
		s.trust = t
	}
}

// mount reads the first SPIFFS partition, which firmware mounts as /spiffs.
func mount(flash io.ReaderAt, table parttable.Table) (*spiffs.FS, error) {
	for _, p := range table {
		if p.Type != parttable.TypeData || p.Subtype != parttable.SubtypeSPIFFS {
			continue
		}
		if p.Size > maxStorage {
			return nil, fmt.Errorf("storage partition %s has %d bytes, at most %d are read", p.Name, p.Size, maxStorage)
		}
		image := make([]byte, p.Size)
		if _, err := flash.ReadAt(image, int64(p.Offset)); err != nil {
			return nil, fmt.Errorf("read storage partition: %w", err)
		}
		return spiffs.Read(image)
	}
	return nil, errors.New("no storage partition in the table")
}
