# Dumps of the whole store, and comparing them.

store_dump() { # FILE: every node with its value and permissions, in xenstored's order (that of creation)
    xenstore-ls -fp > "$1"
}

differences() { # A B: as indented text
    diff -U 0 "$1" "$2" | grep '^[-+][^-+]' | indent
}

# The copies that xendev keeps of what is recorded of its devices. xl knows nothing of them, so they stay when xl
# removes such a device, until xendev adds or removes one in the same place.
COPIES='^/tool/xendev( =|/)'

without_copies() { grep -vE "$COPIES"; }

expect_same() { # A B NAME: a verdict from comparing two text files
    if cmp -s "$1" "$2"; then
        ok "$3"
    else
        differences "$1" "$2" > "$LAB/differences"
        cat "$LAB/differences"
        fail "$3" "$(wc -l < "$LAB/differences") lines differ"
    fi
}

expect_same_store() { # A B NAME: a verdict from comparing two dumps
    expect_same "$1" "$2" "$3"
}

store_is() {
    store_dump "$LAB/now.store"
    cmp -s "$1" "$LAB/now.store"
}

expect_store() { # BEFORE NAME: the store is as it was in that dump
    # A guest may still be closing its end of a device when the tool is done.
    wait_until 5 store_is "$1"
    expect_same_store "$1" "$LAB/now.store" "$2"
}

store_is_but_copies() {
    xenstore-ls -fp | without_copies > "$LAB/now.store"
    cmp -s "$1" "$LAB/now.store"
}

expect_store_but_copies() { # BEFORE NAME: the same, except that xendev's copies may be there
    wait_until 5 store_is_but_copies "$1"
    expect_same_store "$1" "$LAB/now.store" "$2"
}
