//go:build unix

package e2e

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"bmsota/e2e/s3server"

	"github.com/rogpeppe/go-internal/testscript"
)

// cmdS3 starts a real S3 server with one bucket, over TLS with the certificate that testca left in a folder: s3 NAME BUCKET TLS
// $S3 is its endpoint, $OBJECTS the folder in which the objects of the bucket are files. A second start finds all of it again.
func cmdS3(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg, "s3")
	if len(args) != 3 {
		ts.Fatalf("usage: s3 NAME BUCKET TLS")
	}
	s, err := s3server.New(ts.MkAbs("s3"), ts.MkAbs(args[2]+"/server.pem"), ts.MkAbs(args[2]+"/server.key"))
	ts.Check(err)
	if addr := ts.Getenv("S3_ADDR"); addr != "" {
		s.Addr = addr
	}
	command, err := s.Args()
	ts.Check(err)
	ts.Check(begin(ts, args[0], command...))
	ts.Setenv("S3_ADDR", s.Addr)
	ts.Setenv("S3", s.URL())
	ts.Setenv("OBJECTS", filepath.Join(s.Objects(), args[1]))
	ts.Check(os.MkdirAll(ts.Getenv("OBJECTS"), 0o700)) // which is how a bucket is made
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		err := s.Admin(ctx, "list-buckets")
		if err == nil {
			return
		}
		if p := running(ts, args[0]); ctx.Err() != nil || !p.alive() {
			ts.Fatalf("%s does not answer: %v\n%s", args[0], err, tail(p.log))
		}
		time.Sleep(pollEvery)
	}
}
