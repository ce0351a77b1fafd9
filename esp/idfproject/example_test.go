package idfproject_test

import (
	"fmt"

	"bmsota/esp/idfproject"
)

func Example() {
	config, err := idfproject.ParseSDKConfig([]byte(`CONFIG_IDF_TARGET="esp32c3"
CONFIG_PARTITION_TABLE_CUSTOM_FILENAME="partitions.csv"
CONFIG_PARTITION_TABLE_OFFSET=0x8000
CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE=y
# CONFIG_SECURE_BOOT is not set
`))
	if err != nil {
		fmt.Println(err)
		return
	}
	offset, _ := config.Int("CONFIG_PARTITION_TABLE_OFFSET")
	fmt.Println(config["CONFIG_IDF_TARGET"], offset, config.On("CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE"), config.On("CONFIG_SECURE_BOOT"))

	build, err := idfproject.ParseDescription([]byte(`{"project_name": "bms", "app_bin": "bms.bin", "target": "esp32c3"}`))
	fmt.Println(build.AppBin, build.Target, err)

	args, err := idfproject.ParseFlasherArgs([]byte(`{"flash_files": {"0x10000": "bms.bin", "0x0": "bootloader/bootloader.bin"},
		"extra_esptool_args": {"chip": "esp32c3"}}`))
	fmt.Println(args.Files, args.Chip, err)
	// Output:
	// esp32c3 32768 true false
	// bms.bin esp32c3 <nil>
	// [{0 bootloader/bootloader.bin} {65536 bms.bin}] esp32c3 <nil>
}
