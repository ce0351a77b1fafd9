#!/bin/bash
# How a fleet updates while the network loses packets: packet-loss.sh PERCENT BOARDS SIZE, as root, with bmsota on the PATH.
#
# A server and that many virtual boards stand in a network namespace of their own, which has nothing but a loopback of
# MTU 1500 and one packet for each segment. A filter there drops PERCENT of all packets at random where they come in, both
# ways, acknowledgements too, so the kernel's own TCP has to send again; nothing is delayed beyond that. One wave, no second
# try: what is counted as succeeded got through by TCP and the device's own resuming.
set -eu
loss=$1 boards=$2 size=$3
ns=bmsota-loss-$$ dir=$(mktemp -d)
cd "$dir"
export HOME=$dir
inside() { ip netns exec "$ns" "$@"; }
stop() { kill "${fleet:-}" "${server:-}" 2>/dev/null || true; wait; ip netns del "$ns"; rm -rf "$dir"; }
trap stop EXIT
ip netns add "$ns"
ip -n "$ns" link set lo mtu 1500 gso_max_segs 1 up
inside bmsota serve --host 127.0.0.1 --https 127.0.0.1:8443 >server.log 2>&1 & server=$!
until inside bmsota health >/dev/null 2>&1; do sleep 0.2; done
bmsota keys new -o release.pem >/dev/null
for v in 1.0.0 1.1.0; do bmsota image new --chip esp32 --project bms --version $v --size "$size" -o $v.bin >/dev/null; done
inside bmsota publish 1.0.0.bin --key release.pem >/dev/null
inside bmsota publish 1.1.0.bin --key release.pem --channel next >/dev/null
inside bmsota device fleet --count "$boards" --image 1.0.0.bin --trusted-key release.pub.pem --seed 7 --quiet >fleet.log 2>&1 & fleet=$!
until inside bmsota rollout create 1.1.0 --all --dry-run --expect "$boards" >/dev/null 2>&1; do sleep 0.5; done
if [ "$loss" != 0 ]; then
	inside nft add table inet loss
	inside nft 'add chain inet loss in { type filter hook input priority 0; }'
	inside nft add rule inet loss in numgen random mod 100 '<' "$loss" counter drop
	inside nft add rule inet loss in counter accept
fi
echo "load average $(cut -d' ' -f1-3 /proc/loadavg)"
began=$(date +%s.%N)
id=$(inside bmsota rollout create 1.1.0 --all --waves 100% --max-failed 100% --json | grep -m1 '"id"' | cut -d'"' -f4)
inside bmsota rollout show "$id" --watch >/dev/null 2>&1 || true
echo "took $(echo "$(date +%s.%N) - $began" | bc) s, load average $(cut -d' ' -f1-3 /proc/loadavg)"
inside bmsota rollout show "$id" | grep -E 'devices:|halted|done'
inside nft list ruleset | grep -o 'counter.*' || true
token=$(sed -n 's/.*"token": *"\([^"]*\)".*/\1/p' bmsota-data/operator.json | head -1)
inside curl -s --cacert bmsota-data/tls/ca.pem -H "Authorization: Bearer $token" https://127.0.0.1:8443/metrics | grep -E '^bmsota_(downloads|updates|download_bytes)_total'
