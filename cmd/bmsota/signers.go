package main

import (
	"crypto"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"bmsota/deploy"
	"bmsota/esp/secureboot"
	"bmsota/keyfile"
	"bmsota/manifest"
)

// passphraseVar names the environment variable with the name of a file, because a passphrase on the command line or in the
// environment itself can be read by others.
const passphraseVar = "BMSOTA_KEY_PASSPHRASE_FILE"

const signerUsage = "command that signs in the place of a private key (see docs/keys.md): it gets the digest on standard input and writes the signature; --key is then the public key"

var passphraseInput = inputKind{what: "a passphrase", limit: 4 << 10}

// passphrase reads what opens a key file: from the file that the environment names, else from who sits at the terminal.
func passphrase(cmd *cobra.Command, prompt string) ([]byte, error) {
	if path := os.Getenv(passphraseVar); path != "" {
		b, err := passphraseInput.read(cmd, path)
		return []byte(strings.TrimRight(string(b), "\r\n")), err
	}
	ask := asker(cmd.Context(), cmd)
	if ask == nil {
		return nil, &fault{code: exitUsage, err: errors.New("the key is under a passphrase, and there is no terminal to ask for it"),
			hint: "name a file with it in " + passphraseVar}
	}
	text, err := ask(prompt)
	if err != nil {
		return nil, failure("", "read the passphrase: %w", err)
	}
	return []byte(text), nil
}

// newPassphrase is passphrase for a key that is made, typed twice.
func newPassphrase(cmd *cobra.Command) ([]byte, error) {
	first, err := passphrase(cmd, "Passphrase for the new key: ")
	if err != nil || os.Getenv(passphraseVar) != "" {
		return first, err
	}
	second, err := passphrase(cmd, "Again: ")
	if err == nil && string(first) != string(second) {
		err = usagef("the two passphrases differ")
	}
	return first, err
}

// openKey reads a file of keys; one under a passphrase is opened, and stands in what is returned as PKCS #8 in the clear.
func openKey(cmd *cobra.Command, path string) ([]byte, error) {
	text, err := keyKind.read(cmd, path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != keyfile.Encrypted {
		return text, nil
	}
	secret, err := passphrase(cmd, "Passphrase for "+shown(path)+": ")
	if err != nil {
		return nil, err
	}
	der, err := keyfile.Decrypt(block.Bytes, secret)
	if err != nil {
		return nil, badContent(path, err, "")
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// commandSigner signs by a command with the key whose public half text holds; nil where it holds a private one.
func commandSigner(cmd *cobra.Command, text []byte, line string) (crypto.Signer, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, nil
	}
	key, err := secureboot.ParsePublicKeyPEM(text)
	if err != nil {
		return nil, err
	}
	if line == "" {
		return nil, errors.New("the file holds a public key, which is not a private key: it signs by --signer COMMAND only")
	}
	report, err := describeKey(key, false)
	if err != nil {
		return nil, err
	}
	return &keyfile.Command{Context: cmd.Context(), Line: line, Key: key, Fingerprint: report.Fingerprint, Stderr: cmd.ErrOrStderr()}, nil
}

// signingKeys are the keys of the flags --key and --signer: the command signs for each that is a public key.
func signingKeys(cmd *cobra.Command, paths []string, line string) ([]deploy.SigningKey, error) {
	if line != "" && len(paths) == 0 {
		return nil, usageFault(cmd, "--signer signs in the place of a private key: give its public key with --key")
	}
	if len(paths) > 1+manifest.MaxCosignatures {
		return nil, usageFault(cmd, "%d keys sign, the most is %d", len(paths), 1+manifest.MaxCosignatures)
	}
	var keys []deploy.SigningKey
	for _, path := range paths {
		keys = append(keys, deploy.SigningKey{KeyFile: path, Signer: line})
	}
	return keys, nil
}

// readSigners reads the keys that sign a manifest; none means an unsigned release.
func readSigners(cmd *cobra.Command, keys []deploy.SigningKey) ([]crypto.Signer, error) {
	var signers []crypto.Signer
	for _, key := range keys {
		path := key.KeyFile
		text, err := openKey(cmd, path)
		if err != nil {
			return nil, err
		}
		signer, err := commandSigner(cmd, text, key.Signer)
		if err == nil && signer == nil {
			signer, err = manifest.ParsePrivateKey(text)
		}
		if err != nil {
			return nil, badContent(path, err, "make one with 'bmsota keys new'")
		}
		signers = append(signers, signer)
	}
	return signers, nil
}

// readImageSigner reads the key that signs an image.
func readImageSigner(cmd *cobra.Command, path, line string) (crypto.Signer, error) {
	text, err := openKey(cmd, path)
	if err != nil {
		return nil, err
	}
	signer, err := commandSigner(cmd, text, line)
	if err == nil && signer == nil {
		signer, err = secureboot.ParsePrivateKeyPEM(text)
	}
	if err == nil {
		_, err = secureboot.KeyDigest(signer.Public())
	}
	if err != nil {
		return nil, badContent(path, err, keyHint)
	}
	return signer, nil
}

// fingerprint is how people tell public keys apart.
func fingerprint(key crypto.PublicKey) (string, error) {
	report, err := describeKey(key, false)
	return report.Fingerprint, err
}

// pinnedDigest is what eFuse holds of an image key: the digest itself, or that of the key in a file.
func pinnedDigest(cmd *cobra.Command, arg string) (string, error) {
	if b, err := hex.DecodeString(arg); err == nil && len(b) == 32 {
		return hex.EncodeToString(b), nil
	}
	key, err := readImageKey(cmd, arg)
	if err != nil {
		return "", err
	}
	digest, err := secureboot.KeyDigest(key)
	return hex.EncodeToString(digest[:]), err
}
