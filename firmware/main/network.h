// The way to broker and server. The OTA component does not care whether it is Wi-Fi or Ethernet: it waits until there is one.
#pragma once

#include "esp_err.h"

// Starts the network and returns; from then on it is kept up by events. Call once, after NVS. For Ethernet put another file in place
// of network.c: it has to call esp_netif_init and esp_event_loop_create_default, and to bring its interface up again by itself.
esp_err_t network_start(void);
