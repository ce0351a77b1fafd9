package hosttest_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"bmsota/esp/appimage"
	"bmsota/manifest"
	"bmsota/protocol"
)

// goAnswers are Go's answers to the questions of vectors.c, in the same words.
var goAnswers = map[string]func(t testing.TB, a []string) string{
	"version":      answerVersion,
	"command":      answerCommand,
	"expired":      answerExpired,
	"same":         answerSame,
	"version_file": answerVersionFile,
	"ota_config":   answerOTAConfig,
	"mqtt_config":  answerMQTTConfig,
	"keys":         answerKeys,
	"builtin":      answerBuiltin,
	"cosigned":     answerCosigned,
	"manifest":     answerManifest,
	"offer":        answerOffer,
	"status":       answerStatus,
	"refuse":       answerRefuse,
	"gate":         answerGate,
	"on_the_way":   answerOnTheWay,
	"name":         answerName,
	"mac":          answerMAC,
	"digest":       answerDigest,
}

func askGo(t testing.TB, kind string, args ...string) string {
	t.Helper()
	answer, ok := goAnswers[kind]
	if !ok {
		t.Fatalf("no question %q", kind)
	}
	return answer(t, args)
}

// text writes a text as vectors.c does: printable ASCII as it is, everything else as hex.
func text(key, s string) string {
	var b strings.Builder
	fmt.Fprintf(&b, ` %s="`, key)
	for _, c := range []byte(s) {
		if c >= ' ' && c <= '~' && c != '"' && c != '\\' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, `\x%02x`, c)
		}
	}
	return b.String() + `"`
}

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}

func isProper(version string) bool {
	_, ok := protocol.ParseVersion(version)
	return ok
}

func answerVersion(_ testing.TB, a []string) string {
	x, y := a[0], a[1]
	return fmt.Sprintf("ok=%d,%d newer=%d older=%d same=%d generic=%d", bit(isProper(x)), bit(isProper(y)), bit(protocol.Newer(x, y)),
		bit(protocol.Older(x, y)), bit(protocol.SameVersion(x, y)), bit(protocol.GenericVersion(x)))
}

func refused(t testing.TB, err error) string {
	t.Helper()
	var r *protocol.Refusal
	if !errors.As(err, &r) {
		t.Fatalf("an error without a reason: %v", err)
	}
	return "refused " + string(r.Reason)
}

func answerCommand(t testing.TB, a []string) string {
	c, err := protocol.ParseCommand([]byte(a[0]))
	if err != nil {
		return refused(t, err)
	}
	expires := ""
	if !c.ExpiresAt.IsZero() {
		expires = fmt.Sprintf(" expires=%d+%d", c.ExpiresAt.Unix(), c.ExpiresAt.Nanosecond())
	}
	return fmt.Sprintf("%s force=%d%s%s%s", c.Action, bit(c.Force), text("id", c.ID), text("version", c.Version), expires)
}

func answerExpired(t testing.TB, a []string) string {
	c, err := protocol.ParseCommand([]byte(a[0]))
	if err != nil {
		return refused(t, err)
	}
	return strconv.Itoa(bit(c.Expired(time.UnixMicro(number(t, a[1])))))
}

func answerSame(t testing.TB, a []string) string {
	c, err := protocol.ParseCommand([]byte(a[0]))
	running, err2 := protocol.ParseCommand([]byte(a[1]))
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	return strconv.Itoa(bit(running.Same(c)))
}

func answerVersionFile(t testing.TB, a []string) string {
	f, err := protocol.ParseVersionFile([]byte(a[0]))
	if err != nil {
		return refused(t, err)
	}
	return fmt.Sprintf("force=%d size=%d secure=%d", bit(f.ForceUpdate), f.Size, f.SecureVersion) +
		text("version", f.Version) + text("build_date", f.BuildDate) + text("description", f.Description) +
		text("min_version", f.MinVersion) + text("project", f.Project) + text("chip", f.Chip) + text("sha256", f.SHA256) +
		text("url", f.URL) + text("manifest", f.Manifest) + text("cosignatures", f.Cosignatures) + text("offer", f.Offer)
}

func orZero(v *float64) float64 {
	if v == nil {
		return 0
	}
	return *v
}

