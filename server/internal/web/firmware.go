package web

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

// firmware serves what devices read:
//
//	/firmware/                       listing for people
//	/firmware/version[.json]         what the caller is offered
//	/firmware/firmware.bin           the image of that offer
//	/firmware/<sha256>.bin           one image, immutable
//	/firmware/<project>/<channel>/…  the same names for one project and channel
//
// It knows these names and no others; nothing of a path reaches a file system.
func (h *handler) firmware(w http.ResponseWriter, r *http.Request) {
	if !h.allow(w, r) {
		return
	}
	rest := strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, "/firmware"), "/")
	parts := strings.Split(rest, "/")
	query, err := h.firmwareQuery(r)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	name := parts[len(parts)-1]
	switch len(parts) {
	case 1:
	case 3:
		query.Project, query.Channel = parts[0], parts[1]
		if len(query.Project) > 64 || len(query.Channel) > 64 {
			h.fail(w, r, errNoPath)
			return
		}
	default:
		h.fail(w, r, errNoPath)
		return
	}
	digest, isBin := strings.CutSuffix(name, ".bin")
	switch {
	case name == "":
		h.listing(w, r, query)
	case name == "version", name == "version.json":
		h.versionFile(w, r, query)
	case name == "firmware.bin":
		h.offeredImage(w, r, query)
	case isBin && isDigest(digest):
		w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
		h.image(w, r, digest)
	default:
		h.fail(w, r, errNoPath)
	}
}

// firmwareQuery reads how a caller names itself: ?device=, ?chip=, ?project=, or the name of a basic login. Nothing here
// is secret and nothing is granted for it, so a password is not asked for. But who shows a certificate is held to it.
func (h *handler) firmwareQuery(r *http.Request) (fleet.Query, error) {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return fleet.Query{}, fmt.Errorf("%w: query cannot be read", fleet.ErrInvalid)
	}
	q := fleet.Query{Device: values.Get("device"), Chip: values.Get("chip"), Project: values.Get("project"), Nonce: values.Get("nonce")}
	if q.Nonce != "" {
		q.Path = r.URL.EscapedPath()
	}
	if user, _, ok := r.BasicAuth(); ok && q.Device == "" {
		q.Device = user
	}
	if q.Device != "" {
		if err := protocol.CheckDeviceID(q.Device); err != nil {
			return fleet.Query{}, fmt.Errorf("%w: %w", fleet.ErrInvalid, err)
		}
	}
	if err := h.byCertificate(r, &q); err != nil {
		return fleet.Query{}, err
	}
	if len(q.Chip) > 64 || len(q.Project) > 64 {
		return fleet.Query{}, fmt.Errorf("%w: chip and project have at most 64 bytes", fleet.ErrInvalid)
	}
	return q, nil
}

// byCertificate takes the device's name from the certificate of the connection, if there is one. It is asked at each request
// whether it is still the one on record, because a connection, or a session that is resumed, outlasts a revocation.
func (h *handler) byCertificate(r *http.Request, q *fleet.Query) error {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return nil
	}
	leaf := r.TLS.VerifiedChains[0][0]
	sum := sha256.Sum256(leaf.Raw)
	id, err := h.cfg.Fleet.AuthenticateCertificate(r.Context(), leaf.Subject.CommonName, hex.EncodeToString(sum[:]))
	if err == nil && q.Device != "" && q.Device != id.Name {
		err = fmt.Errorf("%w: the certificate is for %.64q", fleet.ErrDenied, id.Name)
	}
	if err != nil {
		return err
	}
	q.Device = id.Name
	return nil
}

