# The kinds of device without a hotplug script that xl attaches: dry runs, trees, lists and the entries in libxl's
# configuration are the same, and each tool detaches the other's.
# needs xendev
. ./common.sh
. lib/door.sh
plan 137

UUID=11111111-2222-3333-4444-555555555555
KINDS="vtpm vkbd vinput vdispl vsnd"

# Nothing in this dom0 serves these kinds. This moves the states of their backends as a program would that does.
serve() { # DOMID
    local kind backend frontend
    while :; do
        for kind in $KINDS; do
            for backend in $(xenstore-list "/local/domain/0/backend/$kind/$1"); do
                backend=/local/domain/0/backend/$kind/$1/$backend
                frontend=$(xenstore-read "$backend/frontend")
                case $(xenstore-read "$backend/state")-$(xenstore-read "$frontend/state") in
                    1-*) xenstore-write "$backend/state" 2 ;;
                    2-3 | 2-4) xenstore-write "$backend/state" 4 ;;
                    5-*) xenstore-write "$backend/state" 6 ;;
                esac
            done
        done 2> "$LAB/serve.err"
        sleep 0.3
    done
}

served() { # a backend of these kinds is there, and all have come as far as they can
    local kind state frontend any=
    for kind in $KINDS; do
        for state in $(xenstore-list "/local/domain/0/backend/$kind/$DOMID" 2> "$ERR"); do
            state=/local/domain/0/backend/$kind/$DOMID/$state
            frontend=$(xenstore-read "$(xenstore-read "$state/frontend")/state")
            case $(xenstore-read "$state/state")-$frontend in
                2-1 | 4-4) any=yes ;;
                *) return 1 ;;
            esac
        done
    done
    [ -n "$any" ]
}

# What a frontend draws at each connection: the guest of the lab has a driver for keyboards.
DRAWN='s#^(/local/domain/[0-9]+/device/vkbd/[0-9]+/(page-ref|page-gref|event-channel) = )"[0-9]+"#\1"*"#'

tree() { # NAME TOOL: what is in the store, in order, with permissions
    check "$1-$2-served" "the device was not served" wait_until 20 served
    sleep 1
    store_dump "$LAB/$1.$2"
    without_copies < "$LAB/$1.$2" | sed -E "$DRAWN" > "$LAB/$1.$2.tree"
}

detached_by() { # NAME TOOL COMMAND DEVICE
    expect_exit 0 "$1-detached-by-$2" "$2" "$3-detach" g "$4"
    expect_store_but_copies "$BEFORE" "$1-detached-by-$2-store-as-before"
}

same() { # NAME COMMAND DEVICE WORDS...: both tools attach it, and each detaches it
    local name=$1 command=$2 device=$3 tool
    shift 3
    for tool in xl xendev; do
        expect_exit 0 "$name-attached-by-$tool" "$tool" "$command-attach" g "$@"
        tree "$name" "$tool"
        config_of g > "$LAB/$name.$tool.config" 2> "$ERR"
        limited xl "$command-list" g
        mv "$OUT" "$LAB/$name.list"
        limited xendev "$command-list" g
        expect_same "$LAB/$name.list" "$OUT" "$name-of-$tool-listed-as-xl"
        artifact "$name-$tool.list" "$OUT"
        # Each detaches what the other has attached.
        if [ "$tool" = xl ]; then
            detached_by "$name" xendev "$command" "$device"
        else
            detached_by "$name" xl "$command" 0
            xendev "$command-detach" g 0 > "$OUT" 2>&1 # the entry, which xl leaves
        fi
    done
    expect_same "$LAB/$name.xl.tree" "$LAB/$name.xendev.tree" "$name-trees"
}

same_config() { # NAME
    expect_same "$LAB/$1.xl.config" "$LAB/$1.xendev.config" "$1-config-as-after-xl"
}

check guest-started "see above" guest_start g
DOMID=$(guest_domid g)
BEFORE=$LAB/before.store
store_dump "$BEFORE"
serve "$DOMID" &
SERVER=$!

### Dry runs.

for words in backend=0 "backend=Domain-0 uuid=$UUID" uuid=foo foo=1; do
    # shellcheck disable=SC2086 # several words
    dry_run vtpm-attach g $words
done
dry_run vtpm-attach g
dry_run vtpm-attach 77 backend=0
dry_run vtpm-attach nosuch backend=0
for words in backend-type=qemu backend-type=LINUX backend-type=foo foo "backend-type=linux feature-multi-touch=1" \
    "backend-type=linux unique-id=T:1 backend=0 feature-abs-pointer=1 feature-raw-pointer=1 width=800 height=600" \
    "backend-type=linux width=8 height=6 multi-touch-width=1 multi-touch-height=2 multi-touch-num-contacts=3" \
    "backend-type=linux feature-disable-keyboard=1 feature-disable-pointer=1 feature-abs-pointer=0"; do
    # shellcheck disable=SC2086 # several words
    dry_run vkb-attach g $words
