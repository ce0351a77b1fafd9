package device

import (
	"bytes"
	"crypto/ecdsa"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/device/internal/agent"
	"bmsota/manifest"
	"bmsota/protocol"
)

// Three lists say what an update has to withstand: that of The Update Framework (its page on security), that of Uptane
// (§4.3 of its standard) and that of SUIT (RFC 9124 §4.2). Each threat on them has one test here that is named for it, or a
// line in undefended, which SECURITY.md repeats.
//
// A test plays the attack against a whole board. What answers the board in it is the attacker: unless a test says
// otherwise he is past TLS, as somebody with the server's key is, and where he gives orders he has the broker, too. The
// board must end as the test says, with that reason, go on with the image it had and take the next good release.
// Then the same attack meets a board with the one defence switched off: it must end otherwise, as the test says, or the
// test would prove nothing.

// threats are the lists; the names are what the tests are called.
var threats = []struct {
	list  string
	names []string
}{
	{"TUF", []string{"ArbitrarySoftware", "EndlessData", "ExtraneousDependencies", "FastForward", "IndefiniteFreeze", "MaliciousMirrors",
		"MixAndMatch", "Rollback", "SlowRetrieval", "KeyCompromise", "WrongSoftware"}},
	{"Uptane", []string{"Eavesdrop", "DropRequest", "SlowRetrieval", "Freeze", "PartialBundle", "Rollback", "EndlessData", "MixedBundles",
		"MixAndMatch", "ArbitrarySoftware"}},
	{"SUIT", []string{"ImgExpired", "ImgExpiredOffline", "ImgIncompatible", "ImgFormat", "ImgLocation", "NetRedirect", "NetOnPath", "ImgReplace",
		"ImgNonAuth", "UpdWrongPrecursor", "UpdUnapproved", "ImgDisclosure", "MfstOverride", "MfstExposure", "ImgExtra", "KeyExposure",
		"MfstModification", "MfstTOCTOU"}},
}

// undefended are the threats without a test, with the reason. SECURITY.md has each of these lines.
var undefended = map[string]string{
	"SUIT ImgDisclosure":         "not defended: images are not encrypted, and whoever reaches the server can fetch them",
	"SUIT MfstModification":      "not defended: whoever rules the machine that signs decides what is signed",
	"SUIT MfstExposure":          "does not apply: a manifest says nothing of the image that the image does not say, and images are no secret here",
	"TUF ExtraneousDependencies": "does not apply: a release is one image and depends on nothing",
	"Uptane PartialBundle":       "does not apply: a board has one image, and a part of it is not installed (SUIT MfstTOCTOU, TestDownloadSurvivesACutAtEverySector)",
	"Uptane MixedBundles":        "does not apply: a board has one image, and one made of two is not installed (Uptane MixAndMatch)",
}

