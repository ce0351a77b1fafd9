package hosttest_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"math/rand/v2"
	"strings"

	"bmsota/manifest"
)

// fixedKey is a key that is the same in every run. The file of vectors has to be.
func fixedKey(n byte) *ecdsa.PrivateKey {
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), bytes.Repeat([]byte{n}, 32))
	if err != nil {
		panic(err)
	}
	return key
}

func pemOf(key *ecdsa.PrivateKey) string {
	text, err := manifest.EncodePublicKey(&key.PublicKey)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// sign makes a compact JWS of anything: deterministic (RFC 6979), and without the checks of manifest.Sign.
func sign(key *ecdsa.PrivateKey, header, payload string) string {
	signed := b64([]byte(header)) + "." + b64([]byte(payload))
	digest := sha256.Sum256([]byte(signed))
	der, err := key.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		panic(err)
	}
	var sig struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &sig); err != nil {
		panic(err)
	}
	return signed + "." + b64(append(sig.R.FillBytes(make([]byte, 32)), sig.S.FillBytes(make([]byte, 32))...))
}

const goodHeader = `{"alg":"ES256"}`

// goodPayload describes an image of three blocks and a bit.
func goodPayload() string {
	var sums []byte
	for i := range byte(4) {
		sum := sha256.Sum256([]byte{i})
		sums = append(sums, sum[:]...)
	}
	return fmt.Sprintf(`{"format":1,"project":"ota-demo","chip":"esp32","version":"1.1.0","min_version":"1.0.0","secure_version":2,`+
		`"size":%d,"sha256":"%x","blocks":"%s","build_date":"2026-01-01T00:00:00Z","force_update":true}`,
		3*manifest.BlockSize+17, sha256.Sum256(nil), b64(sums))
}

