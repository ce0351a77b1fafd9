// Package keyfile reads and writes the private keys of operators: PEM files, in the clear or under a passphrase, and keys
// that stay in a token or a vault and sign by a command.
//
// Under a passphrase a key is PKCS #8 "ENCRYPTED PRIVATE KEY" with PBES2 (RFC 8018): PBKDF2 with HMAC-SHA256 and AES-256-CBC,
// which `openssl pkey` and `openssl pkcs8 -topk8` read and write. Other ciphers and older schemes are refused by name, and
// so is a count of iterations that would take minutes. Nothing here asks anybody or keeps a passphrase.
package keyfile

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/pbkdf2"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
)

const (
	// Encrypted is the type of a PEM block under a passphrase.
	Encrypted = "ENCRYPTED PRIVATE KEY"

	iterations    = 600_000 // OWASP's figure for PBKDF2 with HMAC-SHA256
	maxIterations = 5_000_000
	keyBytes      = 32
	saltBytes     = 16
)

// ErrPassphrase says that a key could not be opened: the passphrase is wrong, or the file is damaged.
var ErrPassphrase = errors.New("the passphrase is wrong, or the key file is damaged")

var (
	oidPBES2      = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 13}
	oidPBKDF2     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 12}
	oidHMACSHA256 = asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 9}
	oidAES256CBC  = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 42}
)

// EncryptedPrivateKeyInfo of RFC 5958 and the parameters of RFC 8018 appendix A.
type (
	encryptedKey struct {
		Algorithm pkix.AlgorithmIdentifier
		Data      []byte
	}
	pbes2Params struct {
		KDF, Cipher pkix.AlgorithmIdentifier
	}
	pbkdf2Params struct {
		Salt       []byte
		Iterations int
		KeyLength  int                      `asn1:"optional"`
		PRF        pkix.AlgorithmIdentifier `asn1:"optional"`
	}
)

// Encrypt puts a private key that x509.MarshalPKCS8PrivateKey takes under a passphrase, as PEM. What it returns has been
// opened again with the same passphrase.
func Encrypt(key any, passphrase []byte, random io.Reader) ([]byte, error) {
	if len(passphrase) == 0 {
		return nil, errors.New("encrypt key: the passphrase is empty")
	}
	plain, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encrypt key: %w", err)
	}
	salt, iv := make([]byte, saltBytes), make([]byte, aes.BlockSize)
	for _, b := range [][]byte{salt, iv} {
		if _, err := io.ReadFull(random, b); err != nil {
			return nil, fmt.Errorf("encrypt key: %w", err)
		}
	}
	block, err := derive(passphrase, salt, iterations)
	if err != nil {
		return nil, err
	}
	pad := aes.BlockSize - len(plain)%aes.BlockSize
	data := append(bytes.Clone(plain), bytes.Repeat([]byte{byte(pad)}, pad)...)
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(data, data)
	der, err := encode(salt, iv, data)
	if err != nil {
		return nil, fmt.Errorf("encrypt key: %w", err)
	}
	if back, err := Decrypt(der, passphrase); err != nil || !bytes.Equal(back, plain) {
		return nil, fmt.Errorf("encrypt key: what was written does not open (%w)", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: Encrypted, Bytes: der}), nil
}

func encode(salt, iv, data []byte) ([]byte, error) {
	kdf, err := asn1.Marshal(pbkdf2Params{Salt: salt, Iterations: iterations, PRF: pkix.AlgorithmIdentifier{Algorithm: oidHMACSHA256, Parameters: asn1.NullRawValue}})
	if err != nil {
		return nil, err
	}
	ivText, err := asn1.Marshal(iv)
	if err != nil {
		return nil, err
	}
	params, err := asn1.Marshal(pbes2Params{
		KDF:    pkix.AlgorithmIdentifier{Algorithm: oidPBKDF2, Parameters: asn1.RawValue{FullBytes: kdf}},
		Cipher: pkix.AlgorithmIdentifier{Algorithm: oidAES256CBC, Parameters: asn1.RawValue{FullBytes: ivText}},
	})
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(encryptedKey{pkix.AlgorithmIdentifier{Algorithm: oidPBES2, Parameters: asn1.RawValue{FullBytes: params}}, data})
}

