// Package idfproject reads what ESP-IDF leaves in a firmware project: sdkconfig, and in the build folder
// project_description.json and flasher_args.json. Bytes in, values out: it opens no file and follows no path.
//
// The files are written by Kconfig and by CMake (tools/cmake/project_description.json.in and
// components/esptool_py/flasher_args.json.in of ESP-IDF). They grow new keys with every version: what is not known is
// ignored, and a key that an older version did not write is empty. Paths are as they stand in the file, relative to the
// build folder or absolute; whoever opens one decides whether it may.
//
// Input is hostile until parsed: sizes are capped and nothing panics. Errors wrap [ErrSyntax] or [ErrTooLarge].
package idfproject

import "errors"

// The faults of a file.
var (
	ErrSyntax   = errors.New("not as ESP-IDF writes it")
	ErrTooLarge = errors.New("too large")
)

// The most that is read of a file, in bytes. project_description.json lists every source of every component.
const (
	MaxSDKConfig   = 4 << 20
	MaxDescription = 32 << 20
	MaxFlasherArgs = 1 << 20
)
