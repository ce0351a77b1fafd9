package hosttest_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/base64"
	"math/big"
	"math/rand/v2"
	"strings"

	"bmsota/manifest"
)

// signature is the third part of a compact JWS.
func signature(jws string) string { return jws[strings.LastIndexByte(jws, '.')+1:] }

// malleated is another signature by the same key over the same text, which anybody can make: r and n-s.
func malleated(sig string) string {
	b, err := base64.RawURLEncoding.DecodeString(sig)
	if err != nil {
		panic(err)
	}
	s := new(big.Int).Sub(elliptic.P256().Params().N, new(big.Int).SetBytes(b[32:]))
	return b64(append(b[:32:32], s.FillBytes(make([]byte, 32))...))
}

func cosignQuestions(r *rand.Rand) []question {
	one, two, three, four, other := fixedKey(1), fixedKey(2), fixedKey(3), fixedKey(4), fixedKey(9)
	payload := goodPayload()
	by := func(key *ecdsa.PrivateKey) string { return signature(sign(key, goodHeader, payload)) }
	good := sign(one, goodHeader, payload)
	all := pemOf(one) + pemOf(two) + pemOf(three)
	elsewhere := signature(sign(two, goodHeader, strings.Replace(payload, "1.1.0", "1.2.0", 1)))
	p384 := b64(make([]byte, 96))
	none := strings.Join([]string{b64([]byte(`{"alg":"none"}`)), b64([]byte(payload)), ""}, ".")
	var out []question
	for _, beside := range []string{"", by(two), by(three), by(other), by(one), malleated(by(one)), malleated(by(two)), elsewhere, by(two) + "." + by(three),
		by(two) + "." + by(two), by(two) + "." + malleated(by(two)), by(other) + "." + by(two), by(one) + "." + by(two), by(two) + "." + by(three) + "." + by(four),
		by(other) + "." + by(four) + "." + by(two), by(two) + "." + by(three) + "." + by(four) + "." + by(other), ".", by(two) + ".", "." + by(two), by(two) + ".." + by(three),
		by(two) + "=", by(two) + "==", by(two)[:85], by(two) + "A", by(two)[:85] + "B", " " + by(two), p384, b64(make([]byte, 64)), strings.Repeat("_", 86),
		signature(good) + "." + signature(good) + "." + signature(good), sign(two, goodHeader, payload)} {
		for _, need := range []string{"0", "1", "2", "3"} {
			out = append(out, question{"cosigned", []string{good, beside, all, need}})
		}
	}
	for _, c := range [][]string{
		{good, by(two), pemOf(two), "1"}, {good, by(two), pemOf(other), "1"}, {good, by(two), pemOf(one) + pemOf(one), "1"}, {good, by(two), pemOf(one) + pemOf(one), "2"},
		{good, by(two), pemOf(one) + pemOf(two), "2"}, {good, by(two), pemOf(one) + pemOf(two), "3"}, {good, by(two), pemOf(one) + pemOf(one) + pemOf(two), "2"},
		{good, by(two), "", "0"}, {good, by(two), "", "1"}, {good, by(two), all, "-1"}, {none, by(two), all, "1"}, {none, by(one) + "." + by(two), all, "2"}, {"", by(two), all, "1"},
		{sign(other, goodHeader, payload), by(one) + "." + by(two), all, "2"}, {sign(other, goodHeader, payload), by(one) + "." + by(two), all, "3"},
		{sign(one, `{"alg":"HS256"}`, payload), by(two), all, "1"}, {sign(one, `{"alg":"ES384"}`, payload), by(two), all, "1"}, {sign(one, goodHeader, "{}"), "", all, "1"},
		{strings.TrimSuffix(good, signature(good)) + malleated(signature(good)), by(two), all, "2"}, {strings.TrimSuffix(good, signature(good)) + by(two), malleated(by(two)), all, "2"},
		{strings.TrimSuffix(good, signature(good)), by(one) + "." + by(two), all, "1"},
	} {
		out = append(out, question{"cosigned", c})
	}
	for range 20 { // one bit of the second signature
		b := []byte(by(two))
		b[r.IntN(len(b))] ^= 1 << r.IntN(7)
		out = append(out, question{"cosigned", []string{good, string(b), all, "2"}})
	}
	return out
}

// block is a set of keys as it stands in an image, and how the rest of the block is bent.
func block(sequence byte, threshold byte, keys ...*ecdsa.PrivateKey) []byte {
	b := make([]byte, manifest.BuiltinSize)
	copy(b, "bmstrust")
	b[8], b[9], b[10], b[12] = 1, byte(len(keys)), threshold, sequence
	for i, key := range keys {
		point, err := key.PublicKey.Bytes()
		if err != nil {
			panic(err)
		}
		copy(b[16+i*64:], point[1:])
	}
	return b
}

func builtinQuestions() []question {
	one, two, three, four := fixedKey(1), fixedKey(2), fixedKey(3), fixedKey(4)
	bent := func(b []byte, at int, to byte) []byte {
		b[at] = to
		return b
	}
	var out []question
	for _, b := range [][]byte{
		block(0, 0), block(1, 1, one), block(7, 1, one, two), block(7, 2, one, two), block(255, 2, one, two, three), block(1, 4, one, two, three, four), block(1, 3, four, three, two, one),
		block(1, 0, one), block(0, 1, one), block(1, 2, one), block(1, 5, one, two, three, four), block(1, 1), block(1, 0), block(0, 1), block(1, 1, one, one), block(1, 2, one, two, one),
		bent(block(1, 1, one), 8, 0), bent(block(1, 1, one), 8, 2), bent(block(1, 1, one), 9, 0), bent(block(1, 1, one), 9, 2), bent(block(1, 1, one), 9, 5), bent(block(1, 1, one, two), 9, 1),
		bent(block(1, 1, one), 9, 255), bent(block(1, 1, one), 10, 255), bent(block(1, 1, one), 11, 1), bent(block(1, 1, one), 15, 255), bent(block(0, 1, one), 14, 1), bent(block(1, 1, one), 20, 0),
		bent(block(1, 1, one), 271, 1), bent(block(0, 0), 271, 1), bent(block(0, 0), 0, 'B'), bent(block(1, 1, one), 7, 0), bent(block(0, 0), 8, 0), bent(block(0, 0), 11, 9), make([]byte, manifest.BuiltinSize),
		[]byte(strings.Repeat("\xff", manifest.BuiltinSize)), append([]byte("bmstrust\x01\x01\x01\x00\x01\x00\x00\x00"), []byte(strings.Repeat("\xff", 64)+strings.Repeat("\x00", 192))...),
	} {
		out = append(out, question{"builtin", []string{string(b)}})
	}
	return out
}