// Decrypt opens the content of a block of type Encrypted and returns PKCS #8. The error wraps ErrPassphrase where the
// passphrase does not fit.
func Decrypt(der, passphrase []byte) ([]byte, error) {
	var key encryptedKey
	var params pbes2Params
	var kdf pbkdf2Params
	var iv []byte
	if err := whole(der, &key); err != nil {
		return nil, err
	}
	if !key.Algorithm.Algorithm.Equal(oidPBES2) {
		return nil, fmt.Errorf("encrypted key: scheme %s is not PBES2: convert it with 'openssl pkcs8 -topk8'", key.Algorithm.Algorithm)
	}
	if err := whole(key.Algorithm.Parameters.FullBytes, &params); err != nil {
		return nil, err
	}
	if !params.KDF.Algorithm.Equal(oidPBKDF2) || !params.Cipher.Algorithm.Equal(oidAES256CBC) {
		return nil, errors.New("encrypted key: not PBKDF2 and AES-256-CBC: convert it with 'openssl pkcs8 -topk8 -v2 aes-256-cbc'")
	}
	if err := whole(params.KDF.Parameters.FullBytes, &kdf); err != nil {
		return nil, err
	}
	if err := whole(params.Cipher.Parameters.FullBytes, &iv); err != nil {
		return nil, err
	}
	switch {
	case !kdf.PRF.Algorithm.Equal(oidHMACSHA256):
		return nil, errors.New("encrypted key: not HMAC-SHA256: convert it with 'openssl pkcs8 -topk8 -v2 aes-256-cbc -v2prf hmacWithSHA256'")
	case kdf.Iterations < 1 || kdf.Iterations > maxIterations:
		return nil, fmt.Errorf("encrypted key: %d iterations are not within 1 to %d", kdf.Iterations, maxIterations)
	case kdf.KeyLength != 0 && kdf.KeyLength != keyBytes, len(iv) != aes.BlockSize, len(key.Data) == 0, len(key.Data)%aes.BlockSize != 0:
		return nil, errors.New("encrypted key: a length is not that of AES-256-CBC")
	}
	block, err := derive(passphrase, kdf.Salt, kdf.Iterations)
	if err != nil {
		return nil, err
	}
	plain := make([]byte, len(key.Data))
	cipher.NewCBCDecrypter(block, iv).CryptBlocks(plain, key.Data)
	pad := int(plain[len(plain)-1])
	if pad < 1 || pad > aes.BlockSize || !bytes.Equal(plain[len(plain)-pad:], bytes.Repeat([]byte{byte(pad)}, pad)) {
		return nil, ErrPassphrase
	}
	plain = plain[:len(plain)-pad]
	// One wrong passphrase in 256 leaves padding that looks right.
	if _, err := x509.ParsePKCS8PrivateKey(plain); err != nil {
		return nil, ErrPassphrase
	}
	return plain, nil
}

func derive(passphrase, salt []byte, n int) (cipher.Block, error) {
	key, err := pbkdf2.Key(sha256.New, string(passphrase), salt, n, keyBytes)
	if err != nil {
		return nil, fmt.Errorf("derive key: %w", err)
	}
	return aes.NewCipher(key)
}

// whole decodes DER that has nothing behind it.
func whole(der []byte, v any) error {
	rest, err := asn1.Unmarshal(der, v)
	if err == nil && len(rest) > 0 {
		err = errors.New("bytes behind it")
	}
	if err != nil {
		return fmt.Errorf("encrypted key: %w", err)
	}
	return nil
}
