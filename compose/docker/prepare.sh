#!/bin/sh
# Keys, first model and teacher, and what the proxy shows to devices. A second run changes nothing.
set -eu
name=${PROXY_NAME:-superlink}
tidewheel prepare "$TASK" --host "$name" --state /state
umask 077
cp "/state/keys/superlink/$name.pem" /proxy/proxy.pem
cp "/state/keys/superlink/$name.key" /proxy/proxy.key
cp /state/keys/superlink/ca.pem /proxy/superlink-ca.pem
cp /state/keys/signing.pub /enrolled/signing.pub
