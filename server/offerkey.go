package server

import (
	"crypto/ecdsa"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"bmsota/durable"
	"bmsota/manifest"
)

// offerKeyName is the file of the online key, below <data_dir>/tls.
const offerKeyName = "offer.key"

// offerKey signs the server's answers to devices. It is no release key: what it signs cannot be installed without a
// manifest.
type offerKey struct {
	key    *ecdsa.PrivateKey
	public string // PEM: its own public key, and those that will follow it
}

// openOfferKey takes the key from its file. Where none is configured it is made at the first start, below folder.
//
// The file may hold further blocks PUBLIC KEY: keys of later, which devices are told of before their time.
func openOfferKey(configured, folder string, random io.Reader, log *slog.Logger) (*offerKey, error) {
	path := configured
	if path == "" {
		path = filepath.Join(folder, offerKeyName)
	}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && configured == "" {
		key, err := manifest.NewKey(random)
		if err != nil {
			return nil, err
		}
		if err := durable.MkdirAll(folder, 0o700); err != nil { // with a certificate of yours nothing else is in there
			return nil, fmt.Errorf("make offer key: %w", err)
		}
		if err := writeKey(path, key); err != nil {
			return nil, err
		}
		log.Info("key of the answers to devices was made", "path", path)
		return newOfferKey(key, "")
	}
	if err != nil {
		return nil, fmt.Errorf("read offer key: %w", err)
	}
	k, err := readOfferKey(text)
	if err != nil {
		return nil, fmt.Errorf("offer key %s: %w", path, err)
	}
	return k, nil
}

func readOfferKey(text []byte) (*offerKey, error) {
	var private, public []byte
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		one := pem.EncodeToMemory(block)
		switch {
		case block.Type == "PUBLIC KEY":
			public = append(public, one...)
		case private != nil:
			return nil, errors.New("more than one private key")
		default:
			private = one
		}
	}
	key, err := manifest.ParsePrivateKey(private)
	if err != nil {
		return nil, err
	}
	return newOfferKey(key, string(public))
}

func newOfferKey(key *ecdsa.PrivateKey, later string) (*offerKey, error) {
	own, err := manifest.EncodePublicKey(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	k := &offerKey{key: key, public: string(own) + later}
	// Devices are given this text, and a device that cannot read it does not update.
	_, err = manifest.ParsePublicKeys([]byte(k.public))
	return k, err
}
