package fleet

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"bmsota/esp/appimage"
	"bmsota/esp/secureboot"
	"bmsota/manifest"
	"bmsota/protocol"
)

// keySet is one set of trusted release keys of a project, in the order of their sequence.
type keySet struct {
	Sequence    uint32
	FromVersion string // devices that run it or newer trust this set; empty for the first
	Threshold   int
	Keys        []string // PEM
}

// Keys lists the keys of every project, oldest first: release keys of every set, and image keys that count.
func (f *Fleet) Keys(ctx context.Context) ([]ProjectKey, error) {
	var list []ProjectKey
	err := f.cfg.Store.View(ctx, func(tx Tx) (err error) {
		list, err = tx.Keys("")
		return err
	})
	return slices.DeleteFunc(list, func(k ProjectKey) bool { return k.Retired }), err
}

// PinImageKey registers the digest of a key that images of a project are signed with: from then on an image that a board
// with this digest in eFuse would not start is refused at publish. Several digests are alternatives. With retire the
// digest stops counting. Doing either twice is no error. Errors: ErrDenied, ErrInvalid, ErrNotFound, ErrStorage.
func (f *Fleet) PinImageKey(ctx context.Context, by Identity, project, digest string, retire bool) error {
	if err := f.may(by, RightAdminister); err != nil {
		return err
	}
	if !isDigest(digest) || project == "" || len(project) > 32 || !printable(project) {
		return fmt.Errorf("%w: project %.64q, digest %.64q: a project and 64 lower-case hex digits are needed", ErrInvalid, project, digest)
	}
	return f.update(ctx, by, func(tx Tx) error {
		keys, err := tx.Keys(project)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(keys, func(k ProjectKey) bool { return k.Kind == KeyImage && k.Key == digest })
		switch {
		case i < 0 && retire:
			return fmt.Errorf("image key %.12s… of project %q: %w", digest, project, ErrNotFound)
		case i >= 0 && keys[i].Retired == retire:
			return nil
		}
		return tx.PutKey(ProjectKey{Project: project, Kind: KeyImage, Key: digest, Retired: retire, AddedAt: f.cfg.Now(), AddedBy: by.Name})
	})
}

// checkImageKey refuses an image that boards with the project's keys in eFuse would not start.
func checkImageKey(keys []ProjectKey, img image) error {
	var trusted [][32]byte
	for _, k := range keys {
		if k.Kind != KeyImage || k.Retired {
			continue
		}
		b, err := hex.DecodeString(k.Key)
		if err != nil || len(b) != 32 {
			return fmt.Errorf("%w: image key %q is no digest", ErrStorage, k.Key)
		}
		trusted = append(trusted, [32]byte(b))
	}
	if len(trusted) == 0 {
		return nil
	}
	blocks := secureboot.MaxBlocks
	if c := img.Header.Chip; c == appimage.ESP32 || c == appimage.ESP32C2 {
		blocks = 1
	}
	if err := secureboot.VerifyOnDevice(bytes.NewReader(img.bytes), img.Length, int64(len(img.bytes)), trusted, blocks); err != nil {
		return fmt.Errorf("%w: the project's images are signed for Secure Boot, and no board would start this one: %w", ErrRefused, err)
	}
	return nil
}

func encodeKeys(keys []*ecdsa.PublicKey) ([]string, error) {
	var texts []string
	for _, key := range keys {
		text, err := manifest.EncodePublicKey(key) // one spelling of a key, however it was sent
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		texts = append(texts, string(text))
	}
	return texts, nil
}

// keySets puts the rows of a project's release keys together.
func keySets(rows []ProjectKey) []keySet {
	var sets []keySet
	for _, k := range rows {
		if k.Kind != KeyRelease {
			continue
		}
		i := slices.IndexFunc(sets, func(s keySet) bool { return s.Sequence == k.Sequence })
		if i < 0 {
			i = len(sets)
			sets = append(sets, keySet{Sequence: k.Sequence, FromVersion: k.FromVersion, Threshold: k.Threshold})
		}
		sets[i].Keys = append(sets[i].Keys, k.Key)
	}
	slices.SortFunc(sets, func(a, b keySet) int { return int(int64(a.Sequence) - int64(b.Sequence)) })
	return sets
}

// signed says how many of the signers are of the set.
func (s keySet) signed(signers []string) (n int) {
	for _, key := range s.Keys {
		if slices.Contains(signers, key) {
			n++
		}
	}
	return n
}

