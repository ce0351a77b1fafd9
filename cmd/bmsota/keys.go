package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"bmsota/esp/secureboot"
	"bmsota/keyfile"
	"bmsota/manifest"
)

var keyKind = inputKind{what: "a key in a PEM file", limit: 64 << 10, hint: "give a PEM file"}

const (
	keyHint = "give a PEM file with an RSA-3072 or ECDSA P-256 key"
	maxKeys = 64 // in one file
)

func newKeysCmd() *cobra.Command {
	return group("keys", "make, show and rotate signing keys",
		newKeysNewCmd(), newKeysShowCmd(), newKeysListCmd(), newKeysServerCmd(), newKeysRotateCmd(), newKeysPinCmd(false), newKeysPinCmd(true))
}

// readImageKey reads a key that signs images; of a private key it takes the public half.
func readImageKey(cmd *cobra.Command, path string) (crypto.PublicKey, error) {
	text, err := openKey(cmd, path)
	if err != nil {
		return nil, err
	}
	key, err := secureboot.ParsePublicKeyPEM(text)
	if err == nil {
		_, err = secureboot.KeyDigest(key)
	}
	if err != nil {
		return nil, badContent(path, err, keyHint)
	}
	return key, nil
}

// keyReport is one element of `keys show --json`.
type keyReport struct {
	Type        string `json:"type"` // as signatures are called: rsa3072, ecdsa-p256, ecdsa-p384
	Private     bool   `json:"private"`
	Fingerprint string `json:"fingerprint"` // SHA-256 of the public key's DER (SubjectPublicKeyInfo)
	KeyDigest   string `json:"key_digest"`  // SHA-256 as Secure Boot v2 keeps it in eFuse
}

func describeKey(key crypto.PublicKey, private bool) (keyReport, error) {
	digest, err := secureboot.KeyDigest(key)
	if err != nil {
		return keyReport{}, err
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return keyReport{}, fmt.Errorf("encode public key: %w", err)
	}
	scheme := secureboot.RSA3072
	if ec, ok := key.(*ecdsa.PublicKey); ok {
		scheme = secureboot.ECDSAP256
		if ec.Params().BitSize == 384 {
			scheme = secureboot.ECDSAP384
		}
	}
	sum := sha256.Sum256(der)
	return keyReport{string(scheme), private, hex.EncodeToString(sum[:]), hex.EncodeToString(digest[:])}, nil
}

func newKeysShowCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show FILE",
		Short: "say what the keys in a file are",
		Long: `Say of each key in a PEM file what kind it is, whether the private half is there, its fingerprint and the digest that
Secure Boot v2 keeps in eFuse. The private half itself is never printed. - reads standard input.`,
		Example: `  bmsota keys show release-key.pub.pem
  bmsota keys show --json secure-boot.pem`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := openKey(cmd, args[0])
			if err != nil {
				return err
			}
			keys, err := describeKeys(text)
			if err != nil {
				return badContent(args[0], err, keyHint)
			}
			if asJSON {
				return printJSON(cmd, keys)
			}
			var buf bytes.Buffer
			w := tabwriter.NewWriter(&buf, 0, 8, 2, ' ', 0)
			for i, k := range keys {
				if i > 0 {
					fmt.Fprintln(w)
				}
				half := "public"
				if k.Private {
					half = "private"
				}
				fmt.Fprintf(w, "type\t%s, %s\nfingerprint\t%s\nkey digest\t%s\n", k.Type, half, k.Fingerprint, k.KeyDigest)
			}
			w.Flush()
			return printf(cmd, "%s", buf.String())
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func describeKeys(text []byte) ([]keyReport, error) {
	var keys []keyReport
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		text = rest
		if block.Type == "EC PARAMETERS" {
			continue
		}
		if len(keys) == maxKeys {
			return nil, fmt.Errorf("more than %d keys", maxKeys)
		}
		key, err := secureboot.ParsePublicKeyPEM(pem.EncodeToMemory(block))
		if err != nil {
			return nil, err
		}
		report, err := describeKey(key, strings.HasSuffix(block.Type, "PRIVATE KEY"))
		if err != nil {
			return nil, err
		}
		keys = append(keys, report)
	}
	if len(keys) == 0 {
		return nil, errors.New("no key in PEM form")
	}
	return keys, nil
}

