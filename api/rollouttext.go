package api

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// ParseWave reads a wave as people write it: "10", "25%", "10:30m", "25%:2h".
func ParseWave(text string) (Wave, error) {
	size, soak, hasSoak := strings.Cut(text, ":")
	n, pct, err := ParseLimit(size)
	if err != nil || n == 0 {
		return Wave{}, fmt.Errorf("wave %q is not a number of devices or percent, with a soak or without: 10:30m or 25%%", text)
	}
	w := Wave{Count: int(n)}
	if pct {
		w = Wave{Percent: n}
	}
	if hasSoak {
		d, err := time.ParseDuration(soak)
		if err != nil || d < 0 || d%time.Second != 0 {
			return Wave{}, fmt.Errorf("wave %q: %q is not a soak such as 30m or 2h", text, soak)
		}
		w.SoakS = int64(d / time.Second)
	}
	return w, nil
}

// ParseLimit reads a limit as people write it: "3" or "2.5%".
func ParseLimit(text string) (n float64, pct bool, err error) {
	digits, pct := strings.CutSuffix(text, "%")
	n, err = strconv.ParseFloat(digits, 64)
	if err != nil || !(n >= 0) || n > 1e9 || pct && n > 100 || !pct && n != math.Trunc(n) {
		return 0, false, fmt.Errorf("%q is neither a number nor percent such as 5%%", text)
	}
	return n, pct, nil
}
