package web

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

func TestImagesInMemoryAreSharedAndBounded(t *testing.T) {
	f := newFake()
	c := newImageCache(1000)
	var digests []string
	for i := range 10 {
		digests = append(digests, f.add("bms", fmt.Sprintf("1.%d.0", i), testImage(byte(i), 300)))
	}
	open := func(digest string) (io.ReadSeeker, func()) {
		blob, err := f.Firmware(t.Context(), digest)
		if err != nil {
			t.Fatal(err)
		}
		r, done, err := c.content(digest, blob)
		if err != nil {
			t.Fatal(err)
		}
		return r, done
	}
	first, done := open(digests[0])
	again, doneToo := open(digests[0])
	if &first.(*imageReader).image[0] != &again.(*imageReader).image[0] {
		t.Error("one image is in memory twice")
	}
	done()
	doneToo()
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			digest := digests[i%len(digests)]
			r, done := open(digest)
			defer done()
			b, err := io.ReadAll(r)
			if err != nil || digestHex(b) != digest {
				t.Errorf("%d bytes, %v", len(b), err)
			}
		})
	}
	wg.Wait()
	if c.used > c.limit || c.used != 300*int64(len(c.images)) || len(c.images) != c.recent.Len() {
		t.Errorf("%d bytes counted, %d images, %d in the list", c.used, len(c.images), c.recent.Len())
	}
	// Too large to be worth the place of many: served from the file.
	large := f.add("bms", "2.0.0", testImage(99, 501))
	if r, _ := open(large); !isFile(r) {
		t.Error("an image above half of the cache was taken into it")
	}

	// Readers that never finish hold no more than the limit, and do not keep the others from being served.
	var slow []func()
	held := make(map[string]int)
	for _, digest := range append(digests, digests...) {
		r, done := open(digest)
		slow = append(slow, done)
		if image, ok := r.(*imageReader); ok {
			held[digest] = len(image.image)
		} else if b, err := io.ReadAll(r); err != nil || digestHex(b) != digest {
			t.Errorf("%d bytes, %v", len(b), err)
		}
	}
	if len(held) != 3 {
		t.Errorf("%d images of 300 bytes are held in a cache of 1000", len(held))
	}
	for _, done := range slow {
		done()
	}
	for _, digest := range digests {
		r, done := open(digest)
		if _, ok := r.(*imageReader); !ok {
			t.Error("an image that nobody reads keeps its place for ever")
		}
		done()
	}
}

func isFile(r io.ReadSeeker) bool {
	_, ok := r.(fakeBlob)
	return ok
}

func TestRottenFileIsAFaultAndNotServed(t *testing.T) {
	f := newFake()
	digest := f.add("bms", "1.0.0", testImage(1, 100))
	f.blobs[digest] = testImage(2, 100)
	srv := start(t, f)
	for range 2 { // the failure is not remembered as content
		if resp, b := ask(t, "GET", srv.URL+"/firmware/firmware.bin"); resp.StatusCode != 503 || bytes.Contains(b, []byte("firmware firmware")) {
			t.Errorf("%d %s", resp.StatusCode, b)
		}
	}
	f.blobs[digest] = testImage(1, 100)
	if resp, b := ask(t, "GET", srv.URL+"/firmware/firmware.bin"); resp.StatusCode != 200 || digestHex(b) != digest {
		t.Errorf("after repair: %d", resp.StatusCode)
	}
}

func TestVersionFilesInMemoryAreBounded(t *testing.T) {
	var c versionCache
	for i := range 3 * maxVersions {
		v, err := c.body(protocol.VersionFile{Version: fmt.Sprintf("1.0.%d", i)})
		if err != nil {
			t.Fatal(err)
		}
		if f, err := protocol.ParseVersionFile(v.body); err != nil || f.Version != fmt.Sprintf("1.0.%d", i) {
			t.Fatalf("%+v, %v", f, err)
		}
	}
	if len(c.files) > maxVersions {
		t.Errorf("%d files are held", len(c.files))
	}
	if _, err := c.body(protocol.VersionFile{Manifest: string(make([]byte, protocol.MaxVersionFile))}); err == nil {
		t.Error("a version.json that no device reads was made")
	}
}

func TestShortFileIsAFault(t *testing.T) {
	blob := fakeBlob{bytes.NewReader(testImage(1, 10)), newFake(), t.Context()}
	if _, err := readImage(digestHex(testImage(1, 20)), 20, blob); !errors.Is(err, fleet.ErrStorage) {
		t.Errorf("%v", err)
	}
}

// What goes out with an offer is the version file that goes out without, and the offer.
func TestAnOfferIsOneMoreFieldOfTheFile(t *testing.T) {
	f := protocol.VersionFile{Version: "1.1.0", Description: "}\n\"offer\"", SHA256: strings.Repeat("a", 64)}
	body, err := f.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := protocol.ParseVersionFile(withOffer(body, "a.b.c"))
	if f.Offer = "a.b.c"; err != nil || got != f {
		t.Errorf("%+v, %v", got, err)
	}
}
