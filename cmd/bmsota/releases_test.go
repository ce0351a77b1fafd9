package main

import (
	"testing"

	"bmsota/api"
)

func TestAReleaseIsNarrowedDownToOne(t *testing.T) {
	all := []api.Release{{Project: "bms", Chip: "esp32", Version: "1.0.0", SHA256: "aabbccdd11"}, {Project: "bms", Chip: "esp32c3", Version: "1.0.0", SHA256: "aabbccdd22"},
		{Project: "pump", Chip: "esp32", Version: "1.0.0", SHA256: "eeff001122"}, {Project: "bms", Chip: "esp32", Version: "1.1.0", SHA256: "aabbccdd"}}
	for _, c := range []struct {
		line releaseLine
		name string
		want int
	}{
		{releaseLine{}, "1.0.0", 3}, {releaseLine{project: "bms"}, "1.0.0", 2}, {releaseLine{project: "bms", chip: "esp32"}, "1.0.0", 1}, {releaseLine{chip: "esp32"}, "1.1.0", 1},
		{releaseLine{project: "x"}, "1.1.0", 0}, {releaseLine{}, "eeff0011", 1}, {releaseLine{}, "eeff001", 0}, {releaseLine{chip: "esp32c3"}, "aabbccdd", 1}, {releaseLine{}, "", 0},
	} {
		if got := c.line.matching(all, c.name); len(got) != c.want {
			t.Errorf("%q of %+v: %d releases, want %d", c.name, c.line, len(got), c.want)
		}
	}
}
