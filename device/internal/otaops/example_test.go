package otaops_test

import (
	"fmt"

	"bmsota/device/internal/norflash"
	"bmsota/device/internal/otaops"
	"bmsota/esp/parttable"
)

func ExampleOps_WriteTombstone() {
	table := parttable.Table{
		{Name: "otadata", Type: parttable.TypeData, Subtype: parttable.SubtypeOTAData, Offset: 0x10000, Size: 0x2000},
		{Name: "ota_0", Type: parttable.TypeApp, Subtype: parttable.SubtypeOTA0, Offset: 0x20000, Size: 0x180000},
		{Name: "ota_1", Type: parttable.TypeApp, Subtype: parttable.SubtypeOTA0 + 1, Offset: 0x1A0000, Size: 0x180000},
	}
	o, err := otaops.New(norflash.New(4<<20), table, table[1], otaops.Config{Rollback: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := o.WriteTombstone(table[2], [32]byte{}, "watchdog"); err != nil {
		fmt.Println(err)
		return
	}
	t, ok, err := o.ReadTombstone(table[2])
	fmt.Println(ok, t.Cause, t.Acked, err)
	// Output: true watchdog false <nil>
}