func answerOTAConfig(_ testing.TB, a []string) string {
	c, err := protocol.ParseOTAConfig([]byte(a[0]))
	if err != nil {
		return "refused"
	}
	return fmt.Sprintf("skip=%d timeout=%d auto=%d own=%d deadline=%d frames=%d heap=%d not_charging=%d temps=%d,%d threshold=%d soc=%016x current=%016x cold=%016x hot=%016x",
		bit(c.SkipCertVerification), c.TimeoutMS, bit(c.AutoRollbackEnabled), bit(c.OwnTopicOnly), c.Health.DeadlineS,
		c.Health.BMSFrames, c.Health.MinHeap, bit(c.Gate.NotWhileCharging), bit(c.Gate.MinTempC != nil), bit(c.Gate.MaxTempC != nil), c.TrustedThreshold,
		math.Float64bits(c.Gate.MinSOCPct), math.Float64bits(c.Gate.MaxCurrentA), math.Float64bits(orZero(c.Gate.MinTempC)), math.Float64bits(orZero(c.Gate.MaxTempC))) +
		text("window", c.Gate.Window) + text("server_url", c.ServerURL) + text("cert_pem", c.CertPEM) +
		text("current_version", c.CurrentVersion) + text("device_id", c.DeviceID) + text("trusted_key_pem", c.TrustedKeyPEM) +
		text("server_key_pem", c.ServerKeyPEM) + text("mirror_url", c.MirrorURL) + text("topic_prefix", c.TopicPrefix)
}

func answerMQTTConfig(_ testing.TB, a []string) string {
	c, err := protocol.ParseMQTTConfig([]byte(a[0]))
	if err != nil {
		return "refused"
	}
	return fmt.Sprintf("port=%d qos=%d tls=%d", c.BrokerPort, c.QoS, bit(c.TLS)) + text("broker_host", c.BrokerHost) +
		text("username", c.Username) + text("password", c.Password) + text("ca_pem", c.CAPEM) +
		text("client_cert_pem", c.ClientCertPEM) + text("client_key_pem", c.ClientKeyPEM)
}

func answerKeys(_ testing.TB, a []string) string {
	if _, err := manifest.ParsePublicKeys([]byte(a[0])); err != nil {
		return "refused"
	}
	return "ok"
}

// builtinImage is an image whose block of keys is block, from its magic on.
func builtinImage(block string) ([]byte, *appimage.Image) {
	b, err := appimage.Build(appimage.BuildOptions{Extra: []byte(block)})
	if err != nil {
		panic(err)
	}
	img, err := appimage.Parse(b)
	if err != nil {
		panic(err)
	}
	return b, img
}

func answerBuiltin(_ testing.TB, a []string) string {
	if len(a[0]) != manifest.BuiltinSize {
		return "refused"
	}
	b, img := builtinImage(a[0])
	set, err := manifest.Builtin(bytes.NewReader(b), img)
	if err != nil {
		return "refused"
	}
	answer := fmt.Sprintf("set %d: %d of", set.Sequence, set.Threshold)
	for _, key := range set.Keys {
		point, err := key.Bytes()
		if err != nil {
			panic(err)
		}
		answer += " " + hex.EncodeToString(point[1:])
	}
	return answer
}

func answerCosigned(t testing.TB, a []string) string {
	keys, err := manifest.ParsePublicKeys([]byte(a[2]))
	set := manifest.Trust{Threshold: int(number(t, a[3])), Keys: keys}
	if err != nil || set.Check() != nil {
		return "refused"
	}
	_, err = set.Verify(a[0], a[1])
	switch {
	case errors.Is(err, manifest.ErrSignature):
		return "bad_signature"
	case err != nil:
		return "bad"
	}
	return "ok"
}

// answerManifest takes keys that cannot be read for no keys: a device refuses such a configuration, and so does what is
// asked about a manifest.
func answerManifest(_ testing.TB, a []string) string {
	m, err := manifest.Unverified(a[0])
	if a[2] == "verify" {
		var keys []*ecdsa.PublicKey
		if parsed, err := manifest.ParsePublicKeys([]byte(a[1])); err == nil {
			keys = parsed
		}
		m, err = manifest.Verify(a[0], keys...)
	}
	switch {
	case errors.Is(err, manifest.ErrSignature):
		return "bad_signature"
	case err != nil:
		return "bad"
	}
	answer := fmt.Sprintf("ok secure=%d size=%d force=%d sequence=%d", m.SecureVersion, m.Size, bit(m.ForceUpdate), m.Sequence) +
		text("project", m.Project) + text("chip", m.Chip) + text("version", m.Version) + text("min_version", m.MinVersion) +
		text("sha256", m.SHA256)
	last := int((m.Size - 1) / manifest.BlockSize)
	for _, i := range []int{0, 1, 2, 3, last, last + 1} {
		block := "none"
		if sum, ok := m.Block(i); ok {
			block = hex.EncodeToString(sum[:])
		}
		answer += " " + block
	}
	return answer
}

func answerOffer(_ testing.TB, a []string) string {
	keys, err := manifest.ParsePublicKeys([]byte(a[1]))
	if err != nil {
		keys = nil
	}
	o, err := manifest.VerifyOffer(a[0], keys...)
	switch {
	case errors.Is(err, manifest.ErrSignature):
		return "bad_signature"
	case err != nil:
		return "bad"
	}
	return fmt.Sprintf("ok sequence=%d valid=%d", o.Sequence, o.ValidS) + text("device", o.Device) + text("nonce", o.Nonce) + text("path", o.Path) +
		text("sha256", o.SHA256) + text("version", o.Version)
}

