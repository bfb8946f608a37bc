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
