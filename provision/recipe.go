package provision

import (
	"errors"
	"fmt"

	"bmsota/esp/parttable"
	"bmsota/esp/spiffs"
	"bmsota/protocol"
)

// Recipe is what the boards of one run have in common. It may be used by one goroutine at a time.
type Recipe struct {
	Chip    string // as esptool calls it; auto where no build says
	Table   parttable.Table
	Storage parttable.Partition // that the configuration files go to
	files   []spiffs.File       // that go there beside them
	flash   []byte              // the whole flash; nil without a build. Of it only the storage differs from board to board
}

// FromTable makes the recipe for boards that have a partition table already: a storage image each, no flash. files go into
// it beside the two configuration files.
func FromTable(t parttable.Table, files []spiffs.File) (*Recipe, error) {
	storage, ok := t.Storage()
	r := &Recipe{Chip: "auto", Table: t, Storage: storage, files: files}
	switch {
	case !ok:
		return nil, errors.New("the partition table has no storage (data, spiffs) partition for the configuration files")
	case r.Storage.Encrypted:
		return nil, fmt.Errorf("partition %s is encrypted: SPIFFS does not work with flash encryption", r.Storage.Name)
	}
	for _, f := range files {
		if ours(f.Name) {
			return nil, fmt.Errorf("%s is made for each device, leave it out of the files", f.Name)
		}
	}
	return r, nil
}

func ours(name string) bool { return name == protocol.OTAConfigFile || name == protocol.MQTTConfigFile }

// HasFlash says whether the recipe makes a whole flash.
func (r *Recipe) HasFlash() bool { return r.flash != nil }

// FlashSize is the size of the flash in bytes, 0 without a build.
func (r *Recipe) FlashSize() int64 { return int64(len(r.flash)) }

// adopt takes over the files of a storage image that the build makes (spiffs_create_partition_image): a board without
// them would lack its Wi-Fi. Files given by name win.
func (r *Recipe) adopt(p piece) error {
	fsys, err := spiffs.Read(p.data)
	if err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	have := make(map[string]bool)
	for _, f := range r.files {
		have[f.Name] = true
	}
	for _, f := range fsys.Files() {
		if ours(f.Name) || have[f.Name] {
			continue
		}
		data, err := fsys.ReadFile(f.Name)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		r.files = append(r.files, spiffs.File{Name: f.Name, Data: data})
	}
	return nil
}

// Make makes the images of one board from its two configuration files. flash is nil without a build; it is valid until
// the next call.
func (r *Recipe) Make(ota protocol.OTAConfig, mqtt protocol.MQTTConfig) (storage, flash []byte, err error) {
	files := make([]spiffs.File, 2, 2+len(r.files))
	files[0].Name, files[1].Name = protocol.MQTTConfigFile, protocol.OTAConfigFile
	if files[0].Data, err = mqtt.Append(nil); err != nil {
		return nil, nil, err
	}
	if files[1].Data, err = ota.Append(nil); err != nil {
		return nil, nil, err
	}
	if storage, err = spiffs.Build(int64(r.Storage.Size), append(files, r.files...)); err != nil {
		return nil, nil, fmt.Errorf("storage partition %s: %w", r.Storage.Name, err)
	}
	if r.flash != nil {
		copy(r.flash[r.Storage.Offset:], storage)
	}
	return storage, r.flash, nil
}