func isDigest(s string) bool {
	if len(s) != 64 {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

func (h *handler) versionFile(w http.ResponseWriter, r *http.Request, q fleet.Query) {
	offer, err := h.cfg.Fleet.Offer(r.Context(), q)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	switch {
	case h.cfg.ImageURL != nil: // devices follow no redirects, so this is where they are sent elsewhere
		if offer.File.URL, err = h.cfg.ImageURL(r.Context(), offer.Release.SHA256); err != nil {
			h.fail(w, r, err)
			return
		}
	case offer.File.URL == "":
		offer.File.URL = offer.Release.SHA256 + ".bin"
	}
	v, err := h.versions.body(offer.File)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	header := w.Header()
	header["Content-Type"] = typeJSON
	if offer.Signed != "" {
		header.Set("Cache-Control", "no-store") // the answer to this question, and to no other
		body := withOffer(v.body, offer.Signed)
		oneRange(r, int64(len(body)))
		http.ServeContent(paced(w), r, "", time.Time{}, bytes.NewReader(body))
		return
	}
	header["Cache-Control"], header["Etag"] = noCache, v.etag
	if r.Method == http.MethodGet && !conditional(r) {
		header["Accept-Ranges"], header["Content-Length"] = rangesOfBytes, v.length
		_, _ = w.Write(v.body) // below the minute that every request has for its answer; who is gone gets nothing
		return
	}
	oneRange(r, int64(len(v.body)))
	http.ServeContent(paced(w), r, "", time.Time{}, bytes.NewReader(v.body))
}

// Lists of header values that every version.json has, made once.
var (
	typeJSON      = []string{"application/json"}
	noCache       = []string{"no-cache"}
	rangesOfBytes = []string{"bytes"}
)

// conditional says whether a request asks for anything but the whole content, whatever it may be by now.
func conditional(r *http.Request) bool {
	for _, name := range []string{"Range", "If-Range", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since"} {
		if _, ok := r.Header[name]; ok {
			return true
		}
	}
	return false
}

// withOffer is a version file with one more field. The file is written once for all who are offered it.
func withOffer(body []byte, offer string) []byte {
	head := bytes.TrimSuffix(body, []byte("\n}\n"))
	return slices.Concat(head, []byte(",\n  \"offer\": \""), []byte(offer), []byte("\"\n}\n"))
}

// offeredImage asks for the offer once and then serves its bytes by digest: a channel that is switched during the
// download has no part in it.
func (h *handler) offeredImage(w http.ResponseWriter, r *http.Request, q fleet.Query) {
	offer, err := h.cfg.Fleet.Offer(r.Context(), q)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	w.Header().Set("Cache-Control", "no-cache")
	h.image(w, r, offer.Release.SHA256)
}

// content is a reader for the bytes of an image, from memory or from where the fleet has them. It must not be used after done.
func (h *handler) content(ctx context.Context, digest string) (_ io.ReadSeeker, done func(), _ error) {
	if image, done, ok := h.images.held(digest); ok {
		return image, done, nil
	}
	blob, err := h.cfg.Fleet.Firmware(ctx, digest)
	if err != nil {
		return nil, nil, err
	}
	return h.images.content(digest, blob)
}

func (h *handler) image(w http.ResponseWriter, r *http.Request, digest string) {
	content, done, err := h.content(r.Context(), digest)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	defer done()
	size, err := content.Seek(0, io.SeekEnd)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	header := w.Header()
	header.Set("Content-Type", "application/octet-stream")
	header.Set("ETag", `"`+digest+`"`)
	oneRange(r, size)
	http.ServeContent(h.download(w, r), r, "", time.Time{}, content)
}

// oneRange leaves at most one range in the request, for http.ServeContent to answer. A list of ranges is dropped, so
// that the answer is the whole content once (RFC 9110 §14.2 allows to ignore Range): ServeContent would answer each,
// with a part header that is larger than a small range. HEAD has no ranges. The last zero bytes ("-0") cannot be sent,
// and become a range that net/http answers with 416. An end beyond the content is cut by net/http, which esp_https_ota
// relies on: it asks for bytes=S-<length>.
func oneRange(r *http.Request, size int64) {
	values := r.Header.Values("Range")
	if len(values) == 0 {
		return
	}
	if r.Method == http.MethodHead || len(values) > 1 || strings.Contains(values[0], ",") {
		r.Header.Del("Range")
		return
	}
	if suffix, ok := strings.CutPrefix(values[0], "bytes=-"); ok && strings.Trim(suffix, "0 \t") == "" {
		r.Header.Set("Range", "bytes="+strconv.FormatInt(size, 10)+"-")
	}
}

// maxListed bounds the listing for people.
const maxListed = 200

type listedRelease struct {
	Project, Chip, Version, Channels, SHA256, Published string
	Size                                                int64
}

func (h *handler) listing(w http.ResponseWriter, r *http.Request, q fleet.Query) {
	releases, err := h.cfg.Fleet.Releases(r.Context())
	if err != nil {
		h.fail(w, r, err)
		return
	}
	channels, err := h.cfg.Fleet.Channels(r.Context())
	if err != nil {
		h.fail(w, r, err)
		return
	}
	names := channelNames(channels)
	var rows []listedRelease
	for _, rel := range releases {
		if rel.Withdrawn || q.Project != "" && rel.Project != q.Project || q.Chip != "" && rel.Chip != q.Chip {
			continue
		}
		if q.Channel != "" && !slices.Contains(names[rel.SHA256], q.Channel) {
			continue
		}
		if len(rows) == maxListed {
			break
		}
		rows = append(rows, listedRelease{
			Project: rel.Project, Chip: rel.Chip, Version: rel.Version, Channels: strings.Join(names[rel.SHA256], " "),
			SHA256: rel.SHA256, Size: rel.Size, Published: rel.PublishedAt.UTC().Format(time.DateOnly),
		})
	}
	h.page(w, r, "firmware.html", rows)
}
