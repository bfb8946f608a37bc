# Guests, and what they themselves say about their devices.

guest_log() { echo "/var/log/xen/guest-$1.log"; }

guest_start() { # NAME [RAMDISK [EXTRA [LINE [MEMORY]]]]: creates a guest and waits until its first process has come up
    local name=$1
    cat > "$LAB/$name.cfg" << EOT
name = "$name"
type = "pv"
kernel = "/guest/vmlinuz"
ramdisk = "${2:-/guest/initrd}"
extra = "console=hvc0 quiet${3:+ $3}"
memory = ${5:-256}
vcpus = 1
${4:-}
EOT
    if ! limited xl create "$LAB/$name.cfg"; then
        show_output
        return 1
    fi
    if ! wait_until 60 grep -q GUEST-UP "$(guest_log "$name")"; then
        echo "  guest $name did not come up; its console ends with:"
        tail -n 20 "$(guest_log "$name")" | indent
        return 1
    fi
}

guest_domid() { # NAME-OR-DOMID
    case $1 in
        *[!0-9]*) xl domid "$1" ;;
        *) echo "$1" ;;
    esac
}

guest_reports() { # GUEST SINCE KIND NAME present|absent: a line after line number SINCE says so
    local line found=absent
    # The last line of the log may be half written.
    line=$(tail -n "+$(($2 + 1))" "$(guest_log "$1")" | grep "GUEST-SEES.*net=\[.*\]" | tail -n 1)
    [ -n "$line" ] || return 1
    line=${line#*"$3=["}
    case ${line%%]*} in
        *" $4 "*) found=present ;;
    esac
    [ "$found" = "$5" ]
}

guest_verdict() { # GUEST KIND NAME present|absent VERDICT-NAME
    local since
    # What was printed before this moment may be about an earlier device of the same name.
    since=$(wc -l < "$(guest_log "$1")")
    if wait_until 20 guest_reports "$1" "$since" "$2" "$3" "$4"; then
        ok "$5"
    else
        tail -n 3 "$(guest_log "$1")" | indent
        fail "$5" "after 20 s, $3 is not $4 in guest $1"
    fi
}

guest_sees() { # GUEST blk|net DEVICE VERDICT-NAME: the guest has the device, at the latest after 20 s
    guest_verdict "$1" "$2" "$3" present "$4"
}

guest_reads() { # GUEST DISK BYTES VERDICT-NAME: the guest reads these bytes at the disk's beginning
    local since
    since=$(wc -l < "$(guest_log "$1")")
    if wait_until 40 guest_has_read "$1" "$since" "$2=[$3]"; then
        ok "$4"
    else
        tail -n 3 "$(guest_log "$1")" | indent
        fail "$4" "after 40 s, guest $1 has not read $3 from $2"
    fi
}

guest_has_read() { # GUEST SINCE WORDS
    tail -n "+$(($2 + 1))" "$(guest_log "$1")" | grep -aqF "GUEST-READS $3"
}

guest_lacks() { # GUEST blk|net DEVICE VERDICT-NAME
    guest_verdict "$1" "$2" "$3" absent "$4"
}
