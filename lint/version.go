package lint

import (
	"regexp"
	"strings"

	"bmsota/protocol"
)

var (
	cmakeSet     = regexp.MustCompile(`(?i)\bset\s*\(\s*PROJECT_VER\s+"?([^"\s)]*)"?`)
	cmakeProject = regexp.MustCompile(`(?i)\bproject\s*\(\s*[^\s)]+(?:\s+VERSION\s+"?([^"\s)]*)"?)?`)
	cmakeRemark  = regexp.MustCompile(`(?m)#.*$`)
)

// checkVersion wants a version that orders. The order in which ESP-IDF looks for one: sdkconfig, PROJECT_VER as it stands
// when project() is called, version.txt, project(… VERSION …), git describe, "1".
func (p *project) checkVersion() {
	f := p.files["CMakeLists.txt"]
	if f == nil || p.files["platformio.ini"] != nil {
		return
	}
	// The remarks become blanks: places in the text stay what they are.
	text := cmakeRemark.ReplaceAllStringFunc(f.text, func(s string) string { return strings.Repeat(" ", len(s)) })
	call := cmakeProject.FindStringSubmatchIndex(text)
	if call == nil {
		return
	}
	if p.setting("CONFIG_APP_PROJECT_VER_FROM_CONFIG").on() {
		s := p.setting("CONFIG_APP_PROJECT_VER")
		if s.file != nil {
			p.checkForm(s.file, s.line, s.value, `CONFIG_APP_PROJECT_VER="1.0.0"`)
		}
		return
	}
	const change = `set(PROJECT_VER "1.0.0")`
	set := cmakeSet.FindStringSubmatchIndex(text)
	if set != nil && set[0] < call[0] {
		p.checkForm(f, f.lineAt(set[0]), text[set[2]:set[3]], change)
		return
	}
	if strings.Contains(text[:call[0]], "PROJECT_VER") {
		return // computed; the build knows
	}
	if v := p.files["version.txt"]; v != nil {
		first, _, _ := strings.Cut(v.text, "\n")
		p.checkForm(v, 1, strings.TrimSpace(first), "1.0.0")
		return
	}
	line := f.lineAt(call[0])
	if call[2] >= 0 {
		p.checkForm(f, line, text[call[2]:call[3]], change)
		return
	}
	found := f.quote(line) + " without a version before it"
	if set != nil {
		found = f.quote(f.lineAt(set[0])) + " stands behind project(), where nobody reads it"
		line = f.lineAt(set[0])
	}
	p.add(Finding{"no-version", Warning, f.path, line, found, change + " (before project())",
		"ESP-IDF then takes git describe, or \"1\": v1.2.0-3-g1a2b3c4 counts as older than 1.2.0, and boards refuse it as a downgrade."})
}

// checkForm wants SemVer, without which nobody knows which of two releases is newer.
func (p *project) checkForm(f *file, line int, version, change string) {
	if _, ok := protocol.ParseVersion(version); ok || strings.Contains(version, "$") {
		return
	}
	p.addAt(Warning, "version-form", f, line, change, "It is no SemVer 2.0.0 (MAJOR.MINOR.PATCH): publish refuses it, and boards cannot tell which of two releases is newer.")
}
