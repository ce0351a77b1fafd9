package deploy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"bmsota/protocol"
)

// Version decides under which version the image is published, and says where that comes from: what was given, or the
// image's own description, or where that is a build system's and not a person's, git. The error wraps ErrVersion where
// devices could not compare it.
func (p *Project) Version(ctx context.Context, given string) (version, from string, err error) {
	version, from = given, "--version"
	if version == "" && p.Parsed.Desc != nil && !protocol.GenericVersion(p.Parsed.Desc.Version) {
		version, from = p.Parsed.Desc.Version, "the image's own description"
	}
	if version == "" {
		from = "git describe"
		if version, err = gitDescribe(ctx, p.Dir); err != nil {
			return "", from, fmt.Errorf("%w: the image does not say which it is, and %w", ErrVersion, err)
		}
	}
	if _, ok := protocol.ParseVersion(version); !ok {
		return "", from, fmt.Errorf("%w %q (%s) is no SemVer 2.0.0 version such as 1.4.0, so devices could not tell newer from older", ErrVersion, version, from)
	}
	return version, from, nil
}

// gitDescribe names the commit that the project is at, as ESP-IDF does.
func gitDescribe(ctx context.Context, dir string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", "-C", dir, "describe", "--tags", "--always", "--dirty")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if errors.Is(err, exec.ErrNotFound) {
		return "", errors.New("git is not installed")
	}
	if err != nil {
		why, _, _ := strings.Cut(strings.TrimSpace(stderr.String()), "\n")
		return "", fmt.Errorf("git cannot tell: %s", strings.TrimPrefix(why, "fatal: "))
	}
	return strings.TrimSpace(string(out)), nil
}
