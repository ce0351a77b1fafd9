package hosttest_test

import (
	"os/exec"
	"strconv"
	"testing"
	"time"

	"bmsota/firmware/host_test/hosttest"
)

// TestMessagesArriveWholeAndFromTheirOwnTopicsOnly: whatever pieces esp-mqtt makes of a message, and whatever a broker sends.
func TestMessagesArriveWholeAndFromTheirOwnTopicsOnly(t *testing.T) {
	tool := hosttest.Build(t, "link_tool", false)
	for _, seed := range []uint64{1, uint64(time.Now().UnixNano())} {
		t.Logf("seed %d", seed)
		if out, err := exec.Command(tool, strconv.FormatUint(seed, 10)).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
}
