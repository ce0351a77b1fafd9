package api

import (
	"testing"
)

func TestWavesAndLimitsAreReadAsTheyAreWritten(t *testing.T) {
	for text, want := range map[string]Wave{
		"10": {Count: 10}, "25%": {Percent: 25}, "0.5%:30m": {Percent: 0.5, SoakS: 1800}, "3:0s": {Count: 3}, "100%:1h30m": {Percent: 100, SoakS: 5400},
	} {
		if got, err := ParseWave(text); err != nil || got != want {
			t.Errorf("%q is %+v (%v), want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0", "0%", "-1", "101%", "1.5", "x", "10:", "10:x", "10:-1s", "10:1ms", "NaN", "NaN%", "Inf", "1e300", "10%%"} {
		if got, err := ParseWave(text); err == nil {
			t.Errorf("%q is taken for %+v", text, got)
		}
	}
}
