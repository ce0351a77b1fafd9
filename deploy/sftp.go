package deploy

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path"

	"github.com/pkg/sftp"
)

// ErrNoReplace says that a machine's SFTP server cannot replace a file in one step.
var ErrNoReplace = errors.New("the machine's SFTP server cannot replace a file in one step (posix-rename@openssh.com), so devices could meet half a release")

// remote is a shelf on another machine.
type remote struct {
	client *sftp.Client
	fsync  bool // fsync@openssh.com
}

// OpenSFTP is the place of kind sftp: it connects to the machine that c names, logged in as way says. Of way, Host, Port
// and User are filled in from c.
func OpenSFTP(ctx context.Context, c Config, way SSH) (Place, error) {
	firmware, version, host, port, err := c.remote()
	if err != nil {
		return nil, err
	}
	way.Host, way.Port, way.User = host, port, c.Server.Username
	conn, err := way.dial(ctx)
	if err != nil {
		return nil, err
	}
	client, err := sftp.NewClient(conn)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %s: no SFTP there: %w", ErrMachineUnreachable, way.address(), err), conn.Close())
	}
	_, replaces := client.HasExtension("posix-rename@openssh.com")
	_, fsync := client.HasExtension("fsync@openssh.com")
	if !replaces {
		return nil, errors.Join(ErrNoReplace, client.Close(), conn.Close())
	}
	// Whichever of the two is closed first, the other says that it is closed already.
	end := func() error {
		_ = client.Close()
		if err := conn.Close(); !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	}
	return &static{&remote{client, fsync}, layout{firmware, version}, way.User + "@" + host + ":" + path.Dir(version), end}, nil
}

// LeftoverError says that a file under a temporary name could not be removed, as when the line is gone. It harms nobody.
type LeftoverError struct {
	Path string
	Err  error
}

func (e *LeftoverError) Error() string { return fmt.Sprintf("%s is left there: %v", e.Path, e.Err) }
func (e *LeftoverError) Unwrap() error { return e.Err }

// lost marks the error of a line that broke.
func lost(err error) error {
	if errors.Is(err, sftp.ErrSSHFxConnectionLost) || errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("%w: %w", ErrMachineUnreachable, err)
	}
	return err
}

func (r *remote) mkdir(dir string) error {
	if err := r.client.MkdirAll(dir); err != nil {
		return fmt.Errorf("make %s: %w", dir, lost(err))
	}
	return nil
}

func (r *remote) read(name string, limit int64) ([]byte, error) {
	f, err := r.client.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, lost(err))
	}
	defer f.Close()
	b, err := readAtMost(f, name, limit)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, lost(err))
	}
	return b, nil
}

// writesAtOnce is how many writes of 32 KiB are under way: enough for 2 MiB a second over a line with a delay of 100 ms,
// and few enough that a slow line is rid of them within sshGrace of an interruption.
const writesAtOnce = 8

func (r *remote) stage(name string, in io.Reader, size int64) (s staged, err error) {
	temp := path.Join(path.Dir(name), ".bmsota-"+rand.Text()+".tmp")
	f, err := r.client.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", name, lost(err))
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", name, lost(err))
			_ = f.Close() // closed already in most cases
			if left := r.client.Remove(temp); left != nil && !errors.Is(left, fs.ErrNotExist) {
				err = errors.Join(err, &LeftoverError{temp, left})
			}
		}
	}()
	if _, err := f.ReadFromWithConcurrency(in, writesAtOnce); err != nil {
		return nil, err
	}
	if err := f.Chmod(0o644); err != nil {
		return nil, err
	}
	if r.fsync {
		if err := f.Sync(); err != nil {
			return nil, fmt.Errorf("sync: %w", err)
		}
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() != size {
		return nil, fmt.Errorf("%d bytes arrived of %d", info.Size(), size)
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	return &remoteFile{r.client, temp, name}, nil
}

// remoteFile is content on another machine that has no name yet.
type remoteFile struct {
	client     *sftp.Client
	temp, path string
}

func (f *remoteFile) Commit() error {
	if err := f.client.PosixRename(f.temp, f.path); err != nil {
		return errors.Join(fmt.Errorf("replace %s: %w", f.path, lost(err)), f.Discard())
	}
	return nil
}

func (f *remoteFile) Discard() error {
	if err := f.client.Remove(f.temp); err != nil {
		return &LeftoverError{f.temp, err}
	}
	return nil
}
