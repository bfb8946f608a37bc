# What a driver domain does once its modules are loaded: it runs the commands that the scenario writes to its
# `data/command`, and says on its console what they print and how they end. The other side is `in_dd`.

ip addr add 192.168.77.1/24 dev xenbr0
mkdir -p /srv /var/log/xen

image() { # FILE WORD: a disk that begins with the word
    dd if=/dev/zero of="$1" bs=1M count=4 2> /dev/null
    printf '%s' "$2" | dd of="$1" conv=notrunc 2> /dev/null
}

daemon() { # PROGRAM [OPTION...]: the driver domain's daemon; what it says goes to the log
    "$1" devd -F "${@:2}" >> /var/log/xen/devd.log 2>&1 &
    echo $! > /run/devd.pid
}

daemon_dies() { # as by a crash; what it started may live on
    kill -9 "$(cat /run/devd.pid)"
    # It is a child of the first process, which reaps it.
    while [ -d "/proc/$(cat /run/devd.pid)" ]; do sleep 0.1; done
}

leftovers() { # of devices: loop devices, ports of the bridge, processes of scripts
    local file words
    losetup -a
    ls /sys/class/net/xenbr0/brif
    for file in /proc/[0-9]*/cmdline; do
        mapfile -d '' words < "$file"
        case "${words[*]}" in
            *" /etc/xen/scripts/"*) echo "${words[*]}" ;;
        esac
    done 2> /dev/null # processes that end while we look
}

export -f image daemon daemon_dies leftovers
echo GUEST-UP

last=0
xenstore-watch data/command | while read -r _; do
    request=$(xenstore-read -R data/command 2> /dev/null) && [ "${request%% *}" -gt "$last" ] || continue
    last=${request%% *}
    bash -c "${request#* }" > /tmp/said 2>&1 < /dev/null
    status=$?
    sed "s/^/DD-SAYS $last /" /tmp/said
    # The last line may have no end.
    printf '\nDD-DONE %s %s\n' "$last" "$status"
done
