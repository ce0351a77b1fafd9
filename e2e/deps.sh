#!/usr/bin/env bash
# Installs, from Debian's packages, the programs that the stories run against. Does nothing where they are there.
set -euo pipefail

declare -A package=(
	[mosquitto]=mosquitto
	[mosquitto_pub]=mosquitto-clients
	[nginx]=nginx-light
	[pgbouncer]=pgbouncer
	[apache2]=apache2
	[curl]=curl
	[git]=git
	[sshd]=openssh-server
	[ssh-keygen]=openssh-client
	[python3]=python3
	[gcc]=gcc
	[promtool]=prometheus
	[chromium]=chromium
	[shellcheck]=shellcheck
	[systemd-analyze]=systemd
	[g++]=g++
	[make]=make
	[openssl]=openssl
)
# What firmware/host_test compiles against.
declare -A header=(
	[curl/curl.h]=libcurl4-openssl-dev
	[mosquitto.h]=libmosquitto-dev
	[mbedtls/md.h]=libmbedtls-dev
)
export PATH="$PATH:/usr/sbin:/sbin"
missing=()
for program in "${!package[@]}"; do
	command -v "$program" >/dev/null || missing+=("${package[$program]}")
done
for name in "${!header[@]}"; do
	echo "#include <$name>" | gcc -E -x c - >/dev/null 2>&1 || missing+=("${header[$name]}")
done
# Debian keeps the programs of a PostgreSQL server out of the PATH.
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || missing+=(postgresql)
# The race detector links C.
[ -e /usr/include/stdio.h ] || missing+=(libc6-dev)
# idf_ext.py is loaded as idf.py does, with click, by the Python that the stories find.
/usr/bin/python3 -c 'import click' 2>/dev/null || missing+=(python3-click)
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
