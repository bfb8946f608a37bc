#!/bin/sh
# First process of a guest that runs the client's cases over its kernel's device, and tells on its console.

mount -t proc proc /proc
mount -t devtmpfs dev /dev
echo GUEST-UP
lab clients
echo "CASES END $?"
while sleep 60; do :; done