// settleKeys holds the signatures of a release to the sets that its devices trust, and registers the set that its image
// carries when that is a later one. A release that some device would refuse is refused here, where somebody reads why.
func (f *Fleet) settleKeys(tx Tx, by Identity, rows []ProjectKey, r Release, signers []string, carried manifest.Trust) error {
	sets := keySets(rows)
	switch {
	case r.Manifest != "":
	case len(sets) > 0:
		return fmt.Errorf("%w: the releases of project %q are signed, and devices that hold its key would refuse this one: sign it", ErrRefused, r.Project)
	case carried.Sequence > 0:
		return fmt.Errorf("%w: an image that carries trusted keys is published signed", ErrRefused)
	default:
		return nil
	}
	if len(sets) == 0 {
		first := keySet{Threshold: 1, Keys: signers}
		if err := putSet(tx, r, first); err != nil {
			return err
		}
		sets = append(sets, first)
	}
	if !slices.ContainsFunc(sets, func(s keySet) bool { return s.signed(signers) > 0 }) {
		return fmt.Errorf("%w: project %q is signed by another key, and devices that hold that one would refuse this release: sign with the key of the first release", ErrRefused, r.Project)
	}
	next, err := f.takeOver(by, sets, r, carried)
	if err != nil {
		return err
	}
	known := sets
	if next != nil {
		known = append(slices.Clone(sets), *next)
	}
	for _, key := range signers {
		if !slices.ContainsFunc(known, func(s keySet) bool { return slices.Contains(s.Keys, key) }) {
			return fmt.Errorf("%w: one of the %d signatures is by a key that project %q does not know: a new key comes in an image that carries it ('bmsota keys rotate')", ErrRefused, len(signers), r.Project)
		}
	}
	if err := coverSets(sets, r, signers, carried); err != nil {
		return err
	}
	if next == nil {
		return nil
	}
	// It shows that somebody holds the keys that everything after this depends on, and a device that has them by now does
	// not refuse what it runs.
	if n := next.signed(signers); n < next.Threshold {
		return fmt.Errorf("%w: the release that brings key set %d is signed by its keys too: %d of them must sign and %d did", ErrRefused, next.Sequence, next.Threshold, n)
	}
	return putSet(tx, r, *next)
}

// takeOver is the set that a release brings along; nil where its image carries none, or one that is known.
func (f *Fleet) takeOver(by Identity, sets []keySet, r Release, carried manifest.Trust) (*keySet, error) {
	if carried.Sequence == 0 {
		return nil, nil
	}
	texts, err := encodeKeys(carried.Keys)
	if err != nil {
		return nil, err
	}
	set := keySet{Sequence: carried.Sequence, FromVersion: r.Version, Threshold: carried.Threshold, Keys: texts}
	last := sets[len(sets)-1]
	for _, s := range sets {
		if s.Sequence == set.Sequence {
			if s.Threshold != set.Threshold || len(s.Keys) != len(set.Keys) || s.signed(set.Keys) != len(s.Keys) {
				return nil, fmt.Errorf("%w: the image carries other keys as set %d than project %q has under that number: give it the next one", ErrRefused, set.Sequence, r.Project)
			}
			return nil, nil
		}
	}
	if set.Sequence < last.Sequence {
		return nil, fmt.Errorf("%w: the image carries set %d of trusted keys, project %q is at set %d", ErrRefused, set.Sequence, r.Project, last.Sequence)
	}
	if _, proper := protocol.ParseVersion(r.Version); !proper || !protocol.Older(last.FromVersion, r.Version) {
		return nil, fmt.Errorf("%w: version %s brings a set of trusted keys, and must be a SemVer version above %q, which brought the one before", ErrRefused, r.Version, last.FromVersion)
	}
	if err := f.may(by, RightAdminister); err != nil {
		return nil, fmt.Errorf("the image carries new trusted keys: %w", err)
	}
	return &set, nil
}

// coverSets walks through the sets of the devices that may take the release: those that run MinVersion or newer, and
// less than its version. Each must find enough signatures of its own, and no image that takes it back to older keys.
func coverSets(sets []keySet, r Release, signers []string, carried manifest.Trust) error {
	_, proper := protocol.ParseVersion(r.Version)
	for i, s := range sets {
		after := ""
		if i+1 < len(sets) {
			after = sets[i+1].FromVersion
		}
		switch {
		case proper && s.FromVersion != "" && !protocol.Older(s.FromVersion, r.Version):
			continue // devices that trust it run this version or a newer one
		case after != "" && r.MinVersion != "" && !protocol.Older(r.MinVersion, after):
			continue // devices that trust it are too old for this release
		}
		who := "devices"
		if s.FromVersion != "" {
			who += " from version " + s.FromVersion + " on"
		}
		if after != "" {
			who += " below version " + after
		}
		if n := s.signed(signers); n < s.Threshold {
			hint := "sign with its keys"
			if after != "" {
				hint += ", or give min_version " + after
			}
			return fmt.Errorf("%w: %s trust key set %d, of which %d must sign and %d did: %s", ErrRefused, who, s.Sequence, s.Threshold, n, hint)
		}
		if carried.Sequence < s.Sequence {
			return fmt.Errorf("%w: %s trust key set %d and take no image that goes back to set %d: put the set into it with 'bmsota keys rotate'", ErrRefused, who, s.Sequence, carried.Sequence)
		}
	}
	return nil
}

func putSet(tx Tx, r Release, s keySet) error {
	var errs []error
	for _, key := range s.Keys {
		errs = append(errs, tx.PutKey(ProjectKey{Project: r.Project, Kind: KeyRelease, Sequence: s.Sequence, Key: key,
			FromVersion: s.FromVersion, Threshold: s.Threshold, AddedAt: r.PublishedAt, AddedBy: r.PublishedBy}))
	}
	return errors.Join(errs...)
}
