// Package secureboot reads, writes and verifies the signature sector of
// ESP32 Secure Boot v2, which signed application updates carry too.
//
// A signed file is the image padded to 4096 bytes and one more sector of 4096
// bytes with up to three signature blocks. [Sign] and [Verify] do what
// espsecure's sign_data and verify_signature do with a file and a key in hand;
// [VerifyOnDevice] applies the rule of the firmware, which trusts key digests
// and takes the keys from the blocks. RSA-3072 (PSS), ECDSA P-256 and P-384 are
// made and verified; a P-192 block is recognised and described, but crypto/ecdsa
// has no such curve, so it never verifies.
//
// The package refuses blocks with a wrong magic, version, curve or CRC and keys
// of any other kind. It does not know the older scheme with its 68-byte
// trailer. Which keys to trust is the caller's decision.
//
// The truth is specified in ESP-IDF v5.5,
// components/esp_rom/<chip>/include/<chip>/rom/secure_boot.h and
// components/bootloader_support/src/secure_boot_v2, and in esptool's espsecure.
package secureboot
