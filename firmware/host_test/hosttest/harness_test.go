// Package hosttest holds the component in C to what Go's packages decide. Both are asked the same questions, which vectors.c
// lists: fixed ones, kept in ../testdata/vectors.jsonl with the answers, and seeded variations of them.
package hosttest_test

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// c is the process that answers for the component, one question at a time.
type c struct {
	t   testing.TB
	in  io.Writer
	out *bufio.Reader
}

// build makes one of the programs of vectors.mk. A compiler or library that is missing fails the test.
func build(t testing.TB, program string) string {
	t.Helper()
	// The go command repeats the result of a test until a file changes that the test has looked at.
	err := filepath.WalkDir("../..", func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			_, err = os.Stat(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, program)
	if out, err := exec.Command("make", "-s", "-f", "../vectors.mk", "OUT="+dir, path).CombinedOutput(); err != nil {
		t.Fatalf("build %s (it needs gcc, make and libmbedtls-dev): %v\n%s", program, err, out)
	}
	return path
}

// startC starts the program that answers, built with the sanitizers.
func startC(t testing.TB) *c {
	t.Helper()
	cmd := exec.Command(build(t, "vectors"))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
			t.Errorf("the process of the component: %v", err)
		}
	})
	return &c{t: t, in: in, out: bufio.NewReader(out)}
}

// with is the process on behalf of a subtest.
func (p *c) with(t *testing.T) *c { return &c{t: t, in: p.in, out: p.out} }

// ask puts one question and waits for the answer.
func (p *c) ask(kind string, args ...string) string {
	p.t.Helper()
	question := binary.LittleEndian.AppendUint32(nil, uint32(1+len(args)))
	for _, arg := range append([]string{kind}, args...) {
		question = binary.LittleEndian.AppendUint32(question, uint32(len(arg)))
		question = append(question, arg...)
	}
	if _, err := p.in.Write(question); err != nil {
		p.t.Fatalf("%s %q: the component does not listen: %v", kind, args, err)
	}
	var head [4]byte
	if _, err := io.ReadFull(p.out, head[:]); err != nil {
		p.t.Fatalf("%s %q: the component died: %v", kind, args, err)
	}
	answer := make([]byte, binary.LittleEndian.Uint32(head[:]))
	if _, err := io.ReadFull(p.out, answer); err != nil {
		p.t.Fatalf("%s %q: the component died: %v", kind, args, err)
	}
	return string(answer)
}