func manifestQuestions(r *rand.Rand) []question {
	one, two, other := fixedKey(1), fixedKey(2), fixedKey(3)
	payload := goodPayload()
	good := sign(one, goodHeader, payload)
	part := strings.Split(good, ".")
	var out []question
	verify := func(text, keys string) { out = append(out, question{"manifest", []string{text, keys, "verify"}}) }
	verify(good, pemOf(one))
	verify(good, pemOf(two)+pemOf(one))
	verify(good, pemOf(two)+"# the key of last year\n"+pemOf(other)+pemOf(one))
	verify(good, pemOf(two))
	verify(good, "")
	verify(good, pemOf(one)+"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
	verify(good, strings.Repeat(pemOf(one), 9))
	verify(sign(two, goodHeader, payload), pemOf(one)+pemOf(two))
	for _, n := range sequences {
		verify(sign(one, goodHeader, strings.TrimSuffix(payload, "}")+`,"sequence":`+n+"}"), pemOf(one))
	}
	for _, header := range []string{`{"alg":"none"}`, `{"alg":"HS256"}`, `{"alg":"ES384"}`, `{"alg":"es256"}`, `{"alg":"ES256","kid":"1"}`, `{"alg":"ES256","typ":"JWT"}`,
		`{"alg":"ES256","crit":["b64"],"b64":true}`, `{"alg":"ES256","jwk":{"kty":"EC","crv":"P-256"}}`, `{"alg":"ES256"} `, `{ "alg":"ES256"}`, `{"ALG":"ES256"}`, `{}`, ``, `{"alg":"ES256","alg":"none"}`} {
		verify(sign(one, header, payload), pemOf(one))
		out = append(out, question{"manifest", []string{sign(one, header, payload), "", "read"}})
	}
	mac := hmac.New(sha256.New, []byte(pemOf(one)))
	confused := b64([]byte(`{"alg":"HS256"}`)) + "." + part[1]
	mac.Write([]byte(confused))
	verify(confused+"."+b64(mac.Sum(nil)), pemOf(one))
	for _, text := range []string{"", ".", "..", part[0], part[0] + ".", part[0] + "..", part[0] + "." + part[1], part[0] + "." + part[1] + ".", part[0] + ".." + part[2], good + ".", good + "." + part[2],
		"." + part[1] + "." + part[2], good + "=", good + "==", " " + good, good + "\n", good[:30] + "\n" + good[30:], part[0] + "." + part[1] + "=." + part[2], good + good,
		part[0] + "." + part[1] + "." + b64(make([]byte, 64)), part[0] + "." + part[1] + "." + b64(bytes.Repeat([]byte{0xff}, 64)), part[0] + "." + part[1] + "." + b64(make([]byte, 63)),
		part[0] + "." + part[1] + "." + b64(make([]byte, 65)), strings.ReplaceAll(good, "_", "/"), good + strings.Repeat("A", manifest.MaxJWS)} {
		verify(text, pemOf(one))
		out = append(out, question{"manifest", []string{text, "", "read"}})
	}
	for range 40 { // one bit of a signed text
		b := []byte(good)
		b[r.IntN(len(b))] ^= 1 << r.IntN(7)
		verify(string(b), pemOf(one))
	}
	for i := len(good) - 4; i < len(good); i++ { // every other last digit of the signature
		for _, digit := range "ABQgwx" {
			verify(good[:i]+string(digit)+good[i+1:], pemOf(one))
		}
	}
	for range 70 { // signed, whatever is in it
		verify(sign(one, goodHeader, payloadDocument.write(r)), pemOf(one))
	}
	for range 40 {
		out = append(out, question{"manifest", []string{sign(one, goodHeader, bend(r, payload)), "", "read"}})
	}
	return out
}

func offerQuestions(r *rand.Rand) []question {
	one, two := fixedKey(1), fixedKey(2)
	payload := fmt.Sprintf(`{"type":"offer","device":"bms-000001","nonce":"AAECAwQFBgcICQoLDA0ODw","path":"/firmware/version","sha256":"%x","version":"1.1.0","sequence":1795000000000,"valid_s":600}`, sha256.Sum256(nil))
	good := sign(one, goodHeader, payload)
	var out []question
	ask := func(text, keys string) { out = append(out, question{"offer", []string{text, keys}}) }
	ask(good, pemOf(one))
	ask(good, pemOf(two)+pemOf(one))
	ask(good, pemOf(two))
	ask(good, "")
	ask(sign(one, `{"alg":"none"}`, payload), pemOf(one))
	ask("", pemOf(one))
	ask(good+strings.Repeat("A", manifest.MaxOffer), pemOf(one))
	ask(sign(one, goodHeader, payload[:len(payload)-1]+`,"x":"`+strings.Repeat("x", 900)+`"}`), pemOf(one))
	// Neither may pass for the other, though one key has signed both.
	ask(sign(one, goodHeader, goodPayload()), pemOf(one))
	out = append(out, question{"manifest", []string{good, pemOf(one), "verify"}})
	for range 20 { // one bit of a signed text
		b := []byte(good)
		b[r.IntN(len(b))] ^= 1 << r.IntN(7)
		ask(string(b), pemOf(one))
	}
	for range 90 { // signed, whatever is in it
		ask(sign(one, goodHeader, offerDocument.write(r)), pemOf(one))
	}
	for range 40 {
		ask(sign(one, goodHeader, bend(r, payload)), pemOf(one))
	}
	return out
}

func keyQuestions(r *rand.Rand) []question {
	one := fixedKey(1)
	good := pemOf(one)
	der, err := x509.MarshalPKIXPublicKey(&one.PublicKey)
	if err != nil {
		panic(err)
	}
	block := func(der []byte) string { return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})) }
	changed := func(at int, to byte) []byte {
		b := bytes.Clone(der)
		b[at] = to
		return b
	}
	p384, err := ecdsa.ParseRawPrivateKey(elliptic.P384(), bytes.Repeat([]byte{1}, 48))
	if err != nil {
		panic(err)
	}
	compressed := append([]byte{0x30, 0x39}, der[2:25]...)
	compressed = append(append(compressed, 0x22, 0x00), elliptic.MarshalCompressed(elliptic.P256(), one.X, one.Y)...)
	body := strings.Split(good, "\n")
	texts := []string{good, good + good, strings.Repeat(good, 8), strings.Repeat(good, 9), "", "hello", "hello\n" + good + "bye", "--- hello ---\n" + good, "-----\n" + good, "-- hello --\n" + good,
		strings.ReplaceAll(good, "\n", "\r\n"), " \t" + strings.ReplaceAll(good, "\n", " \n\t "), strings.TrimSuffix(good, "\n"), strings.ReplaceAll(good, "\n", ""), body[0] + "\n" + body[1] + body[2] + "\n" + body[3],
		body[0] + "\n\n" + body[1] + "\n\n" + body[2] + "\n" + body[3], strings.ReplaceAll(good, "PUBLIC KEY", "EC PUBLIC KEY"), strings.ReplaceAll(good, "PUBLIC", "PRIVATE"), good[:100], good + good[:50],
		body[3] + "\n" + good, body[0] + "\n" + good, strings.Replace(good, "==", "=", 1), strings.Replace(good, "==", "", 1), strings.Replace(good, "==", "===", 1), strings.Replace(good, "==", "\n==", 1),
		strings.Replace(good, "M", "!", 1), strings.Replace(good, "\n", "\nProc-Type: 4,ENCRYPTED\n\n", 1), block(changed(26, 2)), block(changed(60, der[60]^1)), block(changed(22, 8)), block(der[:90]),
		block(append(bytes.Clone(der), 0)), block(append([]byte{0x30, 91}, append(bytes.Clone(der[2:]), 5, 0)...)), block(compressed), pemOf(p384), block(nil), body[0] + "\n" + body[3], good + block(changed(90, der[90]^1)),
		body[0] + "\n" + strings.Repeat("A", 124) + "\n" + body[3], body[0] + "\n" + strings.Repeat("A", 122) + "==\n" + body[3], body[0] + "\n" + strings.Repeat("A", 5000) + "\n" + body[3]}
	var out []question
	for _, text := range texts {
		out = append(out, question{"keys", []string{text}})
	}
	for range 20 {
		out = append(out, question{"keys", []string{strings.ReplaceAll(bend(r, good+good), "\x00", "")}})
	}
	return out
}
