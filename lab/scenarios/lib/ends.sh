# Ends of whole domains: how long they take, and what they leave.

idle() { # for how many hundredths of a second domain 0's one processor has had nothing to do
    local words
    read -ra words < /proc/stat
    echo "${words[4]}"
}

# Ends a guest by a command that is to end with 0. MS is how long it took, and WAITED how much of that domain 0 had
# nothing to do: the rest is work, which takes some thirty times as long here as on a real host.
ends() { # NAME COMMAND...
    local name=$1 start before
    shift
    before=$(idle)
    start=${EPOCHREALTIME/./}
    limited "$@"
    STATUS=$?
    MS=$(((${EPOCHREALTIME/./} - start) / 1000))
    WAITED=$((($(idle) - before) * 10))
    echo "TIMING $MS $name"
    echo "TIMING $WAITED $name, without work"
    check "$name" "\`$*\` ended with $STATUS: $(cat "$ERR")" test "$STATUS" = 0
}

expect_let_go() { # NAME IMAGE...: QEMU has ended, and no process has an image open
    local name=$1 image
    shift
    check "$name-qemu-gone" "QEMU runs" model_is_gone
    for image; do
        check "$name-${image##*/}-closed" "held by: $(holders "$image")" no_holder "$image"
    done
}

no_device_left() { # of kinds that xendev knows
    [ -z "$(xenstore-ls -f "/libxl/$DOMID/device" 2> "$LAB/none" | grep -E '/device/(vbd|vif|vfb|vkbd)/')" ]
}

# A guest that loses all its devices while it runs may end by itself, and then xl's own process destroys it.
destroyed_by_xl() { limited xl destroy "$DOMID" || ! xl list "$DOMID" > "$LAB/none" 2>&1; }

expect_gone() { # NAME: the rest of the domain goes with it
    check "$1-devices-gone" "$(xenstore-ls -f "/libxl/$DOMID/device")" no_device_left
    check "$1-xl-destroyed" "$(cat "$ERR")" destroyed_by_xl
    expect_nothing_left "$DOMID" "$1-nothing-left"
}

json_is() { # NAME PATTERN...: what --json told, in grep's basic expressions
    local name=$1 pattern
    shift
    for pattern; do
        if ! grep -q -- "$pattern" "$OUT"; then
            cat "$OUT"
            fail "$name" "nothing like \`$pattern' was told"
            return
        fi
    done
    ok "$name"
}
