package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"

	"bmsota/server/internal/fleet"
)

var replicaForm = regexp.MustCompile(`^[A-Za-z0-9-]{1,32}$`)

// defaultGroup is replicas.share_group where it is not set.
const defaultGroup = "bmsota"

// checkReplicas says what several servers on one database need and one of them lacks: what each would make for itself, and the
// devices would find different at each.
func (c Config) checkReplicas() error {
	r := c.Replicas
	if r.Name == "" && c.Firmware.Folder != "" {
		return errors.New("firmware.folder is for servers that share it: set replicas.name (a backup of this one would not hold what lies there)")
	}
	if r.Name == "" {
		if r != (Replicas{}) {
			return errors.New("replicas.name is empty, but other keys of replicas are set")
		}
		return nil
	}
	secure := c.HTTPS.Listen != off || c.MQTT.External.URL == "" && c.MQTT.TLSListen != off
	switch {
	case !replicaForm.MatchString(r.Name):
		return fmt.Errorf("replicas.name: %q is not 1 to 32 letters, digits and hyphens", r.Name)
	case c.Database.URL == "":
		return errors.New("replicas.name needs database.url: servers share a PostgreSQL database, and SQLite is for one")
	case c.Firmware.Folder == "" && c.Firmware.Bucket.Bucket == "":
		return errors.New("replicas.name needs firmware.folder or firmware.bucket: every server must find the images that another has taken")
	case c.Fleet.OfferKeyFile == "":
		return errors.New("replicas.name needs fleet.offer_key_file: devices must be able to believe every server's answers")
	case secure && c.TLS.CertFile == "" && len(c.TLS.ACME.Hosts) == 0:
		return errors.New("replicas.name needs tls.cert_file, or https.listen and mqtt.tls_listen off: a certificate that each server makes for itself would be trusted at one of them alone")
	case strings.ContainsAny(r.ShareGroup, "+#/$ ") || len(r.ShareGroup) > 64:
		return fmt.Errorf("replicas.share_group: %q is no name of a group: up to 64 letters without + # / $ and spaces", r.ShareGroup)
	}
	return nil
}

// ErrReplicaRefused is the error of Open where another server on the database does not allow for this one.
var ErrReplicaRefused = fleet.ErrRefused

// join is what the fleet of this server shares with others; nil where its rows are its own.
func (s *Server) join(ctx context.Context, db database) (*fleet.Share, error) {
	if s.cfg.Database.URL == "" {
		return nil, nil
	}
	id, err := placeID(s.cfg.DataDir)
	if err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("name of this machine: %w", err)
	}
	// A folder that was copied is another place.
	sum := sha256.Sum256([]byte(id + "\x00" + host + "\x00" + s.cfg.DataDir))
	place := hex.EncodeToString(sum[:12])
	me := &fleet.Share{Place: place, Name: s.cfg.Replicas.Name}
	return me, fleet.Join(ctx, db, *me)
}

// shareGroup is the group of subscriptions at an external broker; empty for none.
func (c Config) shareGroup() string {
	switch {
	case c.Replicas.Name == "" || c.Replicas.ShareGroup == off:
		return ""
	case c.Replicas.ShareGroup == "":
		return defaultGroup
	}
	return c.Replicas.ShareGroup
}

// bucketOwner is whose the objects of a bucket are: all servers' on one database.
func (c Config) bucketOwner() string {
	if c.Replicas.Name == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(placeOf(c.Database.URL)))
	return hex.EncodeToString(sum[:12])
}

// clientID names this server's sessions at an external broker.
func (c Config) clientID() string {
	if c.MQTT.External.ClientID == "" && c.Replicas.Name != "" {
		return "bmsota-" + c.Replicas.Name
	}
	return c.MQTT.External.ClientID
}
