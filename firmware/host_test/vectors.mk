# The pure half of the component and the program that answers questions about it, for a host.
#   make -f vectors.mk OUT=/some/folder          with sanitizers, as the tests want it
#   make -f vectors.mk /some/folder/memory OUT=/some/folder
HERE := $(dir $(lastword $(MAKEFILE_LIST)))
COMPONENT := $(HERE)../components/ota_manager
PURE := $(addprefix $(COMPONENT)/,ota_address.c ota_base64.c ota_command.c ota_config.c ota_crypto.c ota_decide.c ota_json.c \
	ota_keys.c ota_manifest.c ota_names.c ota_phase.c ota_reason.c ota_status.c ota_time.c ota_url.c ota_utf8.c ota_version.c ota_version_file.c)
STRICT := -std=gnu11 -Wall -Wextra -Werror -Wconversion -Wshadow
# char has no sign on the chips.
CFLAGS := $(STRICT) -funsigned-char -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all

$(OUT)/vectors: $(HERE)vectors.c $(PURE) $(wildcard $(COMPONENT)/private/*.h)
	gcc $(CFLAGS) -I$(COMPONENT)/private $(HERE)vectors.c $(PURE) -lmbedcrypto -lm -o $@

# As on the chips: for size, and without the linker's late binding, which takes stack. M32=-m32 where there are 32-bit libraries.
$(OUT)/memory: $(HERE)memory.c $(PURE) $(wildcard $(COMPONENT)/private/*.h)
	gcc $(STRICT) -funsigned-char -Os -Wl,-z,now $(M32) -I$(COMPONENT)/private $(HERE)memory.c $(PURE) -lmbedcrypto -lm -o $@
