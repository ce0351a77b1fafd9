#pragma once

#include "esp_err.h"

// On the chip the public authorities that are built in; here those of the system. What counts is that it was given.
esp_err_t esp_crt_bundle_attach(void *conf);
