#!/usr/bin/env bash
# Installs, from Debian's packages, the programs that the stories run against. Does nothing where they are there.
set -euo pipefail

declare -A package=(
	[mosquitto]=mosquitto
	[mosquitto_pub]=mosquitto-clients
	[nginx]=nginx-light
	[apache2]=apache2
	[curl]=curl
	[python3]=python3
	[gcc]=gcc
	[promtool]=prometheus
	[chromium]=chromium
)
export PATH="$PATH:/usr/sbin:/sbin"
missing=()
for program in "${!package[@]}"; do
	command -v "$program" >/dev/null || missing+=("${package[$program]}")
done
# The race detector links C.
[ -e /usr/include/stdio.h ] || missing+=(libc6-dev)
[ ${#missing[@]} -eq 0 ] && exit 0

echo "installing: ${missing[*]}"
sudo=""
[ "$(id -u)" -eq 0 ] || sudo="sudo"
export DEBIAN_FRONTEND=noninteractive
$sudo apt-get update -q
# The stories start their own servers on ports of their own; the packages' services must not take 80 and 1883.
# policy-rc.d is how Debian lets a machine say so; it is removed again.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
	printf '#!/bin/sh\nexit 101\n' | $sudo tee "$policy" >/dev/null
	$sudo chmod +x "$policy"
	trap '$sudo rm -f "$policy"' EXIT
fi
$sudo apt-get install -y -q --no-install-recommends "${missing[@]}"
