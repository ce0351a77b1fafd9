// Package lint reads a firmware project and names what will hurt once its boards are in the field: what loses a board, what
// lets a stranger install firmware, and what makes updates fail for no visible reason.
//
// It promises to say where (file and line), what stands there, and the line to put instead; that a rule which finds what it
// is about in good order says nothing; and that a project of which not everything could be read says so. Rules read
// configuration, tables and settings exactly. The ones about C and C++ sources look at words without compiling them:
// what they say is likely, and the one that guesses says that it guesses.
//
// The input is hostile: the number of files and their sizes are capped, and nothing outside the project's folder is opened,
// whatever links say, but for the index and the .gitignore files of the repository that it is part of. Nothing is run and
// nothing is written.
//
// The facts are ESP-IDF v5.5's: components/bootloader/Kconfig.app_rollback, components/esp_https_ota/Kconfig,
// components/esp-tls/Kconfig, components/partition_table, and the "App version" chapter of the build system's guide.
package lint

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"syscall"
)

// Severity says how much a finding hurts.
type Severity string

// The severities.
const (
	Danger  Severity = "danger"  // loses boards, or gives them to a stranger
	Warning Severity = "warning" // updates that fail, or a protection that is missing
	Note    Severity = "note"    // good to know
)

func (s Severity) rank() int {
	return slices.Index([]Severity{Danger, Warning, Note}, s)
}

// Finding is one thing that will hurt.
type Finding struct {
	Rule     string   `json:"rule"`
	Severity Severity `json:"severity"`
	File     string   `json:"file"`   // below the project's folder, with slashes
	Line     int      `json:"line"`   // from 1; 0 where it is about what is missing, or the file as a whole
	Found    string   `json:"found"`  // what stands there
	Change   string   `json:"change"` // the line to put instead
	Why      string   `json:"why"`
}

// ErrNoProject is wrapped by Check for a folder that holds no firmware project.
var ErrNoProject = errors.New("no firmware project")

// Check reads the project in dir and gives what its rules find, the most dangerous first, then by place. An empty list
// is a clean project. The error is about dir itself.
func Check(dir string) ([]Finding, error) {
	// Opening a pipe would wait for a writer.
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		err = &fs.PathError{Op: "open", Path: dir, Err: syscall.ENOTDIR}
	}
	if err != nil {
		return nil, fmt.Errorf("read project: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("read project: %w", err)
	}
	defer root.Close()
	p, err := read(root)
	if err != nil {
		return nil, fmt.Errorf("read project: %w", err)
	}
	if p.repo, err = findRepository(dir); err != nil {
		return nil, fmt.Errorf("read project: find its repository: %w", err)
	}
	defer p.repo.root.Close()
	for _, rule := range []func(*project){
		(*project).checkRollback, (*project).checkSwitches, (*project).checkFirstKey, (*project).checkSignedApps, (*project).checkTable,
		(*project).checkDeviceFiles, (*project).checkSecrets, (*project).checkDeployment, (*project).checkIDF, (*project).checkVersion, (*project).checkSources,
	} {
		rule(p)
	}
	slices.SortStableFunc(p.findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Severity.rank(), b.Severity.rank()), cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Rule, b.Rule))
	})
	return p.findings, nil
}
