// Package appimage reads, verifies and builds ESP32 application images: the
// .bin files that esptool's elf2image writes and that the ESP-IDF bootloader
// starts.
//
// [Parse] takes a whole file in memory; [Verify] reads one from flash in
// chunks and gives the verdict of ESP-IDF v5.5's esp_image_verify (app build,
// no signature support), with its error code and in its order, surprising
// acceptances included: an image without an appended hash passes on an 8-bit
// XOR, and bytes after the image are nobody's business. [Build] makes small
// valid images for tests and virtual boards.
//
// It refuses every input that the loader refuses, never allocates by a number
// found in the input and never reads past the reader it was given. It does not
// check Secure Boot signatures (package secureboot does) and it does not check
// the load-address overlaps that only the bootloader build looks at.
//
// The truth is specified in ESP-IDF v5.5:
// components/bootloader_support/include/esp_app_format.h (header, segments),
// components/bootloader_support/src/esp_image_format.c (verification),
// components/esp_app_format/include/esp_app_desc.h (description).
package appimage
