package bench

import (
	"bytes"
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"time"
)

// Bare is what Go's own parts do with nothing around them: net/http and crypto/tls with their defaults, the files of root in memory, a
// handler that writes. What ours costs beyond it is our own code, what it costs beyond nginx is Go's. It serves until ctx ends.
func Bare(ctx context.Context, addr, root, cert, key string) error {
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return err
	}
	files := make(map[string][]byte)
	err = filepath.Walk(root, func(at string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		name, err := filepath.Rel(root, at)
		if err != nil {
			return err
		}
		files[path.Join("/", filepath.ToSlash(name))], err = os.ReadFile(at)
		return err
	})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, ok := files[r.URL.Path]
		switch {
		case !ok:
			http.NotFound(w, r)
		case r.Header.Get("Range") != "":
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
		default:
			w.Header().Set("Content-Type", "application/octet-stream")
			w.Header().Set("Content-Length", strconv.Itoa(len(b)))
			_, _ = w.Write(b) // a client that goes away is no error
		}
	})}
	defer context.AfterFunc(ctx, func() { _ = srv.Close() })()
	err = srv.Serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"http/1.1"}}))
	if ctx.Err() != nil {
		return nil
	}
	return err
}