// keyPair is what `keys new --json` prints.
type keyPair struct {
	PrivateFile string `json:"private_file"`
	PublicFile  string `json:"public_file"`
	keyReport
}

func newKeysNewCmd() *cobra.Command {
	var kind, out string
	var secret, asJSON bool
	cmd := &cobra.Command{
		Use:   "new",
		Short: "make a signing key",
		Long: `Make a key pair: the private key in FILE, readable by you alone, and the public one beside it (release-key.pem gets
release-key.pub.pem). Files that are there already are never overwritten.

  manifest     signs releases (ECDSA P-256); devices get the public key as trusted_key_pem
  ecdsa-p256   signs images for Secure Boot v2 on chips that verify ECDSA
  rsa3072      signs images for Secure Boot v2 on chips that verify RSA

Keep the private key on your own machine and a copy in a safe place: the server does not need it, and devices that
trust it take nothing that is not signed by it.`,
		Example: `  bmsota keys new
  bmsota keys new --type rsa3072 -o secure-boot.pem`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			newKey, ok := keyMakers[kind]
			if !ok {
				return usageFault(cmd, "--type %q is unknown, known are manifest, ecdsa-p256 and rsa3072", kind)
			}
			if out == "" || out == standardStream {
				return usageFault(cmd, "-o must name a file, because private keys are kept in files that only you can read")
			}
			pair := keyPair{PrivateFile: out, PublicFile: strings.TrimSuffix(out, ".pem") + ".pub.pem"}
			for _, path := range []string{pair.PrivateFile, pair.PublicFile} {
				// Asked before the key is made; createFile decides.
				if _, err := os.Lstat(path); err == nil {
					return alreadyThere(path)
				}
			}
			var phrase []byte
			if secret {
				var err error
				if phrase, err = newPassphrase(cmd); err != nil {
					return err
				}
				if len(phrase) == 0 {
					return usagef("the passphrase is empty")
				}
			}
			key, err := newKey()
			if err != nil {
				return failure("", "%w", err)
			}
			private, err := privatePEM(key, phrase)
			if err != nil {
				return failure("", "%w", err)
			}
			if pair.keyReport, err = describeKey(key.Public(), true); err != nil {
				return failure("", "%w", err)
			}
			if err := pair.write(private, key.Public()); err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd, pair)
			}
			return printf(cmd, "wrote %s (private, keep it safe) and %s (public)\nfingerprint %s\n",
				shown(pair.PrivateFile), shown(pair.PublicFile), pair.Fingerprint)
		},
	}
	cmd.Flags().StringVar(&kind, "type", "manifest", "manifest, ecdsa-p256 or rsa3072")
	cmd.Flags().StringVarP(&out, "output", "o", "release-key.pem", "file for the private key")
	cmd.Flags().BoolVar(&secret, "passphrase", false, "put the private key under a passphrase, which is asked for, or read from the file that "+passphraseVar+" names")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what was written as JSON")
	return cmd
}

// keyMakers make a key of each type.
var keyMakers = map[string]func() (crypto.Signer, error){
	"manifest":   newECDSA,
	"ecdsa-p256": newECDSA,
	"rsa3072":    newRSA,
}

func newECDSA() (crypto.Signer, error) { return manifest.NewKey(rand.Reader) }

func newRSA() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 3072) }

// privatePEM is the file of a new private key, under a passphrase where there is one.
func privatePEM(key crypto.Signer, phrase []byte) ([]byte, error) {
	if len(phrase) > 0 {
		return keyfile.Encrypt(key, phrase, rand.Reader)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// write makes both files or none.
func (p keyPair) write(private []byte, public crypto.PublicKey) error {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return failure("", "encode public key: %w", err)
	}
	if err := createFile(p.PrivateFile, private, 0o600); err != nil {
		return err
	}
	if err := createFile(p.PublicFile, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o644); err != nil {
		// Nobody has used the private key yet.
		if rm := os.Remove(p.PrivateFile); rm != nil && !errors.Is(rm, fs.ErrNotExist) {
			return errors.Join(err, rm)
		}
		return err
	}
	return nil
}
