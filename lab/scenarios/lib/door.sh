# What xl says of a device before and after it is attached, beside what xendev says.

dry_run() { # WORDS...: `xl -N` and `xendev -N` agree byte for byte, and on the outcome
    local name="dry-run $*" want=same xl xendev
    xl -N "$@" > "$LAB/xl.out" 2> "$LAB/xl.err"
    xl=$?
    xendev -N "$@" > "$LAB/xendev.out" 2> "$LAB/xendev.err"
    xendev=$?
    [ "$xl" = 0 ] || want=refused
    if [ "$want" = refused ]; then
        check "$name" "xl ended with $xl, xendev with $xendev" test "$xendev" != 0 -a ! -s "$LAB/xendev.out"
    else
        expect_same "$LAB/xl.out" "$LAB/xendev.out" "$name"
    fi
}

config_of() { # GUEST: as xl tells it, without what is the hypervisor's
    xl list -l "$1"
}

expect_config() { # FILE NAME
    config_of g > "$LAB/now.config" 2> "$LAB/now.config.err"
    expect_same "$1" "$LAB/now.config" "$2"
}

tree_of() { # TOOL COMMAND SPEC DETACH-COMMAND DEVICE FILE: its device's nodes, as they are when it is connected
    expect_exit 0 "tree-$6-$1" "$1" "$2" g $3
    # Both ends have said all that they have to say a moment after they have connected.
    check "tree-$6-$1-connected" "no backend got to state 4" wait_until 20 any_connected
    sleep 1
    store_dump "$LAB/$6.$1"
    expect_exit 0 "tree-$6-$1-detached" "$1" "$4" g "$5"
}

any_connected() { xenstore-ls -f /local/domain/0/backend | grep -q '/state = "4"'; }

same_tree() { # NAME COMMAND SPEC DETACH-COMMAND DEVICE
    local tool
    for tool in xl xendev; do
        tree_of "$tool" "$2" "$3" "$4" "$5" "$1"
        without_copies < "$LAB/$1.$tool" | sed -E "$VALUES_THAT_VARY" | sort > "$LAB/$1.$tool.sorted"
    done
    expect_same "$LAB/$1.xl.sorted" "$LAB/$1.xendev.sorted" "tree-$1"
}
