#!/bin/bash
# What virtual boards cost: boards-per-core.sh BOARDS SIZE, with bmsota on the PATH. Processor time is what the kernel
# charges the one process that all boards are, so a busy machine changes little of it; the server is another process.
set -eu
boards=$1 size=$2 dir=$(mktemp -d)
cd "$dir"
export HOME=$dir
stop() { kill "${fleet:-}" "${server:-}" 2>/dev/null || true; wait; rm -rf "$dir"; }
trap stop EXIT
cat >server.json <<J
{"host": "127.0.0.1", "https": {"listen": "127.0.0.1:18443"}, "mqtt": {"tls_listen": "127.0.0.1:18883", "listen": "off"}}
J
bmsota serve --config server.json >server.log 2>&1 & server=$!
until bmsota health >/dev/null 2>&1; do sleep 0.2; done
bmsota keys new -o release.pem >/dev/null
for v in 1.0.0 1.1.0; do bmsota image new --chip esp32 --project bms --version $v --size "$size" -o $v.bin >/dev/null; done
bmsota publish 1.0.0.bin --key release.pem >/dev/null
bmsota publish 1.1.0.bin --key release.pem --channel next >/dev/null
bmsota device fleet --count "$boards" --image 1.0.0.bin --trusted-key release.pub.pem --seed 7 --quiet >fleet.log 2>&1 & fleet=$!
until bmsota rollout create 1.1.0 --all --dry-run --expect "$boards" >/dev/null 2>&1; do sleep 0.5; done
ticks=$(getconf CLK_TCK)
# seconds of processor time of process $1, and kilobytes of memory
used() { awk -v t="$ticks" '{ sub(/.*\) /, ""); print ($12 + $13) / t }' "/proc/$1/stat"; }
memory() { awk '/^VmRSS/ { print $2 }' "/proc/$1/status"; }
each() { awk -v a="$1" -v b="$2" -v n="$boards" 'BEGIN { printf "%.2f ms", (b - a) * 1000 / n }'; }
sleep 20
a=$(used $fleet) s=$(used $server)
sleep 60
echo "idle for a minute: $(each "$a" "$(used $fleet)") of a core for each board, $(each "$s" "$(used $server)") for it at the server; $(($(memory $fleet) / boards)) KB a board"
a=$(used $fleet) s=$(used $server)
id=$(bmsota rollout create 1.1.0 --all --waves 100% --json | grep -m1 '"id"' | cut -d'"' -f4)
bmsota rollout show "$id" --watch >/dev/null 2>&1 || true
echo "one update: $(each "$a" "$(used $fleet)") of a core for each board, $(each "$s" "$(used $server)") for it at the server; $(($(memory $fleet) / boards)) KB a board"
bmsota rollout show "$id" | grep 'devices:'
echo "load average $(cut -d' ' -f1-3 /proc/loadavg)"
