# What every scenario sources first: the words that the lab understands, and helpers to run commands and check them.
#
# A scenario says `plan N`, does its work, and lets each check give one verdict. It runs in dom0 with this folder as
# its working directory; bash is the real one, most other tools are busybox.
set -u

LAB=/tmp/lab # files of this run
OUT=$LAB/out # standard output of the last command that a helper ran
ERR=$LAB/err # and its standard error
mkdir -p "$LAB"

# No single command may hang longer than this, so that the scenario can tell of it. Above the 40 s that `xl` grants a
# hotplug script, below the lab's limit for silence.
COMMAND_LIMIT=90

plan() { echo "SCENARIO PLAN $1"; }

ok() { echo "VERDICT ok $1"; }

fail() { # NAME WHY
    echo "VERDICT FAIL $1: $2"
}

indent() { sed 's/^/    /'; }

check() { # NAME WHY COMMAND...: a verdict from the command's exit status
    local name=$1 why=$2
    shift 2
    if "$@"; then ok "$name"; else fail "$name" "$why"; fi
}

wait_until() { # SECONDS COMMAND...: repeats the command until it succeeds
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.3
    done
}

limited() { # COMMAND...: runs a program with its output in $OUT and $ERR
    timeout -s KILL "$COMMAND_LIMIT" "$@" > "$OUT" 2> "$ERR"
}

show_output() {
    echo "  standard output:"
    indent < "$OUT"
    echo "  standard error:"
    indent < "$ERR"
}

expect_exit() { # STATUS NAME COMMAND...
    local want=$1 name=$2 got
    shift 2
    limited "$@"
    got=$?
    if [ "$got" = "$want" ]; then
        ok "$name"
    else
        show_output
        fail "$name" "\`$*\` ended with $got instead of $want"
    fi
}

expect_stderr() { # PATTERN NAME: the last command said so (grep's basic expressions, any case)
    if grep -qi "$1" "$ERR"; then
        ok "$2"
    else
        show_output
        fail "$2" "nothing like \`$1' on standard error"
    fi
}

timed() { # LABEL COMMAND...: runs the command and tells how long it took
    local label=$1 start status
    shift
    start=${EPOCHREALTIME/./}
    "$@" > "$OUT" 2> "$ERR"
    status=$?
    echo "TIMING $(((${EPOCHREALTIME/./} - start) / 1000)) $label"
    if [ "$status" != 0 ]; then
        show_output
    fi
    return "$status"
}

expect_timed() { # STATUS NAME COMMAND...: as expect_exit, and tells how long it took
    local start=${EPOCHREALTIME/./}
    expect_exit "$@"
    echo "TIMING $(((${EPOCHREALTIME/./} - start) / 1000)) $2"
}

artifact() { # NAME FILE: sends a file out
    echo "ARTIFACT $1"
    gzip -c "$2" | base64
    echo "ARTIFACT END"
}

. lib/guest.sh
. lib/store.sh
. lib/devices.sh
. lib/hotplug.sh
