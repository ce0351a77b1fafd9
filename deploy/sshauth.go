package deploy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// maxKeyFile is the most that is read of a key file, in bytes.
const maxKeyFile = 64 << 10

// auth gives the ways to log in, in ssh's order: keys, then the password. closeAgent is called when the login is over.
func (s SSH) auth() (methods []ssh.AuthMethod, closeAgent func()) {
	closeAgent = func() {}
	var keys agent.ExtendedAgent
	if s.Agent != "" {
		// An agent that is gone is no fault: the keys in files may do.
		if conn, err := net.Dial("unix", s.Agent); err == nil {
			keys = agent.NewClient(conn)
			closeAgent = func() { conn.Close() }
		}
	}
	methods = []ssh.AuthMethod{ssh.PublicKeysCallback(func() ([]ssh.Signer, error) { return s.signers(keys) })}
	switch {
	case s.Password != "":
		methods = append(methods, ssh.Password(s.Password), ssh.KeyboardInteractive(s.answer))
	case s.Ask != nil:
		ask := func() (string, error) { return s.Ask(fmt.Sprintf("%s@%s's password: ", s.User, s.Host)) }
		methods = append(methods, ssh.PasswordCallback(ask))
	}
	return methods, closeAgent
}

// answer gives the password to a server that asks in its own words (PAM), once for what is not shown while typed.
func (s SSH) answer(_, _ string, questions []string, echos []bool) ([]string, error) {
	answers := make([]string, len(questions))
	for i := range questions {
		if echos[i] {
			return nil, fmt.Errorf("the machine asks %q, which only a person can answer", questions[i])
		}
		answers[i] = s.Password
	}
	return answers, nil
}

// signers gives the keys to try. A key file that is named is the only one: a server closes the door after a few.
func (s SSH) signers(keys agent.ExtendedAgent) ([]ssh.Signer, error) {
	var fromAgent []ssh.Signer
	if keys != nil {
		list, err := keys.Signers()
		if err != nil {
			return nil, fmt.Errorf("ssh agent: %w", err)
		}
		fromAgent = list
	}
	if s.KeyFile != "" {
		signer, err := s.fromFile(s.KeyFile, fromAgent)
		if err != nil {
			return nil, err
		}
		return []ssh.Signer{signer}, nil
	}
	signers := fromAgent
	for _, name := range []string{"id_ed25519", "id_ecdsa", "id_rsa"} {
		signer, err := s.fromFile(filepath.Join(s.Home, ".ssh", name), fromAgent)
		// Nobody named this file: one that is not there or cannot be used is passed over.
		if err == nil {
			signers = append(signers, signer)
		}
	}
	return signers, nil
}

// fromFile reads a private key. One with a passphrase is taken from the agent if that has it; otherwise a person is
// asked when, and only when, the machine accepts the key.
func (s SSH) fromFile(path string, fromAgent []ssh.Signer) (ssh.Signer, error) {
	text, err := readKeyFile(path)
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	signer, err := ssh.ParsePrivateKey(text)
	var locked *ssh.PassphraseMissingError
	if !errors.As(err, &locked) {
		if err != nil {
			return nil, fmt.Errorf("key file %s: %w", path, err)
		}
		return signer, nil
	}
	public := locked.PublicKey
	if public == nil {
		if public, err = publicOf(path); err != nil {
			return nil, err
		}
	}
	for _, a := range fromAgent {
		if bytes.Equal(a.PublicKey().Marshal(), public.Marshal()) {
			return a, nil
		}
	}
	return &lockedKey{public, path, text, s.Ask}, nil
}

func readKeyFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAtMost(f, path, maxKeyFile)
}

// publicOf reads the .pub file beside a private key whose own format hides the public half.
func publicOf(path string) (ssh.PublicKey, error) {
	text, err := readKeyFile(path + ".pub")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("key file %s has a passphrase and an old format: put its public half beside it as %s.pub", path, filepath.Base(path))
	}
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	public, _, _, _, err := ssh.ParseAuthorizedKey(text)
	if err != nil {
		return nil, fmt.Errorf("key file %s.pub: %w", path, err)
	}
	return public, nil
}

// lockedKey is a private key whose passphrase is asked for at the first signature.
type lockedKey struct {
	public ssh.PublicKey
	path   string
	text   []byte
	ask    func(prompt string) (string, error)
}

func (k *lockedKey) PublicKey() ssh.PublicKey { return k.public }

func (k *lockedKey) Sign(rand io.Reader, data []byte) (*ssh.Signature, error) {
	return k.SignWithAlgorithm(rand, data, "")
}

func (k *lockedKey) SignWithAlgorithm(rand io.Reader, data []byte, algorithm string) (*ssh.Signature, error) {
	if k.ask == nil {
		return nil, fmt.Errorf("key file %s has a passphrase, and nobody is there to ask: give the key to ssh-agent with ssh-add", k.path)
	}
	passphrase, err := k.ask(fmt.Sprintf("passphrase of %s: ", k.path))
	if err != nil {
		return nil, err
	}
	signer, err := ssh.ParsePrivateKeyWithPassphrase(k.text, []byte(passphrase))
	if err != nil {
		return nil, fmt.Errorf("key file %s: %w", k.path, err)
	}
	full, ok := signer.(ssh.AlgorithmSigner)
	if !ok {
		return nil, fmt.Errorf("key file %s: a key of this kind cannot sign", k.path)
	}
	return full.SignWithAlgorithm(rand, data, algorithm)
}
