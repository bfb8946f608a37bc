# Hotplug scripts of the scenario's own, and stopping a stock one at a chosen call.

hotplug_script() { # NAME: installs a hotplug script from standard input
    cat > "/etc/xen/scripts/$1"
    chmod 755 "/etc/xen/scripts/$1"
}

hotplug_programs() { # the commands `native' and `scripted': xendev that does so
    local how
    for how in native:native scripted:script; do
        printf '#!/bin/sh\nexec xendev --hotplug %s "$@"\n' "${how#*:}" > "/usr/bin/${how%:*}"
        chmod 755 "/usr/bin/${how%:*}"
    done
}

# A process that waits for this long is one that `stop_at` has stopped.
STOPPED_SECONDS=7777

stoppable() { # PROGRAM: puts a wrapper in its place that can stop before and after the call
    local real
    real=$(command -v "$1")
    mkdir -p "$LAB/real"
    echo "$real" > "$LAB/real/$1.place"
    mv "$real" "$LAB/real/$1"
    # The hotplug scripts' PATH begins with /usr/bin. busybox's shell starts faster than bash.
    cat > "/usr/bin/$1" << EOT
#!/bin/sh
stop() {
    [ -e $LAB/stop ] && read -r pattern < $LAB/stop || return 0
    case "\$1 " in
        \$pattern)
            rm $LAB/stop
            sleep $STOPPED_SECONDS &
            echo \$! > $LAB/stopped
            wait
            ;;
    esac
}
stop "before $1 \$*"
$LAB/real/$1 "\$@"
status=\$?
stop "after $1 \$*"
exit \$status
EOT
    chmod 755 "/usr/bin/$1"
    hash -r
}

unstoppable() { # PROGRAM: as it was
    rm "/usr/bin/$1"
    mv "$LAB/real/$1" "$(cat "$LAB/real/$1.place")"
    hash -r
}

stop_at() { # PATTERN: the next call that matches, as in `after losetup /dev/loop*', stops
    rm -f "$LAB/stopped"
    echo "$1" > "$LAB/stop"
}

has_stopped() { [ -s "$LAB/stopped" ]; }

go_on() { kill "$(cat "$LAB/stopped")"; }

script_processes() { # the processes of hotplug scripts, and the guards that xendev puts over them
    local file words name
    for file in /proc/[0-9]*; do
        mapfile -d '' words < "$file/cmdline"
        read -r name < "$file/comm"
        case "$name ${words[*]}" in
            xendev-guard* | *" /etc/xen/scripts/"* | *"sleep $STOPPED_SECONDS"*)
                echo "${file##*/} $name ${words[*]}"
                ;;
        esac
    done 2> "$LAB/gone" # processes that end while we look
}

no_script_process() { [ -z "$(script_processes)" ]; }
