package lint

import (
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"strconv"
	"strings"

	"bmsota/esp/idfproject"
)

// version of ESP-IDF, its first three numbers.
type idfVersion struct{ major, minor, patch int }

var numbers = regexp.MustCompile(`^v?(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?`)

func parseIDF(text string) (v idfVersion, ok bool) {
	m := numbers.FindStringSubmatch(strings.Trim(text, `"' `))
	if m == nil {
		return v, false
	}
	// The expression lets through numbers of four digits only; a missing one is zero.
	v.major, _ = strconv.Atoi(m[1])
	v.minor, _ = strconv.Atoi(m[2])
	v.patch, _ = strconv.Atoi(m[3])
	return v, true
}

// resumesBlindly says whether esp_https_ota can resume a download without looking whether the server does: from 5.5, which
// brought ota_resumption, to 5.5.3. 5.5.4 and 6.0 look for the answer 206 (espressif/esp-idf, pull request 17960).
func (v idfVersion) resumesBlindly() bool { return v.major == 5 && v.minor == 5 && v.patch < 4 }

// pinned is a version of ESP-IDF and the place that says so.
type pinned struct {
	version idfVersion
	file    string
	line    int
	found   string
}

// checkIDF looks for the versions whose resume corrupts images.
func (p *project) checkIDF() {
	for _, at := range p.idfVersions() {
		if !at.version.resumesBlindly() {
			continue
		}
		change := `idf: ">=5.5.4" (in main/idf_component.yml; then build with that ESP-IDF)`
		if path.Ext(at.file) == ".yml" {
			change = `idf: ">=5.5.4"`
		}
		f := Finding{"idf-resume", Warning, at.file, at.line, at.found, change,
			"esp_https_ota of 5.5.0 to 5.5.3 resumes without looking whether the server does: one that ignores Range (python3 -m http.server does) sends the whole image again, which is appended. Do not switch ota_resumption on."}
		if where, used := p.resumption(); used {
			f.Severity = Danger
			f.Found += "; " + where + " switches the resume on"
			f.Why = "esp_https_ota of this version resumes without looking whether the server does: after a broken line, one that ignores Range (python3 -m http.server does) has the image appended to its own half, and every try starts from there."
		}
		p.add(f)
		return
	}
}

// idfVersions are what the project says about its ESP-IDF, the nearest to the last build first.
func (p *project) idfVersions() []pinned {
	var list []pinned
	add := func(file string, line int, found, text string) {
		if v, ok := parseIDF(text); ok {
			list = append(list, pinned{v, file, line, clip(found)})
		}
	}
	if text, err := p.text("build/project_description.json", idfproject.MaxDescription); err == nil {
		var d struct {
			GitRevision string `json:"git_revision"`
		}
		if json.Unmarshal([]byte(text), &d) == nil {
			add("build/project_description.json", 0, fmt.Sprintf("built with ESP-IDF %s", d.GitRevision), d.GitRevision)
		}
	}
	if f := p.files["sdkconfig"]; f != nil {
		// Kconfig's head: "# Espressif IoT Development Framework (ESP-IDF) 5.5.0 Project Configuration"
		const head = "(ESP-IDF) "
		if line := f.line(func(l string) bool { return strings.HasPrefix(l, "#") && strings.Contains(l, head) }); line > 0 {
			_, text, _ := strings.Cut(f.quote(line), head)
			add(f.path, line, f.quote(line), text)
		}
	}
	if f := p.files["dependencies.lock"]; f != nil {
		line, text := f.dependency("idf", "version")
		add(f.path, line, f.quote(line), text)
	}
	for _, f := range p.ordered() {
		if path.Base(f.path) == "idf_component.yml" {
			line, text := f.dependency("idf", "version")
			// A range is a wish, only one version is a fact.
			if exact := strings.TrimPrefix(text, "=="); !strings.ContainsAny(exact, "<>^~*,!") {
				add(f.path, line, f.quote(line), exact)
			}
		}
	}
	return list
}

// dependency finds the key of a component in a YAML file of the component manager, by its indentation: "idf:" with the key
// in deeper lines below it, or with the version behind it. That is how the component manager writes it, and what people
// write differently is not found.
func (f *file) dependency(component, key string) (line int, value string) {
	n, inside := 0, -1
	for l := range strings.Lines(f.text) {
		n++
		text := strings.TrimSpace(l)
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		indent := len(l) - len(strings.TrimLeft(l, " "))
		name, rest, _ := strings.Cut(text, ":")
		rest, _, _ = strings.Cut(rest, " #")
		rest = strings.Trim(strings.TrimSpace(rest), `"'`)
		switch {
		case inside >= 0 && indent > inside:
			if name == key && rest != "" {
				return n, rest
			}
		case name == component && indent > 0:
			if rest != "" {
				return n, rest
			}
			inside = indent
		default:
			inside = -1
		}
	}
	return 0, ""
}
