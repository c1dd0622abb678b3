# shellcheck shell=sh
# Questions on the console, where no policy has answered them.

# ask QUESTION SECONDS: on every console; the first answer, in $answer; timeout if nobody answers.
ask() {
    answer='' pids=''
    rm -f /run/pxed/answer /run/pxed/open
    mkfifo /run/pxed/answer /run/pxed/open
    for tty in $consoles; do
        # Open before the question is there: what is typed into a closed one is lost.
        {
            { echo > /run/pxed/open; read -r line && echo "$line" > /run/pxed/answer; } < "/dev/$tty" ||
                echo > /run/pxed/open
        } &
        pids="$pids $!"
        read -r _ < /run/pxed/open
    done
    say "$1"
    { sleep "$2" && echo timeout > /run/pxed/answer; } &
    pids="$pids $!"
    read -r answer < /run/pxed/answer
    # shellcheck disable=SC2086 # process ids
    kill $pids 2> /dev/null
    answer=$(echo "$answer" | tr -d '\r\t ')
}

# ask_disk: which of several disks; 1 if nobody said.
ask_disk() {
    say "This machine has several disks:"
    for disk in $disks; do
        look "$disk"
        say "  $disk  $mib MiB  $kind $content"
    done
    while :; do
        ask "Which one shall $name@$version go to? Its name, or Enter for none:" "$patience"
        disk_wanted=$answer
        [ -n "$answer" ] && [ "$answer" != timeout ] || return 1
        ! choose || return 0
        say "There is no disk $answer."
    done
}

# ask_leave: whether the verdict may be carried out; 1 if not. What would be lost must be called by its
# name.
ask_leave() {
    if [ "$kind" = empty ] || [ "$kind" = unfinished ]; then
        ask "Install $name@$version on $chosen ($mib MiB, $because)? yes or no:" "$patience"
        [ "$answer" = yes ]
    else
        say "$chosen ($mib MiB): $because."
        ask "ALL OF IT WILL BE LOST if you type the disk's name, $chosen. Enter leaves it alone:" "$patience"
        [ "$answer" = "$chosen" ]
    fi
}
