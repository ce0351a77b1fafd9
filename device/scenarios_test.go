package device

import (
	"maps"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	"bmsota/device/internal/norflash"
	"bmsota/esp/appimage"
	"bmsota/esp/otadata"
	"bmsota/protocol"
)

// tiny is an update of 16 KiB on a small chip, unsigned: what a signature costs is not what is tried here.
func tiny(t *testing.T, b appimage.Behaviour, final func(old, next []byte) []byte) *sweep {
	t.Helper()
	return tinyOf(t, "1.1.0", final, trial(b))
}

func tinyOf(t *testing.T, version string, final func(old, next []byte) []byte, change ...func(*appimage.BuildOptions)) *sweep {
	t.Helper()
	small := func(o *appimage.BuildOptions) { o.Size = 16 << 10 }
	return sweepIn(t, componentTable(), 1<<20, nil, image(t, "1.0.0", small), image(t, version, append(change, small)...), final)
}

// half is the flash in the middle of a story.
func (sw *sweep) half(t *testing.T) *norflash.Flash {
	t.Helper()
	p := sw.record(t)
	f := p.begin.Clone()
	for _, w := range p.writes[:len(p.writes)/2] {
		if err := w.apply(f); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// scenarios are what can happen to a board, with what it begins from.
func scenarios() map[string]func(t *testing.T) *sweep {
	good := func(t *testing.T) *sweep { return tiny(t, appimage.BehaviourOK, toNew) }
	return map[string]func(t *testing.T) *sweep{
		"fresh board":     good,
		"gives itself up": func(t *testing.T) *sweep { return tiny(t, appimage.BehaviourUnhealthy, toOld) },
		"crash": func(t *testing.T) *sweep {
			sw := tiny(t, appimage.BehaviourCrash, toOld)
			sw.holes = true
			return sw
		},
		"second update": func(t *testing.T) *sweep {
			first := good(t)
			sw := tinyOf(t, "1.2.0", toNew)
			sw.start, sw.images = first.end(t), append(sw.images, first.next)
			return sw
		},
		"update after a rollback": func(t *testing.T) *sweep {
			first := tinyOf(t, "1.0.9", toOld, trial(appimage.BehaviourCrash))
			sw := good(t)
			sw.start = first.end(t)
			return sw
		},
		"damaged slot": func(t *testing.T) *sweep {
			sw := good(t)
			f := sw.end(t).Clone()
			put(t, f, 0x30000+9<<10, []byte{1, 2, 3})
			sw.start = f
			return sw
		},
		"resume": func(t *testing.T) *sweep {
			sw := good(t)
			sw.start = sw.half(t)
			return sw
		},
		"forced": func(t *testing.T) *sweep {
			sw := tinyOf(t, "0.9.0", toNew)
			sw.order = `{"action":"update","force":true}`
			return sw
		},
		"refused downgrade": func(t *testing.T) *sweep {
			first := good(t)
			sw := tinyOf(t, "0.9.0", toOld)
			sw.start, sw.final, sw.images = first.start, first.old, append(sw.images, first.next)
			sw.refusals = []protocol.Reason{protocol.ReasonDowngrade}
			// What is left to do is what the update before left: its image stands there and no record vouches for it.
			f := first.start.Clone()
			put(t, f, 0x30000, first.next)
			sw.start = f
			return sw
		},
		"security floor": func(t *testing.T) *sweep {
			sw := tinyOf(t, "1.1.0", toNew, func(o *appimage.BuildOptions) { o.SecureVersion = 2 })
			sw.config = func(c *Config) { c.AntiRollback = true }
			return sw
		},
		"failed slot": func(t *testing.T) *sweep {
			sw := tiny(t, appimage.BehaviourCrash, toOld)
			f := sw.start.Clone()
			put(t, f, 0x30000, sw.next)
			put(t, f, 0x10000, otadata.Append(nil, [2]otadata.Record{otadata.NewRecord(1, otadata.Valid), otadata.NewRecord(2, otadata.Aborted)}))
			sw.start, sw.holes = f, true
			return sw
		},
		"rolled back by order": func(t *testing.T) *sweep {
			sw := good(t)
			sw.start, sw.order, sw.final = sw.end(t), `{"action":"rollback","version":"1.0.0"}`, sw.old
			return sw
		},
		"blank records": func(t *testing.T) *sweep {
			sw := good(t)
			f := sw.end(t).Clone()
			if err := f.Erase(0x10000, otadata.PartitionSize); err != nil {
				t.Fatal(err)
			}
			sw.start = f
			return sw
		},
	}
}

// TestPowerCutPairs cuts the power twice in every scenario, once and again in what the board then does about it: in the
// long run all pairs of operations, else all that touch metadata and a sample of the rest.
func TestPowerCutPairs(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	began, sum := time.Now(), figures{}
	all, ran := scenarios(), 0
	for _, name := range slices.Sorted(maps.Keys(all)) {
		t.Run(name, func(t *testing.T) {
			sw := all[name](t)
			x := sw.explorer(t, 2)
			clean := []norflash.Cut{norflash.Before, norflash.After}
			x.ways = func(op norflash.Op, nth int) []norflash.Cut {
				switch {
				case long(t) && sw.metadata(op):
					return tears(op, 0, 3)
				case long(t) || nth == 1 && sw.metadata(op):
					return append([]norflash.Cut{norflash.Part(16), norflash.Torn(1), norflash.Bits(2)}, clean...)
				case sw.metadata(op):
					return append([]norflash.Cut{norflash.Part(4), norflash.Torn(1), norflash.Bits(2)}, clean...)
				case nth == 1:
					return []norflash.Cut{norflash.After, norflash.Torn(1)}
				case op.Off/norflash.PieceSize%16 == 5:
					return []norflash.Cut{norflash.Torn(0)}
				}
				return nil
			}
			ran++
			f := reportOf(t, x)
			sum.states += f.states
			sum.distinct += f.distinct
			sum.boots = max(sum.boots, f.boots)
		})
	}
	if least := map[bool]int{false: 100_000, true: 1_000_000}[long(t)]; sum.distinct < least && ran == len(all) {
		t.Errorf("%d distinct states, want %d", sum.distinct, least)
	}
	took := time.Since(began)
	t.Logf("power cuts: %d scenarios, %d states, %d distinct, %d boots to rest at most, %.0f distinct states a second", len(all), sum.states, sum.distinct, sum.boots,
		float64(sum.distinct)/took.Seconds())
}
