# The client does all it must over the kernel's device, in dom0 and in a guest.
# needs lab
. ./common.sh
plan 48

verdicts() { # WHERE FILE: one for each case that was run, and one for the end
    local name how
    tr -d '\r' < "$2" > "$LAB/$1.cases"
    while IFS=' ' read -r _ name how; do
        case $how in
            passed) ok "$1-${name%:}" ;;
            "not here"*) echo "  $1: $name $how" ;;
            *) fail "$1-${name%:}" "$how" ;;
        esac
    done < <(grep '^CASE ' "$LAB/$1.cases")
    check "$1-ended" "the last line: $(tail -n 1 "$LAB/$1.cases")" grep -q '^CASES END 0$' "$LAB/$1.cases"
}

ended() { # FILE
    grep -q '^CASES END' "$1"
}

store_dump "$LAB/before.store"
{
    timeout -s KILL 120 lab clients
    echo "CASES END $?"
} > "$OUT" 2>&1
verdicts dom0 "$OUT"
expect_store "$LAB/before.store" dom0-store-as-before

cat /guest/initrd /guest/clients > "$LAB/initrd"
check guest-started "see above" guest_start c "$LAB/initrd"
for _ in 1 2 3; do
    wait_until 90 ended "$(guest_log c)" && break
    echo "  the guest says: $(tail -n 1 "$(guest_log c)")"
done
verdicts guest "$(guest_log c)"
