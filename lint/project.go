package lint

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"bmsota/esp/idfproject"
)

// What is read of a project at most.
const (
	maxEntries = 20_000   // files and folders looked at
	maxFile    = 1 << 20  // bytes of one file, but for those that are known to be longer
	maxTotal   = 64 << 20 // bytes of all files
	maxDepth   = 32       // of folders
	maxQuote   = 160      // bytes of a line that a finding quotes
)

// file is a text file of the project.
type file struct {
	path string // below the project's folder, with slashes
	text string
}

// line gives the number of the last line that match takes, 0 for none.
func (f *file) line(match func(string) bool) int {
	n, found := 0, 0
	for l := range strings.Lines(f.text) {
		if n++; match(l) {
			found = n
		}
	}
	return found
}

// lineAt gives the number of the line that an offset of the text is in.
func (f *file) lineAt(offset int) int { return 1 + strings.Count(f.text[:offset], "\n") }

// quote gives a line without its blanks and not longer than a sentence bears.
func (f *file) quote(number int) string {
	n := 0
	for l := range strings.Lines(f.text) {
		if n++; n == number {
			return clip(strings.TrimSpace(l))
		}
	}
	return ""
}

func clip(s string) string {
	if len(s) > maxQuote {
		return strings.ToValidUTF8(s[:maxQuote], "") + "…"
	}
	return s
}

// project is what was read.
type project struct {
	root     *os.Root
	repo     *repository
	files    map[string]*file // by path
	sources  []*file          // C and C++, by path, without tests
	entries  int
	total    int64
	config   config      // of sdkconfig; nil without one
	defaults config      // of sdkconfig.defaults and its like for the target; nil without one
	seen     *sourceView // of the sources, once it was asked for
	findings []Finding
}

func (p *project) add(f Finding) { p.findings = append(p.findings, f) }

// addAt adds a finding about a line of a file, which it quotes.
func (p *project) addAt(severity Severity, rule string, f *file, line int, change, why string) {
	p.add(Finding{rule, severity, f.path, line, f.quote(line), change, why})
}

// notRead says that the rules did not see everything.
func (p *project) notRead(name, why string) {
	f := Finding{"not-read", Note, name, 0, why, "", "What is not read is not checked."}
	if !slices.Contains(p.findings, f) { // two rules may stumble over one file
		p.add(f)
	}
}

func read(root *os.Root) (*project, error) {
	p := &project{root: root, files: make(map[string]*file)}
	if err := p.walk(".", 0, false); err != nil {
		return nil, err
	}
	slices.SortFunc(p.sources, func(a, b *file) int { return cmp.Compare(a.path, b.path) })
	marks := []string{"CMakeLists.txt", "sdkconfig", defaultsFile, "partitions.csv", "platformio.ini"}
	if !slices.ContainsFunc(marks, func(name string) bool { return p.files[name] != nil }) {
		return nil, fmt.Errorf("%w: none of %s is in it", ErrNoProject, strings.Join(marks, ", "))
	}
	p.config = p.parse("sdkconfig")
	p.defaults = p.parse(defaultsFile)
	target := cmp.Or(p.config["CONFIG_IDF_TARGET"].value, p.defaults["CONFIG_IDF_TARGET"].value, "esp32")
	for name, s := range p.parse(defaultsFile + "." + target) {
		if p.defaults == nil {
			p.defaults = make(config)
		}
		p.defaults[name] = s
	}
	return p, nil
}

// walk reads the files of a folder that rules are about. Only trouble with the project's own folder is an error.
func (p *project) walk(dir string, depth int, tests bool) error {
	f, err := p.root.Open(dir)
	if err != nil {
		if dir == "." {
			return err
		}
		p.notRead(dir, "the folder cannot be read")
		return nil
	}
	defer f.Close()
	for {
		entries, err := f.ReadDir(256)
		for _, e := range entries {
			if p.entries++; p.entries > maxEntries {
				if p.entries == maxEntries+1 {
					p.notRead(dir, fmt.Sprintf("more than %d files and folders", maxEntries))
				}
				return nil
			}
			p.visit(path.Join(dir, e.Name()), e, depth, tests)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			p.notRead(dir, "the folder cannot be read to its end")
			return nil
		}
	}
}

func (p *project) visit(name string, e fs.DirEntry, depth int, tests bool) {
	if !e.IsDir() {
		if interesting(name, tests) {
			p.load(name)
		}
		return
	}
	switch base := e.Name(); {
	case base == "build", base == "managed_components", base == "node_modules", strings.HasPrefix(base, "."):
		return
	case p.isThere(path.Join(name, "CMakeCache.txt")):
		return // a build folder of another name
	case depth == maxDepth:
		p.notRead(name, "folders too deep in each other")
	default:
		// What tests say to a broker harms nobody.
		_ = p.walk(name, depth+1, tests || strings.HasPrefix(base, "test") || base == "host_test" || base == "hosttest")
	}
}

func (p *project) isThere(name string) bool {
	_, err := p.root.Stat(name)
	return err == nil
}

// interesting says whether a rule looks at a file.
func interesting(name string, tests bool) bool {
	base := path.Base(name)
	switch base {
	case "CMakeLists.txt", "version.txt", "dependencies.lock", "platformio.ini", "sdkconfig":
		return base == name // of the project's own folder
	case "ota_config.txt", "mqtt_config.txt", deployConfig, "idf_component.yml":
		return true
	}
	return slices.Contains([]string{".csv", ".pem", ".key"}, path.Ext(base)) && !(tests && path.Ext(base) != ".csv") || strings.HasPrefix(name, defaultsFile) || isSource(base) && !tests
}

func isSource(name string) bool {
	return slices.Contains([]string{".c", ".cc", ".cpp", ".cxx", ".h", ".hh", ".hpp", ".ino"}, path.Ext(name))
}

// load reads a file, and says where it cannot.
func (p *project) load(name string) {
	limit := int64(maxFile)
	if name == "sdkconfig" {
		limit = idfproject.MaxSDKConfig
	}
	text, err := p.text(name, limit)
	if err != nil {
		p.notRead(name, err.Error())
		return
	}
	f := &file{name, text}
	p.files[name] = f
	if isSource(name) {
		p.sources = append(p.sources, f)
	}
}

// text reads a plain file inside the project.
func (p *project) text(name string, limit int64) (string, error) {
	return p.textIn(p.root, name, limit)
}

// textIn reads a plain file; a link that leads out of the folder is refused by the root.
func (p *project) textIn(root *os.Root, name string, limit int64) (string, error) {
	info, err := root.Stat(name)
	switch {
	case err != nil:
		return "", errors.New("it cannot be read, or is a link that leads out of the project")
	case !info.Mode().IsRegular():
		return "", errors.New("it is no plain file")
	case info.Size() > limit:
		return "", fmt.Errorf("it has %d bytes, at most %d are read", info.Size(), limit)
	case p.total+info.Size() > maxTotal:
		return "", fmt.Errorf("the project has more than %d bytes of text", maxTotal)
	}
	f, err := root.Open(name)
	if err != nil {
		return "", errors.New("it cannot be read")
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit))
	if err != nil {
		return "", errors.New("it cannot be read")
	}
	p.total += int64(len(b))
	return string(b), nil
}
