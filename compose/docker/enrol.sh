#!/bin/sh
# What each of the devices needs, in a folder of its own: enrol.sh DEVICE... A second run changes nothing.
set -eu
umask 077
for device in "$@"; do
    tidewheel node add "$device" --state /state --superlink 127.0.0.1:8000 --superlink-ca /state/keys/superlink/ca.pem
    mkdir -p "/enrolled/$device"
    cp /state/keys/signing.pub /state/keys/superlink/ca.pem "/enrolled/$device/"
    cp "/state/keys/nodes/$device/key" "/enrolled/$device/node-key"
    # the first version: a device that has a newer one keeps it
    first=$(ls /state/registry/models | sort -n | head -1)
    cp "/state/registry/models/$first" "/enrolled/$device/model.twa"
done
