# Sourced by the clients. `run` prints a command, its output, and its exit code.
run() {
    printf '$ %s\n' "$*"
    "$@" 2>&1
    printf 'exit %d\n' $?
}
