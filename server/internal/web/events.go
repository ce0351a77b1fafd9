package web

import (
	"fmt"
	"net/http"
	"time"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

// liveHeader is on the requests that live.js makes by itself: they are not a person's use of the session.
const liveHeader = "Bmsota-Live"

const (
	maxReaders   = 200              // streams of events at once; each is a connection
	tellEvery    = time.Second      // changes that come closer together are told as one
	beatEvery    = 15 * time.Second // a stream with nothing to tell shows that it lives, and that its session does
	writeTimeout = 10 * time.Second // of one event; who does not read is cut
)

// events tells a page that it is out of date (server-sent events): one "change" for any number of changes. With ?device=
// only changes of that device count. The page then asks for itself again; no data is sent here, so a stream can be
// dropped at any time and nothing is lost.
func (u *ui) events(w http.ResponseWriter, r *http.Request, _ fleet.Identity) error {
	device := r.URL.Query().Get("device")
	if device != "" {
		if err := protocol.CheckDeviceID(device); err != nil {
			return fmt.Errorf("%w: %w", fleet.ErrInvalid, err)
		}
	}
	select {
	case u.readers <- struct{}{}:
		defer func() { <-u.readers }()
	default:
		w.Header().Set("Retry-After", "30")
		plain(w, http.StatusServiceUnavailable, "too many pages are open")
		return nil
	}
	changes, stop := u.h.cfg.Fleet.Watch()
	defer stop()
	// Asked again: what ends this stream when the session does begins with the line above.
	if _, err := u.h.cfg.Fleet.BySession(r.Context(), cookieOf(r), false); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // nginx would keep events back
	stream := &eventStream{w: w, control: http.NewResponseController(w)}
	if stream.send("retry: 3000\n\n") != nil {
		return nil
	}
	beat := time.NewTicker(beatEvery)
	defer beat.Stop()
	var due <-chan time.Time // nil: nothing to tell
	for {
		var err error
		select {
		case id, open := <-changes:
			if !open {
				return nil // it has fallen behind, or sessions have ended; the browser comes back and asks for everything
			}
			if due == nil && (device == "" || device == id) {
				due = time.After(tellEvery)
			}
		case <-due:
			due = nil
			err = stream.send("event: change\ndata: \n\n")
		case <-beat.C:
			if _, err = u.h.cfg.Fleet.BySession(r.Context(), cookieOf(r), false); err == nil {
				err = stream.send("event: beat\ndata: \n\n")
			}
		case <-r.Context().Done():
			return nil
		case <-u.h.cfg.Closing:
			return nil
		}
		if err != nil {
			return nil // the answer has begun: there is nobody to tell
		}
	}
}

// eventStream writes events, each within writeTimeout.
type eventStream struct {
	w       http.ResponseWriter
	control *http.ResponseController
}

func (s *eventStream) send(text string) error {
	// A recorder in a test has no deadline; a connection that cannot set one fails in the write that follows.
	_ = s.control.SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, err := s.w.Write([]byte(text)); err != nil {
		return err
	}
	return s.control.Flush()
}
