package protocol

import (
	"encoding/json"
	"fmt"
	"strings"

	"bmsota/strictjson"
)

// MaxVersionFile is the largest version.json in bytes that a device reads: room for the manifest of the largest image
// (256 block digests, in base64 twice over) and the longest description.
const MaxVersionFile = 24 << 10

// maxCosignatures is the length of three signatures of 64 bytes, with dots between them.
const maxCosignatures = 3*87 - 1

// maxOffer is manifest.MaxOffer, which this package does not import.
const maxOffer = 1536

// VersionFile is version.json: a channel's release as a device or the original tool reads it. Only the first five
// fields are the original's. A device that holds a key believes Manifest and nothing beside it.
type VersionFile struct {
	Version     string `json:"version"`
	BuildDate   string `json:"build_date"` // RFC 3339
	Description string `json:"description"`
	MinVersion  string `json:"min_version"`
	ForceUpdate bool   `json:"force_update"`

	Project       string `json:"project,omitempty"`
	Chip          string `json:"chip,omitempty"`
	Size          int64  `json:"size,omitempty"`   // bytes of the image file
	SHA256        string `json:"sha256,omitempty"` // of the image file
	URL           string `json:"url,omitempty"`    // where the bytes are, relative to version.json's own URL
	SecureVersion uint32 `json:"secure_version,omitempty"`
	Manifest      string `json:"manifest,omitempty"`     // compact JWS
	Cosignatures  string `json:"cosignatures,omitempty"` // by further keys over the same; base64url with dots between them
	Offer         string `json:"offer,omitempty"`        // compact JWS by the server: the answer to one question of one device
}

// ParseVersionFile reads a version.json from the network. The error is a *Refusal with ReasonBadVersionFile.
func ParseVersionFile(b []byte) (VersionFile, error) {
	if len(b) > MaxVersionFile {
		return VersionFile{}, refuse(ReasonBadVersionFile, "larger than %d bytes", MaxVersionFile)
	}
	r, err := strictjson.Parse(b)
	if err != nil {
		return VersionFile{}, refuse(ReasonBadVersionFile, "%v", err)
	}
	var f VersionFile
	r.Text("version", 64, &f.Version)
	r.Text("build_date", 64, &f.BuildDate)
	r.Text("description", 2048, &f.Description)
	r.Text("min_version", 64, &f.MinVersion)
	r.Take("force_update", &f.ForceUpdate)
	r.Text("project", 32, &f.Project)
	r.Text("chip", 32, &f.Chip)
	r.Take("size", &f.Size)
	r.Text("sha256", 64, &f.SHA256)
	r.Text("url", MaxURL, &f.URL)
	r.Take("secure_version", &f.SecureVersion)
	r.Text("manifest", MaxVersionFile, &f.Manifest)
	r.Text("cosignatures", maxCosignatures, &f.Cosignatures)
	r.Text("offer", maxOffer, &f.Offer)
	switch {
	case r.Err() != nil:
		return VersionFile{}, refuse(ReasonBadVersionFile, "%v", r.Err())
	case f.Version == "":
		return VersionFile{}, refuse(ReasonBadVersionFile, "no version")
	case f.Size < 0:
		return VersionFile{}, refuse(ReasonBadVersionFile, "negative size")
	case f.SHA256 != "" && !isDigest(f.SHA256):
		return VersionFile{}, refuse(ReasonBadVersionFile, "sha256 is not 64 lower-case hex digits")
	case strings.ContainsAny(f.URL, " \n\t"):
		return VersionFile{}, refuse(ReasonBadVersionFile, "url holds white space")
	}
	return f, nil
}

// Append writes version.json, indented as people keep it in a folder, with a newline at its end.
func (f VersionFile) Append(dst []byte) ([]byte, error) {
	b, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode version.json: %w", err)
	}
	if len(b) > MaxVersionFile {
		return nil, fmt.Errorf("version.json would be %d bytes, devices read at most %d: shorten the description", len(b), MaxVersionFile)
	}
	return append(append(dst, b...), '\n'), nil
}
