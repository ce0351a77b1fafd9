package appimage_test

import (
	"bytes"
	"fmt"

	"bmsota/esp/appimage"
)

func Example() {
	file, err := appimage.Build(appimage.BuildOptions{Chip: appimage.ESP32C3, Project: "bms-monitor", Version: "1.4.0", Size: 64 << 10})
	if err != nil {
		fmt.Println(err)
		return
	}
	img, err := appimage.Parse(file)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(img.Header.Chip, img.Desc.Project, img.Desc.Version, img.Length)

	board := appimage.Target{Chip: appimage.ESP32S3, PartitionSize: 1536 << 10, FlashOffset: 0x20000}
	_, err = appimage.Verify(bytes.NewReader(file), board)
	fmt.Println(err)
	// Output:
	// esp32c3 bms-monitor 1.4.0 65536
	// chip at 0xc: the image is for esp32c3, the board is esp32s3 (esp_err 0xffffffff)
}
