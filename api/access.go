package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
)

// AccessFile is the name of the access file in a server's data folder.
const AccessFile = "operator.json"

// maxAccess bounds what ReadAccess reads, in bytes.
const maxAccess = 64 << 10

// Access is the file a server leaves in its data folder, readable by its own account only, so that tools on the same
// machine work without being told anything.
type Access struct {
	Server string     `json:"server"` // https://host:port
	Token  string     `json:"token"`
	CAFile string     `json:"ca_file"` // PEM to trust for Server; empty = the system's authorities
	MQTT   AccessMQTT `json:"mqtt"`
}

// AccessMQTT is a login to the broker that may publish commands and see every status.
type AccessMQTT struct {
	Host     string `json:"host"`
	Port     int    `json:"port"`
	TLS      bool   `json:"tls"`
	CAFile   string `json:"ca_file,omitempty"` // empty with TLS = as Access.CAFile
	Username string `json:"username"`
	Password string `json:"password"`
	Prefix   string `json:"prefix"`
}

// ReadAccess reads an access file. The error wraps fs.ErrNotExist when there is none.
func ReadAccess(path string) (Access, error) {
	f, err := os.Open(path)
	if err != nil {
		return Access{}, fmt.Errorf("read access file: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxAccess+1))
	if err != nil {
		return Access{}, fmt.Errorf("read access file: %w", err)
	}
	if len(b) > maxAccess {
		return Access{}, fmt.Errorf("access file %s is larger than %d bytes", path, maxAccess)
	}
	var a Access
	dec := json.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(&a); err != nil {
		return Access{}, fmt.Errorf("access file %s: %w", path, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Access{}, fmt.Errorf("access file %s: data after the object", path)
	}
	return a, nil
}