done
for words in "connectors=id0:800x600" "be-alloc=1 backend=0 connectors=id0:800x600;id1:1024x768" be-alloc=1 \
    "connectors=id0:800x600 be-alloc=0" "connectors=id0:800" foo=1; do
    # shellcheck disable=SC2086 # several words
    dry_run vdispl-attach g $words
done
dry_run vsnd-attach g card
dry_run vsnd-attach g "card, short-name=a=b, backend=0, sample-formats=S8;f32_le;gsm, sample-rates=8000;44100"
dry_run vsnd-attach g "card, short-name=M, long-name=A long one" "pcm, name=a, channels-min=1, channels-max=6" \
    "stream, unique-id=0, type=P" "stream, unique-id=1, type=c, buffer-size=7" "pcm, name=b"
dry_run vsnd-attach g "card, sample-formats=foo"
dry_run vsnd-attach g "card, type=p"
dry_run vsnd-attach g "card" "pcm" "stream, type=x"

### Trees, lists and configurations.

same vtpm vtpm "$UUID" backend=0 "uuid=$UUID"
same_config vtpm
same vkb-linux vkb 0 backend-type=linux unique-id=T:1 feature-multi-touch=1 multi-touch-width=100 multi-touch-height=200 \
    multi-touch-num-contacts=10 feature-abs-pointer=1 width=800 height=600
same vkb-raw vkb 0 backend-type=linux feature-raw-pointer=1 feature-disable-keyboard=1
same vdispl vdispl 0 be-alloc=1 "connectors=id0:800x600;id1:1024x768"
same_config vdispl
same vdispl-one vdispl 0 backend=0 connectors=id0:800x600
same_config vdispl-one
same vsnd vsnd 0 "card, short-name=Main, long-name=A long one, sample-rates=8000;44100, sample-formats=s16_le;s8, \
channels-min=1, channels-max=6, buffer-size=1000" "pcm, name=dev1, channels-max=2" "stream, unique-id=0, type=p" \
    "stream, unique-id=1, type=c, buffer-size=7" "pcm, name=dev2, sample-formats=u8" "stream, unique-id=x, type=c"
same_config vsnd
same vsnd-card vsnd 0 card
same_config vsnd-card

### Several of a kind, of both tools, in one list.

for tool in xl xendev xl; do
    expect_exit 0 "several-vkb-$tool" "$tool" vkb-attach g backend-type=linux
    expect_exit 0 "several-vtpm-$tool" "$tool" vtpm-attach g backend=0
    expect_exit 0 "several-vdispl-$tool" "$tool" vdispl-attach g connectors=a:1x1
    expect_exit 0 "several-vsnd-$tool" "$tool" vsnd-attach g "card, short-name=$tool"
done
# What a driver would have written.
for node in vtpm/1/ring-ref vtpm/1/event-channel vdispl/1/0/req-ring-ref vdispl/1/0/evt-event-channel; do
    xenstore-write "/local/domain/$DOMID/device/$node" 8
done
check several-served "not all devices were served" wait_until 20 served
for command in vkb vtpm vdispl vsnd; do
    limited xl "$command-list" g
    mv "$OUT" "$LAB/$command.list"
    limited xendev "$command-list" g
    expect_same "$LAB/$command.list" "$OUT" "several-$command-listed-as-xl"
    limited xendev --json "$command-list" g
    artifact "$command.json" "$OUT"
done
# xl detaches device 0 then.
expect_exit 2 several-no-id xendev vsnd-detach g nonsense
expect_exit 1 several-no-such-uuid xendev vtpm-detach g "$UUID"
expect_exit 0 several-destroyed xendev destroy-devices g
expect_store_but_copies "$BEFORE" several-destroyed-store-as-before

### Nobody serves it.

kill "$SERVER"
wait "$SERVER" 2> "$ERR"
expect_exit 3 unserved xendev vdispl-attach --backend-timeout 2 g connectors=a:1x1
expect_stderr "start the program that serves vdispl backends" unserved-hint
expect_store_but_copies "$BEFORE" unserved-store-as-before
expect_exit 0 unserved-tree xendev vdispl-attach --wait tree g connectors=a:1x1
expect_exit 0 unserved-detached xendev vdispl-detach g 0
expect_store_but_copies "$BEFORE" unserved-detached-store-as-before
