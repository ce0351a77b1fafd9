#!/bin/sh
# Publishes a build from a pipeline: ci-publish.sh IMAGE [CHANNEL]. The channel is beta unless said otherwise, and nobody
# is updated by this: a person, or a later step, sends the command.
#
# Secrets of the pipeline: BMSOTA_TOKEN, the operator's token, and RELEASE_KEY_FILE, a file with the release key.
# Settings: BMSOTA_SERVER, and BMSOTA_CA_FILE where the server has an authority of its own.
#
# Ends as bmsota does. 3: the image or the release was refused, a person must look. 5: the server was not reached, try
# again later. The same build published twice is no fault, so a pipeline may be repeated.
set -eu
: "${1:?usage: ci-publish.sh IMAGE [CHANNEL]}" "${BMSOTA_SERVER:?}" "${BMSOTA_TOKEN:?}" "${RELEASE_KEY_FILE:?}"

# What will be in the release, for the log of the pipeline. An image that no device would take ends here.
bmsota image info "$1"
bmsota publish "$1" --key "$RELEASE_KEY_FILE" --channel "${2:-beta}"
