// What Go's Gate.Check asks of a gate that stands in a configuration file.
#pragma once

#include "ota_protocol.h"

#ifdef __cplusplus
extern "C" {
#endif

bool ota_gate_ok(const ota_gate_t *g);   // one that can open, with a window that can be read

#ifdef __cplusplus
}
#endif
