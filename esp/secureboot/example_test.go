package secureboot_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"

	"bmsota/esp/secureboot"
)

func Example() {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		fmt.Println(err)
		return
	}
	signed, err := secureboot.Sign(bytes.Repeat([]byte{0xE9}, 5000), key, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	blocks, err := secureboot.Blocks(bytes.NewReader(signed), int64(len(signed)))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(len(signed), blocks[0].Scheme)
	fmt.Println(secureboot.Verify(signed, key.Public()))

	signed[0] ^= 1
	trusted := [][32]byte{blocks[0].KeyDigest}
	fmt.Println(secureboot.VerifyOnDevice(bytes.NewReader(signed), 5000, int64(len(signed)), trusted, 1))
	// Output:
	// 12288 ecdsa-p256
	// <nil>
	// signature does not verify: no trusted key among the 1 blocks looked at signed this content
}
