# shellcheck shell=sh
# The rule by which the installer acts: what is on a disk and what is offered in, a verdict out. Nothing
# here reads or writes a disk, so that the tests can try every case under busybox's own shell.

# later A B: whether version A is later than version B, in Debian's order: runs of other characters and
# runs of digits by turns; a letter comes before anything else, a ~ even before the end, and numbers
# count as numbers, so that 2026.9 comes before 2026.11 and 1.1~rc1 before 1.1.
later() {
    left=$1 right=$2
    while [ -n "$left$right" ]; do
        while :; do # what is not a digit, character by character
            a=${left%"${left#?}"} b=${right%"${right#?}"}
            case $a in [0-9]) a='' ;; esac
            case $b in [0-9]) b='' ;; esac
            [ -n "$a$b" ] || break
            weight "$a" && a_weight=$weight
            weight "$b"
            [ "$a_weight" = "$weight" ] || { [ "$a_weight" -gt "$weight" ]; return; }
            left=${left#?} right=${right#?}
        done
        # and now the numbers, which may be longer than the shell can count
        a=${left%%[!0-9]*} b=${right%%[!0-9]*}
        left=${left#"$a"} right=${right#"$b"}
        while [ "${a#0}" != "$a" ]; do a=${a#0}; done
        while [ "${b#0}" != "$b" ]; do b=${b#0}; done
        [ "${#a}" = "${#b}" ] || { [ "${#a}" -gt "${#b}" ]; return; }
        while [ "$a" != "$b" ]; do
            x=${a%"${a#?}"} y=${b%"${b#?}"}
            [ "$x" = "$y" ] || { [ "$x" -gt "$y" ]; return; }
            a=${a#?} b=${b#?}
        done
    done
    return 1
}

# weight CHARACTER: its place in that order, in $weight; nothing (the end, or a digit) counts as 0.
weight() {
    case $1 in
    '') weight=0 ;;
    '~') weight=-1 ;;
    [A-Za-z]) weight=$(printf %d "'$1") ;;
    *) weight=$(($(printf %d "'$1") + 256)) ;;
    esac
}

# supported RELEASED UNTIL: whether what was released that day may still be installed; both are dates
# like 2026-11-25. Nothing for UNTIL means for ever.
supported() {
    [ -n "$2" ] || return 0
    case $1 in [0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]) ;; *) return 1 ;; esac
    case $2 in [0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]) ;; *) return 1 ;; esac
    [ "$(echo "$1" | tr -d -)" -le "$(echo "$2" | tr -d -)" ]
}

# decide: from $kind (empty, unfinished, ours, foreign), $have_name and $have_version (of ours), $name,
# $version and $released (of what is offered), $ends and $wipe (yes: a foreign disk may be lost) to
# $verdict (install, upgrade, keep, refuse) and $because.
decide() {
    case $kind in
    empty) verdict=install because='the disk is empty' ;;
    unfinished) verdict=install because='an installation was begun here and not finished' ;;
    ours)
        if [ "$have_name" != "$name" ]; then
            verdict=refuse
            because="it has $have_name@$have_version, which is another system"
            [ "$wipe" != yes ] || verdict=install
        elif [ "$have_version" = "$version" ]; then
            verdict=keep because="it has $version already"
        elif ! later "$version" "$have_version"; then
            verdict=keep because="it has $have_version, which is not older than $version"
        elif ! supported "$released" "$ends"; then
            verdict=keep
            because="$version was released ${released:-nobody knows when}, and support ended $ends"
        else
            verdict=upgrade because="$version is later than $have_version"
        fi
        ;;
    *)
        verdict=refuse because="it holds $content"
        [ "$wipe" != yes ] || verdict=install
        ;;
    esac
}
