package main

import (
	"bytes"
	"crypto"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"bmsota/esp/appimage"
	"bmsota/esp/secureboot"
)

type signatureReport struct {
	Scheme    string `json:"scheme"`
	KeyDigest string `json:"key_digest"` // as eFuse holds it
	Verifies  bool   `json:"verifies"`   // with the key in the block; whether that key is trusted is another question
}

func (s signatureReport) text() string {
	if s.Verifies {
		return s.Scheme + ", key digest " + s.KeyDigest
	}
	return s.Scheme + ", key digest " + s.KeyDigest + " (does not verify)"
}

// signatureOffset is where a device looks for the signature sector of an image of length bytes.
func signatureOffset(length int64) int64 {
	return (length + secureboot.SectorSize - 1) / secureboot.SectorSize * secureboot.SectorSize
}

// addSignatures fills in the signatures and how long image and signatures are together; r.img is set.
func (r *imageReport) addSignatures(b []byte) {
	file := bytes.NewReader(b)
	sector := signatureOffset(r.ImageLength)
	r.FileLength = r.ImageLength
	end := sector + secureboot.SectorSize
	blocks, err := secureboot.Blocks(file, min(end, r.FileSize))
	if r.FileSize >= end && len(blocks) > 0 {
		r.FileLength = end
	} else {
		end = r.FileSize // where espsecure looks: the last sector of the file
		blocks, err = secureboot.Blocks(file, end)
	}
	if err != nil {
		r.Warnings = append(r.Warnings, "signatures: "+err.Error())
	}
	for _, block := range blocks {
		s := signatureReport{Scheme: string(block.Scheme), KeyDigest: hex.EncodeToString(block.KeyDigest[:])}
		s.Verifies = block.PublicKey != nil && secureboot.Verify(b[:end], block.PublicKey) == nil
		r.Signatures = append(r.Signatures, s)
	}
	switch extra := r.FileSize - r.FileLength; {
	case extra > 0 && len(blocks) > 0 && end != r.FileLength:
		r.Warnings = append(r.Warnings, fmt.Sprintf("the signature is at 0x%x, but a device looks for it at 0x%x and takes the image as unsigned", end-secureboot.SectorSize, sector))
	case extra > 0:
		r.Warnings = append(r.Warnings, fmt.Sprintf("%d bytes after the image are no part of it and no signature", extra))
	}
}

// signedBy checks that a device with this key would accept the file, and says in words whose signature it is.
func (r *imageReport) signedBy(b []byte, key crypto.PublicKey) (string, error) {
	digest, err := secureboot.KeyDigest(key)
	if err != nil {
		return "", err
	}
	if len(r.Signatures) == 0 {
		return "", errors.New("the image is not signed")
	}
	if r.FileLength != r.FileSize {
		return "", errors.New("the signature is not the end of the file and right behind the image, where a device looks for it")
	}
	if err := secureboot.Verify(b, key); err != nil {
		return "", err
	}
	return fmt.Sprintf(", signed by the key with digest %x", digest), nil
}

func newImageSignCmd() *cobra.Command {
	var keyFile, signer, out string
	var add, pad, asJSON bool
	cmd := &cobra.Command{
		Use:   "sign --key K.pem -o OUT IN",
		Short: "sign an image as Secure Boot v2 does",
		Long: `Pad an image to 4096 bytes and put a Secure Boot v2 signature sector behind it, as espsecure's sign_data --version 2 does.
The key is RSA-3072 or ECDSA P-256 (or P-384), a private key in PEM, or the public one of a key that --signer signs with. With --append the signatures the image has
are kept, up to three. OUT may be IN: it is replaced as a whole or not at all. - stands for standard input or output.`,
		Example: `  bmsota keys new --type rsa3072 -o secure-boot.pem
  bmsota image sign --key secure-boot.pem -o app-signed.bin build/app.bin
  bmsota image sign --key second.pem --append -o app-signed.bin app-signed.bin`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := needFlags(cmd, "key", "output"); err != nil {
				return err
			}
			key, err := readImageSigner(cmd, keyFile, signer)
			if err != nil {
				return err
			}
			b, err := imageKind.read(cmd, args[0])
			if err != nil {
				return err
			}
			if pad {
				if b, err = appimage.SecurePad(b); err != nil {
					return badContent(args[0], err, "give the image as the build made it")
				}
			}
			signed, err := signImage(cmd, args[0], b, key, add)
			if err != nil {
				return err
			}
			return reportOutput(cmd, out, signed, asJSON)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&keyFile, "key", "", "PEM file of the private key, or of the public key with --signer")
	flags.StringVar(&signer, "signer", "", signerUsage)
	flags.BoolVar(&add, "append", false, "keep the signatures the image has")
	flags.BoolVar(&pad, "secure-pad", false, "first make the image a multiple of 64 KiB long, for Secure Boot, as elf2image --secure-pad-v2 does")
	flags.StringVarP(&out, "output", "o", "", "file to write, - for standard output")
	flags.BoolVar(&asJSON, "json", false, "print what was written as JSON")
	return cmd
}

// signImage signs what a device will accept and refuses the rest: a signature in the wrong place is worse than none,
// because it is noticed on the device only.
func signImage(cmd *cobra.Command, path string, b []byte, key crypto.Signer, add bool) ([]byte, error) {
	r := describeImage(b)
	if !r.Valid {
		return nil, r.refusal(path)
	}
	var opts []secureboot.Option
	switch {
	case len(r.Signatures) > 0 && !add:
		return nil, badContent(path, errors.New("the image is signed already"), "give --append to add a signature, or sign the unsigned image")
	case len(r.Signatures) > 0:
		opts = append(opts, secureboot.Append())
	}
	if end := max(r.FileLength, signatureOffset(r.ImageLength)); r.FileSize > end {
		return nil, badContent(path, fmt.Errorf("%d bytes are in the place of the signature", r.FileSize-end), "sign the image as the build made it")
	}
	signed, err := secureboot.Sign(b, key, nil, opts...)
	if err != nil {
		return nil, badContent(path, err, "")
	}
	if len(signed) > appimage.MaxPartitionSize {
		return nil, badContent(path, fmt.Errorf("with its signature the image has %d bytes, no partition has more than %d", len(signed), appimage.MaxPartitionSize), "")
	}
	if id := r.header.Chip; len(r.Signatures) > 0 && (id == appimage.ESP32 || id == appimage.ESP32C2) {
		warn(cmd, "%s looks at the first signature only", r.Chip)
	}
	return signed, nil
}
