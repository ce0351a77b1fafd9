// SemVer 2.0.0 order as devices and server share it (docs/protocol.md section 6; Go: protocol/versions.go). No allocation.
#pragma once

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

bool ota_version_ok(const char *s);       // a proper version of at most 64 bytes; one leading v is tolerated
// A running version that is none takes every proper release for newer; a release that is none is newer than nothing.
bool ota_version_newer(const char *available, const char *running);
// Below floor. A running version that is none is below every floor; an empty or improper floor holds nobody back.
bool ota_version_older(const char *running, const char *floor);
bool ota_version_same(const char *a, const char *b);   // as people write them: a leading v does not count
// Whether a build system filled the version in and not a person: "", "1", "esp-idf: v4.4.6".
bool ota_version_generic(const char *v);

#ifdef __cplusplus
}
#endif