func TestEveryThreatHasItsTestOrItsReason(t *testing.T) {
	files, err := filepath.Glob("threats_*test.go")
	if err != nil {
		t.Fatal(err)
	}
	var source []byte
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		source = append(source, text...)
	}
	page, err := os.ReadFile("../SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	tests, lines, known := 0, 0, make(map[string]bool)
	for _, l := range threats {
		for _, name := range l.names {
			title, test := l.list+" "+name, "TestThreat"+l.list+name
			known[title] = true
			tested := bytes.Contains(source, []byte("func "+test+"(t *testing.T)"))
			reason, excused := undefended[title]
			line := fmt.Sprintf("* %s %s\n", title, reason)
			switch {
			case tested == excused:
				t.Errorf("%s: has a test: %v, has a reason to have none: %v", title, tested, excused)
			case tested:
				tests++
				if !bytes.Contains(page, []byte(test)) {
					t.Errorf("SECURITY.md does not name %s", test)
				}
			case !bytes.Contains(page, []byte(line)):
				t.Errorf("SECURITY.md lacks the line\n%s", line)
			default:
				lines++
				t.Log(title, reason)
			}
		}
	}
	for title := range undefended {
		if !known[title] {
			t.Errorf("%s is on no list", title)
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^\* ((?:TUF|Uptane|SUIT) \w+) (?:not defended|does not apply)`).FindAllSubmatch(page, -1) {
		if _, ok := undefended[string(m[1])]; !ok {
			t.Errorf("SECURITY.md excuses %s", m[1])
		}
	}
	t.Logf("%d threats are tested, %d have a reason", tests, lines)
}

// attack is one attack on one board that runs 1.0.0.
type attack struct {
	key      *ecdsa.PrivateKey // signs what comes from the project
	second   *ecdsa.PrivateKey // signs it as well, where there is one
	online   *ecdsa.PrivateKey // the server's, where the board knows one
	running  []byte            // nil: the image 1.0.0
	settings string            // empty: trusts key
	server   *server           // the attacker's
	order    string            // empty: update
	wait     time.Duration     // after the order; 0: five minutes
	config   func(*Config)
	during   func(*bench) // instead of order and wait
	// tell says what else counts; ops are the flash operations since the attack began.
	tell   func(b *bench, ops int) string
	after  func(*bench)      // ends the attack, where giving the server back does not
	next   []byte            // the project's next release; nil: an image 7.0.0
	close  func()            // stops what the attack started
	images map[string][]byte // by what the result calls them
}

// threat is an attack and how it ends.
type threat struct {
	attack func(*testing.T) attack // made anew for each board
	want   string
	mutant agent.Mutant
	bites  string // how it ends without the defence
}

func (th threat) test(t *testing.T) {
	t.Helper()
	if th.want == th.bites {
		t.Fatal("the attack ends alike with and without the defence: it proves nothing")
	}
	synctest.Test(t, func(t *testing.T) {
		if got := th.attack(t).play(t, agent.MutantNone); got != th.want {
			t.Errorf("ends as %q, want %q", got, th.want)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		if got := th.attack(t).play(t, th.mutant); got != th.bites {
			t.Errorf("with the defence switched off (%s) it ends as %q, want %q", th.mutant, got, th.bites)
		}
	})
}

// play runs the attack, and on a board with its defences the release that comes after it.
func (at attack) play(t *testing.T, mutant agent.Mutant) (result string) {
	t.Helper()
	running, settings := at.running, at.settings
	if running == nil {
		running = image(t, "1.0.0")
	}
	if settings == "" {
		settings = trusting(t, at.key)
	}
	if at.online != nil {
		settings += knowing(t, at.online)
	}
	b := newBench(t, layout(running, settings), at.server, func(c *Config) {
		c.mutant = mutant
		if at.config != nil {
			at.config(c)
		}
	})
	b.on()
	b.settle(5 * time.Second)
	before := b.flash().Ops()
	switch {
	case at.during != nil:
		at.during(b)
	default:
		order := at.order
		if order == "" {
			order = update
		}
		b.hub.order(order)
		wait := at.wait
		if wait == 0 {
			wait = 5 * time.Minute
		}
		b.settle(wait)
	}
	last := b.hub.last()
	result = fmt.Sprintf("%s:%s", last.Phase, last.Reason)
	for name, img := range at.images {
		if last.ImageSHA256 == sha(img) {
			result = "runs " + name
		}
	}
	if at.tell != nil {
		result += ", " + at.tell(b, b.flash().Ops()-before)
	}
	if mutant == agent.MutantNone {
		at.goesOn(b, result)
	}
	if err := b.off(); err != nil {
		t.Error(err)
	}
	if at.close != nil {
		at.close()
		synctest.Wait()
	}
	return result
}

// goesOn demands that the board was not touched by an attack that failed, and takes the next release of the project.
func (at attack) goesOn(b *bench, result string) {
	b.t.Helper()
	if last := b.hub.last(); !strings.HasPrefix(result, "runs") {
		if last.ImageSHA256 != sha(b.layout.Image) || last.RollbackPending {
			b.t.Errorf("the board runs %s after the attack: %s", last.CurrentVersion, b.hub.phases())
		}
		if last.Phase == protocol.PhaseRefused && len(b.boots) > 1 {
			b.t.Errorf("refused, and yet restarted: %v", b.boots)
		}
	}
	next := at.next
	if next == nil {
		next = image(b.t, "7.0.0")
	}
	if at.after != nil {
		at.after(b)
	}
	f := release(b.t, next, at.key)
	if at.second != nil {
		var err error
		if f.Cosignatures, err = manifest.Cosign(f.Manifest, "", at.second); err != nil {
			b.t.Fatal(err)
		}
	}
	honest := serve(b.t, f, next)
	b.server.set(func(s *server) {
		s.version, s.static, s.files = honest.version, nil, honest.files
		s.respond, s.cut, s.down, s.answer = nil, 0, false, nil
		if at.online != nil {
			s.answer = answers(b.t, f, at.online)
		}
	})
	b.hub.order(`{"action":"update","version":"7.0.0","force":true}`)
	b.settle(10 * time.Minute)
	if b.hub.last().ImageSHA256 != sha(next) {
		b.t.Errorf("the release after the attack is not installed: %s", b.hub.phases())
	}
}

// TestABoardWithAKeyInstallsNothingUnsigned, whatever TLS says of the server, whoever gives the order and however.
func TestABoardWithAKeyInstallsNothingUnsigned(t *testing.T) {
	key, stranger := newKey(t), newKey(t)
	next, running := image(t, "1.1.0"), image(t, "1.0.0")
	forced := func(f protocol.VersionFile) protocol.VersionFile { f.ForceUpdate = true; return f }
	cut := func(f protocol.VersionFile) (facts, signature string) {
		i := strings.LastIndexByte(f.Manifest, '.')
		return f.Manifest[:i], f.Manifest[i:]
	}
	elsewhere := forced(release(t, next, stranger))
	facts, _ := cut(elsewhere)
	_, signature := cut(release(t, image(t, "1.2.0"), key))
	elsewhere.Manifest = facts + signature
	spoilt := forced(release(t, next, key))
	facts, signature = cut(spoilt)
	spoilt.Manifest = facts + signature[:40] + strings.Repeat("A", len(signature)-40)
	for name, f := range map[string]protocol.VersionFile{
		"unsigned": forced(release(t, next, nil)), "by a stranger": forced(release(t, next, stranger)),
		"spoilt": spoilt, "with the signature of another release": elsewhere,
	} {
		for _, way := range []string{
			"", // the server proves itself
			`,"skip_cert_verification":true`,
			`,"skip_cert_verification":true,"server_url":"http://fw.example/firmware/firmware.bin"`,
			`,"mirror_url":"http://mirror.example/firmware.bin"`,
		} {
			for _, order := range []string{update, `{"action":"update","force":true}`, `{"action":"check"}`, `{"action":"update","force":true,"version":"1.1.0"}`} {
				synctest.Test(t, func(t *testing.T) {
					s := serve(t, f, next)
					s.static = s.version
					l := layout(running, "")
					text := strings.Replace(string(l.OTAConfig), "}", trusting(t, key)+way+"}", 1)
					if strings.Contains(way, "server_url") {
						text = strings.Replace(text, `"server_url":"https://fw.example/firmware/firmware.bin",`, "", 1)
					}
					l.OTAConfig = []byte(text)
					b := newBench(t, l, s, func(c *Config) {
						if strings.Contains(way, "mirror") {
							c.Transport = deadAuthority{s}
						}
					})
					b.on()
					b.settle(5 * time.Second)
					before := b.flash().Ops()
					b.hub.order(order)
					b.settle(40 * time.Minute)
					b.off()
					last := b.hub.last()
					want := protocol.ReasonBadSignature
					switch {
					case strings.Contains(way, "mirror"):
						want = protocol.ReasonTLS
					case name == "unsigned":
						want = protocol.ReasonUnsigned
					}
					if last.ImageSHA256 != sha(running) || last.Reason != want || b.flash().Ops() != before {
						t.Errorf("%s, %q, %s: ends as %s:%s with %s, %d flash operations", name, way, order, last.Phase, last.Reason, last.CurrentVersion, b.flash().Ops()-before)
					}
				})
			}
		}
	}
}
