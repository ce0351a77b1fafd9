package device

import (
	"crypto/ecdsa"
	"errors"
	"fmt"

	"bmsota/device/internal/norflash"
	"bmsota/esp/appimage"
	"bmsota/esp/parttable"
	"bmsota/manifest"
	"bmsota/protocol"
)

// board is the flash of a new one, which holds the proof's key and whose trials have so many seconds.
func (p *proof) board(fu fuses, seconds int64) (*norflash.Flash, error) {
	pem, err := manifest.EncodePublicKey(&p.key.PublicKey)
	if err != nil {
		return nil, err
	}
	ota, err := protocol.OTAConfig{TrustedKeyPEM: string(pem), ServerURL: "https://server.example/firmware/firmware.bin", AutoRollbackEnabled: true,
		Health: protocol.Health{DeadlineS: seconds}}.Append(nil)
	if err != nil {
		return nil, err
	}
	mqtt, err := protocol.MQTTConfig{BrokerHost: "broker.example", BrokerPort: 8883, TLS: true, QoS: 1}.Append(nil)
	if err != nil {
		return nil, err
	}
	f, err := Layout{Image: p.cfg.Old, Table: p.table, OTAConfig: ota, MQTTConfig: mqtt, Size: p.size}.build()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoProof, err)
	}
	if err := errors.Join(f.Erase(fuseOffset, norflash.SectorSize), putFuses(f, fu)); err != nil {
		return nil, err
	}
	return f, nil
}

// offerOf is a server that has an image, signed by the proof's key.
func (p *proof) offerOf(img []byte) (*offer, error) {
	parsed, err := appimage.Parse(img)
	if err != nil {
		return nil, err
	}
	m, err := manifest.New(img, parsed, "")
	if err != nil {
		return nil, err
	}
	signed, err := manifest.Sign(m, p.key)
	if err != nil {
		return nil, err
	}
	version, err := protocol.VersionFile{Version: m.Version, Project: m.Project, Chip: m.Chip, Size: m.Size, SHA256: m.SHA256,
		SecureVersion: m.SecureVersion, URL: m.SHA256 + ".bin", Manifest: signed}.Append(nil)
	if err != nil {
		return nil, err
	}
	return &offer{version: version, image: img, tag: `"` + m.SHA256 + `"`}, nil
}

// tell makes the stories.
func (p *proof) tell(was, is *appimage.Image) error {
	fu := fuses{mac: [6]byte{2, 0, 0, 0, 0, 1}, chip: was.Header.Chip, revision: max(was.Header.MinRevision, is.Header.MinRevision)}
	start, err := p.board(fu, 3600)
	if err != nil {
		return err
	}
	hasty, err := p.board(fu, trialSeconds)
	if err != nil {
		return err
	}
	toNew, err := p.offerOf(p.cfg.New)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoProof, err)
	}
	toOld, err := p.offerOf(p.cfg.Old)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoProof, err)
	}
	behaves := func(b appimage.Behaviour) func(*Config) {
		return func(c *Config) {
			c.keys = []*ecdsa.PublicKey{&p.key.PublicKey} // nobody has here the private half of the images' own
			c.behave = func(f *norflash.Flash, at parttable.Partition) appimage.Behaviour {
				if slotHolds(f, at, p.cfg.New) {
					return b
				}
				return appimage.BehaviourOK
			}
		}
	}
	base := story{table: p.table, fuses: fu, start: start, order: `{"action":"update","force":true}`, server: toNew, images: [][]byte{p.cfg.Old, p.cfg.New}, config: behaves(appimage.BehaviourOK)}
	add := func(name, about string, change func(*tale)) {
		t := tale{story: base, about: about}
		t.name = name
		change(&t)
		p.stories = append(p.stories, t)
	}
	add("update", "the update goes well", func(t *tale) { t.final = p.cfg.New })
	updated, err := p.undisturbed(&p.stories[0])
	if err != nil {
		return err
	}
	add("crash", "the new image crashes in its trial, and is undone", func(t *tale) {
		t.final, t.metadataOnly, t.holes, t.config = p.cfg.Old, true, true, behaves(appimage.BehaviourCrash)
	})
	add("silent", "the new image never hears from the battery, and gives itself up", func(t *tale) {
		t.final, t.metadataOnly, t.waits, t.start, t.config = p.cfg.Old, true, true, hasty, behaves(appimage.BehaviourUnhealthy)
	})
	if was.Desc != nil && is.Desc != nil && !p.noKeysBack && !protocol.SameVersion(was.Desc.Version, is.Desc.Version) && !protocol.GenericVersion(was.Desc.Version) {
		order, err := protocol.Command{Action: protocol.ActionRollback, Version: was.Desc.Version}.Append(nil)
		if err != nil {
			return err
		}
		if home, _ := p.table.Blank(); home.IsOTA() {
			add("rollback", "an operator orders the old image back", func(t *tale) { t.start, t.final, t.order = updated, p.cfg.Old, string(order) })
		}
	}
	if len(p.table.Slots()) > 1 && !p.noKeysBack && !p.noFloorBack {
		add("back", "the old image is installed again; its slot still holds it", func(t *tale) {
			t.start, t.final, t.server, t.metadataOnly = updated, p.cfg.Old, toOld, true
		})
	}
	add("damage", "the new image is damaged after its update; the board falls back, mends its records, and updates again", func(t *tale) {
		t.start, t.final, t.metadataOnly = p.damaged(updated), p.cfg.New, true
	})
	return nil
}

// undisturbed is the flash that a story leaves.
func (p *proof) undisturbed(t *tale) (*norflash.Flash, error) {
	whole := p.explorer(t).undisturbed()
	if whole.problem != "" {
		return nil, fmt.Errorf("%s goes wrong without a power cut: %s", t.name, whole.problem)
	}
	return whole.last, nil
}

// damaged is f with a sector in the middle of the new image gone.
func (p *proof) damaged(f *norflash.Flash) *norflash.Flash {
	f = f.Clone()
	for _, s := range p.table.Slots() {
		if slotHolds(f, s, p.cfg.New) {
			middle := int64(s.Offset) + int64(len(p.cfg.New))/2
			if err := f.Program(middle, make([]byte, norflash.PieceSize)); err != nil {
				panic("device: a slot outside the chip: " + err.Error())
			}
		}
	}
	return f
}
