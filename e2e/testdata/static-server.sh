#!/bin/sh
# What a device needs of a web server with a firmware folder, seen by curl: static-server.sh, with BASE (address of the
# folder), CA (authority of the server) and v2.bin (the image published there). The first thing that is wrong ends it.
set -eu

fail() { echo "$BASE: $*" >&2; exit 1; }
# get CODE PATH CURL-ARGS…: leaves headers and body.
get() {
	code=$1 path=$2
	shift 2
	got=$(curl -s --path-as-is --cacert "$CA" -D headers -o body -w '%{http_code}' "$@" "$BASE$path") || fail "GET $path $*: curl ends with $?"
	[ "$got" = "$code" ] || fail "GET $path $*: answer $got, want $code"
	size=$(wc -c <headers)
	[ "$size" -lt 512 ] || fail "GET $path: $size bytes of headers, a device has a buffer of 512"
}
header() { grep -qi "^$1: $2.\$" headers || fail "GET $path: no header $1: $2 in
$(cat headers)"; }
no_header() { ! grep -qi "^$1:.*$2" headers || fail "GET $path: header $1 with $2 in
$(cat headers)"; }
hardened() {
	header Server '[A-Za-z]*'
	header X-Content-Type-Options nosniff
	header Content-Security-Policy "default-src 'none'"
}

# The version, under both names and with what a device adds; never a redirect, never from a cache.
for path in /version /version.json '/version?device=bms-000001&chip=esp32'; do
	get 200 "$path" -H 'Accept-Encoding: gzip, deflate'
	header Content-Type application/json
	header Cache-Control no-cache
	header Content-Length '[0-9]*'
	no_header Content-Encoding ''
	hardened
	cmp body www/firmware/version.json
done
image=/$(sed -n 's/.*"url": "\([0-9a-f]*\.bin\)".*/\1/p' body)

# The image under its digest, whole.
get 200 "$image" -H 'Accept-Encoding: gzip, deflate'
cmp body v2.bin
header Content-Type application/octet-stream
header Content-Length "$(wc -c <v2.bin)"
header Accept-Ranges bytes
header Cache-Control 'public, max-age=31536000, immutable'
header ETag '"[^"]*"'
no_header Content-Encoding ''
hardened
tag=$(sed -n 's/^[Ee][Tt][Aa][Gg]: \(".*"\).*/\1/p' headers)
get 200 "$image" -I
header Content-Length "$(wc -c <v2.bin)"
header ETag "$tag"

# firmware.bin is replaced by the next release.
get 200 /firmware.bin
cmp body v2.bin
header Cache-Control no-cache

# The rest of it; as a device asks after the line was cut; with the tag of a file that is gone.
get 206 "$image" -r 1000000-
header Content-Range "bytes 1000000-$(($(wc -c <v2.bin) - 1))/$(wc -c <v2.bin)"
tail -c +1000001 v2.bin | cmp - body
get 206 "$image" -r 65536-131071
head -c 131072 v2.bin | tail -c 65536 | cmp - body
get 206 "$image" -r 1000000- -H "If-Range: $tag"
get 200 "$image" -r 1000000- -H 'If-Range: "of-another-file"'
cmp body v2.bin
get 200 "$image" -r 0-9,100-109
cmp body v2.bin
get 416 "$image" -r 99999999-

# What is not there, not finished or not in the folder.
get 404 "/$(printf '%064d' 0).bin"
for path in /.half-written /../secret.txt /%2e%2e/secret.txt /..%2fsecret.txt /../../../../../../../etc/passwd; do
	got=$(curl -s --path-as-is --cacert "$CA" -o body -w '%{http_code}' "$BASE$path")
	[ "$got" -ge 400 ] || fail "GET $path: answer $got"
	! grep -q 'keep out\|root:' body || fail "GET $path gives it away"
done

# TLS as a board has it, and nothing older.
for suite in ECDHE-ECDSA-AES128-GCM-SHA256 ECDHE-ECDSA-AES256-GCM-SHA384; do
	get 200 /version --tls-max 1.2 --ciphers "$suite"
done
get 200 /version --tlsv1.3
refused() {
	code=0
	curl -s --cacert "$CA" -o body "$@" "$BASE/version" || code=$?
	[ "$code" -eq 35 ] || fail "curl $*: ends with $code, want 35"
}
refused --tlsv1.0 --tls-max 1.1 --ciphers DEFAULT@SECLEVEL=0
refused --tls-max 1.2 --ciphers ECDHE-ECDSA-CHACHA20-POLY1305
refused --tls-max 1.2 --ciphers ECDHE-ECDSA-AES128-SHA
