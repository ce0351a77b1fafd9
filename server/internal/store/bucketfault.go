package store

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/minio/minio-go/v7"

	"bmsota/server/internal/fleet"
)

// fault is an error of the running server. What is wrong with the request's own bytes stays what it is.
func (b *Bucket) fault(doing string, err error) error {
	if errors.Is(err, fleet.ErrInvalid) {
		return fmt.Errorf("%s firmware: %w: the bucket gives back other bytes than it was given: %s", doing, fleet.ErrStorage, err)
	}
	why, _ := b.explain(doing, err)
	return fmt.Errorf("%s firmware: %w: %s: %w", doing, fleet.ErrStorage, why, err)
}

// atStart is an error of OpenBucket: one sentence that says what to change.
func (b *Bucket) atStart(doing string, err error) error {
	why, lasting := b.explain(doing, err)
	if lasting {
		return fmt.Errorf("%w: %s", ErrBucketRefused, why)
	}
	return fmt.Errorf("%w: %s", ErrBucketAway, why)
}

// explain says what an error means, and whether trying again is of no use.
func (b *Bucket) explain(doing string, err error) (why string, lasting bool) {
	answer := answerOf(err)
	at := fmt.Sprintf("bucket %q at %s", b.cfg.Bucket, b.cfg.Endpoint)
	switch answer.Code {
	case minio.AccessDenied:
		return fmt.Sprintf("%s: these credentials may not %s %q: they need s3:ListBucket of the bucket and s3:GetObject, s3:PutObject and s3:DeleteObject below the prefix",
			at, doing, b.cfg.Prefix), true
	case "InvalidAccessKeyId", "InvalidAccessKeyID":
		return at + ": the access key is not known there: set firmware.bucket.access_key", true
	case "SignatureDoesNotMatch":
		return at + ": the secret key is not the one of this access key: set firmware.bucket.secret_key_file", true
	case "ExpiredToken", "InvalidToken":
		return at + ": the credentials have expired", true
	case minio.NoSuchBucket:
		return fmt.Sprintf("there is no bucket %q at %s: make it, or set firmware.bucket.bucket", b.cfg.Bucket, b.cfg.Endpoint), true
	case "AuthorizationHeaderMalformed", "PermanentRedirect", "TemporaryRedirect", "IllegalLocationConstraintException", "InvalidRegion", "MovedPermanently":
		if answer.Region != "" {
			return fmt.Sprintf("%s is in region %q: set firmware.bucket.region", at, answer.Region), true
		}
		return fmt.Sprintf("%s is not in region %q: set firmware.bucket.region (%s)", at, b.cfg.Region, answer.Message), true
	case "RequestTimeTooSkewed":
		return at + ": the clock of this machine and the store's differ: set the clock", true
	}
	switch {
	case errors.As(err, new(x509.UnknownAuthorityError)), errors.As(err, new(x509.HostnameError)), errors.As(err, new(x509.CertificateInvalidError)):
		return fmt.Sprintf("%s: its certificate is not trusted: set firmware.bucket.ca_file (%v)", at, err), true
	case errors.Is(err, context.DeadlineExceeded):
		return at + " does not answer in time", false
	case answer.StatusCode == http.StatusForbidden:
		return fmt.Sprintf("%s: these credentials may not %s (%s)", at, doing, answer.Code), true
	case answer.StatusCode >= 300 && answer.StatusCode < 500 && answer.StatusCode != http.StatusTooManyRequests:
		return fmt.Sprintf("%s: it answers %d %s: %s", at, answer.StatusCode, answer.Code, oneLine(answer.Message)), true
	case answer.StatusCode != 0:
		return fmt.Sprintf("%s cannot now: it answers %d %s", at, answer.StatusCode, answer.Code), false
	}
	return fmt.Sprintf("%s cannot be reached: %s", at, oneLine(err.Error())), false
}

// answerOf is the store's own answer in an error; empty when there is none.
func answerOf(err error) minio.ErrorResponse {
	answer, _ := errors.AsType[minio.ErrorResponse](err)
	return answer
}

func oneLine(s string) string {
	return strings.Join(strings.Fields(fmt.Sprintf("%.300s", s)), " ")
}

func (b *Bucket) accuse(digest, how string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wrong[digest] = how
}

func (b *Bucket) forgive(digest string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.wrong, digest)
}

// Doubts are sentences about firmware that is damaged or missing in the bucket, as far as anybody has looked.
func (b *Bucket) Doubts() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var list []string
	for _, digest := range slices.Sorted(maps.Keys(b.wrong)) {
		list = append(list, fmt.Sprintf("firmware %.12s… %s: publish the same image again", digest, b.wrong[digest]))
	}
	return list
}

// Probe says whether the bucket answers.
func (b *Bucket) Probe(ctx context.Context) error {
	_, err := b.api.Client.StatObject(ctx, b.cfg.Bucket, b.cfg.Prefix+claimKey, minio.StatObjectOptions{})
	if err != nil {
		return b.fault("read", err)
	}
	return nil
}
