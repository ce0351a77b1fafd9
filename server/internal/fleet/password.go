package fleet

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strings"
	"time"

	"golang.org/x/crypto/argon2"
)

// The cost of a password: argon2id with OWASP's first recommendation, 19 MiB and two passes. What a hash was made with
// stands in it, so a later program may ask for more.
const (
	argonTime    = 2
	argonMemory  = 19 << 10 // KiB
	argonThreads = 1
	argonKey     = 32 // bytes
	argonSalt    = 16 // bytes
)

// Bounds of the cost that a stored hash may ask for: a row is trusted, but not with the whole machine.
const (
	maxArgonTime   = 16
	maxArgonMemory = 256 << 10 // KiB
)

const (
	// hashesAtOnce bounds the memory of logins: two passwords are worked on, the rest waits.
	hashesAtOnce = 2
	// hashWaiting is how many may wait, hashWait for how long; who comes after that is asked to try again.
	hashWaiting = 64
	hashWait    = 10 * time.Second
)

// hashPassword writes $argon2id$v=19$m=…,t=…,p=…$salt$key, as the reference implementation does.
func hashPassword(password string) string {
	salt := make([]byte, argonSalt)
	rand.Read(salt) // never fails (crypto/rand)
	key := argon2.IDKey([]byte(password), salt, argonTime, argonMemory, argonThreads, argonKey)
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, argonMemory, argonTime, argonThreads,
		b64.EncodeToString(salt), b64.EncodeToString(key))
}

// verifyPassword says whether password is the one of encoded. What is no hash, or asks for too much, matches nothing.
func verifyPassword(password, encoded string) bool {
	parts := strings.Split(encoded, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return false
	}
	var memory, passes uint32
	var threads uint8
	if n, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &memory, &passes, &threads); n != 3 || err != nil {
		return false
	}
	if passes < 1 || passes > maxArgonTime || memory < 8 || memory > maxArgonMemory || threads < 1 || threads > 16 {
		return false
	}
	salt, err := base64.RawStdEncoding.DecodeString(parts[4])
	if err != nil || len(salt) < 8 || len(salt) > 64 {
		return false
	}
	want, err := base64.RawStdEncoding.DecodeString(parts[5])
	if err != nil || len(want) < 16 || len(want) > 64 {
		return false
	}
	got := argon2.IDKey([]byte(password), salt, passes, memory, threads, uint32(len(want)))
	return subtle.ConstantTimeCompare(got, want) == 1
}

// hash works out a new hash, in turn.
func (g *guard) hash(ctx context.Context, password string) (string, error) {
	var encoded string
	err := g.inTurn(ctx, func() { encoded = hashPassword(password) })
	return encoded, err
}

// inTurn runs work when fewer than hashesAtOnce others do.
func (g *guard) inTurn(ctx context.Context, work func()) error {
	select {
	case g.queue <- struct{}{}:
		defer func() { <-g.queue }()
	default:
		return &TooSoon{Wait: hashWait}
	}
	timer := time.NewTimer(hashWait)
	defer timer.Stop()
	select {
	case g.turn <- struct{}{}:
		defer func() { <-g.turn }()
	case <-timer.C:
		return &TooSoon{Wait: hashWait}
	case <-ctx.Done():
		return ctx.Err()
	}
	work()
	return nil
}