func number(t testing.TB, s string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func float(t testing.TB, s string) float64 {
	t.Helper()
	f, err := strconv.ParseFloat(s, 64)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// statusOf makes the status that the texts of a question stand for.
func statusOf(t testing.TB, a []string) protocol.Status {
	t.Helper()
	n := func(i int) int64 { return number(t, a[i]) }
	phase := protocol.Phases()[n(2)]
	code, _ := phase.Code()
	seq, err := strconv.ParseUint(a[11], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	s := protocol.Status{
		TimestampUS: n(0), UptimeSec: n(1), Status: code, ProgressPct: int(n(3)), Message: a[4], CurrentVersion: a[5],
		AvailableVersion: a[6], RollbackPending: n(7) != 0, FreeHeap: n(8), DeviceID: a[9], Protocol: protocol.Version,
		BootID: a[10], Seq: seq, Phase: phase, Reason: protocol.Reason(a[12]), CommandID: a[13], Slot: a[14], SlotSize: n(15),
		Chip: a[16], Project: a[17], SecureVersion: uint32(n(18)), ImageSHA256: a[19], FailedSHA256: a[20],
		RollbackProtected: n(21) != 0, Signed: n(22) != 0, ResetReason: a[23], BytesDone: n(24), BytesTotal: n(25),
		Retries: int(n(26)), MinFreeHeap: n(27), LargestFreeBlock: n(28),
	}
	if n(29) != 0 {
		s.Battery = &protocol.Battery{SOCPct: float(t, a[30]), PackCurrentA: float(t, a[31]), Charging: n(32) != 0}
		if n(33) != 0 {
			s.Battery.TempMinC, s.Battery.TempMaxC = new(float(t, a[34])), new(float(t, a[35]))
		}
	}
	return s
}

func answerStatus(t testing.TB, a []string) string {
	b, err := statusOf(t, a).Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func answerRefuse(t testing.TB, a []string) string {
	d := protocol.Device{Chip: a[0], Project: a[1], Version: a[2], ImageSHA256: a[3], SlotSize: number(t, a[4]), SecureVersion: uint32(number(t, a[5]))}
	if a[6] != "" {
		d.Quarantined = func(sha256 string) bool { return sha256 == a[6] }
	}
	r := protocol.Release{Chip: a[7], Project: a[8], Version: a[9], SHA256: a[10], Size: number(t, a[11]), SecureVersion: uint32(number(t, a[12])), MinVersion: a[13]}
	refusal := protocol.Refuse(d, r, number(t, a[14]) != 0)
	if refusal == nil {
		return "ok"
	}
	return string(refusal.Reason) + ": " + refusal.Detail
}

func answerGate(t testing.TB, a []string) string {
	optional := func(s string) *float64 {
		if s == "" {
			return nil
		}
		return new(float(t, s))
	}
	g := protocol.Gate{MinSOCPct: float(t, a[0]), NotWhileCharging: number(t, a[1]) != 0, Window: a[2],
		MaxCurrentA: float(t, a[7]), MinTempC: optional(a[8]), MaxTempC: optional(a[9])}
	var battery *protocol.Battery
	if number(t, a[3]) != 0 {
		battery = &protocol.Battery{SOCPct: float(t, a[4]), Charging: number(t, a[5]) != 0, PackCurrentA: float(t, a[10]),
			TempMinC: optional(a[11]), TempMaxC: optional(a[12])}
	}
	minute := number(t, a[6])
	return string(g.Blocked(battery, time.Date(2026, 1, 1, int(minute/60), int(minute%60), 59, 0, time.UTC)))
}

func answerOnTheWay(_ testing.TB, a []string) string {
	return strconv.Itoa(bit(protocol.OnTheWay(a[0], a[1], a[2])))
}

func answerName(_ testing.TB, a []string) string {
	digest := len(a[0]) == 64 && !slices.ContainsFunc([]byte(a[0]), func(c byte) bool { return !strings.Contains("0123456789abcdef", string(rune(c))) })
	return fmt.Sprintf("id=%d prefix=%d digest=%d", bit(protocol.CheckDeviceID(a[0]) == nil), bit(protocol.CheckPrefix(a[0]) == nil), bit(digest))
}

func answerMAC(_ testing.TB, a []string) string { return protocol.DeviceID([6]byte([]byte(a[0]))) }

func answerDigest(_ testing.TB, a []string) string {
	sum := sha256.Sum256([]byte(a[0]))
	return hex.EncodeToString(sum[:])
}
