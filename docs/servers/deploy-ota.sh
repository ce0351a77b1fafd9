#!/bin/bash
# deploy-ota.sh VERSION, run in the firmware project: builds, publishes the build as VERSION, updates every monitor that is
# connected and waits for them. RELEASE_KEY names the release key, release.pem where it is not set.
# Ends with 0 only when every one of them runs VERSION and has proved it; 3 refused, 4 failed or rolled back, 5 no answer.
set -e

VERSION=$1
if [ -z "$VERSION" ]; then
    echo "Usage: $0 <version>"
    exit 2
fi

# Build firmware
idf.py build

# Upload to server
bmsota publish build/esp32-bms-monitor.bin --version "$VERSION" --key "${RELEASE_KEY:-release.pem}"

# Trigger updates
bmsota update --all --version "$VERSION"

echo "Deployment complete for version $VERSION"
