// Package provision makes what goes over USB onto a new board: its login at the server, its storage partition with the two
// configuration files, and, from a firmware build, the whole flash in one file.
//
// It promises an order that loses nothing. Everything that can be refused (the list of devices, the build, a file that
// does not fit, a folder that cannot be written) is refused before the first device is enrolled. A token is given once: so
// the mark that a device is being provisioned is durable before the server is asked, the files are durable before the mark
// goes, and a run that was killed between the two is taken up by the next one.
//
// It refuses to take the token of a device that has one, because a monitor in the field would be locked out; only
// [Run.Replace] asks for that. It refuses builds that would not boot (wrong chip, an image that does not verify or does not
// fit, a table that ends behind the flash) and builds with flash encryption, of which a merged image cannot be made.
//
// The forms are Espressif's: flasher_args.json (ESP-IDF's components/esptool_py/flasher_args.json.in), the partition table
// and SPIFFS as the packages below esp/ have them, and esptool's command line (docs.espressif.com/projects/esptool).
package provision
