// Part of the host port: what menuconfig decides when a firmware is built, the board decides here when it is started.
#pragma once

#include "host_board.h"

#define CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE (host_board.rollback)
#define CONFIG_BOOTLOADER_APP_ANTI_ROLLBACK (host_board.anti_rollback)
