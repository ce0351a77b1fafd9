package lint

import (
	"fmt"
	"slices"
	"strings"
)

// maxPlaces is how many places one rule finds in the sources at most.
const maxPlaces = 50

// sourceView is what the sources say together: a macro is in one file and its use in another.
type sourceView struct {
	defines map[string]define // macros that stand for a string
	ids     []clientID
	clients []place // where an MQTT client is made
	resumes []place // where the resume of esp_https_ota is switched on
	early   []call  // calls that would be too early for a mark
	marking map[string]bool
}

type place struct {
	file *file
	line int
}

func (p place) String() string { return fmt.Sprintf("%s:%d", p.file.path, p.line) }

// clientID is a place where an MQTT client gets its id: a string, or a macro.
type clientID struct {
	place
	value word
}

func (p *project) view() *sourceView {
	if p.seen == nil {
		v := &sourceView{defines: make(map[string]define), marking: map[string]bool{markValid: true}}
		for _, f := range p.sources {
			w := f.words(func(macro, value string, line int) { v.defines[macro] = define{value, f, line} })
			v.clientIDs(f, w)
			v.calls(f, w)
			v.functions(f, w)
		}
		p.seen = v
	}
	return p.seen
}

// checkSources looks at what firmware does with its broker and with its own trial.
func (p *project) checkSources() {
	v := p.view()
	for _, id := range v.ids {
		p.checkClientID(v, id)
	}
	if len(v.clients) > 1 {
		var all []string
		for _, c := range v.clients[:min(len(v.clients), 5)] {
			all = append(all, c.String())
		}
		p.add(Finding{"mqtt-clients", Warning, v.clients[1].file.path, v.clients[1].line, fmt.Sprintf("%d MQTT clients: %s", len(v.clients), strings.Join(all, ", ")),
			"one esp_mqtt_client_init(), whose client every part publishes through",
			"Each client takes a task, a socket and, with TLS, some 40 KB of heap; beside them the TLS session of a download finds no block that is large enough, and updates fail with -0x7F00."})
	}
	p.checkEarly(v)
}

func (p *project) checkClientID(v *sourceView, id clientID) {
	found := id.file.quote(id.line)
	if id.value.kind != text {
		d, ok := v.defines[id.value.text]
		if !ok || d.value == "" {
			return
		}
		found += fmt.Sprintf(" (%q, %s:%d)", clip(d.value), d.file.path, d.line)
	}
	p.add(Finding{"fixed-client-id", Danger, id.file.path, id.line, found,
		`snprintf(id, sizeof id, "bms-%02x%02x%02x", mac[3], mac[4], mac[5]);  // after esp_read_mac(mac, ESP_MAC_WIFI_STA), and client_id = id`,
		"A broker ends the session of the client that had the id before: two monitors throw each other off without end, and neither hears a command."})
}

// resumption says whether a source switches on the resume of esp_https_ota, and where.
func (p *project) resumption() (where string, used bool) {
	v := p.view()
	if len(v.resumes) == 0 {
		return "", false
	}
	return v.resumes[0].String(), true
}

// clientIDs finds client_id = "x", client_id = MACRO and strcpy(….client_id, "x").
func (v *sourceView) clientIDs(f *file, w []word) {
	fixed := func(at, value word, after word) {
		ends := after.is(",") || after.is(";") || after.is("}") || after.is(")")
		if ends && len(v.ids) < maxPlaces && (value.kind == text && value.text != "" || value.kind == name) {
			v.ids = append(v.ids, clientID{place{f, at.line}, value})
		}
	}
	for i := 0; i+3 < len(w); i++ {
		if w[i].is("client_id") && w[i+1].is("=") {
			fixed(w[i], w[i+2], w[i+3])
		}
		if w[i].is("client_id") && w[i+1].is(",") && copies(w[:i]) {
			fixed(w[i], w[i+2], w[i+3])
		}
	}
}

// copies says whether the words end in the first argument of a call that copies a string.
func copies(before []word) bool {
	for i := len(before) - 1; i >= 0 && i > len(before)-8; i-- {
		if before[i].is("(") {
			return i > 0 && slices.Contains([]string{"strcpy", "strncpy", "strlcpy"}, before[i-1].text)
		}
	}
	return false
}

// calls finds MQTT clients that are made and the switch for the resume.
func (v *sourceView) calls(f *file, w []word) {
	for i := 0; i+2 < len(w); i++ {
		switch {
		case w[i].is("esp_mqtt_client_init") && w[i+1].is("("):
			// A name before it makes it a declaration.
			if i == 0 || w[i-1].kind == symbol && !w[i-1].is("*") || w[i-1].is("return") {
				v.clients = append(v.clients, place{f, w[i].line})
			}
		case w[i].is("ota_resumption") && w[i+1].is("=") && (w[i+2].is("true") || w[i+2].is("1")):
			v.resumes = append(v.resumes, place{f, w[i].line})
		}
	}
}
